# SPDX-License-Identifier: Apache-2.0
"""What time it is in a live stream: a clock that only runs forward, and that a test can replace by one it moves itself.

Nothing in a live stream reads the time of day: it jumps when somebody sets it.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Seconds from any origin, never running backwards; safe for any number of threads."""

    def now_s(self) -> float:
        """Return the reading."""
        ...

    def wait_until(self, at_s: float, wake: threading.Event | None = None) -> bool:
        """Sleep until a reading.

        Returns:
            True when the time had come; False if `wake` was set, also when both hold: a loop that is behind its time
            still sees that it was asked to end.
        """
        ...


SAME_MOMENT_S = 0.001
"""Two readings that lie no further apart count as one."""

_MOST_READINGS = 5


def read_together(position_s: Callable[[], float], clock: Clock) -> tuple[float, float]:
    """Return a media time and the clock's reading at that moment.

    A pause of the thread between two readings would pass for one of the sound: they are taken again until they lie
    together, a few times at most.
    """
    before_s, media_s, after_s = clock.now_s(), position_s(), clock.now_s()
    for _again in range(_MOST_READINGS - 1):
        if after_s - before_s <= SAME_MOMENT_S:
            break
        before_s, media_s, after_s = after_s, position_s(), clock.now_s()
    return media_s, after_s


class MonotonicClock:
    """The machine's own clock, which nobody sets."""

    def now_s(self) -> float:
        """Return the reading."""
        return time.perf_counter()  # time.monotonic moves in steps of 16 ms on Windows

    def wait_until(self, at_s: float, wake: threading.Event | None = None) -> bool:
        """Sleep until a reading; False if `wake` was set."""
        while (left_s := at_s - self.now_s()) > 0:
            if wake is None:
                time.sleep(left_s)
            elif wake.wait(min(left_s, threading.TIMEOUT_MAX)):
                return False
        return wake is None or not wake.is_set()
