# SPDX-License-Identifier: Apache-2.0
"""Write the weights of a quantized package: one new file for each old one, one tensor in memory at a time.

`lay_out` decides from shapes alone where everything will lie; `pieces` then reads, quantizes and hands out one tensor
after the other, so that both engines' graphs and all parts of the DiT refer to the same bytes.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from onnx import TensorProto

from ..runtime.package_writer import Piece
from .codecs import INT4_BLOCK, quantize_int4, quantize_int8, to_bfloat16, to_float16
from .layers import StoredTensor, read_values
from .rewrite import KEPT, Place, Storage, StoredWeight

PAGE_BYTES = 4096
"""Where tensors of a page or more begin: engines map weight files into memory."""
LINE_BYTES = 64
"""Where smaller ones begin: a cache line, and the widest vector register."""
COPY_BYTES = 8 << 20
"""Read at a time of what does not change."""

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.INT8: 8, TensorProto.INT4: 4,
}  # fmt: skip
_FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}

Wanted = Mapping[StoredTensor, tuple[Storage, ...]]
"""Tensor of the source package to the storages that are asked for."""


@dataclass(frozen=True)
class Slot:
    """One tensor in one storage, and where its parts go in the new file."""

    stored: StoredTensor
    """Where it comes from."""
    storage: Storage
    """How it will be stored."""
    weight: StoredWeight
    """Places; their location is empty until the file has its name."""

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        last = self.weight.scales or self.weight.values
        return last.offset + last.length

    @property
    def size_bytes(self) -> int:
        """Values and scales."""
        return self.weight.values.length + (self.weight.scales.length if self.weight.scales else 0)


def by_file(wanted: Wanted) -> dict[str, Wanted]:
    """Return file to what is wanted of it, in the order given."""
    files: dict[str, dict[StoredTensor, tuple[Storage, ...]]] = {}
    for stored, storages in wanted.items():
        files.setdefault(stored.location, {})[stored] = storages
    return dict(files)


def changes(wanted: Wanted) -> bool:
    """Tell whether anything of a file is stored in another way."""
    return any(storages != (KEPT,) for storages in wanted.values())


def lay_out(wanted: Wanted) -> tuple[Slot, ...]:
    """Give everything a place in one file, in the order given."""
    slots: list[Slot] = []
    end = 0
    for stored, storages in wanted.items():
        for storage in storages:
            values, end = _place(*_values_of(stored, storage), end=end)
            scales = None
            if scale_shape := _scales_of(stored, storage):
                scales, end = _place(TensorProto.FLOAT, scale_shape, end=end)
            slots.append(Slot(stored, storage, StoredWeight(values, scales)))
    return tuple(slots)


def _values_of(stored: StoredTensor, storage: Storage) -> tuple[int, tuple[int, ...]]:
    """Return the element type and shape of a tensor in a storage."""
    match storage.kind:
        case "int8":
            return TensorProto.INT8, stored.shape
        case "int4":
            return TensorProto.INT4, (stored.shape[storage.axis], stored.shape[1 - storage.axis])
        case "fp16":
            return TensorProto.FLOAT16, stored.shape
        case "bf16":
            return TensorProto.BFLOAT16, stored.shape
    return _FLOATS[stored.dtype], stored.shape


def _scales_of(stored: StoredTensor, storage: Storage) -> tuple[int, ...]:
    if storage.kind == "int8":
        return (stored.shape[storage.axis],)
    if storage.kind == "int4":
        return (stored.shape[storage.axis] // INT4_BLOCK, stored.shape[1 - storage.axis])
    return ()


def _place(dtype: int, shape: tuple[int, ...], *, end: int) -> tuple[Place, int]:
    """Return the next place of a file that ends at `end` so far, and where it ends then."""
    length = -(-math.prod(shape) * _BITS[dtype] // 8)
    alignment = PAGE_BYTES if length >= PAGE_BYTES else LINE_BYTES
    offset = -(-end // alignment) * alignment
    return Place("", offset, length, dtype, shape), offset + length


def pieces(slots: tuple[Slot, ...], *, root: Path) -> Iterator[Piece]:
    """Yield the content of the file that `lay_out` described.

    Raises:
        PackageError: a tensor can't be read, or does not fit float16.
    """
    end = 0
    for slot in slots:
        for place, content in zip(_places(slot), _content(slot, root=root), strict=True):
            yield bytes(place.offset - end)
            written = 0
            for piece in content:
                written += len(piece) if isinstance(piece, bytes) else piece.nbytes
                yield piece
            assert written == place.length, f"{slot} gave {written} bytes"
            end = place.offset + place.length


def _places(slot: Slot) -> Iterator[Place]:
    yield slot.weight.values
    if slot.weight.scales:
        yield slot.weight.scales


def _content(slot: Slot, *, root: Path) -> Iterator[Iterator[bytes | npt.NDArray[Any]]]:
    """Yield the bytes of values, then of scales."""
    if slot.storage == KEPT:
        yield _as_it_is(slot.stored, root=root)
        return
    values = read_values(root, slot.stored)
    match slot.storage.kind:
        case "fp16":
            yield iter([to_float16(values, name=f"a weight of {slot.stored.location}")])
        case "bf16":
            yield iter([to_bfloat16(values)])
        case "int8":
            found = quantize_int8(values, axis=slot.storage.axis, bits=slot.storage.bits)
            yield iter([found.values])
            yield iter([found.scales])
        case _:
            found = quantize_int4(values, input_axis=slot.storage.axis)
            yield iter([found.values])
            yield iter([found.scales])


def _as_it_is(stored: StoredTensor, *, root: Path) -> Iterator[bytes]:
    with (root / stored.location).open("rb") as stream:
        stream.seek(stored.offset)
        left = stored.length
        while left and (piece := stream.read(min(left, COPY_BYTES))):
            left -= len(piece)
            yield piece


def named(slots: tuple[Slot, ...], *, location: str) -> dict[tuple[StoredTensor, Storage], StoredWeight]:
    """Return where everything lies, once the file has its name."""

    def there(place: Place) -> Place:
        return Place(location, place.offset, place.length, place.dtype, place.shape)

    return {
        (slot.stored, slot.storage): StoredWeight(
            there(slot.weight.values), there(slot.weight.scales) if slot.weight.scales else None
        )
        for slot in slots
    }


def unchanged(wanted: Wanted) -> dict[tuple[StoredTensor, Storage], StoredWeight]:
    """Return where everything lies in a file that is taken over."""
    return {
        (stored, KEPT): StoredWeight(
            Place(stored.location, stored.offset, stored.length, _FLOATS[stored.dtype], stored.shape), None
        )
        for stored in wanted
    }


def copied(path: Path, target: Path) -> Path:
    """Copy a file inside the kernel, which shares the blocks where the file system can."""
    copy_range = getattr(os, "copy_file_range", None)  # absent beyond Linux
    with path.open("rb") as source, target.open("wb") as sink:
        left = os.fstat(source.fileno()).st_size
        while left and copy_range:
            try:
                count = copy_range(source.fileno(), sink.fileno(), left)
            except OSError:  # two file systems, or an old kernel: bytes have to pass through here
                break
            left -= count
            if not count:
                break
        while piece := source.read(COPY_BYTES) if left else b"":
            sink.write(piece)
    return target
