# SPDX-License-Identifier: Apache-2.0
"""Run the whole published procedure in PyTorch: key-frame pass, windows, motion frames. To look at a training state.

`edgereels render` does the same from exported graphs; `evaluate.py` measures that one.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgereels.export.vae import VideoVae

from .dataset import SIZE
from .latents import DROP, MOTION, WINDOW, portrait_pixels
from .train_audio import AudioEncoder, load_encoder
from .train_dit import Batch, Denoiser, audio_windows, load_dit, mask
from .write_checkpoint import best_vae

STRIDE = WINDOW - MOTION - DROP


class Rollout:
    """The trained networks of one folder, ready to make video."""

    def __init__(self, folder: Path) -> None:
        self.encoder: AudioEncoder = load_encoder(folder)
        self.vae: VideoVae = best_vae(folder)
        self.denoiser = Denoiser(load_dit(folder))
        self.portrait = torch.from_numpy(portrait_pixels().astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[
            None, :, None
        ]

    @torch.no_grad()
    def render(self, waveform: npt.NDArray[np.float32], *, seed: int = 42) -> npt.NDArray[np.float32]:
        """Return frames (count, size, size, 3) in [-1, 1] for 16 kHz sound of at least 1.32 s."""
        generator = torch.Generator().manual_seed(seed)
        features = self.encoder.features(waveform)
        wanted = len(features)
        count = max(0, -(-(wanted - WINDOW) // STRIDE)) + 1
        padded = WINDOW + STRIDE * (count - 1)
        features = np.concatenate([features, features[::-1][: padded - wanted]])
        keys = self._window(features, 0, self.portrait, None, generator)
        frames, motion = [], self.portrait
        for index in range(count):
            end = min(WINDOW - 1 + STRIDE * index, padded - 1)
            key = keys[:, :, int(np.clip(round(end * (WINDOW - 1) / (padded - 1)), 0, WINDOW - 1))]
            window = self._window(features, STRIDE * index, motion, key[:, :, None], generator)
            if index < count - 1:
                window = window[:, :, :-DROP]
            frames.append(window[:, :, 0 if index == 0 else MOTION :])
            motion = window[:, :, -MOTION:]
        return torch.cat(frames, 2)[0, :, :wanted].permute(1, 2, 3, 0).numpy()

    def _window(
        self,
        features: npt.NDArray[np.float32],
        start: int,
        motion: Tensor,
        key: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        known = motion.shape[2]
        pixels = torch.zeros(1, 3, WINDOW, SIZE, SIZE)
        pixels[:, :, :known] = motion
        if key is not None:
            pixels[:, :, -5:] = key
        with torch.autocast("cpu", torch.bfloat16):  # float32 video convolutions take a slow path here
            latents = self.vae.encode(pixels).float()
        condition = torch.cat([torch.from_numpy(mask(known=known, tail=key is not None))[None], latents], 1)
        first, rest = (torch.from_numpy(part)[None] for part in audio_windows(features, start))
        noise = torch.randn(latents.shape, generator=generator)
        clean = self.denoiser.latents(noise, Batch(latents, condition, first, rest), time_left=1.0)
        if known == MOTION:  # the sampler writes the motion latents back after its last step
            clean[:, :, :2] = latents[:, :, :2]
        with torch.autocast("cpu", torch.bfloat16):
            return self.vae.decode(clean).float().clamp(-1, 1)
