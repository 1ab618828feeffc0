# SPDX-License-Identifier: Apache-2.0
"""The report follows its schema, and its sentence says what happened."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgereels.benchmarks.latency_report import NEAREST, QUALITY, report_of, write_report
from edgereels.benchmarks.latency_trace import Event, Frame, Turn

from .json_schema import faults
from .latency_traces import lines_of, recorded, with_run

SCHEMA = json.loads((Path(__file__).parents[1] / "docs/latency_report.schema.json").read_text(encoding="utf-8"))
EVEN = lines_of([0.4] * 70)


def verdict_of(lines: list[Any], **run: Any) -> dict[str, Any]:
    return report_of(recorded(lines, run=with_run(**run)))["verdict"]


@pytest.mark.parametrize("lines", [EVEN, [], lines_of([0.4, 0.4, 3.0])], ids=["even", "empty", "short"])
def test_a_report_follows_its_schema(lines: list[Any], tmp_path: Path) -> None:
    write_report(tmp_path / "report.json", report_of(recorded(lines)))
    assert not (tmp_path / "report.json.partial").exists()
    assert list(faults(json.loads((tmp_path / "report.json").read_text(encoding="utf-8")), SCHEMA)) == []


def test_the_schema_refuses_what_is_no_report() -> None:
    report = report_of(recorded(EVEN))
    damaged = {**report, "verdict": {**report["verdict"], "live": "yes"}, "more": 1, "trace_sha256": "short"}
    del damaged["counts"]
    found = list(faults(damaged, SCHEMA))
    assert [one.split(":")[0] for one in found] == ["", ".verdict.live", ".trace_sha256", ""]


def test_a_live_machine_hears_what_it_has_to_spare() -> None:
    found = verdict_of(EVEN)
    assert (found["live"], found["sentence"]) == (True, "live at 25 fps on this machine with 50 % to spare")


def test_a_slow_machine_hears_what_it_needs_and_what_would_do() -> None:
    slow = lines_of([1.0] * 300)
    found = verdict_of([*slow, Event(NEAREST, None, 9.0, {"setting": "window 13, 2 steps"})])
    assert found["live"] is False
    assert found["sentence"] == "not live: needs 1.25×; nearest live setting: window 13, 2 steps"
    assert verdict_of(slow)["sentence"].endswith("nearest live setting: not sought")


def test_a_fast_machine_that_stalled_is_not_live_and_not_called_slow() -> None:
    found = verdict_of(lines_of([*[0.3] * 30, 2.3, *[0.3] * 30]))
    assert found["live"] is False
    assert found["sentence"].startswith(
        "not live: 3 of 59 chunks late, by up to 1.50 s; in its slowest place it needs 2.8"
    )


def test_a_picture_that_stood_is_not_live_even_if_every_chunk_was_there() -> None:
    held = [Frame(one.media_s, one.due_s, one.shown_s, "held") if isinstance(one, Frame) else one for one in EVEN]
    assert "the picture still stood once" in verdict_of(held)["sentence"]


def test_lowered_quality_is_told() -> None:
    lowered = verdict_of([*EVEN, Event(QUALITY, "S_QUALITY", 5.0, {"is_better": False})])
    assert lowered["live"] is False
    assert "quality was lowered once" in lowered["sentence"]
    assert verdict_of([*EVEN, Event(QUALITY, "S_QUALITY", 5.0, {"is_better": True})])["live"] is True


def test_turns_are_told_with_and_without_look_ahead() -> None:
    turns = [Turn(float(i), i + 0.4, "turn", 0.25) for i in range(11)]
    told = verdict_of([*EVEN, *turns], scenario="turns")["sentence"]
    assert told.endswith(
        "400 ms after the first sound (median of 11: 250 ms of look-ahead by construction, 150 ms beyond it)"
    )


def test_a_file_is_not_asked_whether_it_is_live() -> None:
    found = verdict_of(EVEN, scenario="file")
    assert (found["live"], found["sentence"]) == (None, "a second of video takes 0.50 s of work on this machine")


def test_nothing_measured_is_not_live() -> None:
    assert verdict_of([])["live"] is None


def test_one_frame_that_nobody_saw_is_a_stall_of_its_own_and_not_live() -> None:
    frames = [one for one in EVEN if isinstance(one, Frame)]
    lost = frames[len(frames) // 2]
    lines = [Frame(one.media_s, one.due_s, None, one.kind) if one is lost else one for one in EVEN]
    found = report_of(recorded(lines))
    hits, stalls = found["figures"]["missed_frames"]["hits"], found["figures"]["stalls"]["count"]
    assert (hits, stalls) == (1, 1) and found["verdict"]["live"] is False
    assert "the picture still stood once" in found["verdict"]["sentence"]
    assert verdict_of(EVEN)["live"] is True
