# SPDX-License-Identifier: Apache-2.0
"""Climb the quality ladder: blocks, graphs, one window, a clip of several windows, each against a reference.

The reference computes in float32; a candidate is another form of the same package (a recipe's), another engine, or
both. Blocks and graphs are judged alone, on inputs that the reference recorded; window and clip run away from the same
noise, which is what a viewer sees. Faults that are made on purpose go through the same gates (`controls`): a ladder
that does not notice them is refused.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import controls as faults
from . import gates, metrics
from .engine import Array, Engine, parse_device
from .errors import UsageError
from .gates import Gate, GateResult, check
from .machine import machine_facts
from .model_package import ModelPackage
from .placement import Asked, Placement
from .quality import ControlResult, Quality, graph_digests, table
from .recording import FIRST_PART, Recording, Sample, Trial, parts_of, prepare_trial, record
from .report import EngineReport
from .session import AvatarSession
from .verification import versions

__all__ = ["RUNGS", "Prepared", "climb", "prepare", "table"]

RUNGS = ("block", "graph", "window", "clip")
CACHE = re.compile(r"(next_)?cache_\d+")
"""Outputs of the VAE that only its next call sees."""
REFERENCE_DEVICES = ("onnxruntime:CPU", "openvino:CPU")
"""Where the reference runs, the first that is installed: golden vectors are held by ONNX Runtime at float32."""

Pixels = metrics.Pixels
Progress = Callable[[str], None]
Graphs = Mapping[str, Engine]


def climb(
    candidate: ModelPackage,
    reference: ModelPackage,
    *,
    device: str = "cpu",
    threads: int | None = None,
    compute: str = "auto",
    sound: str | Path | metrics.Array | None = None,
    size: tuple[int, int] | None = None,
    rungs: Collection[str] = RUNGS,
    prepared: "Prepared | None" = None,
    progress: Progress | None = None,
) -> Quality:
    """Measure a candidate on a device against a reference, which runs in float32 on the CPU.

    Args:
        candidate: the package that is judged; the reference itself to compare engines.
        reference: the package that it was made from, stored in float32 or as exported.
        device: where the candidate runs.
        threads: all engines together use at most this many; None: the cores this process may use.
        compute: arithmetic precision asked for the candidate.
        sound: a file, or samples at 16 kHz, at least two windows long; None: the embedded speech, silence, and the
            speech again louder, 16.6 s, or two windows of it where the package has no avatar.
        size: (height, width) in pixels; None: the package's own, that of the embedded face where it has no avatar.
        rungs: which of `RUNGS`; the others are left out, and their controls.
        prepared: what `prepare` made of the same reference, so that several engines share it; `sound` and `size` are
            then its own.
        progress: called with a line before each piece of work.

    Returns:
        The record; `verdict` says whether every gate was passed, `misses` which were not.

    Raises:
        VerificationError: a fault made on purpose passed its gate: this ladder proves nothing.
        UsageError: an unknown rung, a sound that is too short, packages of different networks.
        PackageError: a subnetwork is missing.
        EngineError: the device is not to be had, or a graph could not be run.
    """
    _check(candidate, reference, rungs)
    say = progress or (lambda _line: None)
    ours = Asked(device=device, threads=threads or 0, compute=compute)
    if prepared is None:
        prepared = prepare(reference, threads=threads, sound=sound, size=size, rungs=rungs, progress=say)
    if prepared.digest != reference.digest:
        raise UsageError(f"what was prepared is of another package than {reference.name}; prepare that one")
    recording, trial, theirs = prepared.recording, prepared.trial, prepared.asked
    found = _Findings(candidate, reference)
    if {"block", "graph"} & set(rungs):
        _climb_tensors(found, recording, asked=ours, rungs=rungs, say=say)
        say("control: scaled weights")
        measured = {graph: found.gate_of(graph) for graph in found.got}
        found.controls.append(faults.scaled_weights(reference, recording, asked=theirs, gates=measured))
    if "window" in rungs:
        say("one window")
        _climb_window(found, prepared, asked=ours)
    if "clip" in rungs:
        say("a clip of several windows")
        _climb_clip(found, recording, trial, asked=ours, say=say)
    return _quality(found, trial, asked=ours, recording=recording)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a ladder needs of the reference; the same for every candidate and engine."""

    digest: str
    """Of the reference."""
    trial: Trial
    """What is rendered."""
    asked: Asked
    """Where the reference runs."""
    recording: Recording
    """The clip, and what its graphs were fed."""
    window_latents: tuple[Array, ...]
    """Of one window, after every step."""
    window_frames: Pixels
    """The same window as it is shown."""


def prepare(
    reference: ModelPackage,
    *,
    threads: int | None = None,
    sound: str | Path | metrics.Array | None = None,
    size: tuple[int, int] | None = None,
    rungs: Collection[str] = RUNGS,
    progress: Progress | None = None,
) -> Prepared:
    """Let the reference render what its candidates are compared with; arguments and errors as for `climb`."""
    say = progress or (lambda _line: None)
    asked = Asked(device=_reference_device(), threads=threads or 0, compute="f32")
    trial = prepare_trial(reference, sound=sound, size=size)
    say("the reference speaks")
    recording = record(reference, trial, asked=asked)
    if "window" not in rungs:
        return Prepared(reference.digest, trial, asked, recording, (), recording.frames[:0])
    latents, frames, _got = _one_window(reference, trial, asked=asked)
    return Prepared(reference.digest, trial, asked, recording, tuple(latents), frames)


def _check(candidate: ModelPackage, reference: ModelPackage, rungs: Collection[str]) -> None:
    unknown = sorted(set(rungs) - set(RUNGS))
    if unknown or not rungs:
        raise UsageError(f"rungs {', '.join(unknown) or 'are none'}; expected some of {', '.join(RUNGS)}")
    if set(rungs) == {"block"} and not parts_of(candidate):
        raise UsageError(f"{candidate.name} holds its transformer whole, without blocks; expected another rung as well")
    for name, entry in candidate.manifest.graphs.items():
        known = reference.manifest.graphs.get(name)
        if known is None or (known.inputs, known.outputs) != (entry.inputs, entry.outputs):
            raise UsageError(
                f"{candidate.name} has a graph {name} that {reference.name} has not, or takes other inputs; expected "
                "the package that it was made from"
            )


def _reference_device() -> str:
    from importlib.util import find_spec

    return next((name for name in REFERENCE_DEVICES if find_spec(name.partition(":")[0])), REFERENCE_DEVICES[0])


# ── What is found on the way ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Findings:
    """What has been measured so far."""

    candidate: ModelPackage
    """What is judged."""
    reference: ModelPackage
    """What it is held against."""
    got: dict[str, EngineReport] = field(default_factory=dict[str, EngineReport])
    """What runs each graph of the candidate, as far as it was opened."""
    rungs: dict[str, Any] = field(default_factory=dict[str, Any])
    results: list[GateResult] = field(default_factory=list[GateResult])
    controls: list[ControlResult] = field(default_factory=list[ControlResult])

    def gate_of(self, graph: str) -> Gate:
        """Return the gate of a graph's tensors, by its weights and by what its engine computes in."""
        kind = gates.class_of(
            self.candidate,
            graph=graph,
            library=self.got[graph].library,
            precision=self.got[graph].precision,
            reference_storage=self.reference.manifest.precision,
        )
        entry, in_bf16 = self.candidate.graph(graph), self.got[graph].precision == "bf16"
        cost = entry.parity.bf16_rel_l2 if entry.parity and in_bf16 else None
        return gates.tensor_gate(kind, entry.subnetwork, bf16_rel_l2=cost)

    @property
    def fps(self) -> float:
        return self.reference.manifest.settings.fps

    @property
    def mouth_box(self) -> metrics.Box | None:
        return self.candidate.manifest.mouth_box


# ── Blocks and graphs ────────────────────────────────────────────────────────────────────────────────────────────────


def _climb_tensors(
    found: _Findings, recording: Recording, *, asked: Asked, rungs: Collection[str], say: Progress
) -> None:
    blocks = parts_of(found.candidate)
    others = [name for name in found.candidate.manifest.graphs if name not in blocks]
    for rung, graphs in (("block", blocks), ("graph", others)):
        if rung not in rungs:
            continue
        rows: list[dict[str, Any]] = []
        for graph in graphs:
            samples = recording.samples.get(graph, ())
            if not samples:
                continue
            say(f"{rung} {graph}")
            engines = Placement(found.candidate, asked)
            try:
                rows.append(_row(found, graph, samples, engine=engines[graph]))
                found.got |= engines.got()
            finally:
                engines.close()
            gate = found.gate_of(graph)
            found.results.append(check(gate, judged(rows[-1], gate), rung=rung, where=graph))
        found.rungs[rung] = rows


def judged(row: Mapping[str, Any], gate: Gate) -> float:
    """Return the figure of a row that a gate looks at: the worst input's, not the mean."""
    return row[f"worst_{gate.metric}"]


def _row(found: _Findings, graph: str, samples: tuple[Sample, ...], *, engine: Engine) -> dict[str, Any]:
    results = [engine.run(sample.feeds) for sample in samples]
    entry = found.candidate.graph(graph)
    names = [spec.name for spec in entry.outputs if spec.dtype.startswith("float")]
    bf16 = entry.parity.bf16_rel_l2 if entry.parity else None
    first = _pooled(samples, results, names[0])["rel_l2"]
    return {
        "graph": graph,
        "precision": engine.precision,
        **figures_of(samples, results, outputs=names),
        "bf16_rel_l2": bf16,
        "of_bf16": first / bf16 if bf16 else None,
    }


def figures_of(samples: tuple[Sample, ...], results: list[dict[str, Array]], *, outputs: list[str]) -> dict[str, Any]:
    """Return how far results lie from a reference's outputs, of the output that is farthest from it.

    Args:
        samples: inputs and the reference's outputs.
        results: ours, one for each.
        outputs: names of those of floating point; caches among them are summed up in `state_sqnr_db`.
    """
    counted = [name for name in outputs if not CACHE.fullmatch(name)]
    pairs = [(result, sample.outputs) for sample, result in zip(samples, results, strict=True)]
    pooled = {name: _pooled(samples, results, name) for name in counted}
    farthest = min(counted, key=lambda name: pooled[name]["sqnr_db"])
    state = [
        metrics.sqnr_db(ours[name], theirs[name]) for ours, theirs in pairs for name in outputs if name not in counted
    ]
    return {
        "inputs": len(pairs),
        "output": farthest,
        **pooled[farthest],
        "worst_sqnr_db": min(metrics.sqnr_db(ours[name], theirs[name]) for ours, theirs in pairs for name in counted),
        "worst_rel_l2": max(metrics.rel_l2(ours[name], theirs[name]) for ours, theirs in pairs for name in counted),
        "worst_cosine": min(metrics.cosine(ours[name], theirs[name]) for ours, theirs in pairs for name in counted),
        "state_sqnr_db": min(state, default=None),
    }


def _pooled(samples: tuple[Sample, ...], results: list[dict[str, Array]], name: str) -> dict[str, float]:
    """Return figures of one output over all inputs together."""
    ours = np.concatenate([result[name].ravel() for result in results])
    theirs = np.concatenate([sample.outputs[name].ravel() for sample in samples])
    return {
        "sqnr_db": metrics.sqnr_db(ours, theirs),
        "rel_l2": metrics.rel_l2(ours, theirs),
        "cosine": metrics.cosine(ours, theirs),
    }


# ── One window ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Latents:
    """Watches the latents of one window on their way: before each step after the first, and at the end."""

    steps: list[Array] = field(default_factory=list[Array])
    decoded: list[Array] = field(default_factory=list[Array])

    def __call__(self, graph: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        if graph == "dit":
            self.steps.append(np.array(feeds["latents"]))
        elif graph.startswith("vae_decoder"):
            self.decoded.append(np.array(feeds["latents"]))

    def curve(self) -> list[Array]:
        """Return the latents after every step; the last as far as they are decoded."""
        return [*self.steps[1:], np.concatenate(self.decoded, axis=2)]


def _climb_window(found: _Findings, prepared: Prepared, *, asked: Asked) -> None:
    known_latents, known_frames = prepared.window_latents, prepared.window_frames
    latents, frames, got = _one_window(found.candidate, prepared.trial, asked=asked)
    found.got |= got
    curve = [metrics.sqnr_db(a, b) for a, b in zip(latents, known_latents, strict=True)]
    psnr, similarity = metrics.psnr_db(frames, known_frames), metrics.ssim(frames, known_frames)
    found.rungs["window"] = {
        "steps": len(curve),
        "step_sqnr_db": curve,
        "last_sqnr_db": curve[-1],
        "psnr_db": psnr,
        "ssim": similarity,
        "mouth_psnr_db": _mouth_psnr(frames, known_frames, found.mouth_box),
    }
    if len(curve) <= gates.FEW_STEPS:
        found.results.append(check(gates.LAST_LATENTS, curve[-1], rung="window", where="latents of the last step"))
    found.results.append(check(gates.FRAMES_PSNR, psnr, rung="window", where="frames"))
    found.results.append(check(gates.FRAMES_SSIM, similarity, rung="window", where="frames"))


def _one_window(
    package: ModelPackage, trial: Trial, *, asked: Asked
) -> tuple[list[Array], Pixels, dict[str, EngineReport]]:
    sound = trial.one_window(package.manifest.settings.fps)
    watching = _Latents()
    with AvatarSession(package, asked, observe=watching) as session:
        frames = np.concatenate([chunk.frames for chunk in session.stream(**trial.arguments(sound))])
        return watching.curve(), frames, session.engine_reports


def _mouth_psnr(ours: Pixels, theirs: Pixels, box: metrics.Box | None) -> float | None:
    return metrics.psnr_db(metrics.crop(ours, box), metrics.crop(theirs, box)) if box else None


# ── A clip ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _climb_clip(found: _Findings, recording: Recording, trial: Trial, *, asked: Asked, say: Progress) -> None:
    with AvatarSession(found.candidate, asked) as session:
        frames = np.concatenate([chunk.frames for chunk in session.stream(**trial.arguments())])
        found.got |= session.engine_reports
        found.rungs["clip"], judged_clip = clip_figures(frames, recording, fps=found.fps, box=found.mouth_box)
        found.results += judged_clip
        say("control: swapped frames")
        found.controls.append(
            faults.swapped_frames(frames, recording, judge=lambda faulty: _judge(faulty, recording, found))
        )
        if found.mouth_box is None:
            found.controls.append(faults.not_run(faults.SHIFTED_AUDIO, "no mouth box: nothing follows the sound"))
            return
        say("control: shifted audio")
        late = faults.shifted(trial.sound)
        faulty = np.concatenate([chunk.frames for chunk in session.stream(**trial.arguments(late))])
    found.controls.append(faults.shifted_audio(faulty, judge=lambda shown: _judge(shown, recording, found)))


def _judge(frames: Pixels, recording: Recording, found: _Findings) -> list[GateResult]:
    return clip_figures(frames, recording, fps=found.fps, box=found.mouth_box)[1]


def clip_figures(
    frames: Pixels, recording: Recording, *, fps: float, box: metrics.Box | None
) -> tuple[dict[str, Any], list[GateResult]]:
    """Return the figures of a clip against the reference's, and every gate that applies to them.

    Args:
        frames: ours, as many as the reference's.
        recording: of the reference.
        fps: frames per second.
        box: the mouth's; None: the package has no face, and neither seams nor lips are gated.
    """
    known, seams = recording.frames, recording.seams
    psnrs, similarities = zip(
        *((metrics.psnr_db(a, b), metrics.ssim(a, b)) for a, b in _by_chunk(frames, known, seams)), strict=True
    )
    drift = metrics.colour_drift(frames, known, fps=fps)
    figures: dict[str, Any] = {
        "psnr_db": metrics.psnr_db(frames, known),
        "worst_psnr_db": min(psnrs),
        "ssim": float(np.mean(similarities)),
        "worst_ssim": min(similarities),
        "drift_per_min": drift,
    }
    fastest = max(drift, key=lambda name: abs(drift[name]))
    results = [
        check(gates.FRAMES_PSNR, min(psnrs), rung="clip", where="frames of the worst chunk"),
        check(gates.FRAMES_SSIM, min(similarities), rung="clip", where="frames of the worst chunk"),
        check(gates.DRIFT, abs(drift[fastest]), rung="clip", where=f"colours ({fastest})"),
    ]
    if box is not None:
        face, judged_face = _face_figures(frames, recording, fps=fps, box=box)
        return figures | face, results + judged_face
    return figures, results


def _by_chunk(ours: Pixels, theirs: Pixels, starts: tuple[int, ...]) -> list[tuple[Pixels, Pixels]]:
    return list(zip(np.split(ours, starts[1:]), np.split(theirs, starts[1:]), strict=True))


def _face_figures(
    frames: Pixels, recording: Recording, *, fps: float, box: metrics.Box
) -> tuple[dict[str, Any], list[GateResult]]:
    known, seams = recording.frames, recording.seams
    motion = metrics.MouthMotion.of(known, box)
    peak, lag_ms = metrics.lip_sync(motion.signal(frames), motion.signal(known), fps=fps)
    seam, known_seam = metrics.seam_ratio(frames, seams), metrics.seam_ratio(known, seams)
    figures = {
        "mouth_psnr_db": _mouth_psnr(frames, known, box),
        "seam_ratio": seam,
        "reference_seam_ratio": known_seam,
        "lip_correlation": peak,
        "lip_lag_ms": lag_ms,
    }
    return figures, [
        check(gates.seam_gate(known_seam), seam, rung="clip", where="seams"),
        check(gates.LIP_CORRELATION, peak, rung="clip", where="lips"),
        check(gates.lag_gate(fps), abs(lag_ms), rung="clip", where="lips"),
    ]


# ── The record ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _quality(found: _Findings, trial: Trial, *, asked: Asked, recording: Recording) -> Quality:
    main = found.got["dit" if "dit" in found.got else FIRST_PART]
    height, width = recording.frames.shape[1:3]
    return Quality(
        source=found.reference.digest,
        graphs=graph_digests(found.candidate, library=main.library),
        engine={
            "library": main.library,
            "provider": main.provider,
            "compute_got": main.precision,
            "device": str(parse_device(asked.device)),
            "compute": asked.compute,
            "threads": asked.threads or None,
            "precision": {graph: got.precision for graph, got in found.got.items()},
            "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        },
        machine=machine_facts(),
        versions=versions(),
        counts={
            "seed": trial.arguments()["seed"],
            "height": height,
            "width": width,
            "frames": len(recording.frames),
            "windows": len(trial.plan.windows),
            "sound_s": trial.plan.audio_frames / found.fps,
            "sound_sha256": trial.sound_sha256(),
        },
        rungs=found.rungs,
        gates=tuple(found.results),
        controls=tuple(found.controls),
    )
