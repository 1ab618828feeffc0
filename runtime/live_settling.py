# SPDX-License-Identifier: Apache-2.0
"""From where a face was left to where it is to be, in a few frames: for what a network's key frame doesn't reach.

Small movements only: both pictures are bent towards each other along their optical flow and mixed, so that nothing is
seen twice. Farnebäck's successor in OpenCV, DIS (Kroeger et al. 2016), finds the flow.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .opencv import import_cv2

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FRAMES_PER_LEVEL = 3.0
"""New frames per level (of 255) of mean difference: a head that is a few pixels away comes back without a jerk."""

MOST_FRAMES = 16
LEAST_LEVELS = 0.6
"""A smaller difference is what two frames at rest differ by."""


def settling_frames(left: Pixels, wanted: Pixels) -> int:
    """Return how many frames it takes from one picture (H, W, 3) to another."""
    levels = float(np.abs(left.astype(np.int16) - wanted).mean())
    return 0 if levels < LEAST_LEVELS else min(MOST_FRAMES, 1 + round(levels * FRAMES_PER_LEVEL))


def settle(left: Pixels, wanted: Pixels, *, count: int) -> Pixels:
    """Return the frames between two pictures (H, W, 3), both left out: (count, H, W, 3), slow at both ends."""
    cv2 = import_cv2(purpose="live streaming")
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (left, wanted)]
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    there, back = finder.calc(*grey, None), finder.calc(*grey[::-1], None)
    shares = [0.5 - 0.5 * np.cos(np.pi * (number + 1) / (count + 1)) for number in range(count)]
    frames = [_between(cv2, left, wanted, there, back, np.float32(share)) for share in shares]
    return np.stack(frames) if frames else np.empty((0, *left.shape), np.uint8)


def _between(cv2: Any, left: Pixels, wanted: Pixels, there: Floats, back: Floats, share: np.float32) -> Pixels:
    """Return the picture that is `share` of the way."""
    height, width = left.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))

    def bent(picture: Pixels, flow: Floats, length: np.float32) -> Floats:
        # Where a point comes from is where the flow, a few pixels and smooth, would have taken it.
        moved = cv2.remap(
            picture, columns - flow[..., 0] * length, rows - flow[..., 1] * length, cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        return moved.astype(np.float32)

    mixed = bent(left, there, share) * (1 - share) + bent(wanted, back, 1 - share) * share
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
