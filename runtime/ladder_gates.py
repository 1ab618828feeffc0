# SPDX-License-Identifier: Apache-2.0
"""What a candidate must reach on each rung of the quality ladder, and why: one table.

Which line of the tensor table holds for a graph follows from how its weights are stored and what its engine computes
in: the coarser of the two. The lines for frames, seams, colours and lips hold for every candidate.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from .model_package import ModelPackage

AT_LEAST, AT_MOST = "at least", "at most"

SAME, HALF, W8, COARSE = "f32", "16 bit", "int8 weights", "int4 weights or int8 activations"
CLASSES = (SAME, HALF, W8, COARSE)
"""From the finest to the coarsest."""

CLASS_OF_FORM: Mapping[str, str] = {
    "fp16": HALF,
    "bf16": HALF,
    "int8": W8,
    "int4": COARSE,
    "int8-dynamic": COARSE,
    "int8-static": COARSE,
}
"""Form of a recipe's rule to the class that a graph is in where the rule fits it."""

SMALL_INTEGERS = frozenset({"int8", "uint8", "int4", "uint4"})


@dataclass(frozen=True, slots=True)
class Gate:
    """One line of the table."""

    metric: str
    """Which figure is looked at."""
    limit: float
    """What it is compared with."""
    sense: str
    """`AT_LEAST` or `AT_MOST`."""
    reason: str
    """Why this number."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate, and what came to it."""

    rung: str
    """block, graph, window, clip or rehearsal."""
    where: str
    """Name of the graph, or what of the clip was looked at."""
    metric: str
    """Which figure."""
    value: float
    """What was found."""
    limit: float
    """What was asked."""
    sense: str
    """`AT_LEAST` or `AT_MOST`."""
    passed: bool
    """Whether the value is on the right side of the limit."""
    reason: str
    """Why this limit."""

    @property
    def line(self) -> str:
        """What was found, what was asked, and by how much it was missed."""
        missed = "" if self.passed else f" (missed by {abs(self.value - self.limit):.3g})"
        return f"{self.rung}: {self.where}: {self.metric} {self.value:.4g}, {self.sense} {self.limit:.4g}{missed}"


def check(gate: Gate, value: float, *, rung: str, where: str) -> GateResult:
    """Hold a figure against a gate; a value that is no number passes nothing."""
    passed = value >= gate.limit if gate.sense == AT_LEAST else value <= gate.limit
    return GateResult(rung, where, gate.metric, float(value), gate.limit, gate.sense, passed, gate.reason)


# ── Tensors ──────────────────────────────────────────────────────────────────────────────────────────────────────────

OTHER = "*"
COARSE_LIMIT_DB = 20.0
"""A tenth of the amplitude may be noise."""
TENSOR_GATES: Mapping[str, Mapping[str, Gate]] = {
    SAME: {
        OTHER: Gate("rel_l2", 1e-4, AT_MOST, "same values in float32: engines only sum in another order, 1e-6 measured")
    },
    HALF: {
        "dit": Gate("sqnr_db", 35.0, AT_LEAST, "7 bits of mantissa (bf16) through a stack of residual blocks"),
        OTHER: Gate("sqnr_db", 40.0, AT_LEAST, "7 to 10 bits of mantissa: rounding alone leaves 45 dB"),
    },
    W8: {
        "dit": Gate("sqnr_db", 30.0, AT_LEAST, "eight bits per weight, activations whole"),
        "vae_encoder": Gate("sqnr_db", 35.0, AT_LEAST, "its errors are seen as pixels or anchor every window"),
        "vae_decoder": Gate("sqnr_db", 35.0, AT_LEAST, "its errors are seen as pixels"),
        "audio_encoder": Gate("cosine", 0.999, AT_LEAST, "features only steer: their direction counts"),
        OTHER: Gate("sqnr_db", 30.0, AT_LEAST, "as for the transformer that it feeds"),
    },
    COARSE: {OTHER: Gate("sqnr_db", COARSE_LIMIT_DB, AT_LEAST, "a tenth of the amplitude is noise: the frames decide")},
}
"""Class, then subnetwork (`OTHER`: any that is not named), to the gate of its graphs."""


BF16_ROOM = 2.0
"""How much worse than PyTorch's own bfloat16 an engine's may be: that was measured on one set of inputs, gates look at
the worst of many. OpenVINO on a CPU: at most 1.4 times with random weights; the embedded package at most 2.0, most of
its graphs below 1."""


def tensor_gate(kind: str, subnetwork: str, *, bf16_rel_l2: float | None = None) -> Gate:
    """Return the gate of a graph.

    Args:
        kind: its class, of `CLASSES`.
        subnetwork: what it belongs to.
        bf16_rel_l2: what PyTorch's bfloat16 costs the graph, where its engine computes in bfloat16: nothing can be
            asked of an engine that the format does not hold.
    """
    gates = TENSOR_GATES[kind]
    gate = gates.get(subnetwork, gates[OTHER])
    if kind != HALF or not bf16_rel_l2:
        return gate
    limit = -20 * math.log10(BF16_ROOM * bf16_rel_l2)
    reason = f"PyTorch's own bfloat16 is at {-20 * math.log10(bf16_rel_l2):.1f} dB: twice its noise"
    return gate if limit >= gate.limit else replace(gate, limit=limit, reason=reason)


def class_of(
    candidate: ModelPackage, *, graph: str, library: str, precision: str, reference_storage: str | None = None
) -> str:
    """Return how coarse a graph is: by its stored weights, and by what its engine computes in.

    Args:
        candidate: the package that holds the graph.
        graph: its name.
        library: engine library that runs it; a package may hold a sibling for each.
        precision: what the engine computes in: f32, bf16 or f16.
        reference_storage: how the reference stores weights; another storage of the candidate's is a rounding.
    """
    kinds = [SAME if precision == "f32" else HALF]
    if candidate.manifest.precision != (reference_storage or candidate.manifest.precision):
        kinds.append(HALF)
    kinds += _classes_of_rules(candidate, graph=graph, library=library)
    return max(kinds, key=CLASSES.index)


def _classes_of_rules(candidate: ModelPackage, *, graph: str, library: str) -> list[str]:
    """Return the classes that a recipe's rules put a graph in, integers only where it really holds some."""
    quantization = candidate.manifest.quantization
    forms = list(_forms(quantization.rules, graph=graph, library=library)) if quantization else []
    found = {CLASS_OF_FORM[form] for form in forms if form in CLASS_OF_FORM}
    if found & {W8, COARSE}:
        tensors = candidate.summary(graph, library).tensors
        if not any(tensor.dtype in SMALL_INTEGERS and len(tensor.shape) > 1 for tensor in tensors):
            found -= {W8, COARSE}
    return sorted(found)


def _forms(rules: Iterable[Mapping[str, Any]], *, graph: str, library: str) -> Iterable[str]:
    for rule in rules:
        if rule.get("engine") in (None, library) and any(fnmatchcase(graph, name) for name in rule.get("graphs", ())):
            yield str(rule.get("form"))


# ── One window ───────────────────────────────────────────────────────────────────────────────────────────────────────

FEW_STEPS = 8
"""A student of up to so many steps lands where its teacher points; longer trajectories diverge, and may."""

LAST_LATENTS = Gate("sqnr_db", 20.0, AT_LEAST, "few steps from the same noise: the path is short")
FRAMES_PSNR = Gate("psnr_db", 30.0, AT_LEAST, "same noise: below that the eye finds the difference")
FRAMES_SSIM = Gate("ssim", 0.95, AT_LEAST, "same noise: structure, not only brightness, must agree")

# ── A clip of several windows ────────────────────────────────────────────────────────────────────────────────────────

DRIFT = Gate("levels_per_min", 1.0, AT_MOST, "beyond the reference's own: 1 of 255 a minute, unseen over ten minutes")
LIP_CORRELATION = Gate("correlation", 0.9, AT_LEAST, "of the mouth's motion with the reference's")
SEAM_LIMIT, SEAM_RATIO = 1.5, 1.1


def seam_gate(reference: float) -> Gate:
    """Return the gate of the seam ratio; a reference with worse seams than the limit is the limit."""
    reason = "a seam half as large again as other changes is not seen"
    if reference * SEAM_RATIO > SEAM_LIMIT:
        reason = f"the reference itself is at {reference:.3f}: a tenth more"
    return Gate("seam_ratio", max(SEAM_LIMIT, SEAM_RATIO * reference), AT_MOST, reason)


def lag_gate(fps: float) -> Gate:
    """Return the gate of the mouth's lag behind the reference's, either way."""
    return Gate("lag_ms", 1000 / fps, AT_MOST, "one frame; ears notice from 45 ms early")
