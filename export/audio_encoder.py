# SPDX-License-Identifier: Apache-2.0
"""The speech encoder: wav2vec2 whose features are taken to the video's frame rate before the transformer.

Numerics after transformers' Wav2Vec2Model and SkyReels-V3 wan/modules/wav2vec2.py (facts only, own code); parameter
names are those of transformers without the ``wav2vec2.`` prefix, with the positional convolution's weight norm folded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .graph_spec import GraphSpec, dynamic_axes

# Parameters of pre-training and of masking, which the published files hold and encoding does not use.
UNUSED_KEYS = ("project_hid.", "project_q.", "quantizer.", "lm_head.", "masked_spec_embed")
_POSITIONAL = "encoder.pos_conv_embed.conv."
_WEIGHT_NORM_NAMES = (
    ("weight_g", "weight_v"),  # torch.nn.utils.weight_norm
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),  # its successor
)


@dataclass(frozen=True)
class AudioEncoderConfig:
    """The part of a wav2vec2 config.json that encoding depends on; same names."""

    conv_dim: tuple[int, ...] = (512,) * 7
    """Channels after each convolution."""
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """In samples of the convolution's input."""
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """In samples of the convolution's input."""
    conv_bias: bool = False
    """Whether the convolutions have a bias."""
    feat_extract_norm: str = "group"
    """``group``: every channel over all time, after the first convolution; ``layer``: the channels, after each."""
    hidden_size: int = 768
    """Channels of the transformer."""
    intermediate_size: int = 3072
    """Width of the feed-forward layers."""
    num_hidden_layers: int = 12
    """Transformer layers, each of which is an output."""
    num_attention_heads: int = 12
    """Heads of each layer."""
    num_conv_pos_embeddings: int = 128
    """Kernel of the positional convolution, in frames."""
    num_conv_pos_embedding_groups: int = 16
    """Groups of the positional convolution."""
    do_stable_layer_norm: bool = False
    """Normalise before each half of a layer instead of after it; the last output is then normalised once more."""
    layer_norm_eps: float = 1e-5
    """Added to the variance."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "AudioEncoderConfig":
        """Read a wav2vec2 config.json; keys that encoding does not depend on are passed over.

        Raises:
            ValueError: it describes a network that this one is not.
        """
        expected = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "add_adapter": False}
        for key, value in expected.items():
            if values.get(key, value) != value:
                raise ValueError(f"speech encoder: {key} is {values[key]!r}; this build has {value!r} only")
        norm = values.get("feat_extract_norm", "group")
        if norm not in ("group", "layer"):
            raise ValueError(f"speech encoder: feat_extract_norm is {norm!r}; it must be group or layer")
        known = {field.name for field in fields(cls)}
        arguments: dict[str, Any] = {key: values[key] for key in values if key in known}
        listed: dict[str, Any] = {key: tuple(arguments[key]) for key in arguments if isinstance(arguments[key], list)}
        return cls(**(arguments | listed))

    def conv_frames(self, samples: int) -> int:
        """Return how many frames the convolutions make of so many samples at 16 kHz (50 a second, about)."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples


def frame_positions(conv_frames: int, *, frames: int) -> Tensor:
    """Return where on the convolutions' time axis each video frame lies, float32 [frames].

    First on first, last on last, the step rounded to float32, as torch's linear interpolation with align_corners does.
    """
    step = torch.tensor(float(conv_frames - 1)) / max(frames - 1, 1)
    return torch.arange(frames, dtype=torch.float32) * (step if frames > 1 else 0.0)


def interpolate(features: Tensor, positions: Tensor) -> Tensor:
    """Take [B, n, C] at fractional ``positions`` [frames] between 0 and n-1, linearly: [B, frames, C]."""
    last = features.shape[1] - 1
    lower = positions.floor()
    share = (positions - lower).unsqueeze(-1)
    before = lower.to(torch.int64).clamp(max=last)
    after = (before + 1).clamp(max=last)
    return (1.0 - share) * features.index_select(1, before) + share * features.index_select(1, after)


class ConvLayer(nn.Module):
    """One strided convolution, its norm (if any) and GELU: [B, C, n] -> [B, C', n']."""

    def __init__(self, config: AudioEncoderConfig, index: int) -> None:
        super().__init__()
        channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            config.conv_dim[index - 1] if index else 1,
            channels,
            config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.layer_norm: nn.Module | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, GELU."""
        x = self.conv(x)
        norm = self.layer_norm
        if norm is None:
            return F.gelu(x)
        if isinstance(norm, nn.LayerNorm):
            return F.gelu(norm(x.transpose(1, 2)).transpose(1, 2))
        return F.gelu(norm(x))


class FeatureExtractor(nn.Module):
    """Samples [B, samples] -> [B, n, C], about 50 frames a second."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(ConvLayer(config, index) for index in range(len(config.conv_dim)))

    def forward(self, waveform: Tensor) -> Tensor:
        """Run the convolutions."""
        x = waveform.unsqueeze(1)
        for layer in self.conv_layers:
            x = layer(x)
        return x.transpose(1, 2)


class FeatureProjection(nn.Module):
    """Norm and linear layer into the transformer's width."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n, hidden]."""
        return self.projection(self.layer_norm(x))


class PositionalConv(nn.Module):
    """A long grouped convolution over time and GELU, same length; stands in for positions."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        kernel = config.num_conv_pos_embeddings
        self.surplus = 1 - kernel % 2  # an even kernel padded on both sides makes one frame too many
        self.conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel,
            padding=kernel // 2,
            groups=config.num_conv_pos_embedding_groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, hidden] -> same."""
        x = self.conv(x.transpose(1, 2))
        return F.gelu(x[:, :, :-1] if self.surplus else x).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention over all frames."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size) for _ in range(3))
        self.out_proj = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, hidden] -> same."""
        query, key, value = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> same."""
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with a residual and a norm after (or, ``stable``, before) it."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.stable = config.do_stable_layer_norm
        self.attention = Attention(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, hidden] -> same."""
        if self.stable:
            x = x + self.attention(self.layer_norm(x))
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.layer_norm(x + self.attention(x))
        return self.final_layer_norm(x + self.feed_forward(x))


class TransformerEncoder(nn.Module):
    """Positional convolution and layers; returns the output of every layer."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.stable = config.do_stable_layer_norm
        self.pos_conv_embed = PositionalConv(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def embed(self, x: Tensor) -> Tensor:
        """Return what the first layer sees."""
        x = x + self.pos_conv_embed(x)
        return x if self.stable else self.layer_norm(x)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, hidden] -> [B, n, layers, hidden]."""
        outputs: list[Tensor] = []
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        if self.stable:
            outputs[-1] = self.layer_norm(x)
        return torch.stack(outputs, dim=2)


class AudioEncoder(nn.Module):
    """Speech to one stack of features per video frame, for training and as the exported network."""

    def __init__(self, config: AudioEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AudioEncoderConfig()
        self.feature_extractor = FeatureExtractor(self.config)
        self.feature_projection = FeatureProjection(self.config)
        self.encoder = TransformerEncoder(self.config)

    def forward(self, waveform: Tensor, positions: Tensor) -> Tensor:
        """Encode [B, samples] (16 kHz, zero mean and unit variance) to [B, frames, layers, channels].

        ``positions`` [frames], float32, see ``frame_positions``; the whole batch shares it.
        """
        features = interpolate(self.feature_extractor(waveform), positions)
        return self.encoder(self.feature_projection(features))


class AudioEncoderGraph(nn.Module):
    """``waveform`` [1, samples], ``positions`` [frames] -> ``features`` [frames, layers, channels]."""

    def __init__(self, model: AudioEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveform: Tensor, positions: Tensor) -> tuple[Tensor]:
        """Encode one utterance."""
        return (self.model(waveform, positions).squeeze(0),)


def from_published_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip the ``wav2vec2.`` prefix, drop what encoding does not use, fold the weight norm; older and newer names.

    The folded weight is g * v / |v| with the length over all axes but the kernel's (weight norm with dim 2).
    """
    named = {key.removeprefix("wav2vec2."): tensor for key, tensor in state.items()}
    kept = {key: tensor for key, tensor in named.items() if not key.startswith(UNUSED_KEYS)}
    for length_name, direction_name in _WEIGHT_NORM_NAMES:
        if _POSITIONAL + length_name in kept:
            length = kept.pop(_POSITIONAL + length_name)
            direction = kept.pop(_POSITIONAL + direction_name)
            unit = direction / torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True)
            kept[_POSITIONAL + "weight"] = unit * length
    return kept


def to_published_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo ``from_published_keys``, in the older naming, so that others can load what was trained here."""
    named = dict(state)
    weight = named.pop(_POSITIONAL + "weight")
    named[_POSITIONAL + "weight_g"] = torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True)
    named[_POSITIONAL + "weight_v"] = weight
    return {f"wav2vec2.{key}": tensor for key, tensor in named.items()}


def example_inputs(config: AudioEncoderConfig, *, shape_index: int) -> tuple[Tensor, Tensor]:
    """Return seeded inputs of 0.5 s or 0.8 s."""
    samples, frames = ((8_000, 13), (12_800, 20))[shape_index]
    waveform = torch.randn((1, samples), generator=torch.Generator().manual_seed(1009 + shape_index))
    return waveform, frame_positions(config.conv_frames(samples), frames=frames)


def graphs(model: AudioEncoder) -> list[GraphSpec]:
    """Return the one graph."""
    config = model.config
    shapes = {
        "waveform": (1, "samples"),
        "positions": ("frames",),
        "features": ("frames", config.num_hidden_layers, config.hidden_size),
    }
    return [
        GraphSpec(
            name="audio_encoder",
            subnetwork="audio_encoder",
            module=AudioEncoderGraph(model).eval(),
            input_names=("waveform", "positions"),
            output_names=("features",),
            examples=(example_inputs(config, shape_index=0), example_inputs(config, shape_index=1)),
            dynamic_shapes=(dynamic_axes(shapes["waveform"]), dynamic_axes(shapes["positions"])),
            shape_names=shapes,
        )
    ]
