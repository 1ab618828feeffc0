# SPDX-License-Identifier: Apache-2.0
"""Motion frames that the network has made itself: a window learns to go on from what the one before really looked like.

Every clip is run as the sampler would run it, window by window with the package's own settings; the last five kept
frames of each window, encoded again, are stored beside the truth of the window that follows.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgereels.export import dit_block
from edgereels.export.vae import VideoVae

from .latents import DROP, MOTION, WINDOW, motion_latents
from .train_dit import Denoiser, load_dit, noise_of, plain_attention
from .windows import CLIP_LATENT_FRAMES, Batch, Windows, audio_windows, mask
from .write_checkpoint import best_vae

STRIDE = WINDOW - MOTION - DROP
LATENT_FRAMES = 1 + (WINDOW - 1) // 4
KEPT_LATENTS = LATENT_FRAMES - DROP // 4


def make(folder: Path, *, steps: int) -> None:
    """Run the first `steps` training clips; what was made before is made again with the newest network."""
    dit_block.attend = plain_attention
    windows, vae, denoiser = Windows(folder), best_vae(folder), Denoiser(load_dit(folder))
    for count, index in enumerate(sorted(windows.clips)[:steps]):
        torch.manual_seed(index)
        made = _run(windows, index, vae=vae, denoiser=denoiser)
        partial = folder / "latents" / f"own_{index:04d}.partial.npz"
        np.savez(partial, **made)  # pyright: ignore[reportArgumentType]
        partial.rename(folder / "latents" / f"own_{index:04d}.npz")
        if count % 10 == 9:
            print(f"own motion: {count + 1} clips", flush=True)


@torch.no_grad()
def _run(windows: Windows, index: int, *, vae: VideoVae, denoiser: Denoiser) -> dict[str, npt.NDArray]:
    """Return `starts`, `begins` (the truth) and `motions` (what was made) of one clip's windows after the first."""
    begins_at = range(0, CLIP_LATENT_FRAMES - WINDOW + 1, STRIDE)
    motions = torch.from_numpy(windows.portraits[windows.footage.faces[index]])[None]
    made = []
    for begin in begins_at[:-1]:
        batch = _window(windows, index, begin, motions, known=1 if begin == 0 else MOTION)
        with torch.autocast("cpu", torch.bfloat16):
            latents = denoiser.latents(noise_of(batch), batch, time_left=1.0)
            if begin:  # the sampler writes the motion frames' latents back
                latents[:, :, :2] = motions[:, :, :2]
            frames = vae.decode(latents[:, :, :KEPT_LATENTS]).float().clamp(-1, 1)
            motions = motion_latents(vae, frames[:, :, -MOTION:]).float()
        made.append(motions[0].numpy().astype(np.float16))
    starts = np.array(list(begins_at)[1:])
    footage = windows.footage.frames[index].astype(np.float32) / 127.5 - 1
    firsts = torch.from_numpy(np.stack([footage[start : start + MOTION] for start in starts])).permute(0, 4, 1, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        begins = vae.encode(firsts).float().numpy().astype(np.float16)
    return {"starts": starts, "begins": begins, "motions": np.stack(made)}


def _window(windows: Windows, index: int, begin: int, motions: Tensor, *, known: int) -> Batch:
    """Return the window that the sampler would see at frame `begin`, with a key frame of another time."""
    clip = windows.clips[index]
    padded = windows.grey[:, np.minimum(np.arange(LATENT_FRAMES), len(windows.grey[0]) - 1)].copy()
    padded[:, :3] = motions[0].numpy()
    padded[:, -2:] = clip.tails[begin % len(clip.tails)]
    condition = np.concatenate([mask(LATENT_FRAMES, known=known, tail=True), padded])
    audio_first, audio_rest = audio_windows(clip.features[0].astype(np.float32), begin, LATENT_FRAMES)
    draws = windows.chance(index, begin // 4, LATENT_FRAMES, known)
    parts = (padded, condition, audio_first, audio_rest, draws, np.ones((1, 1, 1, 1), np.float32))
    return Batch(*(torch.from_numpy(np.asarray(part, np.float32))[None] for part in parts))
