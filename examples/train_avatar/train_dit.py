# SPDX-License-Identifier: Apache-2.0
"""Train the DiT: one step from noise to the latents of a window, given sound, motion frames and a key frame.

The network is `edgereels.export.dit.Dit` with the parts of the talking avatar but text and image. It predicts the
velocity (noise - latents); the loss is on the latents that follow from it, because that is what is shown.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgereels.export import dit_block
from edgereels.export.dit import Dit, DitConfig
from edgereels.runtime.tables import RopeGrid, rope_tables, sinusoid

from .latents import MOTION, WINDOW_LATENTS, ClipLatents, load_clip_latents
from .optimiser import Optimisers
from .train_vae import EYES_BOX, HELD_OUT_CLIPS, MOUTH_BOX

CONFIG = DitConfig(
    dim=192, heads=4, layers=5, ffn_dim=512, has_text=False, has_image=False, audio_window=5,
    audio_intermediate_dim=128,
    audio_dim=128, audio_tokens=8, audio_layers=4, audio_channels=128,
)  # fmt: skip
GRID = 16
OTHER_TIMES = (0.956584, 0.846544, 0.010891)
"""The later steps of the published four-step schedule; the package itself takes one step, from 1."""
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


@dataclass(frozen=True)
class Batch:
    """Windows; the first axis counts them."""

    latents: Tensor
    """[B, 16, 9, h, w], the truth."""
    condition: Tensor
    """[B, 20, 9, h, w]: four mask channels, then the latents of the padded window."""
    audio_first: Tensor
    """[B, 5, layers, width]."""
    audio_rest: Tensor
    """[B, 8, 8, layers, width]."""


class Windows:
    """Random windows from the encoded clips; new files are taken up as they appear."""

    def __init__(self, folder: Path, *, held_out: bool = False) -> None:
        self.folder = folder / "latents"
        self.held_out = held_out
        self.clips: dict[str, ClipLatents] = {}
        with np.load(self.folder / "fixed.npz") as fixed:
            self.grey, self.portrait = fixed["grey"], fixed["portrait"]
        self.refresh()

    def refresh(self) -> None:
        """Read the clips that have been encoded since."""
        total = int((self.folder.parent / "frames_done.txt").read_text())
        for path in sorted(self.folder.glob("clip_????.npz")):
            if path.name not in self.clips and (int(path.stem[5:]) >= total - HELD_OUT_CLIPS) == self.held_out:
                self.clips[path.name] = load_clip_latents(path)
        self._names = sorted(self.clips)

    def batch(self, generator: np.random.Generator, size: int) -> Batch:
        """Return `size` windows: the first of a video, later ones, and key-frame passes; a few without sound."""
        drawn = [self._window(generator) for _ in range(size)]
        stacked = [torch.from_numpy(np.stack(parts).astype(np.float32)) for parts in zip(*drawn, strict=True)]
        return Batch(*stacked)

    def _window(self, generator: np.random.Generator) -> tuple[npt.NDArray, ...]:
        clip = self.clips[self._names[generator.integers(len(self._names))]]
        place = int(generator.integers(len(clip.starts)))
        start = int(clip.starts[place])
        latents = clip.whole[:, start // 4 : start // 4 + WINDOW_LATENTS].copy()
        latents[:, :2] = clip.begins[place]
        padded = self.grey.copy()
        known = 1
        if generator.random() < 0.25:
            padded[:, :3] = self.portrait
        else:
            known = MOTION
            padded[:, :3] = clip.motions[place] + generator.normal(0, 0.05, padded[:, :3].shape)
        tail = generator.random() < 0.75
        if tail:
            padded[:, -2:] = clip.tails[self._tail(clip, start, generator)]
        features = clip.features[int(generator.random() < 0.4)].astype(np.float32)
        if generator.random() < 0.04:
            features = np.zeros_like(features)
        condition = np.concatenate([mask(known=known, tail=tail), padded])
        return latents, condition, *audio_windows(features, start)

    @staticmethod
    def _tail(clip: ClipLatents, start: int, generator: np.random.Generator) -> int:
        if generator.random() < 0.3:
            return int(generator.integers(len(clip.tail_frames)))
        near = np.argsort(np.abs(clip.tail_frames - (start + 4 * WINDOW_LATENTS)))[:4]
        return int(generator.choice(near))


def mask(*, known: int, tail: bool) -> npt.NDArray[np.float32]:
    """Return the four mask channels of a window, shape (4, 9, h, w)."""
    result = np.zeros((4, WINDOW_LATENTS, GRID, GRID), np.float32)
    result[:, 0] = 1.0
    if known == MOTION:
        result[:, 1] = 1.0
    if tail:
        result[3, -2] = 1.0
        result[:, -1] = 1.0
    return result


def audio_windows(features: npt.NDArray[np.float32], start: int) -> tuple[npt.NDArray[np.float32], ...]:
    """Return the features that each latent of the window at frame `start` sees, first latent and the later ones."""
    last = len(features) - 1
    first = features[np.clip(np.arange(start - 2, start + 3), 0, last)]
    offsets = 4 * np.arange(1, WINDOW_LATENTS)[:, None] + np.arange(-5, 3)[None]
    return first, features[np.clip(start + offsets, 0, last)]


class Denoiser:
    """The DiT with its fixed tables: noise and conditions to latents."""

    def __init__(self, dit: Dit) -> None:
        self.dit = dit
        cos, sin = rope_tables(RopeGrid(WINDOW_LATENTS, GRID // 2, GRID // 2), head_dim=CONFIG.head_dim)
        self._rope = {"rope_cos": torch.from_numpy(cos), "rope_sin": torch.from_numpy(sin)}

    def latents(self, noisy: Tensor, batch: Batch, *, time_left: float) -> Tensor:
        """Return the estimate of the clean latents from `noisy` at time `time_left` (1 is pure noise)."""
        head_modulation, modulation = self.dit.time(torch.from_numpy(sinusoid([1000 * time_left])))
        velocity = self.dit(
            noisy, batch.condition, audio_first=batch.audio_first, audio_rest=batch.audio_rest,
            modulation=modulation, head_modulation=head_modulation, **self._rope,
        )  # fmt: skip
        return noisy - time_left * velocity.float()


def latent_weight() -> Tensor:
    """Return how much each latent position counts, [1, 1, 1, h, w]: the mouth most, then the eyes; mean 1."""
    weight = np.ones((GRID, GRID), np.float32)
    for (top, left, bottom, right), value in ((EYES_BOX, 3.0), (MOUTH_BOX, 8.0)):
        weight[top // 8 : -(-bottom // 8), left // 8 : -(-right // 8)] = value
    return torch.from_numpy(weight / weight.mean())[None, None, None]


def channel_weight(folder: Path) -> Tensor:
    """Return how much each latent channel counts, [1, 16, 1, 1, 1]: those that the decoder reads finely count more."""
    noise = torch.load(folder / "vae_frozen.pt")["noise_level"].clamp(0.02, 1.0)
    weight = 1.0 / noise
    return (weight / weight.mean()).view(1, -1, 1, 1, 1)


def train(folder: Path, *, steps: int, batch_size: int = 8) -> None:
    """Train for `steps` steps in all, continuing from the last save."""
    dit_block.attend = plain_attention
    dit = new_dit()
    denoiser = Denoiser(dit)
    optimisers = Optimisers(dit, inner=inner_weights(dit), muon_lr=0.02, adam_lr=1e-3)
    average = {name: value.clone() for name, value in dit.state_dict().items()}
    path, done = folder / "dit.pt", 0
    if path.exists():
        saved = torch.load(path)
        dit.load_state_dict(saved["dit"])
        optimisers.load_state_dict(saved["optimisers"])
        average, done = saved["average"], saved["step"]
    windows, weight = Windows(folder), latent_weight() * channel_weight(folder)
    print(
        f"dit: {sum(p.numel() for p in dit.parameters()) / 1e6:.2f} M parameters, {len(windows.clips)} clips",
        flush=True,
    )
    losses: list[tuple[float, float]] = []
    saved_at = time.monotonic()
    for step in range(done, steps):
        torch.manual_seed(step)
        batch = windows.batch(np.random.default_rng([step, 7]), batch_size)
        loss, mouth = _loss(denoiser, batch, weight)
        optimisers.step(loss, factor=_factor(step, steps))
        losses.append((loss.item(), mouth))
        keep = min(0.99, (step + 10) / (step + 60))
        with torch.no_grad():
            for name, value in dit.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        if step % 50 == 49 or step == steps - 1:
            mean = np.mean(losses[-50:], axis=0)
            print(f"dit {step + 1}/{steps} loss {mean[0]:.4f} unexplained mouth {mean[1]:.3f}", flush=True)
            windows.refresh()
        if time.monotonic() - saved_at > 60 or step == steps - 1:
            state = {
                "dit": dit.state_dict(),
                "average": average,
                "optimisers": optimisers.state_dict(),
                "step": step + 1,
            }
            torch.save(state, path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
            saved_at = time.monotonic()


def _factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 60) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _loss(denoiser: Denoiser, batch: Batch, weight: Tensor) -> tuple[Tensor, float]:
    noise = torch.randn_like(batch.latents)
    time_left = 1.0 if torch.rand(()) < 0.85 else OTHER_TIMES[int(torch.randint(3, ()))]
    noisy = time_left * noise + (1 - time_left) * batch.latents
    with torch.autocast("cpu", torch.bfloat16):
        estimate = denoiser.latents(noisy, batch, time_left=time_left)
    error = estimate - batch.latents
    change = error[:, :, 1:] - error[:, :, :-1]
    loss = (error.square() * weight).mean() + 0.5 * (change.square() * weight).mean()
    with torch.no_grad():
        top, left, bottom, right = (edge // 8 for edge in MOUTH_BOX)
        box = np.s_[..., top : bottom + 1, left : right + 1]
        truth = batch.latents[box]
        moving = (truth - truth.mean((0, 2), keepdim=True)).square().mean()
        unexplained = error[box].square().mean() / moving
    return loss, float(unexplained)


def load_dit(folder: Path) -> Dit:
    """Return the averaged network."""
    dit = new_dit()
    dit.load_state_dict(torch.load(folder / "dit.pt")["average"])
    return dit.eval()
