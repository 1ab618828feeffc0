# SPDX-License-Identifier: Apache-2.0
"""The pieces of a chunk: each can be shown as soon as it is decoded, and each is due when the frames before it end."""

from collections.abc import Sequence

from .latency_trace import Chunk


def pieces_of(chunk: Chunk) -> Sequence[tuple[float, float]]:
    """Return (ready_s, frames) of each piece, in order; one where a chunk came whole."""
    return [(piece[1], piece[0]) for piece in chunk.pieces] or [(chunk.ready_s, chunk.frames)]


def deadlines(chunk: Chunk, *, fps: float) -> list[tuple[float, float]]:
    """Return (ready_s, due_s) of each piece, in order."""
    found, before = list[tuple[float, float]](), 0.0
    for ready_s, frames in pieces_of(chunk):
        found.append((ready_s, chunk.due_s + before / fps))
        before += frames
    return found


def lateness_s(chunk: Chunk, *, fps: float) -> float:
    """Return by how much the piece that was latest came too late; below 0, what the tightest had to spare."""
    return max(ready_s - due_s for ready_s, due_s in deadlines(chunk, fps=fps))


def are_sound(chunk: Chunk) -> bool:
    """Tell whether the pieces are the chunk: as many frames, one after another within its work, the last at its end."""
    pieces = pieces_of(chunk)
    times = [chunk.start_s, *(ready_s for ready_s, _frames in pieces)]
    counts = [frames for _ready_s, frames in pieces]
    return (
        times == sorted(times)
        and times[-1] == chunk.ready_s
        and sum(counts) == chunk.frames
        and (min(counts) > 0 or not chunk.frames)
    )
