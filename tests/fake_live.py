# SPDX-License-Identifier: Apache-2.0
"""A live stream without a network, a device or a second of waiting: what decides is real, what it decides about is not.

Time is arithmetic. A fault plan says what goes wrong at which chunk.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgereels.runtime.giving_up import GivingUp, quality_levels
from edgereels.runtime.live_state import LiveState, State
from edgereels.runtime.playout import Playout
from edgereels.runtime.playout_types import LatePolicy, Sound
from edgereels.runtime.recovery import Recovery, Remedy

from .live_parts import FPS, REST, number_seen, numbered_chunk

CHUNK_FRAMES = 20
CHUNK_S = CHUNK_FRAMES / FPS
RESERVE_S = 1.2
DEVICE_BUFFER_S = 0.08
STEP_S = 0.4
LEVELS = quality_levels(
    steps=[4, 2], windows=[33], frame_rates=[25.0, 12.5], cost=lambda steps, window, rate: steps * rate
)


@dataclass(frozen=True)
class Fault:
    """What goes wrong at a chunk; `amount` is a length in s, or for "broken" how often opening the engine fails."""

    kind: str
    amount: float = 0.0


KINDS = [
    "slow",
    "nan",
    "error",
    "broken",
    "audio_lost",
    "audio_back",
    "disk_full",
    "suspend",
    "xrun",
    "interrupt",
    "contention",
]


class NotFiniteError(Exception):
    """The network gave NaN."""


class HungError(Exception):
    """Nothing came of very many steps."""


class FakeSpeakers:
    """Remembers for each slot which frame's sound was handed to the device."""

    def __init__(self) -> None:
        self._numbers: npt.NDArray[np.int64] = np.zeros(4096, np.int64)
        self._stop = 0

    def feed(self, start_s: float, samples: Sound) -> None:
        start, numbers = round(start_s * FPS), samples[::640].astype(np.int64)
        self._numbers[(start + np.arange(len(numbers))) % 4096] = numbers
        self._stop = start + len(numbers)

    def clear(self, slot: int) -> None:
        self._numbers[np.arange(slot + 1, max(self._stop, slot + 1)) % 4096] = 0

    def heard(self, slot: int) -> int:
        return int(self._numbers[slot % 4096])


@dataclass
class FakeLive:
    """Runs chunks through the playout; the generator keeps a reserve of 1.2 s."""

    plan: dict[int, Fault] = field(default_factory=dict[int, Fault])
    policy: LatePolicy = LatePolicy.SHOW
    load: float = 0.5
    device_ppm: float = 0.0
    most_steps: int = 10_000_000
    recovery: Any = field(default_factory=Recovery)

    def __post_init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.now_s = self.media_s = self.due_s = 0.0
        self.state = LiveState(on_event=self._event)
        self.giving_up = GivingUp(LEVELS, on_event=self._event)
        self.line = Playout(FPS, REST, policy=self.policy, on_event=self._event)
        self.speakers = FakeSpeakers()
        self.offsets: list[tuple[float, int]] = []
        self.most_queued = self.steps = self.delivered = self.utterance = self.spoken = self._broken = 0
        self.last_seen, self.worst_offset = 0, 0
        self.contention_until_s = 0.0

    def run(self, chunks: int, *, per_utterance: int = 10) -> None:
        """Make so many chunks, then let everything play out."""
        self.state.go_on(code="S_OPENED", now_s=self.now_s)
        for number in range(chunks):
            if self.state.has_ended:
                return
            self._befall(self.plan.get(number))
            self._chunk(number, last=number % per_utterance == per_utterance - 1 or number == chunks - 1)
        self.wait(self.line.queued_s + 3)
        self.line.close(self.media_s)
        if not self.state.has_ended:
            self.state.utterance_ends(now_s=self.now_s)

    def wait(self, length_s: float) -> None:
        """Let time pass while the speakers play and the window looks."""
        while length_s > 0:
            self.steps += 1
            if self.steps > self.most_steps:
                raise HungError
            step_s = min(length_s, STEP_S)
            length_s -= step_s
            self.now_s += step_s
            self.media_s += step_s * (1 + self.device_ppm * 1e-6)
            self.speakers.feed(*self.line.sound(self.media_s + DEVICE_BUFFER_S))
            self._look()

    def _look(self) -> None:
        shown = self.line.at(self.media_s)
        if shown.kind == "speech":
            seen, heard = number_seen(shown.frame), self.speakers.heard(math.floor(self.media_s * FPS + 1e-6))
            assert seen >= self.last_seen, "an earlier frame than the last one"
            self.last_seen = seen
            self.worst_offset = max(self.worst_offset, abs(seen - heard))
            if self.steps % 64 == 0:
                self.offsets.append((self.media_s, seen - heard))

    def _chunk(self, number: int, *, last: bool) -> None:
        if self.spoken == 0:
            self.state.utterance_begins(now_s=self.now_s)
            self.due_s = max(self.due_s, self.media_s + 0.6)
        self.wait(self.line.queued_s - RESERVE_S)
        try:
            cost_s = self._generate(self.plan.get(number))
        except Exception as error:
            self._recover(error)
            return
        chunk = numbered_chunk(
            1 + self.delivered * CHUNK_FRAMES,
            CHUNK_FRAMES,
            utterance=self.utterance,
            first_frame=self.spoken,
            last=last,
        )
        placed = self.line.add(chunk, self.due_s)
        self.delivered, self.spoken, self.due_s = self.delivered + 1, self.spoken + CHUNK_FRAMES, placed.stop_s
        self.most_queued = max(self.most_queued, self.line.queued_frames)
        self.giving_up.observe(cost_s=cost_s, media_s=CHUNK_S, missed=placed.waited_s > 0, now_s=self.now_s)
        self._say_quality()
        if last:
            self._next_utterance()

    def _next_utterance(self) -> None:
        self.state.utterance_ends(now_s=self.now_s)
        self.utterance, self.spoken = self.utterance + 1, 0

    def _generate(self, fault: Fault | None) -> float:
        cost_s = self.load * CHUNK_S * self.giving_up.level.cost / LEVELS[0].cost
        cost_s *= 3 if self.now_s < self.contention_until_s else 1
        kind = fault.kind if fault else ""
        if fault and kind == "slow":
            cost_s += fault.amount
        self.wait(cost_s)
        if kind == "nan":
            raise NotFiniteError
        if fault and kind in ("error", "broken"):
            self._broken = int(fault.amount) if kind == "broken" else 0
            raise MemoryError("planned")
        return cost_s

    def _befall(self, fault: Fault | None) -> None:
        """Let what has nothing to do with the generator go wrong."""
        if fault is None:
            return
        if fault.kind == "suspend":
            self.now_s += fault.amount
            self.media_s += fault.amount
        elif fault.kind == "xrun":
            self.now_s += fault.amount  # the device stood still, and so does the master clock
        elif fault.kind == "contention":
            self.contention_until_s = self.now_s + fault.amount
        elif fault.kind == "interrupt":
            self.line.interrupt(self.media_s, through_utterance=self.utterance)
            self.speakers.clear(math.floor(self.media_s * FPS + 1e-6))
            self._next_utterance()
            self.due_s = 0.0
        elif fault.kind == "audio_back":
            self.state.restore("AUDIO_UNAVAILABLE", now_s=self.now_s)
        elif fault.kind in ("audio_lost", "disk_full"):
            code = "AUDIO_UNAVAILABLE" if fault.kind == "audio_lost" else "S_DISK_FULL"
            self.state.degrade(code, now_s=self.now_s)

    def _recover(self, error: Exception) -> None:
        contained = isinstance(error, NotFiniteError)
        code = "S_NONFINITE" if contained else "S_UNEXPECTED"
        self.state.change(State.RECOVERING, code=code, now_s=self.now_s)
        while True:
            remedy, wait_s = self.recovery.after(is_contained=contained, now_s=self.now_s)
            if remedy is Remedy.GIVE_UP:
                self.state.change(State.FAILED, code="S_TOO_MANY_FAULTS", now_s=self.now_s)
                return
            self.wait(max(wait_s, 0.01))
            if remedy is Remedy.DISCARD or self._broken == 0:
                break
            self._broken, contained = self._broken - 1, False
        self.state.go_on(code="S_RECOVERED", now_s=self.now_s)

    def _say_quality(self) -> None:
        if self.giving_up.index:
            self.state.degrade("S_QUALITY", now_s=self.now_s)
        else:
            self.state.restore("S_QUALITY", now_s=self.now_s)

    def _event(self, event: dict[str, Any]) -> None:
        assert event["code"] and event["at_s"] >= 0
        self.codes[event["code"]] += 1
