# SPDX-License-Identifier: Apache-2.0
"""The DiT of the SkyReels-V3 family, written once: talking avatar, video extension, shot switching, reference to video.

Text, image, audio and condition are parts that a `DitConfig` switches; which positions a token has lies in the rotary
tables that are given, and whether latent frames have timesteps of their own lies in how many modulations are given.
Facts from SkyworkAI/SkyReels-V3 28c771e, wan/modules/transformer_a2v.py and transformer.py; own code. State-dict keys are
the original ones; rows of the self-attention's queries and keys are in half-split order (`dit_keys.permute_rope_rows`).

Left out: the two-speaker branch (label rotary embedding on the audio attention). The published pipeline cannot reach it,
and its shapes depend on the data.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .dit_config import IMAGE_TOKENS, PATCH, DitConfig

__all__ = ["IMAGE_TOKENS", "Dit", "DitBlock", "DitConfig", "DitEpilogue", "DitPrologue", "DitTime", "rotate"]


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
    """Scale by 1 + scale and shift; rows [B, N, dim], scale and shift [G, 1, dim] for G equal runs of the B * N rows."""
    return (in_groups(rows, scale) * (1 + scale) + shift).reshape(rows.shape)


def gated(rows: Tensor, gate: Tensor) -> Tensor:
    """Multiply by a gate; rows [B, N, dim], gate [G, 1, dim] for G equal runs of the B * N rows."""
    return (in_groups(rows, gate) * gate).reshape(rows.shape)


def in_groups(rows: Tensor, vectors: Tensor) -> Tensor:
    """View rows [B, N, dim] as [G, B * N / G, dim], one group for each of G vectors."""
    return rows.reshape(vectors.shape[0], -1, rows.shape[-1])


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

    def forward(self, rows: Tensor, text_context: Tensor | None, image_context: Tensor | None) -> Tensor:
        """Attend; rows [B, N, dim], contexts [B, L, dim]; the ones that the network has must be given."""
        queries = split_heads(self.norm_q(self.q(rows)), self.heads)
        attended: list[Tensor] = []
        if self.has_text:
            text = _needed(text_context, "text_context")
            keys = split_heads(self.norm_k(self.k(text)), self.heads)
            attended.append(attend(queries, keys, split_heads(self.v(text), self.heads)))
        if self.has_image:
            image = _needed(image_context, "image_context")
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

    def forward(
        self,
        tokens: Tensor,
        text_context: Tensor | None = None,
        image_context: Tensor | None = None,
        audio_context: Tensor | None = None,
        *,
        modulation: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
    ) -> Tensor:
        """Run the block.

        Args:
            tokens: [B, N, dim], tokens in the order frame, row, column.
            text_context: [B, L, dim], where the network has text.
            image_context: [B, 257, dim], where the network has image features.
            audio_context: [B * T, audio_tokens, audio_dim], where the network has audio.
            modulation: [G, 6, dim]; the B * N tokens fall into G equal runs with a modulation each: G is 1 for one
                timestep, B for one per sample, B * T for one per latent frame.
            rope_cos: [N, head_dim / 2].
            rope_sin: [N, head_dim / 2].
        """
        parts = (self.modulation + modulation).unsqueeze(2).unbind(1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = parts
        rows = modulated(self.norm1(tokens), scale, shift)
        tokens = tokens + gated(self.self_attn(rows, rope_cos, rope_sin), gate)
        if self.config.has_text or self.config.has_image:
            tokens = tokens + self.cross_attn(self.norm3(tokens), text_context, image_context)
        if self.config.has_audio:
            tokens = tokens + self.audio_cross_attn(self.norm_x(tokens), _needed(audio_context, "audio_context"))
        return tokens + gated(self.ffn(modulated(self.norm2(tokens), ffn_scale, ffn_shift)), ffn_gate)


class ImageEmbedding(nn.Module):
    """Image features to the width of the tokens."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        # 1e-5 here and in the audio projection is torch's own default, which the published network uses outside blocks.
        self.proj = nn.Sequential(
            nn.LayerNorm(config.image_dim, eps=1e-5),
            nn.Linear(config.image_dim, config.image_dim),
            nn.GELU(),
            nn.Linear(config.image_dim, config.dim),
            nn.LayerNorm(config.dim, eps=1e-5),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Project; [B, 257, image_dim] to [B, 257, dim]."""
        return self.proj(features)


class AudioProjection(nn.Module):
    """Audio features around each latent frame to that frame's audio tokens."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        frame = config.audio_layers * config.audio_channels
        width = config.audio_intermediate_dim
        self.tokens = config.audio_tokens
        self.proj1 = nn.Linear(config.audio_window * frame, width)
        self.proj1_vf = nn.Linear(config.audio_group * frame, width)
        self.proj2 = nn.Linear(width, width)
        self.proj3 = nn.Linear(width, config.audio_tokens * config.audio_dim)
        self.norm = nn.LayerNorm(config.audio_dim, eps=1e-5)

    def forward(self, audio_first: Tensor, audio_rest: Tensor) -> Tensor:
        """Project to [B * T, audio_tokens, audio_dim].

        Args:
            audio_first: [B, audio_window, layers, channels], the features around the first frame.
            audio_rest: [B, T - 1, audio_group, layers, channels], for each later latent frame those around its frames.
        """
        first = self.proj1(audio_first.flatten(1)).relu().unsqueeze(1)
        rest = self.proj1_vf(audio_rest.flatten(2)).relu()
        rows = self.proj2(torch.cat([first, rest], dim=1)).relu()
        return self.norm(self.proj3(rows).flatten(0, 1).unflatten(-1, (self.tokens, -1)))


class DitPrologue(nn.Module):
    """Everything before the first block: latents to tokens, conditions to contexts."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(config.in_dim, config.dim, kernel_size=PATCH, stride=PATCH)
        if config.has_text:
            self.text_embedding = nn.Sequential(
                nn.Linear(config.text_dim, config.dim), nn.GELU(approximate="tanh"), nn.Linear(config.dim, config.dim)
            )
        if config.has_image:
            self.img_emb = ImageEmbedding(config)
        if config.has_audio:
            self.audio_proj = AudioProjection(config)

    def forward(
        self,
        latents: Tensor,
        condition: Tensor | None = None,
        text: Tensor | None = None,
        image: Tensor | None = None,
        audio_first: Tensor | None = None,
        audio_rest: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return tokens [B, N, dim], then the contexts that the network has: text, image, audio.

        Args:
            latents: [B, out_dim, T, h, w]; several segments follow each other on the time axis.
            condition: [B, in_dim - out_dim, T, h, w], mask channels first.
            text: [B, L, text_dim].
            image: [B, 257, image_dim].
            audio_first: [B, audio_window, layers, channels].
            audio_rest: [B, T - 1, audio_group, layers, channels], or without the first axis where B is 1.
        """
        if self.config.condition_dim:
            latents = torch.cat([latents, _needed(condition, "condition")], dim=1)
        outputs = [self.patch_embedding(latents).flatten(2).transpose(1, 2)]
        if self.config.has_text:
            outputs.append(self.text_embedding(_needed(text, "text")))
        if self.config.has_image:
            outputs.append(self.img_emb(_needed(image, "image")))
        if self.config.has_audio:
            rest = _needed(audio_rest, "audio_rest")
            rest = rest.unsqueeze(0) if rest.ndim == 4 else rest
            outputs.append(self.audio_proj(_needed(audio_first, "audio_first"), rest))
        return tuple(outputs)


class Head(nn.Module):
    """The modulated last layer: tokens to the latent pixels of their patches."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, PATCH[0] * PATCH[1] * PATCH[2] * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, tokens: Tensor, head_modulation: Tensor) -> Tensor:
        """Project; tokens [B, N, dim], head_modulation [G, dim], result [B, N, 4 * out_dim] in order row, column, channel."""
        shift, scale = (self.modulation + head_modulation.unsqueeze(1)).unsqueeze(2).unbind(1)
        return self.head(modulated(self.norm(tokens), scale, shift))


class DitEpilogue(nn.Module):
    """Everything after the last block: tokens to velocity."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        self.head = Head(config)

    def forward(self, tokens: Tensor, head_modulation: Tensor, latents: Tensor) -> Tensor:
        """Return the velocity [B, out_dim, T, h, w]; of `latents` only the shape is used."""
        frames, rows, columns = latents.shape[2:]
        patches = self.head(tokens, head_modulation).reshape(
            tokens.shape[0], frames, rows // PATCH[1], columns // PATCH[2], PATCH[1], PATCH[2], self.config.out_dim
        )
        return patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(tokens.shape[0], self.config.out_dim, frames, rows, columns)


class DitTime(nn.Module):
    """Sinusoids of timesteps to modulations; runs beside the other parts, or ahead of them into a table."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))

    def forward(self, sinusoid: Tensor) -> tuple[Tensor, Tensor]:
        """Return head_modulation [G, dim] and modulation [G, 6, dim] of sinusoids [G, freq_dim], cosines first."""
        head_modulation = self.time_embedding(sinusoid)
        return head_modulation, self.time_projection(head_modulation).unflatten(1, (6, self.dim))


class Dit(nn.Module):
    """The whole network with the original state-dict keys; its parts share its weights."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        # A tuple is no submodule: the parts' children are registered under their original names below, once.
        self._parts = (DitPrologue(config), DitEpilogue(config), DitTime(config))
        for part in self._parts[:1]:
            self._adopt(part)
        self.blocks = nn.ModuleList(DitBlock(config) for _ in range(config.layers))
        for part in self._parts[1:]:
            self._adopt(part)

    def _adopt(self, part: nn.Module) -> None:
        for name, child in part.named_children():
            self.add_module(name, child)

    @property
    def prologue(self) -> DitPrologue:
        """The part before the blocks."""
        return self._parts[0]

    @property
    def epilogue(self) -> DitEpilogue:
        """The part after the blocks."""
        return self._parts[1]

    @property
    def time(self) -> DitTime:
        """The part that makes modulations."""
        return self._parts[2]

    def block(self, index: int) -> DitBlock:
        """Return one block."""
        return cast(DitBlock, self.blocks[index])

    def forward(
        self,
        latents: Tensor,
        condition: Tensor | None = None,
        text: Tensor | None = None,
        image: Tensor | None = None,
        audio_first: Tensor | None = None,
        audio_rest: Tensor | None = None,
        *,
        modulation: Tensor,
        head_modulation: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
    ) -> Tensor:
        """Return the velocity [B, out_dim, T, h, w]; inputs as in `DitPrologue`, `DitBlock` and `DitEpilogue`."""
        tokens, *contexts = self.prologue(latents, condition, text, image, audio_first, audio_rest)
        named = dict(zip(self.context_names(), contexts, strict=True))
        for block in self.blocks:
            tokens = block(tokens, **named, modulation=modulation, rope_cos=rope_cos, rope_sin=rope_sin)
        return self.epilogue(tokens, head_modulation, latents)

    def context_names(self) -> list[str]:
        """Names of the contexts that the network has, in order."""
        has = {"text": self.config.has_text, "image": self.config.has_image, "audio": self.config.has_audio}
        return [f"{name}_context" for name, present in has.items() if present]


def _needed(given: Tensor | None, name: str) -> Tensor:
    if given is None:
        raise ValueError(f"this network needs {name}, and none was given")
    return given
