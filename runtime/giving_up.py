# SPDX-License-Identifier: Apache-2.0
"""What a machine that is too slow gives up, in stated order, and when it takes it back.

First steps, then the length of the window, then new frames per second. Down at once when chunks cost more than they
last; up only after a long time of plenty, and only where the better level would leave time to spare as well.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from .errors import UsageError

BUDGET = 0.95
"""Of a chunk's length, what making it may cost: at 1 a backlog would never be worked off."""

SPARE = 0.3
"""Of a chunk's length, what has to be left over, at the better level too, before quality is taken back."""

QUIET_S = 30.0
"""How long that has to last; two misses within it mean too slow."""

LONGEST_QUIET_S = 960.0
"""The wait doubles, up to this, each time that a better level turned out too dear after all."""

JUDGED_CHUNKS = 8
"""The median of this many is compared with the budget."""


@dataclass(frozen=True)
class QualityLevel:
    """How one second of video is made."""

    steps: int
    """Denoising steps."""
    window: int
    """Frames denoised together."""
    frame_rate: float
    """New frames per second; each is shown as often as it takes to fill the video's own rate."""
    cost: float
    """Of a second of video, in any unit: only compared with other levels."""


def quality_levels(
    *,
    steps: Sequence[int],
    windows: Sequence[int],
    frame_rates: Sequence[float],
    cost: Callable[[int, int, float], float],
) -> tuple[QualityLevel, ...]:
    """Return the levels from what was asked for to the least: steps go first, then the window, then the frame rate.

    Args:
        steps: what to try, the wanted number first.
        windows: likewise.
        frame_rates: likewise.
        cost: of a second of video, for steps, window and frame rate.

    Raises:
        UsageError: a list is empty, or a level is no cheaper than the one before.
    """
    if not (steps and windows and frame_rates):
        raise UsageError("no steps, no windows or no frame rates to choose from; expected at least one of each")
    settings = [(number, windows[0], frame_rates[0]) for number in steps]
    settings += [(steps[-1], window, frame_rates[0]) for window in windows[1:]]
    settings += [(steps[-1], windows[-1], rate) for rate in frame_rates[1:]]
    levels = tuple(QualityLevel(*setting, cost=cost(*setting)) for setting in settings)
    for better, worse in pairwise(levels):
        if worse.cost >= better.cost:
            raise UsageError(
                f"{worse} is no cheaper than {better}; expected each level to cost less than the one before"
            )
    return levels


class GivingUp:
    """Chooses the level from what chunks cost. Not safe for several threads at once."""

    def __init__(
        self, levels: Sequence[QualityLevel], *, on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """Begin with the best level.

        Args:
            levels: each cheaper than the one before.
            on_event: called with each change, and when even the last level is too dear.
        """
        self.index = 0
        """Which level is on; 0 is what was asked for."""
        self.is_too_slow = False
        """Whether the last level is on and too dear."""
        self._levels, self._on_event = tuple(levels), on_event
        self._loads: deque[float] = deque(maxlen=JUDGED_CHUNKS)
        self._misses_s: deque[float] = deque(maxlen=2)
        self._plenty_since_s: float | None = None
        self._went_up_s: float | None = None
        self._quiet_s = QUIET_S

    @property
    def level(self) -> QualityLevel:
        """How the next chunk is to be made."""
        return self._levels[self.index]

    def observe(self, *, cost_s: float, media_s: float, missed: bool, now_s: float, spare_s: float = 0.0) -> bool:
        """Take note of a chunk that was made at the present level; a late one of an earlier level is not to be told.

        Args:
            cost_s: what making it took.
            media_s: how long it lasts.
            missed: whether it came too late, by itself (`Placed.waited_s`).
            now_s: clock reading.
            spare_s: how long before it was due it was there. Where that is more than it lasts, speech came faster than
                it is spoken, and what one slow moment costs can be worked off: no reason to give up anything.

        Returns:
            Whether the level has changed.
        """
        load = cost_s / media_s
        self._loads.append(load)
        if missed:
            self._misses_s.append(now_s)
        reason = self._too_dear(now_s, is_near=spare_s < media_s)
        if reason is not None:
            return self._down(reason, now_s)
        if self.is_too_slow and len(self._loads) == JUDGED_CHUNKS and median(self._loads) <= BUDGET:
            self.is_too_slow = False
            self._tell("quality_enough", "S_FAST_ENOUGH", now_s, "median")
        return self._perhaps_up(now_s)

    def _too_dear(self, now_s: float, *, is_near: bool) -> str | None:
        """Return what says that the level costs too much, or None; `is_near`: whether a miss is."""
        if len(self._misses_s) == 2 and now_s - self._misses_s[0] <= QUIET_S:
            return "misses"
        if is_near and len(self._loads) == JUDGED_CHUNKS and median(self._loads) > BUDGET:
            return "median"
        return None

    def _down(self, reason: str, now_s: float) -> bool:
        self._plenty_since_s = None
        if self.index + 1 == len(self._levels):
            if not self.is_too_slow:
                self.is_too_slow = True
                self._tell("too_slow", "S_TOO_SLOW", now_s, reason)
            self._misses_s.clear()
            return False
        if self._went_up_s is not None and now_s - self._went_up_s <= self._quiet_s:
            self._quiet_s = min(2 * self._quiet_s, LONGEST_QUIET_S)
        self._change(self.index + 1, reason, now_s)
        return True

    def _perhaps_up(self, now_s: float) -> bool:
        if self.index == 0:
            return False
        better = self._levels[self.index - 1]
        dearer = better.cost / self.level.cost
        if max(self._loads) * dearer > 1 - SPARE or (self._misses_s and now_s - self._misses_s[-1] <= QUIET_S):
            self._plenty_since_s = None
            return False
        if self._plenty_since_s is None:
            self._plenty_since_s = now_s
        if len(self._loads) < JUDGED_CHUNKS or now_s - self._plenty_since_s < self._quiet_s:
            return False
        self._change(self.index - 1, "spare", now_s)
        self._went_up_s = now_s
        return True

    def _change(self, index: int, reason: str, now_s: float) -> None:
        came_from, self.index = self.level, index
        self._loads.clear()  # what the other level costs says nothing about this one
        self._misses_s.clear()
        self._plenty_since_s = None
        self._tell("quality", "S_QUALITY", now_s, reason, came_from)

    def _tell(self, event: str, code: str, now_s: float, reason: str, came_from: QualityLevel | None = None) -> None:
        if self._on_event is None:
            return
        level = {"steps": self.level.steps, "window": self.level.window, "frame_rate": self.level.frame_rate}
        entry = {"event": event, "code": code, "at_s": now_s, "reason": reason, "level": self.index, **level}
        if came_from is not None:
            entry["is_better"] = self.level.cost > came_from.cost
        self._on_event(entry)
