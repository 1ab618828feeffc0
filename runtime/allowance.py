# SPDX-License-Identifier: Apache-2.0
"""How long after its sound the first chunk of an utterance is due.

It is what the machine needed at the start, and more where first chunks came late, until they come long before time.
A first chunk that is late says that too little was set aside, not that the machine is too slow for the rest: later
utterances are given more, and quality is left alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from .live_settings import LiveSettings

LEAST_ALLOWANCE_S, LEAST_FACTOR = 0.28, 1.4
"""Set aside for making the first chunk of an utterance, at least, and what the chunks after it may be late by as well;
enough where it is so many times what a window needs before its first frame is on."""

ALLOWANCE_FACTOR = 2.0
"""Times what a window needs is set aside where it is not. With 1.75 one of 624 chunks was 9 ms late where two cores
without AVX-512 worked at 0.69 of real time."""

MOST_MORE = 1.0
"""Times what was set aside at the start, it grows at most: beyond that the machine is busy with something else."""

TURNS_BEFORE_LESS = 12
"""So many first chunks in a row have to come a frame early and more, before a frame is given back."""


def allowance_s(head_start_s: float) -> float:
    """Return what is set aside for a window that is to be begun so long before its first frame is on."""
    is_enough = LEAST_FACTOR * head_start_s <= LEAST_ALLOWANCE_S
    return LEAST_ALLOWANCE_S if is_enough else ALLOWANCE_FACTOR * head_start_s


class Allowance:
    """In whole frames, for every quality. Not safe for several threads at once."""

    def __init__(
        self,
        head_starts_s: Mapping[LiveSettings, float],
        *,
        fps: float,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Begin with what windows needed at the start.

        Args:
            head_starts_s: of each quality, `WindowCost.head_start_s`.
            fps: frames per second.
            on_event: told of every change, `allowance`.
        """
        self._least = {each: math.ceil(allowance_s(needed_s) * fps - 1e-6) for each, needed_s in head_starts_s.items()}
        self._fps, self._on_event = fps, on_event
        self._more = 0  # frames
        self._early = 0  # first chunks in a row

    def of(self, settings: LiveSettings) -> float:
        """Return how long after its sound a first chunk of that quality is due, seconds."""
        least = self._least[settings]
        return (least + min(self._more, math.ceil(MOST_MORE * least))) / self._fps

    def observe(self, settings: LiveSettings, *, spare_s: float, now_s: float) -> None:
        """Take note of a first chunk.

        Args:
            settings: its quality.
            spare_s: how long before their places were decided its frames were there, the latest; negative: how late. As
                long as all that was set aside, or longer, it says nothing: they were queued behind others.
            now_s: clock reading.
        """
        before = self._more
        if spare_s < 0:
            most = math.ceil(MOST_MORE * self._least[settings])
            self._more, self._early = max(before, min(before + math.ceil(-spare_s * self._fps - 1e-6), most)), 0
        elif spare_s < self.of(settings) - 1e-6:
            self._early = self._early + 1 if spare_s >= 1 / self._fps - 1e-6 else 0
            if self._early >= TURNS_BEFORE_LESS and self._more:
                self._more, self._early = before - 1, 0
        if self._more != before and self._on_event is not None:
            told = {"event": "allowance", "code": "S_ALLOWANCE", "at_s": now_s, "allowance_s": self.of(settings)}
            self._on_event({**told, "spare_s": spare_s})
