# SPDX-License-Identifier: Apache-2.0
"""What each scenario does, on a session whose every figure is known; and that what goes wrong is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.benchmarks import latency_scenarios
from edgereels.benchmarks.latency_gaps import lacking
from edgereels.benchmarks.latency_report import NEAREST, report_of
from edgereels.benchmarks.latency_run import Asked, Surroundings, run_live
from edgereels.benchmarks.latency_scenarios import NoAnswerError, Plan, Stage
from edgereels.benchmarks.latency_streams import run_multi
from edgereels.benchmarks.latency_trace_file import Recorded, read_trace

from .fake_session import FakeSession, Fault, QuietWatch, drive
from .virtual_clock import VirtualClock

SPEECH = np.random.default_rng(0).standard_normal(16000 * 4).astype(np.float32) * 0.1
LOOK_AHEAD_S = 14 / 25
"""Of the fake session, from the first sound to all that its first chunk needs."""


def measure(
    folder: Path, plan: Plan, *, work_s: float = 0.2, fault: Fault | None = None, waiting: int = 3
) -> tuple[Recorded, dict[str, Any]]:
    clock = VirtualClock(100.0, patience_s=2.0)
    around = Surroundings(
        open_session=lambda *_package, **_asked: FakeSession(clock, work_s=work_s, fault=fault),
        clock=clock,
        clock_kind="virtual",
        watch=QuietWatch,
        nearest=lambda *_session, **_asked: "something slower",
        began_s=99.0,
    )
    run = run_multi if plan.scenario == "multi" else run_live
    asked = Asked(plan, streams=2)
    drive(clock, lambda: run(asked, SPEECH, folder, around), waiting=waiting)
    recorded = read_trace(folder / "trace.jsonl")
    assert list(lacking(recorded)) == [], "whatever goes wrong, no line is missing"
    return recorded, report_of(recorded)


def test_a_fast_session_is_live_and_nothing_it_did_is_doubted(tmp_path: Path) -> None:
    recorded, report = measure(tmp_path, Plan("paced", duration_s=8.0))
    assert report["verdict"]["live"] is True, report["verdict"]
    assert report["validity"]["status"] == "quick", report["validity"]
    assert report["figures"]["misses"]["hits"] == 0
    assert report["figures"]["missed_frames"]["hits"] == 0
    assert sum(block.samples for block in recorded.sound_blocks) == 8 * 16000
    assert sum(chunk.frames for chunk in recorded.chunks) == 8 * 25


def test_blocks_of_20_ms_come_by_an_absolute_schedule(tmp_path: Path) -> None:
    recorded, _report = measure(tmp_path, Plan("paced", duration_s=2.0))
    intended = [block.intended_s for block in recorded.sound_blocks]
    assert np.allclose(np.diff(intended), 0.02, atol=1e-6)
    assert {block.samples for block in recorded.sound_blocks} == {320}
    assert all(block.arrived_s >= block.intended_s - 1e-6 for block in recorded.sound_blocks)


def test_a_stall_of_two_seconds_appears_as_the_misses_and_the_lateness_that_it_caused(tmp_path: Path) -> None:
    """The fake moves the rest of its utterance after a stall, as the real session does; lateness is counted on."""
    _recorded, even = measure(tmp_path, Plan("paced", duration_s=8.0))
    (tmp_path / "stalled").mkdir()
    recorded, report = measure(tmp_path / "stalled", Plan("paced", duration_s=8.0), fault=Fault(stall_s={6: 2.0}))
    figures = report["figures"]
    assert even["figures"]["misses"]["hits"] == 0
    # 0.32 s of allowance, 0.28 s of every 0.48 s chunk to spare: chunk 6 is 1.88 s late, 12 the last that is late
    assert 6 <= figures["misses"]["hits"] <= 8
    assert figures["chunk_lateness_ms"]["max"] == pytest.approx(1880, abs=50)
    assert figures["chunk_latency_ms"]["max"] == pytest.approx(2200, abs=50)
    assert figures["stalls"]["count"] == 1
    assert figures["stalls"]["longest_ms"] == pytest.approx(1880, abs=90)
    late = [frame for frame in recorded.frames if frame.shown_s is not None and frame.shown_s - frame.due_s > 1.5]
    assert len(late) > 80, "frames that follow a stall are late by the plan, wherever the session has moved them"
    assert report["verdict"]["live"] is False
    assert report["verdict"]["sentence"].endswith("nearest live setting: something slower")


def test_what_would_be_live_is_sought_also_where_frames_were_only_shown_late(tmp_path: Path) -> None:
    recorded, report = measure(tmp_path, Plan("paced", duration_s=4.0), fault=Fault(screen_s=0.045))
    figures = report["figures"]
    assert figures["misses"]["hits"] == 0 and not any(frame.kind == "held" for frame in recorded.frames)
    assert figures["missed_frames"]["hits"] == figures["missed_frames"]["n"] > 50
    assert report["verdict"]["sentence"].endswith("nearest live setting: something slower")


def test_where_the_verdict_is_live_nothing_is_sought(tmp_path: Path) -> None:
    recorded, report = measure(tmp_path, Plan("paced", duration_s=4.0))
    assert report["verdict"]["live"] is True
    assert not [event for event in recorded.events if event.name == NEAREST]


def test_a_session_that_peeks_is_caught(tmp_path: Path) -> None:
    _recorded, report = measure(tmp_path, Plan("paced", duration_s=4.0), fault=Fault(peek_from=3))
    assert report["validity"]["status"] == "invalid"
    assert any(
        "made from sound that had not arrived; the first: chunk 3" in one for one in report["validity"]["reasons"]
    )


def test_turns_are_timed_cold_warm_and_from_rest(tmp_path: Path) -> None:
    plan = Plan("turns", duration_s=1000.0, turns=4, utterance_s=1.0, push_speed=5.0)
    recorded, report = measure(tmp_path, plan, waiting=2)
    kinds = [turn.kind for turn in recorded.turns]
    assert kinds == ["cold", "warm", "turn", "turn", "turn", "turn"]
    waits = [turn.first_moving_frame_s - turn.first_sound_s for turn in recorded.turns]
    first_pushed_s = LOOK_AHEAD_S / 5 + 0.32  # by then all of the first chunk's sound was pushed; then the allowance
    assert waits[0] > 1.0 + first_pushed_s - 0.05, "cold counts from the beginning of the process"
    assert all(wait == pytest.approx(first_pushed_s, abs=0.07) for wait in waits[2:])
    assert report["figures"]["first_frame_ms"]["turn"]["n"] == 4
    assert recorded.turns[3].look_ahead_s == pytest.approx(LOOK_AHEAD_S / 5 - 0.004, abs=0.005)
    assert report["run"]["settings"]["push_speed"] == 5.0


def test_a_microphone_pays_the_look_ahead_in_full(tmp_path: Path) -> None:
    recorded, _report = measure(tmp_path, Plan("turns", 1000.0, turns=1, utterance_s=1.0, push_speed=1.0), waiting=2)
    assert recorded.turns[-1].look_ahead_s == pytest.approx(LOOK_AHEAD_S - 0.02, abs=0.005)


def test_soak_repeats_the_clip_with_pauses(tmp_path: Path) -> None:
    recorded, report = measure(tmp_path, Plan("soak", duration_s=10.0, pause_s=0.5))
    assert {chunk.utterance for chunk in recorded.chunks} == {0, 1, 2}  # 4 s, 4 s, 2 s
    gaps = np.diff([block.intended_s for block in recorded.sound_blocks])
    assert sorted(round(float(gap), 3) for gap in gaps)[-3:] == [0.02, 0.52, 0.52]
    assert report["verdict"]["live"] is True


def test_lateness_is_counted_across_utterances(tmp_path: Path) -> None:
    """What a session owes from one utterance makes the next one late: the speaker doesn't wait for it."""
    _recorded, report = measure(
        tmp_path, Plan("soak", duration_s=8.0, pause_s=0.1), fault=Fault(stall_s={8: 3.0}), work_s=0.4
    )
    late = [chunk for chunk in _recorded.chunks if chunk.utterance == 1 and chunk.ready_s > chunk.due_s]
    assert late, report["figures"]["misses"]


def test_streams_are_raised_until_one_misses(tmp_path: Path) -> None:
    recorded, report = measure(tmp_path, Plan("multi", duration_s=3.0), waiting=3)
    (tried,) = [event.details["tried"] for event in recorded.events if event.name == "streams_tried"]
    assert [(one["streams"], one["missed"]) for one in tried] == [(1, 0), (2, 0)]
    assert report["run"]["streams"] == 2
    assert report["verdict"]["sentence"].startswith("2 streams live at 25 fps")
    assert {chunk.stream for chunk in recorded.chunks} == {0, 1}
    assert (tmp_path / "tried" / "streams-1.jsonl").exists()


def test_the_first_number_of_streams_that_misses_is_not_reported_as_live(tmp_path: Path) -> None:
    recorded, report = measure(tmp_path, Plan("multi", duration_s=3.0), work_s=0.7)
    (tried,) = [event.details["tried"] for event in recorded.events if event.name == "streams_tried"]
    assert len(tried) == 1 and tried[0]["missed"] > 0
    assert report["verdict"]["live"] is False


def test_streams_whose_frames_are_only_shown_late_are_not_the_most_that_are_live(tmp_path: Path) -> None:
    recorded, report = measure(tmp_path, Plan("multi", duration_s=3.0), fault=Fault(screen_s=0.045))
    (tried,) = [event.details["tried"] for event in recorded.events if event.name == "streams_tried"]
    assert [(one["streams"], one["missed"], one["live"]) for one in tried] == [(1, 0, False)]
    assert report["verdict"]["sentence"].endswith("nearest live setting: something slower")


def test_a_session_that_fails_leaves_a_whole_trace_that_says_so(tmp_path: Path) -> None:
    recorded, report = measure(tmp_path, Plan("paced", duration_s=6.0), fault=Fault(fails_at=4))
    assert len(recorded.chunks) == 4
    assert report["validity"]["status"] == "invalid"
    assert any("failed before the end" in reason for reason in report["validity"]["reasons"])


def test_an_error_of_another_kind_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_more: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(Stage, "rest", refuse)
    with pytest.raises(ValueError, match="no such thing"):
        measure(tmp_path, Plan("paced", duration_s=1.0))
    assert not (tmp_path / "trace.jsonl").exists()


def test_a_session_that_never_comes_to_rest_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_scenarios, "MOST_WAIT_S", 5.0)
    fault = Fault(stall_s={2: 10_000.0})
    with pytest.raises(NoAnswerError, match="nothing new was shown for 5 s"):
        measure(tmp_path, Plan("paced", duration_s=2.0), fault=fault)
