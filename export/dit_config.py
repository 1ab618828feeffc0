# SPDX-License-Identifier: Apache-2.0
"""What a DiT of the family is: widths, and which conditions it has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..runtime.errors import CheckpointError

PATCH = (1, 2, 2)
"""Latent frames, rows and columns that make one token; the same in the whole family."""

IMAGE_TOKENS = 257
"""Rows of the image encoder's output: one class token and 16 x 16 patches."""


@dataclass(frozen=True, kw_only=True)
class DitConfig:
    """Widths and parts of one DiT; the defaults are those of the published talking avatar."""

    dim: int = 5120
    """Width of a token."""
    heads: int = 40
    """Attention heads; `dim` is a multiple."""
    layers: int = 40
    """Blocks."""
    ffn_dim: int = 13824
    """Inner width of a block's feed-forward part."""
    freq_dim: int = 256
    """Width of a timestep's sinusoid."""
    in_dim: int = 36
    """Latent channels plus condition channels; equal to `out_dim` where there is no condition."""
    out_dim: int = 16
    """Latent channels."""
    has_text: bool = True
    """Whether blocks attend to text."""
    text_dim: int = 4096
    """Width of the text encoder's output."""
    text_len: int = 512
    """Rows of text that are attended, zero-padded and never masked."""
    has_image: bool = True
    """Whether blocks attend to image features."""
    image_dim: int = 1280
    """Width of the image encoder's output."""
    has_audio: bool = True
    """Whether blocks attend to audio, frame by frame."""
    audio_window: int = 5
    """Audio frames around a video frame; odd."""
    audio_intermediate_dim: int = 512
    """Inner width of the audio projection."""
    audio_dim: int = 768
    """Width of an audio token."""
    audio_tokens: int = 32
    """Audio tokens of one latent frame."""
    vae_scale: int = 4
    """Video frames in a latent frame after the first."""
    audio_layers: int = 12
    """Layers of the audio encoder that are used."""
    audio_channels: int = 768
    """Width of one audio layer."""
    eps: float = 1e-6
    """Added to the variance in the norms inside the blocks."""
    time_per_frame: bool = False
    """Whether every latent frame has a timestep of its own (video extension) or all share one."""

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise CheckpointError(
                f"the DiT is {self.dim} wide and has {self.heads} heads; a head's share must be whole and even: "
                "check num_heads in config.json"
            )
        if self.in_dim < self.out_dim:
            raise CheckpointError(
                f"the DiT takes {self.in_dim} channels and gives {self.out_dim}; it must take at least those"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    @property
    def condition_dim(self) -> int:
        """Channels of mask and condition latents, 0 where there is no condition."""
        return self.in_dim - self.out_dim

    @property
    def audio_group(self) -> int:
        """Audio frames of a latent frame after the first."""
        return self.audio_window + self.vae_scale - 1

    @property
    def context_names(self) -> tuple[str, ...]:
        """Names of what the blocks attend to besides the tokens, in order."""
        has = {"text_context": self.has_text, "image_context": self.has_image, "audio_context": self.has_audio}
        return tuple(name for name, present in has.items() if present)

    @classmethod
    def from_json(cls, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Self:
        """Read the widths from the shapes of a state dict, and what they cannot tell from config.json.

        Args:
            config: The checkpoint's config.json, original (`num_heads`) or diffusers (`num_attention_heads`) words;
                `audio_channels` names the width of an audio layer where it is not 768.
            shapes: Shape of every tensor by its original key; rename with `dit_keys.from_diffusers_keys` before.

        Raises:
            CheckpointError: A key is missing, or config.json and shapes disagree.
        """
        found = _widths(config, _Shapes(shapes))
        for word, field in _WORDS.items():
            if word in config and field in found and config[word] is not None and config[word] != found[field]:
                raise CheckpointError(
                    f"config.json says {word} {config[word]}, the weights {found[field]}: they are of two checkpoints"
                )
        return cls(**found)


_WORDS = {
    "dim": "dim",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "in_dim": "in_dim",
    "in_channels": "in_dim",
    "out_dim": "out_dim",
    "out_channels": "out_dim",
    "num_layers": "layers",
    "text_dim": "text_dim",
    "image_dim": "image_dim",
    "intermediate_dim": "audio_intermediate_dim",
    "output_dim": "audio_dim",
    "context_tokens": "audio_tokens",
    "audio_layers": "audio_layers",
}
"""Words of config.json whose values the shapes repeat."""


class _Shapes:
    """Shapes by key; a missing key is the checkpoint's fault."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = shapes

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def __getitem__(self, key: str) -> Sequence[int]:
        if key not in self.shapes:
            raise CheckpointError(
                f"the DiT's weights have no {key!r}; expected a SkyReels-V3 DiT with its original keys"
            )
        return self.shapes[key]

    def layers(self) -> int:
        """Count the blocks and see that none is missing between."""
        numbers = {int(key.split(".")[1]) for key in self.shapes if key.startswith("blocks.")}
        if not numbers or numbers != set(range(len(numbers))):
            raise CheckpointError(
                f"the DiT's weights hold the blocks {sorted(numbers)}; expected 0, 1, ... without a gap"
            )
        return len(numbers)


def _published(field: str) -> Any:
    """Return the published value of a field."""
    return getattr(DitConfig, field)


def _widths(config: Mapping[str, Any], shapes: _Shapes) -> dict[str, Any]:
    dim, in_dim = shapes["patch_embedding.weight"][:2]
    heads = config.get("num_heads", config.get("num_attention_heads"))
    if not isinstance(heads, int) or heads < 1:
        raise CheckpointError(f"config.json says num_heads {heads!r}; expected the number of attention heads")
    has = {
        "has_text": "text_embedding.0.weight" in shapes,
        "has_image": "img_emb.proj.0.weight" in shapes,
        "has_audio": "audio_proj.proj1.weight" in shapes,
    }
    found: dict[str, Any] = {
        "dim": dim,
        "in_dim": in_dim,
        "heads": heads,
        "layers": shapes.layers(),
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "out_dim": shapes["head.head.weight"][0] // (PATCH[0] * PATCH[1] * PATCH[2]),
        "eps": float(config.get("eps", _published("eps"))),
        "text_len": int(config.get("text_len", _published("text_len"))),
        "time_per_frame": not has["has_audio"] and "num_attention_heads" not in config,
        **has,
    }
    if has["has_text"]:
        found["text_dim"] = shapes["text_embedding.0.weight"][1]
    if has["has_image"]:
        found["image_dim"] = shapes["img_emb.proj.0.weight"][0]
    return found | (_audio_widths(config, shapes) if has["has_audio"] else {})


def _audio_widths(config: Mapping[str, Any], shapes: _Shapes) -> dict[str, int]:
    window = int(config.get("audio_window", _published("audio_window")))
    vae_scale = int(config.get("vae_scale", _published("vae_scale")))
    channels = int(config.get("audio_channels", _published("audio_channels")))
    intermediate, first = shapes["audio_proj.proj1.weight"]
    group = shapes["audio_proj.proj1_vf.weight"][1]
    width = first // (window * channels) * channels
    if width * window != first or width * (window + vae_scale - 1) != group:
        raise CheckpointError(
            f"audio_proj takes {first} and {group} features, not {window} and {window + vae_scale - 1} frames of whole "
            f"layers {channels} wide: config.json must name audio_window, vae_scale and audio_channels"
        )
    audio_dim = shapes["blocks.0.audio_cross_attn.kv_linear.weight"][1]
    return {
        "audio_window": window,
        "vae_scale": vae_scale,
        "audio_channels": channels,
        "audio_layers": width // channels,
        "audio_intermediate_dim": intermediate,
        "audio_dim": audio_dim,
        "audio_tokens": shapes["audio_proj.proj3.weight"][0] // audio_dim,
    }
