# SPDX-License-Identifier: Apache-2.0
from typing import Any

from edgereels.runtime.allowance import TURNS_BEFORE_LESS, Allowance, allowance_s
from edgereels.runtime.live_settings import LiveSettings

LOW, LONG = LiveSettings(17, 5, 0, 1), LiveSettings(33, 5, 4, 1)


def allowance(told: list[dict[str, Any]] | None = None) -> Allowance:
    return Allowance({LOW: 0.15, LONG: 0.25}, fps=25, on_event=None if told is None else told.append)


def test_a_fast_machine_keeps_its_promise_and_a_slow_one_gets_twice_what_it_needs() -> None:
    assert [allowance_s(needed_s) for needed_s in (0.0, 0.2)] == [0.28, 0.28]
    assert [allowance_s(needed_s) for needed_s in (0.21, 0.5)] == [0.42, 1.0]


def test_each_quality_has_its_own_in_whole_frames() -> None:
    assert allowance().of(LOW) == 0.28 and allowance().of(LONG) == 0.52


def test_what_was_too_little_becomes_as_much_more_as_was_missing_and_no_more_than_twice() -> None:
    told: list[dict[str, Any]] = []
    ours = allowance(told)
    ours.observe(LOW, spare_s=-0.05, now_s=7.0)
    assert ours.of(LOW) == 0.36 and ours.of(LONG) == 0.6
    assert told == [{"event": "allowance", "code": "S_ALLOWANCE", "at_s": 7.0, "allowance_s": 0.36, "spare_s": -0.05}]
    for _ in range(3):
        ours.observe(LOW, spare_s=-9.0, now_s=8.0)
    assert ours.of(LOW) == 0.56 and len(told) == 2


def test_a_frame_is_given_back_after_many_that_did_not_need_it() -> None:
    ours = allowance()
    ours.observe(LOW, spare_s=-0.08, now_s=0.0)
    for spare_s in (*[0.05] * (TURNS_BEFORE_LESS - 1), 0.03, *[0.05] * (TURNS_BEFORE_LESS - 1)):
        ours.observe(LOW, spare_s=spare_s, now_s=1.0)
        assert ours.of(LOW) == 0.36  # one that came just in time begins the count anew
    ours.observe(LOW, spare_s=0.05, now_s=1.0)
    assert ours.of(LOW) == 0.32


def test_what_was_set_aside_at_the_start_is_never_taken_away() -> None:
    ours = allowance()
    for _ in range(5 * TURNS_BEFORE_LESS):
        ours.observe(LOW, spare_s=0.2, now_s=0.0)
    assert ours.of(LOW) == 0.28
