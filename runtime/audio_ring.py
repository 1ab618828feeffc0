# SPDX-License-Identifier: Apache-2.0
"""The sound that a live stream still needs: the newest seconds, addressed by absolute sample index.

Nothing that has not arrived can be read, so whoever reads from here can't peek at the future, not even by mistake.
"""

import threading

import numpy as np
import numpy.typing as npt

from .audio import SAMPLE_RATE

Samples = npt.NDArray[np.float32]


class FutureSoundError(ValueError):
    """Samples were asked for that have not arrived."""


class LostSoundError(ValueError):
    """Samples were asked for that were never there, or that newer ones have replaced."""


class AudioRing:
    """The newest samples of one stream, mono; one thread may write while another reads. Memory is fixed."""

    def __init__(self, capacity_s: float, *, sample_rate: int = SAMPLE_RATE) -> None:
        """Reserve the memory.

        Args:
            capacity_s: seconds that are kept.
            sample_rate: Hz.

        Raises:
            ValueError: that is not even one sample.
        """
        capacity = round(capacity_s * sample_rate)
        if capacity < 1:
            raise ValueError(f"a ring of {capacity_s} s at {sample_rate} Hz holds no sample; expected at least one")
        self._samples = np.zeros(capacity, dtype=np.float32)
        self._stop = 0
        self._lock = threading.Lock()

    @property
    def capacity_samples(self) -> int:
        """How many samples are kept."""
        return len(self._samples)

    @property
    def start(self) -> int:
        """Absolute index of the oldest sample held; equal to `stop` while there is none."""
        return max(0, self._stop - len(self._samples))

    @property
    def stop(self) -> int:
        """Absolute index of the sample that comes next: how many there were."""
        return self._stop

    def append(self, samples: Samples) -> int:
        """Take the next samples, shape (n,), copied, and return the absolute index of the first.

        Raises:
            ValueError: they are not of shape (n,).
        """
        if samples.ndim != 1:
            raise ValueError(f"the sound is of shape {samples.shape}; expected mono samples (n,)")
        with self._lock:
            first = self._stop
            kept = samples[-len(self._samples) :]
            self._put(kept, at=first + len(samples) - len(kept))
            self._stop = first + len(samples)
        return first

    def read(self, first: int, last: int) -> Samples:
        """Return the samples first … last - 1 by absolute index, float32 of shape (last - first,), the caller's own.

        Raises:
            FutureSoundError: some of them have not arrived.
            LostSoundError: some of them were never there or are gone.
            ValueError: last lies before first.
        """
        if last < first:
            raise ValueError(f"samples {first} to {last} were asked for; expected the first not to lie behind the last")
        with self._lock:
            held = f"the ring holds {self.start} to {self._stop}"
            if last > self._stop:
                raise FutureSoundError(f"samples {first} to {last} have not all arrived; {held}: read up to its end")
            if first < self.start:
                raise LostSoundError(f"samples {first} to {last} are not all there; {held}: read from its start")
            return self._get(first, last)

    def _put(self, samples: Samples, *, at: int) -> None:
        """Write at most a whole ring of samples, round the corner where needed."""
        place = at % len(self._samples)
        until_corner = min(len(samples), len(self._samples) - place)
        self._samples[place : place + until_corner] = samples[:until_corner]
        self._samples[: len(samples) - until_corner] = samples[until_corner:]

    def _get(self, first: int, last: int) -> Samples:
        place, count = first % len(self._samples), last - first
        until_corner = min(count, len(self._samples) - place)
        return np.concatenate([self._samples[place : place + until_corner], self._samples[: count - until_corner]])
