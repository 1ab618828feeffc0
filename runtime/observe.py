# SPDX-License-Identifier: Apache-2.0
"""Watching what graphs are given and what they make of it: what calibration and quality ladders feed on."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from .engine import Array, Engine, Shapes, Value

Observe = Callable[[str, Mapping[str, Array], Mapping[str, Array]], None]
"""Called after every run with (graph, feeds, outputs), all of them arrays. They are valid during the call only: copy
what is to be kept, change nothing."""


class ObservedEngine:
    """An engine whose runs somebody watches. Nothing stays on a device, so that everything can be looked at."""

    def __init__(self, engine: Engine, *, graph: str, observe: Observe) -> None:
        self._engine = engine
        self._graph = graph
        self._observe = observe

    @property
    def library(self) -> str:
        """What runs the graph."""
        return self._engine.library

    @property
    def provider(self) -> str:
        """The part of the library that runs it."""
        return self._engine.provider

    @property
    def precision(self) -> str:
        """Arithmetic precision in use."""
        return self._engine.precision

    @property
    def node_counts(self) -> Mapping[str, int]:
        """Provider to how many operators it runs."""
        return self._engine.node_counts

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names that `run` expects."""
        return self._engine.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names that `run` returns."""
        return self._engine.output_names

    def freeze(self, shapes: Sequence[Shapes]) -> None:
        """Make ready for inputs of these shapes."""
        self._engine.freeze(shapes)

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        """Run the graph once, and tell the observer; `keep` is an offer that is not taken."""
        given = {name: np.asarray(feeds[name]) for name in self._engine.input_names if name in feeds}
        made = self._engine.run(given)
        self._observe(self._graph, given, made)
        return made

    def close(self) -> None:
        """Free the graph."""
        self._engine.close()
