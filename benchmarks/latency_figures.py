# SPDX-License-Identifier: Apache-2.0
"""Figures that a count can carry: percentiles, miss rates, slopes, stalls and freezes, each with its uncertainty.

Pure arithmetic on numbers. A percentile is an observed value (an order statistic, nothing interpolated), and is left
out where too few were observed: by the rule of MLPerf's early stopping, at 99 % confidence, p50 takes 11 observations,
p90 64, p95 130 and p99 662.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)
CONFIDENCE_OF_COUNT = 0.99
"""Of the bound that the count has to carry; MLPerf's."""
CONFIDENCE = 0.95
"""Of every interval that is printed."""
LEAST_ABOVE = 1
"""So many observations must lie above the bound: with none, one outlier alone would be the percentile."""
MOST_SLOPE_POINTS = 600
"""Theil–Sen looks at all pairs: 180 000 of them. Longer series are reduced to medians of equal stretches first."""
FREEZE_FACTOR, FREEZE_MARGIN_S = 3.0, 0.150
"""A freeze is an interval above max(3 x mean, mean + 150 ms), as WebRTC's statistics count it."""
Z_95 = 1.959963984540054
"""Half-width of the normal distribution's 95 % interval, in standard deviations."""


def binomial_cdf(count: int, share: float) -> Values:
    """Return P(at most k of `count` independent trials succeed) for k = 0 … count, shape (count + 1,)."""
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} was given; it lies between 0 and 1")
    if share in (0.0, 1.0):
        return np.concatenate([np.full(count, 1.0 - share), [1.0]])
    k = np.arange(count, dtype=np.float64)
    steps = np.log((count - k) / (k + 1)) + math.log(share / (1 - share))
    terms = np.concatenate([[0.0], np.cumsum(steps)]) + count * math.log1p(-share)
    return np.minimum(1.0, np.cumsum(np.exp(terms)))


def carries(percentile: int, count: int) -> bool:
    """Tell whether `count` observations are enough to print that percentile."""
    if count <= LEAST_ABOVE:
        return False
    return bool(binomial_cdf(count, 1 - percentile / 100)[LEAST_ABOVE] <= 1 - CONFIDENCE_OF_COUNT)


def percentile_of(ordered: Values, percentile: int) -> dict[str, float] | None:
    """Return an ascending series' percentile, or None where its count doesn't carry it.

    `value` is the order statistic, `low` and `high` its 95 % interval, `upper99` the bound that the true percentile
    stays below with 99 % confidence (early stopping: the highest observations that may be dropped are dropped).
    The intervals take observations for independent; late chunks come in bursts, so they are lower bounds of doubt.
    """
    count, share = len(ordered), percentile / 100
    if not carries(percentile, count):
        return None
    below = binomial_cdf(count, share)  # below[k]: at most k observations lie under the true percentile
    tail = (1 - CONFIDENCE) / 2
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left"))
    droppable = int(np.searchsorted(binomial_cdf(count, 1 - share), 1 - CONFIDENCE_OF_COUNT, side="right")) - 1
    return {
        "value": float(ordered[math.ceil(share * count) - 1]),
        "low": float(ordered[max(0, low - 1)]),
        "high": float(ordered[min(count - 1, high)]),
        "upper99": float(ordered[count - 1 - droppable]),
    }


def distribution(values: Sequence[float] | Values, *, unit: str) -> dict[str, Any]:
    """Return count, extremes, mean, MAD and the percentiles that the count carries; all None where nothing was seen."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not np.isfinite(ordered).all():
        raise ValueError("a series holds NaN or infinity; a figure needs finite numbers")
    seen = len(ordered) > 0
    return {
        "n": len(ordered),
        "unit": unit,
        "min": float(ordered[0]) if seen else None,
        "mean": float(ordered.mean()) if seen else None,
        "max": float(ordered[-1]) if seen else None,
        "mad": median_deviation(ordered) if seen else None,
        **{f"p{percentile}": percentile_of(ordered, percentile) for percentile in PERCENTILES},
    }


def median_deviation(values: Values) -> float:
    """Return the median distance from the median."""
    return float(np.median(np.abs(values - np.median(values))))


def share_of(hits: int, count: int) -> dict[str, Any]:
    """Return hits / count with its exact (Clopper–Pearson) 95 % interval; the share is None where count is 0."""
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} of {count} were given; hits lie between 0 and the count")
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else _share_where(lambda share: 1 - binomial_cdf(count, share)[hits - 1] > tail)
    high = 1.0 if hits == count else _share_where(lambda share: binomial_cdf(count, share)[hits] < tail)
    return {"hits": hits, "n": count, "share": hits / count if count else None, "low": low, "high": high}


def _share_where(reached: Any) -> float:
    """Return the smallest share at which a rising condition holds, to 1e-9."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def slope(at: Sequence[float], values: Sequence[float]) -> dict[str, float] | None:
    """Return the Theil–Sen slope per unit of `at` with Sen's 95 % interval; None below 10 points.

    Sen's interval takes the points for independent. Neighbours in time are not: a machine is slow for seconds. It is
    widened as Hamed and Rao (Journal of Hydrology 204, 1998) do for the test that it belongs to.
    """
    x, y = _thinned(np.asarray(at, dtype=np.float64), np.asarray(values, dtype=np.float64))
    count = len(x)
    first, second = np.triu_indices(count, k=1)
    apart = x[second] - x[first]
    slopes = np.sort((y[second] - y[first])[apart > 0] / apart[apart > 0])
    if count < 10 or not len(slopes):
        return None
    middle = float(np.median(slopes))
    correlated = _correlation_factor(y - middle * x)
    spread = Z_95 * math.sqrt(correlated * count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))
    return {"value": middle, "low": float(slopes[low]), "high": float(slopes[high])}


def _correlation_factor(residuals: Values) -> float:
    """Return by how much the correlation of neighbours widens the variance of Kendall's sum: 1 where there is none.

    Counted are the autocorrelations of the ranks from lag 1 on, up to the first that independent points could give as
    well: those beyond would add noise alone.
    """
    count = len(residuals)
    ranks = np.argsort(np.argsort(residuals, kind="stable"), kind="stable") - (count - 1) / 2
    power = float(ranks @ ranks)
    total = 0.0
    for lag in range(1, count // 2):
        correlation = float(ranks[:-lag] @ ranks[lag:]) / power
        if correlation <= Z_95 / math.sqrt(count):
            break
        total += (count - lag) * (count - lag - 1) * (count - lag - 2) * correlation
    return 1 + 2 * total / (count * (count - 1) * (count - 2))


def _thinned(x: Values, y: Values) -> tuple[Values, Values]:
    if len(x) != len(y):
        raise ValueError(f"a slope was asked of {len(x)} positions and {len(y)} values; they come in pairs")
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if len(x) <= MOST_SLOPE_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MOST_SLOPE_POINTS + 1).astype(int)
    spans = list(pairwise(edges))
    return np.array([x[a:b].mean() for a, b in spans]), np.array([np.median(y[a:b]) for a, b in spans])


@dataclass(frozen=True)
class Showing:
    """When a new frame was due and when it was on the screen."""

    due_s: float
    """By the schedule."""
    shown_s: float | None
    """By the clock; None: never, or the picture before it was shown in its place."""
    is_lost: bool = False
    """Whether nothing at all was shown in its slot: the viewer never got it."""


def stalls_of(frames: Sequence[Showing], *, fps: float) -> list[float]:
    """Return the lengths, in seconds, of the times without a new frame although one was due; in the order of `frames`.

    What is counted is a frame period or more beyond the time at which the next frame could have been there at the
    earliest: late frames that follow a stall at their own pace are late, not stalled again. A run of n lost frames is a
    stall of n periods at least, by how much ever their neighbours were early or late.
    """
    period_s = 1 / fps
    lengths_s: list[float] = []
    waiting_since_s: float | None = None
    last_s, lost = -math.inf, 0
    for frame in frames:
        waiting_since_s = frame.due_s if waiting_since_s is None else waiting_since_s
        lost += frame.is_lost
        if frame.shown_s is not None:
            waited_s = frame.shown_s - max(waiting_since_s, last_s + period_s)
            lengths_s.append(max(waited_s, lost * period_s))
            last_s, lost, waiting_since_s = frame.shown_s, 0, None
    if waiting_since_s is not None:  # nothing new came any more
        waited_s = frames[-1].due_s + period_s - max(waiting_since_s, last_s + period_s)
        lengths_s.append(max(waited_s, lost * period_s))
    return [length_s for length_s in lengths_s if length_s >= period_s * (1 - 1e-6)]


def freezes_of(intervals_s: Sequence[float]) -> list[float]:
    """Return the intervals between shown frames that a viewer calls a freeze."""
    if not len(intervals_s):
        return []
    mean_s = float(np.mean(np.asarray(intervals_s)))
    limit_s = max(FREEZE_FACTOR * mean_s, mean_s + FREEZE_MARGIN_S)
    return [interval_s for interval_s in intervals_s if interval_s > limit_s]


def interval_deviations(at_s: Sequence[float], media_s: Sequence[float]) -> Values:
    """Return by how much each interval is longer than the media in it, shape (n - 1,); their MAD is the jitter.

    `media_s[i]` is the length of item i, which the interval from item i to i + 1 is compared with.
    """
    return np.diff(np.asarray(at_s, dtype=np.float64)) - np.asarray(media_s, dtype=np.float64)[:-1]


def needed_speed(arrivals_s: Values, occupied_s: Values, due_s: Values) -> float | None:
    """Return the least multiple of this machine's speed at which no chunk is late; below 1 there is time to spare.

    Chunks are made one after another, each at the earliest when its sound is there; `occupied_s` is how long each
    held up the next. None where nothing was made, or where no speed would do: a chunk was due before its sound came.
    """
    if not len(due_s) or bool((due_s <= arrivals_s).any()):
        return None
    low, high = 1e-3, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _in_time(arrivals_s, occupied_s / middle, due_s) else (middle, high)
    return high


def _in_time(arrivals_s: Values, occupied_s: Values, due_s: Values) -> bool:
    # ready[i] = max over j <= i of arrivals[j] + sum of occupied[j … i], without a loop
    total_s = np.cumsum(occupied_s)
    ready_s = total_s + np.maximum.accumulate(arrivals_s - (total_s - occupied_s))
    return bool((ready_s <= due_s + 1e-9).all())
