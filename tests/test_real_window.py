# SPDX-License-Identifier: Apache-2.0
"""The window on a real X server: what is on the screen, pixel by pixel, and the keys that close it."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from edgereels.runtime.frame_queue import FrameQueue
from edgereels.runtime.live_sinks import SinkWorker
from edgereels.runtime.video_window import VideoWindow

from .real_devices import Screen, until

pytestmark = pytest.mark.slow


def picture(*, height: int = 192, width: int = 256) -> np.ndarray:
    """Return (height, width, 3) RGB in which no channel, row or column looks like another."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, (rows + columns) // 2], axis=-1).clip(0, 255).astype(np.uint8)


def media(frame: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(frames=frame[None])


def worker_for(title: str, frame: np.ndarray, events: list[dict]) -> tuple[SinkWorker, FrameQueue]:
    queue: FrameQueue = FrameQueue(1.0)
    worker = SinkWorker(VideoWindow(title), queue, name="window", on_event=events.append)
    worker.start()
    queue.put(media(frame), duration_s=0.04)
    return worker, queue


def shows(screen: Screen, frame: np.ndarray) -> bool:
    """Return whether a picture is on the screen, at its corner, at its own size: pixels are BGR there."""
    height, width = frame.shape[:2]
    return bool(np.array_equal(screen.pixels[:height, :width, ::-1], frame))


@pytest.mark.parametrize("key", ["q", "Escape"])
def test_a_frame_is_shown_pixel_by_pixel_until_a_key_closes_it(screen: Screen, key: str) -> None:
    events: list[dict] = []
    frame = picture()
    worker, _ = worker_for("edgereels test", frame, events)
    until(lambda: shows(screen, frame), what="the frame on the screen", within_s=10)
    assert not shows(screen, frame[::-1]) and not shows(screen, frame[..., ::-1])  # negative controls
    screen.press("edgereels test", "x")
    time.sleep(0.3)
    assert shows(screen, frame) and not events  # another key closes nothing

    def is_closed_by_key() -> bool:
        """Press it again where the window manager had given the focus to somebody else."""
        if not events:
            screen.press("edgereels test", key)
        return bool(events)

    until(is_closed_by_key, what="the window to close", within_s=10)
    assert worker.stop(timeout_s=5)
    assert [event["code"] for event in events] == ["WINDOW_CLOSED", "S_ENDED"]


def test_the_newest_frame_is_on_and_old_ones_are_gone(screen: Screen) -> None:
    dark, bright = np.full((64, 96, 3), 40, np.uint8), np.full((64, 96, 3), 200, np.uint8)
    worker, queue = worker_for("edgereels test", dark, [])
    until(lambda: shows(screen, dark), what="the first frame", within_s=10)
    queue.put(media(bright), duration_s=0.04)
    until(lambda: shows(screen, bright), what="the second frame", within_s=5)
    assert worker.stop(timeout_s=5)


def test_a_full_screen_keeps_the_proportions(screen: Screen) -> None:
    frame = np.full((1, 100, 200, 3), 90, np.uint8)
    queue: FrameQueue = FrameQueue(1.0)
    worker = SinkWorker(VideoWindow("full", full_screen=True), queue)
    worker.start()
    queue.put(SimpleNamespace(frames=frame), duration_s=0.04)
    until(lambda: (screen.pixels[:, :, 0] == 90).sum() >= 1280 * 638, what="the full screen", within_s=10)
    rows, columns = np.nonzero(screen.pixels[:, :, 0] == 90)
    assert (columns.min(), columns.max()) == (0, 1279)
    assert np.ptp(rows) + 1 == pytest.approx(640, abs=2)
    assert worker.stop(timeout_s=5)


def test_windows_one_after_the_other_and_side_by_side(screen: Screen) -> None:
    """Each has a thread of its own; Qt knows one thread per process, and hung with the second."""
    for colour in (60, 120):
        frame = np.full((64, 96, 3), colour, np.uint8)
        worker, _ = worker_for(f"number {colour}", frame, [])
        until(lambda frame=frame: shows(screen, frame), what=f"window {colour}", within_s=10)
        assert worker.stop(timeout_s=5)
    small, large = np.full((64, 96, 3), 80, np.uint8), np.full((128, 192, 3), 160, np.uint8)
    workers = [worker_for("large", large, []), worker_for("small", small, [])]
    until(lambda: screen.pixels[100, 150, 0] == 160 and (screen.pixels[:64, :96] == 80).any(), what="both", within_s=10)
    for worker, _ in workers:
        assert worker.stop(timeout_s=5)
