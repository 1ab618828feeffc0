# SPDX-License-Identifier: Apache-2.0
"""Axes carry round numbers, and a peak survives thinning."""

import re

import pytest

from edgereels.benchmarks.latency_drawing import Bar, histogram, line, ticks, timeline


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 0.37, [0, 0.1, 0.2, 0.3, 0.4]),
        (-812, 1700, [-1000, -500, 0, 500, 1000, 1500, 2000]),
        (5, 5, [5, 5.2, 5.4, 5.6, 5.8, 6]),
    ],
)
def test_ticks_are_round_and_hold_everything(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_one_late_chunk_among_many_is_still_drawn() -> None:
    values = [0.0] * 20_000
    values[12_345] = 100.0
    drawn = line(list(range(20_000)), values, x_name="s", y_name="ms", title="lateness")
    points = re.findall(r"[\d.]+,([\d.]+)", drawn[drawn.index("points=") :])
    assert len(points) == 1500
    assert min(map(float, points)) < 20


def test_every_value_is_counted_in_some_bar() -> None:
    assert histogram([1.0, 1.0, 5.0], x_name="ms", title="t").count('class="bar"') == 2


def test_bars_follow_each_other_and_long_ones_carry_their_name() -> None:
    drawn = timeline([("chunk 0", [Bar("queue", 0.5, "wait"), Bar("finish", 0.001, "s0")])], title="t", due_s=0.8)
    bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)"[^>]* width="([\d.]+)"', drawn)
    assert [bar[0] for bar in bars] == ["wait", "s0"]
    assert float(bars[0][1]) + float(bars[0][2]) < float(bars[1][1]) + 0.1
    assert ">queue</text>" in drawn
    assert ">finish</text>" not in drawn  # there is no room; its title tells
    assert ">due</text>" in drawn
