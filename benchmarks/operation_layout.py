# SPDX-License-Identifier: Apache-2.0
"""What shape the results of operators have that move values without computing any; shapes among them are followed."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from .graph_nodes import Known, Node

Inputs = Sequence[Known | None]
Rule = Callable[[Node, Inputs], list[Known]]


def first(inputs: Inputs, index: int = 0) -> Known:
    """Return an input; raise ValueError where it is left out."""
    found = inputs[index] if index < len(inputs) else None
    if found is None:
        raise ValueError(f"input {index} is not there")
    return found


def integers(inputs: Inputs, index: int) -> list[int] | None:
    """Return the integers of an input; None where it is left out."""
    found = inputs[index] if index < len(inputs) else None
    if found is None:
        return None
    if found.value is None:
        raise ValueError(f"the values of input {index} are not known before the graph runs")
    return [int(value) for value in found.value.reshape(-1)]


def _same(_node: Node, inputs: Inputs) -> list[Known]:
    return [first(inputs)]


def _cast(node: Node, inputs: Inputs) -> list[Known]:
    held, is_integer = first(inputs), node.attributes["to"] in (6, 7)
    value = held.value.astype(np.int64) if held.value is not None and is_integer else held.value
    return [Known(held.shape, value)]


def _shape(node: Node, inputs: Inputs) -> list[Known]:
    sizes = first(inputs).shape[node.attributes.get("start", 0) : node.attributes.get("end")]
    return [Known((len(sizes),), np.array(sizes, np.int64))]


def _constant(node: Node, _inputs: Inputs) -> list[Known]:
    (value,) = node.attributes.values()
    array = None if isinstance(value, Known) else np.asarray(value)
    return [value if array is None else Known(array.shape, array)]


def _of_shape(_node: Node, inputs: Inputs) -> list[Known]:
    shape = tuple(integers(inputs, 0) or ())
    small = math.prod(shape) <= 64
    return [Known(shape, np.zeros(shape, np.int64) if small else None)]


def _reshape(node: Node, inputs: Inputs) -> list[Known]:
    held, wanted = first(inputs), integers(inputs, 1) or []
    keeps = not node.attributes.get("allowzero")
    sizes = [held.shape[at] if size == 0 and keeps else size for at, size in enumerate(wanted)]
    if -1 in sizes:
        sizes[sizes.index(-1)] = held.elements // max(1, math.prod(size for size in sizes if size != -1))
    if math.prod(sizes) != held.elements:
        raise ValueError(f"{held.shape} does not reshape to {tuple(sizes)}")
    return [Known(tuple(sizes), None if held.value is None else held.value.reshape(sizes))]


def _transpose(node: Node, inputs: Inputs) -> list[Known]:
    held = first(inputs)
    order = node.attributes.get("perm") or list(range(len(held.shape)))[::-1]
    shape = tuple(held.shape[axis] for axis in order)
    return [Known(shape, None if held.value is None else held.value.transpose(order))]


def _axes(node: Node, inputs: Inputs) -> list[int] | None:
    return integers(inputs, 1) if len(inputs) > 1 else node.attributes.get("axes")


def _squeeze(node: Node, inputs: Inputs) -> list[Known]:
    held, axes = first(inputs), _axes(node, inputs)
    rank = len(held.shape)
    gone = {axis % rank for axis in axes} if axes else {at for at, size in enumerate(held.shape) if size == 1}
    shape = tuple(size for at, size in enumerate(held.shape) if at not in gone)
    return [Known(shape, None if held.value is None else held.value.reshape(shape))]


def _unsqueeze(node: Node, inputs: Inputs) -> list[Known]:
    held, axes = first(inputs), _axes(node, inputs) or []
    rank = len(held.shape) + len(axes)
    new, sizes = {axis % rank for axis in axes}, iter(held.shape)
    shape = tuple(1 if at in new else next(sizes) for at in range(rank))
    return [Known(shape, None if held.value is None else held.value.reshape(shape))]


def _concat(node: Node, inputs: Inputs) -> list[Known]:
    there = [known for known in inputs if known is not None]
    axis = node.attributes["axis"] % len(there[0].shape)
    sizes = list(there[0].shape)
    sizes[axis] = sum(known.shape[axis] for known in there)
    values = [known.value for known in there]
    known = all(value is not None for value in values)
    return [Known(tuple(sizes), np.concatenate(values, axis) if known else None)]  # type: ignore[arg-type]


def _split(node: Node, inputs: Inputs) -> list[Known]:
    held, parts = first(inputs), len(node.outputs)
    axis = node.attributes.get("axis", 0) % len(held.shape)
    each = math.ceil(held.shape[axis] / parts)
    sizes = integers(inputs, 1) or [min(each, held.shape[axis] - at * each) for at in range(parts)]
    values = [None] * parts if held.value is None else np.split(held.value, np.cumsum(sizes)[:-1], axis)
    return [
        Known((*held.shape[:axis], size, *held.shape[axis + 1 :]), value)
        for size, value in zip(sizes, values, strict=True)
    ]


def _slice(_node: Node, inputs: Inputs) -> list[Known]:
    held, starts, stops = first(inputs), integers(inputs, 1) or [], integers(inputs, 2) or []
    axes = integers(inputs, 3) or list(range(len(starts)))
    steps = integers(inputs, 4) or [1] * len(starts)
    cut = [slice(None)] * len(held.shape)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        cut[axis] = slice(start, None if step < 0 and stop < -held.shape[axis] else stop, step)
    # A view of one element stands for an array of any size.
    shape = np.broadcast_to(np.int8(0), held.shape)[tuple(cut)].shape
    return [Known(shape, None if held.value is None else held.value[tuple(cut)])]


def _gather(node: Node, inputs: Inputs) -> list[Known]:
    held, index = first(inputs), first(inputs, 1)
    axis = node.attributes.get("axis", 0) % len(held.shape)
    shape = (*held.shape[:axis], *index.shape, *held.shape[axis + 1 :])
    value = None
    if held.value is not None and index.value is not None:
        value = np.take(held.value, index.value.astype(np.int64), axis)
    return [Known(shape, value)]


def _expand(_node: Node, inputs: Inputs) -> list[Known]:
    return [Known(tuple(np.broadcast_shapes(first(inputs).shape, tuple(integers(inputs, 1) or ()))))]


def _tile(_node: Node, inputs: Inputs) -> list[Known]:
    shape = first(inputs).shape
    return [Known(tuple(size * times for size, times in zip(shape, integers(inputs, 1) or [], strict=True)))]


def _pad(node: Node, inputs: Inputs) -> list[Known]:
    shape = first(inputs).shape
    pads = integers(inputs, 1) or node.attributes.get("pads") or []
    axes = integers(inputs, 3) or list(range(len(shape)))
    sizes = list(shape)
    for at, axis in enumerate(axes):
        sizes[axis] += pads[at] + pads[at + len(axes)]
    return [Known(tuple(sizes))]


def _resize(_node: Node, inputs: Inputs) -> list[Known]:
    shape = first(inputs).shape
    if len(inputs) > 3 and inputs[3] is not None:
        return [Known(tuple(integers(inputs, 3) or ()))]
    scales = first(inputs, 2).value
    if scales is None:
        raise ValueError("the scales are not known before the graph runs")
    return [Known(tuple(math.floor(size * scale) for size, scale in zip(shape, scales.tolist(), strict=True)))]


def _flatten(node: Node, inputs: Inputs) -> list[Known]:
    shape, axis = first(inputs).shape, node.attributes.get("axis", 1)
    return [Known((math.prod(shape[:axis]), math.prod(shape[axis:])))]


def _range(_node: Node, inputs: Inputs) -> list[Known]:
    start, stop, step = (values[0] for index in range(3) if (values := integers(inputs, index)))
    value = np.arange(start, stop, step, dtype=np.int64)
    return [Known(value.shape, value)]


def _quantized(_node: Node, inputs: Inputs) -> list[Known]:
    return [Known(first(inputs).shape), Known(()), Known(())]


LAYOUT: dict[str, Rule] = {
    "Identity": _same, "Cast": _cast, "Shape": _shape, "Constant": _constant, "ConstantOfShape": _of_shape,
    "Reshape": _reshape, "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Concat": _concat, "Split": _split, "Slice": _slice, "Gather": _gather, "Expand": _expand, "Tile": _tile,
    "Pad": _pad, "Resize": _resize, "Flatten": _flatten, "Range": _range, "DynamicQuantizeLinear": _quantized,
}  # fmt: skip
"""Operator to its rule."""
