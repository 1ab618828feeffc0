# SPDX-License-Identifier: Apache-2.0
"""One graph out of several, end to end, without tracing again: how `dit.onnx` comes from the DiT's parts.

The parts keep their weights files; the fused graph refers to the same tensors in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from .graph_spec import Axes
from .to_onnx import set_axes


@dataclass(frozen=True)
class Link:
    """One part of a chain and what its ends are called in the fused graph."""

    prefix: str
    """Put before the part's own node and value names."""
    model: onnx.ModelProto
    """The part, weights bound."""
    names: Mapping[str, str]
    """Inputs and outputs of the part -> their names in the fused graph; those left out keep theirs."""


def fuse(
    links: Sequence[Link], *, name: str, inputs: Sequence[str], outputs: Sequence[str], axes: Mapping[str, Axes]
) -> onnx.ModelProto:
    """Chain graphs by the names of their ends.

    Args:
        links: the parts, each after those that it takes its inputs from.
        name: of the fused graph.
        inputs: names of its inputs, in order.
        outputs: names of its outputs, in order.
        axes: shape of every input and output.

    Raises:
        ValueError: an input of a part is neither an input of the whole nor an output of an earlier part.
    """
    fused = onnx.ModelProto()
    fused.CopyFrom(links[0].model)
    graph = fused.graph
    graph.Clear()
    graph.name = name
    known = set(inputs)
    types: dict[str, onnx.ValueInfoProto] = {}
    for link in links:
        part = link.model.graph
        ends = {value.name: link.names.get(value.name, value.name) for value in [*part.input, *part.output]}
        loose = [ends[value.name] for value in part.input if ends[value.name] not in known]
        if loose:
            raise ValueError(f"part {link.prefix} takes {loose}, which nothing before it makes")
        _append(graph, part, prefix=link.prefix, ends=ends)
        known.update(ends[value.name] for value in part.output)
        types |= {ends[value.name]: value for value in [*part.input, *part.output]}
    for ends, target in ((inputs, graph.input), (outputs, graph.output)):
        for end in ends:
            value = target.add()
            value.CopyFrom(types[end])
            value.name = end
            set_axes(value, axes[end])
    return fused


def _append(graph: onnx.GraphProto, part: onnx.GraphProto, *, prefix: str, ends: Mapping[str, str]) -> None:
    """Copy nodes and constants of a part, its own names behind the prefix; weights have unique names already."""
    renamed = dict(ends)
    for tensor in part.initializer:
        stored = graph.initializer.add()
        stored.CopyFrom(tensor)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            renamed[tensor.name] = tensor.name
        else:
            renamed[tensor.name] = stored.name = f"{prefix}/{tensor.name}"
    for node in part.node:
        copied = graph.node.add()
        copied.CopyFrom(node)
        copied.name = f"{prefix}/{node.name}"
        copied.input[:] = [renamed.get(name, f"{prefix}/{name}") if name else "" for name in node.input]
        copied.output[:] = [renamed.get(name, f"{prefix}/{name}") if name else "" for name in node.output]
