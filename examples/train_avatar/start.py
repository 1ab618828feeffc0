# SPDX-License-Identifier: Apache-2.0
"""Start from the weights of a checkpoint folder instead of from nothing; optimisers start afresh.

`OUT/start.json` names the checkpoint, so that every stage, and every later run, starts from the same one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgereels.export.dit import DitConfig
from edgereels.export.dit_keys import permute_rope_rows

START = "start.json"
WEIGHT_NORM = "parametrizations.weight.original"


@dataclass(frozen=True)
class Videos:
    """Filmed footage."""

    folder: Path
    """Where the video files lie."""
    name: str
    """What the face is called."""


def remember(folder: Path, checkpoint: Path, *, videos: Path | None = None, name: str = "avatar") -> None:
    """Note where the networks of `folder` start, and which videos it learns from, if any."""
    if not (checkpoint / "Wan2.1_VAE.safetensors").is_file():
        raise SystemExit(f"{checkpoint} holds no Wan2.1_VAE.safetensors; expected a checkpoint of this program")
    stored = json.loads((checkpoint / "overrides.json").read_text())["_video_vae"]
    if stored != vae_settings():
        raise SystemExit(
            f"{checkpoint} has the autoencoder {stored}; expected {vae_settings()}: name another checkpoint with --from"
        )
    if videos is not None and not videos.is_dir():
        raise SystemExit(f"{videos} is not a folder; expected one with video files")
    folder.mkdir(parents=True, exist_ok=True)
    noted = {"checkpoint": str(checkpoint.resolve())}
    if videos is not None:
        noted |= {"videos": str(videos.resolve()), "name": name}
    (folder / START).write_text(json.dumps(noted))


def vae_settings() -> dict[str, Any]:
    """Return the autoencoder's settings as `overrides.json` has them."""
    from .train_vae import CONFIG

    return {"dim": CONFIG.dim, "dim_mult": list(CONFIG.dim_mult), "num_res_blocks": CONFIG.num_res_blocks}


def given(folder: Path) -> bool:
    """Return whether the networks of `folder` start from a checkpoint."""
    return (folder / START).exists()


def videos(folder: Path) -> Videos | None:
    """Return what `folder` learns from, None where faces are drawn."""
    noted = json.loads((folder / START).read_text()) if given(folder) else {}
    return Videos(Path(noted["videos"]), noted["name"]) if "videos" in noted else None


def audio_encoder(folder: Path) -> dict[str, Tensor] | None:
    """Return the weights of the audio encoder to start from, by the names of `transformers`; None: from nothing."""
    stored = _read(folder, Path("wav2vec2/model.safetensors"))
    return stored and {
        key.replace("weight_g", WEIGHT_NORM + "0").replace("weight_v", WEIGHT_NORM + "1"): value
        for key, value in stored.items()
    }


def vae(folder: Path) -> dict[str, Tensor] | None:
    """Return the weights of the autoencoder to start from; None: from nothing."""
    return _read(folder, Path("Wan2.1_VAE.safetensors"))


def dit(folder: Path, config: DitConfig) -> dict[str, Tensor] | None:
    """Return the weights of the transformer to start from, rows in our order; None: from nothing."""
    stored = _read(folder, Path("diffusion_pytorch_model.safetensors"))
    return stored and permute_rope_rows(stored, config)


def _read(folder: Path, name: Path) -> dict[str, Tensor] | None:
    if not given(folder):
        return None
    from safetensors.torch import load_file

    checkpoint = Path(json.loads((folder / START).read_text())["checkpoint"])
    return {key: value.float() for key, value in load_file(str(checkpoint / name)).items()}
