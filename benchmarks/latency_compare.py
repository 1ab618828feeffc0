# SPDX-License-Identifier: Apache-2.0
"""Is one configuration faster than another? Pairs interleaved in one run, and the noise of this machine first.

A machine drifts by percents within minutes, so two runs after each other compare the minutes. Here the two sides take
turns, in random order within each pair; first one side is paired with itself (A/A), and nothing smaller than what
that shows is called a difference.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .latency_figures import Values

LEAST_PAIRS = 64
"""Below, no verdict."""
LEAST_DIFFERENCE = 0.02
"""Of the ratio: smaller ones are never called a difference; resolving it took about 300 pairs on a shared machine."""
RESAMPLES = 2000
"""Of the bootstrap."""
BLOCK_CHUNKS = 10
"""Resampled together for tails: late chunks come in bursts."""
INTERVAL_PERCENT = (2.5, 97.5)
"""Of every interval."""
NO_DIFFERENCE, REGRESSION, IMPROVEMENT, TOO_FEW = "no difference shown", "regression", "improvement", "too few pairs"

Pair = tuple[float, float]


@dataclass(frozen=True)
class Ratio:
    """Second over first: the median of the pairs' ratios."""

    value: float
    """1 means equal, 1.1 that the second takes 10 % more."""
    low: float
    """Of the bootstrap's 95 % interval."""
    high: float
    """Of the bootstrap's 95 % interval."""
    pairs: int
    """How many."""

    @property
    def half_width(self) -> float:
        """Half the interval's width, of the logarithm: what such a comparison can't resolve."""
        return (math.log(self.high) - math.log(self.low)) / 2


@dataclass(frozen=True)
class Comparison:
    """What was found."""

    noise: Ratio
    """The first configuration against itself."""
    ratio: Ratio
    """The second against the first."""
    threshold: float
    """Of the ratio's logarithm: a difference has to be shown to be larger."""
    verdict: str
    """regression, improvement, no difference shown, or too few pairs."""

    @property
    def sentence(self) -> str:
        """The finding, with its count and spread."""
        change = f"{self.ratio.value:.3f}× (95 % interval {self.ratio.low:.3f} to {self.ratio.high:.3f})"
        noise = f"noise {self.noise.half_width:.1%} from {self.noise.pairs} pairs of the first with itself"
        return f"{self.verdict}: {change}, {self.ratio.pairs} pairs; {noise}"


@dataclass(frozen=True)
class TailDifference:
    """How much longer the second's slow chunks take."""

    percentile: int
    """Which."""
    value: float
    """Second minus first, in the unit of the samples."""
    low: float
    """Of the bootstrap's 95 % interval."""
    high: float
    """Of the bootstrap's 95 % interval."""


def compare(
    first: Callable[[], float], second: Callable[[], float], *, pairs: int = 300, seed: int = 0
) -> tuple[Comparison, list[Pair]]:
    """Measure `pairs` of the first with itself, then of the first with the second; return verdict and raw pairs.

    Both return a positive figure of one run, such as seconds of a chunk, smaller being better.
    """
    own = take_pairs(first, first, pairs=pairs, seed=seed)
    both = take_pairs(first, second, pairs=pairs, seed=seed + 1)
    return judge(own, both, seed=seed), both


def take_pairs(first: Callable[[], float], second: Callable[[], float], *, pairs: int, seed: int = 0) -> list[Pair]:
    """Measure both sides of each pair next to each other, in random order; a first pair is thrown away."""
    order, found = random.Random(seed), list[Pair]()
    for _ in range(pairs + 1):
        if order.random() < 0.5:
            one, other = first(), second()
        else:
            other, one = second(), first()
        found.append((one, other))
    return found[1:]


def judge(own: Sequence[Pair], both: Sequence[Pair], *, seed: int = 0) -> Comparison:
    """Apply the rule: a difference counts if its whole interval lies beyond 2 % and beyond the machine's own noise."""
    noise, ratio = ratio_of(own, seed=seed), ratio_of(both, seed=seed)
    # A first side that differs from itself is a bias of the measurement, and no smaller than that can be resolved.
    bias = max(abs(math.log(noise.low)), abs(math.log(noise.high))) if not noise.low <= 1 <= noise.high else 0.0
    threshold = max(math.log1p(LEAST_DIFFERENCE), noise.half_width, bias)
    if min(noise.pairs, ratio.pairs) < LEAST_PAIRS:
        verdict = TOO_FEW
    elif math.log(ratio.low) > threshold:
        verdict = REGRESSION
    elif math.log(ratio.high) < -threshold:
        verdict = IMPROVEMENT
    else:
        verdict = NO_DIFFERENCE
    return Comparison(noise, ratio, threshold, verdict)


def ratio_of(pairs: Sequence[Pair], *, seed: int = 0) -> Ratio:
    """Return the median ratio of second to first with its bootstrap interval.

    Raises:
        ValueError: No pairs, or a figure that isn't positive and finite.
    """
    figures = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    if not len(figures) or not (np.isfinite(figures).all() and (figures > 0).all()):
        raise ValueError(f"{len(figures)} pairs were given; a ratio needs at least one, of positive, finite figures")
    logs = np.log(figures[:, 1] / figures[:, 0])
    draws = np.random.default_rng(seed).integers(0, len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.percentile(np.median(logs[draws], axis=1), INTERVAL_PERCENT)
    return Ratio(float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high)), len(logs))


def tail_difference(
    first: Sequence[float], second: Sequence[float], *, percentile: int, seed: int = 0
) -> TailDifference | None:
    """Compare a high percentile of two series of chunks, resampling blocks of 10 neighbours.

    None where either holds too few: a tail needs at least 10 observations above it, and 10 blocks.
    """
    needed = max(BLOCK_CHUNKS * 10, math.ceil(10 / (1 - percentile / 100)))
    if min(len(first), len(second)) < needed:
        return None
    random_source = np.random.default_rng(seed)
    tails = [_tails(np.asarray(one, dtype=np.float64), percentile, random_source) for one in (first, second)]
    low, high = np.percentile(tails[1] - tails[0], INTERVAL_PERCENT)
    apart = _percentile(np.asarray(second), percentile) - _percentile(np.asarray(first), percentile)
    return TailDifference(percentile, float(apart), float(low), float(high))


def _tails(series: Values, percentile: int, random_source: np.random.Generator) -> Values:
    blocks = series[: len(series) // BLOCK_CHUNKS * BLOCK_CHUNKS].reshape(-1, BLOCK_CHUNKS)
    drawn = (blocks[random_source.integers(0, len(blocks), len(blocks))].ravel() for _ in range(RESAMPLES))
    return np.array([_percentile(one, percentile) for one in drawn])


def _percentile(series: Values, percentile: int) -> np.float64:
    rank = math.ceil(percentile / 100 * len(series)) - 1
    return np.partition(series, rank)[rank]
