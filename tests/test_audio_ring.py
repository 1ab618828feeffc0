# SPDX-License-Identifier: Apache-2.0
"""The ring gives what was there and is still held, and nothing else: no future, no past, no torn reads."""

import threading

import numpy as np
import numpy.typing as npt
import pytest

from edgereels.runtime.audio_ring import AudioRing, FutureSoundError, LostSoundError


def counted(first: int, last: int) -> npt.NDArray[np.float32]:
    return np.arange(first, last, dtype=np.float32)


def ring_of(capacity: int) -> AudioRing:
    return AudioRing(capacity / 1000, sample_rate=1000)


@pytest.mark.parametrize("sizes", [(1,), (7,), (3, 10, 1), (25,), (10,)], ids=str)
def test_what_is_held_is_read_by_its_absolute_index(sizes: tuple[int, ...]) -> None:
    ring, stop, turn = ring_of(10), 0, 0
    while stop < 100:
        size = sizes[turn % len(sizes)]
        assert ring.append(counted(stop, stop + size)) == stop
        stop, turn = stop + size, turn + 1
        assert (ring.start, ring.stop) == (max(0, stop - 10), stop)
        for first in range(ring.start, stop):
            for last in range(first, stop + 1):
                np.testing.assert_array_equal(ring.read(first, last), counted(first, last))


def test_the_future_can_not_be_read() -> None:
    ring = ring_of(10)
    ring.append(counted(0, 5))
    assert len(ring.read(0, 5)) == 5  # negative control: up to the end is fine
    with pytest.raises(FutureSoundError, match="holds 0 to 5"):
        ring.read(0, 6)
    with pytest.raises(FutureSoundError):
        ring.read(6, 6)


@pytest.mark.parametrize("first", [-1, 0, 4], ids=str)
def test_what_is_gone_or_never_was_can_not_be_read(first: int) -> None:
    ring = ring_of(10)
    ring.append(counted(0, 15))
    with pytest.raises(LostSoundError, match="holds 5 to 15"):
        ring.read(first, 12)


def test_a_range_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match="behind the last"):
        ring_of(10).read(1, 0)


def test_memory_does_not_grow_and_readers_own_what_they_get() -> None:
    ring = ring_of(10)
    for _ in range(1000):
        ring.append(counted(0, 33))
    assert ring.capacity_samples == 10
    ring.read(ring.start, ring.stop)[:] = -1
    np.testing.assert_array_equal(ring.read(ring.start, ring.stop), counted(23, 33))


@pytest.mark.parametrize("capacity_s", [0, -1], ids=str)
def test_a_ring_without_room_is_refused(capacity_s: float) -> None:
    with pytest.raises(ValueError, match="no sample"):
        AudioRing(capacity_s)


def test_stereo_is_refused() -> None:
    with pytest.raises(ValueError, match="mono"):
        ring_of(10).append(np.zeros((3, 2), np.float32))


class SlowRing(AudioRing):
    """Stops in the middle of a write, when the samples have changed and the indices have not."""

    def __init__(self) -> None:
        super().__init__(0.01, sample_rate=1000)
        self.written, self.go_on = threading.Event(), threading.Event()

    def _put(self, samples: npt.NDArray[np.float32], *, at: int) -> None:
        super()._put(samples, at=at)
        self.written.set()
        assert self.go_on.wait(5)


def test_a_reader_never_sees_a_torn_block() -> None:
    ring, seen = SlowRing(), list[npt.NDArray[np.float32]]()
    ring.go_on.set()
    ring.append(counted(0, 10))
    ring.go_on.clear()
    ring.written.clear()
    writer = threading.Thread(target=lambda: ring.append(counted(10, 13)))
    reader = threading.Thread(target=lambda: seen.append(ring.read(5, 10)))
    writer.start()
    assert ring.written.wait(5)
    reader.start()
    reader.join(0.05)
    assert not seen  # a ring without its lock answers at once
    ring.go_on.set()
    writer.join(5)
    reader.join(5)
    np.testing.assert_array_equal(seen[0], counted(5, 10))
