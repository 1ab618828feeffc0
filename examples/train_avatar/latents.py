# SPDX-License-Identifier: Apache-2.0
"""Freeze the encoder, bring its latents to zero mean and unit variance, and encode everything that the DiT needs.

The encoder sees six frames back at most, so the latents of a padded window are put together exactly from a few short
encodings: motion frames with grey after them, a key frame with grey before it, and the grey between.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgereels.export.vae import VideoVae

from .footage import CLIP_FRAMES, SIZE, Footage
from .train_audio import distort, load_encoder
from .train_vae import load_vae, new_vae

WINDOW, MOTION, DROP = 33, 5, 4
"""The package's own settings; training sees others too, see `windows`."""
LONGEST = 81
STARTS = 8
"""Windows prepared per clip; they begin on multiples of four frames."""
TAILS = 6
"""Key frames prepared per clip."""
TAKEN_S = 180
"""A clip that another process began to encode so long ago was abandoned."""
GREY_LATENTS = 9
"""Latents of grey until they no longer change."""


def freeze(folder: Path, *, steps: int) -> None:
    """Fold the latents' statistics into the 1x1x1 convolutions, so that the published constants normalise them."""
    del steps
    path = folder / "vae_frozen.pt"
    if path.exists():
        return
    vae = load_vae(folder)
    footage = Footage.open(folder)
    means, spreads, noise = [], [], []
    with torch.no_grad():
        for index in footage.training[::7]:
            mean, log_variance = vae.encode_moments(as_clip(footage.frames[index, 40:105]))
            means.append(mean.mean((0, 2, 3, 4)))
            spreads.append(mean.square().mean((0, 2, 3, 4)))
            noise.append(log_variance.exp().mean((0, 2, 3, 4)))
    mean = torch.stack(means).mean(0)
    spread = (torch.stack(spreads).mean(0) - mean.square()).sqrt()
    fold_statistics(vae, mean, spread)
    noise_level = torch.stack(noise).mean(0).sqrt() / spread
    print(
        f"freeze: latent spread {spread.numpy().round(2)}, posterior noise {noise_level.numpy().round(3)}", flush=True
    )
    torch.save({"vae": vae.state_dict(), "average": vae.state_dict(), "noise_level": noise_level}, path)


@torch.no_grad()
def fold_statistics(vae: VideoVae, mean: Tensor, spread: Tensor) -> None:
    """Make `vae.encode` give zero mean and unit variance per channel without changing what is decoded."""
    wan_mean, wan_std = vae.scale.mean.flatten(), vae.scale.std.flatten()
    channels = len(mean)
    gain = wan_std / spread
    weight, bias = vae.conv1.weight, vae.conv1.bias
    weight[:channels] *= gain[:, None, None, None, None]
    bias[:channels] = (bias[:channels] - mean) * gain + wan_mean
    bias[channels:] += 2 * gain.log()
    # Decoder: raw = (published - wan_mean) / gain + mean, put before conv2's own matrix.
    matrix = vae.conv2.weight[..., 0, 0, 0]
    vae.conv2.bias += matrix @ (mean - wan_mean / gain)
    vae.conv2.weight /= gain[None, :, None, None, None]


def load_frozen(folder: Path) -> VideoVae:
    """Return the network with the frozen, normalised encoder, and the decoder as it was then."""
    vae = new_vae()
    vae.load_state_dict(torch.load(folder / "vae_frozen.pt")["average"])
    return vae.eval()


@dataclass(frozen=True)
class ClipLatents:
    """What the DiT sees of one clip; float16 arrays, channels first."""

    whole: npt.NDArray[np.float16]
    """Shape (16, 50, h, w): the clip's latents; a window's latents 2 and later are a slice of them."""
    starts: npt.NDArray[np.int64]
    """Shape (STARTS,): first frame of each window, a multiple of 4."""
    begins: npt.NDArray[np.float16]
    """Shape (STARTS, 16, 2, h, w): the first two latents of each window."""
    motions: npt.NDArray[np.float16]
    """Shape (STARTS, 16, 3, h, w): five frames that went through the decoder, with grey after them."""
    singles: npt.NDArray[np.float16]
    """Shape (STARTS, 16, 3, h, w): the first of the five with grey after it."""
    tails: npt.NDArray[np.float16]
    """Shape (TAILS, 16, 2, h, w): a key frame five times, with grey before it."""
    tail_frames: npt.NDArray[np.int64]
    """Shape (TAILS,): which frame of the clip each key frame is."""
    features: npt.NDArray[np.float16]
    """Shape (2, frames, layers, width): of the clean sound and of a distorted copy."""


def encode(folder: Path, *, steps: int) -> None:
    """Encode `steps` clips, one file each; continues where it stopped. Several processes may share the work."""
    target = folder / "latents"
    target.mkdir(exist_ok=True)
    vae, encoder = load_frozen(folder), load_encoder(folder)
    footage = Footage.open(folder)
    if not (target / "fixed.npz").exists():
        partial = target / f"fixed.{os.getpid()}.partial.npz"
        portraits = {f"portrait_{name}": _portrait_latents(vae, value) for name, value in footage.portraits.items()}
        np.savez(partial, grey=_grey_latents(vae), **portraits)  # pyright: ignore[reportArgumentType]
        partial.rename(target / "fixed.npz")
    # From the last clip on: the held-out ones come first, so that evaluation is possible at once.
    for count, index in enumerate(range(len(footage) - 1, max(-1, len(footage) - 1 - steps), -1)):
        path = target / f"clip_{index:04d}.npz"
        partial = path.with_suffix(f".{os.getpid()}.partial.npz")
        others = target.glob(f"clip_{index:04d}.*.partial.npz")
        if path.exists() or any(time.time() - other.stat().st_mtime < TAKEN_S for other in others):
            continue
        partial.touch()
        generator = np.random.default_rng(index)
        waveform = footage.sound[index].astype(np.float32) / 32768
        noisy = distort(waveform[None], generator)[0]
        features = np.stack([encoder.features(waveform), encoder.features(noisy)]).astype(np.float16)
        parts = _clip_latents(vae, footage.frames[index], generator)
        np.savez(partial, features=features, **parts)  # pyright: ignore[reportArgumentType]
        partial.rename(path)
        if count % 10 == 9:
            print(f"latents: {count + 1} clips", flush=True)


def load_clip_latents(path: Path) -> ClipLatents:
    """Read one clip."""
    with np.load(path) as stored:
        return ClipLatents(**{name: stored[name] for name in stored.files})


@torch.no_grad()
def _grey_latents(vae: VideoVae) -> npt.NDArray[np.float32]:
    """Return the latents of grey, shape (16, 9, h, w)."""
    return vae.encode(torch.zeros(1, 3, 4 * GREY_LATENTS - 3, SIZE, SIZE))[0].numpy()


@torch.no_grad()
def _portrait_latents(vae: VideoVae, portrait: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the latents of a portrait with grey after it, shape (16, 3, h, w)."""
    clip = torch.zeros(1, 3, 9, SIZE, SIZE)
    clip[:, :, :1] = as_clip(portrait[None])
    return vae.encode(clip)[0].numpy()


@torch.no_grad()
def motion_latents(vae: VideoVae, frames: Tensor) -> Tensor:
    """Return the latents of motion frames with grey after them: (n, 3, 1 or 5, H, W) -> (n, 16, 3, h, w)."""
    count, _, known, height, width = frames.shape
    return vae.encode(torch.cat([frames, torch.zeros(count, 3, 9 - known, height, width)], 2))


@torch.no_grad()
def _clip_latents(
    vae: VideoVae, frames: npt.NDArray[np.uint8], generator: np.random.Generator
) -> dict[str, npt.NDArray]:
    clip = as_clip(frames)
    possible = np.arange(0, CLIP_FRAMES - WINDOW + 1, 4)
    starts = np.sort(np.append(generator.choice(possible[1:], STARTS - 1, replace=False), 0))
    tail_frames = np.sort(generator.choice(CLIP_FRAMES, TAILS, replace=False))
    with torch.autocast("cpu", torch.bfloat16):
        whole = vae.encode(clip[:, :, :197])[0]
        firsts = torch.cat([clip[:, :, start : start + 5] for start in starts])
        begins = vae.encode(firsts)
        decoded = vae.decode(begins).float().clamp(-1, 1)
        decoded = decoded + torch.from_numpy(generator.normal(0, 0.015, decoded.shape).astype(np.float32))
        motions, singles = motion_latents(vae, decoded), motion_latents(vae, decoded[:, :, :1])
        keys = clip[0][:, tail_frames].transpose(0, 1)[:, :, None]
        padded = torch.cat([torch.zeros(TAILS, 3, 8, SIZE, SIZE), keys.expand(-1, -1, 5, -1, -1)], 2)
        tails = vae.encode(padded)[:, :, -2:]
    named = {"whole": whole, "begins": begins, "motions": motions, "singles": singles, "tails": tails}
    arrays: dict[str, npt.NDArray] = {name: value.float().numpy().astype(np.float16) for name, value in named.items()}
    return arrays | {"starts": starts, "tail_frames": tail_frames}


def as_clip(frames: npt.NDArray[np.uint8]) -> Tensor:
    """Turn frames (count, h, w, 3) into a clip [1, 3, count, h, w] in [-1, 1]."""
    return torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
