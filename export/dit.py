# SPDX-License-Identifier: Apache-2.0
"""The DiT of the SkyReels-V3 family, written once: talking avatar, video extension, shot switching, reference to video.

Text, image, audio and condition are parts that a `DitConfig` switches; which positions a token has lies in the rotary
tables that are given, and whether latent frames have timesteps of their own lies in how many modulations are given.
Facts from SkyworkAI/SkyReels-V3 28c771e, wan/modules/transformer_a2v.py and transformer.py; own code. State-dict keys
are the original ones; rows of the self attention's queries and keys are in half-split order
(`dit_keys.permute_rope_rows`).

Left out: the two-speaker branch (label rotary embedding on the audio attention). The published pipeline cannot reach
it, and what it computes depends on the data.
"""

from typing import cast

import torch
from torch import Tensor, nn

from .dit_block import DitBlock
from .dit_config import IMAGE_TOKENS, DitConfig
from .dit_parts import DitEpilogue, DitPrologue, DitTime
from .graph_spec import Axes, GraphSpec, dynamic_axes

__all__ = [
    "Dit",
    "DitBlock",
    "DitConfig",
    "DitEpilogue",
    "DitPrologue",
    "DitTime",
    "block_graph",
    "fused_graph",
    "graphs",
]

_SIZES = (
    {"frames": 3, "rows": 2, "columns": 3, "timesteps": 2},
    {"frames": 4, "rows": 3, "columns": 2, "timesteps": 3},
)
"""Of the two sets of examples; they differ everywhere, also in the number of tokens. Halved rows and columns."""


class Dit(nn.Module):
    """The whole network with the original state-dict keys; its parts share its weights."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        # A tuple is no submodule: the parts' children are registered under their original names below, once.
        self._parts = (DitPrologue(config), DitEpilogue(config), DitTime(config))
        for part in self._parts:
            for name, child in part.named_children():
                self.add_module(name, child)
        self.blocks = nn.ModuleList(DitBlock(config) for _ in range(config.layers))

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
        """Return the velocity [B, out_dim, T, h, w]; inputs as in `DitPrologue`, `DitBlock` and `DitEpilogue`.

        Raises:
            ValueError: Something that the network needs was not given.
        """
        given = {
            "latents": latents,
            "condition": condition,
            "text": text,
            "image": image,
            "audio_first": audio_first,
            "audio_rest": audio_rest,
        }
        tokens, *contexts = self.prologue(*(_needed(given[name], name) for name in self.prologue.input_names))
        for block in self.blocks:
            (tokens,) = block(tokens, *contexts, modulation, rope_cos, rope_sin)
        (velocity,) = self.epilogue(tokens, head_modulation, latents)
        return velocity


def _needed(given: Tensor | None, name: str) -> Tensor:
    if given is None:
        raise ValueError(f"this network needs {name}, and none was given")
    return given


def graphs(dit: Dit) -> list[GraphSpec]:
    """Return the parts that a package stores; every block is a graph of the same body, `dit_block_00` and so on."""
    dit = dit.eval()
    width = max(2, len(str(dit.config.layers - 1)))
    blocks = [block_graph(dit.block(index), name=f"dit_block_{index:0{width}d}") for index in range(dit.config.layers)]
    return [_prologue_graph(dit), *blocks, _epilogue_graph(dit), _time_graph(dit)]


def block_graph(block: DitBlock, *, name: str) -> GraphSpec:
    """Return the graph of one block; its parameters are named `block.` and then as in the block."""
    return _graph(_Block(block), name, block.input_names, ("tokens_out",), config=block.config)


def fused_graph(dit: Dit) -> GraphSpec:
    """Return the graph of the whole network, with which the stitched `dit.onnx` is compared."""
    names = (*dit.prologue.input_names, "modulation", "head_modulation", "rope_cos", "rope_sin")
    return _graph(_Fused(dit.eval()), "dit", names, ("velocity",), config=dit.config)


def _prologue_graph(dit: Dit) -> GraphSpec:
    part = dit.prologue
    return _graph(part, "dit_prologue", part.input_names, part.output_names, config=dit.config)


def _epilogue_graph(dit: Dit) -> GraphSpec:
    names = ("tokens", "head_modulation", "latents")
    return _graph(dit.epilogue, "dit_epilogue", names, ("velocity",), config=dit.config)


def _time_graph(dit: Dit) -> GraphSpec:
    shapes = _axes(dit.config) | {
        "head_modulation": ("timesteps", dit.config.dim),
        "modulation": ("timesteps", 6, dit.config.dim),
    }
    outputs = ("head_modulation", "modulation")
    return _graph(dit.time, "dit_time", ("sinusoid",), outputs, config=dit.config, axes=shapes)


class _Block(nn.Module):
    """A block whose parameter `modulation` is not called like the input: a graph has one space of names."""

    def __init__(self, block: DitBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor, *conditions: Tensor) -> tuple[Tensor]:
        """Return the new tokens."""
        return self.block(tokens, *conditions)


class _Fused(nn.Module):
    """A `Dit` that takes its inputs by position."""

    def __init__(self, dit: Dit) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Return the velocity."""
        names = (*self.dit.prologue.input_names, "modulation", "head_modulation", "rope_cos", "rope_sin")
        return (self.dit(**dict(zip(names, inputs, strict=True))),)


def _axes(config: DitConfig) -> dict[str, Axes]:
    """Return the shape of everything that goes into or comes out of a graph.

    `tokens` stands for frames * rows * columns, `later_frames` for frames - 1.
    """
    timesteps = "frames" if config.time_per_frame else 1
    grid = ("frames", "2*rows", "2*columns")
    layers = (config.audio_layers, config.audio_channels)
    return {
        "latents": (1, config.out_dim, *grid),
        "condition": (1, config.condition_dim, *grid),
        "text": (1, config.text_len, config.text_dim),
        "image": (1, IMAGE_TOKENS, config.image_dim),
        "audio_first": (1, config.audio_window, *layers),
        "audio_rest": ("later_frames", config.audio_group, *layers),
        "modulation": (timesteps, 6, config.dim),
        "head_modulation": (timesteps, config.dim),
        "rope_cos": ("tokens", config.head_dim // 2),
        "rope_sin": ("tokens", config.head_dim // 2),
        "sinusoid": ("timesteps", config.freq_dim),
        "tokens": (1, "tokens", config.dim),
        "text_context": (1, config.text_len, config.dim),
        "image_context": (1, IMAGE_TOKENS, config.dim),
        "audio_context": ("frames", config.audio_tokens, config.audio_dim),
        "tokens_out": (1, "tokens", config.dim),
        "velocity": (1, config.out_dim, *grid),
    }


def _graph(
    module: nn.Module,
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    *,
    config: DitConfig,
    axes: dict[str, Axes] | None = None,
) -> GraphSpec:
    axes = _axes(config) if axes is None else axes
    first, second = (tuple(_draw(axes[name], sizes) for name in inputs) for sizes in _SIZES)
    return GraphSpec(
        name=name,
        subnetwork="dit",
        module=module.eval(),
        input_names=inputs,
        output_names=outputs,
        examples=(first, second),
        dynamic_shapes=tuple(dynamic_axes(axes[name]) for name in inputs),
        shape_names={name: axes[name] for name in (*inputs, *outputs)},
    )


def _draw(axes: Axes, sizes: dict[str, int]) -> Tensor:
    known = sizes | {
        "later_frames": sizes["frames"] - 1,
        "2*rows": 2 * sizes["rows"],
        "2*columns": 2 * sizes["columns"],
        "tokens": sizes["frames"] * sizes["rows"] * sizes["columns"],
    }
    shape = [known[axis] if isinstance(axis, str) else axis for axis in axes]
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
