# SPDX-License-Identifier: Apache-2.0
"""The master clock of a live stream where no sound device keeps it: how much sound would have been heard.

Media time is seconds of sound that the clock has played, silence included. Sound that is written gets the media time at
which it will be heard; what belongs to it is shown then, so a late, dry or lost device can't part sound and picture.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .frame_queue import OnEvent
from .sound_queue import SoundQueue


class SilentClock:
    """Plays nothing, on time: the clock where there is no sound device. Any thread may call anything."""

    def __init__(
        self,
        sample_rate: int = 16000,
        *,
        on_event: OnEvent | None = None,
        now_s: Callable[[], float] = time.perf_counter,
        limit_s: float = 30.0,
    ) -> None:
        """Make a clock that begins with `with`.

        Args:
            sample_rate: of the sound, Hz.
            on_event: told `underrun` when sound runs out within an utterance, from whichever thread notices.
            now_s: clock reading in seconds, never running backwards.
            limit_s: most sound that is queued, seconds.
        """
        self._rate, self._on_event, self._now_s = sample_rate, on_event, now_s
        self._queue = SoundQueue(sample_rate, limit_s=limit_s)
        self._lock = threading.RLock()
        self._told: deque[dict[str, Any]] = deque()
        self._reached = 0.0
        self._silent_from: tuple[float, float] = (0.0, now_s())
        self._underruns_told = 0

    def __enter__(self) -> Self:
        self._silent_from = (self._reached, self._now_s())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell()

    @property
    def underruns(self) -> int:
        """How often sound ran out within an utterance."""
        return self._queue.underruns

    @property
    def underrun_s(self) -> float:
        """Seconds of silence that this put into utterances."""
        return self._queue.dry_samples / self._rate

    def position_s(self) -> float:
        """Return the media time that is heard now; never runs backwards."""
        with self._lock:
            position_s = self._advance() / self._rate
        self._tell()
        return position_s

    def write(self, sound: npt.NDArray[np.float32], *, is_last: bool = True, not_before_s: float = 0.0) -> float:
        """Queue sound; return the media time at which its first sample will be heard.

        Args:
            sound: (n,) in [-1, 1], mono; copied.
            is_last: whether the utterance ends here; if not, running dry afterwards counts as an underrun.
            not_before_s: earliest media time at which it may be heard.

        Raises:
            SoundAheadError: more than the limit would be queued.
        """
        with self._lock:
            self._advance()
            start = self._queue.put(sound, is_last=is_last, not_before=round(not_before_s * self._rate))
        self._tell()
        return start / self._rate

    @property
    def end_s(self) -> float:
        """Media time at which what is queued has been heard."""
        return self._queue.stop / self._rate

    @property
    def taken_s(self) -> float:
        """Media time up to which sound was handed to the device, if there is one: what comes for before is too late."""
        with self._lock:
            self._advance()
            return self._queue.taken / self._rate

    def clear(self) -> float:
        """Stop the sound, with a ramp of 5 ms; return the media time from which it is silent.

        What the device holds already is still heard: that is why the time may lie ahead of `position_s`.
        """
        with self._lock:
            self._advance()
            return self._queue.clear() / self._rate

    def _advance(self) -> float:
        """Bring everything up to now; return the position, samples. The lock is held."""
        self._reached = max(self._reached, self._estimate(self._now_s()))
        if self._queue.underruns > self._underruns_told:
            self._underruns_told = self._queue.underruns
            self._note("underrun", "AUDIO_UNDERRUN", count=self._underruns_told, media_s=self._reached / self._rate)
        return self._reached

    def _estimate(self, now_s: float) -> float:
        """Return the position by the monotonic clock, samples, and let the queue follow."""
        position, since_s = self._silent_from
        reached = position + (now_s - since_s) * self._rate
        self._queue.skip_to(int(reached))
        return reached

    def _note(self, event: str, code: str, **fields: Any) -> None:
        """Keep an event to be told by a thread that has time: never the device's own."""
        self._told.append({"event": event, "code": code, "at_s": self._now_s(), **fields})

    def _tell(self) -> None:
        while self._told and self._on_event is not None:
            try:
                event = self._told.popleft()
            except IndexError:  # another thread tells too
                return
            self._on_event(event)
