# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.errors import UsageError
from edgereels.runtime.giving_up import JUDGED_CHUNKS, QUIET_S, GivingUp, QualityLevel, quality_levels

CHUNK_S = 0.8
LEVELS = quality_levels(
    steps=[4, 3, 2], windows=[33, 21], frame_rates=[25.0, 12.5], cost=lambda steps, window, rate: steps * window * rate
)


def run(load: Callable[[float, QualityLevel], float], *, hours: float = 1.0) -> tuple[GivingUp, list[dict[str, Any]]]:
    """Make chunks at the pace of speech; load(now_s, level) is their cost for each second that they last."""
    events: list[dict[str, Any]] = []
    giving_up, now_s = GivingUp(LEVELS, on_event=events.append), 0.0
    for _ in range(round(hours * 3600 / CHUNK_S)):
        cost = load(now_s, giving_up.level)
        now_s += CHUNK_S * max(1.0, cost)
        giving_up.observe(cost_s=cost * CHUNK_S, media_s=CHUNK_S, missed=False, now_s=now_s)
    return giving_up, events


def reversals(events: list[dict[str, Any]], within_s: float) -> int:
    """Count changes that are taken back within some time."""
    changes = [event for event in events if event["event"] == "quality"]
    return sum(
        first["is_better"] != then["is_better"] and then["at_s"] - first["at_s"] < within_s
        for first, then in pairwise(changes)
    )


def relative(level: QualityLevel) -> float:
    return level.cost / LEVELS[0].cost


def test_steps_go_first_then_the_window_then_the_frame_rate() -> None:
    assert [(level.steps, level.window, level.frame_rate) for level in LEVELS] == [
        (4, 33, 25.0),
        (3, 33, 25.0),
        (2, 33, 25.0),
        (2, 21, 25.0),
        (2, 21, 12.5),
    ]


def test_levels_that_give_up_quality_for_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="is no cheaper than"):
        quality_levels(steps=[4, 3], windows=[33, 21], frame_rates=[25.0], cost=lambda steps, window, rate: steps)
    with pytest.raises(UsageError, match="at least one of each"):
        quality_levels(steps=[], windows=[33], frame_rates=[25.0], cost=lambda *_: 1.0)


def test_a_machine_that_is_fast_enough_gives_up_nothing() -> None:
    giving_up, events = run(lambda now_s, level: 0.9 * relative(level))
    assert giving_up.index == 0 and not events


def test_a_machine_too_slow_by_a_third_goes_down_once_and_stays() -> None:
    draw = np.random.default_rng(1)
    giving_up, events = run(lambda now_s, level: 1.3 * relative(level) * draw.uniform(0.9, 1.1), hours=6)
    assert [(event["code"], event["reason"], event["steps"]) for event in events] == [
        ("S_QUALITY", "median", 3),
        ("S_QUALITY", "median", 2),
    ]
    assert giving_up.index == 2 and events[-1]["at_s"] < 30


def test_after_another_program_has_left_quality_comes_back_one_level_at_a_time() -> None:
    giving_up, events = run(lambda now_s, level: (2.5 if 100 < now_s < 160 else 0.6) * relative(level))
    assert giving_up.index == 0
    down = [event["at_s"] for event in events if not event.get("is_better", True)]
    up = [event["at_s"] for event in events if event.get("is_better")]
    assert len(down) == len(up) == 3
    assert down[-1] < 160 < up[0] and all(later - earlier >= QUIET_S for earlier, later in pairwise([down[-1], *up]))
    assert reversals(events, QUIET_S) == 0


@pytest.mark.parametrize("base", np.linspace(0.5, 4.0, 15))
def test_it_never_flaps_at_any_load(base: float) -> None:
    draw = np.random.default_rng(0)
    _, events = run(lambda now_s, level: base * relative(level) * draw.uniform(0.85, 1.15))
    assert reversals(events, QUIET_S) == 0
    assert sum(event["event"] == "quality" for event in events) <= len(LEVELS) - 1


def test_where_a_better_level_lies_about_its_cost_it_is_tried_ever_more_rarely() -> None:
    _, events = run(lambda now_s, level: 1.2 if level.steps == 4 else 0.5, hours=4)
    up = [event["at_s"] for event in events if event.get("is_better")]
    gaps = [later - earlier for earlier, later in pairwise(up)]
    assert all(later > 1.5 * earlier for earlier, later in pairwise(gaps[:4])) and min(gaps[5:]) > 900
    assert len(up) < 25


def test_without_the_hysteresis_it_would_flap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the test of flapping finds it."""
    for name, value in (("QUIET_S", 0.0), ("SPARE", 0.0), ("LONGEST_QUIET_S", 0.0)):
        monkeypatch.setattr(f"edgereels.runtime.giving_up.{name}", value)
    draw = np.random.default_rng(0)
    _, events = run(lambda now_s, level: 0.97 * relative(level) * draw.uniform(0.7, 1.3))
    assert reversals(events, QUIET_S) > 10


def observe(giving_up: GivingUp, now_s: float, *, missed: bool) -> bool:
    return giving_up.observe(cost_s=0.4, media_s=CHUNK_S, missed=missed, now_s=now_s)


def test_two_misses_within_half_a_minute_are_too_many_and_one_is_not() -> None:
    giving_up = GivingUp(LEVELS)
    assert not observe(giving_up, 0.0, missed=True)
    assert not observe(giving_up, 31.0, missed=True), "the first one is long ago"
    assert observe(giving_up, 40.0, missed=True)
    assert giving_up.index == 1


def test_a_machine_too_slow_for_everything_says_so_once() -> None:
    giving_up, events = run(lambda now_s, level: 9.0 * relative(level))
    assert giving_up.is_too_slow and giving_up.index == len(LEVELS) - 1
    assert [event["event"] for event in events] == ["quality"] * 4 + ["too_slow"]


def test_a_machine_that_is_fast_enough_again_says_so() -> None:
    giving_up, events = run(lambda now_s, level: (9.0 if now_s < 600 else 1.0) * relative(level))
    assert not giving_up.is_too_slow
    assert [event["code"] for event in events if event["event"] != "quality"] == ["S_TOO_SLOW", "S_FAST_ENOUGH"]


def test_one_slow_chunk_in_a_while_changes_nothing() -> None:
    giving_up, events = run(lambda now_s, level: 5.0 if int(now_s) % 40 == 0 else 0.5)
    assert giving_up.index == 0 and not events


def test_what_is_dear_long_before_it_is_due_costs_no_quality() -> None:
    """Speech that was pushed faster than it is spoken leaves time to work off a slow moment."""
    giving_up = GivingUp(LEVELS)
    for number in range(3 * JUDGED_CHUNKS):
        assert not giving_up.observe(cost_s=1.6, media_s=0.8, missed=False, now_s=float(number), spare_s=0.8)
    assert giving_up.observe(cost_s=1.6, media_s=0.8, missed=False, now_s=40.0, spare_s=0.79)


def test_being_ahead_does_not_make_a_slow_machine_fast_enough() -> None:
    giving_up = GivingUp(LEVELS[-1:])
    for number in range(2 * JUDGED_CHUNKS):
        giving_up.observe(cost_s=1.6, media_s=0.8, missed=False, now_s=float(number))
    giving_up.observe(cost_s=1.6, media_s=0.8, missed=False, now_s=40.0, spare_s=2.0)
    assert giving_up.is_too_slow
