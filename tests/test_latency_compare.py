# SPDX-License-Identifier: Apache-2.0
"""A difference is called one where it is one, and noise never."""

import math

import numpy as np
import pytest

from edgereels.benchmarks.latency_compare import (
    IMPROVEMENT,
    NO_DIFFERENCE,
    REGRESSION,
    TOO_FEW,
    Pair,
    compare,
    judge,
    ratio_of,
    tail_difference,
    take_pairs,
)


def noisy(ratio: float, *, pairs: int = 128, noise: float = 0.05, seed: int = 0) -> list[Pair]:
    random = np.random.default_rng(seed)
    drift = 1 + 0.5 * np.arange(pairs) / pairs  # the machine becomes slower; each pair sees the same
    sides = random.normal(1, noise, size=(pairs, 2)) * drift[:, None] * (1, ratio)
    return [(float(one), float(other)) for one, other in sides]


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(1.0, NO_DIFFERENCE), (1.1, REGRESSION), (0.9, IMPROVEMENT), (1.015, NO_DIFFERENCE)],
)
def test_the_rule(ratio: float, verdict: str) -> None:
    assert judge(noisy(1.0, seed=1), noisy(ratio)).verdict == verdict


def test_noise_is_hardly_ever_called_a_difference() -> None:
    called = [judge(noisy(1.0, seed=2 * i, pairs=64), noisy(1.0, seed=2 * i + 1, pairs=64)).verdict for i in range(20)]
    assert called.count(NO_DIFFERENCE) >= 19


def test_a_difference_below_the_noise_floor_is_none() -> None:
    own = noisy(1.0, noise=0.3, seed=3)
    assert judge(own, noisy(1.04, noise=0.001)).verdict == NO_DIFFERENCE
    assert judge(noisy(1.0, noise=0.001), noisy(1.04, noise=0.001)).verdict == REGRESSION


def test_a_measurement_that_prefers_one_side_of_itself_raises_the_bar() -> None:
    biased = noisy(1.08, noise=0.001, seed=4)
    assert judge(biased, noisy(1.06, noise=0.001)).verdict == NO_DIFFERENCE


def test_too_few_pairs_give_no_verdict() -> None:
    assert judge(noisy(1.0, pairs=63), noisy(2.0, pairs=63)).verdict == TOO_FEW


def test_sides_take_turns_in_random_order_and_the_first_pair_is_thrown_away() -> None:
    calls: list[str] = []

    def side(name: str, seconds: float) -> float:
        calls.append(name)
        return seconds

    pairs = take_pairs(lambda: side("a", 1.0), lambda: side("b", 2.0), pairs=40, seed=5)
    assert pairs == [(1.0, 2.0)] * 40
    orders = {"".join(calls[i : i + 2]) for i in range(0, 82, 2)}
    assert (len(calls), orders) == (82, {"ab", "ba"})


def test_the_noise_comes_first_and_the_sentence_says_it() -> None:
    random = np.random.default_rng(6)
    calls: list[str] = []

    def run(name: str, mean: float) -> float:
        calls.append(name)
        return float(random.normal(mean, 0.01))

    found, raw = compare(lambda: run("a", 1.0), lambda: run("b", 1.2), pairs=64)
    assert set(calls[:130]) == {"a"}
    assert len(raw) == 64
    assert found.sentence.startswith("regression: 1.197×")
    assert "64 pairs of the first with itself" in found.sentence


def test_figures_that_are_no_times_are_refused() -> None:
    with pytest.raises(ValueError, match="positive, finite"):
        ratio_of([(1.0, 0.0)])
    with pytest.raises(ValueError, match="0 pairs"):
        ratio_of([])
    assert math.isclose(ratio_of([(1.0, 2.0)]).value, 2)


def test_a_longer_tail_is_seen_where_the_median_is_the_same() -> None:
    random = np.random.default_rng(7)
    first = random.normal(100, 1, 600)
    second = first.copy()
    second[::8] += 50  # one in eight: the p90 moves, the median doesn't
    found = tail_difference(list(first), list(second), percentile=90)
    assert found is not None
    assert found.low > 20
    same = tail_difference(list(first), list(random.permutation(first)), percentile=90)
    assert same is not None
    assert same.low <= 0 <= same.high
    assert tail_difference(list(first[:99]), list(second), percentile=90) is None
    assert tail_difference(list(first), list(second), percentile=99) is None
