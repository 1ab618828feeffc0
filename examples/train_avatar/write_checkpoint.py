# SPDX-License-Identifier: Apache-2.0
"""Write the checkpoint folder in the published layout, fp16, with the avatars' pictures and `overrides.json`."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from edgereels.export.dit_keys import unpermute_rope_rows

from . import start, train_audio, train_dit
from .balance import balance
from .face import BOX, draw_still
from .footage import FPS, SIZE, Footage
from .identities import IDENTITIES
from .latents import DROP, MOTION, WINDOW, as_clip, load_frozen

_LICENCE = "Apache-2.0; trained by examples/train_avatar on data that it makes itself"
_LICENCE_FILMED = "the weights they started from: Apache-2.0; who trained on their own videos adds their own terms"
FEATHER = 40
"""Pixels of the still over which the box is blended in."""
MATTERS = 3.5
"""Pixels that weigh more than this are the mouth."""


def write(folder: Path, *, steps: int) -> None:
    """Write `folder`/checkpoint from the newest state of every stage."""
    del steps
    target = folder / "checkpoint"
    (target / "avatars").mkdir(parents=True, exist_ok=True)
    train_audio.write_checkpoint(folder, target / "wav2vec2")
    footage = Footage.open(folder)
    vae = load_frozen(folder)
    balance(vae, as_clip(footage.frames[max(footage.held_out), :9]))
    _save(vae.state_dict(), target / "Wan2.1_VAE.safetensors")
    dit = train_dit.load_dit(folder)
    _save(unpermute_rope_rows(dit.state_dict(), train_dit.CONFIG), target / "diffusion_pytorch_model.safetensors")
    _write_json(target / "config.json", _dit_config())
    avatars = _write_pictures(folder, target, footage)
    filmed = start.videos(folder) is not None
    _write_json(target / "overrides.json", _overrides(avatars, mouth_box(footage), filmed=filmed))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"checkpoint: {target}, {size / 1e6:.1f} MB", flush=True)


def _write_pictures(folder: Path, target: Path, footage: Footage) -> dict[str, object]:
    """Write a still per face; return the `avatars` of the overrides."""
    from PIL import Image

    avatars: dict[str, object] = {}
    for name in dict.fromkeys(footage.faces):
        path = f"avatars/{name}.png"
        if name in IDENTITIES:
            Image.fromarray(draw_still(IDENTITIES[name])).save(target / path, optimize=True)
            avatars[name] = {"still": path, "box": list(BOX), "feather": FEATHER}
        else:
            filmed = folder / "footage" / f"still_{name}"
            box = json.loads(filmed.with_suffix(".json").read_text())["box"]
            Image.open(filmed.with_suffix(".png")).save(target / path, optimize=True)
            avatars[name] = {"still": path, "box": box, "feather": (box[2] - box[0]) * FEATHER // (BOX[2] - BOX[0])}
    return avatars


def mouth_box(footage: Footage) -> list[float]:
    """Return the box around the pixels that count most, in fractions: top, left, bottom, right."""
    mouth = np.any([weight > MATTERS for weight in footage.weights.values()], axis=0)
    rows, columns = np.flatnonzero(mouth.any(1)), np.flatnonzero(mouth.any(0))
    edges = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    return [round(float(edge) / SIZE, 4) for edge in edges]


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


def _overrides(avatars: dict[str, object], mouth: list[float], *, filmed: bool) -> dict:
    licence = _LICENCE_FILMED if filmed else _LICENCE
    return {
        "name": next(iter(avatars)) if len(avatars) == 1 else "faces",
        "note": "Trained by examples/train_avatar.",
        "_video_vae": start.vae_settings(),
        "settings": {"window": WINDOW, "motion": MOTION, "drop": DROP, "steps": 1, "shift": 11.0, "fps": FPS},
        "sizes": {"1.00": [SIZE, SIZE]},
        "portraits": "listed",
        "avatars": avatars,
        "mouth_box": mouth,
        "licences": {part: licence for part in ("audio_encoder", "vae_encoder", "vae_decoder", "dit")},
    }
