# SPDX-License-Identifier: Apache-2.0
"""Weights on disk, read one tensor at a time and never trusted.

A `Weights` is a state dict that knows every name and shape but holds no values: `read` fetches one tensor, converts
it to float32 and refuses NaN and infinity. Everything in `export/` works on this view, so that memory is bounded by
what one graph part needs, whatever the checkpoint's size.
"""

import json
import math
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..runtime.errors import CheckpointError

# A published 19 B checkpoint has 1.9 k tensors and headers of 0.2 MB; what is beyond is an attack or a mistake.
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 20_000

# safetensors name -> (numpy type of the raw bytes, bytes per element). bfloat16 is the upper half of a float32.
_DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("<f8", 8),
    "F32": ("<f4", 4),
    "F16": ("<f2", 2),
    "BF16": ("<u2", 2),
    "I64": ("<i8", 8),
    "I32": ("<i4", 4),
    "I16": ("<i2", 2),
    "I8": ("|i1", 1),
    "U8": ("|u1", 1),
    "BOOL": ("|b1", 1),
}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    """Sizes, outermost first."""
    dtype: str
    """Storage type in safetensors' spelling: F32, F16, BF16, ..."""


class Weights(Protocol):
    """A state dict whose values stay on disk."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the values come from, for the digests of the package."""
        ...

    def infos(self) -> Mapping[str, TensorInfo]:
        """Return every name with its shape and storage type; reads no values."""
        ...

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return one tensor as a fresh float32 array.

        Raises:
            CheckpointError: the values cannot be read, or are not all finite.
        """
        ...


class SafetensorsFile:
    """One `.safetensors` file: header checked when opened, values fetched by `pread`."""

    def __init__(self, path: Path) -> None:
        """Read and check the header.

        Raises:
            CheckpointError: not a safetensors file, truncated, beyond the caps, duplicate names, or offsets that do
                not tile the data exactly.
        """
        self._path = path
        self._data_start, self._entries, self.metadata = _read_header(path)

    @property
    def files(self) -> tuple[Path, ...]:
        """This file."""
        return (self._path,)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Return every name with its shape and storage type."""
        return {name: info for name, (info, _) in self._entries.items()}

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return one tensor as a fresh float32 array; opens the file for this one read."""
        info, (start, stop) = self._entries[name]
        raw = bytearray(stop - start)
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._data_start + start)
            view, filled = memoryview(raw), 0
            while filled < len(raw):
                count = file.readinto(view[filled:])
                if not count:
                    raise CheckpointError(f"{self._path}: tensor {name!r} ends early: the file was changed meanwhile")
                filled += count
        values = np.frombuffer(raw, dtype=_DTYPES[info.dtype][0]).reshape(info.shape)
        return _finite_float32(values, bfloat16=info.dtype == "BF16", name=name, path=self._path)


class PickledFile:
    """A `.pth` file of tensors, opened with `weights_only=True` and memory-mapped; never retried otherwise.

    Nested dictionaries are flattened to dotted names; entries that are not tensors carry no weights and are left out.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            CheckpointError: it holds anything but tensors and plain containers, or is damaged.
        """
        import torch

        self._path = path
        try:
            tree: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} holds a pickle that is more than tensors and would run code; it was not loaded: "
                "convert it to .safetensors where you trust it"
            ) from error
        except (RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read as a .pth file of tensors: {_first_line(error)}") from error
        if not isinstance(tree, Mapping):
            raise CheckpointError(f"{path} holds a {type(tree).__name__}, expected a state dict of tensors")
        self._tensors: dict[str, Any] = dict(_tensors_of(tree, prefix="", depth=0))
        if len(self._tensors) > MAX_TENSORS:
            raise CheckpointError(f"{path} holds {len(self._tensors)} tensors, at most {MAX_TENSORS} are read")
        self._infos = {
            name: TensorInfo(tuple(tensor.shape), _torch_dtype(tensor, name, path))
            for name, tensor in self._tensors.items()
        }

    @property
    def files(self) -> tuple[Path, ...]:
        """This file."""
        return (self._path,)

    def infos(self) -> Mapping[str, TensorInfo]:
        """Return every name with its shape and storage type."""
        return self._infos

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return one tensor as a fresh float32 array."""
        values = self._tensors[name].detach().float().clone().numpy()
        return _finite_float32(values, bfloat16=False, name=name, path=self._path)


class ShardedWeights:
    """Several safetensors files that together are one state dict."""

    def __init__(self, paths: tuple[Path, ...], *, weight_map: Mapping[str, str] | None = None) -> None:
        """Open every shard.

        Args:
            paths: the shards, each present.
            weight_map: which name lies in which file, as an index says; without it every name of every file counts.

        Raises:
            CheckpointError: a shard is damaged, a name occurs twice, or the index names a tensor that is not there.
        """
        shards = {path.name: SafetensorsFile(path) for path in paths}
        self._files = paths
        self._home: dict[str, SafetensorsFile] = {}
        for file_name, shard in shards.items():
            for name in shard.infos():
                if name in self._home:
                    raise CheckpointError(f"tensor {name!r} lies in two files of {paths[0].parent}, expected in one")
                self._home[name] = shard
                if weight_map is not None and weight_map.get(name) != file_name:
                    raise CheckpointError(
                        f"{file_name} holds tensor {name!r}, but the index says {weight_map.get(name, 'nothing of it')}"
                    )
        for name in weight_map or {}:
            if name not in self._home:
                raise CheckpointError(f"the index says that {(weight_map or {})[name]} holds {name!r}, but it does not")

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards."""
        return self._files

    def infos(self) -> Mapping[str, TensorInfo]:
        """Return every name with its shape and storage type."""
        return {name: home.infos()[name] for name, home in self._home.items()}

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return one tensor as a fresh float32 array."""
        return self._home[name].read(name)


class RenamedWeights:
    """Another state dict under other names; names that are not given are hidden."""

    def __init__(self, weights: Weights, *, names: Mapping[str, str]) -> None:
        """Show `weights` under new names.

        Args:
            weights: where the values are.
            names: new name -> name in `weights`.
        """
        self._weights = weights
        self._names = dict(names)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the state dict behind."""
        return self._weights.files

    def infos(self) -> Mapping[str, TensorInfo]:
        """Return every new name with its shape and storage type."""
        infos = self._weights.infos()
        return {new: infos[old] for new, old in self._names.items()}

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return one tensor as a fresh float32 array."""
        return self._weights.read(self._names[name])


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file.

    Raises:
        CheckpointError: not readable, not JSON, duplicate keys, or not an object.
    """
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {_first_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = value
    return found


def _read_header(path: Path) -> tuple[int, dict[str, tuple[TensorInfo, tuple[int, int]]], dict[str, str]]:
    """Return where the data begins, and per tensor its shape, type and byte range within the data."""
    try:
        size_bytes = os.stat(path).st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or length > min(MAX_HEADER_BYTES, size_bytes - 8):
                raise CheckpointError(
                    f"{path} is no whole safetensors file: its header claims {length} bytes "
                    f"(at most {MAX_HEADER_BYTES} are read) in a file of {size_bytes}; fetch it again"
                )
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has no readable safetensors header: {_first_line(error)}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a safetensors header that is no JSON object")
    metadata = header.pop("__metadata__", {})
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds {len(header)} tensors, at most {MAX_TENSORS} are read")
    entries = {name: _checked_entry(entry, name=name, path=path) for name, entry in header.items()}
    _check_tiling(entries, path=path, data_bytes=size_bytes - 8 - length)
    return 8 + length, entries, metadata if isinstance(metadata, dict) else {}


def _checked_entry(entry: Any, *, name: str, path: Path) -> tuple[TensorInfo, tuple[int, int]]:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: the header entry of tensor {name!r} is malformed") from error
    if any(type(number) is not int or number < 0 for number in numbers):
        raise CheckpointError(f"{path}: tensor {name!r} has sizes or offsets that are no natural numbers")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} is stored as {dtype!r}, expected one of {', '.join(sorted(_DTYPES))}"
        )
    needed = math.prod(shape) * _DTYPES[dtype][1]
    if stop - start != needed:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {list(shape)} and type {dtype} needs {needed} bytes, "
            f"but its offsets hold {stop - start}"
        )
    return TensorInfo(tuple(shape), dtype), (start, stop)


def _check_tiling(entries: Mapping[str, tuple[TensorInfo, tuple[int, int]]], *, path: Path, data_bytes: int) -> None:
    """Refuse gaps, overlaps, trailing and missing bytes: each is either damage or a place to hide something."""
    reached = 0
    for name, (_, (start, stop)) in sorted(entries.items(), key=lambda item: item[1][1]):
        if start != reached:
            raise CheckpointError(f"{path}: tensor {name!r} begins at byte {start} of the data, expected {reached}")
        reached = stop
    if reached != data_bytes:
        raise CheckpointError(
            f"{path} is truncated or padded: its header describes {reached} bytes of data, "
            f"the file holds {data_bytes}; fetch it again"
        )


def _tensors_of(tree: Mapping[Any, Any], *, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    import torch

    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, Mapping) and depth < 8:
            yield from _tensors_of(value, prefix=name + ".", depth=depth + 1)


def _torch_dtype(tensor: Any, name: str, path: Path) -> str:
    import torch

    spelling = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    integers = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
    known = {**spelling, **integers, torch.bool: "BOOL"}
    if tensor.layout is not torch.strided or tensor.dtype not in known:
        raise CheckpointError(f"{path}: tensor {name!r} is {tensor.dtype} ({tensor.layout}), expected dense floats")
    return known[tensor.dtype]


def _finite_float32(values: npt.NDArray[Any], *, bfloat16: bool, name: str, path: Path) -> npt.NDArray[np.float32]:
    if bfloat16:
        # In place of a type that numpy lacks: shift the two bytes into the upper half of a float32.
        bits = np.empty(values.shape, dtype=np.uint32)
        wide = np.left_shift(values, 16, out=bits, dtype=np.uint32, casting="safe").view(np.float32)
    else:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused below
            wide = values.astype(np.float32, copy=not values.flags.writeable)
    # A sum in float64 is finite only if every term is; it needs no second array of the tensor's size.
    with np.errstate(invalid="ignore"):
        finite = bool(np.isfinite(wide.sum(dtype=np.float64)))
    if not finite:
        raise CheckpointError(f"{path}: tensor {name!r} holds NaN or infinity; the checkpoint is damaged")
    return wide


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
