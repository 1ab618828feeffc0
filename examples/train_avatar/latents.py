# SPDX-License-Identifier: Apache-2.0
"""Freeze the encoder, bring its latents to zero mean and unit variance, and encode everything that the DiT needs.

The encoder sees six frames back at most, so the latents of a padded window are put together exactly from a few short
encodings: motion frames with grey after them, a key frame with grey before it, and the grey between.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgereels.export.vae import VideoVae

from .dataset import CLIP_FRAMES, SIZE, load_speech
from .draw_frames import drawn_frames
from .face import Pose, draw
from .train_audio import TRAINING_CLIPS, distort, load_encoder
from .train_vae import HELD_OUT_CLIPS, load_vae, new_vae

WINDOW, MOTION, DROP = 33, 5, 4
WINDOW_LATENTS = 1 + (WINDOW - 1) // 4
PORTRAIT_SIZE = 512
STARTS = 16
"""Windows prepared per clip; they begin on multiples of four frames."""
TAILS = 12
"""Key frames prepared per clip."""


def freeze(folder: Path, *, steps: int) -> None:
    """Fold the latents' statistics into the 1x1x1 convolutions, so that the published constants normalise them."""
    del steps
    path = folder / "vae_frozen.pt"
    if path.exists():
        return
    vae = load_vae(folder)
    frames = drawn_frames(folder)
    means, spreads, noise = [], [], []
    with torch.no_grad():
        for index in range(0, len(frames) - HELD_OUT_CLIPS, 6):
            mean, log_variance = vae.encode_moments(_tensor(frames[index, 40:105]))
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
    """What the DiT sees of one drawn clip; float16 arrays, channels first."""

    whole: npt.NDArray[np.float16]
    """Shape (16, 50, h, w): the clip's latents; a window's latents 2 and later are a slice of them."""
    starts: npt.NDArray[np.int64]
    """Shape (STARTS,): first frame of each window, a multiple of 4."""
    begins: npt.NDArray[np.float16]
    """Shape (STARTS, 16, 2, h, w): the first two latents of each window."""
    motions: npt.NDArray[np.float16]
    """Shape (STARTS, 16, 3, h, w): five frames that went through the decoder, with grey after them."""
    tails: npt.NDArray[np.float16]
    """Shape (TAILS, 16, 2, h, w): a key frame five times, with grey before it."""
    tail_frames: npt.NDArray[np.int64]
    """Shape (TAILS,): which frame of the clip each key frame is."""
    features: npt.NDArray[np.float16]
    """Shape (2, frames, layers, width): of the clean sound and of a distorted copy."""


def encode(folder: Path, *, steps: int) -> None:
    """Encode the first `steps` clips, one file each; continues where it stopped."""
    target = folder / "latents"
    target.mkdir(exist_ok=True)
    vae, encoder = load_frozen(folder), load_encoder(folder)
    frames, speech = drawn_frames(folder), load_speech(folder, clips=TRAINING_CLIPS)
    fixed = fixed_latents(vae)
    np.savez(target / "fixed.npz", grey=fixed["grey"], portrait=fixed["portrait"])
    # From the last clip on: the held-out ones come first, so that evaluation is possible at once.
    for count, index in enumerate(range(len(frames) - 1, max(-1, len(frames) - 1 - steps), -1)):
        path = target / f"clip_{index:04d}.npz"
        if path.exists():
            continue
        generator = np.random.default_rng(index)
        waveform = speech.waveforms[index].astype(np.float32) / 32768
        noisy = distort(waveform[None], generator)[0]
        features = np.stack([encoder.features(waveform), encoder.features(noisy)]).astype(np.float16)
        parts = _clip_latents(vae, frames[index], generator)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, features=features, **parts)  # pyright: ignore[reportArgumentType]
        partial.rename(path)
        if count % 10 == 9:
            print(f"latents: {count + 1} clips", flush=True)


def load_clip_latents(path: Path) -> ClipLatents:
    """Read one clip."""
    with np.load(path) as stored:
        return ClipLatents(**{name: stored[name] for name in stored.files})


def portrait_pixels() -> npt.NDArray[np.uint8]:
    """Return the portrait as the runtime scales it down, shape (size, size, 3)."""
    from PIL import Image

    large = Image.fromarray(draw(Pose(), PORTRAIT_SIZE))
    return np.array(large.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


@torch.no_grad()
def fixed_latents(vae: VideoVae) -> dict[str, npt.NDArray[np.float32]]:
    """Return `grey` (16, 9, h, w), an all-grey window, and `portrait` (16, 3, h, w), the portrait and grey."""
    grey = torch.zeros(1, 3, WINDOW, SIZE, SIZE)
    portrait = grey[:, :, :9].clone()
    portrait[:, :, :1] = _tensor(portrait_pixels()[None])
    return {"grey": vae.encode(grey)[0].numpy(), "portrait": vae.encode(portrait)[0].numpy()}


@torch.no_grad()
def _clip_latents(
    vae: VideoVae, frames: npt.NDArray[np.uint8], generator: np.random.Generator
) -> dict[str, npt.NDArray]:
    clip = _tensor(frames)
    possible = np.arange(0, CLIP_FRAMES - WINDOW + 1, 4)
    starts = np.sort(generator.choice(possible, STARTS, replace=False))
    tail_frames = np.sort(generator.choice(CLIP_FRAMES, TAILS, replace=False))
    with torch.autocast("cpu", torch.bfloat16):
        whole = vae.encode(clip[:, :, :197])[0]
        firsts = torch.cat([clip[:, :, start : start + 5] for start in starts])
        begins = vae.encode(firsts)
        decoded = vae.decode(begins).float().clamp(-1, 1)
        decoded = decoded + torch.from_numpy(generator.normal(0, 0.02, decoded.shape).astype(np.float32))
        motions = vae.encode(torch.cat([decoded, torch.zeros(STARTS, 3, 4, SIZE, SIZE)], 2))
        keys = clip[0][:, tail_frames].transpose(0, 1)[:, :, None]
        padded = torch.cat([torch.zeros(TAILS, 3, 8, SIZE, SIZE), keys.expand(-1, -1, 5, -1, -1)], 2)
        tails = vae.encode(padded)[:, :, -2:]
    named = {"whole": whole, "begins": begins, "motions": motions, "tails": tails}
    arrays: dict[str, npt.NDArray] = {name: value.float().numpy().astype(np.float16) for name, value in named.items()}
    return arrays | {"starts": starts, "tail_frames": tail_frames}


def _tensor(frames: npt.NDArray[np.uint8]) -> Tensor:
    """Turn frames (count, h, w, 3) into a clip [1, 3, count, h, w] in [-1, 1]."""
    return torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
