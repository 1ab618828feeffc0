# SPDX-License-Identifier: Apache-2.0
"""Where speech begins and ends in a stream: said by the program that pushes it, or found by how loud it is.

Every 20 ms the level is compared with the noise of the room, which is tracked. No model: a door that slams for longer
than 40 ms begins an utterance, and a fan that is switched on does until the floor has followed.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .audio import SAMPLE_RATE
from .live_chunk import SAMPLES_PER_FRAME

Samples = npt.NDArray[np.float32]

BLOCK_SAMPLES = 320
"""Whose level is looked at: 20 ms, half a video frame."""

PRE_ROLL_SAMPLES = 3 * SAMPLES_PER_FRAME
"""How long before the level rose an utterance begins, 0.12 s: mouths open before they sound, consonants are quiet."""

SILENCE_S = 0.6
"""An utterance ends after this long without speech."""

BEGIN_DB, KEEP_DB = 10.0, 6.0
"""How far above the noise speech begins, and how far above it it goes on: blocks of noise scatter by 2 dB."""

LOWEST_FLOOR_DBFS = -70.0
"""Digital silence counts as a room this quiet, so that dither is not taken for speech."""

FIRST_FLOOR_DBFS = -45.0
"""What the room is taken to be at most during the first second, so that speech right at the start is heard."""

_FIRST_FLOOR_BLOCKS = 50  # 1 s
_FLOOR_BLOCKS = 150  # 3 s: longer than a vowel is held, and how long it takes to get used to a new noise
_FLOOR_QUANTILE = 0.1  # not the least level: a sound card that drops a block would make the room seem silent
_CONFIRMING_BLOCKS = 2  # 40 ms: a click is shorter


@dataclass(frozen=True)
class Utterance:
    """A stretch of speech; both ends lie on the grid of video frames."""

    number: int
    """0-based, within its stream."""

    start_sample: int
    """Absolute index of the first sample, a multiple of 640."""

    stop_sample: int | None = None
    """One past the last, a multiple of 640; None while the speech goes on."""


class Utterances:
    """Finds the utterances of one stream at 16 kHz."""

    def __init__(self, ends: Literal["silence", "mark"] = "silence") -> None:
        """Begin a stream.

        Args:
            ends: `silence`: speech begins and ends by its level, and `end` ends it early. `mark`: everything is speech,
                from the first sample to `end`, as a text-to-speech program pushes it.
        """
        self._by_level = ends == "silence"
        self._position = self._free = self._count = 0
        self._open: Utterance | None = None
        self._block = np.zeros(BLOCK_SAMPLES, dtype=np.float32)
        self._floor = _NoiseFloor()
        self._loud_blocks = self._quiet_blocks = 0

    @property
    def position(self) -> int:
        """Absolute index of the sample that comes next."""
        return self._position

    @property
    def current(self) -> Utterance | None:
        """The utterance that goes on, if one does."""
        return self._open

    def push(self, samples: Samples, *, first_sample: int) -> list[Utterance]:
        """Take the next samples, shape (n,), and return what begins or ends with them, in order.

        An utterance is returned twice: without `stop_sample` when it begins, with it when it ends. How the stream is
        cut into blocks changes nothing.

        Raises:
            ValueError: these are not the next samples.
        """
        if first_sample != self._position:
            raise ValueError(f"sound from sample {first_sample} came; expected {self._position}: leave nothing out")
        if not self._by_level:
            begun = [self._begin(self._position)] if len(samples) and self._open is None else []
            self._position += len(samples)
            return begun
        changes: list[Utterance] = []
        first = 0
        while first < len(samples):
            filled = self._position % BLOCK_SAMPLES
            count = min(len(samples) - first, BLOCK_SAMPLES - filled)
            self._block[filled : filled + count] = samples[first : first + count]
            self._position, first = self._position + count, first + count
            if self._position % BLOCK_SAMPLES == 0 and (change := self._look()) is not None:
                changes.append(change)
        return changes

    def end(self) -> Utterance | None:
        """End the utterance that goes on at the next whole frame, and return it; None if nobody speaks.

        `position` moves to `stop_sample`: what is missing there is silence, for the caller to put in.
        """
        if self._open is None:
            return None
        stop = -(-self._position // SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME
        self._position = stop  # on the grid of blocks as well: the block that was begun is dropped
        return self._finish(stop)

    def _look(self) -> Utterance | None:
        """Judge the block that is complete now."""
        level = _level_dbfs(self._block)
        above_db = level - self._floor.push(level)
        if self._open is None:
            self._loud_blocks = self._loud_blocks + 1 if above_db > BEGIN_DB else 0
            if self._loud_blocks < _CONFIRMING_BLOCKS:
                return None
            return self._begin(self._position - _CONFIRMING_BLOCKS * BLOCK_SAMPLES - PRE_ROLL_SAMPLES)
        self._quiet_blocks = 0 if above_db > KEEP_DB else self._quiet_blocks + 1
        if self._quiet_blocks * BLOCK_SAMPLES < SILENCE_S * SAMPLE_RATE:
            return None
        return self._finish(self._position // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME)

    def _begin(self, sample: int) -> Utterance:
        """Begin at the frame that holds a sample, but not in what an earlier utterance has taken."""
        start = max(self._free, sample // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME)
        self._open = Utterance(self._count, start)
        self._count, self._quiet_blocks = self._count + 1, 0
        return self._open

    def _finish(self, stop: int) -> Utterance:
        assert self._open is not None
        finished = Utterance(self._open.number, self._open.start_sample, stop)
        self._open, self._free, self._loud_blocks = None, stop, 0
        return finished


class _NoiseFloor:
    """How loud the room is while nobody speaks: what nine tenths of the last three seconds lie above."""

    def __init__(self) -> None:
        self._levels: deque[float] = deque(maxlen=_FLOOR_BLOCKS)
        self._first_blocks = _FIRST_FLOOR_BLOCKS

    def push(self, level: float) -> float:
        """Take the level of the next block and return the floor, both in dBFS."""
        self._levels.append(level)
        floor = sorted(self._levels)[int(len(self._levels) * _FLOOR_QUANTILE)]
        if self._first_blocks:
            self._first_blocks -= 1
            floor = min(floor, FIRST_FLOOR_DBFS)
        return max(floor, LOWEST_FLOOR_DBFS)


def _level_dbfs(block: Samples) -> float:
    """Return the level of a block without its mean, which a cheap microphone adds; 0 dBFS is a mean square of 1."""
    wide = block.astype(np.float64)
    return float(10 * np.log10(np.var(wide) + 1e-12))
