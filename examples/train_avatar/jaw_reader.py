# SPDX-License-Identifier: Apache-2.0
"""Read the mouth's opening back from pictures: ridge regression on the mouth box, fitted on drawn frames only.

The reader never sees a generated frame when it is fitted. Small shifts and blurs are in its training pictures, so that
it measures the mouth and not the sharpness of the codec.
"""

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from .face import Pose, draw
from .train_vae import MOUTH_BOX

_CELLS = (14, 22)


@dataclass(frozen=True)
class JawReader:
    """A linear map from the mouth box to its opening."""

    weights: npt.NDArray[np.float64]
    """Shape (features,)."""
    centre: npt.NDArray[np.float64]
    """Mean features of the pictures it was fitted on."""
    offset: float
    """Mean opening."""

    @classmethod
    def fitted(cls, *, pictures: int = 700, seed: int = 5) -> Self:
        """Fit on randomly posed drawn faces."""
        generator = np.random.default_rng(seed)
        features, openings = [], []
        for _ in range(pictures):
            pose = _random_pose(generator)
            frame = draw(pose).astype(np.float32) / 127.5 - 1
            if generator.random() < 0.5:
                blurred = cv2.GaussianBlur(frame, (0, 0), float(generator.uniform(0.3, 1.2)))
                frame = np.asarray(blurred, dtype=np.float32)
            features.append(_features(frame))
            openings.append(pose.jaw * (1 - pose.press))
        matrix, target = np.stack(features).astype(np.float64), np.array(openings)
        centre, offset = matrix.mean(0), float(target.mean())
        matrix -= centre
        gram = matrix @ matrix.T
        ridge = 3e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
        return cls(matrix.T @ np.linalg.solve(gram + ridge, target - offset), centre, offset)

    def opening(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the opening in each frame; frames (count, 128, 128, 3) in [-1, 1]."""
        return np.array([float((_features(frame) - self.centre) @ self.weights) + self.offset for frame in frames])


def _random_pose(generator: np.random.Generator) -> Pose:
    return Pose(
        jaw=float(generator.uniform(0, 0.95)), wide=float(generator.uniform(-1, 0.9)),
        press=float(generator.uniform(0, 1) ** 2 * (generator.random() < 0.6)),
        yaw=float(generator.normal(0, 0.07)), pitch=float(generator.normal(0, 0.1)),
        roll=float(generator.normal(0, 0.05)),
        shift_x=float(generator.normal(0, 0.8)), shift_y=float(generator.normal(0, 0.8)),
    )  # fmt: skip


def _features(frame: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    top, left, bottom, right = MOUTH_BOX
    box = frame[top - 4 : bottom + 4, left - 2 : right + 2]
    return cv2.resize(box, _CELLS[::-1], interpolation=cv2.INTER_AREA).astype(np.float64).ravel()
