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

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .graph_spec import Axes, GraphSpec, dynamic_axes, times
from .vae_config import VaeConfig
from .vae_layers import CACHE_FRAMES, CacheTape, CausalConv3d, Decoder, Encoder


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
