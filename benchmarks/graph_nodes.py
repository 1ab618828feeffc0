# SPDX-License-Identifier: Apache-2.0
"""The nodes of an ONNX graph and its small constants, read from the file's bytes without the onnx package.

For graphs of an opened package only, which were checked on opening: nothing here refuses what is odd.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]

MOST_ELEMENTS = 64
"""Constants up to this size are read: shapes, axes, pads. Weights are known by their shapes alone."""

TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "u1", 10: "<f2", 11: "<f8"}
"""Element type in the file to numpy's; others are never shapes."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a tensor before anything runs."""

    shape: Shape
    """Sizes."""
    value: npt.NDArray[Any] | None = None
    """Its elements, where they are constant or follow from shapes."""

    @property
    def elements(self) -> int:
        """How many there are."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Node:
    """One operator."""

    operator: str
    """Its name: "MatMul"."""
    inputs: tuple[str, ...]
    """Names of tensors; "" where one is left out."""
    outputs: tuple[str, ...]
    """The same."""
    attributes: dict[str, Any]
    """Numbers, texts, lists of numbers, or `Known`."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph's nodes in their order, which is one in which they can run."""

    nodes: tuple[Node, ...]
    """Operators."""
    constants: dict[str, Known]
    """Initializers by name."""
    inputs: tuple[str, ...]
    """Names of what is fed."""


def read_graph(data: bytes) -> Graph:
    """Read the bytes of an .onnx file."""
    nodes: list[Node] = []
    constants: dict[str, Known] = {}
    inputs: list[str] = []
    graph = next(value for number, value in _fields(data) if number == 7)
    for number, value in _fields(graph):
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, known = _tensor(value)
            constants[name] = known
        elif number == 11:
            inputs.append(next(text for field, text in _fields(value) if field == 1).decode())
    return Graph(tuple(nodes), constants, tuple(name for name in inputs if name not in constants))


def _node(data: bytes) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 4: []}
    attributes: dict[str, Any] = {}
    for number, value in _fields(data):
        if number in texts:
            texts[number].append(value.decode())
        elif number == 5:
            name, found = _attribute(value)
            attributes[name] = found
    return Node(texts[4][0], tuple(texts[1]), tuple(texts[2]), attributes)


def _attribute(data: bytes) -> tuple[str, Any]:
    name, found, many = "", None, []
    for number, value in _fields(data):
        if number == 1:
            name = value.decode()
        elif number == 2:
            found = struct.unpack("<f", value)[0]
        elif number == 3:
            found = _signed(value)
        elif number == 4:
            found = value.decode(errors="replace")
        elif number == 5:
            found = _tensor(value)[1]
        elif number == 8:
            many += _numbers(value)
    return name, many if many else found


def _tensor(data: bytes) -> tuple[str, Known]:
    name, kind, raw = "", 0, b""
    sizes: list[int] = []
    typed: list[int | float] = []
    for number, value in _fields(data):
        if number == 1:
            sizes += _numbers(value)
        elif number == 2:
            kind = value
        elif number == 4:
            typed += np.frombuffer(value, "<f4").tolist()
        elif number in (5, 7):
            typed += _numbers(value)
        elif number == 8:
            name = value.decode()
        elif number == 9:
            raw = value
    shape = tuple(sizes)
    known = Known(shape)
    if known.elements <= MOST_ELEMENTS and kind in TYPES and (raw or typed or not known.elements):
        values = np.frombuffer(raw, TYPES[kind]) if raw else np.array(typed, TYPES[kind])
        known = Known(shape, values.reshape(shape))
    return name, known


# ── Wire format ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of every field: an integer, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _numbers(value: int | bytes) -> list[int]:
    """Return the numbers of a repeated field, packed or not."""
    if isinstance(value, int):
        return [_signed(value)]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_signed(number))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
