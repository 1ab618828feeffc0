# SPDX-License-Identifier: Apache-2.0
"""Between a source and the generator: the newest sound at 16 kHz, where utterances lie in it, and when it arrived."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .audio import SAMPLE_RATE
from .audio_ring import AudioRing
from .sound_input import SoundInput
from .sources import SoundBlock
from .utterances import Utterance, Utterances

Samples = npt.NDArray[np.float32]

RING_S = 30.0
AHEAD_S = 10.0
"""So much sound may wait for the generator; then the source has to wait. A window of any quality needs less."""


@dataclass
class Spoken:
    """An utterance that has begun; the other numbers change while it is heard."""

    number: int
    """0-based within the stream."""
    start: int
    """Absolute index of its first sample."""
    stop: int | None = None
    """Behind its last one; None while it goes on."""
    dropped: bool = False
    """Whether nobody wants it any more."""


@dataclass(frozen=True)
class _Arrival:
    stop: int
    """Behind the last sample that was there, absolute."""
    arrived_s: float
    intended_s: float


@dataclass(frozen=True)
class Heard:
    """How much of an utterance is there."""

    samples: int
    """From its beginning on."""
    ended: bool
    """Whether that is all of it."""
    dropped: bool
    """Whether nobody wants it any more."""


class LiveEars:
    """One thread calls `hear` and `close`, another one everything else."""

    def __init__(
        self,
        *,
        ends: Literal["mark", "silence"],
        now_s: Callable[[], float] = time.perf_counter,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Begin a stream.

        Args:
            ends: as of `Utterances`.
            now_s: clock reading, as of the blocks' arrival.
            on_event: told what is wrong with the sound.
        """
        self._now_s = now_s
        self._on_event = None if on_event is None else lambda event: on_event({**event, "at_s": now_s()})
        self._changed = threading.Condition()
        self._utterances = Utterances(ends)
        self._input: SoundInput | None = None
        self._ring = AudioRing(RING_S)
        self._waiting: deque[Spoken] = deque()
        self._newest: Spoken | None = None
        self._arrivals: deque[_Arrival] = deque()
        self._read = 0  # absolute index up to which the generator needs nothing any more
        self._stopped = False
        self._generation = 0  # of the sound that is wanted
        self._drops = 0
        self.is_over = False
        """Whether nothing more will come."""
        self.failure: Exception | None = None
        """What ended the source, if something did."""

    @property
    def is_quiet(self) -> bool:
        """Whether no utterance waits or goes on."""
        with self._changed:
            return not self._waiting and (self._newest is None or self._newest.stop is not None)

    @property
    def stop(self) -> int:
        """Absolute index of the sample that comes next."""
        return self._ring.stop

    # ── The source's side ────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, block: SoundBlock) -> None:
        """Take a block; waits while the generator is far behind."""
        with self._changed:
            drops = self._drops
            self._changed.wait_for(
                lambda: self._stopped or self._drops != drops or self._behind <= AHEAD_S * SAMPLE_RATE
            )
            if self._stopped or self._drops != drops or block.generation < self._generation:
                return
            for samples in self._converted(block):
                self._append(samples, block)
            if block.ends_utterance:
                self._end()
            self._changed.notify_all()

    def close(self, failure: Exception | None) -> None:
        """Note that nothing more comes."""
        with self._changed:
            self._finish_input()
            self._end()
            self.is_over, self.failure = True, failure
            self._changed.notify_all()

    # ── The generator's side ─────────────────────────────────────────────────────────────────────────────────────────

    def next(self, *, timeout_s: float) -> Spoken | None:
        """Return the next utterance when it has begun; None if none did in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or bool(self._waiting), timeout_s)
            if self._waiting:
                return self._waiting.popleft()
            if self._newest is None or self._newest.stop is not None:
                self._read = self._ring.stop
                self._changed.notify_all()
            return None

    def wait_for(self, spoken: Spoken, samples: int, *, timeout_s: float) -> Heard:
        """Wait until so much of an utterance is there, or it has ended or is dropped, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._is_there(spoken, samples), timeout_s)
            return self._heard(spoken)

    def read(self, spoken: Spoken, first: int, stop: int) -> Samples:
        """Return some samples of an utterance, counted from its beginning; those before are not to be read again."""
        with self._changed:
            samples = self._ring.read(spoken.start + first, spoken.start + stop)
            self._read = max(self._read, spoken.start + stop)
            self._changed.notify_all()
        return samples

    def arrival(self, sample: int) -> tuple[float, float]:
        """Return when a sample, by absolute index behind it, was intended to arrive and did; forgets earlier ones."""
        with self._changed:
            while len(self._arrivals) > 1 and (
                self._arrivals[0].stop < sample or self._arrivals[1].stop == self._arrivals[0].stop
            ):
                self._arrivals.popleft()
            found = self._arrivals[0]
            return found.intended_s, found.arrived_s

    def end(self, spoken: Spoken) -> None:
        """End an utterance that doesn't go on."""
        with self._changed:
            if spoken is self._newest and spoken.stop is None:
                self._finish_input()
                self._end()

    def drop(self, *, generation: int = 0) -> None:
        """Forget every utterance that has begun, and what is still to come of an older generation of blocks."""
        with self._changed:
            self._drops, self._generation, self._input = self._drops + 1, generation, None
            self._end()
            for spoken in (*self._waiting, *([self._newest] if self._newest else [])):
                spoken.dropped = True
            self._waiting.clear()
            self._read = self._ring.stop
            self._changed.notify_all()

    def stop_waiting(self) -> None:
        """Wake everybody: the stream ends."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # ── Inside, with the lock held ───────────────────────────────────────────────────────────────────────────────────

    @property
    def _behind(self) -> int:
        return self._ring.stop - self._read

    def _is_there(self, spoken: Spoken, samples: int) -> bool:
        heard = self._heard(spoken)
        return heard.samples >= samples or heard.ended or heard.dropped

    def _heard(self, spoken: Spoken) -> Heard:
        stop = self._ring.stop if spoken.stop is None else spoken.stop
        return Heard(stop - spoken.start, spoken.stop is not None, spoken.dropped)

    def _converted(self, block: SoundBlock) -> list[Samples]:
        """Return a block at 16 kHz, and before it the rest of a sound of another rate."""
        channels = block.samples.shape[1] if block.samples.ndim == 2 else 1
        pieces: list[Samples] = []
        known = self._input
        if known is None or (known.sample_rate, known.channels) != (block.sample_rate, channels):
            if known is not None and len(block.samples):
                pieces.append(known.finish())
            if known is None or len(block.samples):
                self._input = SoundInput(block.sample_rate, channels, on_event=self._on_event)
        assert self._input is not None
        if len(block.samples):
            pieces.append(self._input.push(block.samples))
        if block.ends_utterance:
            pieces.append(self._input.finish())
        return [piece for piece in pieces if len(piece)]

    def _finish_input(self) -> None:
        """Take what a change of rate still holds back of the sound that came."""
        tail = np.zeros(0, np.float32) if self._input is None else self._input.finish()
        if len(tail):
            self._append(tail, SoundBlock(tail, SAMPLE_RATE, self._now_s(), self._now_s()))

    def _append(self, samples: Samples, block: SoundBlock) -> None:
        self._ring_append(samples)
        self._arrivals.append(_Arrival(self._ring.stop, block.arrived_s, block.intended_s))
        while self._arrivals[0].stop < self._ring.start:  # nobody asked
            self._arrivals.popleft()

    def _ring_append(self, samples: Samples) -> None:
        first = self._ring.append(samples)
        for change in self._utterances.push(samples, first_sample=first):
            self._note(change)

    def _end(self) -> None:
        """End the utterance that goes on, at a whole frame."""
        ended = self._utterances.end()
        if ended is not None and ended.stop_sample is not None:
            self._ring.append(np.zeros(ended.stop_sample - self._ring.stop, np.float32))
            now_s = self._now_s()  # not before now it is known that nothing more comes
            self._arrivals.append(_Arrival(self._ring.stop, now_s, now_s))
            self._note(ended)

    def _note(self, change: Utterance) -> None:
        if change.stop_sample is None:
            self._newest = Spoken(change.number, change.start_sample)
            self._waiting.append(self._newest)
        elif self._newest is not None:
            self._newest.stop = change.stop_sample
