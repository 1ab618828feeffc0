# SPDX-License-Identifier: Apache-2.0
"""Pictures on their way into and out of the networks: size, range, colour.

*Pixels* are uint8 (H, W, 3) RGB; *unit* pictures are float32 (3, H, W) RGB in [-1, 1]. Sources: SkyReels-V3 commit
28c771e, a2v_util.py, talking_avatar_pipeline.py and clip.py; kornia 0.9 color/lab.py (facts only, own code).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .image_file import load_portrait

__all__ = [
    "PUBLISHED_SIZES",
    "clip_pixels",
    "lab_statistics",
    "lab_to_rgb",
    "load_portrait",
    "match_colour",
    "nearest_size",
    "resize_and_crop",
    "rgb_to_lab",
    "to_pixels",
    "to_unit",
]

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_480P = (
    "320x1216 384x1024 448x896 480x832 512x768 576x704 640x640 704x576 768x512 832x448 832x480 896x448 960x384 "
    "1088x384 1152x320 1216x320 1280x320"
)
_720P = (
    "448x2048 512x1792 576x1600 640x1408 704x1280 720x1280 768x1216 832x1088 896x1024 960x960 1024x896 1088x832 "
    "1152x768 1216x768 1280x704 1280x720 1344x704 1408x640 1472x640 1536x576 1664x576 1856x512 1920x512"
)


def _size_table(sides: str) -> dict[str, tuple[int, int]]:
    sizes = [(int(height), int(width)) for height, width in (entry.split("x") for entry in sides.split())]
    # A published key is height / width to two digits; the one exception has three.
    return {"0.577" if size == (480, 832) else f"{size[0] / size[1]:.2f}": size for size in sizes}


PUBLISHED_SIZES: dict[str, dict[str, tuple[int, int]]] = {"480P": _size_table(_480P), "720P": _size_table(_720P)}
"""The talking avatar's two tables: height / width as text -> (height, width)."""

LAB_WHITE = (0.95047, 1.0, 1.08883)
"""D65, as kornia has it."""

_RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_CLIP_SIDE = 224
_CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)[:, None, None]
_CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)[:, None, None]
_CUBIC = -0.75  # torch's bicubic coefficient; Pillow's is -0.5
_SMALLEST_STD = 1e-6


def nearest_size(height: int, width: int, *, table: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Return the (height, width) of a table whose key is nearest to a picture's height / width.

    >>> nearest_size(1080, 1920, table=PUBLISHED_SIZES["480P"])
    (480, 832)
    """
    ratio = height / width
    found_height, found_width = table[min(table, key=lambda key: abs(float(key) - ratio))]
    return found_height, found_width


def resize_and_crop(pixels: Pixels, *, size: tuple[int, int]) -> Pixels:
    """Return a picture scaled until it covers a size and cut to it around the centre, shape (*size, 3).

    Args:
        pixels: shape (H, W, 3).
        size: (height, width).
    """
    from PIL import Image

    height, width = size
    found_height, found_width = pixels.shape[:2]
    scale = max(height / found_height, width / found_width)
    covering = math.ceil(scale * found_height), math.ceil(scale * found_width)
    resized = Image.fromarray(pixels).resize(covering[::-1], Image.Resampling.BILINEAR)
    top, left = round((covering[0] - height) / 2), round((covering[1] - width) / 2)  # round: half to even, as published
    return np.array(resized)[top : top + height, left : left + width]


def to_unit(pixels: Pixels) -> Floats:
    """Return pixels (H, W, 3) as a unit picture (3, H, W) in [-1, 1]."""
    values = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((values - np.float32(0.5)) * np.float32(2)).transpose(2, 0, 1), dtype=np.float32)


def to_pixels(frames: Floats) -> Pixels:
    """Return frames in [-1, 1], any shape, as uint8: cut off at both ends and truncated, not rounded, as published."""
    return np.clip((frames + np.float32(1)) * np.float32(127.5), 0, 255).astype(np.uint8)


def clip_pixels(frame: Floats) -> Floats:
    """Return a unit picture (3, H, W) as the image encoder takes it: (1, 3, 224, 224), squeezed, CLIP's mean and std.

    Bicubic as in torch (half-pixel centres, a = -0.75, edges repeated, no antialiasing), in float32.
    """
    square = _cubic(_cubic(frame, axis=2), axis=1)
    return (((square * np.float32(0.5) + np.float32(0.5)) - _CLIP_MEAN) / _CLIP_STD)[None]


def rgb_to_lab(rgb: npt.NDArray[np.floating[Any]]) -> Doubles:
    """Return sRGB (3, ...) in [0, 1] as CIE Lab (3, ...) under D65; L in [0, 100]."""
    colours = np.asarray(rgb, dtype=np.float64)
    linear = np.where(colours > 0.04045, ((np.maximum(colours, 0) + 0.055) / 1.055) ** 2.4, colours / 12.92)
    x, y, z = (row / white for row, white in zip(np.tensordot(_RGB_TO_XYZ, linear, axes=1), LAB_WHITE, strict=True))
    fx, fy, fz = (np.where(v > 0.008856, np.cbrt(v), 7.787 * v + 4 / 29) for v in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def lab_to_rgb(lab: npt.NDArray[np.floating[Any]]) -> Doubles:
    """Return CIE Lab (3, ...) under D65 as sRGB (3, ...), cut off at 0 and 1."""
    lightness, a, b = np.asarray(lab, dtype=np.float64)
    fy = (lightness + 16) / 116
    fx, fz = a / 500 + fy, np.maximum(fy - b / 200, 0)
    parts = (np.where(f > 0.2068966, f**3, (f - 4 / 29) / 7.787) for f in (fx, fy, fz))
    xyz = np.stack([part * white for part, white in zip(parts, LAB_WHITE, strict=True)])
    linear = np.tensordot(np.linalg.inv(_RGB_TO_XYZ), xyz, axes=1)
    curved = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.clip(np.where(linear > 0.0031308, curved, 12.92 * linear), 0, 1)


def lab_statistics(picture: Floats) -> tuple[Floats, Floats]:
    """Return mean and population standard deviation of a unit picture's Lab channels, shape (3,) each."""
    lab = rgb_to_lab((picture + np.float32(1)) * np.float32(0.5)).reshape(3, -1)
    return lab.mean(axis=1).astype(np.float32), lab.std(axis=1).astype(np.float32)


def match_colour(frames: Floats, *, mean: Floats, std: Floats, strength: float = 1.0) -> Floats:
    """Return frames with the Lab statistics of a portrait: the meaning of the graph `finish`, in float64.

    Args:
        frames: shape (3, T, H, W), RGB in [-1, 1]; every frame is matched by itself.
        mean: Lab means to reach, shape (3,).
        std: Lab standard deviations to reach, shape (3,).
        strength: 0 leaves the frames as they are, 1 matches them; blended in RGB.
    """
    if strength == 0:
        return frames
    matched = np.empty_like(frames)
    target_mean, target_std = (np.asarray(row, dtype=np.float64)[:, None, None] for row in (mean, std))
    for index in range(frames.shape[1]):
        rgb = (frames[:, index].astype(np.float64) + 1) / 2
        lab = rgb_to_lab(rgb)
        own_std = np.maximum(lab.std(axis=(1, 2), keepdims=True), _SMALLEST_STD)
        shifted = (lab - lab.mean(axis=(1, 2), keepdims=True)) * (target_std / own_std) + target_mean
        matched[:, index] = ((1 - strength) * rgb + strength * lab_to_rgb(shifted)) * 2 - 1
    return matched


def _cubic(values: Floats, *, axis: int) -> Floats:
    """Return values with one axis squeezed or stretched to CLIP's side."""
    length = values.shape[axis]
    scale = np.float32(length) / np.float32(_CLIP_SIDE)
    places = (np.arange(_CLIP_SIDE, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    low = np.floor(places)
    shape = [_CLIP_SIDE if i == axis else 1 for i in range(values.ndim)]
    total = np.zeros([_CLIP_SIDE if i == axis else n for i, n in enumerate(values.shape)], dtype=np.float32)
    for tap in range(-1, 3):
        weights = _cubic_weight(np.abs(places - (low + np.float32(tap))))
        indices = np.clip(low.astype(np.int64) + tap, 0, length - 1)
        total += np.take(values, indices, axis=axis) * weights.reshape(shape)
    return total


def _cubic_weight(distance: npt.NDArray[np.floating[Any]]) -> Floats:
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return np.where(distance <= 1, near, far).astype(np.float32)
