# SPDX-License-Identifier: Apache-2.0
"""The DiT's state dict: rotary row order, and diffusers' names."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from .dit_config import DitConfig

_ROTATED = re.compile(r"blocks\.\d+\.self_attn\.(?:[qk]\.(?:weight|bias)|norm_[qk]\.weight)")

Value = TypeVar("Value")


def is_rotated(key: str) -> bool:
    """Tell whether the rows of a tensor carry the rotary order: queries, keys and their norms in the self attention."""
    return _ROTATED.fullmatch(key) is not None


def rope_row_order(config: DitConfig) -> Tensor:
    """Give the published row of each row in half-split order: in each head the even ones, then the odd; [dim] int64."""
    rows = torch.arange(config.dim).reshape(config.heads, config.head_dim // 2, 2)
    return rows.transpose(1, 2).flatten()


def permute_rope_rows(state_dict: Mapping[str, Tensor], config: DitConfig) -> dict[str, Tensor]:
    """Put the published (interleaved) rows of queries and keys into the half-split order in which `dit.Dit` works.

    The norm runs over the whole width and scores are sums over a head, so both commute with the order: exact.
    """
    return _reordered(state_dict, rope_row_order(config))


def unpermute_rope_rows(state_dict: Mapping[str, Tensor], config: DitConfig) -> dict[str, Tensor]:
    """Undo `permute_rope_rows`: what a `dit.Dit` holds becomes what a published checkpoint holds."""
    return _reordered(state_dict, torch.argsort(rope_row_order(config)))


def _reordered(state_dict: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    return {key: value[order] if is_rotated(key) else value for key, value in state_dict.items()}


_FROM_DIFFUSERS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^condition_embedder\.time_embedder\.linear_([12])\.", lambda found: f"time_embedding.{2 * int(found[1]) - 2}."),
    (r"^condition_embedder\.text_embedder\.linear_([12])\.", lambda found: f"text_embedding.{2 * int(found[1]) - 2}."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
    (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    # diffusers counts the norms in the order in which they run; the original calls the second one norm3.
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
    (r"^(blocks\.\d+)\.ffn\.net\.0\.proj\.", r"\1.ffn.0."),
    (r"^(blocks\.\d+)\.ffn\.net\.2\.", r"\1.ffn.2."),
    (r"^(blocks\.\d+)\.attn1\.", r"\1.self_attn."),
    (r"^(blocks\.\d+)\.attn2\.", r"\1.cross_attn."),
    (r"_attn\.to_out\.0\.", "_attn.o."),
    (r"_attn\.to_([qkv])\.", r"_attn.\1."),
    (r"_attn\.add_([kv])_proj\.", r"_attn.\1_img."),
    (r"_attn\.norm_added_k\.", "_attn.norm_k_img."),
]
"""Patterns and what takes their place, applied one after another; rules from diffusers' own Wan converter, inverted."""


def original_key(key: str) -> str:
    """Turn diffusers' name of a DiT tensor into the original one."""
    for pattern, replacement in _FROM_DIFFUSERS:
        key = re.sub(pattern, replacement, key)
    return key


def has_diffusers_keys(state_dict: Mapping[str, object]) -> bool:
    """Tell whether names are diffusers' ones."""
    return any(key.startswith("condition_embedder.") for key in state_dict)


def from_diffusers_keys(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a diffusers DiT's tensors (or whatever is listed by their names) to the original keys."""
    return {original_key(key): value for key, value in state_dict.items()}
