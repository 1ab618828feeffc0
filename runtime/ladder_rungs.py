# SPDX-License-Identifier: Apache-2.0
"""The rungs of the quality ladder: what is measured on each, and which gates it is held against."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import ladder_controls as faults
from . import ladder_gates as gates
from . import metrics
from .engine import Array, Engine
from .ladder_gates import Gate, GateResult, check
from .ladder_recording import Recording, Sample, Trial
from .metrics import Box, Pixels
from .model_package import ModelPackage
from .placement import Asked, Placement
from .quality import ControlResult
from .report import EngineReport
from .session import AvatarSession
from .split_dit import parts_of

CACHE = re.compile(r"(next_)?cache_\d+")
"""Outputs of the VAE that only its next call sees."""

Progress = Callable[[str], None]


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


@dataclass
class Findings:
    """What has been measured so far."""

    candidate: ModelPackage
    """What is judged."""
    reference: ModelPackage
    """What it is held against."""
    got: dict[str, EngineReport] = field(default_factory=dict[str, EngineReport])
    """What runs each graph of the candidate, as far as it was opened."""
    rungs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Rung to its figures."""
    results: list[GateResult] = field(default_factory=list[GateResult])
    """Every gate that a figure was held against."""
    controls: list[ControlResult] = field(default_factory=list[ControlResult])
    """Every fault made on purpose."""

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
        """Frames per second."""
        return self.reference.manifest.settings.fps

    @property
    def mouth_box(self) -> Box | None:
        """Where the mouth is; None: the package has no face."""
        return self.candidate.manifest.mouth_box


# ── Blocks and graphs ────────────────────────────────────────────────────────────────────────────────────────────────


def climb_tensors(
    found: Findings, recording: Recording, *, asked: Asked, rungs: Collection[str], say: Progress
) -> None:
    """Run blocks and graphs of the candidate, each alone and opened for its turn, on what the reference was fed."""
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


def _row(found: Findings, graph: str, samples: tuple[Sample, ...], *, engine: Engine) -> dict[str, Any]:
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


def climb_window(found: Findings, prepared: Prepared, *, asked: Asked) -> None:
    """Render one window from the reference's noise."""
    known_latents, known_frames = prepared.window_latents, prepared.window_frames
    latents, frames, got = one_window(found.candidate, prepared.trial, asked=asked)
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


def one_window(
    package: ModelPackage, trial: Trial, *, asked: Asked
) -> tuple[list[Array], Pixels, dict[str, EngineReport]]:
    """Return the latents of one window after every step, its frames, and what ran it."""
    sound = trial.one_window(package.manifest.settings.fps)
    watching = _Latents()
    with AvatarSession(package, asked, observe=watching) as session:
        frames = np.concatenate([chunk.frames for chunk in session.stream(**trial.arguments(sound))])
        return watching.curve(), frames, session.engine_reports


def _mouth_psnr(ours: Pixels, theirs: Pixels, box: Box | None) -> float | None:
    return metrics.psnr_db(metrics.crop(ours, box), metrics.crop(theirs, box)) if box else None


# ── A clip ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def climb_clip(found: Findings, recording: Recording, trial: Trial, *, asked: Asked, say: Progress) -> None:
    """Render the clip, and what the controls make of it, in one session."""
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


def _judge(frames: Pixels, recording: Recording, found: Findings) -> list[GateResult]:
    return clip_figures(frames, recording, fps=found.fps, box=found.mouth_box)[1]


def clip_figures(
    frames: Pixels, recording: Recording, *, fps: float, box: Box | None
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
    frames: Pixels, recording: Recording, *, fps: float, box: Box
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
