# SPDX-License-Identifier: Apache-2.0
"""Brings speech that is still arriving to the loudness that the audio encoder was shown.

`loudness.normalise_loudness` measures the whole sound first. Here the gain follows from what was heard so far: measured
as there (BS.1770: K weighting, blocks of 0.4 s, both gates), over at most the last 60 s of blocks that hold speech, and
moved by at most 6 dB a second, so that a correction is never heard as a jump. Feed it speech, not the room around it: a
room alone that is louder than -70 LUFS is turned up like anything else.
"""

from collections import deque

import numpy as np
import numpy.typing as npt

from .audio import SAMPLE_RATE
from .loudness import BLOCK_S, TARGET_LUFS, UNMEASURABLE_LUFS, block_loudness, gate_blocks, impulse_response

Samples = npt.NDArray[np.float32]

FASTEST_DB_S = 6.0
"""How fast the gain may move, in dB per second."""

REMEMBERED_S = 60.0
"""How much sound above the absolute gate the loudness is taken from, in seconds: it follows a speaker who moves."""

QUARTER_SAMPLES = int(BLOCK_S * SAMPLE_RATE) // 4
"""Blocks overlap by 75 %: one ends every 1600 samples, and there the gain is decided anew."""


class RunningLoudness:
    """The gain of one stream of mono speech at 16 kHz.

    The gain of a sample depends on earlier samples alone, and on its place in the stream: how the stream was cut into
    blocks changes nothing.
    """

    def __init__(self, start_lufs: float = TARGET_LUFS, *, target_lufs: float = TARGET_LUFS) -> None:
        """Begin a stream.

        Args:
            start_lufs: how loud the speaker is taken to be until 0.4 s were heard.
            target_lufs: where the speech is brought to.
        """
        self._target_lufs = target_lufs
        self._from_db = self._to_db = target_lufs - start_lufs  # at the ends of the present quarter
        self._energies: deque[float] = deque(maxlen=round(REMEMBERED_S / BLOCK_S * 4))
        self._quarters: deque[float] = deque(maxlen=4)
        self._weighting = _Weighting()
        self._quarter = np.zeros(QUARTER_SAMPLES, dtype=np.float32)
        self._filled = 0

    @property
    def gain_db(self) -> float:
        """Gain of the next sample."""
        return float(self._gains_db(self._filled, self._filled + 1)[0])

    def push(self, samples: Samples) -> Samples:
        """Return the next samples, shape (n,), scaled: as many, at once."""
        scaled = np.empty(len(samples), dtype=np.float32)
        first = 0
        while first < len(samples):
            count = min(len(samples) - first, QUARTER_SAMPLES - self._filled)
            piece = samples[first : first + count]
            gains_db = self._gains_db(self._filled, self._filled + count)
            scaled[first : first + count] = piece * (10 ** (gains_db / 20)).astype(np.float32)
            self._quarter[self._filled : self._filled + count] = piece
            self._filled, first = self._filled + count, first + count
            if self._filled == QUARTER_SAMPLES:
                self._filled = 0
                self._decide()
        return scaled

    def _gains_db(self, first: int, last: int) -> npt.NDArray[np.float64]:
        """Return the gains of some samples of the present quarter: a line in decibels."""
        return self._from_db + (self._to_db - self._from_db) * (np.arange(first, last) / QUARTER_SAMPLES)

    def _decide(self) -> None:
        """Choose where the gain goes during the next quarter, from the quarter that is complete now."""
        self._from_db = self._to_db
        self._quarters.append(self._weighting.energy(self._quarter))
        if len(self._quarters) < 4:
            return
        energy = sum(self._quarters) / (4 * QUARTER_SAMPLES)
        loudness = float(block_loudness(energy))
        if not gate_blocks(np.array([energy])).any() or loudness > UNMEASURABLE_LUFS:
            return  # silence, or damage: nothing was learnt
        self._energies.append(energy)
        energies = np.array(self._energies)
        is_speech = gate_blocks(energies)
        if not is_speech[-1]:
            return  # a pause between words: the gain rests
        wanted_db = self._target_lufs - float(block_loudness(energies[is_speech].mean()))
        step_db = FASTEST_DB_S * QUARTER_SAMPLES / SAMPLE_RATE
        self._to_db += float(np.clip(wanted_db - self._to_db, -step_db, step_db))


class _Weighting:
    """The K weighting of one stream, a quarter of a block at a time (overlap-save)."""

    def __init__(self) -> None:
        response = impulse_response(SAMPLE_RATE)
        self._size = 1 << (QUARTER_SAMPLES + len(response) - 2).bit_length()
        self._spectrum = np.fft.rfft(response, self._size)
        self._heard = np.zeros(len(response) - 1 + QUARTER_SAMPLES)

    def energy(self, quarter: Samples) -> float:
        """Return the sum of squares of the weighted quarter."""
        self._heard = np.concatenate([self._heard[QUARTER_SAMPLES:], quarter.astype(np.float64)])
        filtered = np.fft.irfft(np.fft.rfft(self._heard, self._size) * self._spectrum, self._size)
        weighted = filtered[len(self._heard) - QUARTER_SAMPLES : len(self._heard)]
        return float(np.sum(weighted * weighted))
