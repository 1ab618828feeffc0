# SPDX-License-Identifier: Apache-2.0
"""Golden vectors in a package, and how near is near enough.

A golden file holds one set of inputs and the outputs that the PyTorch module gave for them in float32 on a CPU: tensors
`in.<name>` and `out.<name>`, and the tolerance in the header. Export writes it, `edgereels verify` runs it on a device.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine import Engine
from .errors import PackageError
from .manifest import parse_json

Array = npt.NDArray[Any]
INPUT, OUTPUT, TOLERANCE = "in.", "out.", "tolerance"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may lie from its reference; both limits hold."""

    rel_l2: float
    """Euclidean norm of the difference over that of the reference."""
    max_abs: float
    """Largest difference over the largest value of the reference."""
    reason: str
    """Why these numbers."""
    levels: int = 1
    """uint8 outputs: largest difference in levels. Other integers must be equal."""

    def at(self, precision: str) -> "Tolerance":
        """Return the tolerance for an arithmetic precision, f32, f16 or bf16: never narrower than this one.

        Errors of different causes add up as the root of their squares: a quantized package, whose golden file allows
        what its weights cost, needs a little more where the arithmetic is low as well.
        """
        if precision == "f32":
            return self
        low = LOW_PRECISION.get(precision)
        if low is None:
            raise ValueError(f"precision is {precision!r}; expected f32, f16 or bf16")
        return replace(
            self,
            rel_l2=math.hypot(self.rel_l2, low.rel_l2),
            max_abs=math.hypot(self.max_abs, low.max_abs),
            levels=max(self.levels, low.levels),
            reason=low.reason if self.rel_l2 <= F32.rel_l2 else f"{self.reason}; {low.reason}",
        )


F32 = Tolerance(
    rel_l2=1e-5,
    max_abs=1e-4,
    reason="float32 on both sides: engines sum in another order, about 1e-6 over a few layers; ten times that is left",
)
LOW_PRECISION = {
    # Signal to noise 40 dB is rel L2 0.01, 35 dB is 0.018; one value in a million may be ten times worse.
    "f16": Tolerance(0.010, 0.1, "10 bits of mantissa: at least 40 dB signal to noise", levels=4),
    "bf16": Tolerance(0.018, 0.18, "7 bits of mantissa: at least 35 dB signal to noise", levels=8),
}


@dataclass(frozen=True)
class GoldenVectors:
    """Inputs of a graph and the outputs that belong to them."""

    inputs: Mapping[str, Array]
    """By the graph's input names."""
    outputs: Mapping[str, Array]
    """By its output names; reference values."""
    tolerance: Tolerance
    """For float32 arithmetic; see `Tolerance.at`."""


@dataclass(frozen=True, slots=True)
class OutputResult:
    """One output against its reference."""

    output: str
    """Name of the output."""
    max_abs: float
    """Largest absolute difference."""
    rel_max: float
    """The same over the largest absolute value of the reference."""
    rel_std: float
    """The same over the standard deviation of the reference."""
    rel_l2: float
    """Norm of the difference over the norm of the reference."""
    fault: str
    """Why it does not pass; empty where it does."""

    @property
    def passed(self) -> bool:
        """Whether it is near enough."""
        return not self.fault


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """A graph against its golden vectors."""

    graph: str
    """Name of the graph."""
    outputs: tuple[OutputResult, ...]
    """In the order of the file; empty where the graph could not run."""
    tolerance: Tolerance
    """What was allowed."""
    fault: str = ""
    """Why the graph could not run; empty where it did."""

    @property
    def passed(self) -> bool:
        """Whether every output is near enough."""
        return not self.fault and all(output.passed for output in self.outputs)

    @property
    def worst(self) -> OutputResult | None:
        """The output with a fault, or else the one farthest from its reference."""
        return max(self.outputs, key=lambda output: (not output.passed, output.rel_l2), default=None)


def golden_bytes(inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, tolerance: Tolerance = F32) -> bytes:
    """Return a golden file: safetensors with `in.<name>`, `out.<name>` and the tolerance in its header.

    Raises:
        ValueError: no output, or a value that is not finite: nothing could be compared with it.
    """
    from safetensors.numpy import save

    tensors = {INPUT + name: np.ascontiguousarray(array) for name, array in inputs.items()}
    tensors |= {OUTPUT + name: np.ascontiguousarray(array) for name, array in outputs.items()}
    broken = [name for name, array in tensors.items() if not _all_finite(array)]
    if broken or not outputs:
        raise ValueError(f"golden vectors need finite values and at least one output; not finite: {broken}")
    return save(tensors, metadata={TOLERANCE: json.dumps(asdict(tolerance), allow_nan=False)})


def load_golden(path: Path) -> GoldenVectors:
    """Read a golden file.

    Raises:
        PackageError: a tensor is neither input nor output or holds NaN, which nothing differs from, or the tolerance is
            missing or wrong.
    """
    from safetensors import SafetensorError, safe_open

    inputs: dict[str, Array] = {}
    outputs: dict[str, Array] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, TypeError) as error:  # TypeError: an element type that numpy lacks
        raise PackageError(f"{path.name} can not be read: {error}", code="golden") from error
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if f"{kind}." not in (INPUT, OUTPUT):
            raise PackageError(f"{path.name}: the tensor {key!r} is neither in.* nor out.*", code="golden")
        if not _all_finite(tensor):
            raise PackageError(f"{path.name}: {key!r} holds NaN or infinity; export the package again", code="golden")
        (inputs if f"{kind}." == INPUT else outputs)[name] = tensor
    if not outputs or TOLERANCE not in metadata:
        raise PackageError(f"{path.name} has no outputs or no tolerance to compare with", code="golden")
    return GoldenVectors(inputs, outputs, _tolerance(metadata[TOLERANCE], where=path.name))


def _tolerance(text: str, *, where: str) -> Tolerance:
    match parse_json(text.encode("utf-8"), where=f"{where}: tolerance"):
        case {
            "rel_l2": int() | float() as rel_l2,
            "max_abs": int() | float() as max_abs,
            "reason": str(reason),
            "levels": int(levels),
        } if rel_l2 >= 0 and max_abs >= 0 and levels >= 0:
            return Tolerance(rel_l2, max_abs, reason, levels)
    raise PackageError(f"{where}: its tolerance lacks rel_l2, max_abs, levels or a reason", code="golden")


def compare_output(name: str, *, ours: Array | None, theirs: Array, tolerance: Tolerance) -> OutputResult:
    """Compare an output with its reference; a missing output, another shape or dtype is a fault."""
    if ours is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        found = "no such output" if ours is None else f"{ours.dtype} {list(ours.shape)}"
        return _failed(name, f"{found} instead of {theirs.dtype} {list(theirs.shape)}")
    if not _all_finite(ours):
        return _failed(name, f"{_count_broken(ours)} of {ours.size} values are not finite")
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    reference = np.abs(theirs.astype(np.float64))
    max_abs = float(difference.max(initial=0.0))
    result = OutputResult(
        output=name,
        max_abs=max_abs,
        rel_max=_ratio(max_abs, float(reference.max(initial=0.0))),
        rel_std=_ratio(max_abs, float(theirs.astype(np.float64).std()) if theirs.size else 0.0),
        rel_l2=_ratio(float(np.linalg.norm(difference)), float(np.linalg.norm(reference))),
        fault="",
    )
    return replace(result, fault=_fault(result, dtype=theirs.dtype, tolerance=tolerance))


def _fault(result: OutputResult, *, dtype: np.dtype[Any], tolerance: Tolerance) -> str:
    if dtype.kind in "iub":
        allowed = tolerance.levels if dtype == np.uint8 else 0
        return f"differs by {result.max_abs:g}, at most {allowed} allowed" if result.max_abs > allowed else ""
    if result.rel_l2 > tolerance.rel_l2:
        return f"rel L2 {result.rel_l2:.2g}, at most {tolerance.rel_l2:.2g} allowed"
    if result.rel_max > tolerance.max_abs:
        return f"max abs {result.rel_max:.2g} of the largest value, at most {tolerance.max_abs:.2g} allowed"
    return ""


def _failed(name: str, fault: str) -> OutputResult:
    return OutputResult(name, math.inf, math.inf, math.inf, math.inf, fault)


def _ratio(part: float, whole: float) -> float:
    if whole:
        return part / whole
    return math.inf if part else 0.0


def _all_finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _count_broken(array: Array) -> int:
    return int(array.size - np.isfinite(array).sum())


def check_graph(engine: Engine, vectors: GoldenVectors, *, graph: str) -> GoldenResult:
    """Run a graph on its golden inputs and compare every output; the engine's precision decides how strictly.

    Raises:
        EngineError: the engine could not run it.
    """
    tolerance = vectors.tolerance.at(engine.precision)
    ours = engine.run(vectors.inputs)
    results = (
        compare_output(name, ours=ours.get(name), theirs=theirs, tolerance=tolerance)
        for name, theirs in vectors.outputs.items()
    )
    return GoldenResult(graph, tuple(results), tolerance)
