# SPDX-License-Identifier: Apache-2.0
"""How far one result lies from another: tensors, pictures, seams, colours, and the movement of a mouth.

Numpy only; no clock, no files. `ours` is what is judged, `theirs` the reference. Decibels end at `MOST_DB`, which
stands for "identical", so that every figure can be written as JSON.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

MOST_DB = 200.0
"""Float32 against itself summed in another order is near 125 dB; more than this is the same value."""

SSIM_TAPS, SSIM_SIGMA = 11, 1.5
"""Window of the published SSIM: a Gaussian of 11 x 11 pixels with a standard deviation of 1.5."""

LUMA = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601 weights of R, G and B."""

MOST_DRIFT_POINTS = 600
"""Theil-Sen looks at every pair: 600 points are 180 000 slopes; longer clips are averaged down to that."""


# ── Tensors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def sqnr_db(ours: Array, theirs: Array) -> float:
    """Return signal to noise: power of the reference over power of the difference, decibels.

    Values that are not finite give `-MOST_DB`: they are no signal at all.
    """
    power, noise = _powers(ours, theirs)
    return _decibels(power, noise)


def rel_l2(ours: Array, theirs: Array) -> float:
    """Return the norm of the difference over the norm of the reference; at most 1e10, also where the reference is 0."""
    power, noise = _powers(ours, theirs)
    if noise == 0:
        return 0.0
    return min(math.sqrt(noise / power), 1e10) if power and math.isfinite(noise) else 1e10


def cosine(ours: Array, theirs: Array) -> float:
    """Return the cosine of the angle between two tensors, read as vectors; 1 where both are zero, 0 where one is."""
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if norms == 0:
        return float(not a.any() and not b.any())
    return float(a @ b) / norms if math.isfinite(norms) else 0.0


def _powers(ours: Array, theirs: Array) -> tuple[float, float]:
    """Return the energies of the reference and of the difference."""
    if ours.shape != theirs.shape:
        raise ValueError(f"the shapes {ours.shape} and {theirs.shape} differ; only equal ones can be compared")
    reference = theirs.astype(np.float64).ravel()
    with np.errstate(invalid="ignore"):  # infinity minus itself is noise without end, not a warning
        difference = ours.astype(np.float64).ravel() - reference
        noise = float(difference @ difference)
        power = float(reference @ reference)
    return power, noise if math.isfinite(noise) else math.inf


def _decibels(power: float, noise: float) -> float:
    if noise == 0:
        return MOST_DB
    if power == 0 or math.isinf(noise):
        return -MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * math.log10(power / noise)))


# ── Pictures: (T, H, W, 3) uint8 RGB ─────────────────────────────────────────────────────────────────────────────────


def psnr_db(ours: Pixels, theirs: Pixels) -> float:
    """Return the peak signal to noise ratio over all frames together, decibels; the peak is 255."""
    _power, noise = _powers(ours, theirs)
    return _decibels(255.0**2 * ours.size, noise)


def ssim(ours: Pixels, theirs: Pixels) -> float:
    """Return the structural similarity of the luma, mean over all frames and over pixels with a whole window.

    Gaussian window of 11 x 11, K1 0.01, K2 0.03, peak 255, as published by Wang, Bovik, Sheikh and Simoncelli (2004).

    Raises:
        ValueError: the shapes differ, or a frame is smaller than the window.
    """
    if ours.shape != theirs.shape or min(ours.shape[1:3]) < SSIM_TAPS or not len(ours):
        raise ValueError(f"frames {ours.shape} and {theirs.shape}; expected equal ones of at least {SSIM_TAPS} pixels")
    return float(np.mean([_ssim_of_frame(luma(a), luma(b)) for a, b in zip(ours, theirs, strict=True)]))


def _ssim_of_frame(a: Floats, b: Floats) -> float:
    steady, steady_contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blurred(a), _blurred(b)
    spread = _blurred(a * a) - mean_a**2 + _blurred(b * b) - mean_b**2
    together = _blurred(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + steady) * (2 * together + steady_contrast)
    below = (mean_a**2 + mean_b**2 + steady) * (spread + steady_contrast)
    return float(np.mean(above / below))


def _blurred(plane: Floats) -> Floats:
    """Average with the Gaussian window, where it lies wholly inside: (H, W) to (H - 10, W - 10)."""
    distance = np.arange(SSIM_TAPS) - SSIM_TAPS // 2
    taps = np.exp(-(distance**2) / (2 * SSIM_SIGMA**2))
    taps /= taps.sum()
    height, width = plane.shape[0] - SSIM_TAPS + 1, plane.shape[1] - SSIM_TAPS + 1
    rows = sum((tap * plane[at : at + height] for at, tap in enumerate(taps)), start=np.zeros((height, plane.shape[1])))
    return sum((tap * rows[:, at : at + width] for at, tap in enumerate(taps)), start=np.zeros((height, width)))


def luma(frames: Pixels) -> Floats:
    """Return the luma of frames (..., H, W, 3): (..., H, W) in 0 to 255."""
    return frames.astype(np.float64) @ LUMA


def crop(frames: Array, box: Box) -> Array:
    """Cut frames (T, H, W, ...) to a box: top, left, bottom, right as fractions; at least one pixel each way."""
    height, width = frames.shape[1:3]
    top, bottom = _span(box[0], box[2], size=height)
    left, right = _span(box[1], box[3], size=width)
    return frames[:, top:bottom, left:right]


def _span(start: float, stop: float, *, size: int) -> tuple[int, int]:
    first = min(round(start * size), size - 1)
    return first, max(first + 1, round(stop * size))


# ── Seams and colours ────────────────────────────────────────────────────────────────────────────────────────────────


def seam_ratio(frames: Pixels, seams: Sequence[int]) -> float:
    """Return the median change of a frame at seams over the median change elsewhere; 1 is a seam that nobody sees.

    Args:
        frames: (T, H, W, 3).
        seams: indices of the first frames after a seam.

    Raises:
        ValueError: no seam, or nothing but seams.
    """
    inner = sorted({seam for seam in seams if 0 < seam < len(frames)})
    if not inner or len(inner) >= len(frames) - 1:
        raise ValueError(f"{len(inner)} seams in {len(frames)} frames; expected some seams and some other frames")
    change = np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)])  # [i]: of frame i + 1
    at_seam = np.isin(np.arange(1, len(frames)), inner)
    elsewhere = float(np.median(change[~at_seam]))
    return float(np.median(change[at_seam])) / max(elsewhere, 1e-6)


def colour_drift(ours: Pixels, theirs: Pixels, *, fps: float) -> dict[str, float]:
    """Return how fast colours leave the reference's: `luma`, `cb` and `cr`, levels of 255 per minute.

    The slope is Theil-Sen's (the median over all pairs of frames), of the difference between the two clips' means: what
    the reference does itself, breathing or a turn of the head, is the same in both and cancels.

    Raises:
        ValueError: fewer than two frames, or not equally many.
    """
    difference = _mean_colours(ours) - _mean_colours(theirs)
    return {name: theil_sen(difference[:, at], fps=fps) * 60 for at, name in enumerate(("luma", "cb", "cr"))}


def _mean_colours(frames: Pixels) -> Floats:
    """Return luma, Cb and Cr of every frame's mean colour: (T, 3), levels."""
    rgb = np.array([frame.reshape(-1, 3).mean(axis=0) for frame in frames])
    y = rgb @ LUMA
    return np.stack([y, (rgb[:, 2] - y) * 0.564, (rgb[:, 0] - y) * 0.713], axis=1)


def theil_sen(values: Floats, *, fps: float) -> float:
    """Return the median slope over all pairs, per second; long series are averaged in equal pieces first."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} values; expected at least 2 to have a slope")
    piece = -(-len(values) // MOST_DRIFT_POINTS)
    whole = len(values) // piece
    points = values[: whole * piece].reshape(whole, piece).mean(axis=1)
    first, second = np.triu_indices(whole, k=1)
    return float(np.median((points[second] - points[first]) / (second - first))) * fps / piece


# ── The mouth ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class MouthMotion:
    """What moves most in the mouth box of a clip: the direction in which its pixels change together."""

    box: Box
    """Top, left, bottom, right as fractions of the frame."""
    rest: Floats
    """The box's mean luma, flat."""
    direction: Floats
    """Unit vector of the same length, turned so that a darker box (an open mouth) is positive."""

    @classmethod
    def of(cls, frames: Pixels, box: Box) -> "MouthMotion":
        """Find it in a reference clip: the first principal component of the box's luma over time."""
        pixels = _mouth_pixels(frames, box)
        rest = pixels.mean(axis=0)
        centred = pixels - rest
        values, vectors = np.linalg.eigh(centred @ centred.T)  # frames are fewer than pixels
        direction = centred.T @ vectors[:, np.argmax(values)]
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
        return cls(box, rest, -direction if direction.sum() > 0 else direction)

    def signal(self, frames: Pixels) -> Floats:
        """Return how far along it every frame of a clip is: (T,), in levels times the root of the pixel count."""
        return (_mouth_pixels(frames, self.box) - self.rest) @ self.direction


def _mouth_pixels(frames: Pixels, box: Box) -> Floats:
    return luma(crop(frames, box)).reshape(len(frames), -1)


def correlation(ours: Floats, theirs: Floats) -> float:
    """Return Pearson's correlation of two series; 0 for one that does not move."""
    if ours.std() < 1e-9 or theirs.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(ours, theirs)[0, 1])


def lip_sync(ours: Floats, theirs: Floats, *, fps: float, reach: int = 8) -> tuple[float, float]:
    """Compare the movement of two mouths.

    Args:
        ours: a series, one value per frame.
        theirs: the reference's, of the same length.
        fps: frames per second.
        reach: look at shifts of up to so many frames, either way.

    Returns:
        (highest correlation over the shifts, milliseconds by which ours is late); the lag is that of the parabola
        through the peak and its neighbours.

    Raises:
        ValueError: the lengths differ, or leave less than 8 frames to compare.
    """
    if len(ours) != len(theirs) or len(ours) < 2 * reach + 8:
        raise ValueError(f"{len(ours)} and {len(theirs)} frames; expected equally many, at least {2 * reach + 8}")
    inside = theirs[reach : len(theirs) - reach]
    found = [correlation(ours[at : at + len(inside)], inside) for at in range(2 * reach + 1)]
    best = int(np.argmax(found))
    return found[best], (best - reach + _vertex(found, best)) * 1000 / fps


def _vertex(values: Sequence[float], best: int) -> float:
    """Return where the parabola through a peak and its neighbours is highest, relative to the peak's place."""
    if not 0 < best < len(values) - 1:
        return 0.0
    left, middle, right = values[best - 1 : best + 2]
    bend = left - 2 * middle + right
    return 0.5 * (left - right) / bend if bend else 0.0
