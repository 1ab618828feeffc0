# SPDX-License-Identifier: Apache-2.0
"""What a video autoencoder of the Wan 2.1 family is: its settings, and the two layouts its parameters come in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

# Statistics of Wan 2.1's latents, by which every network of the family normalises them (vae.py of the reference).
WAN_LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN_LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclass(frozen=True)
class VaeConfig:
    """Constructor arguments of the published network; the names are the checkpoint's."""

    dim: int = 96
    """Channels at full resolution."""
    z_dim: int = 16
    """Channels of the latents."""
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Channels per level, as multiples of ``dim``; each level but the last halves height and width."""
    num_res_blocks: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    """Whether the resampler after a level also halves the frames (spelt as in the checkpoints)."""
    latents_mean: tuple[float, ...] = WAN_LATENTS_MEAN
    """Per latent channel."""
    latents_std: tuple[float, ...] = WAN_LATENTS_STD
    """Per latent channel."""

    def __post_init__(self) -> None:
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temperal_downsample has {len(self.temperal_downsample)} entries; {len(self.dim_mult)} levels"
                f" need {len(self.dim_mult) - 1}"
            )
        if len(self.latents_mean) != self.z_dim or len(self.latents_std) != self.z_dim:
            raise ValueError(f"latents_mean and latents_std need {self.z_dim} entries (z_dim)")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "VaeConfig":
        """Read the reference's constructor arguments, or the config.json of a diffusers ``AutoencoderKLWan``.

        Raises:
            ValueError: a key is unknown, or asks for what this network does not have.
        """
        known = {field.name for field in fields(cls)}
        arguments: dict[str, Any] = {}
        for key, value in values.items():
            name = "dim" if key == "base_dim" else key
            if name in known:
                arguments[name] = tuple(value) if isinstance(value, list | tuple) else value
            elif not (key.startswith("_") or key == "dropout" or (key == "attn_scales" and not value)):
                raise ValueError(f"video autoencoder: unknown setting {key}={value!r}; known are {sorted(known)}")
        return cls(**arguments)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent, along height and along width."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent, after the first."""
        return 2 ** sum(self.temperal_downsample)


# Names of diffusers' AutoencoderKLWan (left) and of Wan2.1_VAE.pth (right), applied in this order.
_DIFFUSERS_NAMES = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"\.norm1\.", ".residual.0."),
    (r"(middle|samples)\.(\d+)\.conv1\.", r"\1.\2.residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"(middle|samples)\.(\d+)\.conv2\.", r"\1.\2.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
)


def from_diffusers_keys(state: Mapping[str, Tensor], config: VaeConfig) -> dict[str, Tensor]:
    """Rename the state dict of a diffusers ``AutoencoderKLWan`` to the names of Wan2.1_VAE.pth."""
    blocks = config.num_res_blocks + 1

    def place(match: re.Match[str]) -> str:
        inner = blocks if match[2] == "upsamplers" else int(match[3])
        return f".upsamples.{int(match[1]) * (blocks + 1) + inner}."

    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = re.sub(r"\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", place, key)
        for theirs, ours in _DIFFUSERS_NAMES:
            name = re.sub(theirs, ours, name)
        renamed[name] = tensor
    return renamed
