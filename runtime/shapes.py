# SPDX-License-Identifier: Apache-2.0
"""Which input shapes a stream's graphs will see: the manifest's symbolic axes, with the stream's own numbers in them.

Arithmetic only. A graph is known by what its inputs are called, not by what it calls its axes: from the shapes of the
inputs that the stream makes itself ("latents", "frames") follow those of the others, the caches.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .manifest import GraphEntry, Manifest
from .vae_stream import DECODED_AT_ONCE, ENCODED_AT_ONCE, FRAMES_PER_LATENT, later_calls

LATENT_CHANNELS = 16
VAE_STRIDE = 8
"""Pixels per latent, in height and width."""
PATCH = 2
"""Latents per token, in height and width."""

ANY_SHAPES: Mapping[str, tuple[int, ...]] = {}
"""Stands for "whatever comes"."""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class StreamSize:
    """The numbers that a stream's shapes depend on."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    window: int
    """Frames denoised together, 4n+1."""
    decoded: tuple[int, ...]
    """Latents decoded of each pass."""

    @property
    def latent(self) -> Shape:
        """Frames, rows, columns of a window's latents."""
        frames = 1 + (self.window - 1) // FRAMES_PER_LATENT
        return frames, self.height // VAE_STRIDE, self.width // VAE_STRIDE


def input_shapes(entry: GraphEntry, known: Shapes) -> Shapes:
    """Return the shape of every input of a graph, given those of some.

    Args:
        entry: the graph.
        known: input to its shape; what is not an input of this graph is ignored.

    Raises:
        ValueError: a known shape contradicts the graph, or an axis stays unknown.

    >>> from .manifest import GraphEntry, TensorSpec
    >>> specs = (TensorSpec("frames", "float32", (1, "4*k", "8*h")), TensorSpec("cache", "float32", (2, "2*h")))
    >>> entry = GraphEntry("vae", "vae.onnx", "vae_encoder", 0, specs, (), None, {})
    >>> input_shapes(entry, {"frames": (1, 8, 128)})
    {'frames': (1, 8, 128), 'cache': (2, 32)}
    """
    axes: dict[str, int] = {}
    for spec in entry.inputs:
        if spec.name in known:
            _learn(axes, spec.shape, known[spec.name], where=f"{spec.name} of {entry.name}")
    return {spec.name: _filled(spec.shape, axes, where=f"{spec.name} of {entry.name}") for spec in entry.inputs}


def _learn(axes: dict[str, int], symbolic: Sequence[int | str], shape: Shape, *, where: str) -> None:
    """Take the values of axes from a shape."""
    if len(symbolic) != len(shape):
        raise ValueError(f"{where} has {len(symbolic)} axes; the stream makes {len(shape)}")
    for axis, size in zip(symbolic, shape, strict=True):
        if isinstance(axis, int):
            fits = axis == size
        else:
            factor, name = _read(axis)
            fits = size % factor == 0 and axes.setdefault(name, size // factor) == size // factor
        if not fits:
            raise ValueError(f"{where} is {_text(symbolic)}; the stream makes {_text(shape)}")


def _filled(symbolic: Sequence[int | str], axes: Mapping[str, int], *, where: str) -> Shape:
    unknown = [axis for axis in symbolic if isinstance(axis, str) and _read(axis)[1] not in axes]
    if unknown:
        raise ValueError(f"{where} is {_text(symbolic)}; nothing says how long {_read(unknown[0])[1]} is")
    return tuple(axis if isinstance(axis, int) else _value(axis, axes) for axis in symbolic)


def _value(axis: str, axes: Mapping[str, int]) -> int:
    factor, name = _read(axis)
    return factor * axes[name]


def _read(axis: str) -> tuple[int, str]:
    """Split "8*h" into 8 and "h"."""
    factor, _, name = axis.partition("*")
    return (int(factor), name) if factor.isdecimal() and name else (1, axis)


def _text(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape))


# ── A stream ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def stream_shapes(manifest: Manifest, size: StreamSize) -> dict[str, list[Shapes]]:
    """Return graph name to the input shapes that it will see in a stream, of every graph that a stream always runs.

    The audio encoder hears sounds of any length: its only entry is `ANY_SHAPES`.

    Raises:
        ValueError: a graph does not take what a stream of this size makes.
    """
    known: dict[str, list[Shapes]] = {"audio_encoder": [], "image_encoder": [{}]}
    known |= _encoder_inputs(size) | _decoder_inputs(size)
    known |= {"finish": _finish_inputs(size), "dit": [_dit(manifest, size)]}
    graphs = manifest.graphs
    found = {name: _solved(graphs[name], inputs) for name, inputs in known.items() if name in graphs}
    return {name: shapes or [ANY_SHAPES] for name, shapes in found.items()}


def encoder_shapes(manifest: Manifest, size: StreamSize) -> dict[str, list[Shapes]]:
    """Return the same for what preparing an avatar runs: the VAE's encoder, the image encoder."""
    known = _encoder_inputs(size) | {"image_encoder": [{}]}
    graphs = manifest.graphs
    return {name: _solved(graphs[name], inputs) for name, inputs in known.items() if name in graphs}


def _encoder_inputs(size: StreamSize) -> dict[str, list[Shapes]]:
    """Return the frames that the encoder's graphs are given, over one window."""
    later = later_calls(size.latent[0], at_once=ENCODED_AT_ONCE)
    frames = sorted({FRAMES_PER_LATENT * count for count in later})
    return {
        "vae_encoder_first": [{"frames": (1, 3, 1, size.height, size.width)}],
        "vae_encoder_next": [{"frames": (1, 3, count, size.height, size.width)} for count in frames],
    }


def _decoder_inputs(size: StreamSize) -> dict[str, list[Shapes]]:
    _frames, rows, columns = size.latent
    return {
        "vae_decoder_first": [{"latents": (1, LATENT_CHANNELS, 1, rows, columns)}],
        "vae_decoder_next": [{"latents": (1, LATENT_CHANNELS, count, rows, columns)} for count in _decoded(size)],
    }


def _finish_inputs(size: StreamSize) -> list[Shapes]:
    counts = [1, *(FRAMES_PER_LATENT * count for count in _decoded(size))]
    return [{"frames": (1, 3, count, size.height, size.width)} for count in counts]


def _decoded(size: StreamSize) -> list[int]:
    """Return how many latents the decoder's later calls take, each number once."""
    return sorted({count for latents in size.decoded for count in later_calls(latents, at_once=DECODED_AT_ONCE)})


def _dit(manifest: Manifest, size: StreamSize) -> Shapes:
    frames, rows, columns = size.latent
    known: dict[str, Shape] = {"latents": (1, LATENT_CHANNELS, frames, rows, columns)}
    if manifest.dit is None:
        return known
    tokens = frames * (rows // PATCH) * (columns // PATCH)
    known |= dict.fromkeys(("rope_cos", "rope_sin"), (tokens, manifest.dit.head_dim // 2))
    known["text"] = (1, manifest.dit.text_length, manifest.dit.text_width)
    if manifest.audio is not None:
        known["audio_rest"] = (frames - 1, 8, manifest.audio.layers, manifest.audio.channels)
    return known


def _solved(entry: GraphEntry, inputs: Iterable[Shapes]) -> list[Shapes]:
    return [input_shapes(entry, known) for known in inputs]
