# SPDX-License-Identifier: Apache-2.0
"""A chunk that could be shown piece by piece: when each was due, and what is no chunk."""

from dataclasses import replace
from typing import Any

import pytest

from edgereels.benchmarks.latency_measures import figures
from edgereels.benchmarks.latency_pieces import are_sound, deadlines, lateness_s, pieces_of
from edgereels.benchmarks.latency_trace import Chunk
from edgereels.benchmarks.latency_validity import validity

from .latency_traces import FPS, chunks_of, lines_of, recorded

WHOLE: Chunk = chunks_of([0.5])[0]
LINES = lines_of([0.5] * 4)
CUT: Chunk = replace(WHOLE, pieces=[[4, WHOLE.start_s + 0.2], [16, WHOLE.ready_s]])


def test_a_piece_is_due_when_the_frames_before_it_end() -> None:
    assert deadlines(CUT, fps=FPS) == [(WHOLE.start_s + 0.2, WHOLE.due_s), (WHOLE.ready_s, WHOLE.due_s + 4 / FPS)]
    assert pieces_of(WHOLE) == [(WHOLE.ready_s, 20)]


def test_a_chunk_is_as_late_as_its_latest_piece() -> None:
    tight = replace(CUT, due_s=WHOLE.start_s + 0.3)
    assert lateness_s(tight, fps=FPS) == pytest.approx(0.5 - 0.3 - 4 / FPS)
    assert lateness_s(replace(tight, pieces=[]), fps=FPS) == pytest.approx(0.2), (
        "whole, it would have been late by more"
    )
    assert lateness_s(replace(CUT, due_s=WHOLE.start_s + 0.4), fps=FPS) < 0
    assert lateness_s(replace(CUT, due_s=WHOLE.start_s + 0.1), fps=FPS) == pytest.approx(0.5 - 0.1 - 4 / FPS)


@pytest.mark.parametrize(
    "pieces",
    [
        [[4, WHOLE.start_s + 0.2], [15, WHOLE.ready_s]],  # a frame is missing
        [[4, WHOLE.start_s + 0.2], [16, WHOLE.ready_s - 0.1]],  # it wasn't ready with its last piece
        [[4, WHOLE.ready_s], [16, WHOLE.start_s + 0.2]],  # backwards
        [[4, WHOLE.start_s - 0.2], [16, WHOLE.ready_s]],  # before work began
        [[0, WHOLE.start_s + 0.2], [20, WHOLE.ready_s]],  # of nothing
    ],
)
def test_pieces_that_are_not_the_chunk_void_a_report(pieces: Any) -> None:
    wrong = replace(CUT, pieces=pieces)
    assert are_sound(CUT) and are_sound(WHOLE) and not are_sound(wrong)
    lines = [replace(line, pieces=pieces) if isinstance(line, Chunk) and line.index == 2 else line for line in LINES]
    assert [one for one in validity(recorded(lines))["reasons"] if "pieces of 1 chunks don't make up the chunk" in one]
    assert not [one for one in validity(recorded(LINES))["reasons"] if "pieces" in one]


def test_the_speed_that_is_needed_counts_every_piece() -> None:
    """What is due 0.4 s after its sound, and is made in 0.5 s, needs 1.25 times the speed whole, and less in pieces."""

    def needed(pieces: list[list[float]]) -> float:
        chunk = replace(WHOLE, index=2, due_s=WHOLE.intended_s + 0.4, pieces=pieces)
        return figures(recorded([chunk]))["needed_speed"]

    assert needed([]) == pytest.approx(0.5 / 0.4)
    assert needed([[4, WHOLE.start_s + 0.2], [16, WHOLE.ready_s]]) == pytest.approx(0.5 / (0.4 + 4 / FPS))
    assert needed([[4, WHOLE.start_s + 0.45], [16, WHOLE.ready_s]]) == pytest.approx(0.45 / 0.4)
