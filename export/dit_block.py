# SPDX-License-Identifier: Apache-2.0
"""One block of the DiT: self attention, attention to text and image, attention to audio, feed-forward.

Facts from SkyworkAI/SkyReels-V3 28c771e, wan/modules/transformer_a2v.py and transformer.py; own code.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .dit_config import DitConfig


def split_heads(rows: Tensor, heads: int) -> Tensor:
    """Turn [B, N, dim] into [B, heads, N, head_dim]."""
    return rows.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend fully, [B, heads, N, head_dim] each, and merge the heads to [B, N, dim]."""
    return functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


def rotate(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding in half-split form: rows [B, heads, N, head_dim], tables [N, head_dim / 2]."""
    first, second = rows.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def modulated(rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale by 1 + scale and shift; rows [B, N, dim], scale and shift [G, 1, dim] for G equal runs of the rows."""
    return (in_groups(rows, scale) * (1 + scale) + shift).reshape(rows.shape)


def gated(rows: Tensor, gate: Tensor) -> Tensor:
    """Multiply by a gate; rows [B, N, dim], gate [G, 1, dim] for G equal runs of the B * N rows."""
    return (in_groups(rows, gate) * gate).reshape(rows.shape)


def in_groups(rows: Tensor, vectors: Tensor) -> Tensor:
    """View rows [B, N, dim] as [G, B * N / G, dim], one group for each of G vectors; G of 1 needs no view."""
    return rows if vectors.shape[0] == 1 else rows.reshape(vectors.shape[0], -1, rows.shape[-1])


class SelfAttention(nn.Module):
    """Attention among all tokens; norms over the full width on queries and keys, then the rotary embedding."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = nn.RMSNorm(config.dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(config.dim, eps=config.eps)

    def forward(self, rows: Tensor, rope_cos: Tensor, rope_sin: Tensor) -> Tensor:
        """Attend; rows [B, N, dim], tables [N, head_dim / 2]."""
        queries = rotate(split_heads(self.norm_q(self.q(rows)), self.heads), rope_cos, rope_sin)
        keys = rotate(split_heads(self.norm_k(self.k(rows)), self.heads), rope_cos, rope_sin)
        return self.o(attend(queries, keys, split_heads(self.v(rows), self.heads)))


class CrossAttention(nn.Module):
    """Attention to text, to image features, or to both: then two separate softmaxes, whose results are added."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.has_text = config.has_text
        self.has_image = config.has_image
        self.q = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = nn.RMSNorm(config.dim, eps=config.eps)
        if config.has_text:
            self.k = nn.Linear(config.dim, config.dim)
            self.v = nn.Linear(config.dim, config.dim)
            self.norm_k = nn.RMSNorm(config.dim, eps=config.eps)
        if config.has_image:
            self.k_img = nn.Linear(config.dim, config.dim)
            self.v_img = nn.Linear(config.dim, config.dim)
            self.norm_k_img = nn.RMSNorm(config.dim, eps=config.eps)

    def forward(self, rows: Tensor, *contexts: Tensor) -> Tensor:
        """Attend; rows [B, N, dim], then the contexts that the network has, text and image, [B, L, dim] each."""
        queries = split_heads(self.norm_q(self.q(rows)), self.heads)
        given = list(contexts)
        attended: list[Tensor] = []
        if self.has_text:
            text = given.pop(0)
            keys = split_heads(self.norm_k(self.k(text)), self.heads)
            attended.append(attend(queries, keys, split_heads(self.v(text), self.heads)))
        if self.has_image:
            image = given.pop(0)
            keys = split_heads(self.norm_k_img(self.k_img(image)), self.heads)
            attended.append(attend(queries, keys, split_heads(self.v_img(image), self.heads)))
        return self.o(attended[0] if len(attended) == 1 else attended[0] + attended[1])


class AudioCrossAttention(nn.Module):
    """Attention of each latent frame's tokens to that frame's audio tokens and no others; no norms inside."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_linear = nn.Linear(config.dim, config.dim)
        self.kv_linear = nn.Linear(config.audio_dim, 2 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, rows: Tensor, audio_context: Tensor) -> Tensor:
        """Attend; rows [B, N, dim] in frame order, audio_context [B * T, tokens, audio_dim]."""
        queries = split_heads(in_groups(self.q_linear(rows), audio_context), self.heads)
        keys, values = self.kv_linear(audio_context).chunk(2, dim=-1)
        attended = attend(queries, split_heads(keys, self.heads), split_heads(values, self.heads))
        return self.proj(attended.reshape(rows.shape))


class DitBlock(nn.Module):
    """One block: tokens to tokens of the same shape."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        # The two norms without weights have no keys; norm3 stands before the cross attention (original naming).
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        if config.has_text or config.has_image:
            self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
            self.cross_attn = CrossAttention(config)
        if config.has_audio:
            self.norm_x = nn.LayerNorm(config.dim, eps=config.eps)
            self.audio_cross_attn = AudioCrossAttention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of what `forward` takes, in order."""
        return ("tokens", *self.config.context_names, "modulation", "rope_cos", "rope_sin")

    def forward(self, tokens: Tensor, *conditions: Tensor) -> tuple[Tensor]:
        """Run the block; returns the new tokens, [B, N, dim], alone in a tuple.

        Args:
            tokens: [B, N, dim] in the order frame, row, column.
            conditions: The rest of `input_names`. text_context [B, L, dim], image_context [B, 257, dim], audio_context
                [B * T, audio_tokens, audio_dim]: those that the network has. modulation [G, 6, dim]: the B * N tokens
                fall into G equal runs with a modulation each; G is 1 for one timestep, B for one per sample, B * T for
                one per latent frame. rope_cos and rope_sin [N, head_dim / 2].
        """
        *contexts, modulation, rope_cos, rope_sin = conditions
        audio = [contexts.pop()] if self.config.has_audio else []
        parts = (self.modulation + modulation).unsqueeze(2).unbind(1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = parts
        rows = modulated(self.norm1(tokens), scale, shift)
        tokens = tokens + gated(self.self_attn(rows, rope_cos, rope_sin), gate)
        if contexts:
            tokens = tokens + self.cross_attn(self.norm3(tokens), *contexts)
        if audio:
            tokens = tokens + self.audio_cross_attn(self.norm_x(tokens), *audio)
        rows = modulated(self.norm2(tokens), ffn_scale, ffn_shift)
        return (tokens + gated(self.ffn(rows), ffn_gate),)
