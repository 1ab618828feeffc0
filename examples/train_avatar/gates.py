# SPDX-License-Identifier: Apache-2.0
"""Figures of a rendered avatar, the limits they have to keep, and the controls that must not keep them.

Series in, verdicts out: nothing here renders, draws or reads a file. A gate is met by the figure itself; its 95 %
interval, a bootstrap over clips, says how far the figure can be trusted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgereels.runtime.metrics import correlation

FPS = 25

LEAST_OPENING = 0.85
LEAST_WIDTH = 0.6
MOST_LAG_MS = 40.0
MOST_WRONG = 0.15
AMPLITUDE = (0.85, 1.15)
MOST_IN_SILENCE = 0.08
"""Opening, of a range of about 0.9: lips that are this far apart show no teeth."""
MOST_SEAM = 1.3
LEAST_WHOLE_DB, LEAST_MOUTH_DB = 33.0, 29.0
MOST_DRIFT_DB = 2.0
MOST_COLOUR_PER_MINUTE = 1.0
"""Levels of 255."""
MOST_LOSS = 0.03
"""Of correlation, by quantization."""

SHIFT_FRAMES = 5
"""Of the control with late sound: 200 ms."""
_REACH = 8
"""Shifts looked at for the lag, in frames either way."""
_OTHERS = 5
"""Clips whose sound each clip is held against."""
_RESAMPLES = 2000

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read from pictures, or what is true, one value per frame."""

    opening: Floats
    """As `Performance.opening`: 0 closed, about 0.9 wide open."""
    width: Floats
    """As `Performance.lip_width`."""

    def part(self, start: int, stop: int) -> "Reading":
        """Return some of the frames."""
        return Reading(self.opening[start:stop], self.width[start:stop])


@dataclass(frozen=True, eq=False)
class Clip:
    """One held-out utterance: what the mouth should do, what it was seen to do, how frames follow each other."""

    synthesizer: str
    voice: str
    avatar: str
    truth: Reading
    """What belongs to the sound."""
    rendered: Reading
    """Read from the rendered frames."""
    between_keys: Reading
    """Read from frames interpolated between the ends of the windows: what key frames alone would give."""
    pauses: Floats
    """Opening read in each long pause in the clip or after it, a mean per pause."""
    changes: Floats
    """Mean absolute difference of each frame from the one before, levels."""
    seams: Flags
    """Which frames are the first of a window."""


@dataclass(frozen=True)
class Gate:
    """One figure and what it has to keep."""

    name: str
    about: str
    """Of what: a synthesizer, an avatar."""
    figure: float
    interval: tuple[float, float]
    """95 %; the figure itself where there is nothing to resample."""
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """True if the figure keeps its limits; never for one that isn't a number."""
        return (self.least is None or self.figure >= self.least) and (self.most is None or self.figure <= self.most)

    @property
    def limit(self) -> str:
        """The limits, for people."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"

    def as_dict(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "gate": f"{self.name}; {self.about}" if self.about else self.name,
            "name": self.name,
            "about": self.about,
            "figure": round(self.figure, 4),
            "interval_95": [round(edge, 4) for edge in self.interval],
            "least": self.least,
            "most": self.most,
            "limit": self.limit,
            "met": self.met,
        }


@dataclass(frozen=True)
class Control:
    """Something that is wrong on purpose, measured the same way."""

    name: str
    gate: Gate
    """The gate that has to catch it."""

    @property
    def caught(self) -> bool:
        """True if the gate is missed, as it should be."""
        return not self.gate.met

    def as_dict(self) -> dict[str, Any]:
        """Return it for machines."""
        return {"name": self.name, "caught_by": self.gate.as_dict(), "caught": self.caught}


@dataclass(frozen=True)
class Verdict:
    """All gates and controls of one evaluation."""

    gates: list[Gate] = field(default_factory=list[Gate])
    controls: list[Control] = field(default_factory=list[Control])

    @property
    def passed(self) -> bool:
        """True if every gate is met and every control is caught."""
        return all(gate.met for gate in self.gates) and all(control.caught for control in self.controls)

    def table(self) -> str:
        """Return it for people."""
        head = f"{'gate':36} {'of':28} {'figure':>8}  {'95 %':>18}  {'limit':16} met"
        lines = [
            head,
            *(_line(gate, "yes" if gate.met else "NO") for gate in self.gates),
            "",
            "controls, which must miss:",
        ]
        for control in self.controls:
            lines.append(_line(replace(control.gate, about=control.name), "caught" if control.caught else "PASSED"))
        return "\n".join(lines)


def _line(gate: Gate, verdict: str) -> str:
    low, high = gate.interval
    return f"{gate.name:36} {gate.about:28} {gate.figure:8.3f}  {low:8.3f} …{high:8.3f}  {gate.limit:16} {verdict}"


# ── Speech ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def speech_gates(clips: Sequence[Clip], *, about: str) -> list[Gate]:
    """Return the gates of clips of one kind, of at least two."""
    opening = np.array([correlation(clip.rendered.opening, clip.truth.opening) for clip in clips])
    width = np.array([correlation(clip.rendered.width, clip.truth.width) for clip in clips])
    wrong = np.array([_wrong(clips, index) for index in range(len(clips))])
    amplitude = np.array([clip.rendered.opening.std() / clip.truth.opening.std() for clip in clips])
    lag, lag_interval = lag_ms([(clip.rendered.opening, clip.truth.opening) for clip in clips])
    return [
        mean_gate("mouth opening, correlation", about, opening, least=LEAST_OPENING),
        mean_gate("lip width, correlation", about, width, least=LEAST_WIDTH),
        Gate("lag, ms", about, lag, lag_interval, least=-MOST_LAG_MS, most=MOST_LAG_MS),
        mean_gate("another clip's sound, correlation", about, wrong, most=MOST_WRONG),
        mean_gate("amplitude of the opening, ratio", about, amplitude, least=AMPLITUDE[0], most=AMPLITUDE[1]),
        mean_gate("opening in pauses", about, np.concatenate([clip.pauses for clip in clips]), most=MOST_IN_SILENCE),
        seam_gate(clips, about=about),
    ]


def speech_controls(clips: Sequence[Clip]) -> list[Control]:
    """Return what has to miss the gates of speech: the same clips, spoilt."""

    def spoilt(name: str, gate_name: str, spoil: Callable[[Clip, int], Clip]) -> Control:
        gates = speech_gates([spoil(clip, index) for index, clip in enumerate(clips)], about="control")
        return Control(name, next(gate for gate in gates if gate.name == gate_name))

    def of_the_next(clip: Clip, index: int) -> Clip:
        return replace(clip, rendered=cut_to(clips[(index + 1) % len(clips)].rendered, len(clip.truth.opening)))

    opening = "mouth opening, correlation"
    return [
        spoilt("static face", opening, lambda clip, _: replace(clip, rendered=_held(clip.rendered))),
        spoilt("key frames only", opening, lambda clip, _: replace(clip, rendered=clip.between_keys)),
        spoilt("another clip's frames", opening, of_the_next),
        spoilt("another clip's lips", "lip width, correlation", of_the_next),
        spoilt("sound 200 ms late", "lag, ms", lambda clip, _: replace(clip, rendered=_early(clip.rendered))),
        spoilt("own sound as another's", "another clip's sound, correlation", lambda clip, _: _alike(clip, clips[0])),
        spoilt(
            "half the movement",
            "amplitude of the opening, ratio",
            lambda clip, _: replace(clip, rendered=_scaled(clip.rendered, 0.5)),
        ),
        spoilt(
            "a mouth that talks on",
            "opening in pauses",
            lambda clip, _: replace(clip, pauses=np.full_like(clip.pauses, clip.rendered.opening.mean())),
        ),
        spoilt(
            "windows two levels apart",
            "seams, ratio of changes",
            lambda clip, _: replace(clip, changes=clip.changes + 2.0 * clip.seams),
        ),
    ]  # fmt: skip


def lag_ms(pairs: Sequence[tuple[Floats, Floats]]) -> tuple[float, tuple[float, float]]:
    """Return by how much a mouth is late (early: negative), and its 95 % interval: the mean cross-correlation's peak.

    `pairs` are what was seen and what is true, one value per frame.
    """
    table = np.array([_cross_correlation(seen, true) for seen, true in pairs])
    chosen = np.random.default_rng(0).integers(0, len(table), (_RESAMPLES, len(table)))
    resampled = [_peak_ms(table[rows].mean(0)) for rows in chosen]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return _peak_ms(table.mean(0)), (float(low), float(high))


def _cross_correlation(seen: Floats, true: Floats) -> Floats:
    """Return the correlation for every shift from -_REACH to +_REACH frames."""
    inside = true[_REACH:-_REACH]
    return np.array([correlation(seen[at : at + len(inside)], inside) for at in range(2 * _REACH + 1)])


def _peak_ms(means: Floats) -> float:
    """Return where the parabola through the highest value and its neighbours has its peak; NaN for what never moves."""
    best, fine = int(np.argmax(means)), 0.0
    if not means.any():
        return float("nan")
    if 0 < best < len(means) - 1:
        left, middle, right = means[best - 1 : best + 2]
        fine = 0.5 * (left - right) / (left - 2 * middle + right)
    return float((best - _REACH + fine) * 1000 / FPS)


def _wrong(clips: Sequence[Clip], index: int) -> float:
    """Return the mean correlation of a clip's mouth with what the sound of the next few clips asks for."""
    seen = clips[index].rendered.opening
    found: list[float] = []
    for step in range(1, min(_OTHERS, len(clips) - 1) + 1):
        other = clips[(index + step) % len(clips)].truth.opening
        length = min(len(seen), len(other))
        found.append(correlation(seen[:length], other[:length]))
    return float(np.mean(found))


def _held(reading: Reading) -> Reading:
    return Reading(np.full_like(reading.opening, reading.opening[0]), np.full_like(reading.width, reading.width[0]))


def _early(reading: Reading) -> Reading:
    """Return the mouth as it looks beside a sound that plays 200 ms late."""
    return Reading(np.roll(reading.opening, -SHIFT_FRAMES), np.roll(reading.width, -SHIFT_FRAMES))


def _scaled(reading: Reading, factor: float) -> Reading:
    middle = reading.opening.mean()
    return replace(reading, opening=middle + (reading.opening - middle) * factor)


def _alike(clip: Clip, first: Clip) -> Clip:
    """Return a clip in which everybody speaks the first clip's words: the wrong sound is the right one."""
    return replace(clip, truth=first.truth, rendered=first.truth)


def cut_to(reading: Reading, length: int) -> Reading:
    """Return a reading of exactly so many frames; a shorter one is repeated."""
    return Reading(np.resize(reading.opening, length), np.resize(reading.width, length))


def seam_gate(clips: Sequence[Clip], *, about: str) -> Gate:
    """Return the gate of the median change at seams over the median change elsewhere."""
    chosen = np.random.default_rng(0).integers(0, len(clips), (_RESAMPLES // 4, len(clips)))
    resampled = [_seam_ratio([clips[row] for row in rows]) for rows in chosen]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Gate("seams, ratio of changes", about, _seam_ratio(clips), (float(low), float(high)), most=MOST_SEAM)


def _seam_ratio(clips: Sequence[Clip]) -> float:
    changes = np.concatenate([clip.changes for clip in clips])
    seams = np.concatenate([clip.seams for clip in clips])
    return float(np.median(changes[seams]) / max(float(np.median(changes[~seams])), 1e-6))


def loss_gate(ours: Sequence[Clip], reference: Sequence[Clip], *, about: str) -> Gate:
    """Return the gate of what ours lost of the reference's correlation, clip by clip."""
    pairs = zip(ours, reference, strict=True)
    losses = [
        correlation(b.rendered.opening, b.truth.opening) - correlation(a.rendered.opening, a.truth.opening)
        for a, b in pairs
    ]
    return mean_gate("loss against the reference", about, np.array(losses), most=MOST_LOSS)


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class LongRun:
    """A long render of a speech that repeats itself, frame by frame against the portrait."""

    still_error: Floats
    """Mean squared error of the pixels that never move, levels squared, per frame."""
    face_error: Floats
    """Of the whole frame."""
    closed: Flags
    """Frames with a closed mouth: only these can look like the portrait."""
    colours: Floats
    """Mean colour, shape (frames, 3), levels."""
    period_frames: int
    """Length of the speech before it repeats."""


def drift_gates(run: LongRun) -> list[Gate]:
    """Return the gates of the first period against the last one."""
    first, last = slice(0, run.period_frames), slice(len(run.still_error) - run.period_frames, None)
    minutes = (len(run.still_error) - run.period_frames) / FPS / 60
    moved = np.abs(run.colours[last].mean(0) - run.colours[first].mean(0)).max() / minutes
    about = f"{len(run.still_error) / FPS / 60:.1f} minutes"
    return [
        _drop_gate("colour drift of what stays still, dB", about, run.still_error[first], run.still_error[last]),
        _drop_gate(
            "drift of the face, dB",
            about,
            run.face_error[first][run.closed[first]],
            run.face_error[last][run.closed[last]],
        ),
        Gate(
            "mean colour, levels a minute",
            about,
            float(moved),
            (float(moved), float(moved)),
            most=MOST_COLOUR_PER_MINUTE,
        ),
    ]


def drift_controls(run: LongRun) -> list[Control]:
    """Return what has to miss: the same render, growing four times as wrong, and shifting its colour, to the end."""
    ramp = np.linspace(0, 1, len(run.still_error))
    wrong = replace(run, still_error=run.still_error * (1 + 3 * ramp), face_error=run.face_error * (1 + 3 * ramp))
    tinted = replace(run, colours=run.colours + 20 * ramp[:, None])
    still, face, _ = drift_gates(wrong)
    return [
        Control("background that drifts", still),
        Control("face that drifts", face),
        Control("colour that drifts", drift_gates(tinted)[2]),
    ]


def _drop_gate(name: str, about: str, first: Floats, last: Floats) -> Gate:
    """Return the gate of how many dB the PSNR fell; the interval resamples pieces of two seconds."""
    generator, (early, late) = np.random.default_rng(0), (_pieces(first), _pieces(last))
    drops = [
        decibels(early[generator.integers(0, len(early), len(early))].mean())
        - decibels(late[generator.integers(0, len(late), len(late))].mean())
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(drops, [2.5, 97.5])
    return Gate(
        name, about, decibels(early.mean()) - decibels(late.mean()), (float(low), float(high)), most=MOST_DRIFT_DB
    )


def _pieces(errors: Floats) -> Floats:
    """Return means over pieces of two seconds: neighbouring frames say nothing new."""
    whole = max(1, len(errors) // (2 * FPS))
    return np.array([piece.mean() for piece in np.array_split(errors, whole)])


def autoencoder_gates(errors: dict[str, tuple[Floats, Floats]], *, about: str) -> list[Gate]:
    """Return the gates of the worst avatar.

    Args:
        errors: avatar -> PSNR in dB of each clip: whole frame, mouth box.
        about: whose autoencoder.
    """
    gates: list[Gate] = []
    for index, (name, least) in enumerate(
        (("autoencoder, dB", LEAST_WHOLE_DB), ("autoencoder, mouth, dB", LEAST_MOUTH_DB))
    ):
        worst = min(errors, key=lambda avatar: float(errors[avatar][index].mean()))
        gates.append(mean_gate(name, f"{about}, {worst}", errors[worst][index], least=least))
    return gates


# ── Arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────────


def mean_gate(name: str, about: str, values: Floats, *, least: float | None = None, most: float | None = None) -> Gate:
    """Return the gate of the mean of values, one per clip."""
    return Gate(name, about, float(values.mean()), bootstrap(values), least=least, most=most)


def bootstrap(values: Floats) -> tuple[float, float]:
    """Return the 95 % interval of the mean."""
    generator = np.random.default_rng(0)
    means = values[generator.integers(0, len(values), (_RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def decibels(squared_error: float) -> float:
    """Return the PSNR of a mean squared error in levels squared."""
    return float(10 * np.log10(255.0**2 / max(squared_error, 1e-6)))
