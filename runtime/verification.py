# SPDX-License-Identifier: Apache-2.0
"""Run a package's golden vectors on a device, and say in one value what came out."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .cuda_driver import find_cards
from .engine import Engine
from .engine_wheels import WHEELS, installed_version
from .errors import EngineError
from .golden import GoldenResult, GoldenVectors, check_graph, load_golden
from .machine import machine_facts
from .manifest import LIBRARIES
from .model_package import ModelPackage
from .onnx_preflight import Tensor

REPORT_FORMAT = "edgereels-verification"
REPORT_VERSION = 2
"""Version 2 adds what a graph's engine is in full, times after a warm-up, and the machine's abilities."""
SCAN_BYTES = 16 << 20
TIMED_RUNS = 5
"""Runs that are timed, after the one that is compared."""
TIMING_BUDGET_S = 1.0
"""No further run begins once a graph's runs took that long: large graphs are timed once."""

OpenEngine = Callable[[Path], Engine]


@dataclass(frozen=True, slots=True)
class GraphCheck:
    """What a device made of one graph."""

    result: GoldenResult
    """Against the golden vectors."""
    file: str
    """File that was opened: the graph's own, or its sibling for the library."""
    library: str = ""
    """"onnxruntime" or "openvino"; empty where the graph could not be opened."""
    provider: str = ""
    """The part of the library that ran it, as that names it; empty as above."""
    precision: str = ""
    """Arithmetic in use: f32, f16 or bf16; empty as above."""
    node_counts: Mapping[str, int] = field(default_factory=dict[str, int])
    """Provider to operators that it ran; empty where the library doesn't tell."""
    kernel_precisions: Mapping[str, int] = field(default_factory=dict[str, int])
    """Matrix products and convolutions by what they computed in; empty as above."""
    first_ms: float = 0.0
    """Wall time of opening, making ready for these shapes and running once."""
    runs_ms: tuple[float, ...] = ()
    """Wall time of each run after that, on golden vectors, which are small; empty where none succeeded."""

    @property
    def run_ms(self) -> float:
        """Median wall time of a run; 0 where none was timed."""
        return statistics.median(self.runs_ms) if self.runs_ms else 0.0


@dataclass(frozen=True)
class Verification:
    """What a device made of a package."""

    package: ModelPackage
    """Which package; its digests were compared when it was opened."""
    checks: tuple[GraphCheck, ...]
    """One for every graph with golden vectors."""
    unchecked: tuple[str, ...]
    """Graphs without golden vectors."""
    broken_weights: tuple[str, ...]
    """Weights that hold NaN or infinity; looked for by a full verification only."""
    full: bool
    """Whether weights were scanned and every graph ran twice."""

    @property
    def faults(self) -> tuple[str, ...]:
        """One line for everything that is not as it should be."""
        return tuple(_faults(self))

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def _faults(verification: Verification) -> Iterator[str]:
    for check in verification.checks:
        result = check.result
        if result.fault:
            yield f"{result.graph}: {result.fault}"
        elif not result.passed and (worst := result.worst):
            yield f"{result.graph}: {worst.output}: {worst.fault}"
    for name in verification.broken_weights:
        yield f"{name}: holds NaN or infinity"


def verify_package(
    package: ModelPackage,
    *,
    open_engine: OpenEngine,
    library: str = "onnxruntime",
    full: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Run the golden vectors of every graph that has some.

    Args:
        package: opened with verify="full".
        open_engine: opens a graph file on the device in question.
        library: what runs graphs on that device; it gets its own file of a graph where there is one.
        full: also run every graph a second time, which must give the same bits, and look for NaN in all weights.
        progress: called with the name of each graph before it is run.

    Raises:
        EngineError: no graph at all can be opened, always for the same reason: the device is not to be had.
        PackageError: a golden file is wrong.
    """
    checks: list[GraphCheck] = []
    for name in package.manifest.graphs:
        path = package.golden_path(name)
        if path is not None:
            if progress:
                progress(name)
            file = package.graph_path(name, library)
            checks.append(_check(file, load_golden(path), graph=name, open_engine=open_engine, twice=full))
    reasons = {check.result.fault for check in checks}
    if len(reasons) == 1 and all(reasons) and not any(check.provider for check in checks):
        raise EngineError(reasons.pop())
    unchecked = tuple(name for name in package.manifest.graphs if name not in package.manifest.golden)
    return Verification(package, tuple(checks), unchecked, tuple(broken_weights(package)) if full else (), full)


def _check(path: Path, vectors: GoldenVectors, *, graph: str, open_engine: OpenEngine, twice: bool) -> GraphCheck:
    started_s = time.perf_counter()
    try:
        engine = open_engine(path)
    except EngineError as error:
        return GraphCheck(GoldenResult(graph, (), vectors.tolerance, str(error)), path.name)
    try:
        try:
            if set(engine.input_names) <= set(vectors.inputs):  # otherwise running says what is missing
                engine.freeze([{name: value.shape for name, value in vectors.inputs.items()}])
            result = check_graph(engine, vectors, graph=graph)
            first_ms = (time.perf_counter() - started_s) * 1e3
            runs_ms = _runs_ms(engine, vectors)
            if twice and result.passed and not _same_bits(engine, vectors):
                result = GoldenResult(graph, result.outputs, result.tolerance, "two runs gave different bits")
        except EngineError as error:
            result, first_ms, runs_ms = GoldenResult(graph, (), vectors.tolerance, str(error)), 0.0, ()
        return GraphCheck(
            result,
            path.name,
            library=engine.library,
            provider=engine.provider,
            precision=engine.precision,
            node_counts=dict(engine.node_counts),
            kernel_precisions=dict(getattr(engine, "kernel_precisions", {})),  # OpenVINO's engine tells
            first_ms=first_ms,
            runs_ms=runs_ms,
        )
    finally:
        engine.close()


def _runs_ms(engine: Engine, vectors: GoldenVectors) -> tuple[float, ...]:
    """Run an engine that is warm a few times more and return what each run took."""
    taken: list[float] = []
    while len(taken) < TIMED_RUNS and sum(taken) < TIMING_BUDGET_S * 1e3:
        before_s = time.perf_counter()
        engine.run(vectors.inputs)
        taken.append((time.perf_counter() - before_s) * 1e3)
    return tuple(taken)


def _same_bits(engine: Engine, vectors: GoldenVectors) -> bool:
    first, second = engine.run(vectors.inputs), engine.run(vectors.inputs)
    return all(np.array_equal(first[name], second[name]) for name in vectors.outputs)


def broken_weights(package: ModelPackage) -> Iterator[str]:
    """Yield `file: weight` for every weight of floating point that holds NaN or infinity; each is read once."""
    seen: set[tuple[str, int]] = set()
    for name, entry in package.manifest.graphs.items():
        for library in LIBRARIES:
            for tensor in package.summary(name, library).tensors:
                file = tensor.location or entry.file_for(library)
                if tensor.offset >= 0 and (file, tensor.offset) not in seen:
                    seen.add((file, tensor.offset))
                    if not _is_finite(package.root / file, tensor):
                        yield f"{file}: {tensor.name or 'a constant'}"


# Bits of the exponent: a value is NaN or infinite where all of them are set.
EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
    "float64": (np.uint64, 0x7FF0000000000000),
}


def _is_finite(path: Path, tensor: Tensor) -> bool:
    if tensor.dtype not in EXPONENTS:
        return True
    kind, exponent = EXPONENTS[tensor.dtype]
    with path.open("rb") as stream:
        stream.seek(tensor.offset)
        left = tensor.size_bytes
        while left:
            piece = stream.read(min(left, SCAN_BYTES))
            left -= len(piece)
            bits = np.frombuffer(piece, dtype=kind)
            if bool(np.any((bits & kind(exponent)) == kind(exponent))):
                return False
    return True


# ── What somebody else's hardware can send back ──────────────────────────────────────────────────────────────────────


def report_of(verification: Verification, *, asked: dict[str, Any]) -> dict[str, Any]:
    """Return a verification as JSON: package, machine, versions and every figure; no user, host or folder names."""
    package = verification.package
    return {
        "format": REPORT_FORMAT,
        "format_version": REPORT_VERSION,
        "package": {
            "name": package.manifest.name,
            "digest": package.digest,
            "precision": package.manifest.precision,
            "recipe": package.manifest.quantization and package.manifest.quantization.recipe,
            "made_with": dict(package.manifest.made_with),
        },
        "asked": asked,
        "machine": machine_facts(),
        "cuda": asdict(find_cards()),
        "openvino_devices": _openvino_devices(verification),
        "versions": versions(),
        "full": verification.full,
        "passed": verification.passed,
        "faults": list(verification.faults),
        "graphs": [_check_as_json(check) for check in verification.checks],
        "unchecked": list(verification.unchecked),
    }


def _check_as_json(check: GraphCheck) -> dict[str, Any]:
    return {
        "graph": check.result.graph,
        "passed": check.result.passed,
        "fault": check.result.fault,
        "file": check.file,
        "library": check.library,
        "provider": check.provider,
        "precision": check.precision,
        "node_counts": dict(check.node_counts),
        "kernel_precisions": dict(check.kernel_precisions),
        "first_ms": round(check.first_ms, 3),
        "run_ms": round(check.run_ms, 3),
        "runs": len(check.runs_ms),
        "run_ms_min": round(min(check.runs_ms, default=0.0), 3),
        "run_ms_max": round(max(check.runs_ms, default=0.0), 3),
        "tolerance": asdict(check.result.tolerance),
        "outputs": [
            {key: _json_value(value) for key, value in asdict(output).items()} for output in check.result.outputs
        ],
    }


def _json_value(value: Any) -> Any:
    """Return null for a number that JSON has not."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _openvino_devices(verification: Verification) -> list[dict[str, Any]]:
    """Return what OpenVINO says of its devices, where it ran something."""
    if not any(check.library == "openvino" for check in verification.checks):
        return []
    from .engine_openvino_library import device_facts

    return [dict(facts) for facts in device_facts()]


def versions() -> dict[str, str]:
    """Return the versions of what computes, as far as installed."""
    found: dict[str, str] = {}
    for name in ("edgereels", "numpy", *(wheel for wheels in WHEELS.values() for wheel in wheels)):
        number = installed_version(name)
        if number is not None:
            found[name] = number
    return found
