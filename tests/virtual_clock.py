# SPDX-License-Identifier: Apache-2.0
"""A clock that a test moves: a day passes in as long as it takes to compute it."""

import heapq
import itertools
import threading
import time
from dataclasses import dataclass, field


@dataclass(order=True)
class Waiter:
    at_s: float
    number: int
    thread: threading.Thread = field(compare=False)
    released: bool = field(default=False, compare=False)


class VirtualClock:
    """Stands still until `advance`; those who wait wake in the order of their times, one after the other.

    `advance` lets a thread that it woke run until it waits again, ends, or `patience_s` have passed in the real world
    (it may wait for something else), before time moves on.
    """

    def __init__(self, start_s: float = 0.0, *, patience_s: float = 0.1) -> None:
        self._now_s = start_s
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._waiters: list[Waiter] = []
        self._number = itertools.count()
        self._running: threading.Thread | None = None

    def now_s(self) -> float:
        return self._now_s

    def wait_until(self, at_s: float, wake: threading.Event | None = None) -> bool:
        with self._changed:
            if wake is not None and wake.is_set():
                return False
            if self._now_s >= at_s:
                return True
            waiter = Waiter(at_s, next(self._number), threading.current_thread())
            heapq.heappush(self._waiters, waiter)
            if self._running is waiter.thread:
                self._running = None
            self._changed.notify_all()
            while not waiter.released:
                if wake is not None and wake.is_set():
                    self._waiters.remove(waiter)
                    heapq.heapify(self._waiters)
                    return False
                self._changed.wait(None if wake is None else 0.001)  # nobody tells a condition that an event was set
            return wake is None or not wake.is_set()

    def advance(self, by_s: float) -> None:
        """Let so many seconds pass."""
        if by_s < 0:
            raise ValueError(f"time can't go back by {-by_s} s")
        with self._changed:
            target_s = self._now_s + by_s
            while self._waiters and self._waiters[0].at_s <= target_s:
                waiter = heapq.heappop(self._waiters)
                self._now_s = max(self._now_s, waiter.at_s)
                self._running, waiter.released = waiter.thread, True
                self._changed.notify_all()
                self._let_run(waiter.thread)
            self._now_s = target_s

    def until_waiting(self, threads: int, *, timeout_s: float = 5.0) -> None:
        """Block, in the real world, until so many threads wait."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._waiters) >= threads, timeout_s):
                raise TimeoutError(f"{len(self._waiters)} threads wait for the clock, expected {threads}")

    def _let_run(self, thread: threading.Thread) -> None:
        last_s = time.perf_counter() + self._patience_s
        while self._running is thread and thread.is_alive() and time.perf_counter() < last_s:
            self._changed.wait(0.001)
        self._running = None
