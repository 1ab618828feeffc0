# SPDX-License-Identifier: Apache-2.0
"""Frames through the autoencoder and back: the checkpoint's in PyTorch, or the package's own graphs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgereels.runtime import ModelPackage
from edgereels.runtime.placement import Asked, Placement
from edgereels.runtime.vae_stream import VaeDecoder, VaeEncoder

Pixels = npt.NDArray[np.uint8]
Autoencoder = Callable[[Pixels], Pixels]
"""Frames (4n + 1, height, width, 3) in, as many out."""


def checkpoint_autoencoder(checkpoint: Path) -> Autoencoder:
    """Return the autoencoder of a checkpoint folder, on PyTorch."""
    import torch
    from safetensors.torch import load_file

    from edgereels.export.vae import VideoVae
    from edgereels.export.vae_config import VaeConfig

    overrides = json.loads((checkpoint / "overrides.json").read_text(encoding="utf-8"))
    vae = VideoVae(VaeConfig.from_mapping(overrides.get("_video_vae", {})))
    stored = load_file(str(checkpoint / "Wan2.1_VAE.safetensors"))
    vae.load_state_dict({key: value.float() for key, value in stored.items()})

    def through(frames: Pixels) -> Pixels:
        with torch.no_grad():
            return _to_pixels(vae.decode(vae.encode(torch.from_numpy(_to_clip(frames)))).numpy())

    return through


def package_autoencoder(package: str, *, device: str = "cpu", compute: str = "auto", threads: int = 2) -> Autoencoder:
    """Return the autoencoder that a package runs, on the engine that a render would take."""
    engines = Placement(
        ModelPackage.open(package, verify="size"), Asked(device=device, compute=compute, threads=threads)
    )
    encoder = VaeEncoder(engines["vae_encoder_first"], engines["vae_encoder_next"])
    decoder = VaeDecoder(engines["vae_decoder_first"], engines["vae_decoder_next"])

    def through(frames: Pixels) -> Pixels:
        return _to_pixels(decoder.decode(encoder.encode(_to_clip(frames))))

    return through


def _to_clip(frames: Pixels) -> npt.NDArray[np.float32]:
    """Return [1, 3, T, H, W] in [-1, 1]."""
    return np.ascontiguousarray(frames.transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1)


def _to_pixels(clip: npt.NDArray[np.float32]) -> Pixels:
    return np.clip(np.round((clip[0] + 1) * 127.5), 0, 255).astype(np.uint8).transpose(1, 2, 3, 0)
