# SPDX-License-Identifier: Apache-2.0
"""Weights on their way from a checkpoint to a package: one tensor in memory at a time.

`lay_out` decides where every tensor of a part will lie in its file, from shapes alone; `pieces` then reads, turns and
hands out one tensor after the other; `bind` puts references to the file into the open places of a traced graph. A
module for the parity check borrows its values the same way and gives them back (`materialised`).
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..runtime.errors import CheckpointError
from .to_onnx import TracedGraph

Reader = Callable[[str], npt.NDArray[np.float32]]
"""Returns one parameter's values by its name, float32, in the parameter's own shape."""

ALIGNMENT_BYTES = 4096
"""Offsets of tensors: engines map weight files into memory, and a page is what can be mapped."""
SMALL_BYTES = 4096
SMALL_ALIGNMENT_BYTES = 64
"""Tensors below a page share pages; 64 is a cache line and the widest vector register."""
HALF_PRECISION_ELEMENTS = 4096
"""Tensors with fewer values (norms, biases, modulations) stay float32: they weigh nothing and set scales."""


@dataclass(frozen=True)
class Wanted:
    """A tensor that graphs of one part need."""

    name: str
    """Name of the parameter, as the reader knows it."""
    order: tuple[int, ...] | None
    """Axes of the parameter in the order in which they are stored; None: as they are."""
    shape: tuple[int, ...]
    """Shape as it is stored."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in its weights file."""

    offset: int
    """First byte."""
    length: int
    """Bytes."""
    half: bool
    """Whether it is stored as float16 (and cast to float32 in the graph)."""


def lay_out(tensors: Iterable[Wanted], *, precision: str) -> dict[Wanted, Slot]:
    """Give every distinct tensor a place in one file, in the order given.

    Args:
        tensors: what the graphs need; the same tensor may occur several times.
        precision: "fp32" or "fp16".
    """
    slots: dict[Wanted, Slot] = {}
    end = 0
    for tensor in tensors:
        if tensor in slots:
            continue
        elements = math.prod(tensor.shape)
        half = precision == "fp16" and elements >= HALF_PRECISION_ELEMENTS
        length = elements * (2 if half else 4)
        alignment = ALIGNMENT_BYTES if length >= SMALL_BYTES else SMALL_ALIGNMENT_BYTES
        offset = -(-end // alignment) * alignment
        slots[tensor] = Slot(offset, length, half)
        end = offset + length
    return slots


def pieces(slots: Mapping[Wanted, Slot], *, read: Reader) -> Iterator[bytes | npt.NDArray[np.generic]]:
    """Yield the content of the file that `lay_out` described, tensor by tensor, with the padding between them.

    Raises:
        CheckpointError: a tensor can't be read, or does not fit float16.
    """
    end = 0
    for tensor, slot in slots.items():
        if slot.offset > end:
            yield bytes(slot.offset - end)
        yield _stored(read(tensor.name), tensor=tensor, half=slot.half)
        end = slot.offset + slot.length


def _stored(values: npt.NDArray[np.float32], *, tensor: Wanted, half: bool) -> npt.NDArray[np.generic]:
    turned = values if tensor.order is None else values.transpose(tensor.order)
    if turned.shape != tensor.shape:
        raise CheckpointError(f"tensor {tensor.name} is {list(values.shape)}, stored it must be {list(tensor.shape)}")
    if not half:
        return np.ascontiguousarray(turned, dtype="<f4")
    with np.errstate(over="ignore"):
        small = np.ascontiguousarray(turned, dtype="<f2")
    if not np.isfinite(small).all():
        raise CheckpointError(
            f"{tensor.name} reaches {float(np.abs(values).max()):.3g}, float16 ends at 65504: use --precision fp32"
        )
    return small


@dataclass(frozen=True)
class Binding:
    """What the open places of one traced graph are filled with."""

    names: Mapping[str, str]
    """Parameter of the traced module -> its name in the reader, which becomes its name in the graph."""
    slots: Mapping[Wanted, Slot]
    """Where the tensors lie."""
    location: str
    """The file that they lie in, relative to the graph."""


def wanted_by(traced: TracedGraph, names: Mapping[str, str]) -> list[Wanted]:
    """Return what a traced graph needs, with parameters called as the reader knows them."""
    return [Wanted(names[parameter.name], parameter.order, parameter.shape) for parameter in traced.parameters]


def bind(traced: TracedGraph, binding: Binding) -> onnx.ModelProto:
    """Fill the open places with references into a weights file; returns a new model.

    float16 tensors are cast to float32 where they enter the graph, so that arithmetic does not depend on storage.
    """
    model = onnx.ModelProto()
    model.CopyFrom(traced.body)
    graph = model.graph
    renamed: dict[str, str] = {}
    casts: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    for parameter, tensor in zip(traced.parameters, wanted_by(traced, binding.names), strict=True):
        slot = binding.slots[tensor]
        final = tensor.name if tensor.order is None else f"{tensor.name}.{_suffix(tensor.order)}"
        renamed[parameter.place] = final
        stored.append(_reference(f"{final}.fp16" if slot.half else final, tensor.shape, slot, binding.location))
        if slot.half:
            to = onnx.TensorProto.FLOAT
            casts.append(onnx.helper.make_node("Cast", [f"{final}.fp16"], [final], name=f"{final}/Cast", to=to))
    nodes = list(graph.node)
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    graph.initializer.extend(stored)
    return model


def _suffix(order: tuple[int, ...]) -> str:
    return "T" if order == (1, 0) else "".join(str(axis) for axis in order)


def _reference(name: str, shape: tuple[int, ...], slot: Slot, location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=shape)
    tensor.data_type = onnx.TensorProto.FLOAT16 if slot.half else onnx.TensorProto.FLOAT
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", slot.offset), ("length", slot.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Let modules that are made inside have parameters without values; buffers (tables, constants) keep theirs."""
    register = nn.Module.register_parameter

    def register_without_values(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        empty = None if param is None else nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, empty)

    nn.Module.register_parameter = register_without_values
    try:
        yield
    finally:
        nn.Module.register_parameter = register


@contextlib.contextmanager
def materialised(module: nn.Module, *, names: Mapping[str, str], read: Reader) -> Iterator[None]:
    """Give a module on the meta device real values for the time of a `with` block, all at once.

    Args:
        module: what is to run.
        names: parameter of the module -> its name in the reader.
        read: where values come from.
    """
    lenders = [_Lender(owner, prefix, names=names, read=read) for prefix, owner in module.named_modules()]
    try:
        for lender in lenders:
            lender.lend()
        yield
    finally:
        for lender in lenders:
            lender.take_back()


@contextlib.contextmanager
def streamed(module: nn.Module, *, names: Mapping[str, str], read: Reader) -> Iterator[None]:
    """Let a module on the meta device run within a `with` block, with the values of one layer in memory at a time.

    Each submodule gets its own parameters when it is called and loses them when it returns; so it must use them in its
    own `forward` only, as every network here does.
    """
    hooks: list[RemovableHandle] = []
    lenders: list[_Lender] = []
    for prefix, owner in module.named_modules():
        lender = _Lender(owner, prefix, names=names, read=read)
        if lender.is_needed:
            lenders.append(lender)
            hooks.append(owner.register_forward_pre_hook(lambda *_, lender=lender: lender.lend()))
            hooks.append(owner.register_forward_hook(lambda *_, lender=lender: lender.take_back(), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for lender in lenders:
            lender.take_back()


class _Lender:
    """Gives a module's own parameters values, and takes them back."""

    def __init__(self, owner: nn.Module, prefix: str, *, names: Mapping[str, str], read: Reader) -> None:
        own = owner.named_parameters(recurse=False, remove_duplicate=False)
        self._owner = owner
        self._empty = {leaf: parameter for leaf, parameter in own if parameter.is_meta}
        self._names = {leaf: names[f"{prefix}.{leaf}" if prefix else leaf] for leaf in self._empty}
        self._read = read

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to lend."""
        return bool(self._empty)

    def lend(self) -> None:
        """Read the values."""
        for leaf, name in self._names.items():
            setattr(self._owner, leaf, nn.Parameter(torch.from_numpy(self._read(name)), requires_grad=False))

    def take_back(self) -> None:
        """Put the parameters without values back."""
        for leaf, parameter in self._empty.items():
            setattr(self._owner, leaf, parameter)
