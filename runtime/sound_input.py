# SPDX-License-Identifier: Apache-2.0
"""Takes sound as it arrives, at any rate and in blocks of any size, and gives mono speech at 16 kHz.

Mixing and resampling are those of `audio.load_speech`, so a sound that arrives in pieces becomes the samples that its
file becomes. Unlike a file, a stream is not refused for NaN or Inf: they turn into silence and are counted.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .audio import HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS, SAMPLE_RATE
from .errors import MediaError

Samples = npt.NDArray[np.float32]
OnEvent = Callable[[dict[str, Any]], None]

MOST_NONFINITE_SHARE = 0.01
"""Beyond this share of NaN and Inf the source is damaged, and an event says so."""

LARGEST = 1e6
"""A number beyond this (120 dB above full scale) counts as not finite: filters that follow could make Inf of it."""

_JUDGED_S = 1.0  # the share is judged once a second, so that damage is noticed however long the stream was sound


def check_format(sample_rate: int, channels: int, *, what: str = "the sound") -> None:
    """Refuse the rates and numbers of channels that `audio.load_speech` refuses.

    Raises:
        MediaError: the rate is not 8 to 192 kHz, or the channels are not 1 to 8.
    """
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise MediaError(
            f"{what} is sampled at {sample_rate} Hz; expected {LOWEST_RATE} to {HIGHEST_RATE} Hz: resample it"
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise MediaError(f"{what} has {channels} channels; expected 1 to {MOST_CHANNELS}: mix it down")


def check_block(block: npt.NDArray[Any], *, channels: int) -> None:
    """Refuse what is no block of sound.

    Raises:
        MediaError: it is neither floating point nor int16 nor int32, or not of shape (n, channels); (n,) is taken for
            one channel.
    """
    kind = block.dtype
    is_sound = np.issubdtype(kind, np.floating) or kind in (np.int16, np.int32)
    if not is_sound or (block.ndim, *block.shape[1:]) not in ({(1,), (2, 1)} if channels == 1 else {(2, channels)}):
        raise MediaError(
            f"a block of sound is {kind} of shape {block.shape}; expected floating point, int16 or int32 of shape "
            f"(n, {channels}): convert it"
        )


class SoundInput:
    """One stream of sound on its way to 16 kHz mono."""

    def __init__(self, sample_rate: int, channels: int = 1, *, on_event: OnEvent | None = None) -> None:
        """Open the stream.

        Args:
            sample_rate: of the blocks, Hz.
            channels: of the blocks; averaged.
            on_event: called with `M_NONFINITE` when more than 1 % of a second was NaN or Inf, and not again before a
                second was sound; `at_s` counts seconds of sound taken.

        Raises:
            MediaError: the rate or the number of channels is none that is taken.
        """
        check_format(sample_rate, channels)
        self.sample_rate = sample_rate
        """Of the blocks, Hz."""
        self.channels = channels
        """Of the blocks."""
        self.frames = 0
        """Samples per channel taken since the stream was opened."""
        self.nonfinite = 0
        """Samples, of any channel, that were NaN, Inf or beyond `LARGEST` and became 0."""
        self._on_event = on_event
        self._judged_frames = self._judged_nonfinite = 0
        self._is_damaged = False
        self._sound_frames = self._given = 0  # of the present sound, in and out
        self._stream: Any = None
        if sample_rate != SAMPLE_RATE:
            import soxr

            self._stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    @property
    def nonfinite_share(self) -> float:
        """Share of all samples that were not finite, 0 to 1."""
        return self.nonfinite / (self.frames * self.channels) if self.frames else 0.0

    @property
    def held_back_s(self) -> float:
        """Seconds of sound that were taken and not given yet: the resampler looks ahead."""
        return max(0.0, self._sound_frames / self.sample_rate - self._given / SAMPLE_RATE)

    def push(self, block: npt.NDArray[Any]) -> Samples:
        """Take the next block and return what is ready, float32 of shape (n,), nominally in [-1, 1], the caller's own.

        Args:
            block: shape (n, channels), or (n,) for one channel; floating point, or int16 and int32 of full scale.

        Raises:
            MediaError: the block is of another kind or shape.
        """
        check_block(block, channels=self.channels)
        mono = self._mono(_as_float(block.reshape(-1, self.channels)))
        self.frames += len(mono)
        self._sound_frames += len(mono)
        if self.frames - self._judged_frames >= _JUDGED_S * self.sample_rate:
            self._judge()
        return self._count(mono if self._stream is None else self._stream.resample_chunk(mono))

    def finish(self) -> Samples:
        """End the present sound and return its tail, float32 of shape (n,); the next block begins a new one.

        Altogether a sound of n samples becomes ceil(n x 16000 / rate), as a file does.
        """
        if self.frames > self._judged_frames:
            self._judge()
        wanted = math.ceil(self._sound_frames * (SAMPLE_RATE / self.sample_rate)) - self._given
        tail = np.zeros(max(0, wanted), dtype=np.float32)
        if self._stream is not None and self._sound_frames:
            rest = self._stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)[:wanted]
            tail[: len(rest)] = rest
            self._stream.clear()
        self._sound_frames = self._given = 0
        return tail

    def _mono(self, block: Samples) -> Samples:
        """Return a block (n, channels) mixed down, what is not finite replaced and counted."""
        with np.errstate(invalid="ignore"):
            bad = ~(np.abs(block) <= LARGEST)  # true for NaN as well
        count = int(np.count_nonzero(bad))
        if count:
            self.nonfinite += count
            block = np.where(bad, np.float32(0), block)
        return block.mean(axis=1, dtype=np.float32)

    def _count(self, samples: Samples) -> Samples:
        self._given += len(samples)
        return samples

    def _judge(self) -> None:
        """Look at the share since the last look, and say so where it became too large."""
        share = (self.nonfinite - self._judged_nonfinite) / ((self.frames - self._judged_frames) * self.channels)
        self._judged_frames, self._judged_nonfinite = self.frames, self.nonfinite
        was_damaged, self._is_damaged = self._is_damaged, share > MOST_NONFINITE_SHARE
        if self._is_damaged and not was_damaged and self._on_event is not None:
            self._on_event(
                {
                    "event": "nonfinite_sound",
                    "code": "M_NONFINITE",
                    "at_s": self.frames / self.sample_rate,
                    "share": share,
                    "nonfinite": self.nonfinite,
                }
            )


def _as_float(block: npt.NDArray[Any]) -> Samples:
    """Return a block as float32, integers scaled to [-1, 1)."""
    if np.issubdtype(block.dtype, np.integer):
        return block.astype(np.float32) * np.float32(2.0 ** (1 - 8 * block.dtype.itemsize))
    with np.errstate(over="ignore", invalid="ignore"):
        return block.astype(np.float32)
