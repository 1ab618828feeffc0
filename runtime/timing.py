# SPDX-License-Identifier: Apache-2.0
"""The trace: what happened when, in one stream.

Every figure that is printed about a render can be computed again from its trace. The fields are in docs/trace.md.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Trace:
    """Events in the order in which they ended, each a flat mapping with `event`, `start_s` and `end_s`."""

    clock: Callable[[], float] = time.perf_counter
    """Seconds from any origin, never running backwards."""
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """One mapping per event."""
    origin_s: float | None = None
    """Clock reading that counts as 0; the first reading, unless given."""

    def now_s(self) -> float:
        """Return seconds since the trace began."""
        reading = self.clock()
        if self.origin_s is None:
            self.origin_s = reading
        return reading - self.origin_s

    def note(self, event: str, **fields: Any) -> None:
        """Record something without a length: what was asked, what was got."""
        at_s = self.now_s()
        self.events.append({"event": event, "start_s": at_s, "end_s": at_s, **fields})

    @contextmanager
    def span(self, event: str, **fields: Any) -> Iterator[None]:
        """Record how long the body takes."""
        start_s = self.now_s()
        try:
            yield
        finally:
            self.events.append({"event": event, "start_s": start_s, "end_s": self.now_s(), **fields})

    def total_s(self, event: str) -> float:
        """Return the summed length of all events of that name."""
        return sum(entry["end_s"] - entry["start_s"] for entry in self.events if entry["event"] == event)

    def write(self, path: Path) -> None:
        """Write one JSON object a line, aside first and then renamed."""
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                for entry in self.events:
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
