# SPDX-License-Identifier: Apache-2.0
"""Write the checkpoint folder in the published layout, fp16, with the portrait and `overrides.json`."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from edgereels.export.dit_keys import unpermute_rope_rows

from . import train_audio, train_dit, train_vae
from .dataset import SIZE
from .face import Pose, draw
from .latents import DROP, MOTION, PORTRAIT_SIZE, WINDOW, load_frozen
from .performance import FPS

_LICENCE = "Apache-2.0; trained by examples/train_avatar on data that it makes itself"


def write(folder: Path, *, steps: int) -> None:
    """Write `folder`/checkpoint from the newest state of every stage."""
    del steps
    target = folder / "checkpoint"
    (target / "portraits").mkdir(parents=True, exist_ok=True)
    train_audio.write_checkpoint(folder, target / "wav2vec2")
    _save(best_vae(folder).state_dict(), target / "Wan2.1_VAE.safetensors")
    dit = train_dit.load_dit(folder)
    _save(unpermute_rope_rows(dit.state_dict(), train_dit.CONFIG), target / "diffusion_pytorch_model.safetensors")
    _write_json(target / "config.json", _dit_config())
    _write_json(target / "overrides.json", _overrides())
    write_portrait(target / "portraits" / "anna.png")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"checkpoint: {target}, {size / 1e6:.1f} MB", flush=True)


def best_vae(folder: Path) -> train_vae.VideoVae:
    """Return the frozen encoder with the decoder as trained furthest."""
    if (folder / "vae_decoder.pt").exists():
        return train_vae.load_vae(folder, phase="vae_decoder")
    return load_frozen(folder)


def write_portrait(path: Path) -> None:
    """Draw the face at rest."""
    from PIL import Image

    Image.fromarray(draw(Pose(), PORTRAIT_SIZE)).save(path, optimize=True)


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    save_file({key: value.half().contiguous() for key, value in state.items()}, str(path), metadata={"format": "pt"})


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _dit_config() -> dict:
    config = train_dit.CONFIG
    return {
        "_class_name": "WanModel", "model_type": "i2v", "dim": config.dim, "ffn_dim": config.ffn_dim,
        "num_heads": config.heads, "num_layers": config.layers, "in_dim": config.in_dim, "out_dim": config.out_dim,
        "freq_dim": config.freq_dim, "eps": config.eps, "text_len": config.text_len,
        "audio_window": config.audio_window,
        "audio_channels": config.audio_channels, "intermediate_dim": config.audio_intermediate_dim,
        "output_dim": config.audio_dim, "context_tokens": config.audio_tokens, "vae_scale": config.vae_scale,
        "norm_input_visual": True, "norm_output_audio": True,
    }  # fmt: skip


def _overrides() -> dict:
    vae = train_vae.CONFIG
    return {
        "name": "anna",
        "note": "A drawn face; trained by examples/train_avatar.",
        "_video_vae": {"dim": vae.dim, "dim_mult": list(vae.dim_mult), "num_res_blocks": vae.num_res_blocks},
        "settings": {"window": WINDOW, "motion": MOTION, "drop": DROP, "steps": 1, "shift": 11.0, "fps": FPS},
        "sizes": {"1.00": [SIZE, SIZE]},
        "portraits": "listed",
        "avatars": {"anna": "portraits/anna.png"},
        "mouth_box": [round(edge / SIZE, 4) for edge in train_vae.MOUTH_BOX],
        "licences": {part: _LICENCE for part in ("audio_encoder", "vae_encoder", "vae_decoder", "dit")},
    }
