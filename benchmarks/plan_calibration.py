# SPDX-License-Identifier: Apache-2.0
"""A short calibration: what each stage of a window costs on this device, at a few sizes and windows.

A real session streams a few windows at every point, and its trace says what each call took. Steady windows only: the
key-frame pass and the first window of each stream warm up what a live stream has warm, and the last one is shorter.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime import Avatar, AvatarSession, Trace
from .call_operations import SAMPLES_PER_FRAME
from .live_plan import HEARD_FRAMES, STAGES, Call, Curve, Setting, decoded_pieces
from .machine_watch import MachineWatch

MOST_WINDOWS = 5
"""Measured at one point."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """What one call took."""

    setting: Setting
    """At which point."""
    call: Call
    """Which one."""
    seconds: float
    """Wall time."""


@dataclass(frozen=True)
class Point:
    """What was measured at one size and window."""

    setting: Setting
    """Which; also its steps are those that ran."""
    windows_s: tuple[float, ...]
    """What each window took, canvas left out."""


@dataclass(frozen=True)
class Calibration:
    """Everything that was measured."""

    samples: tuple[Sample, ...]
    """Calls."""
    points: tuple[Point, ...]
    """Sizes and windows."""
    left_out: tuple[Setting, ...]
    """Points for which there was no time."""
    seconds: float
    """It took, compilation included."""
    compile_s: float
    """Of that, for engines to be ready."""
    others_percent: float | None = None
    """Of the processors' time, what went to other processes and other machines on the host meanwhile; None: unknown."""

    def is_measured(self, setting: Setting) -> bool:
        """Tell whether exactly this setting ran; with other steps its costs follow from those that did."""
        return any(point.setting == setting for point in self.points)


# ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def calibrate(
    session: AvatarSession,
    points: Sequence[Setting],
    *,
    operations: Callable[[Setting], float],
    avatar: str | Avatar | None,
    canvas_at: Setting | None,
    budget_s: float,
    progress: Progress = lambda _what: None,
    clock_s: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure, point after point, as long as there is time; the first point is measured in any case.

    Args:
        session: open, and idle.
        points: in rising order of their work.
        operations: of a window.
        avatar: whose windows.
        canvas_at: the point whose frames are laid into the avatar's still; None: nowhere.
        budget_s: for running windows; engines' compilation comes on top.
        progress: told what is measured.
        clock_s: seconds.
    """
    sound = hum(max(HEARD_FRAMES, *(one.window + 3 * one.chunk_frames for one in points)))
    began_s, compile_s, spent_s = clock_s(), 0.0, 0.0
    watch = MachineWatch(lambda _line: None, now_s=clock_s)
    samples: list[Sample] = []
    done: list[Point] = []
    left_out: list[Setting] = []
    for index, setting in enumerate(points):
        share_s = (budget_s - spent_s) / (len(points) - index)
        if done and _expected_s(done[-1], setting, operations) * 3 > budget_s - spent_s:  # two to warm up, one to count
            left_out.append(setting)
            continue
        progress(f"measuring {setting}")
        run = _Run(session, setting, sound=sound, avatar=avatar, canvas=setting == canvas_at, clock_s=clock_s)
        heard = [sample for sample in run.heard() if done]  # the very first finds nothing warm
        windows = run.windows(share_s)
        samples += [*heard, *windows]
        done.append(Point(setting, tuple(run.windows_s)))
        compile_s += run.compile_s
        spent_s += run.seconds - run.compile_s
    if not any(sample.call.stage == "audio_encode" for sample in samples):  # one point only
        again = _Run(session, points[0], sound=sound, avatar=avatar, canvas=False, clock_s=clock_s)
        samples += again.heard()
    seconds = clock_s() - began_s
    return Calibration(tuple(samples), tuple(done), tuple(left_out), seconds, compile_s, others_percent(watch))


def others_percent(watch: MachineWatch) -> float | None:
    """Return how much of the processors' time others had since the watch was last asked, percent; None if unknown."""
    seen = watch.contention()
    known = [share for share in (seen.others_cpu, seen.steal) if share is not None]
    return sum(known) if known else None


def _expected_s(known: Point, setting: Setting, operations: Callable[[Setting], float]) -> float:
    """Return what a window will take, in proportion to one that was measured."""
    return statistics.median(known.windows_s) * operations(setting) / operations(known.setting)


def hum(frames: int) -> npt.NDArray[np.float32]:
    """Return a sound as loud and as restless as speech; what it says costs nothing."""
    time_s = np.arange(frames * SAMPLES_PER_FRAME, dtype=np.float64) / 16000
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * time_s)
    return (0.2 * syllables * np.sin(2 * np.pi * 150 * time_s)).astype(np.float32)


class _Run:
    """One stream at one point."""

    def __init__(
        self,
        session: AvatarSession,
        setting: Setting,
        *,
        sound: npt.NDArray[np.float32],
        avatar: str | Avatar | None,
        canvas: bool,
        clock_s: Callable[[], float],
    ) -> None:
        self._setting, self._clock_s, self._sound_frames = setting, clock_s, len(sound) // SAMPLES_PER_FRAME
        self._trace = Trace(clock=clock_s)
        self._began_s = clock_s()
        self._stream = session.stream(
            audio=sound,
            avatar=avatar,
            size=(setting.height, setting.width),
            window=setting.window,
            motion=setting.motion,
            drop=setting.drop,
            steps=setting.steps,
            canvas=canvas,
            trace=self._trace,
        )
        self.windows_s: list[float] = []
        self.seconds = clock_s() - self._began_s

    @property
    def compile_s(self) -> float:
        """How long engines took to be ready."""
        return self._trace.total_s("freeze")

    def heard(self) -> list[Sample]:
        """Return what encoding the sound took: before the first window, all of it at once."""
        taken = [event["end_s"] - event["start_s"] for event in self._trace.events if event["event"] == "audio_encode"]
        return [Sample(self._setting, Call("audio_encode", self._sound_frames), sum(taken))]

    def windows(self, share_s: float) -> list[Sample]:
        """Stream windows until the time is up, at least one that counts, and return what their calls took."""
        samples: list[Sample] = []
        began_s = before_s = self._clock_s()
        for index, chunk in enumerate(self._stream):
            now_s = self._clock_s()
            if index and not chunk.is_last:
                found = list(self._samples(index, now_s - before_s))
                samples += found
                self.windows_s.append(sum(one.seconds for one in found if one.call.stage != "canvas"))
            mean_s = (now_s - began_s) / (index + 2)
            if len(self.windows_s) >= MOST_WINDOWS or (self.windows_s and now_s - began_s + mean_s > share_s):
                break
            before_s = self._clock_s()
        self._stream.close()  # type: ignore[attr-defined]  # a generator
        self.seconds = self._clock_s() - self._began_s
        return samples

    def _samples(self, index: int, wall_s: float) -> Iterable[Sample]:
        """Yield the calls of a chunk's window, and last what lay between them."""
        window, pieces = self._setting.window, iter(decoded_pieces(self._setting.window - self._setting.drop))
        frames = {"vae_encode": window, "dit": window, "image_encode": 1, "canvas": self._setting.chunk_frames}
        spent_s = 0.0
        for event in self._of(index):
            stage, taken_s = event["event"], event["end_s"] - event["start_s"]
            if stage == "vae_decode":
                frames["vae_decode"] = frames["finish"] = next(pieces)
            spent_s += taken_s
            yield Sample(self._setting, Call(stage, frames[stage]), taken_s)
        yield Sample(self._setting, Call("between", window), max(0.0, wall_s - spent_s))

    def _of(self, index: int) -> list[dict[str, Any]]:
        """Return the events of a chunk; its pass has the next number, because the first shows nothing."""
        events = (event for event in self._trace.events if event["event"] in STAGES)
        return [event for event in events if event.get("pass_index") == index + 1 or event.get("chunk") == index]


# ── Costs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def curves_of(
    samples: Iterable[Sample],
    *,
    operations: Callable[[Setting, Call], float],
    take: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, Curve]:
    """Return the costs of each stage over its operations.

    Args:
        samples: what calls took.
        operations: of a call.
        take: which of the times of the same work counts.
    """
    grouped: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        grouped[sample.call.stage][operations(sample.setting, sample.call)].append(sample.seconds)
    return {
        stage: Curve(tuple((work, take(times)) for work, times in sorted(of_stage.items())))
        for stage, of_stage in grouped.items()
    }
