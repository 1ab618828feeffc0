# SPDX-License-Identifier: Apache-2.0
"""Find the layers of a graph: what a recipe can name, and where its weights lie.

A layer is a MatMul, Gemm or Conv whose second input is a stored weight, straight or through Cast, Transpose, Squeeze,
Unsqueeze, Gather and Slice with constant arguments (the first graph of a streamed VAE takes one tap of a kernel that
way). It is called after its parameter, so that `dit`, `dit_block_03` and both graphs of a VAE name it alike.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from ..runtime.errors import PackageError

DTYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
"""Element types of weights that can be quantized."""
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MOVING = ("Cast", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Slice")
"""Operators that move values about and change none (but for rounding), so that integers can pass them as well."""
_LAYOUT = re.compile(r"\.(T|[0-4]{2,5})$")  # export's mark for a parameter stored with its axes in another order


@dataclass(frozen=True, order=True)
class StoredTensor:
    """Where the values of a parameter lie."""

    location: str
    """File in the package, `weights/<sha256>.bin`."""
    offset: int
    """First byte there."""
    length: int
    """Bytes."""
    dtype: str
    """float32, float16 or bfloat16."""
    shape: tuple[int, ...]
    """As stored."""

    @property
    def elements(self) -> int:
        """How many values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """One use of a stored weight in one graph."""

    graph: str
    """Name of the graph."""
    name: str
    """Name of the parameter without prefix, layout and `.weight`: `blocks.3.self_attn.q`."""
    operator: str
    """MatMul, Gemm, Conv, or Parameter for a stored tensor in any other use."""
    node: int
    """Index of the operator in the graph; -1 for a Parameter."""
    tensor: str
    """Name of the initializer."""
    stored: StoredTensor
    """Where its values lie."""
    chain: tuple[int, ...]
    """Indices of the nodes between the initializer and the operator, in order."""
    activation: str
    """Name of the operator's first input; empty for a Parameter."""
    output_axis: int
    """Axis of the stored tensor along which the outputs of the layer lie; -1 for a Parameter."""
    input_axis: int
    """The axis that is summed over, for MatMul and Gemm; else -1."""
    rank: int
    """Axes of the weight as the layer takes it."""


def read_model(path: Path) -> onnx.ModelProto:
    """Read a graph; its weights stay on disk."""
    return onnx.load(str(path), load_external_data=False)


def find_layers(model: onnx.ModelProto, *, graph: str) -> list[Layer]:
    """Return the layers of a graph in the order of its nodes, and after them its other stored floating-point tensors.

    Raises:
        PackageError: two different parameters would have one name.
    """
    finder = _Finder(model, graph)
    layers = [layer for index in range(len(finder.nodes)) if (layer := finder.layer(index))]
    seen: dict[str, StoredTensor] = {}
    for layer in layers:
        if seen.setdefault(layer.name, layer.stored) != layer.stored:
            raise PackageError(f"{graph} has two parameters called {layer.name}; export the package again")
    return [*layers, *finder.parameters(layers)]


class _Finder:
    def __init__(self, model: onnx.ModelProto, graph: str) -> None:
        self.nodes: Sequence[onnx.NodeProto] = list(model.graph.node)
        self._graph = graph
        self._outputs = [value.name for value in model.graph.output]
        self._stored = dict(_stored_tensors(model))
        self._made_by = {output: index for index, node in enumerate(self.nodes) for output in node.output}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t

    def layer(self, index: int) -> Layer | None:
        """Return the layer at a node, or None where there is none."""
        node = self.nodes[index]
        if node.op_type not in ("MatMul", "Gemm", "Conv") or node.domain not in ("", "ai.onnx"):
            return None
        found = self._weight(node.input[1])
        if found is None:
            return None
        tensor, chain, axes = found
        ends = _ends(node, axes)
        if ends is None:
            return None
        stored = self._stored[tensor]
        name = layer_name(tensor)
        return Layer(self._graph, name, node.op_type, index, tensor, stored, chain, node.input[0], *ends, len(axes))

    def parameters(self, layers: Sequence[Layer]) -> Iterator[Layer]:
        """Yield the stored tensors that are used for something else than a layer's weight."""
        weights = {layer.node for layer in layers}
        needed = set(self._outputs)
        for index in reversed(range(len(self.nodes))):
            node = self.nodes[index]
            if needed.intersection(node.output):
                needed.update(name for n, name in enumerate(node.input) if not (n == 1 and index in weights))
        for tensor, stored in self._stored.items():
            if tensor in needed:
                yield Layer(
                    self._graph, layer_name(tensor), "Parameter", -1, tensor, stored, (), "", -1, -1, len(stored.shape)
                )

    def _weight(self, name: str) -> tuple[str, tuple[int, ...], list[int]] | None:
        """Follow a value back to a stored tensor.

        Returns:
            The tensor, the nodes between, and which axis of the tensor each axis of the value is.
        """
        if name in self._stored:
            return name, (), list(range(len(self._stored[name].shape)))
        index = self._made_by.get(name, -1)
        if index < 0 or self.nodes[index].op_type not in MOVING:
            return None
        found = self._weight(self.nodes[index].input[0])
        if found is None:
            return None
        tensor, chain, axes = found
        moved = self._moved(self.nodes[index], axes)
        return None if moved is None else (tensor, (*chain, index), moved)

    def _moved(self, node: onnx.NodeProto, axes: list[int]) -> list[int] | None:
        """Return the axes after a node; None where it can't be told. An axis that is cut becomes -1 - axis."""
        rank = len(axes)
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        match node.op_type:
            case "Cast":
                return axes
            case "Transpose":
                return [axes[axis] for axis in attributes.get("perm", range(rank - 1, -1, -1))]
            case "Gather":
                index, axis = self._values(node.input[1]), attributes.get("axis", 0) % rank
                return None if index is None or index.ndim else axes[:axis] + axes[axis + 1 :]
            case "Slice":
                cut = self._values(node.input[3]) if len(node.input) > 3 else None
                if cut is None or any(self._values(name) is None for name in node.input[1:] if name):
                    return None
                wrapped = {int(axis) % rank for axis in cut}
                return [-1 - label if axis in wrapped else label for axis, label in enumerate(axes)]
        positions = self._values(node.input[1]) if len(node.input) > 1 else None
        if positions is None:
            return None
        if node.op_type == "Squeeze":
            gone = {int(axis) % rank for axis in positions}
            return [label for axis, label in enumerate(axes) if axis not in gone]
        new = {int(axis) % (rank + len(positions)) for axis in positions}
        left = iter(axes)
        return [-1 if axis in new else next(left) for axis in range(rank + len(new))]

    def _values(self, name: str) -> npt.NDArray[Any] | None:
        tensor = self._constants.get(name)
        return None if tensor is None or tensor.external_data else numpy_helper.to_array(tensor)


def _ends(node: onnx.NodeProto, axes: list[int]) -> tuple[int, int] | None:
    """Return the stored tensor's output and input axis, or None where the operator's weight is of another kind."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv":
        ends = (axes[0], -1)
    elif len(axes) != 2 or attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0:
        return None
    else:
        ends = (axes[0], axes[1]) if attributes.get("transB") else (axes[1], axes[0])
    is_whole = ends[0] >= 0 and (node.op_type == "Conv" or ends[1] >= 0)
    return ends if is_whole else None


def _stored_tensors(model: onnx.ModelProto) -> Iterator[tuple[str, StoredTensor]]:
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and tensor.data_type in DTYPES:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            yield (
                tensor.name,
                StoredTensor(
                    entries["location"],
                    int(entries.get("offset", 0)),
                    int(entries["length"]),
                    DTYPES[tensor.data_type],
                    tuple(tensor.dims),
                ),
            )


def layer_name(tensor: str) -> str:
    """Return what the layer of an initializer is called: `blocks.3.ffn.0` for `blocks.3.ffn.0.weight.T.fp16`."""
    name = tensor.rpartition("/")[2].removesuffix(".fp16").removesuffix(".bf16")
    return _LAYOUT.sub("", name).removesuffix(".weight")


def read_values(root: Path, stored: StoredTensor) -> npt.NDArray[Any]:
    """Read one tensor in its own type (bfloat16 as float32), a fresh array."""
    kind = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}[stored.dtype]
    with (root / stored.location).open("rb") as stream:
        values = np.fromfile(stream, dtype=kind, count=stored.elements, offset=stored.offset)
    if values.size != stored.elements:
        raise PackageError(f"{stored.location} ends early; copy the package again", code="size")
    if stored.dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(stored.shape)
