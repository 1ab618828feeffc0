# SPDX-License-Identifier: Apache-2.0
"""Measure what `edgereels render` makes of a package against the drawn truth; exit 1 when a gate is missed.

Held-out speech of three synthesizers, in equal parts on every avatar. Several clips lie in one sound file with pauses
between them, so that the package is opened once for all. Everything that is wrong on purpose goes the same way and has
to miss: see `gates`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgereels.runtime.metrics import correlation

from .autoencoder import Autoencoder, checkpoint_autoencoder, package_autoencoder
from .draw_footage import MOUTH_BOX, draw_clip, portrait_of
from .footage import SIZE
from .gates import (
    FPS,
    MOST_IN_SILENCE,
    Clip,
    Control,
    Floats,
    LongRun,
    Reading,
    Verdict,
    autoencoder_gates,
    cut_to,
    decibels,
    drift_controls,
    drift_gates,
    loss_gate,
    mean_gate,
    speech_controls,
    speech_gates,
)
from .held_out_speech import SYNTHESIZERS, act, held_out_clips, noise, pauses, with_pauses
from .identities import IDENTITIES
from .mouth_reader import MouthReader, still_pixels
from .performance import Performance, perform
from .rendering import Renderer
from .speech import Espeak, Speech, silence

PARTS = ("speech", "silence", "drift", "autoencoder")
"""What can be measured alone."""

CLIP_S = 6.0
PAUSE_S = 1.0
"""Before and between clips: long enough for a mouth to close and rest."""
SHORTEST_PAUSE_S = 0.5
_CLOSING_FRAMES, _OPENING_FRAMES = 6, 4
"""At a pause's ends, when lips are on their way."""
_CLOSED = 0.03
"""Opening, true, of a frame that counts as closed."""
_AUTOENCODED_FRAMES = 33

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    clips: int = 22
    """Per synthesizer."""
    clip_s: float = CLIP_S
    drift_s: float = 600.0
    period_s: float = 60.0
    """Of the speech that the long render repeats."""
    silence_s: float = 6.0
    autoencoded: int = 4
    """Clips of `_AUTOENCODED_FRAMES` frames, per avatar."""
    parts: tuple[str, ...] = PARTS


QUICK = Plan(clips=4, drift_s=60.0, period_s=20.0, silence_s=4.0, autoencoded=2)
"""A look in two minutes; the intervals are wide."""


@dataclass
class Measured:
    """What was found so far."""

    verdict: Verdict = field(default_factory=Verdict)
    clips: list[Clip] = field(default_factory=list[Clip])
    notes: dict[str, Any] = field(default_factory=dict[str, Any])
    """Figures without a gate."""


# ── Speech ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Readers:
    """A mouth reader per avatar, fitted when it is first asked for."""

    def __init__(self) -> None:
        self._fitted: dict[str, MouthReader] = {}

    def __getitem__(self, avatar: str) -> MouthReader:
        if avatar not in self._fitted:
            self._fitted[avatar] = MouthReader.fitted(avatar, size=SIZE)
        return self._fitted[avatar]


def speech_clips(renderer: Renderer, readers: Readers, *, plan: Plan) -> list[Clip]:
    """Render the held-out speech of every synthesizer on every avatar, and read it back."""
    espeak, avatars, found = Espeak(), renderer_avatars(renderer), list[Clip]()
    for synthesizer in SYNTHESIZERS:
        spoken = held_out_clips(synthesizer, count=plan.clips, duration_s=plan.clip_s, espeak=espeak)
        for index, avatar in enumerate(avatars):
            mine = spoken[index :: len(avatars)]
            if mine:
                found += render_clips(renderer, readers[avatar], mine, avatar=avatar, synthesizer=synthesizer)
    return found


def render_clips(
    renderer: Renderer, reader: MouthReader, spoken: Sequence[Speech], *, avatar: str, synthesizer: str
) -> list[Clip]:
    """Render several utterances in one go; return what the mouth did in each of them."""
    whole, starts_s = with_pauses(spoken, pause_s=PAUSE_S)
    performance = perform(whole)
    true = Reading(performance.opening.astype(np.float64), performance.lip_width.astype(np.float64))
    with renderer.frames(whole.waveform, avatar=avatar) as frames:
        seams = [seam for seam in renderer.seams(len(frames)) if seam < len(frames)]
        seen, changes = reader.read(frames), _changes(frames)
        between = reader.read(_interpolated(frames, seams))
    at_seam = np.isin(np.arange(len(seen.opening)), seams)
    quiet = _quiet_frames(whole)
    clips: list[Clip] = []
    for start_s, one in zip(starts_s, spoken, strict=True):
        first = round(start_s * FPS)
        last = min(first + round(len(one.waveform) / 16000 * FPS), len(seen.opening))
        rests = [seen.opening[a:b].mean() for a, b in quiet if first <= a < last + round(PAUSE_S * FPS)]
        clips.append(
            Clip(
                synthesizer, one.voice, avatar, true.part(first, last), seen.part(first, last),
                between.part(first, last), np.array(rests), changes[first:last], at_seam[first:last],
            )
        )  # fmt: skip
        follows = correlation(clips[-1].rendered.opening, clips[-1].truth.opening)
        print(f"{one.voice} on {avatar}: {follows:.3f}", file=sys.stderr, flush=True)
    return clips


def _quiet_frames(speech: Speech) -> list[tuple[int, int]]:
    """Return the middle of every long pause, as (first frame, frame after the last)."""
    found = [
        (round(start_s * FPS) + _CLOSING_FRAMES, round(stop_s * FPS) - _OPENING_FRAMES)
        for start_s, stop_s in pauses(speech, shortest_s=SHORTEST_PAUSE_S)
    ]
    return [(first, last) for first, last in found if last > first]


def _changes(frames: Pixels) -> Floats:
    """Return each frame's mean absolute difference from the one before, levels; 0 for the first."""
    return np.array([0.0, *(np.abs(after.astype(np.int16) - before).mean() for before, after in pairwise(frames))])


def _interpolated(frames: Pixels, seams: Sequence[int]) -> Iterator[Pixels]:
    """Yield frames interpolated between the last frames of the windows: what key frames alone would give."""
    places = [0, *(seam - 1 for seam in seams), len(frames) - 1]
    for left, right in pairwise(places):
        first, last = frames[left].astype(np.float32), frames[right].astype(np.float32)
        for index in range(left, right):
            share = (index - left) / (right - left)
            yield np.round(first * (1 - share) + last * share).astype(np.uint8)
    yield frames[-1]


def measure_speech(renderer: Renderer, readers: Readers, reference: Renderer | None, *, plan: Plan) -> Measured:
    """Return the gates of speech, by synthesizer, and what quantization costs where there is a reference."""
    found = Measured(clips=speech_clips(renderer, readers, plan=plan))
    for synthesizer, ours in by_synthesizer(found.clips).items():
        found.verdict.gates.extend(speech_gates(ours, about=synthesizer))
    found.verdict.controls.extend(speech_controls(found.clips))
    found.notes |= overall(found.clips)
    if reference is not None:
        print("the reference package:", file=sys.stderr)
        theirs = speech_clips(reference, readers, plan=plan)
        spoilt = found.clips[1:] + found.clips[:1]
        for synthesizer, ours in by_synthesizer(found.clips).items():
            found.verdict.gates.append(loss_gate(ours, by_synthesizer(theirs)[synthesizer], about=synthesizer))
        swapped = [_with_frames_of(clip, other) for clip, other in zip(found.clips, spoilt, strict=True)]
        found.verdict.controls.append(Control("another clip's frames", loss_gate(swapped, theirs, about="")))
    return found


def _with_frames_of(clip: Clip, other: Clip) -> Clip:
    return replace(clip, rendered=cut_to(other.rendered, len(clip.truth.opening)))


def by_synthesizer(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Return the clips sorted by who spoke."""
    return {
        synthesizer: mine
        for synthesizer in SYNTHESIZERS
        if (mine := [clip for clip in clips if clip.synthesizer == synthesizer])
    }


def overall(clips: Sequence[Clip]) -> dict[str, Any]:
    """Return the main figures over all clips together, by avatar and by voice."""
    follows = np.array([correlation(clip.rendered.opening, clip.truth.opening) for clip in clips])
    gates = {gate.name: gate for gate in speech_gates(clips, about="all")}
    opening = gates["mouth opening, correlation"]

    def mean_by(key: Callable[[Clip], str]) -> dict[str, float]:
        names = sorted({key(clip) for clip in clips})
        return {name: round(float(follows[[key(clip) == name for clip in clips]].mean()), 3) for name in names}

    return {
        "clips": len(clips),
        "seconds": round(sum(len(clip.truth.opening) for clip in clips) / FPS, 1),
        "correlation": round(opening.figure, 3),
        "correlation_95": [round(edge, 3) for edge in opening.interval],
        "correlation_lowest": round(float(follows.min()), 3),
        "lag_ms": round(gates["lag, ms"].figure, 1),
        "amplitude_ratio": round(gates["amplitude of the opening, ratio"].figure, 3),
        "wrong_audio": round(gates["another clip's sound, correlation"].figure, 3),
        "by_avatar": mean_by(lambda clip: clip.avatar),
        "by_voice": mean_by(lambda clip: clip.voice),
    }


# ── Silence, drift, autoencoder ──────────────────────────────────────────────────────────────────────────────────────


def measure_silence(renderer: Renderer, readers: Readers, *, plan: Plan) -> Measured:
    """Return the opening of every avatar's mouth in silence; in noise, where nothing is right, it is only reported."""
    found = Measured()
    resting: dict[str, Floats] = {}
    avatars = renderer_avatars(renderer)
    for avatar in avatars:
        seen = _read(renderer, readers[avatar], silence(plan.silence_s).waveform, avatar=avatar)
        resting[avatar] = seen[: len(seen) // FPS * FPS].reshape(-1, FPS).mean(1)  # per second
        found.notes[f"opening of {avatar} in silence"] = _mean_and_highest(seen)
    murmur = _read(renderer, readers[avatars[0]], noise(plan.silence_s).waveform, avatar=avatars[0])
    found.notes[f"opening of {avatars[0]} in noise"] = _mean_and_highest(murmur)
    worst = max(resting, key=lambda avatar: float(resting[avatar].mean()))
    found.verdict.gates.append(mean_gate("opening in silence", f"worst, {worst}", resting[worst], most=MOST_IN_SILENCE))
    talking = act(held_out_clips("espeak-ng", count=1, duration_s=plan.silence_s)[0], seed=0)
    read = readers[avatars[0]].read(draw_clip(IDENTITIES[avatars[0]], talking)).opening
    found.verdict.controls.append(
        Control("drawn speech", mean_gate("opening in silence", "", read, most=MOST_IN_SILENCE))
    )
    return found


def _mean_and_highest(values: Floats) -> dict[str, float]:
    return {"mean": round(float(values.mean()), 3), "highest": round(float(values.max()), 3)}


def _read(renderer: Renderer, reader: MouthReader, waveform: npt.NDArray[np.float32], *, avatar: str) -> Floats:
    with renderer.frames(waveform, avatar=avatar) as frames:
        return reader.read(frames).opening


def measure_drift(renderer: Renderer, *, plan: Plan) -> Measured:
    """Render one avatar for minutes with a speech that repeats itself, and hold its end against its beginning."""
    avatar = renderer_avatars(renderer)[0]
    clips = held_out_clips("flite", count=int(plan.period_s // (CLIP_S + 1)), duration_s=CLIP_S)
    period, _ = with_pauses(clips, pause_s=1.0)
    samples = round(plan.period_s * 16000)
    waveform = np.tile(np.resize(np.pad(period.waveform, (0, max(0, samples - len(period.waveform)))), samples),
                       round(plan.drift_s / plan.period_s))  # fmt: skip
    spoken = perform(Speech(waveform[:samples], period.phonemes, period.voice))
    with renderer.frames(waveform, avatar=avatar) as frames:
        run = _long_run(frames, avatar, spoken, period_frames=round(plan.period_s * FPS))
    found = Measured()
    found.verdict.gates.extend(drift_gates(run))
    found.verdict.controls.extend(drift_controls(run))
    minute = slice(0, run.period_frames)
    found.notes["against the portrait, first minute, dB"] = {
        "still": round(decibels(float(run.still_error[minute].mean())), 2),
        "face, mouth closed": round(decibels(float(run.face_error[minute][run.closed[minute]].mean())), 2),
    }
    return found


def _long_run(frames: Pixels, avatar: str, spoken: Performance, *, period_frames: int) -> LongRun:
    """Hold every frame against the portrait."""
    portrait = portrait_of(IDENTITIES[avatar]).astype(np.float32)
    still = still_pixels(avatar, size=len(portrait))
    errors = np.empty((len(frames), 2))
    colours = np.empty((len(frames), 3))
    for index, frame in enumerate(frames):
        squared = (frame.astype(np.float32) - portrait) ** 2
        errors[index] = squared[still].mean(), squared.mean()
        colours[index] = frame.reshape(-1, 3).mean(0)
    closed = np.resize(spoken.opening[:period_frames] < _CLOSED, len(frames))
    return LongRun(errors[:, 0], errors[:, 1], closed, colours, period_frames)


def measure_autoencoder(renderer: Renderer, checkpoint: Path | None, *, plan: Plan) -> Measured:
    """Send drawn held-out speech of every avatar through the package's autoencoder, and the checkpoint's if given."""
    found = Measured()
    drawn = {avatar: _drawn_clips(avatar, plan.autoencoded) for avatar in renderer_avatars(renderer)}
    package = package_autoencoder(
        renderer.package, device=renderer.device, compute=renderer.compute, threads=renderer.threads
    )
    contenders: list[tuple[str, Autoencoder]] = [("package", package)]
    if checkpoint is not None:
        contenders.append(("checkpoint", checkpoint_autoencoder(checkpoint)))
    for name, through in (*contenders, ("control", _coarse)):
        errors = {avatar: _fidelity(clips, through) for avatar, clips in drawn.items()}
        gates = autoencoder_gates(errors, about=name)
        if name == "control":
            found.verdict.controls.extend(Control("pixels four times as coarse", gate) for gate in gates)
            continue
        found.verdict.gates.extend(gates)
        found.notes[f"autoencoder of the {name}, dB whole and mouth"] = {
            avatar: [round(float(values.mean()), 2) for values in pair] for avatar, pair in errors.items()
        }
    return found


def _drawn_clips(avatar: str, count: int) -> list[Pixels]:
    spoken = held_out_clips("flite", count=count, duration_s=4.0)
    return [
        draw_clip(IDENTITIES[avatar], act(speech, seed=index)[30 : 30 + _AUTOENCODED_FRAMES])
        for index, speech in enumerate(spoken)
    ]


def _fidelity(clips: Sequence[Pixels], through: Autoencoder) -> tuple[Floats, Floats]:
    """Return the PSNR of each clip in dB: whole frame, mouth box."""
    top, left, bottom, right = MOUTH_BOX
    whole, mouth = list[float](), list[float]()
    for clip in clips:
        squared = (through(clip).astype(np.float32) - clip) ** 2
        whole.append(decibels(float(squared.mean())))
        mouth.append(decibels(float(squared[:, top:bottom, left:right].mean())))
    return np.array(whole), np.array(mouth)


def _coarse(frames: Pixels) -> Pixels:
    """Return the frames in blocks of 4 x 4 pixels of one colour."""
    count, height, width, _ = frames.shape
    blocks = frames.reshape(count, height // 4, 4, width // 4, 4, 3).mean((2, 4), keepdims=True)
    return np.broadcast_to(blocks, (count, height // 4, 4, width // 4, 4, 3)).reshape(frames.shape).astype(np.uint8)


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def renderer_avatars(renderer: Renderer) -> list[str]:
    """Return the avatars of the package whose truth can be drawn, in the order of `IDENTITIES`."""
    known = [name for name in IDENTITIES if name in renderer.avatars]
    if not known:
        raise SystemExit(
            f"{renderer.package} has the avatars {', '.join(renderer.avatars)}; expected at least one of "
            f"{', '.join(IDENTITIES)}: what isn't drawn has no truth to be measured against"
        )
    return known


def measure(renderer: Renderer, *, plan: Plan, checkpoint: Path | None, reference: Renderer | None) -> Measured:
    """Do the parts that were asked for."""
    readers, whole = Readers(), Measured()
    steps: dict[str, Callable[[], Measured]] = {
        "speech": lambda: measure_speech(renderer, readers, reference, plan=plan),
        "silence": lambda: measure_silence(renderer, readers, plan=plan),
        "drift": lambda: measure_drift(renderer, plan=plan),
        "autoencoder": lambda: measure_autoencoder(renderer, checkpoint, plan=plan),
    }
    for name in plan.parts:
        start_s = time.perf_counter()
        found = steps[name]()
        print(f"{name} took {time.perf_counter() - start_s:.0f} s", file=sys.stderr, flush=True)
        whole.verdict.gates.extend(found.verdict.gates)
        whole.verdict.controls.extend(found.verdict.controls)
        whole.clips.extend(found.clips)
        whole.notes |= found.notes
    return whole


def as_dict(found: Measured) -> dict[str, Any]:
    """Return everything for machines."""
    return found.notes | {
        "gates": [gate.as_dict() for gate in found.verdict.gates],
        "controls": [control.as_dict() for control in found.verdict.controls],
        "each_clip": [
            {
                "voice": clip.voice,
                "avatar": clip.avatar,
                "opening": round(correlation(clip.rendered.opening, clip.truth.opening), 4),
                "width": round(correlation(clip.rendered.width, clip.truth.width), 4),
                "amplitude": round(float(clip.rendered.opening.std() / clip.truth.opening.std()), 4),
            }
            for clip in found.clips
        ],
        "passed": found.verdict.passed,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evaluate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", default="default", help="package folder (default: the embedded one)")
    parser.add_argument("--checkpoint", type=Path, help="its checkpoint folder: the autoencoder in PyTorch as well")
    parser.add_argument("--reference-package", metavar="P0", help="what the package was quantized from: loss is a gate")
    parser.add_argument("--clips", type=int, help=f"per synthesizer (default: {Plan.clips})")
    parser.add_argument("--seconds", type=float, default=CLIP_S, help="length of a clip (default: 6)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="few clips and one minute instead of ten: wide intervals")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--device", default="cpu", help="as of `edgereels render`: cpu, onnxruntime:CPU, openvino:CPU")
    parser.add_argument("--compute", default="auto", help="as of `edgereels render`: auto, f32, bf16")
    parser.add_argument("--json", action="store_true", help="print everything for machines")
    parser.add_argument(
        "--live",
        choices=("low", "balanced", "quality"),
        help="measure the frames of a live stream of that latency; --reference-package then says what live costs",
    )
    parser.add_argument(
        "--figures", type=Path, metavar="FILE.json", help="write everything for machines beside the table"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether every gate is met and every control caught."""
    chosen = _parser().parse_args(arguments)
    base = QUICK if chosen.quick else Plan()
    plan = replace(base, clips=chosen.clips or base.clips, clip_s=chosen.seconds, parts=tuple(chosen.parts))

    def renderer(package: str) -> Renderer:
        return Renderer(package, device=chosen.device, compute=chosen.compute, threads=chosen.threads)

    ours = renderer(chosen.package)
    if chosen.live:
        from .live_rendering import LiveRenderer

        ours = LiveRenderer(**vars(ours), latency=chosen.live)
    found = measure(
        ours,
        plan=plan,
        checkpoint=chosen.checkpoint,
        reference=renderer(chosen.reference_package) if chosen.reference_package else None,
    )
    if chosen.figures:
        chosen.figures.write_text(json.dumps(as_dict(found), indent=1), encoding="utf-8")
    if chosen.json:
        print(json.dumps(as_dict(found)))
    else:
        if chosen.quick:
            print("quick: fewer clips, a short render for drift; intervals are wide")
        print(found.verdict.table())
        for name, value in found.notes.items():
            print(f"{name}: {value}")
    return 0 if found.verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
