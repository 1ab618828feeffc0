# SPDX-License-Identifier: Apache-2.0
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.canvas import Canvas
from edgereels.runtime.composer import AHEAD, KEPT, Composer

FRAMES = np.random.default_rng(5).integers(0, 256, (KEPT + 5, 16, 16, 3), np.uint8)
PLACE = (np.full((40, 40, 3), 90, np.uint8), (4, 4, 36, 36), 2)


class WatchedCanvas:
    """Notes what it composes, and in which thread; waits for `go_on`."""

    def __init__(self) -> None:
        self.composed: list[tuple[bytes, str]] = []
        self.go_on, self.fails = threading.Event(), 0
        self.go_on.set()

    def compose(self, frames: Any) -> Any:
        self.composed.append((frames[0].tobytes(), threading.current_thread().name))
        assert self.go_on.wait(10)
        if self.fails:
            self.fails -= 1
            raise MemoryError("no room for a picture")
        return Canvas(*PLACE).compose(frames)


@pytest.fixture
def canvas() -> WatchedCanvas:
    return WatchedCanvas()


@pytest.fixture
def composer(canvas: Any) -> Iterator[Composer]:
    ours = Composer(canvas)
    ours.start()
    yield ours
    ours.close()


def plainly(frame: Any) -> Any:
    return Canvas(*PLACE).compose(frame[None])


def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it didn't come to that within 10 s")


def test_what_is_expected_is_composed_once_and_by_somebody_else(canvas: WatchedCanvas, composer: Composer) -> None:
    composer.prepare(list(FRAMES[:AHEAD]))
    composer.prepare(list(FRAMES[1 : AHEAD + 1]))
    until(lambda: len(canvas.composed) == AHEAD + 1)
    for frame in FRAMES[: AHEAD + 1]:
        for _sink in range(2):
            assert np.array_equal(composer.picture(frame).composed(), plainly(frame))
    assert [frame for frame, _thread in canvas.composed] == [frame.tobytes() for frame in FRAMES[: AHEAD + 1]]
    assert {thread for _frame, thread in canvas.composed} == {"edgereels-composer"}


def test_what_is_not_expected_is_composed_once_as_well(canvas: WatchedCanvas) -> None:
    composer = Composer(canvas)  # type: ignore[arg-type]
    first, second = (composer.picture(FRAMES[0]) for _sink in range(2))
    assert first.composed() is second.composed()
    assert np.array_equal(first.composed(), plainly(FRAMES[0]))
    assert canvas.composed == [(FRAMES[0].tobytes(), "MainThread")]


def test_who_asks_does_not_wait_behind_other_pictures(canvas: WatchedCanvas, composer: Composer) -> None:
    """The first is being made, for long; the second, not begun yet, is made by who needs it, and by nobody else."""
    canvas.go_on.clear()
    composer.prepare(list(FRAMES[:2]))
    until(lambda: len(canvas.composed) == 1)
    asks = threading.Thread(target=lambda: composer.picture(FRAMES[1]).composed(), name="asks")
    asks.start()
    until(lambda: len(canvas.composed) == 2)
    canvas.go_on.set()
    asks.join(10)
    composer.picture(FRAMES[0]).composed()
    assert [thread for _frame, thread in canvas.composed] == ["edgereels-composer", "asks"]


def test_who_asks_for_what_is_being_made_waits_for_it(canvas: WatchedCanvas, composer: Composer) -> None:
    canvas.go_on.clear()
    composer.prepare([FRAMES[0]])
    until(lambda: len(canvas.composed) == 1)
    threading.Timer(0.1, canvas.go_on.set).start()
    assert np.array_equal(composer.picture(FRAMES[0]).composed(), plainly(FRAMES[0]))
    assert len(canvas.composed) == 1


def test_only_the_latest_pictures_are_kept_and_the_others_are_composed_anew(canvas: WatchedCanvas) -> None:
    composer = Composer(canvas)  # type: ignore[arg-type]
    pictures = [composer.picture(frame) for frame in FRAMES]
    for picture in pictures:
        picture.composed()
    composer.prepare([FRAMES[-1]])
    assert sum(picture.made is not None for picture in pictures) <= KEPT
    assert len(composer._pictures) == KEPT
    assert np.array_equal(pictures[0].composed(), plainly(FRAMES[0])) and pictures[0].made is None


def test_another_frame_at_an_address_that_was_given_back_is_another_picture(composer: Composer) -> None:
    for level in range(5 * KEPT):
        frame = np.full((16, 16, 3), level, np.uint8)
        composer.prepare([frame])
        assert np.array_equal(composer.picture(frame).composed(), plainly(frame))
        del frame


def test_a_picture_that_failed_is_tried_again_by_who_needs_it(canvas: WatchedCanvas, composer: Composer) -> None:
    canvas.fails = 2
    composer.prepare([FRAMES[0]])
    until(lambda: canvas.fails == 1)
    with pytest.raises(MemoryError):
        composer.picture(FRAMES[0]).composed()
    assert np.array_equal(composer.picture(FRAMES[0]).composed(), plainly(FRAMES[0]))
    composer.prepare([FRAMES[1]])  # the thread goes on
    until(lambda: canvas.composed[-1][1] == "edgereels-composer")


def test_after_its_end_pictures_are_composed_all_the_same(composer: Composer) -> None:
    before = composer.picture(FRAMES[0])
    composer.close()
    composer.close()
    composer.prepare([FRAMES[1]])
    for picture, frame in ((before, FRAMES[0]), (composer.picture(FRAMES[1]), FRAMES[1])):
        assert np.array_equal(picture.composed(), plainly(frame))
    until(lambda: all(thread.name != "edgereels-composer" for thread in threading.enumerate()))
