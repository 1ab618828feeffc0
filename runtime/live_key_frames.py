# SPDX-License-Identifier: Apache-2.0
"""Key frames without knowing the end.

The published scheme lays one free-running pass over the whole speech and takes the picture that a window ends on from
there. A live stream has no whole. Here the pictures come from the rest loop, frames that the network made of this face
while nobody speaks: a window that ends at some time ends on the picture that the rest loop would show then. The head
moves as it does at rest, no window can drift away from the face, and the last window of an utterance ends on the rest
pose itself, from which the loop begins.
"""

import numpy as np
import numpy.typing as npt

from .image import to_unit

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


class KeyFrames:
    """The pictures that windows end on."""

    def __init__(self, rest_loop: Pixels, rest_pose: Floats, *, slowness: float = 1.0) -> None:
        """Take the rest loop.

        Args:
            rest_loop: (R, H, W, 3) as the network made it, without key frames that were pressed on it.
            rest_pose: (3, H, W) RGB in [-1, 1].
            slowness: how many frames of the stream pass for one of the loop.
        """
        self._loop, self.rest, self._slowness = rest_loop, rest_pose, slowness

    def at(self, frame: int) -> Floats:
        """Return the picture for a window whose last frame is so many frames into the utterance, (3, H, W)."""
        return to_unit(self._loop[int(frame / self._slowness) % len(self._loop)])
