# SPDX-License-Identifier: Apache-2.0
"""How weights become fewer bits: one codec each, numbers in and numbers out.

====== ==================================================== ==================================================
codec  stored value q of a weight w                         the weight again
====== ==================================================== ==================================================
fp16   w rounded to float16, half to even                   q
bf16   w rounded to bfloat16, half to even                  q
int8   clip(rint(w / s), -L, L), L = 127, or 63 at 7 bits   q · s, s = max|w| / L of its output channel
int4   clip(rint(w / s), -8, 7), two in a byte              q · s, one s for 64 weights of an output
====== ==================================================== ==================================================

Scales are float32. An int4 block takes the scale that maps its largest weight to -8 (so its sign is that weight's,
turned), or 0.80 to 0.96 of it where clipping that weight leaves less squared error: 20.9 dB instead of 20.5 on normal
weights, and ten more candidates would give 0.05 dB. A channel or block of zeros takes scale 1.
Nothing here is random, so the same weights give the same bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.errors import PackageError

Floats = npt.NDArray[np.floating[Any]]
INT4_BLOCK = 64
"""Weights of one output that share a scale."""
WORKING_BYTES = 8 << 20
"""Of float32 copies at a time: a tensor is quantized in slices, so that memory stays near the tensor itself."""
CLIPS = (0.80, 0.84, 0.88, 0.92, 0.96)
"""Scales to try for an int4 block, relative to the one that clips nothing."""


@dataclass(frozen=True)
class Quantized:
    """A tensor in integers."""

    values: npt.NDArray[Any]
    """int8 as shaped before; int4 as bytes, flat, the first of two values in the lower half."""
    scales: npt.NDArray[np.float32]
    """int8: one for each output channel; int4: shape (blocks, outputs)."""


def quantize_int8(weights: Floats, *, axis: int, bits: int = 8) -> Quantized:
    """Round weights to int8, symmetric, with one scale for each index of `axis`."""
    largest = (1 << (bits - 1)) - 1
    values = np.empty(weights.shape, np.int8)
    scales = np.empty(weights.shape[axis], np.float32)
    for part in _slices(weights.shape, axis):
        piece = np.moveaxis(weights[part], axis, 0).astype(np.float32)
        others = tuple(range(1, piece.ndim))
        peak = np.maximum(piece.max(axis=others), -piece.min(axis=others))
        scale = np.where(peak > 0, peak / np.float32(largest), np.float32(1))
        piece /= scale.reshape(-1, *(1 for _ in others))
        np.rint(piece, out=piece)
        np.clip(piece, -largest, largest, out=piece)
        values[part] = np.moveaxis(piece, 0, axis)
        scales[part[axis]] = scale
    return Quantized(values, scales)


def quantize_int4(weights: Floats, *, input_axis: int) -> Quantized:
    """Round a matrix to int4 in blocks of 64 along its input axis, stored (inputs, outputs).

    Raises:
        ValueError: the inputs are no whole number of blocks.
    """
    matrix = weights if input_axis == 0 else weights.T
    inputs, outputs = matrix.shape
    if inputs % INT4_BLOCK:
        raise ValueError(f"{inputs} inputs are no multiple of {INT4_BLOCK}")
    values = np.empty((inputs, outputs), np.int8)
    scales = np.empty((inputs // INT4_BLOCK, outputs), np.float32)
    for _, columns in _slices(matrix.shape, 1):
        blocks = matrix[:, columns].astype(np.float32).reshape(inputs // INT4_BLOCK, INT4_BLOCK, -1)
        scale = _best_scale(blocks)
        values[:, columns] = _round_int4(blocks, scale).reshape(inputs, -1)
        scales[:, columns] = scale
    return Quantized(pack_int4(values), scales)


def _best_scale(blocks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return for blocks (blocks, 64, outputs) the scale with the least squared error, (blocks, outputs)."""
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)[:, 0]
    whole = np.where(peak != 0, peak / np.float32(-8), np.float32(1))
    best, least = whole, _squared_error(blocks, whole)
    for clip in CLIPS:
        scale = whole * np.float32(clip)
        error = _squared_error(blocks, scale)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return best


def _squared_error(blocks: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.square(_round_int4(blocks, scale) * scale[:, None] - blocks).sum(axis=1)


def _round_int4(blocks: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.clip(np.rint(blocks / scale[:, None]), -8, 7)


def pack_int4(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return values of -8..7 two in a byte, the first in the lower half, as ONNX stores INT4."""
    flat = values.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.int8(0))
    packed: npt.NDArray[np.uint8] = flat[1::2].astype(np.uint8) << np.uint8(4)
    packed |= flat[0::2].astype(np.uint8) & np.uint8(0x0F)
    return packed


def unpack_int4(packed: npt.NDArray[np.uint8], *, shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """Return what `pack_int4` was given."""
    flat = np.empty(packed.size * 2, np.int8)
    flat[0::2] = (packed << 4).view(np.int8) >> 4
    flat[1::2] = packed.view(np.int8) >> 4
    return flat[: int(np.prod(shape))].reshape(shape)


def to_float16(weights: Floats, *, name: str) -> npt.NDArray[np.float16]:
    """Round to float16.

    Raises:
        PackageError: a value lies beyond float16's 65504.
    """
    with np.errstate(over="ignore"):
        small = weights.astype(np.float16)
    if not np.isfinite(small).all():
        peak = float(np.abs(weights).max())
        raise PackageError(f"{name} reaches {peak:.3g}, float16 ends at 65504: use the recipe bf16", code="fp16")
    return small


def to_bfloat16(weights: Floats) -> npt.NDArray[np.uint16]:
    """Round finite values to bfloat16, half to even, as its 16 bits."""
    bits = weights.astype(np.float32).view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16)


def _slices(shape: tuple[int, ...], axis: int) -> Iterator[tuple[slice, ...]]:
    """Yield index tuples that cut an array along one axis into pieces of about `WORKING_BYTES` of float32."""
    count = shape[axis]
    width = max(1, WORKING_BYTES // max(1, 4 * int(np.prod(shape)) // max(count, 1)))
    whole = [slice(None)] * len(shape)
    for start in range(0, count, width):
        yield (*whole[:axis], slice(start, min(start + width, count)), *whole[axis + 1 :])
