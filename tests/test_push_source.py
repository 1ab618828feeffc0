# SPDX-License-Identifier: Apache-2.0
"""Pushed sound comes out whole and in order, and piles up nowhere."""

import queue
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edgereels.runtime.errors import MediaError, UsageError
from edgereels.runtime.push_source import PushSource
from edgereels.runtime.sources import SoundBlock

from .virtual_clock import VirtualClock

RATE = 8_000


def sound(seconds: float, *, value: float = 0.5) -> npt.NDArray[np.float32]:
    return np.full(round(seconds * RATE), value, np.float32)


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def given(source: PushSource) -> list[SoundBlock]:
    """Close a source and return all that it gives."""
    blocks, ended = list[SoundBlock](), threading.Event()
    source.close()
    with source:
        source.start(blocks.append, lambda error: ended.set())
        assert ended.wait(5)
    return blocks


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.int32])
def test_blocks_of_any_size_come_out_in_order(kind: type[np.generic]) -> None:
    source = PushSource(VirtualClock(3.0))
    whole = np.random.default_rng(0).integers(-100, 100, (5 * RATE, 2)).astype(kind)
    for part in np.split(whole, [1, 1, 77, 30_000]):
        source.push(part, RATE)
    blocks = given(source)
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), whole)
    assert max(len(block.samples) for block in blocks) == RATE  # long blocks in pieces of a second
    assert {(block.arrived_s, block.intended_s, block.sample_rate) for block in blocks} == {(3.0, 3.0, RATE)}


def test_the_pusher_keeps_its_buffer() -> None:
    source, mine = PushSource(VirtualClock()), sound(0.1)
    source.push(mine, RATE)
    mine[:] = 9
    assert given(source)[0].samples[0] == 0.5


def test_the_end_of_an_utterance_is_marked_once_behind_its_sound() -> None:
    source = PushSource(VirtualClock())
    source.end_utterance()  # nothing was said
    source.push(sound(0.1), RATE)
    source.end_utterance()
    source.end_utterance()
    source.push(sound(0.2), RATE)
    assert [(len(block.samples), block.ends_utterance) for block in given(source)] == [
        (800, False),
        (0, True),
        (1600, False),
    ]


def test_who_does_not_wait_is_told_that_there_is_no_room_and_nothing_is_taken() -> None:
    source = PushSource(VirtualClock())
    source.push(sound(29.5), RATE, wait=False)  # negative control: up to the limit it is taken
    with pytest.raises(queue.Full, match=r"29\.50 s of sound wait already and 0\.60 s came"):
        source.push(sound(0.6), RATE, wait=False)
    assert source.waiting_s == pytest.approx(29.5)
    source.push(sound(0.5), RATE, wait=False)


def test_a_pusher_waits_while_there_is_no_room_and_memory_stays_bounded() -> None:
    source, done = PushSource(VirtualClock(), most_waiting_s=2), threading.Event()
    most_s, may_take, ended = list[float](), threading.Semaphore(0), threading.Event()
    frames = list[int]()

    def take(block: SoundBlock) -> None:
        may_take.acquire()
        most_s.append(source.waiting_s)
        frames.append(len(block.samples))

    def push() -> None:
        source.push(sound(10), RATE)
        source.close()
        done.set()

    started(push)
    with source:
        source.start(take, lambda error: ended.set())
        assert not done.wait(0.05)
        may_take.release(100)
        assert done.wait(5) and ended.wait(5)
    assert sum(frames) == 10 * RATE
    assert max(most_s) <= 2


def test_clear_drops_what_waits_and_what_a_waiting_pusher_still_holds() -> None:
    source = PushSource(VirtualClock(), most_waiting_s=2)
    pusher = started(lambda: source.push(sound(10, value=0.1), RATE))
    with source._changed:
        assert source._changed.wait_for(lambda: source._waiting_s == 2, 5)
    assert source.clear() == 2
    pusher.join(5)
    assert not pusher.is_alive() and source.waiting_s == 0
    source.push(sound(1, value=0.7), RATE)
    (block,) = given(source)
    assert block.samples[0] == np.float32(0.7)


def test_blocks_of_two_pushers_do_not_mix() -> None:
    source = PushSource(VirtualClock())
    pushers = [started(lambda value=value: source.push(sound(5, value=value), RATE)) for value in (0.1, 0.2)]
    for pusher in pushers:
        pusher.join(5)
    values = np.concatenate([block.samples for block in given(source)])
    assert np.count_nonzero(np.diff(values)) == 1


@pytest.mark.parametrize("way", ["close", "stop"])
def test_a_waiting_pusher_is_told_that_the_source_was_closed(way: str) -> None:
    source, errors = PushSource(VirtualClock(), most_waiting_s=1), list[Exception]()

    def push() -> None:
        try:
            source.push(sound(3), RATE)
        except UsageError as error:
            errors.append(error)

    pusher = started(push)
    with source._changed:
        assert source._changed.wait_for(lambda: source._waiting_s == 1, 5)
    getattr(source, way)()
    pusher.join(5)
    assert "closed" in str(errors[0])


def test_a_source_that_waits_for_sound_stops_at_once() -> None:
    source, before = PushSource(VirtualClock()), threading.active_count()
    source.start(lambda block: None, lambda error: None)
    source.stop()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("block", "rate"),
    [(np.zeros(3, np.uint8), RATE), (np.zeros((3, 9), np.float32), RATE), (np.zeros(3, np.float32), 1)],
    ids=["uint8", "9-channels", "1-Hz"],
)
def test_what_is_no_sound_is_refused_at_the_door(block: npt.NDArray[np.generic], rate: int) -> None:
    with pytest.raises(MediaError, match="expected"):
        PushSource(VirtualClock()).push(block, rate)


def test_who_does_not_wait_does_not_wait_for_another_pusher_either() -> None:
    source = PushSource(VirtualClock(), most_waiting_s=2)
    pusher = started(lambda: source.push(sound(10), RATE))
    with source._changed:
        assert source._changed.wait_for(lambda: source._waiting_s == 2, 5)
    with pytest.raises(queue.Full, match="another block is being pushed"):
        source.push(sound(0.1), RATE, wait=False)
    source.clear()
    pusher.join(5)
    source.push(sound(0.1), RATE, wait=False)
    with pytest.raises(queue.Full, match="push pieces"):
        source.push(sound(2.1), RATE, wait=False)
