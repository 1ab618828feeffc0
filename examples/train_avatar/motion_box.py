# SPDX-License-Identifier: Apache-2.0
"""Where a filmed face is, and which pixels of it matter, from nothing but movement and sound.

Nobody's mouth moves like the sound that one hears but the speaker's: how much of every pixel's quick change is foretold
by the sound finds the mouth, without a face detector and whatever else moves in the picture. The box around the face
follows from the mouth and from the movement of the head above it.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_closing, binary_dilation, binary_erosion, gaussian_filter, gaussian_filter1d, label

from .footage import CLIP_FRAMES, CLIP_SAMPLES, FPS, SAMPLE_RATE, SIZE

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

GRID = 48
"""Rows and columns of the maps that pixel weights are made from: four pixels each."""
MOUTH, MOVING = 4.0, 3.0
"""Weight of the pixels that the sound moves, and of those that move on their own, such as eyes; others weigh 1."""
HEARD = 0.03
"""Share of a place's quick change that sound has to foretell; in what doesn't follow the sound it is below 0.01."""

_STEP = SAMPLE_RATE // FPS
_BANDS_HZ = (100, 500, 1500, 4000, 8000)
_LAGS = (-2, -1, 0, 1, 2)
"""Frames by which lips may be ahead of, or behind, their sound."""
_QUICK = 3.0
"""Frames: what is slower than this, such as light and posture, is left out."""
_RIDGE = 1.0
_RANGE_DB, _QUIET_DB = 25.0, -55.0
"""Speech is what is less quiet than its loud parts by the first, and louder than the second."""
_AMID = (12, 10)
"""Frames before and after which speech must go on."""
_ASIDE = 0.02
"""How much the frames of other moments count: something, for who never speaks a second without a pause."""

# Where the mouth is in the package's own faces, in sides of the box, so that the weights training starts from fit.
_MOUTH_ROW = 0.64
_TOP_TO_MOUTH = 0.59
_HEAD_WIDTH = 0.62
_FAINT = 0.04
"""Share of the strongest movement that still counts as movement of the head."""
_MOUTHS_WIDE = (4.2, 8.0)
"""The box is at least and at most so many times as wide as the part of the mouth that moves most."""


@dataclass(frozen=True)
class Box:
    """A square in a picture, in pixels."""

    top: int
    left: int
    side: int

    def cut(self, picture: Pixels) -> Pixels:
        """Return what lies in the box."""
        return picture[self.top : self.top + self.side, self.left : self.left + self.side]


class MotionMaps:
    """Sums over clips of one camera position: how much every place moves, and how much of it sound foretells."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """Start for grey pictures of a shape (rows, columns)."""
        self.shape = shape
        features, places = len(_LAGS) * (len(_BANDS_HZ) - 1), shape[0] * shape[1]
        # In two halves: what one half of every clip teaches is judged on the other.
        self._own, self._shared = np.zeros((2, features, features)), np.zeros((2, features, places))
        self._quick, self._steps = np.zeros(places), np.zeros(places)
        self.clips, self._counted = 0, 0.0

    def add(self, pictures: Pixels, sound: npt.NDArray[np.floating]) -> None:
        """Count a clip: grey pictures (200, rows, columns) and sound (128000,)."""
        flat = pictures.reshape(CLIP_FRAMES, -1).astype(np.float32)
        heard = _quick(sound_features(sound))
        seen = _quick(flat)
        counts = fluent(sound)[:, None]
        for half, part in enumerate(np.array_split(np.arange(CLIP_FRAMES), 2)):
            counted = counts[part] * heard[part]
            self._own[half] += heard[part].T @ counted
            self._shared[half] += counted.T @ seen[part]
        self._quick += (counts * seen**2).sum(0)
        self._counted += float(counts.sum())
        self._steps += (np.diff(flat, axis=0) ** 2).mean(0)
        self.clips += 1

    @property
    def moving(self) -> Floats:
        """How much brightness changes from picture to picture, in levels (root mean square), shape `shape`."""
        return np.sqrt(self._steps / max(self.clips, 1)).reshape(self.shape)

    @property
    def heard(self) -> Floats:
        """Levels of quick change that sound foretells, in halves of clips it wasn't learned from, shape `shape`."""
        return np.sqrt(np.maximum(self._foretold(), 0)).reshape(self.shape)

    @property
    def heard_share(self) -> Floats:
        """Share of the quick change that sound foretells, shape `shape`; below 0 where it foretells nothing."""
        power = self._quick / max(self._counted, 1e-9)
        return (self._foretold() / (power + 1.0)).reshape(self.shape)  # a level squared: rounding of the pictures

    def _foretold(self) -> Floats:
        foretold = np.zeros(self.shape[0] * self.shape[1])
        for half in (0, 1):
            learned = self._own[1 - half] + _RIDGE * np.eye(len(self._own[half]))
            map_ = np.linalg.solve(learned, self._shared[1 - half])
            foretold += (map_ * (2 * self._shared[half] - self._own[half] @ map_)).sum(0)
        return foretold / max(self._counted, 1e-9)


def sound_features(sound: npt.NDArray[np.floating]) -> Floats:
    """Return the loudness of four bands around every frame of a clip, with its neighbours, shape (200, 20)."""
    padded = np.pad(np.asarray(sound, np.float64)[:CLIP_SAMPLES], _STEP // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _STEP)[::_STEP] * np.hanning(2 * _STEP)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2 / _STEP
    places = np.searchsorted(np.fft.rfftfreq(2 * _STEP, 1 / SAMPLE_RATE), _BANDS_HZ)
    bands = [power[:, first:last].mean(1) for first, last in pairwise(places)]
    level = np.log10(np.stack(bands, 1) + 1e-6)
    shifted = [level[np.clip(np.arange(CLIP_FRAMES) + lag, 0, CLIP_FRAMES - 1)] for lag in _LAGS]
    return np.concatenate(shifted, 1)


def find_box(maps: MotionMaps, *, width: int, height: int) -> tuple[Box, bool]:
    """Return the box of the face in pictures of so many pixels, and whether the sound found it.

    Where no place moves with the sound it is the largest square in the middle.
    """
    rows, columns = maps.shape
    pixels = height / rows
    mouth = _mouth(maps)
    if mouth is None:
        side = min(width, height)
        return Box((height - side) // 2, (width - side) // 2, side), False
    weight = maps.heard * mouth
    row = float((weight.sum(1) * np.arange(rows)).sum() / weight.sum())
    column = float((weight.sum(0) * np.arange(columns)).sum() / weight.sum())
    wide = float(np.ptp(np.flatnonzero(mouth.any(0)))) + 1
    top, head = _head(maps, mouth, row=row, column=column, reach=2.5 * wide)
    side = max((row - top) / _TOP_TO_MOUTH, head / _HEAD_WIDTH)
    side = float(np.clip(side, _MOUTHS_WIDE[0] * wide, _MOUTHS_WIDE[1] * wide)) * pixels
    side = min(round(side), width, height)
    top_px = round((row + 0.5) * pixels - _MOUTH_ROW * side)
    left_px = round((column + 0.5) * pixels - side / 2)
    return Box(int(np.clip(top_px, 0, height - side)), int(np.clip(left_px, 0, width - side)), side), True


def _mouth(maps: MotionMaps) -> npt.NDArray[np.bool_] | None:
    """Return the group of places that follows the sound most; None where nothing does."""
    heard = gaussian_filter(maps.heard, 0.7)
    groups, count = label(heard > 0.4 * heard.max())  # pyright: ignore[reportGeneralTypeIssues]
    sums = [heard[groups == group].sum() for group in range(1, count + 1)]
    mouth = np.asarray(groups == 1 + int(np.argmax(sums)))
    share = gaussian_filter(maps.heard_share, 0.7)
    return mouth if share[mouth].max() >= HEARD else None


def _head(
    maps: MotionMaps, mouth: npt.NDArray[np.bool_], *, row: float, column: float, reach: float
) -> tuple[float, float]:
    """Return the first row of what moves with the mouth's head, and how wide that is above the mouth."""
    moving = gaussian_filter(maps.moving, 0.7)
    still = float(np.percentile(moving, 20))
    grown = np.asarray(binary_dilation(moving > still + _FAINT * (float(moving.max()) - still), iterations=2), bool)
    groups, _ = label(grown | mouth)  # pyright: ignore[reportGeneralTypeIssues]
    peak = np.unravel_index(int((maps.heard * mouth).argmax()), mouth.shape)
    head = groups == groups[peak]
    head[:, : max(0, int(column - reach))] = False
    head[:, int(column + reach) + 1 :] = False
    head[int(row) + 1 :] = False
    if not head.any():
        return row, 0.0
    used_rows, used_columns = np.flatnonzero(head.any(1)), np.flatnonzero(head.any(0))
    return float(used_rows[0]) + 2, float(used_columns[-1] - used_columns[0] + 1) - 4  # less the growth


def pixel_weight(maps: MotionMaps) -> npt.NDArray[np.float32]:
    """Return how much each pixel counts, shape (192, 192), from the maps (48, 48) of the box.

    1 where nothing moves, 3 where something does, 4 around the mouth, smooth, in blocks of the latents' eight pixels.
    """
    import cv2

    moving = gaussian_filter(maps.moving, 0.8)
    moving = np.maximum(moving - np.percentile(moving, 20), 0)
    mouth = _mouth(maps)
    # Where nothing follows the sound, what moves most is all that is known of the mouth.
    heard = moving if mouth is None else gaussian_filter(maps.heard, 0.8)
    around = np.ones_like(heard) if mouth is None else binary_dilation(mouth, iterations=2)
    spoken = np.clip(heard * around / (0.35 * (heard * around).max() + 1e-9), 0, 1)
    other = moving * (1 - spoken)
    other = np.clip(other / (0.4 * np.percentile(other, 99.5) + 1e-9), 0, 1)
    weight = 1 + (MOVING - 1) * other + (MOUTH - 1 - (MOVING - 1) * other) * spoken
    blocks = weight.reshape(GRID // 2, 2, GRID // 2, 2).max((1, 3)).astype(np.float32)
    large = cv2.resize(blocks, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large, np.float32)


def fluent(sound: npt.NDArray[np.floating]) -> Floats:
    """Return 1 for the frames of a clip amid speech that goes on, shape (200,), nearly 0 for the others.

    Many people blink, nod or lift their brows where they begin and end to speak: there the sound foretells eyes as well
    as lips.
    """
    power = np.asarray(sound, np.float64)[:CLIP_SAMPLES].reshape(CLIP_FRAMES, -1).astype(np.float64) ** 2
    level_db = 10 * np.log10(power.mean(1) + 1e-12)
    spoken = level_db > max(np.percentile(level_db, 95) - _RANGE_DB, _QUIET_DB)
    spoken = binary_closing(np.pad(spoken, 4), np.ones(4))[4:-4]
    before, after = _AMID
    amid = binary_erosion(spoken, np.ones(before + after + 1), origin=(before - after) // 2, border_value=1)
    return np.where(amid, 1.0, _ASIDE)


def _quick(series: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return series - gaussian_filter1d(series, _QUICK, axis=0, mode="nearest")
