# SPDX-License-Identifier: Apache-2.0
"""The recorded runs of the tiny DiTs: checkpoint, inputs by graph name, and what came out."""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgereels.export.dit import Dit, DitConfig
from edgereels.export.dit_keys import from_diffusers_keys, has_diffusers_keys, permute_rope_rows
from edgereels.runtime.tables import RopeGrid, rope_tables, sinusoid

# Ten times the noise floor, relative to the standard deviation of each tensor, that the golden README gives for the
# file. v2v_transformer_set1: its file's figure is that of a bfloat16 run, so the other set of the same network counts.
# r2v: "bit-identical" means 1e-5 for networks.
TOLERANCES = {
    "a2v_dit_set0": 2.8e-5,
    "a2v_dit_set1": 1.1e-5,
    "a2v_dit_set2": 1.3e-5,
    "v2v_transformer_set0": 4.9e-5,
    "v2v_transformer_set1": 4.9e-5,
    "v2v_shot_transformer_set0": 3.8e-5,
    "v2v_shot_transformer_set1": 1.4e-5,
    "r2v_transformer_set0": 1e-5,
    "r2v_transformer_set1": 1e-5,
}
FOLDERS = {
    "a2v_dit": "a2v",
    "v2v_transformer": "v2v/transformer",
    "v2v_shot_transformer": "v2v/shot_transformer",
    "r2v_transformer": "r2v/transformer",
}
# Where the second segment of a shot switch begins on the time axis of the rotary embedding.
SECOND_SEGMENT = 1024


@dataclass(frozen=True)
class RecordedRun:
    """One recorded forward pass."""

    dit: Dit
    """The network in float32, rotary rows in half-split order."""
    inputs: dict[str, Tensor]
    """By graph input name; also the `sinusoid` of the timesteps."""
    velocity: Tensor
    """[1, 16, T, h, w]; for a shot switch of the new shot's frames only, which come first."""
    intermediates: dict[str, Tensor]
    """Outputs of submodules by their recorded name."""
    tolerance: float
    """Largest difference, relative to the standard deviation."""


def recorded_run(name: str, *, golden: Path, checkpoints: Path) -> RecordedRun:
    recorded = load_file(golden / "golden" / f"{name}.safetensors")
    dit = load_dit(checkpoints / FOLDERS[name[: -len("_set0")]])
    if name.startswith("a2v"):
        inputs = avatar_inputs(recorded, load_file(golden / "golden" / "a2v_audio_base.safetensors")["audio_base"])
        timesteps, segments, velocity = recorded["t"], [(0, inputs["latents"].shape[2])], recorded["out"]
    elif name.startswith("r2v"):
        latents = torch.cat([recorded["latents"], recorded["condition"]], dim=2)
        inputs = {"latents": latents, "text": padded(recorded["encoder_hidden_states"][0])}
        timesteps, segments, velocity = recorded["timestep"], [(0, latents.shape[2])], recorded["out_full"]
    else:
        inputs, segments = extension_inputs(recorded, is_shot="shot" in name)
        timesteps, velocity = recorded["t"].flatten(), recorded["out"]
    exact = torch.from_numpy(sinusoid(timesteps.numpy(), freq_dim=dit.config.freq_dim))
    inputs["sinusoid"] = sinusoid_in_float32(timesteps) if name.startswith("r2v") else exact
    height, width = inputs["latents"].shape[3:]
    grids = [RopeGrid(frames, height // 2, width // 2, first) for first, frames in segments]
    tables = rope_tables(grids, head_dim=dit.config.head_dim, single_precision=name.startswith("v2v"))
    inputs["rope_cos"], inputs["rope_sin"] = (torch.from_numpy(table) for table in tables)
    with torch.no_grad():
        inputs["head_modulation"], inputs["modulation"] = dit.time(inputs["sinusoid"])
    intermediates = {key[2:]: value for key, value in recorded.items() if key.startswith("h.")}
    return RecordedRun(dit, inputs, velocity, intermediates, TOLERANCES[name])


@functools.cache
def load_dit(folder: Path) -> Dit:
    config, state = read_checkpoint(folder)
    dit = Dit(config).eval().requires_grad_(False)
    dit.load_state_dict(permute_rope_rows(state, config))
    return dit


def read_checkpoint(folder: Path) -> tuple[DitConfig, dict[str, Tensor]]:
    """Read configuration and float32 weights under their original names."""
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= {key: value.float() for key, value in load_file(file).items()}
    state = from_diffusers_keys(state) if has_diffusers_keys(state) else state
    config = json.loads((folder / "config.json").read_text())
    return DitConfig.from_json(config, {key: tuple(value.shape) for key, value in state.items()}), state


def avatar_inputs(recorded: dict[str, Tensor], audio_base: Tensor) -> dict[str, Tensor]:
    audio_first, audio_rest = audio_taps(audio_base.float()[recorded["audio_idx"]])
    return {
        "latents": recorded["x"][None],
        "condition": recorded["y"],
        "text": padded(recorded["context"]),
        "image": recorded["clip_fea"].float(),
        "audio_first": audio_first,
        "audio_rest": audio_rest,
    }


def audio_taps(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Group the five taps of each video frame [4 (T - 1) + 1, 5, layers, channels] by latent frames."""
    groups = frames[1:].unflatten(0, (-1, 4))
    return frames[:1], torch.cat([groups[:, 0, :3], groups[:, 1:3, 2], groups[:, 3, 2:]], dim=1)


def extension_inputs(recorded: dict[str, Tensor], *, is_shot: bool) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """Return inputs, and where each segment begins on the time axis with its number of frames."""
    parts = [recorded["latent"], recorded["cond"]] if is_shot else [recorded["cond"], recorded["latent"]]
    first, second = (part.shape[2] for part in parts)
    inputs = {"latents": torch.cat(parts, dim=2), "text": padded(recorded["context"][0])}
    return inputs, [(0, first), (SECOND_SEGMENT if is_shot else first, second)]


def padded(text: Tensor) -> Tensor:
    return torch.cat([text.float(), torch.zeros(512 - text.shape[0], text.shape[1])])[None]


def sinusoid_in_float32(timesteps: Tensor) -> Tensor:
    """Return [F, 256] as diffusers makes it: angles rounded to float32, which puts it 1e-5 from the exact one."""
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference relative to the standard deviation of `theirs`."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.std())
