# SPDX-License-Identifier: Apache-2.0
"""The trace: what happened when, in one stream.

Every figure that is printed about a render can be computed again from its trace. The fields are in docs/trace.md.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .sinks import LinesSink


@dataclass
class Trace:
    """Events in the order in which they ended, each a flat mapping with `event`, `start_s` and `end_s`."""

    clock: Callable[[], float] = time.perf_counter
    """Seconds from any origin, never running backwards."""
    keep: bool = True
    """Whether `events` is filled; a long stream makes many."""
    on_event: Callable[[dict[str, Any]], None] | None = None
    """Called with each event."""
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """One mapping per event."""
    origin_s: float | None = None
    """Clock reading that counts as 0; the first reading, unless given."""
    first_start_s: dict[str, float] = field(default_factory=dict[str, float])
    """When the first event of each name began."""
    last_end_s: float = 0.0
    """When the last event ended."""

    def now_s(self) -> float:
        """Return seconds since the trace began."""
        reading = self.clock()
        if self.origin_s is None:
            self.origin_s = reading
        return reading - self.origin_s

    def note(self, event: str, **fields: Any) -> None:
        """Record something without a length: what was asked, what was got."""
        at_s = self.now_s()
        self._record({"event": event, "start_s": at_s, "end_s": at_s, **fields})

    @contextmanager
    def span(self, event: str, **fields: Any) -> Iterator[None]:
        """Record how long the body takes."""
        start_s = self.now_s()
        try:
            yield
        finally:
            self._record({"event": event, "start_s": start_s, "end_s": self.now_s(), **fields})

    def _record(self, entry: dict[str, Any]) -> None:
        self.first_start_s.setdefault(entry["event"], entry["start_s"])
        self.last_end_s = entry["end_s"]
        if self.keep:
            self.events.append(entry)
        if self.on_event is not None:
            self.on_event(entry)

    def total_s(self, event: str) -> float:
        """Return the summed length of all kept events of that name."""
        return sum(entry["end_s"] - entry["start_s"] for entry in self.events if entry["event"] == event)

    def write(self, path: Path) -> None:
        """Write the kept events, one JSON object a line, aside first and then renamed."""
        with LinesSink(path) as lines:
            for entry in self.events:
                lines.write(entry)
