# SPDX-License-Identifier: Apache-2.0
"""The canvas by itself: what it shows where, that no step shows at the box, and what doesn't go together."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgereels.runtime import Canvas
from edgereels.runtime.canvas import Box, check_shape

BOX = (60, 48, 252, 240)
"""192 pixels a side in a still of 300 x 320, off its centre."""
FEATHER = 24
MADE = 64
"""Pixels a side of the frames that are laid in: a third of the box, as in the embedded package."""
Pixels = npt.NDArray[np.uint8]


def still(*, height: int = 300, width: int = 320) -> Pixels:
    """Return a picture with slopes, a few soft spots and fine grain, (height, width, 3)."""
    rows, columns = np.mgrid[0:height, 0:width]
    slopes = np.stack([60 + rows / 4, 90 + columns / 4, 200 - rows / 5 - columns / 8], axis=-1)
    spots = 30 * np.sin(rows / 23)[..., None] * np.cos(columns / 31)[..., None]
    grain = np.random.default_rng(3).integers(-2, 3, (height, width, 3))
    return np.clip(slopes + spots + grain, 0, 255).astype(np.uint8)


def boxed(picture: Pixels, box: Box = BOX) -> Pixels:
    top, left, bottom, right = box
    return picture[..., top:bottom, left:right, :]


def moving(canvas: Canvas, *, count: int = 6, offset: float = 0) -> Pixels:
    """Return frames of the network's size: the box at rest, a bright disc that moves in its middle, all a bit lighter.

    Up to the disc it is what a perfect network would make, so that its border matches.
    """
    rest = np.asarray(Image.fromarray(canvas.portrait).resize((MADE, MADE), Image.Resampling.BILINEAR), np.float64)
    rows, columns = np.mgrid[0:MADE, 0:MADE]
    frames = np.repeat(rest[None], count, axis=0) + offset
    for index, frame in enumerate(frames):
        frame[(rows - MADE / 2) ** 2 + (columns - MADE / 2 - 2 * index + count) ** 2 < (MADE / 6) ** 2] = (250, 30, 120)
    return np.clip(np.round(frames), 0, 255).astype(np.uint8)


def steps(pictures: Pixels, box: Box = BOX) -> npt.NDArray[np.int16]:
    """Return how far the pixels on either side of the box's border are apart, all four sides, [T, ..., 3]."""
    top, left, bottom, right = box
    values = pictures.astype(np.int16)
    sides = [
        values[:, top, left:right] - values[:, top - 1, left:right],
        values[:, bottom, left:right] - values[:, bottom - 1, left:right],
        values[:, top:bottom, left] - values[:, top:bottom, left - 1],
        values[:, top:bottom, right] - values[:, top:bottom, right - 1],
    ]
    return np.abs(np.concatenate(sides, axis=1))


def hides_the_box(shown: Pixels, canvas: Canvas) -> bool:
    """Apply the gate: at the border no step is more than a level larger than the still's own there."""
    return bool((steps(shown, canvas.box) <= steps(canvas.still[None], canvas.box) + 1).all())


# ── What is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_outside_of_the_box_the_still_stays_as_it_is() -> None:
    canvas = Canvas(still(), BOX, FEATHER)
    shown = canvas.compose(moving(canvas))
    outside = np.ones(canvas.size, dtype=bool)
    boxed(outside[..., None])[...] = False
    assert shown.shape == (6, 300, 320, 3) and shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[:, outside], np.repeat(canvas.still[None], 6, axis=0)[:, outside])


def test_within_the_feather_the_frame_counts_alone() -> None:
    canvas = Canvas(still(), BOX, FEATHER)
    frames = moving(canvas)
    shown = boxed(canvas.compose(frames))[:, FEATHER:-FEATHER, FEATHER:-FEATHER]
    for ours, frame in zip(shown, frames, strict=True):
        large = np.asarray(Image.fromarray(frame).resize((192, 192), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(ours, large[FEATHER:-FEATHER, FEATHER:-FEATHER])


def test_at_the_border_the_still_counts_alone() -> None:
    canvas = Canvas(still(), BOX, FEATHER)
    shown = boxed(canvas.compose(np.full((1, MADE, MADE, 3), 255, np.uint8)))[0]
    for side in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        np.testing.assert_array_equal(shown[side], canvas.portrait[side])


def test_the_feather_is_a_raised_cosine() -> None:
    """Black into white: what is seen along a line through the middle of a side are the weights themselves."""
    canvas = Canvas(np.zeros((300, 320, 3), np.uint8), BOX, FEATHER)
    shown = boxed(canvas.compose(np.full((1, MADE, MADE, 3), 255, np.uint8)))[0, :, 96, 0]
    wanted = 255 * (0.5 - 0.5 * np.cos(np.pi * np.arange(FEATHER) / FEATHER))
    np.testing.assert_allclose(shown[:FEATHER], wanted, rtol=0, atol=0.51)  # rounded to whole levels
    np.testing.assert_array_equal(shown[::-1], shown)
    assert (shown[FEATHER:-FEATHER] == 255).all()


def test_a_side_on_the_stills_own_edge_has_no_seam() -> None:
    """A body that leaves the picture below would show twice there: beyond that edge is nothing to lead over to."""
    canvas = Canvas(np.zeros((192, 320, 3), np.uint8), (0, 48, 192, 240), FEATHER)
    shown = boxed(canvas.compose(np.full((1, MADE, MADE, 3), 255, np.uint8)), canvas.box)[0, :, :, 0]
    assert (shown[:, 96] == 255).all()
    assert (shown[:, 0] == 0).all()


def test_frames_as_large_as_the_box_are_shown_pixel_by_pixel() -> None:
    canvas = Canvas(still(), BOX, 0)
    frames = np.random.default_rng(1).integers(0, 256, (2, 192, 192, 3), dtype=np.uint8)
    np.testing.assert_array_equal(boxed(canvas.compose(frames)), frames)


def test_the_portrait_at_rest_leaves_the_still_as_it_is() -> None:
    canvas = Canvas(still(), BOX, FEATHER)
    np.testing.assert_array_equal(canvas.compose(canvas.portrait[None])[0], canvas.still)


@pytest.mark.parametrize("threads", [2, 5])
def test_the_result_does_not_depend_on_threads_or_chunks(threads: int) -> None:
    canvas = Canvas(still(), BOX, FEATHER)
    frames = moving(canvas)
    whole = canvas.compose(frames)
    np.testing.assert_array_equal(canvas.compose(frames, threads=threads), whole)
    for split in range(len(frames) + 1):
        parts = [canvas.compose(frames[:split]), canvas.compose(frames[split:])]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_receiver_owns_the_frames() -> None:
    canvas = Canvas(still(), BOX, FEATHER)
    frames = moving(canvas)
    before = canvas.compose(frames)
    canvas.compose(frames)[:] = 0
    canvas.portrait[:] = 0
    np.testing.assert_array_equal(canvas.compose(frames), before)


# ── No step shows ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("offset", [0, 4, -9], ids=["same colour", "lighter", "darker"])
def test_no_step_shows_at_the_box(offset: float) -> None:
    """With a border that matches, and with one that is off by some levels everywhere."""
    canvas = Canvas(still(), BOX, FEATHER)
    shown = canvas.compose(moving(canvas, offset=offset))
    assert hides_the_box(shown, canvas)
    assert shown.std(axis=0).max() > 40  # something did move


@pytest.mark.parametrize("offset", [4, -9], ids=["lighter", "darker"])
def test_without_a_feather_the_same_check_sees_the_step(offset: float) -> None:
    """The control of the check above."""
    canvas = Canvas(still(), BOX, 0)
    assert not hides_the_box(canvas.compose(moving(canvas, offset=offset)), canvas)


def test_the_step_is_not_merely_moved_inwards() -> None:
    """Over the whole feather a lighter frame shows as a slope, at most pi / 2 times as steep as a straight one."""
    grey = np.full((300, 320, 3), 128, np.uint8)
    canvas = Canvas(grey, BOX, FEATHER)
    shown = canvas.compose(np.full((1, MADE, MADE, 3), 128 + 20, np.uint8))[0].astype(np.int16)
    steepest = max(int(np.abs(np.diff(shown, axis=axis)).max()) for axis in (0, 1))
    assert steepest <= np.ceil(20 * np.pi / 2 / FEATHER)
    bare = Canvas(grey, BOX, 0).compose(np.full((1, MADE, MADE, 3), 128 + 20, np.uint8))[0].astype(np.int16)
    assert np.abs(np.diff(bare, axis=0)).max() == 20  # control


# ── What doesn't go together ─────────────────────────────────────────────────────────────────────────────────────────

WRONG: dict[str, tuple[Box, int, str]] = {
    "below the still": ((200, 0, 301, 101), 4, "not inside"),
    "right of the still": ((0, 250, 100, 350), 4, "not inside"),
    "above the still": ((-1, 0, 99, 100), 4, "not inside"),
    "left of the still": ((0, -1, 100, 99), 4, "not inside"),
    "upside down": ((100, 0, 20, 80), 4, "not inside"),
    "mirrored": ((0, 100, 80, 20), 4, "not inside"),
    "empty": ((20, 20, 20, 20), 0, "not inside"),
    "too low": ((20, 20, 35, 80), 4, "at least 16"),
    "too narrow": ((20, 20, 80, 35), 4, "at least 16"),
    "feather below 0": ((20, 20, 80, 80), -1, "feather is -1"),
    "feather of half the box": ((20, 20, 80, 80), 30, "less than half of the box, 30"),
    "feather of more than the narrow side has": ((20, 20, 80, 40), 10, "less than half of the box, 10"),
}


@pytest.mark.parametrize("case", WRONG, ids=WRONG)
def test_a_box_or_feather_that_does_not_fit_is_refused(case: str) -> None:
    box, feather, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Canvas(still(), box, feather)


def test_the_whole_still_may_be_the_box_and_the_feather_may_be_nearly_half_of_it() -> None:
    assert Canvas(still(), (0, 0, 300, 320), 149).portrait.shape == (300, 320, 3)


def test_a_still_that_no_video_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="even sides"):
        Canvas(still(height=299), BOX, FEATHER)


@pytest.mark.parametrize(
    ("box", "size"),
    [((0, 0, 192, 192), (64, 64)), ((4, 5, 196, 197), (192, 192)), ((0, 0, 300, 520), (480, 832))],
    ids=["square", "of the same size", "rounded to a pixel"],
)
def test_a_box_has_the_shape_of_the_frames(box: Box, size: tuple[int, int]) -> None:
    check_shape(box, size=size)


@pytest.mark.parametrize(
    ("box", "size"),
    [((0, 0, 192, 193), (64, 64)), ((0, 0, 192, 96), (64, 64)), ((0, 0, 302, 520), (480, 832))],
    ids=["one too wide", "half as wide", "two too high"],
)
def test_a_box_that_would_bend_the_frames_is_refused(box: Box, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="change the box"):
        check_shape(box, size=size)
