# SPDX-License-Identifier: Apache-2.0
"""How much faster another engine would run the graphs that take the time: paired rounds, median and spread."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .engine import Array, Engine, Shapes

HEAVY = ("dit", "vae_decoder_next", "vae_encoder_next")
"""Graphs that take nearly all the time of a render: 0.9 of it for the embedded package."""
ROUNDS = 7
FEWEST_ROUNDS = 5
"""Below that a median says little."""
BUDGET_S = 3.0
"""Rounds stop at `FEWEST_ROUNDS` once they took that long."""

FASTER = 1.05
"""A round counts as faster above this: less is within what two runs of the same engine differ by."""

RoundTimes = Mapping[str, float]
"""Graph to milliseconds of one call."""


@dataclass(frozen=True)
class Load:
    """What one graph is given in a window."""

    feeds: Mapping[str, Array]
    """One call's inputs, copies of its own."""
    calls: int
    """How often it is called."""

    @property
    def shapes(self) -> Shapes:
        """Shapes of the inputs, to freeze an engine for."""
        return {name: value.shape for name, value in self.feeds.items()}


@dataclass
class LoadRecorder:
    """An `observe` callback that keeps, of each heavy graph, the inputs of the shape that is called most often."""

    calls: dict[str, int] = field(default_factory=dict[str, int])
    """Graph to number of calls, of every graph that ran."""
    _seen: dict[str, dict[tuple[tuple[int, ...], ...], tuple[int, dict[str, Array]]]] = field(default_factory=dict)

    def __call__(self, graph: str, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Take note of a run."""
        self.calls[graph] = self.calls.get(graph, 0) + 1
        if graph in HEAVY:
            shapes = tuple(value.shape for value in feeds.values())
            seen = self._seen.setdefault(graph, {})
            count, kept = seen[shapes] if shapes in seen else (0, {name: np.array(feeds[name]) for name in feeds})
            seen[shapes] = count + 1, kept

    def loads(self) -> dict[str, Load]:
        """Return what the heavy graphs were given."""
        most = {graph: max(seen.values(), key=lambda item: item[0]) for graph, seen in self._seen.items()}
        return {graph: Load(feeds, self.calls[graph]) for graph, (_count, feeds) in most.items()}


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one is as another, over paired rounds."""

    n: int
    """Rounds."""
    median: float
    """Of the ratios, round by round."""
    low: float
    """Smallest of them."""
    high: float
    """Largest of them."""
    wins: int
    """Rounds that were faster by more than `FASTER`."""


def interleave(
    contenders: Mapping[str, Mapping[str, Engine]],
    loads: Mapping[str, Load],
    *,
    clock_s: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> dict[str, list[RoundTimes]]:
    """Run every contender's graphs once a round, in a new order each round, after one round of warm-up.

    A machine that slows down for a while slows everybody's call of that moment: ratios are taken within a round.

    Args:
        contenders: name to its engines by graph, all of them frozen.
        loads: what each graph is given.
        clock_s: seconds.
        seed: of the orders.

    Returns:
        Contender to what each call took, round by round.
    """
    order = random.Random(seed)
    rounds: dict[str, list[RoundTimes]] = {name: [] for name in contenders}
    started_s = clock_s()
    for index in range(-1, ROUNDS):
        if index >= FEWEST_ROUNDS and clock_s() - started_s > BUDGET_S:
            break
        times: dict[str, dict[str, float]] = {name: {} for name in contenders}
        for graph, load in loads.items():
            for name in order.sample(sorted(contenders), len(contenders)):
                before_s = clock_s()
                contenders[name][graph].run(load.feeds)
                times[name][graph] = (clock_s() - before_s) * 1e3
        if index >= 0:
            for name, taken in times.items():
                rounds[name].append(taken)
    return rounds


def window_ms(taken: RoundTimes, loads: Mapping[str, Load]) -> float:
    """Return what one round's times make of a window, milliseconds."""
    return sum(taken[graph] * load.calls for graph, load in loads.items())


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Return how many times as fast ours is as theirs."""
    found = [their / our for their, our in zip(theirs, ours, strict=True)]
    wins = sum(value > FASTER for value in found)
    return Ratio(len(found), statistics.median(found), min(found), max(found), wins)
