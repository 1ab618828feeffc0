# SPDX-License-Identifier: Apache-2.0
"""Where the time of one live chunk goes: into graphs, between them, and into handing its frames over.

Every part is measured by itself, none as what the others leave: whether they add up to the chunk says something.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .clock import Clock
from .live_reports import GRAPH_STAGES


class LiveStages:
    """Of one chunk. Not safe for several threads at once."""

    def __init__(self, clock: Clock, graphs_s: Mapping[str, float]) -> None:
        """Begin.

        Args:
            clock: the stream's.
            graphs_s: seconds that graphs have run, by stage, since the stream began; somebody else adds to them.
        """
        self._clock, self._graphs_s = clock, graphs_s
        self._before, self._own_s = dict(graphs_s), dict[str, float]()

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """Count the body's time as a stage, that of the graphs which run in it left out."""
        began_s, graphs_s = self._clock.now_s(), sum(self._graphs_s.values())
        try:
            yield
        finally:
            own_s = self._clock.now_s() - began_s - (sum(self._graphs_s.values()) - graphs_s)
            self._own_s[name] = self._own_s.get(name, 0.0) + own_s

    def seconds(self) -> dict[str, float]:
        """Return seconds by stage: every one of `GRAPH_STAGES` that ran, and those that were counted `around`."""
        ran_s = {name: self._graphs_s.get(name, 0.0) - self._before.get(name, 0.0) for name in GRAPH_STAGES}
        return {name: length_s for name, length_s in ran_s.items() if length_s > 0} | self._own_s
