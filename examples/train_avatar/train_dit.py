# SPDX-License-Identifier: Apache-2.0
"""Train the DiT: one step from noise to the latents of a window, given sound, motion frames and a key frame.

The network is `edgereels.export.dit.Dit` with the parts of the talking avatar but text and image. It predicts the
velocity (noise - latents); the loss is on the latents that follow from it, because that is what is shown.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgereels.export import dit_block
from edgereels.export.dit import Dit, DitConfig
from edgereels.runtime.tables import RopeGrid, rope_tables, sinusoid

from . import start
from .chance import imprint
from .optimiser import Optimisers
from .state import SaveClock, save_state
from .windows import GRID, Batch, Windows, random_length
from .workers import rank

CONFIG = DitConfig(
    dim=192, heads=4, layers=5, ffn_dim=512, has_text=False, has_image=False, audio_window=5,
    audio_intermediate_dim=128,
    audio_dim=128, audio_tokens=8, audio_layers=4, audio_channels=128,
)  # fmt: skip
OTHER_TIMES = (0.956584, 0.846544, 0.010891)
"""The later steps of the published four-step schedule; the package itself takes one step, from 1."""
MATTERS = 1.5
"""Latent positions that weigh more than this count as mouth and eyes in the figures."""
_NOISE_GAIN, _ANCHOR = 0.5, 12.0


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Do what `dit_block.attend` does; for training on the CPU 2.5 times as fast as torch's fused kernel."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return (torch.softmax(scores, dim=-1, dtype=scores.dtype) @ values).transpose(1, 2).flatten(2)


def new_dit() -> Dit:
    """Return the untrained network, which starts by handing the noise through: velocity = noise, latents = 0.

    The noise of a patch rides in the first 64 channels of the residual stream, and two constant channels of opposite
    sign keep the length of every token nearly the same, so that the last norm does not rescale the noise.
    """
    torch.manual_seed(0)
    dit = Dit(CONFIG)
    noise_channels = 4 * CONFIG.out_dim
    with torch.no_grad():
        patch, head = dit.prologue.patch_embedding, dit.epilogue.head
        patch.weight[:, : CONFIG.out_dim] = 0.0
        patch.weight[:noise_channels] = 0.0
        patch.weight[noise_channels:, CONFIG.out_dim :] *= 3.0
        patch.bias.zero_()
        patch.bias[-2], patch.bias[-1] = _ANCHOR, -_ANCHOR
        patch.weight[-2:] = 0.0
        head.modulation.zero_()
        head.head.weight.zero_()
        head.head.bias.zero_()
        for row in range(2):
            for column in range(2):
                for channel in range(CONFIG.out_dim):
                    place = (row * 2 + column) * CONFIG.out_dim + channel
                    patch.weight[place, channel, 0, row, column] = _NOISE_GAIN
                    head.head.weight[place, place] = 1.0 / _NOISE_GAIN
        length = 2 * _ANCHOR**2 + noise_channels * _NOISE_GAIN**2 + 20
        head.head.weight *= math.sqrt(length / CONFIG.dim)
        for block in dit.blocks:
            block.modulation.zero_()
            block.modulation[:, [1, 4]] = 2.0  # the anchor makes the normalised rest small: scale it up again
            block.modulation[:, [2, 5]] = 1.0
            block.self_attn.o.weight *= 0.5
            block.ffn[2].weight *= 0.5
        dit.time.time_projection[1].weight.mul_(0.1)
        dit.time.time_embedding[2].weight.mul_(0.1)
    return dit


def inner_weights(dit: Dit) -> set[str]:
    """Return the names of the weights that Muon updates: the matrices of the blocks and of the audio projection."""
    return {
        name
        for name, parameter in dit.named_parameters()
        if parameter.ndim == 2 and name.startswith(("blocks.", "audio_proj."))
    }


class Denoiser:
    """The DiT with its tables: noise and conditions to latents."""

    def __init__(self, dit: Dit) -> None:
        self.dit = dit
        self._tables: dict[int, dict[str, Tensor]] = {}

    def latents(self, noisy: Tensor, batch: Batch, *, time_left: float) -> Tensor:
        """Return the estimate of the clean latents from `noisy` at time `time_left` (1 is pure noise)."""
        head_modulation, modulation = self.dit.time(torch.from_numpy(sinusoid([1000 * time_left])))
        velocity = self.dit(
            noisy, batch.condition, audio_first=batch.audio_first, audio_rest=batch.audio_rest,
            modulation=modulation, head_modulation=head_modulation, **self._rope(noisy.shape[2]),
        )  # fmt: skip
        return noisy - time_left * velocity.float()

    def _rope(self, latent_frames: int) -> dict[str, Tensor]:
        if latent_frames not in self._tables:
            cos, sin = rope_tables(RopeGrid(latent_frames, GRID // 2, GRID // 2), head_dim=CONFIG.head_dim)
            self._tables[latent_frames] = {"rope_cos": torch.from_numpy(cos), "rope_sin": torch.from_numpy(sin)}
        return self._tables[latent_frames]


def channel_weight(folder: Path) -> Tensor:
    """Return how much each latent channel counts, [1, 16, 1, 1, 1]: those that the decoder reads finely count more."""
    noise = torch.load(folder / "vae_frozen.pt")["noise_level"].clamp(0.02, 1.0)
    weight = 1.0 / noise
    return (weight / weight.mean()).view(1, -1, 1, 1, 1)


def noise_of(batch: Batch) -> Tensor:
    """Return noise whose sums over the eyes are the batch's draws, shape of the latents."""
    noise = torch.randn_like(batch.latents)
    for window, draws in zip(noise.numpy(), batch.draws.numpy(), strict=True):
        imprint(window, draws)
    return noise


def train(folder: Path, *, steps: int) -> None:
    """Train for `steps` steps in all, continuing from the last save."""
    dit_block.attend = plain_attention
    dit = new_dit()
    path, done = folder / "dit.pt", 0
    optimisers = Optimisers(dit, inner=inner_weights(dit), muon_lr=0.02, adam_lr=1e-3)
    saved = torch.load(path) if path.exists() else None
    if saved is not None:
        dit.load_state_dict(saved["dit"])
        optimisers.load_state_dict(saved["optimisers"])
        average, done = saved["average"], saved["step"]
    else:
        dit.load_state_dict(start.dit(folder, CONFIG) or dit.state_dict())
        average = {name: value.clone() for name, value in dit.state_dict().items()}
    denoiser, windows, channels = Denoiser(dit), Windows(folder), channel_weight(folder)
    parameters = sum(parameter.numel() for parameter in dit.parameters())
    print(f"dit: {parameters / 1e6:.2f} M parameters, {len(windows.clips)} clips", flush=True)
    losses: list[tuple[float, float]] = []
    clock = SaveClock()
    for step in range(done, steps):
        torch.manual_seed(2 * step + rank())
        shared = np.random.default_rng([step, 7])  # for all workers, so that their steps take equally long
        time_left = 1.0 if shared.random() < 0.85 else float(shared.choice(OTHER_TIMES))
        batch = windows.batch(np.random.default_rng([step, 7, rank() + 1]), window=random_length(shared))
        loss, unexplained = _loss(denoiser, batch, channels, time_left=time_left)
        optimisers.step(loss, factor=_factor(step, steps))
        losses.append((loss.item(), unexplained))
        keep = min(0.99, (step + 10) / (step + 60))
        with torch.no_grad():
            for name, value in dit.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        last = step == steps - 1
        if (step % 50 == 49 or last) and rank() == 0:
            mean = np.mean(losses[-50:], axis=0)
            print(f"dit {step + 1}/{steps} loss {mean[0]:.4f} unexplained {mean[1]:.3f}", flush=True)
        if step % 50 == 49:
            windows.refresh()
        if rank() == 0 and (clock.due() or last):
            state = {"dit": dit.state_dict(), "average": average, "optimisers": optimisers.state_dict()}
            save_state(path, {**state, "step": step + 1})


def _factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 60) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _loss(denoiser: Denoiser, batch: Batch, channels: Tensor, *, time_left: float) -> tuple[Tensor, float]:
    """Return the loss, and the share of the movement of mouth and eyes that is missed."""
    noise = noise_of(batch)
    noisy = time_left * noise + (1 - time_left) * batch.latents
    with torch.autocast("cpu", torch.bfloat16):
        estimate = denoiser.latents(noisy, batch, time_left=time_left)
    error = estimate - batch.latents
    change = error[:, :, 1:] - error[:, :, :-1]
    weight = batch.weight * channels
    loss = (error.square() * weight).mean() + 0.5 * (change.square() * weight).mean()
    with torch.no_grad():
        matters = (batch.weight > MATTERS).float()
        moving = batch.latents - batch.latents.mean(2, keepdim=True)
        unexplained = (error.square() * matters).sum() / (moving.square() * matters).sum()
    return loss, float(unexplained)


def load_dit(folder: Path) -> Dit:
    """Return the averaged network."""
    dit = new_dit()
    dit.load_state_dict(torch.load(folder / "dit.pt")["average"])
    return dit.eval()
