# SPDX-License-Identifier: Apache-2.0
"""A window that shows the newest frame of a live stream, on OpenCV."""

import atexit
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from .errors import OutputError
from .live_sinks import LiveSink, Media, SinkClosed
from .opencv import import_cv2, is_behind_av

Result = TypeVar("Result")

ESCAPE = 27
CLOSING_KEYS = frozenset({ESCAPE, ord("q"), ord("Q")})


class NoDisplayError(OutputError):
    """There is no screen that a window could be opened on."""

    code = "NO_DISPLAY"


class VideoWindow(LiveSink):
    """Shows the last frame of what it is given; closed by Escape, q or the window's own cross.

    May be used from any one thread: see `WindowThread`. On macOS that must be the process's first thread, so call
    `SinkWorker.run` there.
    """

    def __init__(self, title: str, *, full_screen: bool = False, module: Any = None) -> None:
        """Check that a window can be opened; nothing is shown yet.

        Args:
            title: of the window.
            full_screen: fill the screen, keeping the picture's proportions; on X11 a window manager has to be there.
            module: what stands for cv2.

        Raises:
            NoDisplayError: there is no screen. (OpenCV itself would end the process.)
            MissingExtraError: OpenCV is not installed.
        """
        if module is None:
            check_display()
            if is_behind_av():
                raise NoDisplayError(
                    "PyAV was imported before OpenCV, whose windows hang then; expected OpenCV first: put `import cv2` "
                    "at the top of the program"
                )
            module = import_cv2(purpose="showing a window")
        self._cv2, self._title, self._full_screen = module, title, full_screen
        self._sized = False
        self.closed = False
        """Whether somebody closed the window."""

    def __enter__(self) -> Self:
        WindowThread.call(self._open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(self._cv2.error):  # a window that the user closed is gone already
            WindowThread.call(lambda: self._cv2.destroyWindow(self._title))

    def write(self, media: Media) -> None:
        """Show the last of the frames, and look whether the window was closed."""
        newest = media.frames[-1]
        WindowThread.call(lambda: self._show(newest))
        self.idle()

    def idle(self) -> None:
        """Let the window answer to the user."""
        pressed, is_visible = WindowThread.call(self._answer)
        if not is_visible or (pressed >= 0 and (pressed & 0xFF) in CLOSING_KEYS):
            self.closed = True
            raise SinkClosed("the window was closed", code="WINDOW_CLOSED")

    def _open(self) -> None:
        cv2 = self._cv2
        try:  # GUI_NORMAL: no toolbar and no status line, which Qt builds take from the picture's room
            cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:  # a build without windows (opencv-python-headless)
            reason = str(error).splitlines()[0]
            raise NoDisplayError(
                f"OpenCV can't open a window ({reason}); expected a build with windows: pip install opencv-python in "
                "place of opencv-python-headless"
            ) from error
        if self._full_screen:
            cv2.setWindowProperty(self._title, cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_FULLSCREEN)

    def _show(self, newest: Any) -> None:
        if not (self._sized or self._full_screen):
            height, width = newest.shape[:2]
            self._cv2.resizeWindow(self._title, width, height)
        self._sized = True
        self._cv2.imshow(self._title, self._cv2.cvtColor(newest, self._cv2.COLOR_RGB2BGR))

    def _answer(self) -> tuple[int, bool]:
        """Return the key that was pressed, -1 for none, and whether the window is there."""
        pressed = self._cv2.waitKey(1)  # milliseconds, the shortest; also what draws the window
        return pressed, self._cv2.getWindowProperty(self._title, self._cv2.WND_PROP_VISIBLE) >= 1


class WindowThread:
    """The one thread of the process that calls OpenCV's windows, begun when first needed.

    Qt, which draws them on Linux, wants all its calls from the thread that made its first window, as long as the
    process lives: a second window from another thread would hang. macOS wants its first thread: there the caller's is
    taken.
    """

    _calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] | None = None
    _beginning = threading.Lock()

    @classmethod
    def call(cls, function: Callable[[], Result]) -> Result:
        """Return what a function returns, or raise what it raises."""
        if sys.platform == "darwin":
            return function()
        future: Future[Result] = Future()
        cls._queue().put((function, future))
        return future.result()

    @classmethod
    def _queue(cls) -> queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]:
        with cls._beginning:
            if cls._calls is None:
                cls._calls = queue.SimpleQueue()
                thread = threading.Thread(target=cls._run, args=(cls._calls,), name="edgereels-opencv", daemon=True)
                thread.start()
                atexit.register(cls._end, cls._calls, thread)
            return cls._calls

    @staticmethod
    def _end(calls: queue.SimpleQueue[Any], thread: threading.Thread) -> None:
        """Let the thread end by itself: killed with the interpreter, Qt's would take the process down (SIGABRT)."""
        calls.put(None)
        thread.join(1.0)

    @staticmethod
    def _run(calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
        while (call := calls.get()) is not None:
            function, future = call
            try:
                future.set_result(function())
            except BaseException as error:  # the caller's to deal with
                future.set_exception(error)


def check_display() -> None:
    """Raise `NoDisplayError` where a window would end the process: on Linux without an X server to talk to."""
    if not sys.platform.startswith("linux"):
        return
    display = os.environ.get("DISPLAY", "")
    if not display:
        raise NoDisplayError(
            "DISPLAY is not set; expected a screen to open a window on: start it in a desktop session, or under "
            "xvfb-run, or leave the window out"
        )
    host, _colon, number = display.rpartition(":")
    if host in ("", "unix") and not _answers(number.partition(".")[0]):
        raise NoDisplayError(
            f"no X server answers at DISPLAY={display}; expected the screen of a running desktop session: set DISPLAY "
            "to it, or leave the window out"
        )


def _answers(number: str) -> bool:
    """Return whether an X server of this machine takes a connection, by its file or by its abstract name."""
    for address in (f"/tmp/.X11-unix/X{number}", f"\0/tmp/.X11-unix/X{number}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.settimeout(1.0)
            probe.connect(address)
            return True
    return False
