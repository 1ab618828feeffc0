# SPDX-License-Identifier: Apache-2.0
"""A canvas: an avatar's still picture, and the box in it that moves.

The network makes the box, small; shown is the whole still, with every frame enlarged to the box and blended in. At the
sides of the box the still counts fully, `feather` pixels further inside the frame does, and between them a raised
cosine leads over: what differs a little in colour shows no step.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]

SMALLEST_BOX = 16
"""Pixels a side; less shows no face."""


def check_canvas(box: Box, *, feather: int, still: tuple[int, int]) -> None:
    """Refuse a box that doesn't fit into a still.

    Args:
        box: top, left, bottom, right in pixels of the still; the last two are one past the box.
        feather: pixels over which the box is blended in.
        still: its (height, width).

    Raises:
        ValueError: the still has odd sides, which videos don't have; the box leaves the still or is below 16 pixels a
            side; or the feather is below 0 or takes half of the box.
    """
    top, left, bottom, right = box
    height, width = still
    if height % 2 or width % 2:
        raise ValueError(f"the still has {width} x {height} pixels; expected even sides, as videos have: cut it")
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(
            f"the box [{top}, {left}, {bottom}, {right}] is not inside the still of {width} x {height} pixels; "
            "expected [top, left, bottom, right] within it"
        )
    side = min(bottom - top, right - left)
    if side < SMALLEST_BOX:
        raise ValueError(
            f"the box has {right - left} x {bottom - top} pixels; expected at least {SMALLEST_BOX} a side: enlarge it"
        )
    if not 0 <= feather < side / 2:
        raise ValueError(f"the feather is {feather}; expected 0 or more, and less than half of the box, {side / 2:g}")


def check_shape(box: Box, *, size: tuple[int, int]) -> None:
    """Refuse a box that frames would have to be bent for, by a pixel or more.

    Raises:
        ValueError: its height is not its width times height / width of the size.
    """
    top, left, bottom, right = box
    height, width = size
    wanted = (right - left) * height / width
    if abs(bottom - top - wanted) >= 1:
        raise ValueError(
            f"the box is {right - left} pixels wide and {bottom - top} high; expected {wanted:g} high, because frames "
            f"have {height}x{width}: change the box"
        )


@dataclass(frozen=True, eq=False)
class _Seam:
    """One side of the box, where frame and still are mixed."""

    rows: slice
    """Of the box."""
    columns: slice
    """Of the box."""
    weight: Floats
    """[rows, columns, 1] of the frame."""
    rest: Floats
    """[rows, columns, 3]: the still times its own weight, and half a level to round by."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """A still and its box; raises `ValueError` where they don't go together."""

    still: Pixels
    """(H, W, 3) RGB."""
    box: Box
    """Top, left, bottom, right in pixels of the still; the last two are one past the box."""
    feather: int
    """Pixels over which the box is blended in."""

    def __post_init__(self) -> None:
        check_canvas(self.box, feather=self.feather, still=self.size)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what is shown."""
        return self.still.shape[0], self.still.shape[1]

    @property
    def portrait(self) -> Pixels:
        """What lies in the box at rest: the picture that the networks are given. A copy."""
        return self._boxed(self.still).copy()

    def compose(self, frames: Pixels, *, threads: int = 1) -> Pixels:
        """Return the still with each frame in its box, (T, H, W, 3), a new array.

        Args:
            frames: (T, h, w, 3) RGB, any size.
            threads: frames that are worked on at the same time; the result doesn't depend on it.
        """
        shown = np.empty((len(frames), *self.still.shape), dtype=np.uint8)

        def lay_in(index: int) -> None:
            shown[index] = self.still
            self._lay_in(frames[index], self._boxed(shown[index]))

        if threads == 1 or len(frames) == 1:
            for index in range(len(frames)):
                lay_in(index)
        else:  # enlarging, which takes most of the time, leaves the interpreter lock free
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lay_in, range(len(frames))))
        return shown

    def _boxed(self, picture: Pixels) -> Pixels:
        top, left, bottom, right = self.box
        return picture[top:bottom, left:right]

    def _lay_in(self, frame: Pixels, box: Pixels) -> None:
        """Write a frame over the still that a box holds."""
        from PIL import Image

        height, width = box.shape[:2]
        # Bicubic: 4.4 ms for 192 -> 576 on one core, against 3.0 for bilinear, which is soft, and 5.9 for Lanczos.
        large = Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), Image.Resampling.BICUBIC)
        made = np.asarray(large)
        box[:] = made
        for seam in self._seams:
            box[seam.rows, seam.columns] = made[seam.rows, seam.columns] * seam.weight + seam.rest

    @cached_property
    def _seams(self) -> tuple[_Seam, ...]:
        return tuple(self._sides())

    def _sides(self) -> Iterator[_Seam]:
        """Yield the sides that have a seam: not those on the still's own edge, beyond which nothing is."""
        top, left, bottom, right = self.box
        height, width = bottom - top, right - left
        above, below = (self.feather if inside else 0 for inside in (top > 0, bottom < self.size[0]))
        before, after = (self.feather if inside else 0 for inside in (left > 0, right < self.size[1]))
        rows, columns = _ramp(height, first=above, last=below), _ramp(width, first=before, last=after)
        middle = slice(above, height - below)
        for part in (
            (slice(0, above), slice(0, width)),
            (slice(height - below, height), slice(0, width)),
            (middle, slice(0, before)),
            (middle, slice(width - after, width)),
        ):
            weight = (rows[part[0], None] * columns[None, part[1]])[:, :, None]
            if weight.size:
                rest = self._boxed(self.still)[part] * (1 - weight) + 0.5
                yield _Seam(*part, weight, np.asarray(rest, dtype=np.float32))


def _ramp(length: int, *, first: int, last: int) -> Floats:
    """Return weights that rise from 0 over the first ones and fall back over the last."""
    weights = np.ones(length, dtype=np.float32)
    for count, end in ((first, weights), (last, weights[::-1])):
        end[:count] = [0.5 - 0.5 * math.cos(math.pi * index / count) for index in range(count)]
    return weights
