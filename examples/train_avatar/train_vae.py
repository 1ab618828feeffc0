# SPDX-License-Identifier: Apache-2.0
"""Train the video autoencoder: single frames, then short clips.

The network is `edgereels.export.vae.VideoVae`, so layout and keys are those of Wan 2.1. What makes it cheap: one
residual block per level (`num_res_blocks` 0), and in the encoder and at the decoder's two highest resolutions only the
newest temporal tap is used; time is modelled at low resolution.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgereels.export.vae import VaeConfig, VideoVae, make_spatial_only

from . import start
from .footage import CLIP_FRAMES, SIZE, Footage
from .optimiser import Optimisers
from .state import SaveClock, save_state
from .workers import rank

CONFIG = VaeConfig(dim=32, dim_mult=(1, 1, 2, 2), num_res_blocks=0)
"""Without residual blocks the encoder is `dim` wide throughout. The decoder takes 1.2 times as long as with 16 x (1, 2,
4, 4), whose encoder is half as wide."""
CROP = 96
DIVERGENCE = 2e-4
"""Weight of the posterior's divergence from a normal distribution: less leaves more detail in the latents."""
MOVEMENT = 3.0
"""Weight of the change from frame to frame."""
MATTERS = 2.5
"""Pixels that weigh more than this count as mouth or eyes in the figures."""


@dataclass(frozen=True)
class Phase:
    """One phase of the training."""

    name: str
    video_share: float
    """Share of the steps that see clips; the others see single frames."""
    factor: float
    """Of the learning rates at the phase's beginning."""
    final_factor: float
    """Of the learning rates at its end."""


PHASES = {
    "vae_images": Phase("vae_images", video_share=0.0, factor=1.0, final_factor=0.2),
    "vae_video": Phase("vae_video", video_share=0.75, factor=0.6, final_factor=0.03),
}


def new_vae() -> VideoVae:
    """Return the untrained network: cheap convolutions chosen, temporal ones started as copies of the newest frame.

    Single frames say nothing to the older temporal taps. They start at zero, so that after the images the newest frame
    of a group is at once as sharp as a picture.
    """
    torch.manual_seed(0)
    vae = VideoVae(CONFIG)
    make_spatial_only([vae.encoder])
    high = [*list(vae.decoder.upsamples)[4:], vae.decoder.head]  # from the second-highest resolution on
    make_spatial_only(high)
    with torch.no_grad():
        for name, module in vae.named_modules():
            if name.endswith("time_conv"):
                _start_time(module.weight, encodes=name.startswith("encoder"))
                module.bias.zero_()
            elif getattr(module, "kernel_size", None) == (3, 3, 3) and not module.spatial_only:
                module.weight[:, :, :2] = 0.0
        for attention in (vae.encoder.middle[1], vae.decoder.middle[1]):
            attention.proj.weight.mul_(0.1)
    return vae


def _start_time(weight: Tensor, *, encodes: bool) -> None:
    """Let a temporal convolution pass on the newest frame; in the encoder, mixed with its change from the one before.

    The change gives the decoder something to tell frames apart by. Not proven to learn sooner: after 180 steps it was
    no better than copies of the newest frame.
    """
    width = weight.shape[1]
    weight.zero_()
    weight[:, :, -1, 0, 0] = torch.eye(width).repeat(weight.shape[0] // width, 1)
    if encodes:
        mixed = 0.7 * torch.linalg.qr(torch.randn(width, width))[0]
        weight[:, :, -1, 0, 0] += mixed
        weight[:, :, -2, 0, 0] -= mixed


def inner_weights(vae: VideoVae) -> set[str]:
    """Return the names of the weights that Muon updates: every convolution but the first and last of each half."""
    outer = {"encoder.conv1", "encoder.head.2", "conv1", "conv2", "decoder.conv1", "decoder.head.2"}
    return {
        f"{name}.weight"
        for name, module in vae.named_modules()
        if isinstance(module, nn.Conv3d | nn.Conv2d) and name not in outer
    }


class Batches:
    """Random training batches: crops of the footage, most of them where pixels count more."""

    def __init__(self, footage: Footage, generator: np.random.Generator) -> None:
        self.footage = footage
        self.generator = generator

    def images(self) -> tuple[Tensor, Tensor]:
        """Return single frames (batch, 3, 1, h, w) and the loss weight of their pixels (batch, 1, 1, h, w)."""
        whole = self.generator.random() < 0.3
        return self._cut([self._clip(1) for _ in range(1 if whole else 4)], size=SIZE if whole else CROP)

    def clips(self) -> tuple[Tensor, Tensor]:
        """Return short clips (batch, 3, 5 to 13, h, w) and the weights; some are padded as the sampler pads them."""
        if self.generator.random() < 0.1:
            return self._cut([self._clip(5)], size=SIZE)
        count = 13 if self.generator.random() < 0.3 else 9
        clips = [self._clip(count) for _ in range(2 if count == 9 else 1)]
        if self.generator.random() < 0.15:
            clips = [(self._padded(clip), weight) for clip, weight in clips]
        return self._cut(clips, size=CROP)

    def _clip(self, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        clip = int(self.generator.choice(self.footage.training))
        first = self.generator.integers(0, CLIP_FRAMES - count + 1)
        return _floats(self.footage.frames[clip, first : first + count]), self.footage.weight(clip)

    def _padded(self, clip: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        padded = np.zeros_like(clip)
        known = 1 if self.generator.random() < 0.4 else 5
        padded[:known] = clip[:known]
        if len(clip) > known + 5 or known == 1:
            padded[-5:] = clip[-1:]
        return padded

    def _corner(self, weight: npt.NDArray[np.float32]) -> tuple[int, int]:
        """Return the top left corner of a crop around a pixel that was drawn by its weight, a multiple of eight."""
        share = (weight**2).ravel()
        row, column = divmod(int(self.generator.choice(weight.size, p=share / share.sum())), weight.shape[1])
        places = (np.array([row, column]) - self.generator.integers(CROP // 4, 3 * CROP // 4, 2)) // 8 * 8
        top, left = np.clip(places, 0, SIZE - CROP)
        return int(top), int(left)

    def _cut(
        self, clips: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]], *, size: int
    ) -> tuple[Tensor, Tensor]:
        cut, weights = [], []
        for clip, weight in clips:
            y, x = (0, 0) if size == SIZE else self._corner(weight)
            cut.append(clip[:, y : y + size, x : x + size])
            weights.append(weight[y : y + size, x : x + size])
        pixels = torch.from_numpy(np.stack(cut)).permute(0, 4, 1, 2, 3).contiguous()
        return pixels, torch.from_numpy(np.stack(weights))[:, None, None]


def _floats(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return frames.astype(np.float32) / 127.5 - 1


def reconstruction_loss(decoded: Tensor, frames: Tensor, weight: Tensor) -> Tensor:
    """Return L1 + 2 squares + 0.5 gradients in space + 3 in time, weighted per pixel."""
    difference = decoded - frames
    edges_y = (difference[..., 1:, :] - difference[..., :-1, :]).abs() * weight[..., 1:, :]
    edges_x = (difference[..., 1:] - difference[..., :-1]).abs() * weight[..., 1:]
    point = (difference.abs() + 2 * difference.square()) * weight
    loss = point.mean() + 0.5 * (edges_y.mean() + edges_x.mean())
    if difference.shape[2] > 1:  # frames of one latent must move on evenly, not in pairs
        loss = loss + MOVEMENT * ((difference[:, :, 1:] - difference[:, :, :-1]).abs() * weight).mean()
    return loss / weight.mean()


def train(folder: Path, *, steps: int, phase: str = "vae_images") -> None:
    """Train one phase for `steps` steps in all; starts from the phase before, or from its own last save."""
    plan = PHASES[phase]
    vae = new_vae()
    optimisers = Optimisers(vae, inner=inner_weights(vae), muon_lr=0.02, adam_lr=2e-3)
    path, done = folder / f"{phase}.pt", 0
    earlier = next((p for p in (path, *_before(folder, phase)) if p.exists()), None)
    if earlier is not None:
        saved = torch.load(earlier)
        vae.load_state_dict(saved["vae"])
        average = saved["average"]
        if earlier == path:
            optimisers.load_state_dict(saved["optimisers"])
            done = saved["step"]
    else:
        vae.load_state_dict(start.vae(folder) or vae.state_dict())
        average = {name: value.clone() for name, value in vae.state_dict().items()}
    footage = Footage.open(folder)
    errors: list[float] = []
    clock = SaveClock()
    for step in range(done, steps):
        video = np.random.default_rng([step, len(phase)]).random() < plan.video_share  # for all workers
        torch.manual_seed(2 * step + rank())
        batches = Batches(footage, np.random.default_rng([step, len(phase), rank() + 1]))
        images, weight = batches.clips() if video else batches.images()
        loss, error = autoencoder_loss(vae, images, weight)
        optimisers.step(loss, factor=_factor(step, steps, plan))
        errors.append(error)
        _follow(average, vae, min(0.995, (step + 10) / (step + 100)))
        last = step == steps - 1
        if (step % 100 == 99 or last) and rank() == 0:
            psnr_db = 10 * math.log10(4 / np.mean(errors[-100:]))
            figures = evaluate(average, footage, video=plan.video_share > 0) if step % 500 == 499 or last else ""
            print(
                f"{phase} {step + 1}/{steps} loss {loss.item():.4f} training PSNR {psnr_db:.2f} {figures}", flush=True
            )
        if rank() == 0 and (clock.due() or last):
            state = {"vae": vae.state_dict(), "average": average, "optimisers": optimisers.state_dict()}
            save_state(path, {**state, "step": step + 1})


def train_video(folder: Path, *, steps: int) -> None:
    """Train encoder and decoder on clips."""
    train(folder, steps=steps, phase="vae_video")


def _before(folder: Path, phase: str) -> list[Path]:
    """Return the states that a phase may start from, best first."""
    names = list(PHASES)
    return [folder / f"{name}.pt" for name in reversed(names[: names.index(phase)])]


def _factor(step: int, steps: int, plan: Phase) -> float:
    progress = step / steps
    level = plan.final_factor + (plan.factor - plan.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    return level * min(1.0, (step + 1) / 50)


def autoencoder_loss(vae: VideoVae, images: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """Return the loss of going through the latents and back, and the mean squared error."""
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance = vae.encode_moments(images)
        latents = vae.scale.normalise(mean.float())
        log_variance = log_variance.float() - 2 * vae.scale.std.log()
        log_variance = log_variance.clamp(-12, 4)
        noisy = latents + torch.exp(0.5 * log_variance) * torch.randn_like(latents)
        decoded = vae.decode(noisy).float()
    divergence = 0.5 * (latents.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = reconstruction_loss(decoded, images, weight) + DIVERGENCE * divergence
    return loss, (decoded.detach() - images).square().mean().item()


@torch.no_grad()
def _follow(average: dict[str, Tensor], model: nn.Module, keep: float) -> None:
    for name, value in model.state_dict().items():
        average[name].lerp_(value, 1 - keep)


def load_vae(folder: Path) -> VideoVae:
    """Return the averaged network of the last phase that was begun; not normalised."""
    paths = [folder / f"{name}.pt" for name in reversed(PHASES)]
    vae = new_vae()
    vae.load_state_dict(torch.load(next(path for path in paths if path.exists()))["average"])
    return vae.eval()


def peak_ratio(ours: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> float:
    """Return the PSNR in dB of frames in [-1, 1]."""
    return 10 * math.log10(4 / max(float(np.mean((ours - truth) ** 2)), 1e-12))


@torch.no_grad()
def evaluate(average: dict[str, Tensor], footage: Footage, *, video: bool) -> dict[str, float]:
    """Return PSNR on held-out clips: whole frame, the pixels that count more, and movement of the latter per frame.

    `movement` is how much of the truth's change from frame to frame is kept where a group of four frames ends: a codec
    that is late there has less than 1.
    """
    vae = new_vae()
    vae.load_state_dict(average)
    count = 13 if video else 1
    chosen = sorted(footage.held_out)
    clips = _floats(np.stack([footage.frames[index, 60 : 60 + count] for index in chosen]))
    inputs = torch.from_numpy(clips).permute(0, 4, 1, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = [vae.decode(vae.scale.normalise(vae.encode_moments(part)[0])).float() for part in inputs.split(1)]
    ours = torch.cat(decoded).clamp(-1, 1).permute(0, 2, 3, 4, 1).numpy()
    matters = np.stack([footage.weight(index) > MATTERS for index in chosen])[:, None, :, :, None]
    where = np.broadcast_to(matters, ours.shape)
    result = {"whole": peak_ratio(ours, clips), "matters": peak_ratio(ours[where], clips[where])}
    if video:
        change, truth = (np.diff(frames, axis=1) for frames in (ours, clips))
        kept = [(change * truth * matters)[:, at::4].sum() / (truth**2 * matters)[:, at::4].sum() for at in range(4)]
        result["movement"] = float(np.min(kept))
    return {name: round(value, 3) for name, value in result.items()}
