# SPDX-License-Identifier: Apache-2.0
"""How many operations a package's graphs do for inputs of given shapes, counted from the graphs themselves.

A product with its sum counts as two operations, as everywhere. Every other value that is computed counts as one;
what only moves values (Reshape, Concat, Cast, …) counts nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime import ModelPackage, PackageError
from .graph_nodes import Graph, Known, Node, Shape, read_graph
from .operation_shapes import Inputs, attention_sizes, kernel_of, results

MOVES = frozenset(
    """
    Cast Concat Constant ConstantOfShape Expand Flatten Gather Identity Pad Range Reshape Shape Slice Split Squeeze Tile
    Transpose Unsqueeze
    """.split()  # noqa: SIM905 - quoted one by one they would fill the screen
)


@dataclass(frozen=True)
class Operations:
    """What one run of a graph computes."""

    products: int = 0
    """In matrix products, convolutions and attention: two for a multiplication with its addition."""
    elements: int = 0
    """Values that everything else computes, one each."""

    @property
    def total(self) -> int:
        """Both."""
        return self.products + self.elements

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(self.products + other.products, self.elements + other.elements)


def count(graph: Graph, shapes: Mapping[str, Shape]) -> Operations:
    """Count what one run does.

    Args:
        graph: as `read_graph` returns it.
        shapes: of every input that is fed.

    Raises:
        ValueError: a shape is missing or does not fit, or an operator has no rule.
    """
    return sum((_operations(node, inputs, made[0]) for node, inputs, made in walk(graph, shapes)), Operations())


def walk(graph: Graph, shapes: Mapping[str, Shape]) -> Iterator[tuple[Node, Inputs, list[Known]]]:
    """Yield every node with what is known of its inputs and results; arguments and errors as of `count`."""
    known: dict[str, Known] = dict(graph.constants)
    for name in graph.inputs:
        if name not in shapes:
            raise ValueError(f"the shape of the input {name} is missing")
        known[name] = Known(tuple(shapes[name]))
    for node in graph.nodes:
        inputs = [known[name] if name else None for name in node.inputs]
        made = results(node, inputs)
        known |= {name: found for name, found in zip(node.outputs, made, strict=False) if name}
        yield node, inputs, made


def _operations(node: Node, inputs: Inputs, made: Known) -> Operations:
    if node.operator in MOVES or made.value is not None:
        return Operations()
    if (products := _products(node, inputs, made)) is not None:
        return Operations(products=products)
    return Operations(elements=made.elements)


def _products(node: Node, inputs: Inputs, made: Known) -> int | None:
    """Return the operations of a product, a convolution or an attention; None for everything else."""
    match node.operator:
        case "MatMul" | "MatMulInteger" | "MatMulNBits":
            return 2 * made.elements * _shape(inputs)[-1]
        case "Gemm":
            return 2 * made.elements * _shape(inputs)[0 if node.attributes.get("transA") else 1]
        case "Conv" | "ConvInteger" | "QLinearConv":
            return 2 * made.elements * math.prod(kernel_of(node, inputs)[1:])
        case "ConvTranspose":
            return 2 * math.prod(_shape(inputs)) * math.prod(kernel_of(node, inputs)[1:])
        case "Attention":
            batch, heads, queries, keys, query_width, value_width = attention_sizes(node, inputs)
            return 2 * batch * heads * queries * keys * (query_width + value_width)
    return None


def _shape(inputs: Inputs) -> Shape:
    first = inputs[0]
    assert first is not None  # the graph was checked when its package was opened
    return first.shape


# ── A package ────────────────────────────────────────────────────────────────────────────────────────────────────────


class PackageOperations:
    """Counts the operations of a package's graphs, each shape once."""

    def __init__(self, package: ModelPackage, *, library: str) -> None:
        """Count the graphs that a library ("onnxruntime", "openvino") runs."""
        self._package, self._library = package, library
        self._graphs: dict[str, Graph] = {}
        self._counted: dict[tuple[Any, ...], Operations] = {}

    def of(self, graph: str, shapes: Mapping[str, Shape]) -> Operations:
        """Return the operations of one run.

        Args:
            graph: its name in the manifest.
            shapes: of some inputs; those of the others follow, by the names of their axes.

        Raises:
            PackageError: the graph has operators that are not counted, or does not take such shapes.
        """
        key = (graph, *sorted(shapes.items()))
        if key not in self._counted:
            try:
                entry = self._package.graph(graph)
                whole = input_shapes({spec.name: spec.shape for spec in entry.inputs}, shapes)
                self._counted[key] = count(self._graph(graph), whole)
            except ValueError as error:
                raise PackageError(
                    f"the operations of {graph} in {self._package.name} can't be counted: {error}", code="operations"
                ) from error
        return self._counted[key]

    def _graph(self, name: str) -> Graph:
        if name not in self._graphs:
            self._graphs[name] = read_graph(self._package.graph_path(name, self._library).read_bytes())
        return self._graphs[name]


def input_shapes(symbolic: Mapping[str, Sequence[int | str]], known: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shape of every input, given those of some.

    Args:
        symbolic: input to its axes as the manifest has them: 3, "h", "8*h".
        known: input to its shape.

    Raises:
        ValueError: a known shape does not fit, or an axis stays unknown.

    >>> input_shapes({"frames": (1, "4*k", "8*h"), "cache": (2, "2*h")}, {"frames": (1, 8, 128)})
    {'frames': (1, 8, 128), 'cache': (2, 32)}
    """
    axes: dict[str, int] = {}
    for name in symbolic.keys() & known.keys():
        for axis, size in zip(symbolic[name], known[name], strict=True):
            factor, letter = _axis(axis)
            times, rest = divmod(size, factor)
            if rest or times != (axes.setdefault(letter, times) if letter else 1):
                raise ValueError(f"{name} has the axis {axis}; it can't be {size}")
    try:
        return {name: tuple(_size(axis, axes) for axis in shape) for name, shape in symbolic.items()}
    except KeyError as error:
        raise ValueError(f"nothing says how long the axis {error.args[0]} is") from error


def _axis(axis: int | str) -> tuple[int, str]:
    """Split "8*h" into 8 and "h"."""
    if isinstance(axis, int):
        return axis, ""
    factor, _, name = axis.partition("*")
    return (int(factor), name) if factor.isdecimal() and name else (1, axis)


def _size(axis: int | str, axes: Mapping[str, int]) -> int:
    factor, name = _axis(axis)
    return factor * axes[name] if name else factor
