# SPDX-License-Identifier: Apache-2.0
"""Finds which values the inputs of layers take on a real trajectory, and the range in which uint8 serves them best.

Every layer's input is watched in a copy of its graph that also returns the input's extremes and evenly spaced samples
of it, so that a run costs hardly more memory than before. Samples fill a histogram, each call with the weight of its
denoising step: the step of the published schedule that spans 0.84 of the noise counts for 0.84 of its error.

The ways to choose a range from a histogram, compared on the embedded avatar with held-out windows, stand in
docs/calibration.md.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from ..runtime.engine import Array, open_engine
from ..runtime.errors import EngineError, UsageError
from ..runtime.ladder import reference_device
from ..runtime.model_package import ModelPackage
from .layers import Layer, find_layers, read_model
from .rewrite import Range
from .trajectory import Call, Progress, Recording
from .workbench import Workbench

METHODS: tuple[str, ...] = ("mse", "min-max", "percentile")
"""Ways to choose a range, the default first. "mse": least squared error of the rounded values, clipped ones included;
"min-max": everything that was seen; "percentile": all but `TAIL` at either end."""

TAIL = 1e-4
"""Share of values beyond either end of a "percentile" range."""

SAMPLES_PER_CALL = 1 << 16
"""Values taken of one tensor in one call, about; all of them where it has fewer."""

BINS = 8192
"""Of a histogram: at least 10 for each of 256 levels, whatever the range is."""

Floats = npt.NDArray[np.float32]
Choose = Callable[["Histogram"], Range]


# ── Histograms and ranges ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Histogram:
    """Weighted counts of values between -reach and reach, which doubles when a larger value comes."""

    counts: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    """Weight in each of `BINS` equal bins."""
    reach: float = 2.0**-20
    """A power of two."""
    low: float = 0.0
    """Smallest value seen, sampled or not; at most 0."""
    high: float = 0.0
    """Largest; at least 0."""

    def add(self, samples: Floats, *, low: float, high: float, weight: float) -> None:
        """Count samples of one call, which weigh `weight` together; `low` and `high` are the call's extremes.

        Raises:
            ValueError: the extremes are no numbers.
        """
        if not np.isfinite([low, high]).all():
            raise ValueError(f"values from {low} to {high}")
        self.low, self.high = min(self.low, low), max(self.high, high)
        while self.reach <= max(-self.low, self.high):
            self._widen()
        places = ((samples + self.reach) * (BINS / 2 / self.reach)).astype(np.int64).clip(0, BINS - 1)
        self.counts += np.bincount(places, minlength=BINS) * (weight / max(1, samples.size))

    def filled(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return centres and weights of the bins that hold something."""
        bins = np.flatnonzero(self.counts)
        centres = (bins + 0.5) * (2 * self.reach / BINS) - self.reach
        return centres.astype(np.float64), self.counts[bins]

    def _widen(self) -> None:
        self.reach *= 2
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.concatenate([np.zeros(BINS // 4), pairs, np.zeros(BINS // 4)])


def choose_min_max(seen: Histogram) -> Range:
    """Return the range of everything that was seen."""
    return Range(seen.low, seen.high)


def choose_percentile(seen: Histogram) -> Range:
    """Return the range that leaves `TAIL` of the weight out at either end; it includes 0."""
    values, weights = seen.filled()
    places = np.cumsum(weights) / weights.sum()
    low = float(values[np.searchsorted(places, TAIL)])
    high = float(values[min(np.searchsorted(places, 1 - TAIL), len(values) - 1)])
    return Range(max(seen.low, min(low, 0.0)), min(seen.high, max(high, 0.0)))


def choose_mse(seen: Histogram) -> Range:
    """Return the range within what was seen whose rounded values have the least squared error; it includes 0.

    The ends are searched in turn, three times, each in 2 % of itself; the error is flat around its least.
    """
    values, weights = seen.filled()
    shrunk = [float(part) for part in np.linspace(0.02, 1, 50)]
    best = Range(seen.low, seen.high)
    least = squared_error(values, weights, best)
    for _round in range(3):
        for candidate in (
            *(Range(best.low, seen.high * part) for part in shrunk),
            *(Range(seen.low * part, best.high) for part in shrunk),
        ):
            error = squared_error(values, weights, candidate)
            if error < least:
                best, least = candidate, error
    return best


def squared_error(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], found: Range) -> float:
    """Return the weighted sum of squared errors of values rounded to the uint8 of a range."""
    scale, zero = (float(number) for number in found.quantization())
    rounded = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    return float(np.dot(weights, np.square(rounded - values)))


_CHOICES: Mapping[str, Choose] = {"mse": choose_mse, "min-max": choose_min_max, "percentile": choose_percentile}


@dataclass(frozen=True)
class Ranges:
    """Ranges of the inputs of layers."""

    method: str
    """How they were chosen, of `METHODS`."""
    of_layers: Mapping[tuple[str, str], Range]
    """(family of graphs, layer) to the range of its input."""

    def of(self, graph: str, layer: str) -> Range:
        """Return the range of a layer's input; the transformer and its parts answer alike.

        Raises:
            UsageError: a render never runs that layer, so nothing is known of it.
        """
        found = self.of_layers.get((family(graph), layer))
        if found is None:
            raise UsageError(
                f"{layer} of {graph} was never run while the package rendered, so its activations have no range: "
                "give it another form than int8-static"
            )
        return found


def family(graph: str) -> str:
    """Return what graphs with the same layers are called: the transformer and its parts are one."""
    return "dit" if graph.startswith("dit") and graph != "dit_time" else graph


# ── Watching ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_ranges(
    package: ModelPackage,
    recording: Recording,
    *,
    scratch: Path,
    layers: Mapping[str, Collection[str]] | None = None,
    method: str = METHODS[0],
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Ranges:
    """Return the ranges of the inputs of layers on a recorded trajectory.

    Args:
        package: whose graphs.
        recording: of that package.
        scratch: folder for instrumented graphs.
        layers: graph to names of layers; default: every MatMul, Gemm and Conv of whatever was recorded. Layers that no
            recorded graph holds are left out; asking for them later is an error.
        method: one of `METHODS`.
        threads: of the engine.
        on_progress: called with (calls done, calls in all).

    Raises:
        EngineError: a graph can't be run, or makes NaN or infinity.
        UsageError: there is no such method.
    """
    if method not in METHODS:
        raise UsageError(f"there is no way {method!r} to choose ranges; expected {', '.join(METHODS)}")
    seen = watch(package, recording, scratch=scratch, layers=layers, threads=threads, on_progress=on_progress)
    return choose_ranges(seen, method=method)


def choose_ranges(seen: Mapping[tuple[str, str], Histogram], *, method: str = METHODS[0]) -> Ranges:
    """Return a range for every layer that was watched; layers that share a tensor share the histogram as well."""
    choose = _CHOICES[method]
    chosen = {id(histogram): choose(histogram) for histogram in {id(h): h for h in seen.values()}.values()}
    return Ranges(method, {layer: chosen[id(histogram)] for layer, histogram in seen.items()})


def watch(
    package: ModelPackage,
    recording: Recording,
    *,
    scratch: Path,
    layers: Mapping[str, Collection[str]] | None = None,
    calls: Callable[[Call], bool] = lambda call: True,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> dict[tuple[str, str], Histogram]:
    """Return (family of graphs, layer) to the values of its input; arguments as for `find_ranges`.

    Args:
        package: whose graphs.
        recording: of that package.
        scratch: folder for instrumented graphs.
        layers: graph to names of layers.
        calls: which calls count; some may be held out.
        threads: of the engine.
        on_progress: called with (calls done, calls in all).
    """
    wanted = None if layers is None else {(family(graph), name) for graph, names in layers.items() for name in names}
    workbench = Workbench(package, scratch / "watched")
    found: dict[tuple[str, str], Histogram] = {}
    jobs: list[tuple[str, onnx.ModelProto, list[Layer], list[Call]]] = []
    for graph in recording.calls:
        model = read_model(package.graph_path(graph))
        here = [
            layer
            for layer in find_layers(model, graph=graph)
            if layer.activation and (wanted is None or (family(graph), layer.name) in wanted)
        ]
        chosen = [call for call in recording.calls[graph] if calls(call)]
        if here and chosen:
            jobs.append((graph, model, here, chosen))
    total, done = sum(len(job[3]) for job in jobs), 0
    for graph, model, here, chosen in jobs:
        tensors = {layer.activation: found.get((family(graph), layer.name), Histogram()) for layer in here}
        for call, seen in _run_watched(workbench, graph, model, list(tensors), chosen, threads=threads):
            for tensor, histogram in tensors.items():
                _count(histogram, seen, tensor, where=f"{graph}: {tensor}", weight=call.weight)
            done += 1
            if on_progress:
                on_progress(done, total)
        found |= {(family(graph), layer.name): tensors[layer.activation] for layer in here}
    return found


def _count(histogram: Histogram, seen: Mapping[str, Array], tensor: str, *, where: str, weight: float) -> None:
    low, high, samples = (seen[name] for name in _names(tensor))
    try:
        histogram.add(samples, low=float(low), high=float(high), weight=weight)
    except ValueError as error:
        raise EngineError(
            f"{where} takes {error}; expected numbers: check the package with `edgereels verify`"
        ) from error


def _run_watched(
    workbench: Workbench,
    graph: str,
    model: onnx.ModelProto,
    tensors: Sequence[str],
    calls: Sequence[Call],
    *,
    threads: int | None,
) -> Iterator[tuple[Call, dict[str, Array]]]:
    """Yield what every call makes of the watched tensors."""
    sizes_of_one = _run(workbench.write(f"{graph}.sizes", _with_sizes(model, tensors)), calls[:1], threads=threads)
    sizes = next(iter(list(sizes_of_one)))[1]
    strides = {tensor: stride_for(int(sizes[_names(tensor)[0]])) for tensor in tensors}
    yield from _run(workbench.write(f"{graph}.watched", _with_samples(model, strides)), calls, threads=threads)


def _run(path: Path, calls: Sequence[Call], *, threads: int | None) -> Iterator[tuple[Call, dict[str, Array]]]:
    engine = open_engine(path, device=reference_device(), threads=threads, compute="f32")
    try:
        for call in calls:
            yield call, engine.run(call.feeds())
    finally:
        engine.close()


# ── Graphs that show what is inside ──────────────────────────────────────────────────────────────────────────────────


def stride_for(size: int) -> int:
    """Return every how many values of a tensor one is sampled: 1, or a prime, which axes are not multiples of.

    >>> stride_for(100_000), stride_for(1_000_000), stride_for(16_000_000)
    (1, 17, 251)
    """
    if size < 4 * SAMPLES_PER_CALL:
        return 1
    stride = max(11, size // SAMPLES_PER_CALL)
    while any(stride % divisor == 0 for divisor in range(2, int(stride**0.5) + 1)):
        stride += 1
    return stride


def _names(tensor: str) -> tuple[str, str, str]:
    """Return what is called the low end (or the size), the high end and the samples of a tensor."""
    return f"{tensor}.watched_low", f"{tensor}.watched_high", f"{tensor}.watched_samples"


def _with_sizes(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return a graph that gives nothing but how many values tensors have."""
    nodes = [helper.make_node("Size", [tensor], [_names(tensor)[0]]) for tensor in tensors]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.INT64, ()) for node in nodes]
    return _giving(model, nodes, outputs)


def _with_samples(model: onnx.ModelProto, strides: Mapping[str, int]) -> onnx.ModelProto:
    """Return a graph that gives nothing but extremes and samples of tensors."""
    nodes: list[onnx.NodeProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    for tensor, stride in strides.items():
        low, high, samples = _names(tensor)
        flat = f"{tensor}.watched_flat"
        slicing = {"starts": 0, "ends": np.iinfo(np.int64).max, "axes": 0, "steps": stride}
        nodes += [
            helper.make_node("ReduceMin", [tensor], [low], keepdims=0),
            helper.make_node("ReduceMax", [tensor], [high], keepdims=0),
            _constant(f"{flat}_shape", -1),
            helper.make_node("Reshape", [tensor, f"{flat}_shape"], [flat]),
            *(_constant(f"{flat}_{name}", value) for name, value in slicing.items()),
            helper.make_node("Slice", [flat, *(f"{flat}_{name}" for name in slicing)], [samples]),
        ]
        for name, shape in ((low, ()), (high, ()), (samples, (None,))):
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return _giving(model, nodes, outputs)


def _constant(name: str, value: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor("", TensorProto.INT64, [1], [value]))


def _giving(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], outputs: Sequence[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.node.extend(nodes)
    del changed.graph.output[:], changed.graph.value_info[:]
    changed.graph.output.extend(outputs)
    return changed
