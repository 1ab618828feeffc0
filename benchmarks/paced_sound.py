# SPDX-License-Identifier: Apache-2.0
"""Sound that is given out by the clock, in blocks of 20 ms, whatever the receiver does: an open loop.

The schedule is absolute: block k of an utterance is to be handed over when its last sample would have been spoken. A
receiver that makes the speaker wait makes later blocks arrive late, not be due late; and what has not been spoken yet
is nowhere that the receiver could read it.
"""

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..runtime import UsageError
from .latency_recorder import SAMPLE_RATE, Recorder

if TYPE_CHECKING:
    from ..runtime import Clock

BLOCK_S = 0.02
"""Length of a block, seconds of sound: half a video frame."""
BLOCK_SAMPLES = round(BLOCK_S * SAMPLE_RATE)

Samples = npt.NDArray[np.float32]
Push = Callable[[Samples, int], object]


class Clip:
    """Speech of any length from a sound that is repeated as often as it takes."""

    def __init__(self, samples: Samples) -> None:
        """Begin at its beginning.

        Args:
            samples: shape (n,), mono, 16 kHz; n above 0.
        """
        if not len(samples):
            raise UsageError("the sound has no samples; expected some speech")
        self._samples, self._at = samples, 0

    @property
    def length_s(self) -> float:
        """Of the sound itself, seconds."""
        return len(self._samples) / SAMPLE_RATE

    def rewind(self) -> None:
        """Go back to the beginning."""
        self._at = 0

    def blocks(self, length_s: float) -> Iterator[Samples]:
        """Yield the next so many seconds, in blocks; only the last may be shorter. Each is a copy."""
        left = round(length_s * SAMPLE_RATE)
        while left > 0:
            count = min(left, BLOCK_SAMPLES)
            places = np.arange(self._at, self._at + count) % len(self._samples)
            self._at = (self._at + count) % len(self._samples)
            left -= count
            yield self._samples[places]


class Speaker:
    """Says utterances into a stream, each by its own schedule."""

    def __init__(self, push: Push, recorder: Recorder, clock: "Clock", *, stop: threading.Event) -> None:
        """Say to whom.

        Args:
            push: takes samples and their rate.
            recorder: is told of every block before it is pushed.
            clock: the session's.
            stop: once set, nothing more is said.
        """
        self._push, self._recorder, self._clock, self._stop = push, recorder, clock, stop

    def say(self, blocks: Iterator[Samples], *, start_s: float, speed: float = 1.0) -> float:
        """Push blocks at their times; return when the last one was to be pushed.

        Args:
            blocks: of one utterance.
            start_s: clock reading at which its first sample is spoken.
            speed: seconds of sound per second; above 1 as a program pushes what is there already.
        """
        said = 0
        due_s = start_s
        for block in blocks:
            said += len(block)
            due_s = start_s + said / SAMPLE_RATE / speed
            if not self._clock.wait_until(due_s, self._stop):
                break
            self._recorder.sent(due_s, self._clock.now_s(), len(block))
            self._push(block, SAMPLE_RATE)
        return due_s
