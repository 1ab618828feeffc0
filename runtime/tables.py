# SPDX-License-Identifier: Apache-2.0
"""Trigonometry that stays outside the graphs: the sinusoid of a timestep, the rotary tables of a token grid.

Everything is computed in float64 and handed over in float32. Sources: SkyReels-V3 commit 28c771e, transformer_a2v.py
and transformer.py; diffusers 0.34 transformer_wan.py (facts only, own code).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

THETA = 10000.0
"""Base of the geometric row of frequencies, for timesteps and positions alike."""

Floats = npt.NDArray[np.float32]


def sinusoid(timesteps: npt.ArrayLike, *, freq_dim: int = 256) -> Floats:
    """Return the embedding of timesteps, shape (F, freq_dim): cosines, then sines.

    Args:
        timesteps: F numbers in [0, 1000].
        freq_dim: even.

    Raises:
        ValueError: freq_dim is odd, or timesteps is not a row of numbers.
    """
    row = np.asarray(timesteps, dtype=np.float64)
    if row.ndim != 1:
        raise ValueError(f"timesteps have the shape {row.shape}; expected one row")
    if freq_dim < 2 or freq_dim % 2:
        raise ValueError(f"freq_dim is {freq_dim}; expected an even number above 0")
    half = freq_dim // 2
    angles = np.outer(row, np.power(THETA, -np.arange(half) / half))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@dataclass(frozen=True)
class RopeGrid:
    """A box of tokens, ordered time, height, width with width fastest."""

    frames: int
    """Latent frames."""

    rows: int
    """Token rows: latent height / 2."""

    columns: int
    """Token columns: latent width / 2."""

    first_frame: int = 0
    """Temporal position of the first latent frame; 1024 for the prefix of a shot switch."""

    @property
    def tokens(self) -> int:
        """Tokens in the box."""
        return self.frames * self.rows * self.columns


def rope_tables(
    grids: RopeGrid | Sequence[RopeGrid], *, head_dim: int, single_precision: bool = False
) -> tuple[Floats, Floats]:
    """Return cosines and sines for every token, each of shape (N, head_dim / 2), in half-split order.

    Column i belongs to the pair (i, i + head_dim / 2) of a half-split head, which is the pair (2i, 2i + 1) of the
    published, interleaved one. The first columns turn with time, the next with height, the last with width.

    Args:
        grids: one box of tokens, or several that follow each other.
        head_dim: width of one attention head, a multiple of 2, at least 6.
        single_precision: build angles from float32 frequencies, as the video-extension networks do.

    >>> cos, sin = rope_tables(RopeGrid(21, 30, 52), head_dim=128)
    >>> cos.shape
    (32760, 64)
    """
    boxes = [grids] if isinstance(grids, RopeGrid) else list(grids)
    parts = [_box_angles(box, head_dim=head_dim, single_precision=single_precision) for box in boxes]
    angles = np.concatenate(parts)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rope_angles(positions: npt.ArrayLike, *, head_dim: int, single_precision: bool = False) -> npt.NDArray[np.float64]:
    """Return the angles of tokens that stand at the same position on all three axes, shape (n, head_dim / 2).

    Args:
        positions: n whole numbers.
        head_dim: width of one attention head.
        single_precision: round frequencies and angles to float32, as a complex64 table has them.
    """
    row = np.asarray(positions, dtype=np.float64)
    return np.concatenate(
        [_outer(row, dim=dim, single_precision=single_precision) for dim in axis_dims(head_dim)], axis=1
    )


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Return how many dimensions of a head turn with time, height and width.

    Raises:
        ValueError: the width cannot be split into pairs on three axes.

    >>> axis_dims(128)
    (44, 42, 42)
    """
    if head_dim < 6 or head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}; expected an even number of 6 or more")
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def _box_angles(box: RopeGrid, *, head_dim: int, single_precision: bool) -> npt.NDArray[np.float64]:
    if min(box.frames, box.rows, box.columns) < 1 or box.first_frame < 0:
        raise ValueError(f"{box} has no tokens or begins before 0; expected a box of at least one token")
    shape = (box.frames, box.rows, box.columns)
    parts: list[npt.NDArray[np.float64]] = []
    for axis, (dim, first) in enumerate(zip(axis_dims(head_dim), (box.first_frame, 0, 0), strict=True)):
        positions = np.arange(first, first + shape[axis], dtype=np.float64)
        angles = _outer(positions, dim=dim, single_precision=single_precision)
        spread: list[Any] = [None, None, None, slice(None)]
        spread[axis] = slice(None)
        parts.append(np.broadcast_to(angles[tuple(spread)], (*shape, angles.shape[1])))
    return np.concatenate(parts, axis=-1).reshape(box.tokens, head_dim // 2)


def _outer(positions: npt.NDArray[np.float64], *, dim: int, single_precision: bool) -> npt.NDArray[np.float64]:
    exponents = np.arange(0, dim, 2) / dim
    if not single_precision:
        return np.outer(positions, 1.0 / np.power(THETA, exponents))
    # torch's float32 pow is correctly rounded here, numpy's is not: the power is taken in float64 and rounded once.
    # One unit in the last place of a frequency is 1e-4 of an angle at position 1024.
    powers = np.power(THETA, exponents.astype(np.float32).astype(np.float64)).astype(np.float32)
    return np.outer(positions.astype(np.float32), np.float32(1) / powers).astype(np.float64)
