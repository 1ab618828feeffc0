# SPDX-License-Identifier: Apache-2.0
"""Percentiles, shares, slopes, stalls: against known values, and silent where the count is too small."""

import math

import numpy as np
import pytest

from edgereels.benchmarks.latency_figures import (
    Showing,
    binomial_cdf,
    carries,
    distribution,
    freezes_of,
    interval_deviations,
    median_deviation,
    needed_speed,
    percentile_of,
    share_of,
    slope,
    stalls_of,
)


@pytest.mark.parametrize(("percentile", "least"), [(50, 11), (90, 64), (95, 130), (99, 662)])
def test_a_percentile_takes_the_count_that_mlperf_asks(percentile: int, least: int) -> None:
    assert carries(percentile, least)
    assert not carries(percentile, least - 1)


def test_binomial_sums_are_right() -> None:
    ours = binomial_cdf(20, 0.3)
    theirs = np.cumsum([math.comb(20, k) * 0.3**k * 0.7 ** (20 - k) for k in range(21)])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_a_percentile_is_an_observed_value_with_its_bounds() -> None:
    found = percentile_of(np.arange(1.0, 65.0), 90)
    assert found is not None
    assert found["value"] == 58  # the 58th of 64: nothing in between
    assert found["upper99"] == 63  # the largest may be dropped, no more
    assert found["low"] < found["value"] < found["high"] <= 64


def test_the_interval_of_a_percentile_holds_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).exponential(size=(300, 200))
    found = [percentile_of(np.sort(one), 90) for one in draws]
    truth = math.log(10)
    inside = [one["low"] <= truth <= one["high"] for one in found if one is not None]
    below = [truth <= one["upper99"] for one in found if one is not None]
    assert 0.91 <= np.mean(inside) <= 1
    assert np.mean(below) >= 0.97


def test_a_small_count_gives_no_percentile_and_an_empty_one_nothing() -> None:
    few = distribution([3.0, 1.0, 2.0], unit="ms")
    assert (few["n"], few["min"], few["max"], few["mad"]) == (3, 1, 3, 1)
    assert [few[name] for name in ("p50", "p90", "p95", "p99")] == [None] * 4
    assert distribution([], unit="ms")["max"] is None


def test_nan_is_no_figure() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        distribution([1.0, math.nan], unit="ms")


def test_a_share_has_its_exact_interval() -> None:
    none = share_of(0, 100)
    assert (none["share"], none["low"]) == (0, 0)
    assert none["high"] == pytest.approx(1 - 0.025 ** (1 / 100), abs=1e-6)
    some = share_of(5, 100)
    assert (some["low"], some["high"]) == (pytest.approx(0.01643, abs=1e-5), pytest.approx(0.11283, abs=1e-5))
    assert share_of(0, 0)["share"] is None
    with pytest.raises(ValueError, match="2 of 1"):
        share_of(2, 1)


def correlated_noise(generator: np.random.Generator, count: int, *, correlation: float) -> np.ndarray:
    """Return noise whose neighbours are alike."""
    noise = generator.normal(size=count)
    for place in range(1, count):
        noise[place] = correlation * noise[place - 1] + math.sqrt(1 - correlation**2) * noise[place]
    return noise


def test_the_interval_of_a_slope_knows_that_neighbours_are_alike() -> None:
    """Without a slope 5 of 100 intervals may miss 0; taken for independent, most of the correlated ones would."""
    generator, at = np.random.default_rng(0), list(np.arange(120.0))

    def missed(correlation: float) -> int:
        found = [slope(at, list(correlated_noise(generator, 120, correlation=correlation))) for _ in range(100)]
        return sum(one is not None and not one["low"] <= 0 <= one["high"] for one in found)

    assert missed(0.0) <= 10 and missed(0.7) <= 15
    rising = 0.1 * np.arange(120.0) + correlated_noise(generator, 120, correlation=0.7)
    found = slope(at, list(rising))
    assert found is not None and 0 < found["low"] <= 0.1 <= found["high"] < 0.2, "and a slope is still found"


def test_independent_points_would_be_sure_of_slopes_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above."""
    monkeypatch.setattr("edgereels.benchmarks.latency_figures._correlation_factor", lambda _residuals: 1.0)
    generator, at = np.random.default_rng(0), list(np.arange(120.0))
    found = [slope(at, list(correlated_noise(generator, 120, correlation=0.7))) for _ in range(100)]
    assert sum(one is not None and not one["low"] <= 0 <= one["high"] for one in found) > 30


def test_a_slope_is_found_under_noise_and_outliers_and_its_interval_knows_when_there_is_none() -> None:
    random = np.random.default_rng(1)
    at = np.arange(2000) / 100
    flat = random.normal(size=2000)
    rising = flat + 0.5 * at
    rising[::50] += 100
    found = slope(list(at), list(rising))
    assert found is not None
    assert found["low"] <= 0.5 <= found["high"]
    assert found["low"] > 0.4
    none = slope(list(at), list(flat))
    assert none is not None
    assert none["low"] < 0 < none["high"]
    assert slope([1.0, 2.0], [1.0, 2.0]) is None


def shown(*times_s: float | None) -> list[Showing]:
    return [Showing(index * 0.04, at_s) for index, at_s in enumerate(times_s)]


def test_a_stall_is_the_time_without_a_new_frame_that_was_due() -> None:
    on_time = shown(0.0, 0.04, 0.08, 0.12)
    assert stalls_of(on_time, fps=25) == []
    two_held = shown(0.0, None, None, 0.12)
    assert stalls_of(two_held, fps=25) == pytest.approx([0.08])
    late_ever_after = shown(0.0, 2.04, 2.08, 2.12)
    assert stalls_of(late_ever_after, fps=25) == pytest.approx([2.0])
    nothing_more = shown(0.0, None, None, None)
    assert stalls_of(nothing_more, fps=25) == pytest.approx([0.12])
    a_little_late = shown(0.0, 0.07, 0.08, 0.12)
    assert stalls_of(a_little_late, fps=25) == []


@pytest.mark.parametrize(("before_s", "after_s"), [(0.0, 0.0), (0.012, -0.004), (-0.005, 0.01)])
@pytest.mark.parametrize("count", [1, 3])
def test_lost_frames_are_a_stall_of_their_length_however_their_neighbours_trembled(
    count: int, before_s: float, after_s: float
) -> None:
    def around(is_lost: bool) -> list[Showing]:
        return [
            Showing(0.0, before_s),
            *(Showing(0.04 * number, None, is_lost) for number in range(1, count + 1)),
            Showing(0.04 * (count + 1), 0.04 * (count + 1) + after_s),
        ]

    (stall_s,) = stalls_of(around(True), fps=25)
    assert 0.04 * count - 1e-9 <= stall_s < 0.04 * count + 0.02
    (at_the_end_s,) = stalls_of(around(True)[:-1], fps=25)
    assert at_the_end_s >= 0.04 * count - 1e-9
    if (count, before_s) == (1, 0.012):
        assert stalls_of(around(False), fps=25) == [], "a late frame that is shown keeps its own rule"


def test_a_freeze_is_an_interval_far_above_the_mean() -> None:
    assert freezes_of([0.04] * 50 + [0.5]) == [0.5]
    assert freezes_of([0.04] * 50 + [0.15]) == []
    assert freezes_of([]) == []


def test_jitter_is_what_intervals_differ_from_their_media() -> None:
    steady = interval_deviations([0.0, 0.8, 1.2], [0.8, 0.4, 0.8])
    np.testing.assert_allclose(steady, 0, atol=1e-12)
    assert median_deviation(interval_deviations([0, 1, 1.6, 2.6, 3.2], [0.8] * 5)) == pytest.approx(0.2)


def test_the_needed_speed_counts_what_a_slow_chunk_does_to_the_next() -> None:
    arrivals, due = np.arange(10) * 0.8, np.arange(10) * 0.8 + 0.8
    even = needed_speed(arrivals, np.full(10, 0.4), due)
    assert even == pytest.approx(0.5)
    slow = needed_speed(arrivals, np.full(10, 1.0), due)
    assert slow == pytest.approx(1.25)
    alternating = needed_speed(arrivals, np.array([0.1, 1.2] * 5), due)
    assert alternating == pytest.approx(1.5)
    assert needed_speed(arrivals, np.full(10, 0.1), arrivals) is None  # due before its sound was there
    backlog = needed_speed(np.zeros(2), np.array([1.0, 1.0]), np.array([1.0, 1.25]))
    assert backlog == pytest.approx(1.6)
