# SPDX-License-Identifier: Apache-2.0
"""One protocol by which every network file offers its graphs for export.

A network file has ``graphs(model) -> list[GraphSpec]``. Whoever exports needs nothing else: module, names, two sets of
example inputs of different shapes (the first to trace, both to compare), and which axes are dynamic.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.export import Dim

Axes = tuple[int | str, ...]
"""Shape of one tensor as the manifest says it: sizes, names of dynamic axes, or products such as ``8*h``."""


def times(factor: int, axis: str) -> str:
    """Name ``factor`` times the dynamic axis ``axis``: ``8*h``, or plainly ``h`` for 1."""
    return axis if factor == 1 else f"{factor}*{axis}"


def dynamic_axes(axes: Axes) -> dict[int, Any]:
    """Return what ``torch.export`` needs to know of ``axes``: axis index -> ``Dim``, for the named ones.

    Axes of the same name are the same ``Dim`` to torch, which compares them by name.
    """
    return {index: _dim(axis) for index, axis in enumerate(axes) if isinstance(axis, str)}


def _dim(axis: str) -> Any:
    factor, _, name = axis.rpartition("*")
    return int(factor) * Dim(name) if factor else Dim(name)


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export.

    Raises:
        ValueError: names, examples and dynamic shapes do not go together.
    """

    name: str
    """Name of the graph in the manifest, such as ``vae_decoder_next``."""
    subnetwork: str
    """The part whose weights it uses, such as ``vae_decoder``; graphs of one part share parameter tensors."""
    module: nn.Module
    """``forward(*inputs)`` returns a tuple with one tensor per output name."""
    input_names: tuple[str, ...]
    """In the order of ``forward``."""
    output_names: tuple[str, ...]
    """In the order of the returned tuple."""
    examples: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    """Two seeded, small sets of inputs that differ in every dynamic axis; no dynamic axis is 0 or 1 long."""
    dynamic_shapes: tuple[dict[int, Any], ...]
    """Per input: axis -> ``torch.export.Dim`` (or an expression of one); static axes are left out."""
    shape_names: Mapping[str, Axes]
    """Per input and output name: its shape for the manifest."""

    def __post_init__(self) -> None:
        names = self.input_names + self.output_names
        if len(set(names)) != len(names):
            raise ValueError(f"graph {self.name}: a name is used twice among {names}; names must be distinct")
        if set(names) != set(self.shape_names):
            odd = sorted(set(names) ^ set(self.shape_names))
            raise ValueError(f"graph {self.name}: shape_names and the names of inputs and outputs differ in {odd}")
        counts = {len(self.input_names), len(self.dynamic_shapes), *(len(example) for example in self.examples)}
        if len(counts) != 1:
            raise ValueError(f"graph {self.name}: {len(self.input_names)} input names, but other counts: {counts}")

    def nested_dynamic_shapes(self) -> tuple[Any, ...]:
        """Return ``dynamic_shapes`` nested as ``torch.export`` wants it: inputs taken by ``*caches`` are one tuple."""
        parameters = list(inspect.signature(self.module.forward).parameters.values())
        if parameters and parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:
            named = len(parameters) - 1
            gathered = self.dynamic_shapes[named:]
            return (*self.dynamic_shapes[:named], gathered) if gathered else self.dynamic_shapes
        return self.dynamic_shapes
