# SPDX-License-Identifier: Apache-2.0
"""What follows a fault: one chunk is thrown away, or the engine is opened anew, or the stream ends. Never a loop.

State that may be damaged is thrown away, not mended; and who fails too often within a stretch of time stops trying.
"""

from collections import deque
from enum import StrEnum

MOST_DISCARDS, DISCARDS_WITHIN_S = 2, 60.0
"""So many chunks may be thrown away within a minute; the next one opens the engine anew."""

MOST_REOPENINGS, REOPENINGS_WITHIN_S = 5, 600.0
"""So many times may the engine be opened anew within ten minutes; the next fault ends the stream."""

BACKOFF_S = (0.5, 1.0, 2.0, 5.0)
"""The wait before opening it the first, the second, … time within that stretch; then always the last."""


class Remedy(StrEnum):
    """What is to be done about a fault."""

    DISCARD = "discard"
    """Throw the chunk away, with what was carried over from it; go on from the last good key frame."""
    REOPEN = "reopen"
    """Close the engine, wait, open it."""
    GIVE_UP = "give up"
    """End the stream as FAILED."""


class Recovery:
    """Counts faults. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._discards_s: deque[float] = deque(maxlen=MOST_DISCARDS + 1)
        self._reopenings_s: deque[float] = deque(maxlen=MOST_REOPENINGS + 1)

    def after(self, *, is_contained: bool, now_s: float) -> tuple[Remedy, float]:
        """Return what to do about a fault, and how many seconds to wait before.

        Args:
            is_contained: whether the fault is known to be in one chunk (numbers that aren't finite), so that the
                engine itself is sound.
            now_s: clock reading.
        """
        if is_contained:
            self._discards_s.append(now_s)
            if _within(self._discards_s, now_s, DISCARDS_WITHIN_S) <= MOST_DISCARDS:
                return Remedy.DISCARD, 0.0
            self._discards_s.clear()
        count = _within(self._reopenings_s, now_s, REOPENINGS_WITHIN_S)
        if count >= MOST_REOPENINGS:
            return Remedy.GIVE_UP, 0.0
        self._reopenings_s.append(now_s)
        return Remedy.REOPEN, BACKOFF_S[min(count, len(BACKOFF_S) - 1)]


def _within(times_s: deque[float], now_s: float, length_s: float) -> int:
    return sum(now_s - at_s <= length_s for at_s in times_s)
