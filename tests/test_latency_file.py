# SPDX-License-Identifier: Apache-2.0
"""A render's own trace becomes chunks whose times add up."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgereels.benchmarks.latency_file import Rendered, chunks_of, run_file
from edgereels.benchmarks.latency_measures import unaccounted
from edgereels.benchmarks.latency_report import report_of
from edgereels.benchmarks.latency_run import Asked, Surroundings
from edgereels.benchmarks.latency_scenarios import Plan
from edgereels.benchmarks.latency_trace_file import read_trace
from edgereels.runtime import MissingExtraError

from .fake_session import FakeSession, QuietWatch
from .virtual_clock import VirtualClock


def span(event: str, start_s: float, end_s: float, **fields: Any) -> dict[str, Any]:
    return {"event": event, "start_s": start_s, "end_s": end_s, **fields}


EVENTS = [
    span("freeze", 0.0, 0.0),
    span("audio_encode", 0.5, 0.7),
    span("dit", 0.7, 1.2),
    span("vae_decode", 1.2, 1.5),
    span("sink", 1.5, 1.6, chunk=0),
    span("dit", 1.6, 2.0),
    span("sink", 2.0, 2.1, chunk=1),
    span("sink_finish", 2.1, 2.5),
    span("report", 2.5, 2.5),
]
RENDERED = Rendered(100.0, [(101.601, 24), (102.102, 40)], EVENTS)


def test_chunks_follow_each_other_and_their_times_add_up() -> None:
    first, second = chunks_of(RENDERED)
    assert (first.frames, second.frames) == (24, 16)
    assert first.start_s == pytest.approx(100.501), "the trace counts from 100.001 on the program's clock"
    assert second.start_s == first.ready_s == 101.601
    assert first.stages["dit"] == pytest.approx(0.5)
    assert second.stages["dit"] == pytest.approx(0.4)
    assert "sink_finish" not in second.stages
    assert max(map(unaccounted, (first, second))) < 1e-9


def test_a_chunk_is_due_when_one_who_watches_from_the_first_would_need_it() -> None:
    first, second = chunks_of(RENDERED)
    assert first.due_s == first.ready_s
    assert second.due_s == pytest.approx(first.ready_s + 24 / 25)


def test_work_that_is_told_twice_does_not_add_up() -> None:
    doubled = Rendered(100.0, RENDERED.ready, [*EVENTS, span("canvas", 0.7, 1.2), span("canvas", 0.6, 1.3)])
    assert unaccounted(chunks_of(doubled)[0]) > 0.02


class FakeRender(FakeSession):
    writes_video = True

    def render(self, *, audio: Any, trace: Path, on_progress: Any, out: Path | None = None, **asked: Any) -> None:
        if out is not None and not self.writes_video:
            raise MissingExtraError("av", extra="video", purpose="a video")
        assert "latency" not in asked
        start_s, frames = self._clock.now_s(), len(audio) // 640
        events: list[dict[str, Any]] = []
        for done in range(12, frames + 1, 12):
            now_s = self._clock.now_s() - start_s
            events.append(span("dit", now_s, now_s + 0.24))
            events += [span("sink", now_s + 0.24, now_s + 0.24, chunk=0)] if out is not None else []
            self._clock.advance(0.24)  # type: ignore[attr-defined]
            on_progress(done, frames)
        trace.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


@pytest.mark.parametrize("writes_video", [True, False])
def test_a_file_is_measured_warm_and_told_as_what_it_took(tmp_path: Path, writes_video: bool) -> None:
    clock = VirtualClock(10.0)
    session = FakeRender(clock)
    session.writes_video = writes_video
    around = Surroundings(
        open_session=lambda *_package, **_asked: session,
        clock=clock,
        clock_kind="virtual",
        watch=QuietWatch,
        began_s=9.0,
    )
    asked = Asked(Plan("file", duration_s=float("inf")), live={"latency": "low", "canvas": False})
    run_file(asked, np.zeros(16000 * 6, np.float32), tmp_path, around)
    report = report_of(read_trace(tmp_path / "trace.jsonl"))
    assert report["verdict"]["sentence"] == "a second of video takes 0.50 s of work on this machine"
    assert report["counts"]["chunks"] == 12, "the warm-up is not in it"
    assert report["figures"]["first_frame_ms"]["cold"]["n"] == report["figures"]["first_frame_ms"]["warm"]["n"] == 1
    assert "latency" not in report["run"]["settings"]
    assert report["environment"]["build"] == around.build
    assert report["run"]["settings"]["duration_s"] is None
    assert SimpleNamespace(**report["figures"]).unaccounted_share < 0.02
