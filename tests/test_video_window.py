# SPDX-License-Identifier: Apache-2.0
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgereels.runtime.frame_queue import FrameQueue
from edgereels.runtime.live_sinks import SinkClosed, SinkWorker
from edgereels.runtime.video_window import NoDisplayError, VideoWindow, check_display


class FakeOpenCv:
    """Keeps what was shown; `key` is what the user presses, `visible` whether the window is there."""

    error = type("error", (Exception,), {})
    WINDOW_NORMAL, WINDOW_KEEPRATIO, WINDOW_GUI_NORMAL = 0, 0, 16
    WND_PROP_FULLSCREEN, WINDOW_FULLSCREEN, WND_PROP_VISIBLE = 0, 1, 4
    COLOR_RGB2BGR = 4

    def __init__(self, *, key: int = -1, visible: float = 1.0, has_windows: bool = True) -> None:
        self.key, self.visible, self.has_windows = key, visible, has_windows
        self.calls: list[str] = []
        self.shown: list[np.ndarray] = []
        self.size: tuple[int, int] | None = None

    def namedWindow(self, title: str, flags: int) -> None:  # noqa: N802 - OpenCV's own names
        assert flags & self.WINDOW_GUI_NORMAL  # with a toolbar the picture would be smaller than the window
        if not self.has_windows:
            raise self.error("The function is not implemented\nmore")
        self.calls.append("open")

    def setWindowProperty(self, title: str, which: int, value: int) -> None:  # noqa: N802
        self.calls.append("full screen")

    def resizeWindow(self, title: str, width: int, height: int) -> None:  # noqa: N802
        self.size = (width, height)

    def destroyWindow(self, title: str) -> None:  # noqa: N802
        self.calls.append("close")
        if not self.visible:
            raise self.error("no such window")

    def cvtColor(self, picture: np.ndarray, code: int) -> np.ndarray:  # noqa: N802
        return picture[..., ::-1]

    def imshow(self, title: str, picture: np.ndarray) -> None:
        self.shown.append(picture)

    def waitKey(self, wait_ms: int) -> int:  # noqa: N802
        return self.key

    def getWindowProperty(self, title: str, which: int) -> float:  # noqa: N802
        return self.visible


def media(*colours: tuple[int, int, int]) -> SimpleNamespace:
    return SimpleNamespace(frames=np.array([np.full((4, 6, 3), colour, np.uint8) for colour in colours]))


def test_the_newest_frame_is_shown_with_its_colours() -> None:
    module = FakeOpenCv()
    with VideoWindow("t", module=module) as window:
        window.write(media((1, 2, 3), (10, 20, 30)))
    assert [tuple(picture[0, 0]) for picture in module.shown] == [(30, 20, 10)]
    assert module.size == (6, 4)
    assert module.calls == ["open", "close"]
    assert not window.closed


def test_full_screen_is_asked_for() -> None:
    module = FakeOpenCv()
    with VideoWindow("t", full_screen=True, module=module) as window:
        window.write(media((0, 0, 0)))
    assert "full screen" in module.calls
    assert module.size is None


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(FakeOpenCv(key=27), id="escape"),
        pytest.param(FakeOpenCv(key=ord("q")), id="q"),
        pytest.param(FakeOpenCv(key=0x100000 + ord("q")), id="q with num lock"),
        pytest.param(FakeOpenCv(visible=0.0), id="cross"),
    ],
)
def test_the_user_closes_it(module: FakeOpenCv) -> None:
    with pytest.raises(SinkClosed) as caught, VideoWindow("t", module=module) as window:
        window.idle()
    assert caught.value.code == "WINDOW_CLOSED"
    assert window.closed


def test_another_key_closes_nothing() -> None:
    """Negative control."""
    with VideoWindow("t", module=FakeOpenCv(key=ord("x"))) as window:
        window.idle()
    assert not window.closed


def test_a_closed_window_ends_its_worker_without_an_error() -> None:
    events: list[dict] = []
    window, queue = VideoWindow("t", module=FakeOpenCv(key=27)), FrameQueue(1.0)
    queue.put(media((0, 0, 0)), duration_s=0.04)
    worker = SinkWorker(window, queue, name="window", on_event=events.append)
    worker.run()
    assert window.closed and worker.error is None
    assert [event["event"] for event in events] == ["sink_closed", "sink_ended"]
    assert not queue.put(media((0, 0, 0)), duration_s=0.04)


def test_a_build_without_windows_is_one_clear_line() -> None:
    with pytest.raises(NoDisplayError, match="pip install opencv-python") as caught:
        VideoWindow("t", module=FakeOpenCv(has_windows=False)).__enter__()
    assert "\n" not in str(caught.value)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a screen")


@linux
def test_without_a_display_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before OpenCV is even looked for: Qt would abort the process."""
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(NoDisplayError, match="DISPLAY is not set"):
        VideoWindow("t")


@linux
def test_a_display_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":7919.0")
    with pytest.raises(NoDisplayError, match="no X server answers"):
        check_display()


@linux
def test_a_display_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control, with a socket where the X server's would be."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(f"\0{Path('/tmp/.X11-unix/X7918')}")
        server.listen()
        monkeypatch.setenv("DISPLAY", ":7918")
        check_display()
