# SPDX-License-Identifier: Apache-2.0
from collections import defaultdict

from edgereels.runtime.live_stages import LiveStages

from .virtual_clock import VirtualClock


def test_graphs_within_other_work_count_as_themselves() -> None:
    clock, graphs_s = VirtualClock(5.0), defaultdict[str, float](float, dit=7.0)
    stages = LiveStages(clock, graphs_s)
    with stages.around("between"):
        clock.advance(0.25)
        graphs_s["dit"] += 0.125
        graphs_s["finish"] += 0.0625
    with stages.around("hand_on"):
        clock.advance(0.5)
    clock.advance(1.0)  # of which nobody is told
    assert stages.seconds() == {"dit": 0.125, "finish": 0.0625, "between": 0.0625, "hand_on": 0.5}


def test_work_that_fails_was_work() -> None:
    clock = VirtualClock()
    stages = LiveStages(clock, {})
    for length_s in (0.25, 0.5):
        try:
            with stages.around("between"):
                clock.advance(length_s)
                raise ValueError
        except ValueError:
            pass
    assert stages.seconds() == {"between": 0.75}


def test_graphs_that_take_longer_than_what_they_run_in_leave_less_than_nothing() -> None:
    """So that a run which was counted twice, or by another stream, is seen."""
    graphs_s = {"dit": 0.0}
    stages = LiveStages(VirtualClock(), graphs_s)
    with stages.around("between"):
        graphs_s["dit"] = 1.0
    assert stages.seconds()["between"] == -1.0
