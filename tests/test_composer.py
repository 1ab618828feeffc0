# SPDX-License-Identifier: Apache-2.0
import threading
from typing import Any

import numpy as np

from edgereels.runtime.canvas import Canvas
from edgereels.runtime.composer import AHEAD, Composer

FRAMES = np.random.default_rng(5).integers(0, 256, (12, 16, 16, 3), np.uint8)


class SlowCanvas(Canvas):
    """Counts what it composes, and where; waits for `go_on`."""

    def compose(self, frames: Any, *, threads: int = 1) -> Any:
        self.__dict__.setdefault("composed", []).append((frames[0].tobytes(), threading.current_thread().name))
        assert self.__dict__.setdefault("go_on", threading.Event()).wait(10)
        return super().compose(frames, threads=threads)


def slow_canvas(*, waits: bool = False) -> Any:
    canvas: Any = SlowCanvas(np.full((40, 40, 3), 90, np.uint8), (4, 4, 36, 36), 2)
    canvas.__dict__["composed"], canvas.__dict__["go_on"] = [], threading.Event()
    if not waits:
        canvas.go_on.set()
    return canvas


def plainly(frame: Any) -> Any:
    return Canvas(np.full((40, 40, 3), 90, np.uint8), (4, 4, 36, 36), 2).compose(frame[None])


def test_what_was_prepared_is_composed_once_and_by_somebody_else() -> None:
    canvas = slow_canvas()
    composer = Composer(canvas)
    composer.prepare(list(FRAMES[:AHEAD]))
    composer.prepare(list(FRAMES[1 : AHEAD + 1]))
    composer._pool.submit(lambda: None).result(10)  # type: ignore[union-attr]  # everything before it is done
    for frame in FRAMES[: AHEAD + 1]:
        for _sink in range(2):
            assert np.array_equal(composer.compose(frame), plainly(frame))
    assert len(canvas.composed) == AHEAD + 1
    assert {name for _frame, name in canvas.composed} == {"edgereels-composer_0"}
    composer.close()


def test_what_was_not_expected_is_composed_by_who_asks() -> None:
    canvas = slow_canvas()
    composer = Composer(canvas)
    composer.prepare(list(FRAMES[:AHEAD]))
    assert np.array_equal(composer.compose(FRAMES[9]), plainly(FRAMES[9]))
    assert (FRAMES[9].tobytes(), "MainThread") in canvas.composed
    composer.close()


def test_who_asks_does_not_wait_behind_other_pictures() -> None:
    """The first is being made, for long; the second, not begun yet, is made by who needs it."""
    canvas = slow_canvas(waits=True)
    composer = Composer(canvas)
    composer.prepare(list(FRAMES[:2]))
    while not canvas.composed:
        pass
    canvas.composed.clear()
    asked = threading.Thread(target=composer.compose, args=(FRAMES[1],), name="asks")
    asked.start()
    while not canvas.composed:
        pass
    assert canvas.composed[0][1] == "asks"
    canvas.go_on.set()
    asked.join(10)
    composer.close()


def test_only_the_latest_pictures_are_kept() -> None:
    canvas = slow_canvas()
    composer = Composer(canvas)
    for frame in FRAMES:
        composer.prepare([frame])
    assert len(composer._made) == AHEAD + 2
    composer.close()
    assert not composer._made


def test_another_frame_at_an_address_that_was_given_back_is_another_picture() -> None:
    composer = Composer(slow_canvas())
    for level in range(50):
        frame = np.full((16, 16, 3), level, np.uint8)
        composer.prepare([frame])
        assert np.array_equal(composer.compose(frame), plainly(frame))
        del frame
    composer.close()


def test_after_its_end_pictures_are_composed_all_the_same() -> None:
    composer = Composer(slow_canvas())
    composer.close()
    composer.close()
    composer.prepare([FRAMES[0]])
    assert np.array_equal(composer.compose(FRAMES[0]), plainly(FRAMES[0]))
