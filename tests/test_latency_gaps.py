# SPDX-License-Identifier: Apache-2.0
"""A trace in which chunks or frames are missing is void, unless the machine itself stood still."""

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from edgereels.benchmarks.latency_gaps import lacking
from edgereels.benchmarks.latency_recorder import Recorder
from edgereels.benchmarks.latency_trace import Chunk, Event, Frame
from edgereels.benchmarks.latency_validity import validity
from edgereels.runtime.playout import Playout

from .latency_traces import lines_of, recorded, with_run
from .live_parts import FPS, REST

LINES = lines_of([0.4] * 20)


def without(kind: type[Any], *places: int) -> list[Any]:
    left_out = [id([one for one in LINES if isinstance(one, kind)][place]) for place in places]
    return [one for one in LINES if id(one) not in left_out]


def twice(kind: type[Any], place: int) -> list[Any]:
    return [*LINES, [one for one in LINES if isinstance(one, kind)][place]]


DAMAGED: dict[str, tuple[list[Any], str]] = {
    "chunks": (without(Chunk, 7, 8, 12), "3 chunks of stream 0 are missing; the first: chunk 7"),
    "a chunk of the warm-up": (without(Chunk, 1), "1 chunks of stream 0 are missing; the first: chunk 1"),
    "a chunk twice": (twice(Chunk, 5), "1 chunks of stream 0 are told more than once; the first: chunk 5"),
    "frames": (
        without(Frame, 30, 31, 99),
        "3 frames of stream 0 are missing, and no pause explains it; the first: slot 30",
    ),
    "a frame twice": (twice(Frame, 40), "1 frames of stream 0 are told more than once; the first: slot 40"),
}


def test_a_whole_trace_lacks_nothing() -> None:
    assert list(lacking(recorded(LINES))) == []
    assert validity(recorded(LINES))["status"] == "quick"


@pytest.mark.parametrize("name", DAMAGED)
def test_a_trace_that_is_not_whole_is_void_and_says_what_is_missing(name: str) -> None:
    lines, reason = DAMAGED[name]
    assert list(lacking(recorded(lines))) == [reason]
    found = validity(recorded(lines))
    assert found["status"] == "invalid" and reason in found["reasons"]


def test_a_stream_is_counted_from_its_first_chunk_and_each_by_itself() -> None:
    later = [one for one in LINES if not isinstance(one, Chunk) or one.index > 3]
    second = [replace(one, stream=1) for one in LINES if isinstance(one, Chunk | Frame)]
    assert list(lacking(recorded([*later, *second], run=with_run(scenario="turns", warm_up_chunks=0)))) == []
    assert list(lacking(recorded([*LINES, *second[:3], *second[5:]]))) == [
        "2 chunks of stream 1 are missing; the first: chunk 3"
    ]


def test_a_rendered_file_has_chunks_alone() -> None:
    chunks = [one for one in LINES if isinstance(one, Chunk)]
    assert list(lacking(recorded(chunks, run=with_run(scenario="file")))) == []
    assert len(list(lacking(recorded([*chunks[:4], *chunks[5:]], run=with_run(scenario="file"))))) == 1


def watched(slots: Iterable[int], *, lost: range = range(0)) -> list[Any]:
    """Return what the recorder writes of a real playout's pictures and events; of the lost ones it is told nothing."""
    lines: list[Any] = []
    recorder = Recorder(lines.append, lambda: 0.0)
    playout = Playout(
        FPS, REST, on_event=lambda event: recorder.on_event({**event, "at_s": 0.0, "media_s": event["at_s"]})
    )
    for slot in slots:
        shown = playout.at(slot / FPS)
        told = {"media_s": shown.media_s, "due_s": shown.media_s, "kind": shown.kind, "utterance": None, "index": 0}
        if slot not in lost:
            recorder.on_shown(SimpleNamespace(**told, lateness_s=0.0, frames=None))  # type: ignore[arg-type]
    return lines


def test_a_pause_of_the_machine_that_the_runtime_tells_is_no_gap() -> None:
    """Asleep for a minute, twice; of the frames that a slow viewer lost in between, each has a line."""
    lines = watched((*range(20), *range(1500, 1520), *range(1540, 1560), *range(3000, 3010)))
    assert [one.code for one in lines if isinstance(one, Event)] == ["S_RESYNC"] * 2
    assert list(lacking(recorded(lines))) == []
    untold = [one for one in lines if not isinstance(one, Event)]
    (reason,) = lacking(recorded(untold))
    assert reason.startswith(f"{1480 + 1440} frames of stream 0 are missing"), "negative control"


def test_a_pause_explains_no_more_than_its_own_length() -> None:
    shown = [Frame(slot / 25, slot / 25, slot / 25, "rest") for slot in (*range(20), *range(200, 220))]
    pause = Event("resync", "S_RESYNC", 0.0, {"media_s": 200 / 25, "length_s": 170 / 25})
    (reason,) = lacking(recorded([*shown, pause]))
    assert reason.startswith("10 frames of stream 0 are missing")
    whole = Event("resync", "S_RESYNC", 0.0, {"media_s": 200 / 25, "length_s": 180 / 25})
    assert list(lacking(recorded([*shown, whole]))) == []


def test_a_viewer_that_stood_still_for_longer_than_a_pause_is_a_gap() -> None:
    """The recorder writes no lines for it, and the runtime tells of no pause: the frames were due."""
    (reason,) = lacking(recorded(watched(range(100), lost=range(20, 80))))
    assert reason.startswith("60 frames of stream 0 are missing")
    assert list(lacking(recorded(watched(range(100), lost=range(20, 60))))) == [], "fewer are told as never shown"
