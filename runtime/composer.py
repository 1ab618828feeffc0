# SPDX-License-Identifier: Apache-2.0
"""Lays the frames of a live stream into their still before they are due, so that a slow moment makes no picture late.

For 192x192 in 1080x1080 that takes 5 to 9 ms of one core, and on a shared virtual machine in one frame of a hundred 30
to 70 ms. Nothing is decided by it: what turns out not to be shown was composed for nothing, and what was not composed
in time is composed by who asks for it first.
"""

import logging
import threading
from collections.abc import Sequence

from .canvas import Canvas, Pixels

logger = logging.getLogger(__name__)

AHEAD = 3
"""Frames that are composed before their time, 120 ms."""

KEPT = AHEAD + 8
"""Pictures that are kept: those ahead, and those of a sink that is 0.3 s behind; who comes later composes anew."""


class Picture:
    """A frame in its still, composed once for all who ask."""

    def __init__(self, composer: "Composer", frame: Pixels) -> None:
        self.frame = frame
        """(h, w, 3) RGB; held so that its memory is nobody else's meanwhile."""
        self.made: Pixels | None = None
        """(1, H, W, 3), once it is there. As everything below, it belongs to the composer's lock."""
        self.is_being_made = self.was_tried = False
        self._composer = composer

    def composed(self) -> Pixels:
        """Return it, (1, H, W, 3) RGB, not to be written to; waits for who is at it already."""
        return self._composer.take(self)


class Composer:
    """For any number of threads. `start` begins composing ahead, in a daemon thread, and `close` ends it."""

    def __init__(self, canvas: Canvas) -> None:
        """Begin with nothing."""
        self._canvas = canvas
        self._changed = threading.Condition()
        self._pictures: dict[int, Picture] = {}  # by the frame's address; what was expected last comes last
        self._is_closed = False

    def start(self) -> None:
        """Compose from now on what is prepared."""
        threading.Thread(target=self._run, name="edgereels-composer", daemon=True).start()

    def prepare(self, frames: Sequence[Pixels]) -> None:
        """Expect frames, (h, w, 3) RGB each, to be shown next, in this order; returns at once."""
        with self._changed:
            for frame in () if self._is_closed else frames:
                picture = self._pictures.pop(_address(frame), None)
                self._pictures[_address(frame)] = picture or Picture(self, frame)
            self._forget()
            self._changed.notify_all()

    def picture(self, frame: Pixels) -> Picture:
        """Return the picture of a frame, expected or not."""
        with self._changed:
            picture = self._pictures.get(_address(frame))
            if picture is None:
                picture = Picture(self, frame)
                if not self._is_closed:
                    self._pictures[_address(frame)] = picture
                    self._forget()
            return picture

    def take(self, picture: Picture) -> Pixels:
        """Return what `Picture.composed` does."""
        with self._changed:
            self._changed.wait_for(lambda: not picture.is_being_made)
            if picture.made is not None:
                return picture.made
            picture.is_being_made = True
        return self._make(picture)

    def close(self) -> None:
        """End the thread, after the picture that it is at; `take` goes on without it."""
        with self._changed:
            self._is_closed = True
            self._pictures.clear()
            self._changed.notify_all()

    def _forget(self) -> None:
        for address in list(self._pictures)[:-KEPT]:
            self._pictures.pop(address).made = None

    def _make(self, picture: Picture) -> Pixels:
        try:
            made = self._canvas.compose(picture.frame[None])
        except BaseException:
            self._end(picture, None)
            raise
        self._end(picture, made)
        return made

    def _end(self, picture: Picture, made: Pixels | None) -> None:
        with self._changed:
            is_kept = self._pictures.get(_address(picture.frame)) is picture
            picture.made, picture.is_being_made = made if is_kept else None, False
            self._changed.notify_all()

    def _run(self) -> None:
        while (picture := self._next()) is not None:
            try:
                self._make(picture)
            except Exception:  # who needs the picture composes it again, and is told
                logger.debug("a picture could not be composed ahead", exc_info=True)

    def _next(self) -> Picture | None:
        """Wait for a picture that nobody is at, and claim it; None at the end."""
        with self._changed:
            while not self._is_closed:
                for picture in self._pictures.values():
                    if picture.made is None and not (picture.is_being_made or picture.was_tried):
                        picture.is_being_made = picture.was_tried = True
                        return picture
                self._changed.wait()
        return None


def _address(frame: Pixels) -> int:
    return frame.__array_interface__["data"][0]
