# SPDX-License-Identifier: Apache-2.0
"""The text encoder: umT5, a T5 encoder with its own relative position bias in every block.

Numerics after SkyReels-V3 wan/modules/t5.py (facts only, own code); parameter names are those of the published
models_t5_umt5-xxl-enc-bf16.pth.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .graph_spec import GraphSpec, dynamic_axes

# Added to the scores of masked keys. exp() of it is 0 as with the smallest float, and it exists in float16 too.
MASKED_SCORE = -6.0e4
# Distance in tokens from which on all positions share the outermost bucket.
FURTHEST_TOKENS = 128


@dataclass(frozen=True)
class TextEncoderConfig:
    """Constructor arguments of the published network; the names are the reference's."""

    vocab_size: int = 256384
    """Rows of the embedding."""
    dim: int = 4096
    """Channels of a token."""
    dim_attn: int = 4096
    """Channels of all heads together."""
    dim_ffn: int = 10240
    """Width of the feed-forward layers."""
    num_heads: int = 64
    """Heads of each block."""
    encoder_layers: int = 24
    """Blocks."""
    num_buckets: int = 32
    """Classes of distance that have a bias of their own, half of them for each direction."""
    norm_eps: float = 1e-6
    """Added to the mean square."""
    length: int = 512
    """The longest text, in tokens."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "TextEncoderConfig":
        """Read the reference's arguments of ``umt5_xxl``; ``decoder_layers`` is passed over.

        Raises:
            ValueError: a key is unknown.
        """
        known = {field.name for field in fields(cls)}
        unknown = set(values) - known - {"decoder_layers"}
        if unknown:
            raise ValueError(f"text encoder: unknown settings {sorted(unknown)}; known are {sorted(known)}")
        arguments: dict[str, Any] = {key: value for key, value in values.items() if key in known}
        return cls(**arguments)


def bucket_table(config: TextEncoderConfig) -> Tensor:
    """Return the bucket of every distance key - query from -(length-1) to length-1, int64 [2*length-1].

    Near distances have a bucket each, further ones share logarithmically wider buckets. Made once on the host, in
    float32 as the reference does, so that no graph computes a logarithm.
    """
    distance = torch.arange(1 - config.length, config.length)
    half = config.num_buckets // 2
    exact = half // 2
    steps = torch.log(distance.abs().float() / exact) / math.log(FURTHEST_TOKENS / exact) * (half - exact)
    wide = (exact + steps.clamp(min=0).to(torch.int64)).clamp(max=half - 1)
    return torch.where(distance.abs() < exact, distance.abs(), wide) + (distance > 0) * half


class RootMeanSquareNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the channels."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Self-attention with a bias on the scores and without their usual scale."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q, self.k, self.v = (nn.Linear(config.dim, config.dim_attn, bias=False) for _ in range(3))
        self.o = nn.Linear(config.dim_attn, config.dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, L, dim], [B or 1, heads, L, L] -> [B, L, dim]."""
        query, key, value = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return self.o(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Gated with GELU (tanh form)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(config.dim, config.dim_ffn, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(config.dim, config.dim_ffn, bias=False)
        self.fc2 = nn.Linear(config.dim_ffn, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> same."""
        return self.fc2(self.fc1(x) * self.gate(x))


class PositionBias(nn.Module):
    """One learnt bias per bucket of distance and head."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_buckets, config.num_heads)

    def forward(self, buckets: Tensor) -> Tensor:
        """[L, L] buckets -> [1, heads, L, L]."""
        return self.embedding(buckets).permute(2, 0, 1).unsqueeze(0)


class Block(nn.Module):
    """Norm and attention, norm and feed-forward, each with a residual."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.norm1 = RootMeanSquareNorm(config)
        self.attn = Attention(config)
        self.norm2 = RootMeanSquareNorm(config)
        self.ffn = FeedForward(config)
        self.pos_embedding = PositionBias(config)

    def forward(self, x: Tensor, *, buckets: Tensor, masked: Tensor) -> Tensor:
        """[B, L, dim] -> same; ``masked`` [B, 1, 1, L] is added to the scores."""
        x = x + self.attn(self.norm1(x), self.pos_embedding(buckets) + masked)
        return x + self.ffn(self.norm2(x))


class TextEncoder(nn.Module):
    """Token ids and their mask to embeddings, zero past the mask."""

    buckets: Tensor

    def __init__(self, config: TextEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or TextEncoderConfig()
        self.token_embedding = nn.Embedding(self.config.vocab_size, self.config.dim)
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(self.config.encoder_layers))
        self.norm = RootMeanSquareNorm(self.config)
        self.register_buffer("buckets", bucket_table(self.config), persistent=False)

    def pair_buckets(self, ids: Tensor) -> Tensor:
        """Return the bucket of every pair (query, key) of a text as long as ``ids`` [B, L]: [L, L]."""
        place = torch.arange(ids.shape[1], device=ids.device)
        return self.buckets[place.unsqueeze(0) - place.unsqueeze(1) + (self.config.length - 1)]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode int64 [B, L], L at most ``length``; ``mask`` is 1 on tokens and 0 after them: [B, L, dim]."""
        buckets = self.pair_buckets(ids)
        x = self.token_embedding(ids)
        masked = ((1 - mask).to(x.dtype) * MASKED_SCORE).unsqueeze(1).unsqueeze(1)
        for block in self.blocks:
            x = block(x, buckets=buckets, masked=masked)
        return self.norm(x) * mask.to(x.dtype).unsqueeze(-1)


class TextEncoderGraph(nn.Module):
    """``ids`` int64 [1, L], ``mask`` int64 [1, L] -> ``hidden`` [L, text_width], rows past the mask zero."""

    def __init__(self, model: TextEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor]:
        """Encode one text."""
        return (self.model(ids, mask).squeeze(0),)


# Names of transformers' UMT5EncoderModel (left) and of the published .pth (right), applied in this order.
_TRANSFORMERS_NAMES = (
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.embed_tokens\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.", "blocks."),
    (r"layer\.0\.SelfAttention\.relative_attention_bias", "pos_embedding.embedding"),
    (r"layer\.0\.SelfAttention\.", "attn."),
    (r"layer\.0\.layer_norm", "norm1"),
    (r"layer\.1\.layer_norm", "norm2"),
    (r"layer\.1\.DenseReluDense\.wi_0", "ffn.gate.0"),
    (r"layer\.1\.DenseReluDense\.wi_1", "ffn.fc1"),
    (r"layer\.1\.DenseReluDense\.wo", "ffn.fc2"),
)


def from_transformers_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of transformers' ``UMT5EncoderModel`` to the names of the published .pth."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        for theirs, ours in _TRANSFORMERS_NAMES:
            name = re.sub(theirs, ours, name)
        renamed[name] = tensor
    return renamed


def example_inputs(config: TextEncoderConfig, *, shape_index: int) -> tuple[Tensor, Tensor]:
    """Return seeded ids of 12 or 19 places, the last few of which are masked."""
    places, tokens = ((12, 9), (19, 12))[shape_index]
    generator = torch.Generator().manual_seed(1009 + shape_index)
    mask = (torch.arange(places) < tokens).to(torch.int64).unsqueeze(0)
    return torch.randint(0, config.vocab_size, (1, places), generator=generator) * mask, mask


def graphs(model: TextEncoder) -> list[GraphSpec]:
    """Return the one graph."""
    config = model.config
    shapes = {"ids": (1, "tokens"), "mask": (1, "tokens"), "hidden": ("tokens", config.dim)}
    return [
        GraphSpec(
            name="text_encoder",
            subnetwork="text_encoder",
            module=TextEncoderGraph(model).eval(),
            input_names=("ids", "mask"),
            output_names=("hidden",),
            examples=(example_inputs(config, shape_index=0), example_inputs(config, shape_index=1)),
            dynamic_shapes=(dynamic_axes(shapes["ids"]), dynamic_axes(shapes["mask"])),
            shape_names=shapes,
        )
    ]
