# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest

from edgereels.runtime.frame_queue import FrameQueue

from .virtual_clock import VirtualClock

FRAME_S = 0.04


def fill(queue: FrameQueue, count: int, **options) -> list[bool]:
    return [queue.put(number, duration_s=FRAME_S, **options) for number in range(count)]


def test_what_goes_in_comes_out_in_order() -> None:
    queue = FrameQueue(1.0)
    assert all(fill(queue, 25))
    assert [queue.get() for _ in range(25)] == list(range(25))
    assert queue.counts.dropped == 0


def test_a_window_s_queue_drops_the_oldest_and_counts() -> None:
    queue = FrameQueue(0.2)
    assert all(fill(queue, 25))
    assert [queue.get(0) for _ in range(6)] == [20, 21, 22, 23, 24, None]
    assert (queue.counts.taken, queue.counts.dropped) == (25, 20)


def test_a_file_s_queue_drops_nothing() -> None:
    """A reader thread takes what the writer is made to wait for."""
    queue = FrameQueue(0.2, policy="block")
    got: list[int] = []

    def read() -> None:
        while (item := queue.get()) is not None:
            got.append(item)

    reader = threading.Thread(target=read)
    reader.start()
    assert all(fill(queue, 500))
    queue.close()
    reader.join(5)
    assert got == list(range(500))
    assert queue.counts.dropped == 0


def test_waiting_for_room_ends_and_is_counted() -> None:
    queue = FrameQueue(0.2, policy="block")
    assert fill(queue, 6, timeout_s=0.02) == [True] * 5 + [False]
    assert queue.counts.dropped == 1
    assert queue.counts.longest_block_s >= 0.02


def test_memory_stays_bounded_whoever_is_slow() -> None:
    queue = FrameQueue(0.4)
    for _ in range(200):
        queue.put(np.zeros((1, 64, 64, 3), np.uint8), duration_s=FRAME_S)
    held = queue.clear()
    assert sum(item.nbytes for item in held) <= 10 * 64 * 64 * 3


def test_an_item_longer_than_the_limit_passes_alone() -> None:
    queue = FrameQueue(0.2, policy="block")
    assert queue.put("chunk", duration_s=0.8, timeout_s=0)
    assert not queue.put("next", duration_s=0.04, timeout_s=0)
    assert queue.get(0) == "chunk"


def test_an_interruption_empties_it_and_says_what_was_lost() -> None:
    queue = FrameQueue(1.0)
    fill(queue, 3)
    assert queue.clear() == [0, 1, 2]
    assert queue.held_s == 0
    assert queue.get(0) is None
    assert queue.put(3, duration_s=FRAME_S) and queue.get(0) == 3


def test_closing_wakes_both_sides_and_keeps_what_is_held() -> None:
    queue = FrameQueue(0.04, policy="block")
    queue.put(0, duration_s=FRAME_S)
    outcomes: list[bool] = []
    putter = threading.Thread(target=lambda: outcomes.append(queue.put(1, duration_s=FRAME_S)))
    putter.start()
    queue.close()
    putter.join(5)
    assert outcomes == [False]
    assert queue.get() == 0
    assert queue.get() is None


def test_slowness_is_told_when_it_begins_and_when_it_ends_not_per_frame() -> None:
    clock, events = VirtualClock(), []
    queue = FrameQueue(0.2, on_event=events.append, name="window", now_s=clock.now_s)
    fill(queue, 25)
    clock.advance(3.0)
    while queue.get(0) is not None:
        pass
    assert [event["event"] for event in events] == ["sink_slow", "sink_caught_up"]
    assert events[1] == {
        "event": "sink_caught_up",
        "code": "S_CAUGHT_UP",
        "at_s": 3.0,
        "sink": "window",
        "lasted_s": 3.0,
        "dropped": 20,
    }
    assert queue.counts.longest_wait_s == 3.0


def test_a_sink_that_keeps_up_is_not_called_slow() -> None:
    """Negative control."""
    events: list[dict] = []
    queue = FrameQueue(0.2, on_event=events.append)
    for number in range(100):
        queue.put(number, duration_s=FRAME_S)
        queue.get(0)
    assert events == []


def test_a_listener_may_use_the_queue() -> None:
    queue: FrameQueue = FrameQueue(0.04, on_event=lambda _event: queue.clear() and None)
    assert all(fill(queue, 3))


@pytest.mark.parametrize(("limit_s", "policy"), [(0, "block"), (1, "drop")], ids=["no length", "no such policy"])
def test_wrong_settings_are_refused(limit_s: float, policy: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        FrameQueue(limit_s, policy=policy)
