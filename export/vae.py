# SPDX-License-Identifier: Apache-2.0
"""The causal video autoencoder of Wan 2.1: whole clips for training, first and next graphs with caches for streaming.

Numerics after SkyReels-V3 wan/modules/vae.py (facts only, own code); parameter names are those of Wan2.1_VAE.pth.
Frames are [B, 3, 1+4k, H, W] in [-1, 1], RGB; latents are [B, 16, 1+k, H/8, W/8], normalised.

Every causal convolution looks at its own frame and two earlier ones. Between calls those two earlier input frames are
its *cache* [B, C, 2, h, w]; zeros stand for "nothing yet". The strided temporal convolution of the encoder keeps one
frame. The first call takes exactly one frame (or latent) and passes by the temporal convolutions of the resamplers; a
later call takes any whole number of latents (or groups of four frames) and gives the same result as one at a time.

Order of the caches = order of execution = the reference's slots without the unused ones: cache i of the decoder is slot
i (0..31), of the encoder slot i (0..23). Where the reference stores ``None`` or ``Rep`` after the first call (slots 11
and 18 of the decoder), ours are zeros; where it stores a single frame, ours has a zero frame before it. A convolution
with ``spatial_only`` has no cache, and the later ones move up.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .graph_spec import Axes, GraphSpec, dynamic_axes, times

# Statistics of Wan 2.1's latents, by which every network of the family normalises them (vae.py of the reference).
WAN_LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN_LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
CACHE_FRAMES = 2  # kernel of 3 frames in time, minus the newest


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


class CacheTape:
    """The caches of one call: read and written in the order of execution.

    ``older`` is None in the first call, where there is nothing to read.
    """

    def __init__(self, older: Iterable[Tensor] | None = None) -> None:
        self._older: Iterator[Tensor] | None = None if older is None else iter(older)
        self.newer: list[Tensor] = []

    @property
    def starting(self) -> bool:
        """Whether this is the first call."""
        return self._older is None

    def write(self, cache: Tensor) -> None:
        """Append what the next call shall read at this place."""
        self.newer.append(cache)

    def join(self, x: Tensor, *, frames: int = CACHE_FRAMES) -> Tensor:
        """Put the cache of this place before ``x`` along time and keep the last ``frames`` for the next call."""
        assert self._older is not None
        older = next(self._older, None)
        if older is None:
            raise ValueError(f"{len(self.newer)} caches given; this network keeps more: pass all of the last call")
        joined = torch.cat([older, x], dim=2)
        self.write(joined[:, :, -frames:])
        return joined


class CausalConv3d(nn.Conv3d):
    """A convolution that sees its own frame and earlier ones only; [B, C, T, H, W] in and out."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: tuple[int, int, int] = (3, 3, 3), time_stride: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=(time_stride, 1, 1))
        self.space_padding = (kernel[1] // 2, kernel[2] // 2)
        self.spatial_only = False

    @property
    def can_be_spatial(self) -> bool:
        """Whether ``spatial_only`` may be set: three taps in time and no stride there."""
        return self.kernel_size[0] == CACHE_FRAMES + 1 and self.stride[0] == 1

    def newest_tap(self, x: Tensor) -> Tensor:
        """Convolve each frame by itself with the newest tap of time."""
        weight = self.weight if self.weight.ndim == 4 else self.weight[:, :, -1]
        frames = F.conv2d(fold_time(x), weight, self.bias, padding=self.space_padding)
        return unfold_time(frames, x.shape[0])

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Convolve; read and write one cache unless the kernel is one frame long or ``spatial_only``."""
        if self.kernel_size[0] == 1 or self.spatial_only:
            return self.newest_tap(x)
        if tape.starting:  # one frame and zeros before it: only the newest tap meets anything
            tape.write(F.pad(x, (0, 0, 0, 0, CACHE_FRAMES - x.shape[2], 0)))
            return self.newest_tap(x)
        joined = tape.join(x, frames=self.kernel_size[0] - self.stride[0])
        return F.conv3d(joined, self.weight, self.bias, self.stride, (0, *self.space_padding))


def fold_time(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold_time(frames: Tensor, batch: int) -> Tensor:
    """[B*T, C, H, W] -> [B, C, T, H, W]."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


class ChannelNorm(nn.Module):
    """Scale every position to length sqrt(C): x / max(|x|, 1e-12) * sqrt(C) * gamma, |x| over the channels."""

    def __init__(self, channels: int, *, video: bool = True) -> None:
        super().__init__()
        self.scale = math.sqrt(channels)
        self.gamma = nn.Parameter(torch.ones(channels, *([1] * (3 if video else 2))))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise along axis 1."""
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        return x / length * (self.scale * self.gamma)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; a 1x1x1 shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleList(  # places 0, 2, 3, 6 carry parameters in the published checkpoint
            [
                ChannelNorm(in_channels),
                nn.SiLU(),
                CausalConv3d(in_channels, out_channels),
                ChannelNorm(out_channels),
                nn.SiLU(),
                nn.Identity(),
                CausalConv3d(out_channels, out_channels),
            ]
        )
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else CausalConv3d(in_channels, out_channels, kernel=(1, 1, 1))
        )

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T, H, W]."""
        short = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(x, tape)
        return short + run_layers(self.residual, x, tape)


class FrameAttention(nn.Module):
    """Single-head self-attention among the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, video=False)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        """[B, C, T, H, W] -> same; touches no cache."""
        frames = fold_time(x)
        tokens = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1)  # [B*T, 1, H*W, 3C]
        query, key, value = tokens.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.squeeze(1).transpose(1, 2).unflatten(2, frames.shape[2:])
        return x + unfold_time(self.proj(mixed), x.shape[0])


class Downsample(nn.Module):
    """Halve height and width, and with ``temporal`` then also the frames (all but the very first)."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = CausalConv3d(channels, channels, kernel=(3, 1, 1), time_stride=2) if temporal else None

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T or T/2, H/2, W/2]."""
        x = unfold_time(self.resample(fold_time(x)), x.shape[0])
        if self.time_conv is None:
            return x
        if tape.starting:
            tape.write(x)
            return x
        return self.time_conv(x, tape)


class Upsample(nn.Module):
    """Double the frames with ``temporal`` (all but the very first), then height and width; halve the channels."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = CausalConv3d(channels, 2 * channels, kernel=(3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        """[B, C, T, H, W] -> [B, C/2, T or 2T, 2H, 2W]."""
        if self.time_conv is not None:
            x = self._double_frames(x, self.time_conv, tape)
        return unfold_time(self.resample(fold_time(x)), x.shape[0])

    @staticmethod
    def _double_frames(x: Tensor, time_conv: CausalConv3d, tape: CacheTape) -> Tensor:
        if tape.starting:  # the first latent is one frame, and later ones never see it here
            if not time_conv.spatial_only:
                tape.write(x.new_zeros((*x.shape[:2], CACHE_FRAMES, *x.shape[3:])))
            return x
        halves = time_conv(x, tape).unflatten(1, (2, x.shape[1]))  # [B, 2, C, T, H, W]
        return halves.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def run_layers(layers: Iterable[nn.Module], x: Tensor, tape: CacheTape) -> Tensor:
    """Run the layers in order; those that keep caches are given the tape."""
    for layer in layers:
        keeps = isinstance(layer, CausalConv3d | ResidualBlock | FrameAttention | Downsample | Upsample)
        x = layer(x, tape) if keeps else layer(x)
    return x


def middle_of(channels: int) -> nn.ModuleList:
    """Return the residual, attention, residual layers at the lowest resolution."""
    return nn.ModuleList(
        [ResidualBlock(channels, channels), FrameAttention(channels), ResidualBlock(channels, channels)]
    )


def head_of(channels: int, out_channels: int) -> nn.ModuleList:
    """Return the last norm, SiLU and convolution."""
    return nn.ModuleList([ChannelNorm(channels), nn.SiLU(), CausalConv3d(channels, out_channels)])


class Encoder(nn.Module):
    """Frames to moments (before the 1x1x1 convolution): [B, 3, T, H, W] -> [B, 2z, t, h, w]."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.dim * multiple for multiple in config.dim_mult]
        self.conv1 = CausalConv3d(3, config.dim)
        layers: list[nn.Module] = []
        channels = config.dim
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers.append(ResidualBlock(channels, width))
                channels = width
            if level < len(widths) - 1:
                layers.append(Downsample(channels, temporal=config.temperal_downsample[level]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = middle_of(channels)
        self.head = head_of(channels, 2 * config.z_dim)

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        """Encode one frame (first call) or groups of four (later calls)."""
        return run_layers([self.conv1, *self.downsamples, *self.middle, *self.head], x, tape)


class Decoder(nn.Module):
    """Latents (after the 1x1x1 convolution) to frames, not clamped: [B, z, t, h, w] -> [B, 3, T, H, W]."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.dim * multiple for multiple in reversed(config.dim_mult)]
        channels = widths[0]
        self.conv1 = CausalConv3d(config.z_dim, channels)
        self.middle = middle_of(channels)
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks + 1):
                layers.append(ResidualBlock(channels, width))
                channels = width
            if level < len(widths) - 1:
                layers.append(Upsample(channels, temporal=config.temperal_downsample[-1 - level]))
                channels //= 2
        self.upsamples = nn.ModuleList(layers)
        self.head = head_of(channels, 3)

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        """Decode one latent (first call) or several (later calls)."""
        return run_layers([self.conv1, *self.middle, *self.upsamples, *self.head], x, tape)


class LatentScale(nn.Module):
    """Normalise latents per channel, and back; constants, not in the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        for name, values in (("mean", config.latents_mean), ("std", config.latents_std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1, 1), persistent=False)

    def normalise(self, latents: Tensor) -> Tensor:
        """Raw mean of the posterior -> zero mean, unit variance over the training set of Wan 2.1."""
        return (latents - self.mean) * (1.0 / self.std)

    def restore(self, latents: Tensor) -> Tensor:
        """Undo ``normalise``."""
        return latents * self.std + self.mean


class VideoVae(nn.Module):
    """The autoencoder; whole clips here, streaming in ``encode_*``/``decode_*`` with explicit caches."""

    def __init__(self, config: VaeConfig | None = None) -> None:
        super().__init__()
        self.config = config or VaeConfig()
        z_dim = self.config.z_dim
        self.encoder = Encoder(self.config)
        self.conv1 = CausalConv3d(2 * z_dim, 2 * z_dim, kernel=(1, 1, 1))
        self.conv2 = CausalConv3d(z_dim, z_dim, kernel=(1, 1, 1))
        self.decoder = Decoder(self.config)
        self.scale = LatentScale(self.config)

    def encode_moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a clip to mean and log variance of the posterior, both [B, z, 1+k, h, w], not normalised.

        Raises:
            ValueError: the number of frames is not 1 + 4k, or a side is not a multiple of 8.
        """
        self._check_clip(frames)
        parts = [self._moments(frames[:, :, :1], tape := CacheTape())]
        if frames.shape[2] > 1:
            parts.append(self._moments(frames[:, :, 1:], CacheTape(tape.newer)))
        mean, log_variance = torch.cat(parts, dim=2).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, frames: Tensor) -> Tensor:
        """Encode a clip [B, 3, 1+4k, H, W] to normalised latents [B, z, 1+k, h, w] (the posterior's mean)."""
        return self.scale.normalise(self.encode_moments(frames)[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents [B, z, 1+k, h, w] to a clip [B, 3, 1+4k, H, W], not clamped."""
        parts = [self._frames(latents[:, :, :1], tape := CacheTape())]
        if latents.shape[2] > 1:
            parts.append(self._frames(latents[:, :, 1:], CacheTape(tape.newer)))
        return torch.cat(parts, dim=2)

    def encode_first(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode one frame; return its latent and the caches."""
        tape = CacheTape()
        return self.scale.normalise(self._moments(frames, tape)[:, : self.config.z_dim]), tape.newer

    def encode_next(self, frames: Tensor, caches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Encode 4k more frames; return k latents and the new caches."""
        tape = CacheTape(caches)
        return self.scale.normalise(self._moments(frames, tape)[:, : self.config.z_dim]), tape.newer

    def decode_first(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Decode one latent; return its frame, not clamped, and the caches."""
        tape = CacheTape()
        return self._frames(latents, tape), tape.newer

    def decode_next(self, latents: Tensor, caches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode k more latents; return 4k frames, not clamped, and the new caches."""
        tape = CacheTape(caches)
        return self._frames(latents, tape), tape.newer

    def _moments(self, frames: Tensor, tape: CacheTape) -> Tensor:
        return self.conv1(self.encoder(frames, tape), tape)

    def _frames(self, latents: Tensor, tape: CacheTape) -> Tensor:
        return self.decoder(self.conv2(self.scale.restore(latents), tape), tape)

    def _check_clip(self, frames: Tensor) -> None:
        group, side = self.config.temporal_factor, self.config.spatial_factor
        if (frames.shape[2] - 1) % group or frames.shape[3] % side or frames.shape[4] % side:
            raise ValueError(
                f"clip of shape {tuple(frames.shape)}: the number of frames must be 1 + {group}k"
                f" and both sides multiples of {side}; cut it"
            )


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


def make_spatial_only(modules: Iterable[nn.Module]) -> int:
    """Turn every causal convolution inside ``modules`` into a per-frame one, for training; return how many.

    The older taps are set to zero, so that the state dict keeps the published layout and the exporter finds them zero.
    Only the newest tap then has a gradient. Convolutions with a stride in time and 1x1x1 ones stay as they are.
    """
    changed = 0
    for conv in _causal_convolutions(modules):
        if conv.can_be_spatial:
            with torch.no_grad():
                conv.weight[:, :, :CACHE_FRAMES] = 0.0
            conv.spatial_only = True
            changed += 1
    return changed


def trim_zero_taps(model: nn.Module, *, drop: bool = False) -> int:
    """Set ``spatial_only`` on every convolution whose two older taps are exactly zero; return how many.

    With ``drop`` the weight is replaced by its newest tap [O, I, 3, 3], which saves two thirds of it in an exported
    file; such a state dict no longer has the published layout.
    """
    trimmed = 0
    for conv in _causal_convolutions([model]):
        if conv.can_be_spatial and conv.weight.ndim == 5 and not conv.weight[:, :, :CACHE_FRAMES].any():
            conv.spatial_only = True
            if drop:
                conv.weight = nn.Parameter(conv.weight[:, :, -1].detach().clone(), conv.weight.requires_grad)
            trimmed += 1
    return trimmed


def _causal_convolutions(modules: Iterable[nn.Module]) -> Iterator[CausalConv3d]:
    for module in modules:
        yield from (part for part in module.modules() if isinstance(part, CausalConv3d))


class EncoderGraph(nn.Module):
    """``frames`` [1, 3, 1 or 4k, H, W] and caches -> ``latents`` [1, z, 1 or k, h, w], caches."""

    def __init__(self, vae: VideoVae, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.z_dim = vae.config.z_dim
        self.encoder, self.conv1, self.scale = vae.encoder, vae.conv1, vae.scale

    def forward(self, frames: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Encode."""
        tape = CacheTape(None if self.first else caches)
        moments = self.conv1(self.encoder(frames, tape), tape)
        return self.scale.normalise(moments[:, : self.z_dim]), *tape.newer


class DecoderGraph(nn.Module):
    """``latents`` [1, z, 1 or k, h, w] and caches -> ``frames`` [1, 3, 1 or 4k, H, W] in [-1, 1], caches."""

    def __init__(self, vae: VideoVae, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.decoder, self.conv2, self.scale = vae.decoder, vae.conv2, vae.scale

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Decode."""
        tape = CacheTape(None if self.first else caches)
        frames = self.decoder(self.conv2(self.scale.restore(latents), tape), tape)
        return frames.clamp(-1.0, 1.0), *tape.newer


def graphs(model: VideoVae) -> list[GraphSpec]:
    """Return the four graphs; run ``trim_zero_taps`` before, where wanted."""
    model = model.eval()
    return [
        _graph(model, encode=True, first=True),
        _graph(model, encode=True, first=False),
        _graph(model, encode=False, first=True),
        _graph(model, encode=False, first=False),
    ]


def example_inputs(model: VideoVae, *, encode: bool, first: bool, shape_index: int) -> tuple[Tensor, ...]:
    """Return small seeded inputs of one graph; ``shape_index`` 0 and 1 differ in height, width and count."""
    height, width, count = ((2, 3, 2), (4, 5, 3))[shape_index]
    generator = torch.Generator().manual_seed(1009 + shape_index)
    group, side = (model.config.temporal_factor, model.config.spatial_factor) if encode else (1, 1)

    def draw(steps: int) -> Tensor:
        shape = (1, 3 if encode else model.config.z_dim, steps, side * height, side * width)
        return torch.rand(shape, generator=generator) * 2 - 1 if encode else torch.randn(shape, generator=generator)

    start = draw(1)
    if first:
        return (start,)
    with torch.no_grad():
        caches = (model.encode_first if encode else model.decode_first)(start)[1]
    return (draw(group * count), *caches)


def _graph(model: VideoVae, *, encode: bool, first: bool) -> GraphSpec:
    config = model.config
    examples = tuple(example_inputs(model, encode=encode, first=first, shape_index=index) for index in (0, 1))
    module = (EncoderGraph if encode else DecoderGraph)(model, first=first).eval()
    with torch.no_grad():
        caches = module(*examples[0])[1:]
    base = examples[0][0].shape[3] // (config.spatial_factor if encode else 1)  # height of the latents
    latents: Axes = (1, config.z_dim, 1 if first else "k", "h", "w")
    pixels = [times(config.spatial_factor, axis) for axis in ("h", "w")]
    frames: Axes = (1, 3, 1 if first else times(config.temporal_factor, "k"), *pixels)
    outgoing = [f"{'' if first else 'next_'}cache_{place:02d}" for place in range(len(caches))]
    incoming = [] if first else [f"cache_{place:02d}" for place in range(len(caches))]
    kept = [(*cache.shape[:3], *(times(cache.shape[3] // base, axis) for axis in ("h", "w"))) for cache in caches]
    shapes = {"frames": frames, "latents": latents, **dict(zip(outgoing, kept, strict=True))}
    shapes.update(zip(incoming, kept, strict=False))
    inputs = ("frames" if encode else "latents", *incoming)
    return GraphSpec(
        name=f"vae_{'encoder' if encode else 'decoder'}_{'first' if first else 'next'}",
        subnetwork="vae_encoder" if encode else "vae_decoder",
        module=module,
        input_names=inputs,
        output_names=("latents" if encode else "frames", *outgoing),
        examples=(examples[0], examples[1]),
        dynamic_shapes=tuple(dynamic_axes(shapes[name]) for name in inputs),
        shape_names=shapes,
    )
