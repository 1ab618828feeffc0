# SPDX-License-Identifier: Apache-2.0
"""What a package will need, estimated from its manifest and the headers of its graphs: memory, and work for a window.

An estimate decides whether trying is safe; what was measured by trying replaces it.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from .manifest import DitSettings, GraphEntry
from .model_package import ModelPackage
from .vae_stream import FRAMES_PER_LATENT

RENDER_GRAPHS = (
    *("audio_encoder", "image_encoder", "vae_encoder_first", "vae_encoder_next"),
    *("dit", "vae_decoder_first", "vae_decoder_next", "finish"),
)
"""Graphs that a render opens, as far as a package has them."""

PROCESS_BYTES = 120 << 20
"""Python, numpy and one engine's library before a graph is open: 75 to 110 MiB were measured."""
FLOAT_BYTES = 4
LATENTS_PER_CALL = {"vae_encoder": 8, "vae_decoder": 2}
"""As `vae_stream` feeds them."""
VAE_STRIDE = 8
"""Pixels per latent, each way."""
BUFFERS = 3
"""Activations of one size that live at once in a convolution network: input, padded input, output. With it, the
embedded package is estimated at 431 MB on ONNX Runtime; 315 to 444 MB were measured."""
DIT_WIDTHS = 16
"""Activations per token in units of the network's width: three for attention, four or five and as many for the
feed-forward part, the residual, the contexts."""
WIDENED = {"float16": 2, "bfloat16": 2}
"""Stored element type to how many times larger it is once an engine has made float32 of it."""


@dataclass(frozen=True)
class Footprint:
    """What running a package takes."""

    weights_bytes: int
    """Weights of the graphs that a render opens, as float32 where they are stored in 16 bits."""
    activations_bytes: int
    """Activations and caches at the largest of the default sizes."""
    window_flop: float
    """Multiplications and additions of the transformer in one window; the VAE's come on top."""

    @property
    def memory_bytes(self) -> int:
        """All of it in one process on the CPU."""
        return PROCESS_BYTES + self.weights_bytes + self.activations_bytes


def estimate(package: ModelPackage, *, graphs: Collection[str], library: str = "onnxruntime") -> Footprint:
    """Estimate what running some graphs of a package at its default size takes.

    Args:
        package: opened.
        graphs: those that will be open.
        library: whose files they are.
    """
    here = [name for name in graphs if name in package.manifest.graphs]
    sizes = package.manifest.sizes[package.manifest.default_size].values()
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    latent = height // VAE_STRIDE, width // VAE_STRIDE
    tokens = _latent_frames(package.manifest.settings.window) * (latent[0] // 2) * (latent[1] // 2)
    dit = package.manifest.dit if "dit" in here else None
    activations = [_vae_bytes(package.graph(name), latent=latent) for name in here]
    if dit:
        activations.append(dit_activations_bytes(dit, tokens=tokens, library=library))
    steps = package.manifest.settings.steps
    return Footprint(
        weights_bytes=_weights_bytes(package, here, library=library),
        activations_bytes=sum(activations),  # each open graph keeps the memory that it once needed
        window_flop=steps * _dit_flop(dit, package.graph("dit").parameters, tokens=tokens) if dit else 0.0,
    )


def _latent_frames(frames: int) -> int:
    return 1 + (frames - 1) // FRAMES_PER_LATENT


def _weights_bytes(package: ModelPackage, graphs: Collection[str], *, library: str) -> int:
    """Return the bytes of all constants, shared ones once."""
    found: dict[tuple[str, int], int] = {}
    for name in graphs:
        file = package.graph(name).file_for(library)
        for tensor in package.summary(name, library).tensors:
            place = (tensor.location or file, tensor.offset)
            found[place] = tensor.size_bytes * WIDENED.get(tensor.dtype, 1)
    return sum(found.values())


def _vae_bytes(entry: GraphEntry, *, latent: tuple[int, int]) -> int:
    """Return caches, in and out, and one call's feature maps: as wide as the finest cache, at full resolution."""
    if entry.subnetwork not in LATENTS_PER_CALL:
        return 0
    caches, finest = 0, (0, 0)
    for spec in entry.inputs + entry.outputs:
        if "cache" not in spec.name or len(spec.shape) != 5:
            continue
        channels, frames = (size if isinstance(size, int) else 1 for size in spec.shape[1:3])
        area = _side(spec.shape[3], latent[0]) * _side(spec.shape[4], latent[1])
        caches += FLOAT_BYTES * channels * frames * area
        finest = max(finest, (area, channels))
    frames = FRAMES_PER_LATENT * (1 if entry.name.endswith("first") else LATENTS_PER_CALL[entry.subnetwork])
    pixels = latent[0] * latent[1] * VAE_STRIDE**2
    return caches + BUFFERS * FLOAT_BYTES * finest[1] * pixels * frames


def _side(axis: int | str, latent: int) -> int:
    """Return the size of an axis that is given as a multiple of the latent's: `h`, `8*h`."""
    if isinstance(axis, int):
        return axis
    times = re.match(r"(\d+)\*", axis)
    return latent * (int(times.group(1)) if times else 1)


def dit_activations_bytes(dit: DitSettings, *, tokens: int, library: str) -> int:
    """Return what one run of the transformer holds beside its weights, in one piece or in parts."""
    # ONNX Runtime's Attention on CPUs writes the scores of all heads down; OpenVINO's does not.
    scores = dit.heads * tokens**2 if library == "onnxruntime" else 0
    return FLOAT_BYTES * (scores + tokens * dit.dim * DIT_WIDTHS)


def _dit_flop(dit: DitSettings, parameters: int, *, tokens: int) -> float:
    return 2.0 * parameters * tokens + 4.0 * dit.blocks * tokens**2 * dit.dim
