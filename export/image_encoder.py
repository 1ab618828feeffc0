# SPDX-License-Identifier: Apache-2.0
"""The image encoder: the visual half of CLIP ViT-H/14, up to the last block but one, without the final norm.

Numerics after SkyReels-V3 wan/modules/clip.py (facts only, own code); parameter names are those of the published .pth
without the ``visual.`` prefix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .graph_spec import GraphSpec

# Per RGB channel, of values in [0, 1]; those that CLIP was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Constructor arguments of the published network."""

    image_size: int = 224
    """Side of the square input, in pixels."""
    patch_size: int = 14
    """Side of a patch, in pixels."""
    width: int = 1280
    """Channels of a token."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward layers, as a multiple of ``width``."""
    heads: int = 16
    """Heads of each block."""
    layers: int = 32
    """Blocks of the published network; the last one is never run and does not exist here."""
    norm_eps: float = 1e-5
    """Added to the variance."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "ImageEncoderConfig":
        """Read the reference's arguments of ``clip_xlm_roberta_vit_h_14``; those of the text half are passed over.

        Raises:
            ValueError: a key is unknown.
        """
        names = {
            "image_size": "image_size",
            "patch_size": "patch_size",
            "vision_dim": "width",
            "vision_mlp_ratio": "mlp_ratio",
            "vision_heads": "heads",
            "vision_layers": "layers",
            "norm_eps": "norm_eps",
        }
        unknown = [key for key in values if key not in names and not key.startswith(("text_", "vocab", "embed_dim"))]
        if unknown:
            raise ValueError(f"image encoder: unknown settings {unknown}; known are {sorted(names)}")
        arguments: dict[str, Any] = {names[key]: value for key, value in values.items() if key in names}
        return cls(**arguments)

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class Attention(nn.Module):
    """Self-attention over the tokens of an image."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] -> same."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Norm and attention, norm and feed-forward, each with a residual."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] -> same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ImageEncoder(nn.Module):
    """Pixels [B, 3, 224, 224], resized and normalised with ``CLIP_MEAN``/``CLIP_STD`` -> [B, 257, 1280]."""

    def __init__(self, config: ImageEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or ImageEncoderConfig()
        width, patch = self.config.width, self.config.patch_size
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.cls_embedding = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.pos_embedding = nn.Parameter(torch.randn(1, self.config.tokens, width) * width**-0.5)
        self.pre_norm = nn.LayerNorm(width, eps=self.config.norm_eps)
        self.transformer = nn.ModuleList(Block(self.config) for _ in range(self.config.layers - 1))

    def embed(self, pixels: Tensor) -> Tensor:
        """Return what the first block sees."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.cls_embedding.expand(pixels.shape[0], -1, -1)
        return self.pre_norm(torch.cat([first, patches], dim=1) + self.pos_embedding)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode; the class token comes first."""
        x = self.embed(pixels)
        for block in self.transformer:
            x = block(x)
        return x


class ImageEncoderGraph(nn.Module):
    """``pixels`` [1, 3, 224, 224] -> ``features`` [1, 257, 1280]."""

    def __init__(self, model: ImageEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """Encode one image."""
        return (self.model(pixels),)


def from_published_keys(state: Mapping[str, Tensor], config: ImageEncoderConfig) -> dict[str, Tensor]:
    """Keep ``visual.*`` without the prefix; drop the text half, the last block, the final norm and the projection."""
    unused = ("head", "post_norm.", f"transformer.{config.layers - 1}.")
    named = {key.removeprefix("visual."): tensor for key, tensor in state.items() if key.startswith("visual.")}
    return {key: tensor for key, tensor in named.items() if not key.startswith(unused)}


def example_inputs(config: ImageEncoderConfig, *, shape_index: int) -> tuple[Tensor]:
    """Return seeded pixels; the network has one shape only, so the two examples differ in content."""
    generator = torch.Generator().manual_seed(1009 + shape_index)
    return (torch.randn((1, 3, config.image_size, config.image_size), generator=generator),)


def graphs(model: ImageEncoder) -> list[GraphSpec]:
    """Return the one graph."""
    config = model.config
    return [
        GraphSpec(
            name="image_encoder",
            subnetwork="image_encoder",
            module=ImageEncoderGraph(model).eval(),
            input_names=("pixels",),
            output_names=("features",),
            examples=(example_inputs(config, shape_index=0), example_inputs(config, shape_index=1)),
            dynamic_shapes=({},),
            shape_names={
                "pixels": (1, 3, config.image_size, config.image_size),
                "features": (1, config.tokens, config.width),
            },
        )
    ]
