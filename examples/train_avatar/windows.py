# SPDX-License-Identifier: Apache-2.0
"""Training windows for the DiT: what the sampler will show it, put together from encoded clips.

Windows of 9 to 81 frames; after the portrait, after one frame or after five frames of a window before; with a key frame
at the end or without; with draws of chance or without.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .chance import at_rest
from .footage import Footage
from .latents import MOTION, ClipLatents, load_clip_latents

GRID = 24
"""Rows and columns of a latent frame."""
BATCHES = {9: (0.08, 12), 17: (0.42, 7), 33: (0.4, 4), 49: (0.05, 3), 81: (0.05, 2)}
"""Frames of a window -> share of the steps, windows in a batch: about equally much work."""
CLIP_LATENT_FRAMES = 197
"""Frames of a clip that its latents cover."""


@dataclass(frozen=True)
class Batch:
    """Windows of one length; the first axis counts them."""

    latents: Tensor
    """[B, 16, T, h, w], the truth."""
    condition: Tensor
    """[B, 20, T, h, w]: four mask channels, then the latents of the padded window."""
    audio_first: Tensor
    """[B, 5, layers, width]."""
    audio_rest: Tensor
    """[B, T - 1, 8, layers, width]."""
    draws: Tensor
    """[B, T, 4]: what chance decides, NaN where it decides nothing."""
    weight: Tensor
    """[B, 1, 1, h, w]: how much each latent position counts, mean 1."""


class Windows:
    """Random windows from the encoded clips; new files are taken up as they appear."""

    def __init__(self, folder: Path, *, held_out: bool = False) -> None:
        self.folder = folder / "latents"
        self.footage = Footage.open(folder)
        self._wanted = self.footage.held_out if held_out else frozenset(self.footage.training)
        self.clips: dict[int, ClipLatents] = {}
        with np.load(self.folder / "fixed.npz") as fixed:
            self.grey = fixed["grey"]
            self.portraits = {name: fixed[f"portrait_{name}"] for name in self.footage.portraits}
        self._weights = {name: latent_weight(weight) for name, weight in self.footage.weights.items()}
        self.refresh()

    def refresh(self) -> None:
        """Read the clips that have been encoded since."""
        for path in sorted(self.folder.glob("clip_????.npz")):
            index = int(path.stem[5:])
            if index not in self.clips and index in self._wanted:
                self.clips[index] = load_clip_latents(path)
        self._indices = sorted(self.clips)

    def batch(self, generator: np.random.Generator, *, window: int) -> Batch:
        """Return random windows of one length: the first of a video, later ones, and key-frame passes."""
        drawn = [self._window(generator, window) for _ in range(BATCHES[window][1])]
        stacked = [torch.from_numpy(np.stack(parts).astype(np.float32)) for parts in zip(*drawn, strict=True)]
        return Batch(*stacked)

    def _window(self, generator: np.random.Generator, window: int) -> tuple[npt.NDArray, ...]:
        index = self._indices[generator.integers(len(self._indices))]
        clip, latent_frames = self.clips[index], 1 + (window - 1) // 4
        kind = generator.random()
        known = 0 if kind < 0.25 else 1 if kind < 0.35 or window < MOTION + 5 else MOTION  # 0: after the portrait
        places = np.flatnonzero(clip.starts + window <= CLIP_LATENT_FRAMES)
        if known == 0:
            places = self._resting(index, clip.starts, places)
        place = int(generator.choice(places))
        begin = int(clip.starts[place])
        latents = clip.whole[:, begin // 4 : begin // 4 + latent_frames].astype(np.float32)
        latents[:, :2] = clip.begins[place]
        padded = self.grey[:, np.minimum(np.arange(latent_frames), len(self.grey[0]) - 1)].copy()
        face = self.footage.faces[index]
        if known == 0:
            padded[:, :3] = self.portraits[face]
        else:
            motions = clip.motions if known == MOTION else clip.singles
            padded[:, :3] = motions[place] + generator.normal(0, 0.04, padded[:, :3].shape)
        tail = generator.random() < 0.75
        if tail:
            padded[:, -2:] = clip.tails[self._tail(clip, begin + window, generator)]
        features = clip.features[int(generator.random() < 0.4)].astype(np.float32)
        if generator.random() < 0.03:
            features = np.zeros_like(features)
        condition = np.concatenate([mask(latent_frames, known=max(known, 1), tail=tail), padded])
        draws = self.chance(index, begin // 4, latent_frames, known)
        return latents, condition, *audio_windows(features, begin, latent_frames), draws, self._weights[face]

    def _resting(self, index: int, starts: npt.NDArray, places: npt.NDArray) -> npt.NDArray:
        """Return the places where the face looks as on the portrait, at least the clip's beginning."""
        if self.footage.draws is None:
            return places
        draws = self.footage.draws[index]
        resting = [place for place in places if at_rest(draws, int(starts[place]))]
        return np.array(resting or [0])

    def chance(self, index: int, first: int, count: int, known: int) -> npt.NDArray[np.float32]:
        """Return the draws of a window's latents; those that the motion frames already show stay free."""
        if self.footage.draws is None:
            return np.full((count, 4), np.nan, np.float32)
        draws = self.footage.draws[index][first : first + count].copy()
        draws[: 2 if known == MOTION else 1] = np.nan
        return draws

    @staticmethod
    def _tail(clip: ClipLatents, end: int, generator: np.random.Generator) -> int:
        """Choose a key frame: at run time it comes from another time, so most often not the nearest."""
        if generator.random() < 0.6:
            return int(generator.integers(len(clip.tail_frames)))
        return int(generator.choice(np.argsort(np.abs(clip.tail_frames - end))[:3]))


def random_length(generator: np.random.Generator) -> int:
    """Return the frames of the next batch's windows."""
    lengths = list(BATCHES)
    return int(generator.choice(lengths, p=[BATCHES[length][0] for length in lengths]))


def latent_weight(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the weight of each latent position, shape (1, 1, h, w), mean 1: the pixels' to the power of 1.5."""
    pooled = weight.reshape(GRID, 8, GRID, 8).max((1, 3)) ** 1.5
    return (pooled / pooled.mean())[None, None]


def mask(latent_frames: int, *, known: int, tail: bool) -> npt.NDArray[np.float32]:
    """Return the four mask channels of a window, shape (4, T, h, w)."""
    result = np.zeros((4, latent_frames, GRID, GRID), np.float32)
    result[:, 0] = 1.0
    if known == MOTION:
        result[:, 1] = 1.0
    if tail:
        result[3, -2] = 1.0
        result[:, -1] = 1.0
    return result


def audio_windows(
    features: npt.NDArray[np.float32], begin: int, latent_frames: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the features that each latent of the window at frame `begin` hears, first latent and the later ones."""
    last = len(features) - 1
    first = features[np.clip(np.arange(begin - 2, begin + 3), 0, last)]
    offsets = 4 * np.arange(1, latent_frames)[:, None] + np.arange(-5, 3)[None]
    return first, features[np.clip(begin + offsets, 0, last)]
