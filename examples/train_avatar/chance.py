# SPDX-License-Identifier: Apache-2.0
"""Blinks and glances that sound does not decide: the noise decides them.

A network with one denoising step is a regression; whatever neither sound nor pictures tell would come out as a blur. So
every latent has four numbers of the standard normal distribution, its *draws*: they say in the drawn footage whether
the eyes blink and where they look, and in training the noise of that latent is shifted until four sums over it are
these numbers (`imprint`). The noise stays normally distributed, the map from noise to picture has one answer, and at
run time fresh noise blinks at fresh times.
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

DRAWS = 4
"""Per latent: blink, change of gaze, where to in x, in y."""
FRAMES_PER_LATENT = 4
BLINK_ABOVE = 1.75
"""Of the first draw: 4 % of the latents, one blink in 4 s."""
GLANCE_ABOVE = 1.4
"""Of the second draw: 8 % of the latents; the eyes look away, or back, every 2 s."""
REACH_X, REACH_Y = 0.5, 0.3
"""Gaze per unit of the third and fourth draw."""
LIDS = (0.5, 1.0, 1.0, 0.75, 0.4, 0.15)
"""Closure of the lids over the frames of a blink."""
EYES = np.s_[8:12, 8:16]
"""Rows and columns of the latents, at 24 x 24, whose noise is summed."""


def clip_draws(generator: np.random.Generator, latents: int) -> Floats:
    """Return the draws of a clip, shape (latents, 4)."""
    return generator.standard_normal((latents, DRAWS)).astype(np.float32)


def first_frame(latent: int) -> int:
    """Return the first frame of a latent: the first latent holds frame 0, each later one four frames."""
    return 0 if latent == 0 else FRAMES_PER_LATENT * latent - 3


def _starts(chosen: npt.NDArray[np.bool_], frames: int) -> dict[int, int]:
    """Return the chosen latents that begin within so many frames, each with its first frame."""
    starts = {int(latent): first_frame(int(latent)) for latent in np.flatnonzero(chosen)}
    return {latent: place for latent, place in starts.items() if place < frames}


def blinks(draws: Floats, frames: int) -> Floats:
    """Return the lids' closure per frame, shape (frames,), 0 to 1."""
    closed = np.zeros(frames + len(LIDS), np.float32)
    for place in _starts(draws[:, 0] > BLINK_ABOVE, frames).values():
        closed[place : place + len(LIDS)] = np.maximum(closed[place : place + len(LIDS)], LIDS)
    return closed[:frames]


def gaze(draws: Floats, frames: int) -> Floats:
    """Return where the eyes look per frame, shape (frames, 2), -0.9 to 0.9; a glance away is followed by one back."""
    looks = np.zeros((frames, 2), np.float32)
    away = False
    for latent, place in _starts(draws[:, 1] > GLANCE_ABOVE, frames).items():
        away = not away
        target = np.clip(draws[latent, 2:] * (REACH_X, REACH_Y), -0.9, 0.9) if away else np.zeros(2)
        before = looks[max(place - 1, 0)].copy()
        looks[place:] = target
        looks[place : place + 1] = 0.4 * before + 0.6 * target
    return looks


def follow(looks: Floats) -> Floats:
    """Return how far the head has followed the eyes, same shape; it arrives after a second."""
    followed = np.zeros_like(looks)
    for frame in range(1, len(looks)):
        followed[frame] = followed[frame - 1] + 0.1 * (looks[frame - 1] - followed[frame - 1])
    return followed


def at_rest(draws: Floats, frame: int) -> bool:
    """Return whether the eyes look ahead and are open at a frame, as on the portrait."""
    looks, closed = gaze(draws, frame + 1), blinks(draws, frame + 1)
    return not looks[frame].any() and closed[frame] == 0 and float(np.abs(follow(looks)[frame]).max()) < 0.05


def imprint(noise: Floats, draws: Floats) -> None:
    """Shift the noise, in place, until its sums over the eyes are the draws.

    Args:
        noise: shape (channels, latents, 24, 24), standard normal.
        draws: shape (latents, 4); NaN leaves a latent as it is.
    """
    count = noise[0, 0][EYES].size
    for index in range(DRAWS):
        region = noise[index][:, EYES[0], EYES[1]]
        wanted = draws[:, index] / math.sqrt(count)
        shift = np.where(np.isnan(wanted), 0.0, wanted - region.mean((1, 2)))
        region += shift[:, None, None].astype(np.float32)
