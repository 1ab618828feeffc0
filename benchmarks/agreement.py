# SPDX-License-Identifier: Apache-2.0
"""The same package, sound and seed on two engines, window by window."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime import AvatarSession
from .measurement import Run

MOST_LEVELS = 2
"""Largest difference of a pixel that float32 on two engines may make, of 255.

Both sum in another order, a difference of 1e-5 of what the network computes and 0.001 levels; but the conversion cuts
fractions off, so a value next to a step differs by one. Measured: 1, in 5 of 100 000 values."""
LEAST_PSNR_DB = 75.0
"""Of a window: one value in 500 off by one. Measured: 91 dB."""

ORT_F32 = {"device": "onnxruntime:CPU", "compute": "f32"}
OPENVINO_F32 = {"device": "openvino:CPU", "compute": "f32"}


@dataclass(frozen=True)
class Window:
    """How far one window's frames lie apart."""

    index: int
    """From 0."""
    frames: int
    """How many."""
    levels: int
    """Largest difference of a value, of 255."""
    share: float
    """Of values that differ at all."""
    psnr_db: float
    """Infinite where all are equal: then 200."""

    @property
    def agrees(self) -> bool:
        """Whether it is within the tolerance for float32."""
        return self.levels <= MOST_LEVELS and self.psnr_db >= LEAST_PSNR_DB


def compare(ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8], *, index: int) -> Window:
    """Compare the frames of a window, uint8 (T, H, W, 3)."""
    apart = np.abs(ours.astype(np.int16) - theirs)
    power = float(np.square(apart, dtype=np.float64).mean())
    psnr_db = 200.0 if power == 0 else 10 * float(np.log10(255**2 / power))
    return Window(index, len(ours), int(apart.max()), float((apart > 0).mean()), psnr_db)


def windows_of(package: str, sound: npt.NDArray[np.float32], **asked: Any) -> list[npt.NDArray[np.uint8]]:
    """Render and return the frames of each window."""
    with AvatarSession.open(package, **asked) as session:
        return [chunk.frames for chunk in session.stream(audio=sound, seed=42, canvas=False)]


def agreement(run: Run) -> dict[str, Any]:
    """Compare ONNX Runtime in f32 with OpenVINO in f32 and as it is by default; return engine to its windows."""
    sound = np.load(run.sound)
    reference = windows_of(run.package, sound, threads=run.threads, **ORT_F32)
    asked: Mapping[str, Mapping[str, Any]] = {
        "OpenVINO f32": OPENVINO_F32,
        "OpenVINO auto": OPENVINO_F32 | {"compute": "auto"},
    }
    found: dict[str, Any] = {}
    for engine, settings in asked.items():
        ours = windows_of(run.package, sound, threads=run.threads, **settings)
        pairs = zip(ours, reference, strict=True)
        found[engine] = [asdict(compare(*pair, index=index)) for index, pair in enumerate(pairs)]
    return found
