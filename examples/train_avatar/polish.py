# SPDX-License-Identifier: Apache-2.0
"""Train the decoder on what the DiT gives, so that it answers the DiT's softness with a clear picture.

One denoising step returns latents near the mean of what may be seen. The decoder learns to show the frames that belong
to them; half of the steps are those of `vae-decoder`, so that it stays an autoencoder.
"""

import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgereels.export import dit_block
from edgereels.export.vae import VideoVae

from .draw_frames import drawn_frames
from .latents import MOTION, WINDOW
from .optimiser import Optimisers
from .train_dit import Denoiser, Windows, load_dit, plain_attention
from .train_vae import Batches, autoencoder_loss, evaluate, inner_weights, load_vae, pixel_weight, reconstruction_loss


def train(folder: Path, *, steps: int) -> None:
    """Train for `steps` steps in all, continuing from the last save."""
    dit_block.attend = plain_attention
    path, done = folder / "vae_polish.pt", 0
    vae = load_vae(folder, phase="vae_polish" if path.exists() else "vae_decoder").train()
    for parameter in [*vae.encoder.parameters(), *vae.conv1.parameters()]:
        parameter.requires_grad_(False)
    optimisers = Optimisers(vae, inner=inner_weights(vae), muon_lr=0.02, adam_lr=2e-3)
    average = {name: value.clone() for name, value in vae.state_dict().items()}
    if path.exists():
        saved = torch.load(path)
        vae.load_state_dict(saved["vae"])
        optimisers.load_state_dict(saved["optimisers"])
        average, done = saved["average"], saved["step"]
    predicted = PredictedWindows(folder)
    losses: list[float] = []
    saved_at = time.monotonic()
    for step in range(done, steps):
        generator = np.random.default_rng([step, 11])
        torch.manual_seed(step)
        if step % 2:
            images, weight = Batches(predicted.frames, generator).clips()
            loss, _ = autoencoder_loss(vae, images, weight, encoder_trains=False)
        else:
            loss = predicted.loss(vae, generator)
            losses.append(loss.item())
        optimisers.step(loss, factor=0.12 * min(1, (step + 1) / 20) * 0.5 * (1.05 + math.cos(math.pi * step / steps)))
        keep = min(0.98, (step + 10) / (step + 60))
        with torch.no_grad():
            for name, value in vae.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        if step % 50 == 49 or step == steps - 1:
            figures = evaluate(average, predicted.frames, video=True) if step % 200 == 199 or step == steps - 1 else ""
            print(f"polish {step + 1}/{steps} loss {np.mean(losses[-25:]):.4f} {figures}", flush=True)
        if time.monotonic() - saved_at > 60 or step == steps - 1:
            state = {"vae": vae.state_dict(), "average": average, "optimisers": optimisers.state_dict()}
            torch.save(state | {"step": step + 1}, path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
            saved_at = time.monotonic()


class PredictedWindows:
    """The DiT's answers to training windows, and the frames that belong to them."""

    def __init__(self, folder: Path) -> None:
        self.frames = drawn_frames(folder)
        self._windows = Windows(folder)
        self._denoiser = Denoiser(load_dit(folder))
        self._weight = pixel_weight()

    def loss(self, vae: VideoVae, generator: np.random.Generator) -> Tensor:
        """Return the reconstruction loss of a crop of one window, decoded from the DiT's latents."""
        latents, frames = self._draw(generator)
        top, left = int(generator.integers(5, 9)), int(generator.integers(3, 6))
        if generator.random() < 0.3:
            top, left = int(generator.integers(0, 9)), int(generator.integers(0, 9))
        rows, columns = np.s_[top * 8 : top * 8 + 64], np.s_[left * 8 : left * 8 + 64]
        truth = torch.from_numpy(frames[:, rows, columns].astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
        weight = torch.from_numpy(self._weight[rows, columns])[None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(latents[..., top : top + 8, left : left + 8]).float()
        return reconstruction_loss(decoded, truth, weight)

    @torch.no_grad()
    def _draw(self, generator: np.random.Generator) -> tuple[Tensor, npt.NDArray[np.uint8]]:
        batch, clip, start = self._windows.placed(generator)
        noise = torch.randn_like(batch.latents)
        with torch.autocast("cpu", torch.bfloat16):
            latents = self._denoiser.latents(noise, batch, time_left=1.0)
        if batch.condition[0, 0, 1, 0, 0] == 1:  # five motion frames: the sampler writes their latents back
            latents[:, :, :2] = batch.condition[:, 4:, :2]
        assert MOTION < WINDOW
        return latents, self.frames[clip, start : start + WINDOW]
