# SPDX-License-Identifier: Apache-2.0
"""Sound comes by its own schedule, and what has not been said is nowhere to be read."""

import threading
from typing import Any

import numpy as np
import pytest

from edgereels.benchmarks.latency_recorder import Recorder
from edgereels.benchmarks.paced_sound import Clip, Speaker
from edgereels.runtime import UsageError


class Clock:
    """Goes to where it is sent."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        return self.at_s

    def wait_until(self, at_s: float, wake: threading.Event | None = None) -> bool:
        self.at_s = max(self.at_s, at_s)
        return wake is None or not wake.is_set()


def test_a_clip_goes_on_where_it_was_and_begins_again_at_its_end() -> None:
    clip = Clip(np.arange(1000, dtype=np.float32))
    said = np.concatenate([*clip.blocks(0.05), *clip.blocks(0.05)])
    assert np.array_equal(said, np.arange(1600) % 1000)
    clip.rewind()
    assert next(iter(clip.blocks(1.0)))[0] == 0


def test_the_last_block_may_be_shorter_and_nothing_is_lost() -> None:
    assert [len(block) for block in Clip(np.zeros(9999, np.float32)).blocks(0.05)] == [320, 320, 160]


def test_no_block_leads_to_the_sound_behind_it() -> None:
    block = next(iter(Clip(np.arange(1000, dtype=np.float32)).blocks(0.05)))
    assert block.base is None or block.base.size == block.size
    view = np.zeros(1000, np.float32)[:320]
    assert view.base is not None and view.base.size == 1000, "the check would see a view"


def test_nothing_to_say_is_refused() -> None:
    with pytest.raises(UsageError, match="no samples"):
        Clip(np.zeros(0, np.float32))


def _say(push: Any, clock: Clock, *, speed: float = 1.0, stop: threading.Event | None = None) -> list[Any]:
    lines: list[Any] = []
    recorder = Recorder(lines.append, clock.now_s)
    speaker = Speaker(push, recorder, clock, stop=stop or threading.Event())
    speaker.say(Clip(np.ones(16000, np.float32)).blocks(0.2), start_s=1.0, speed=speed)
    return lines


def test_a_receiver_that_makes_the_speaker_wait_makes_blocks_late_not_due_late() -> None:
    clock = Clock()

    def slow(_block: Any, _rate: int) -> None:
        if clock.at_s < 1.05:
            clock.at_s += 0.1

    lines = _say(slow, clock)
    assert [round(line.intended_s, 2) for line in lines] == [round(1.02 + 0.02 * i, 2) for i in range(10)]
    assert [round(line.arrived_s, 2) for line in lines[:4]] == [1.02, 1.12, 1.12, 1.12]


def test_pushed_faster_it_comes_faster() -> None:
    lines = _say(lambda _block, _rate: None, Clock(), speed=5.0)
    assert np.allclose(np.diff([line.arrived_s for line in lines]), 0.004)


def test_a_speaker_that_is_stopped_says_no_more() -> None:
    stop = threading.Event()
    lines = _say(lambda _block, _rate: stop.set(), Clock(), stop=stop)
    assert len(lines) == 1
