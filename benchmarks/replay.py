# SPDX-License-Identifier: Apache-2.0
"""Replays a workload through somebody's graphs and times it, subnetwork by subnetwork."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .workload import SUBNETWORKS, Array, Call, Workload, carried, read_workload, sqnr_db


def memory_mb() -> dict[str, float]:
    """Return this process's resident memory, MB (10⁶ bytes): now and at its peak; empty where the system keeps mum."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return {}
    kilobytes = {line.split(":")[0]: float(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"now": kilobytes["VmRSS"] * 1.024e-3, "peak": kilobytes["VmHWM"] * 1.024e-3}


class Replay(ABC):
    """A contender that runs graphs; how, its subclass says."""

    def __init__(self, *, workload: str, threads: int) -> None:
        self.workload: Workload = read_workload(Path(workload))
        self.threads = threads
        self._prepared = {
            name: [(call, self.prepare(call.graph, call.feeds)) for call in calls]
            for name, calls in self.workload.calls.items()
        }

    @abstractmethod
    def call(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run one graph; values are whatever the library takes and gives."""

    def prepare(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """Turn arrays into what `call` takes, before the clock runs."""
        return dict(feeds)

    def as_array(self, value: Any) -> Array:
        """Turn a value that `call` gave into an array."""
        return value

    def replay(self, subnetwork: str) -> tuple[float, list[tuple[Call, dict[str, Any]]]]:
        """Run a subnetwork's calls in order with caches carried over; return seconds and what came out."""
        made: list[tuple[Call, dict[str, Any]]] = []
        caches: dict[str, Any] = {}
        start_s = time.perf_counter()
        for call, feeds in self._prepared[subnetwork]:
            is_next = call.graph.endswith("_next")
            results = self.call(call.graph, {**feeds, **caches} if is_next else feeds)
            caches = carried(results)
            made.append((call, {name: results[name] for name in call.results}))
        return time.perf_counter() - start_s, made

    def run(self) -> dict[str, Any]:
        """Run the whole workload once; return seconds per subnetwork and per second of video."""
        spent = {name: self.replay(name)[0] / self.workload.media_s for name in SUBNETWORKS}
        return {"seconds": spent, "total": sum(spent.values())}

    def fidelity(self) -> dict[str, float]:
        """Return each subnetwork's SQNR in decibels against the recording, over everything but caches."""
        return {name: self.fidelity_of(name) for name in SUBNETWORKS}

    def fidelity_of(self, subnetwork: str) -> float:
        """Return one subnetwork's SQNR in decibels against the recording."""
        pairs = [
            (self.as_array(value), call.results[name])
            for call, results in self.replay(subnetwork)[1]
            for name, value in results.items()
        ]
        return sqnr_db([ours for ours, _ in pairs], [theirs for _, theirs in pairs])

    def memory(self) -> dict[str, float]:
        """Return resident memory now and at its peak, MB."""
        return memory_mb()
