# SPDX-License-Identifier: Apache-2.0
"""The layers of the video autoencoder and its two halves; every causal layer reads and writes its caches on a tape.

Numerics after SkyReels-V3 wan/modules/vae.py (facts only, own code). `vae` tells what a cache is and in which order
they come.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .vae_config import VaeConfig

CACHE_FRAMES = 2  # kernel of 3 frames in time, minus the newest


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

    @property
    def is_framewise(self) -> bool:
        """Whether each frame is convolved by itself, without a cache."""
        return self.kernel_size[0] == 1 or self.spatial_only

    def newest_tap(self, x: Tensor) -> Tensor:
        """Convolve each frame by itself with the newest tap of time."""
        weight = self.weight if self.weight.ndim == 4 else self.weight[:, :, -1]
        return by_frames(lambda frames: F.conv2d(frames, weight, self.bias, padding=self.space_padding), x)

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Convolve; read and write one cache unless ``is_framewise``."""
        if self.is_framewise:
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


def by_frames(change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply what takes frames [N, C, H, W] to a clip [B, C, T, H, W], or to frames as they are."""
    return change(x) if x.ndim == 4 else unfold_time(change(fold_time(x)), x.shape[0])


class ChannelNorm(nn.Module):
    """Scale every position to length sqrt(C): x / max(|x|, 1e-12) * sqrt(C) * gamma, |x| over the channels."""

    def __init__(self, channels: int, *, video: bool = True) -> None:
        super().__init__()
        self.scale = math.sqrt(channels)
        self.gamma = nn.Parameter(torch.ones(channels, *([1] * (3 if video else 2))))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise along axis 1."""
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        gamma = self.gamma.reshape(-1, *[1] * (x.ndim - 2))
        return x / length * (self.scale * gamma)


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
        """[B, C, T, H, W] -> [B, C', T, H, W]; or frames, see ``is_framewise``."""
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
        """[B, C, T, H, W] or frames [N, C, H, W] -> same; touches no cache."""
        return by_frames(self._attend, x)

    def _attend(self, frames: Tensor) -> Tensor:
        tokens = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1)  # [B*T, 1, H*W, 3C]
        query, key, value = tokens.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.squeeze(1).transpose(1, 2).unflatten(2, frames.shape[2:])
        return frames + self.proj(mixed)


class Downsample(nn.Module):
    """Halve height and width, and with ``temporal`` then also the frames (all but the very first)."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = CausalConv3d(channels, channels, kernel=(3, 1, 1), time_stride=2) if temporal else None

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T or T/2, H/2, W/2]; or frames, see ``is_framewise``."""
        x = by_frames(self.resample, x)
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
        """[B, C, T, H, W] -> [B, C/2, T or 2T, 2H, 2W]; or frames, see ``is_framewise``."""
        if self.time_conv is not None:
            x = self._double_frames(x, self.time_conv, tape)
        return by_frames(self.resample, x)

    @staticmethod
    def _double_frames(x: Tensor, time_conv: CausalConv3d, tape: CacheTape) -> Tensor:
        if tape.starting:  # the first latent is one frame, and later ones never see it here
            if not time_conv.spatial_only:
                tape.write(x.new_zeros((*x.shape[:2], CACHE_FRAMES, *x.shape[3:])))
            return x
        halves = time_conv(x, tape).unflatten(1, (2, x.shape[1]))  # [B, 2, C, T, H, W]
        return halves.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def is_framewise(layer: nn.Module) -> bool:
    """Whether a layer treats every frame by itself: it then takes frames [N, C, H, W] as well as clips."""
    if isinstance(layer, Downsample | Upsample) and layer.time_conv is not None:
        return False
    return all(part.is_framewise for part in layer.modules() if isinstance(part, CausalConv3d))


def run_layers(layers: Iterable[nn.Module], x: Tensor, tape: CacheTape) -> Tensor:
    """Run the layers in order; those that keep caches are given the tape.

    Neighbours that are framewise get the clip as frames, folded once for all of them: engines then keep one memory
    layout from the first to the last.
    """
    for framewise, run in itertools.groupby(layers, key=is_framewise):
        neighbours = list(run)
        if framewise and any(isinstance(layer, SPATIAL) for layer in neighbours):
            x = by_frames(lambda frames, these=neighbours: _run(these, frames, tape), x)
        else:
            x = _run(neighbours, x, tape)
    return x


def _run(layers: Iterable[nn.Module], x: Tensor, tape: CacheTape) -> Tensor:
    for layer in layers:
        x = layer(x, tape) if isinstance(layer, SPATIAL) else layer(x)
    return x


SPATIAL = (CausalConv3d, ResidualBlock, FrameAttention, Downsample, Upsample)
"""What looks at neighbouring positions, and is given the tape."""


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
