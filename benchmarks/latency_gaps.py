# SPDX-License-Identifier: Apache-2.0
"""What a trace should hold and doesn't: chunks and frames of a stream are numbered, and no number is left out."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

from .latency_measures import by_stream
from .latency_trace_file import Recorded

PAUSE_CODE = "S_RESYNC"
"""Of the runtime's event: media time has jumped, since the whole machine stood still. Frames inside it were not due."""


def lacking(recorded: Recorded) -> Iterator[str]:
    """Say which chunks and frames are missing or told twice, warm-up included; nothing where the trace is whole.

    Chunks are counted from the first of each stream. Frames are counted by their slots of media time; slots that a
    pause of the machine has skipped are not missed. A rendered file has no frames to be counted.
    """
    pauses = _pauses(recorded)
    for stream, chunks in by_stream(recorded.chunks).items():
        numbers = [chunk.index for chunk in chunks]
        gaps = _gaps(numbers)
        if gaps:
            yield f"{sum(map(len, gaps))} chunks of stream {stream} are missing; the first: chunk {gaps[0].start}"
        yield from _twice(numbers, f"chunks of stream {stream}", "chunk")
    for stream, frames in by_stream(recorded.frames).items():
        slots = [round(frame.media_s * recorded.run.fps) for frame in frames]
        gaps = [(gap, _left(gap, pauses)) for gap in _gaps(slots)]
        if missing := sum(left for _gap, left in gaps):
            first = next(gap.start for gap, left in gaps if left)
            yield f"{missing} frames of stream {stream} are missing, and no pause explains it; the first: slot {first}"
        yield from _twice(slots, f"frames of stream {stream}", "slot")


def _gaps(numbers: Iterable[int]) -> list[range]:
    """Return what is left out between the smallest and the largest number, in order."""
    return [range(before + 1, after) for before, after in pairwise(sorted(set(numbers))) if after > before + 1]


def _twice(numbers: Iterable[int], what: str, one: str) -> Iterator[str]:
    repeated = sorted(number for number, times in Counter(numbers).items() if times > 1)
    if repeated:
        yield f"{len(repeated)} {what} are told more than once; the first: {one} {repeated[0]}"


def _pauses(recorded: Recorded) -> list[range]:
    """Return the slots that pauses have skipped: the event names the first after them, and how long it was."""
    fps, found = recorded.run.fps, list[range]()
    for event in recorded.events:
        if event.code == PAUSE_CODE and {"media_s", "length_s"} <= event.details.keys():
            stop, length = (round(event.details[name] * fps) for name in ("media_s", "length_s"))
            found.append(range(stop - length, stop))
    return found


def _left(gap: range, pauses: Iterable[range]) -> int:
    """Return how many slots of a gap no pause explains."""
    explained = sum(max(0, min(gap.stop, pause.stop) - max(gap.start, pause.start)) for pause in pauses)
    return max(0, len(gap) - explained)
