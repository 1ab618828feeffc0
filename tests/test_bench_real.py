# SPDX-License-Identifier: Apache-2.0
"""bench on a real engine and the embedded avatar: the whole way, and a stall that was put into it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgereels.benchmarks.latency_run import Asked, Surroundings, run_live
from edgereels.benchmarks.latency_scenarios import Plan
from edgereels.benchmarks.latency_trace_file import Recorded, read_trace
from edgereels.benchmarks.latency_verify import verify
from edgereels.benchmarks.report_folder import write_reports
from edgereels.runtime import AvatarSession, load_speech

pytestmark = pytest.mark.slow
pytest.importorskip("openvino")

SPEECH = Path(__file__).parents[1] / "runtime/embedded/demo.wav"
STALL_S = 2.0


def measure(folder: Path, plan: Plan, *, observe: Callable[..., None] | None = None) -> tuple[Recorded, dict[str, Any]]:
    def opened(package: str, **asked: Any) -> AvatarSession:
        return AvatarSession.open(package, observe=observe, **asked)

    around = Surroundings(open_session=opened, nearest=lambda *_session, **_asked: None)
    asked = Asked(plan, session={"device": "openvino:CPU"}, live={"latency": "low", "canvas": False})
    run_live(asked, load_speech(SPEECH), folder, around)
    report = write_reports(folder)
    verify(folder / "trace.jsonl", folder / "report.json")
    return read_trace(folder / "trace.jsonl"), report


def test_a_real_stream_accounts_for_all_of_its_time_and_never_peeks(tmp_path: Path) -> None:
    recorded, report = measure(tmp_path, Plan("paced", duration_s=6.0))
    assert sum(block.samples for block in recorded.sound_blocks) == 6 * 16000
    assert 6 * 25 <= sum(chunk.frames for chunk in recorded.chunks) <= 6 * 25 + 2 * 81, "speech, and a way back to rest"
    assert report["figures"]["unaccounted_share"] < 0.02
    assert not [reason for reason in report["validity"]["reasons"] if "sound" in reason or "length" in reason]
    assert report["figures"]["av_offset_ms"]["p50"]["value"] == pytest.approx(0.0, abs=20.0)
    assert report["figures"]["first_frame_ms"]["turn"]["n"] == 1


def test_turns_in_a_row_have_one_first_frame_each(tmp_path: Path) -> None:
    recorded, _report = measure(tmp_path, Plan("turns", duration_s=100.0, turns=2, utterance_s=0.6))
    assert [turn.kind for turn in recorded.turns] == ["cold", "warm", "turn", "turn"]
    assert all(turn.first_moving_frame_s > turn.first_sound_s for turn in recorded.turns)
    assert {round(turn.look_ahead_s, 3) for turn in recorded.turns[2:]} <= {0.108, 0.116}


def test_a_stall_that_was_put_into_an_engine_appears_as_the_misses_that_it_caused(tmp_path: Path) -> None:
    stalled_at_s = list[float]()
    armed_s = time.perf_counter() + 1e9

    def observe(graph: str, *_values: Any) -> None:
        nonlocal armed_s
        if graph.startswith("audio") and threading.current_thread().name == "edgereels-generator":
            armed_s = min(armed_s, time.perf_counter() + 2.5)
            if time.perf_counter() > armed_s and not stalled_at_s:
                stalled_at_s.append(time.perf_counter())
                time.sleep(STALL_S)

    recorded, report = measure(tmp_path, Plan("paced", duration_s=6.0), observe=observe)
    assert len(stalled_at_s) == 1
    (stalled,) = [chunk for chunk in recorded.chunks if chunk.start_s <= stalled_at_s[0] < chunk.ready_s]
    assert stalled.ready_s - stalled.start_s > STALL_S
    assert stalled.ready_s - stalled.due_s > STALL_S - 1.5, "the allowance took some of it"
    after = [chunk for chunk in recorded.chunks if stalled.index < chunk.index <= stalled.index + 1]
    assert all(chunk.ready_s - chunk.intended_s > 1.0 for chunk in after), "what it made wait was late as well"
    assert report["figures"]["misses"]["hits"] >= 2
    assert report["figures"]["stalls"]["longest_ms"] > 500
    assert report["verdict"]["live"] is False
