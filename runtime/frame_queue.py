# SPDX-License-Identifier: Apache-2.0
"""Between the stream and one sink: a queue bounded in seconds of media, with a stated policy for a slow sink."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Item = TypeVar("Item")
Policy = Literal["drop_oldest", "block"]
"""`drop_oldest`: what is shown must be new (a window). `block`: everything must arrive (a file)."""
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class QueueCounts:
    """What went through a queue so far."""

    taken: int
    """Items that the queue accepted."""
    dropped: int
    """Items that were thrown away: for room, by `clear`, not accepted in time, or put after `close`."""
    longest_wait_s: float
    """Longest time that an item which was got had lain in the queue."""
    longest_block_s: float
    """Longest time that `put` had to wait for room."""


@dataclass(frozen=True)
class _Held(Generic[Item]):
    item: Item
    duration_s: float
    put_at_s: float


class FrameQueue(Generic[Item]):
    """First in, first out; any number of threads on either side. An item longer than the limit fits when alone."""

    def __init__(
        self,
        limit_s: float,
        *,
        policy: Policy = "drop_oldest",
        on_event: OnEvent | None = None,
        name: str = "sink",
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Make an empty queue.

        Args:
            limit_s: most that is held, seconds of media.
            policy: what `put` does when there is no room.
            on_event: told when the sink begins to be too slow (`sink_slow`) and when it has caught up
                (`sink_caught_up`), never once per frame; called from the thread that puts or gets.
            name: of the sink, for the events.
            now_s: clock reading in seconds, never running backwards.
        """
        if limit_s <= 0:
            raise ValueError(f"limit_s is {limit_s}; expected more than 0 seconds of media")
        if policy not in ("drop_oldest", "block"):
            raise ValueError(f"policy is {policy!r}; expected 'drop_oldest' or 'block'")
        self._limit_s, self._policy, self._name = limit_s, policy, name
        self._on_event, self._now_s = on_event, now_s
        self._changed = threading.Condition()
        self._held: deque[_Held[Item]] = deque()
        self._held_s = 0.0
        self._closed = False
        self._taken = self._dropped = 0
        self._longest_wait_s = self._longest_block_s = 0.0
        self._slow_since_s: float | None = None
        self._dropped_before = 0

    @property
    def counts(self) -> QueueCounts:
        """What went through so far."""
        with self._changed:
            return QueueCounts(self._taken, self._dropped, self._longest_wait_s, self._longest_block_s)

    @property
    def held_s(self) -> float:
        """Seconds of media in the queue."""
        with self._changed:
            return self._held_s

    @property
    def closed(self) -> bool:
        """Whether nothing is accepted any more."""
        return self._closed

    def put(self, item: Item, *, duration_s: float, timeout_s: float | None = None) -> bool:
        """Hand an item over; return whether it was accepted.

        Args:
            item: anything; the queue doesn't look at it.
            duration_s: its length, seconds of media.
            timeout_s: policy `block` waits for room at most this long, None: until there is; then the item counts as
                dropped. `drop_oldest` never waits.
        """
        with self._changed:
            event = self._make_room(duration_s, timeout_s)
            accepted = not self._closed and self._fits(duration_s)
            if accepted:
                self._held.append(_Held(item, duration_s, self._now_s()))
                self._held_s += duration_s
                self._taken += 1
                self._changed.notify_all()
            else:
                self._dropped += 1
        self._tell(event)
        return accepted

    def get(self, timeout_s: float | None = None) -> Item | None:
        """Return the oldest item; None when none came in time, or when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._closed, timeout_s)
            if not self._held:
                return None
            held = self._pop()
            self._longest_wait_s = max(self._longest_wait_s, self._now_s() - held.put_at_s)
            event = self._caught_up() if not self._held else None
            self._changed.notify_all()
        self._tell(event)
        return held.item

    def clear(self) -> list[Item]:
        """Empty the queue at once, for an interruption; return what was in it, oldest first. Counted as dropped."""
        with self._changed:
            thrown = [held.item for held in self._held]
            self._held.clear()
            self._held_s = 0.0
            self._dropped += len(thrown)
            event = self._caught_up()
            self._changed.notify_all()
        self._tell(event)
        return thrown

    def close(self) -> None:
        """Accept nothing more; what is held can still be got. Wakes everybody who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, duration_s: float) -> bool:
        return not self._held or self._held_s + duration_s <= self._limit_s + 1e-9  # sums of 0.04 s are not exact

    def _pop(self) -> _Held[Item]:
        held = self._held.popleft()
        self._held_s = self._held_s - held.duration_s if self._held else 0.0
        return held

    def _make_room(self, duration_s: float, timeout_s: float | None) -> dict[str, Any] | None:
        """Drop or wait until an item fits; return the event to tell, if the sink has just become slow."""
        if self._closed or self._fits(duration_s):
            return None
        event = self._became_slow()
        if self._policy == "drop_oldest":
            while not self._fits(duration_s):
                self._pop()
                self._dropped += 1
            return event
        began_s = self._now_s()
        self._changed.wait_for(lambda: self._closed or self._fits(duration_s), timeout_s)
        self._longest_block_s = max(self._longest_block_s, self._now_s() - began_s)
        return event

    def _became_slow(self) -> dict[str, Any] | None:
        if self._slow_since_s is not None:
            return None
        self._slow_since_s, self._dropped_before = self._now_s(), self._dropped
        return self._event("sink_slow", "S_SLOW", policy=self._policy, held_s=round(self._held_s, 6))

    def _caught_up(self) -> dict[str, Any] | None:
        if self._slow_since_s is None:
            return None
        lasted_s, self._slow_since_s = self._now_s() - self._slow_since_s, None
        dropped = self._dropped - self._dropped_before
        return self._event("sink_caught_up", "S_CAUGHT_UP", lasted_s=lasted_s, dropped=dropped)

    def _event(self, event: str, code: str, **fields: Any) -> dict[str, Any]:
        return {"event": event, "code": code, "at_s": self._now_s(), "sink": self._name, **fields}

    def _tell(self, event: dict[str, Any] | None) -> None:
        """Hand an event over, outside the lock: the listener may put or get."""
        if event is not None and self._on_event is not None:
            self._on_event(event)
