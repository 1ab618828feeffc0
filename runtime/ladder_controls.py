# SPDX-License-Identifier: Apache-2.0
"""Faults made on purpose. Each goes through the gates of the ladder that it belongs to, and must be caught there.

A gate that lets everything pass proves nothing, and so does a ladder that does not notice one of these.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import metrics
from .audio import SAMPLE_RATE
from .engine import Engine
from .errors import VerificationError
from .graph_identity import WEIGHTS
from .ladder_gates import AT_LEAST, COARSE_LIMIT_DB, Gate, GateResult, check
from .ladder_recording import Recording
from .metrics import Array, Pixels
from .model_package import ModelPackage
from .onnx_preflight import Tensor
from .package_files import sha256_of
from .quality import ControlResult

SCALED_WEIGHTS, SWAPPED_FRAMES, SHIFTED_AUDIO = "scaled weights", "swapped frames", "shifted audio"

SCALE, COARSE_SCALE = 1.05, 1.25
"""Weights a twentieth too large must not pass as rounding; where a gate allows a tenth of noise, a quarter."""

SHIFT_S = 0.120
"""Three frames at 25 per second; a viewer notices sound that is 45 ms early."""

MOST_COPIED_BYTES = 1 << 30
"""A graph with more weights than that is not copied for a control; a smaller one serves as well."""

PREFERRED = ("dit", "dit_epilogue", "vae_decoder_next")
"""Graphs whose weights are scaled, the first that has any."""

Judge = Callable[[Pixels], list[GateResult]]
OpenCopy = Callable[[str, Path], Engine]


def not_run(name: str, note: str) -> ControlResult:
    """Return a control that has nothing to work on."""
    return ControlResult(name, "clip", "", None, None, note)


def _caught(name: str, results: Sequence[GateResult], *, note: str) -> ControlResult:
    """Return the control with the gate that caught it.

    Raises:
        VerificationError: every gate was passed.
    """
    missed = [result for result in results if not result.passed]
    if not missed:
        raise VerificationError(
            f"the control {name!r} ({note}) passed its gates: "
            f"{'; '.join(result.line for result in results)}; expected one to catch it: this ladder proves nothing"
        )
    worst = missed[0]
    return ControlResult(name, worst.rung, worst.metric, worst.value, worst.limit, note)


# ── Weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def scaled_weights(
    reference: ModelPackage, recording: Recording, *, gates: Mapping[str, Gate], open_copy: OpenCopy
) -> ControlResult:
    """Run a scratch copy of a graph of the reference, its weights scaled, against the graph itself.

    It runs on the engine whose gate it goes through, in that engine's precision. The weights are the reference's: a
    candidate's may be integers, of which not every one can be a twentieth larger.

    Args:
        reference: whose graph.
        recording: its inputs and outputs.
        gates: graph to the gate that its tensors are held against; others are left alone.
        open_copy: opens the copy, given the graph's name and the file, on the engine under test.

    Raises:
        VerificationError: it passed the gate.
    """
    graph = next((graph for graph in _scalable(reference, recording) if graph in gates), None)
    if graph is None:
        return ControlResult(SCALED_WEIGHTS, "graph", "", None, None, "no graph of the package has weights to scale")
    gate = gates[graph]
    scale = COARSE_SCALE if (gate.sense, gate.metric, gate.limit) == (AT_LEAST, "sqnr_db", COARSE_LIMIT_DB) else SCALE
    samples = (recording.samples[graph][0], recording.samples[graph][-1])
    with tempfile.TemporaryDirectory() as folder:
        path = scaled_copy(reference, graph, folder=Path(folder), scale=scale)
        engine = open_copy(graph, path)
        try:
            results = [engine.run(sample.feeds) for sample in samples]
        finally:
            engine.close()
    main = reference.graph(graph).outputs[0].name
    values = [_figure(gate, ours[main], sample.outputs[main]) for ours, sample in zip(results, samples, strict=True)]
    value = min(values) if gate.sense == AT_LEAST else max(values)
    note = f"all matrices and kernels of {graph} times {scale:g}, on {engine.provider} in {engine.precision}"
    return _caught(SCALED_WEIGHTS, [check(gate, value, rung="graph", where=graph)], note=note)


def _figure(gate: Gate, ours: Array, theirs: Array) -> float:
    measure: Callable[[Array, Array], float] = getattr(metrics, gate.metric)
    return measure(ours, theirs)


def _scalable(reference: ModelPackage, recording: Recording) -> Iterator[str]:
    """Yield graphs that were recorded and have weights to scale, not too many: the transformer first."""
    others = [graph for graph in reference.manifest.graphs if graph not in PREFERRED]
    for graph in (*PREFERRED, *others):
        if graph in recording.samples:
            size = sum(tensor.size_bytes for tensor in _weights(reference, graph))
            if 0 < size <= MOST_COPIED_BYTES:
                yield graph


def _weights(package: ModelPackage, graph: str) -> list[Tensor]:
    return [
        tensor
        for tensor in package.summary(graph).tensors
        if tensor.dtype in ("float32", "float16", "bfloat16") and len(tensor.shape) > 1 and tensor.offset >= 0
    ]


def scaled_copy(package: ModelPackage, graph: str, *, folder: Path, scale: float) -> Path:
    """Write a graph and its weights into a folder, every matrix and kernel scaled; return where the graph lies."""
    path = folder / package.graph(graph).file
    shutil.copyfile(package.graph_path(graph), path)
    for location in {tensor.location for tensor in package.summary(graph).tensors if tensor.location}:
        (folder / location).parent.mkdir(exist_ok=True)
        shutil.copyfile(package.root / location, folder / location)
    places = {(tensor.location or path.name, tensor.offset): tensor for tensor in _weights(package, graph)}
    for (file, offset), tensor in places.items():  # tensors may share bytes: each place once
        with (folder / file).open("r+b") as stream:
            stream.seek(offset)
            values = stream.read(tensor.size_bytes)
            stream.seek(offset)
            stream.write(scaled_bytes(values, dtype=tensor.dtype, scale=scale))
    _rename_weights(path)
    return path


def _rename_weights(graph: Path) -> None:
    """Call the files of weights beside a graph after what they hold now, which is how OpenVINO's engine knows them.

    Under the old names it would take the graph for the unscaled one: refuse the files, or have it in its cache.
    """
    data = graph.read_bytes()
    for file in list((graph.parent / WEIGHTS).glob("*.bin")):
        new = file.with_stem(sha256_of(file))
        file.rename(new)
        data = data.replace(f"{WEIGHTS}/{file.name}".encode(), f"{WEIGHTS}/{new.name}".encode())  # as long as before
    graph.write_bytes(data)


def scaled_bytes(values: bytes, *, dtype: str, scale: float) -> bytes:
    """Multiply little-endian values of a floating-point type."""
    if dtype == "bfloat16":  # the upper half of a float32
        wide = np.frombuffer(values, "<u2").astype("<u4") << 16
        larger = (wide.view("<f4") * np.float32(scale)).astype("<f4")
        return larger.view("<u2")[1::2].tobytes()
    kind = "<f4" if dtype == "float32" else "<f2"
    return (np.frombuffer(values, kind) * scale).astype(kind).tobytes()


# ── Frames and sound ─────────────────────────────────────────────────────────────────────────────────────────────────


def swapped_frames(frames: Pixels, recording: Recording, *, judge: Judge) -> ControlResult:
    """Exchange the two chunks of a clip that differ most, as far as both reach, and judge the clip again.

    Raises:
        VerificationError: nothing noticed.
    """
    starts = recording.seams
    lengths = np.diff([*starts, len(frames)])
    pairs = list(combinations(range(len(starts)), 2))
    apart = [_difference(frames, starts[a], starts[b], count=min(lengths[a], lengths[b])) for a, b in pairs]
    a, b = pairs[int(np.argmax(apart))]
    count = min(lengths[a], lengths[b])
    first, second = slice(starts[a], starts[a] + count), slice(starts[b], starts[b] + count)
    swapped = frames.copy()
    swapped[first], swapped[second] = frames[second], frames[first]
    return _caught(SWAPPED_FRAMES, judge(swapped), note=f"{count} frames of chunks {a} and {b} exchanged")


def _difference(frames: Pixels, a: int, b: int, *, count: int) -> float:
    return -metrics.psnr_db(frames[a : a + count], frames[b : b + count])


def shifted(sound: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a sound that is `SHIFT_S` late, of the same length."""
    late = round(SHIFT_S * SAMPLE_RATE)
    return np.concatenate([np.zeros(late, np.float32), sound[:-late]])


def shifted_audio(frames: Pixels, *, judge: Judge) -> ControlResult:
    """Judge a clip that was rendered from the shifted sound; only the lag counts, which must have moved.

    Raises:
        VerificationError: nothing noticed.
    """
    lags = [result for result in judge(frames) if result.metric == "lag_ms"]
    return _caught(SHIFTED_AUDIO, lags, note=f"the sound {SHIFT_S * 1000:g} ms late")
