# SPDX-License-Identifier: Apache-2.0
"""Lays the frames of a live stream into their still before they are due, so that a slow moment makes no picture late.

For 192x192 in 1080x1080 that takes 5 to 9 ms of one core, and on a shared virtual machine in one frame of a hundred 30
to 70 ms. Nothing is decided by it: what turns out not to be shown was composed for nothing.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from .canvas import Canvas, Pixels

AHEAD = 3
"""Frames that are composed before their time, 120 ms."""

_KEPT = AHEAD + 2  # pictures: those ahead, the one that is on, and the one before, for a sink that is behind


@dataclass(frozen=True, eq=False)
class _Made:
    """A picture that is being made, or is there."""

    frame: Pixels
    """Of which; held so that its memory is nobody else's meanwhile."""
    picture: Future[Pixels]
    """(1, H, W, 3)."""


class Composer:
    """For any number of threads; `close` ends its own."""

    def __init__(self, canvas: Canvas) -> None:
        """Begin with nothing."""
        self._canvas = canvas
        self._lock = threading.Lock()
        self._made: dict[int, _Made] = {}  # by the frame's address; the last one was wanted last
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="edgereels-composer")

    def prepare(self, frames: Sequence[Pixels]) -> None:
        """Compose frames, (h, w, 3) RGB each, that will probably be shown next; returns at once."""
        with self._lock:
            if self._pool is None:
                return
            for frame in frames:
                made = self._made.pop(_address(frame), None)
                if made is None:
                    made = _Made(frame, self._pool.submit(self._canvas.compose, frame[None]))
                self._made[_address(frame)] = made
            for forgotten in list(self._made)[:-_KEPT]:
                self._made.pop(forgotten).picture.cancel()

    def compose(self, frame: Pixels) -> Pixels:
        """Return the still with a frame in it, (1, H, W, 3); the same array each time, not to be written to."""
        with self._lock:
            made = self._made.get(_address(frame))
        if made is None or not (made.picture.running() or made.picture.done()) or made.picture.cancelled():
            return self._canvas.compose(frame[None])
        return made.picture.result()

    def close(self) -> None:
        """End the thread; `compose` goes on without it."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._made.clear()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _address(frame: Pixels) -> int:
    return frame.__array_interface__["data"][0]
