# SPDX-License-Identifier: Apache-2.0
"""Quantize a package: follow a recipe, layer by layer, into a new package that proves what it cost.

Memory holds one tensor at a time. A weights file in which nothing changes is taken over; any other becomes one new
file, noted by the package's writer, so that a killed run goes on after the last finished one. The package gets its name
only after the gate let it pass.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from ..runtime import __version__
from ..runtime.errors import PackageError, VerificationError
from ..runtime.golden import Tolerance, golden_bytes, load_golden
from ..runtime.manifest import LIBRARIES, Calibration
from ..runtime.model_package import MANIFEST, ModelPackage
from ..runtime.package_writer import PackageWriter
from ..runtime.quality import FILE, Quality, quality_bytes
from .coverage import Coverage, coverage_of
from .gate import check_judgeable, judge, misses, passed, why_unjudgeable
from .layers import Layer, StoredTensor
from .learn import learn, resume_key
from .plan import (
    Plan,
    PlannedGraph,
    check_recipe,
    keeps_everything,
    make_plan,
    read_graphs,
)
from .recipes import Recipe
from .request import Progress, Request
from .rewrite import Storage, StoredWeight, rewrite
from .stored_weights import Slot, by_file, changes, copied, lay_out, named, pieces, unchanged

logger = logging.getLogger(__name__)

OPENVINO = "openvino"


TOLERANCES: Mapping[str, Tolerance] = {
    "fp16": Tolerance(0.003, 0.03, "weights rounded to 10 bits of mantissa: at least 50 dB"),
    "bf16": Tolerance(0.018, 0.18, "weights rounded to 7 bits of mantissa: at least 35 dB", levels=2),
    "int8": Tolerance(0.056, 0.56, "weights rounded to int8 per channel: at least 25 dB", levels=4),
    "int8-dynamic": Tolerance(0.1, 1.0, "weights and activations rounded to int8: at least 20 dB", levels=8),
    "int4": Tolerance(0.4, 2.0, "weights rounded to int4 in blocks of 64: at least 8 dB", levels=16),
    "int8-static": Tolerance(0.5, 2.0, "int8, ranges of speech, which these inputs are not: at least 6 dB", levels=16),
}
"""What a golden comparison allows a graph that holds a form; the widest of its forms counts.

Golden inputs are synthetic and networks may be deep, so this tells a wrong graph from a right one (a wrong scale or
axis is off by 1 and more), and the quality ladder tells how good it is. The farthest seen: int8 0.029 and int4 0.24,
both of random weights, and int8-static 0.33.
"""


@dataclass(frozen=True)
class Quantized:
    """A package that was written."""

    package: ModelPackage
    """Opened."""
    coverage: tuple[Coverage, ...]
    """By subnetwork and form."""
    notes: tuple[str, ...]
    """Layers that got another form than the recipe asked for."""
    ladders: tuple[Quality, ...]
    """What the ladder found on each engine; empty where none could be climbed and no gate was asked for."""
    recipe: Recipe
    """What was followed: with the exceptions that were made, and what a search decided."""
    curve: Mapping[str, Any] | None
    """What a search found, as JSON; None without one."""


def quantize_package(request: Request, *, progress: Progress) -> Quantized:
    """Write the quantized package.

    Args:
        request: what to do.
        progress: called with a line before each piece of work.

    Raises:
        PackageError: the source is damaged, quantized already, or nothing of it is covered; the target can't be had.
        UsageError: the recipe names a graph or layer that is not there.
        MediaError: a sound to calibrate with can't be used.
        VerificationError: the gate was missed; the message says where and by how much.
    """
    writer = PackageWriter(request.target, force=request.force)
    writer.check_target()
    progress("check the source")
    source = ModelPackage.open(request.package)
    _check_source(source)
    if request.gate:
        check_judgeable(source)
    graphs = read_graphs(source)
    check_recipe(request.recipe, graphs)
    with writer:
        learned = learn(source, graphs, request=request, writer=writer, progress=progress)
        plan = make_plan(learned.recipe, graphs, find_range=learned.find_range)
        if keeps_everything(plan):
            raise PackageError(f"the recipe {plan.recipe.name} changes nothing in {source.name}; nothing to write")
        slots, places = _write_weights(plan, source=source, writer=writer, progress=progress)
        siblings = _write_graphs(plan, places=places, writer=writer)
        _write_golden(plan, source=source, writer=writer)
        _carry_over(source, writer=writer)
        coverage = coverage_of(plan, slots)
        fields = _fields(plan, source=source, siblings=siblings, calibration=learned.calibration, coverage=coverage)
        ladders = _judge(fields, source=source, request=request, writer=writer, progress=progress)
        package = writer.finish(fields | {"quality": FILE if ladders else None})
    return Quantized(package, coverage, plan.notes, ladders, plan.recipe, learned.curve)


def _check_source(source: ModelPackage) -> None:
    done = source.manifest.quantization
    if done is not None:
        raise PackageError(
            f"{source.name} is quantized already ({done.recipe}); quantize the package that it was made from "
            f"(digest {done.source[:12]})",
            code="quantized",
        )


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_weights(
    plan: Plan, *, source: ModelPackage, writer: PackageWriter, progress: Progress
) -> tuple[list[Slot], dict[tuple[StoredTensor, Storage], StoredWeight]]:
    """Write every weights file that the graphs still refer to."""
    every: list[Slot] = []
    places: dict[tuple[StoredTensor, Storage], StoredWeight] = {}
    files = by_file(plan.wanted())
    for number, (location, here) in enumerate(files.items(), start=1):
        slots = lay_out(here)
        every += slots
        progress(f"weights {number} of {len(files)}")
        key = resume_key("weights", location, [[asdict(slot.stored), asdict(slot.storage)] for slot in slots])
        record = writer.resume(location, key=key)
        if record is None and changes(here):
            record = {"location": writer.add_weights(pieces(slots, root=source.root))}
        elif record is None:
            writer.add_file(location, copied(source.root / location, writer.scratch / "copy"))
            record = {"location": location}
        writer.complete(location, key=key, record=record)
        places |= named(slots, location=record["location"]) if changes(here) else unchanged(here)
    return every, places


def _write_graphs(
    plan: Plan, *, places: Mapping[tuple[StoredTensor, Storage], StoredWeight], writer: PackageWriter
) -> dict[str, str]:
    """Write every graph, and OpenVINO's where it differs; return graph to its sibling."""

    def place(layer: Layer, storage: Storage) -> StoredWeight:
        return places[layer.stored, storage]

    siblings: dict[str, str] = {}
    for graph in plan.graphs:
        for library, file in _files_of(graph).items():
            model = rewrite(graph.source.model, graph.decided[library], place=place, library=library)
            writer.add_file(file, model.SerializeToString(deterministic=True))
            if library == OPENVINO:
                siblings[graph.source.name] = file
    return siblings


def _files_of(graph: PlannedGraph) -> dict[str, str]:
    name = graph.source.name
    own = LIBRARIES[0]
    return {library: f"{name}.onnx" if library == own else f"{name}.{library}.onnx" for library in graph.libraries}


def _write_golden(plan: Plan, *, source: ModelPackage, writer: PackageWriter) -> None:
    """Write the golden vectors again, with the tolerance of the widest form in each graph."""
    for graph in plan.graphs:
        path = source.golden_path(graph.source.name)
        if path is None:
            continue
        vectors = load_golden(path)
        allowed = [TOLERANCES[form] for form in graph.forms if form in TOLERANCES]
        widest = max([vectors.tolerance, *allowed], key=lambda tolerance: tolerance.rel_l2)
        writer.add_file(
            source.manifest.golden[graph.source.name],
            golden_bytes(vectors.inputs, vectors.outputs, tolerance=widest),
        )


def _carry_over(source: ModelPackage, *, writer: PackageWriter) -> None:
    """Take over whatever the recipe says nothing about: avatars, tables, licences, the tokenizer."""
    manifest = source.manifest
    made_anew = {entry.file for entry in manifest.graphs.values()} | set(manifest.golden.values()) | {manifest.quality}
    for name in manifest.files:
        if not name.startswith("weights/") and name not in made_anew:
            writer.add_file(name, copied(source.root / name, writer.scratch / "copy"))


# ── What the manifest says ───────────────────────────────────────────────────────────────────────────────────────────


def _fields(
    plan: Plan,
    *,
    source: ModelPackage,
    siblings: Mapping[str, str],
    calibration: Calibration | None,
    coverage: Sequence[Coverage],
) -> dict[str, Any]:
    """Return the manifest of the new package, but for what the writer makes."""
    fields: dict[str, Any] = json.loads((source.root / MANIFEST).read_bytes())
    for key in ("format", "format_version", "digest", "files", "quality"):
        fields.pop(key, None)
    for graph in plan.graphs:
        entry = fields["graphs"][graph.source.name]
        entry["file"] = f"{graph.source.name}.onnx"
        if graph.source.name in siblings:
            entry["siblings"] = {OPENVINO: siblings[graph.source.name]}
    storage = next((rule.form for rule in plan.recipe.rules if rule.form in ("fp16", "bf16")), None)
    if storage and all(rule.form == storage for rule in plan.recipe.rules):
        fields["precision"] = storage
    fields["made_with"] |= {"edgereels": __version__, "onnx": onnx.__version__, "numpy": np.__version__}
    fields["quantization"] = {
        "recipe": plan.recipe.name,
        "rules": [rule.as_json() for rule in plan.recipe.rules],
        "source": source.digest,
        "calibration": None if calibration is None else asdict(calibration) | {"sounds": list(calibration.sounds)},
        "covered": {
            "layers": sum(row.layers for row in coverage),
            "parameters": sum(row.parameters for row in coverage),
            "size_bytes": sum(row.size_bytes for row in coverage),
            "fp32_bytes": sum(row.fp32_bytes for row in coverage),
        },
    }
    return fields


# ── The gate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _judge(
    fields: Mapping[str, Any],
    *,
    source: ModelPackage,
    request: Request,
    writer: PackageWriter,
    progress: Progress,
) -> tuple[Quality, ...]:
    """Let the gate look at the package where it was written, before it has its name; adds the record to it.

    Raises:
        VerificationError: it was missed, and the request insists on it.
    """
    if why := why_unjudgeable(source):
        logger.warning("%s was written unjudged: %s", request.target, why)
        return ()
    ladders = judge(source, writer.draft(fields), threads=request.threads, progress=progress)
    if request.gate and not passed(ladders):
        raise VerificationError(
            f"{request.target} was not written, it misses its gate: {'; '.join(misses(ladders))} "
            "(--write-recipe FILE looks for layers that may be quantized; --no-gate writes it and marks it as failed)"
        )
    writer.add_file(FILE, quality_bytes(ladders))
    return ladders
