# SPDX-License-Identifier: Apache-2.0
"""Sound that a program pushes into a live stream, from a text-to-speech above all: any block, any pace, any thread.

At most 30 s wait here. Beyond that the pusher waits, or is told: sound piles up nowhere.
"""

import queue
import threading
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from .clock import Clock
from .errors import UsageError
from .sound_input import check_block, check_format
from .sources import OnBlock, SoundBlock, ThreadedSource

MOST_WAITING_S = 30.0
"""How much sound may wait to be taken, in seconds."""

_PIECE_S = 1.0  # what is given out at once; a long block is cut, so that it needs neither room nor time for the whole


class PushSource(ThreadedSource):
    """A queue of sound with a thread that gives it out."""

    def __init__(self, clock: Clock, *, most_waiting_s: float = MOST_WAITING_S) -> None:
        """Open the queue; blocks may be pushed before `start`.

        Args:
            clock: tells when blocks arrived.
            most_waiting_s: how much sound may wait, in seconds.

        Raises:
            UsageError: that is less than a second.
        """
        super().__init__()
        if most_waiting_s < _PIECE_S:
            raise UsageError(f"{most_waiting_s} s of sound may wait; expected at least {_PIECE_S} s")
        self._clock, self._most_waiting_s = clock, most_waiting_s
        self._waiting: deque[SoundBlock] = deque()
        self._waiting_s = 0.0
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # blocks of several pushers don't mix
        self._closed = False
        self._cleared = 0  # how often; who waits with an older number has been cleared away
        self._spoken_rate = 0  # Hz, of an utterance that goes on

    @property
    def waiting_s(self) -> float:
        """Seconds of sound that wait to be taken."""
        with self._changed:
            return self._waiting_s

    def push(self, block: npt.NDArray[Any], sample_rate: int, *, wait: bool = True) -> None:
        """Take some sound; it is copied.

        What `clear` finds waiting to be taken, and what a waiting call still holds, is dropped.

        Args:
            block: shape (n, channels) or (n,); floating point, int16 or int32; any n.
            sample_rate: Hz.
            wait: False to take all of it at once or nothing.

        Raises:
            MediaError: the block or the rate is none that is taken.
            UsageError: the source was closed or stopped.
            queue.Full: `wait` is False, and there is no room or another block waits for some.
        """
        channels = block.shape[1] if block.ndim == 2 else 1
        check_format(sample_rate, channels, what="the pushed sound")
        check_block(block, channels=channels)
        arrived_s, samples = self._clock.now_s(), block.copy()
        with self._changed:
            called = self._cleared
        piece = round(_PIECE_S * sample_rate)
        if not self._turn.acquire(blocking=wait):
            raise queue.Full("another block is being pushed and waits for room; expected none: push later, or wait")
        try:
            if not wait:
                self._check_room(len(samples) / sample_rate)
            for first in range(0, len(samples), piece):
                part = samples[first : first + piece]
                if not self._put(SoundBlock(part, sample_rate, arrived_s, arrived_s, generation=called)):
                    return
        finally:
            self._turn.release()

    def end_utterance(self) -> None:
        """Say that the speaker has finished with what was pushed last; does nothing where nothing was pushed since."""
        with self._turn, self._changed:
            if self._spoken_rate:
                now_s = self._clock.now_s()
                nothing = np.zeros(0, dtype=np.float32)
                self._waiting.append(SoundBlock(nothing, self._spoken_rate, now_s, now_s, True, self._cleared))
                self._spoken_rate = 0
                self._changed.notify_all()

    @property
    def generation(self) -> int:
        """How often it was cleared: of what is pushed now."""
        return self._cleared

    def clear(self) -> float:
        """Drop what waits, for barge-in, and return how many seconds that was; no end of utterance is marked."""
        with self._changed:
            dropped_s, self._waiting_s = self._waiting_s, 0.0
            self._waiting.clear()
            self._cleared, self._spoken_rate = self._cleared + 1, 0
            self._changed.notify_all()
        return dropped_s

    def close(self) -> None:
        """End the sound behind what was pushed; who still waits in `push` gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check_room(self, length_s: float) -> None:
        if length_s > self._most_waiting_s:
            raise queue.Full(
                f"{length_s:.2f} s of sound came; expected at most {self._most_waiting_s:g} s: push pieces"
            )
        with self._changed:
            if self._waiting_s + length_s > self._most_waiting_s:
                raise queue.Full(
                    f"{self._waiting_s:.2f} s of sound wait already and {length_s:.2f} s came; "
                    f"expected at most {self._most_waiting_s:g} s: push later, or wait"
                )

    def _put(self, block: SoundBlock) -> bool:
        """Append a block as soon as there is room; False where `clear` came in between."""
        length_s = len(block.samples) / block.sample_rate
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or self._stopping.is_set()
                    or self._cleared != block.generation
                    or self._waiting_s + length_s <= self._most_waiting_s
                )
            )
            if self._closed or self._stopping.is_set():
                raise UsageError("sound was pushed into a source that is closed; expected an open one: open a new one")
            if self._cleared != block.generation:
                return False
            self._waiting.append(block)
            self._waiting_s += length_s
            self._spoken_rate = block.sample_rate
            self._changed.notify_all()
            return True

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _produce(self, on_block: OnBlock) -> None:
        while (block := self._take()) is not None:
            on_block(block)

    def _take(self) -> SoundBlock | None:
        """Return the next block as soon as there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed or self._stopping.is_set())
            if self._stopping.is_set() or not self._waiting:
                return None
            block = self._waiting.popleft()
            self._waiting_s -= len(block.samples) / block.sample_rate
            if not self._waiting:
                self._waiting_s = 0.0  # no rounding adds up
            self._changed.notify_all()
            return block
