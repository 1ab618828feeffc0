# SPDX-License-Identifier: Apache-2.0
"""Find the blinks of a filmed face, so that noise can decide them at run time as it does for the drawn faces.

No sound foretells most blinks, and a network with one denoising step would return the mean of open and closed. So the
latents in which the eyes close get a draw of `chance` that means a blink, the others one that means none; what the eyes
do otherwise stays free.
"""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label, median_filter

from .chance import BLINK_ABOVE, DRAWS, FRAMES_PER_LATENT
from .footage import CLIP_LATENTS, SIZE
from .motion_box import GRID

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

EYES, MOUTH = 2.2, 3.5
"""Pixels that weigh at least so much are eyes, if they lie above those that weigh the second, the mouth."""
_USUAL_FRAMES = 21
"""The look of open eyes is the median over so many frames: longer than a blink, shorter than a glance."""
_MOVEMENTS = 4
"""Independent movements that are looked for around the eyes: nods, turns, glances, and lids."""
_SKEW = 1.5
"""Lids are open nearly always and closed for moments; what goes both ways alike, as a nod does, has a skewness of 0."""
_CLEAR = 9.0
"""A blink is at least so many times the usual change; it was 12 and more where there were blinks, and 6 where not."""
_ITERATIONS = 40
_RARE = 0.2
"""Blinks are seen in no larger share of the frames."""


def blink_draws(
    small: dict[int, Pixels], weight: npt.NDArray[np.float32], *, clips: int, seed: int = 0
) -> npt.NDArray[np.float32] | None:
    """Return what chance decided, shape (clips, 50, 4), NaN where nobody knows; None if no blinks are seen.

    Args:
        small: clip -> grey pictures (200, 48, 48).
        weight: (192, 192) of the pixels.
        clips: how many there are; those that are missing in `small` stay unknown.
        seed: of the draws that stand for a blink and for none.
    """
    inside = _eyes(weight)
    if not inside.any():
        return None
    closed = _closures({clip: frames[:, inside] for clip, frames in small.items()})
    if closed is None:
        return None
    draws = np.full((clips, CLIP_LATENTS, DRAWS), np.nan, np.float32)
    generator = np.random.default_rng(seed)
    for clip, lids in closed.items():
        draws[clip, :, 0] = _below(generator, CLIP_LATENTS)
        for latent in begun(lids):
            draws[clip, latent, 0] = _above(generator)
    return draws


def begun(lids: npt.NDArray[np.bool_]) -> list[int]:
    """Return the latents in which lids, shape (frames,), begin to close: a frame before they are half closed."""
    starts = np.flatnonzero(np.diff(lids.astype(int), prepend=0) > 0)
    latents = (-(-max(int(start) - 1, 0) // FRAMES_PER_LATENT) for start in starts)
    return [latent for latent in latents if latent < CLIP_LATENTS]


def _eyes(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which of 48 x 48 places are eyes, or lids."""
    places = weight.reshape(GRID, SIZE // GRID, GRID, SIZE // GRID).mean((1, 3))
    mouth = np.flatnonzero((places > MOUTH).any(1))
    inside = places > EYES
    inside[(mouth[0] - 3 if len(mouth) else 0) :] = False
    return inside


def _closures(eyes: dict[int, Pixels]) -> dict[int, npt.NDArray[np.bool_]] | None:
    """Return in which frames lids are more than half closed; None where no change stands out as blinks do."""
    sudden = {
        clip: series - median_filter(series, size=(_USUAL_FRAMES, 1), mode="nearest")
        for clip, series in ((clip, frames.astype(np.float32)) for clip, frames in eyes.items())
    }
    most_skewed = _most_skewed(np.concatenate(list(sudden.values())))
    along = {clip: series @ most_skewed for clip, series in sudden.items()}
    every = np.concatenate(list(along.values()))
    skewness = float((every**3).mean() / (every**2).mean() ** 1.5)
    strength = float(np.percentile(every, 99))
    closed = {clip: _joined(series > 0.5 * strength) for clip, series in along.items()}
    share = float(np.mean([lids.mean() for lids in closed.values()]))
    usual = float(np.median(np.abs(every)))
    return closed if skewness > _SKEW and strength > _CLEAR * usual and share < _RARE else None


def _most_skewed(series: npt.NDArray[np.floating]) -> Floats:
    """Return the direction, among the strongest movements, along which series (frames, places) are most skewed.

    The fixed-point iteration of independent component analysis, with the square as its nonlinearity.
    """
    values, vectors = np.linalg.eigh((series.T @ series / len(series)).astype(np.float64))
    white = vectors[:, -_MOVEMENTS:] / np.sqrt(values[-_MOVEMENTS:] + 1e-6)
    points = series @ white
    found: list[tuple[float, Floats]] = []
    for start in np.eye(points.shape[1]):
        direction = start
        for _ in range(_ITERATIONS):
            direction = points.T @ (points @ direction) ** 2
            direction /= max(float(np.linalg.norm(direction)), 1e-12)
        found.append((float(((points @ direction) ** 3).mean()), white @ direction))
    return max(found, key=lambda pair: pair[0])[1]


def _joined(lids: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the same with gaps of one frame closed, and without what lasts half a second or longer."""
    joined = lids | (np.roll(lids, 1) & np.roll(lids, -1))
    groups, count = label(joined)  # pyright: ignore[reportGeneralTypeIssues]
    for group in range(1, count + 1):
        if (groups == group).sum() > 12:
            joined[groups == group] = False
    return joined


def _above(generator: np.random.Generator) -> float:
    """Draw from the part of the normal distribution that means a blink."""
    while True:
        drawn = generator.standard_normal(512)
        if (drawn > BLINK_ABOVE).any():
            return float(drawn[drawn > BLINK_ABOVE][0])


def _below(generator: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    """Draw from the part that means none."""
    drawn = generator.standard_normal(count)
    while (over := drawn > BLINK_ABOVE).any():
        drawn[over] = generator.standard_normal(int(over.sum()))
    return drawn.astype(np.float32)
