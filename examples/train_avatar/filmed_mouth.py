# SPDX-License-Identifier: Apache-2.0
"""Read the mouth of a filmed face back from pictures, without labels: how far it is along its own main movement.

The main movement is the first principal component of the quick changes of the mouth's pixels, found in the real frames
that were trained on. Real and rendered frames are read alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from edgereels.runtime.metrics import correlation

from .footage import SIZE, Footage
from .motion_box import GRID, sound_features

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

MOUTH = 3.5
"""Pixels that weigh more than this are the mouth."""
_CLIPS = 12
"""Clips that the movement is learned from, at most."""
_SLOW_FRAMES = 6.0
"""What changes more slowly, such as the head's place, is taken out before the movement is looked for."""


@dataclass(frozen=True, eq=False)
class FilmedMouth:
    """The direction in which the pixels of one mouth change together when it speaks."""

    inside: npt.NDArray[np.bool_]
    """Which of 48 x 48 places belong to the mouth."""
    rest: Floats
    """Their mean colours, flat."""
    direction: Floats
    """Unit vector of the same length; positive is what goes with loud sound."""

    @classmethod
    def fitted(cls, footage: Footage) -> Self:
        """Find it in the training clips of the footage's first face.

        Raises:
            ValueError: no pixel of this face counts as mouth.
        """
        (weight,) = footage.weights.values()
        inside = weight.reshape(GRID, SIZE // GRID, GRID, SIZE // GRID).mean((1, 3)) > MOUTH
        if not inside.any():
            raise ValueError("no pixel weighs as much as a mouth; expected the footage of a face that speaks")
        chosen = footage.training[:: max(1, len(footage.training) // _CLIPS)]
        colours = [_colours(footage.frames[clip], inside) for clip in chosen]
        quick = [series - gaussian_filter1d(series, _SLOW_FRAMES, axis=0) for series in colours]
        spread = np.concatenate(quick)
        _, vectors = np.linalg.eigh(spread.T @ spread)
        direction = vectors[:, -1]
        loud = [sound_features(footage.sound[clip] / 32768).mean(1) for clip in chosen]
        moved = np.concatenate([series @ direction for series in quick])
        if correlation(moved, np.concatenate(loud)) < 0:
            direction = -direction
        return cls(inside, np.concatenate(colours).mean(0), direction)

    def read(self, frames: Iterable[Pixels]) -> Floats:
        """Return how far along the movement each frame (192, 192, 3) is."""
        return (_colours(frames, self.inside) - self.rest) @ self.direction


def _colours(frames: Iterable[Pixels], inside: npt.NDArray[np.bool_]) -> Floats:
    import cv2

    def small(frame: Pixels) -> npt.NDArray[np.uint8]:
        cells = cv2.resize(np.ascontiguousarray(frame), (GRID, GRID), interpolation=cv2.INTER_AREA)
        return np.asarray(cells, np.uint8)[inside]

    return np.stack([small(frame).ravel() for frame in frames]).astype(np.float64)
