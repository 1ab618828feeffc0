# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from edgereels.runtime.timing import Trace


def ticking() -> Trace:
    readings = iter(range(100, 200))
    return Trace(clock=lambda: float(next(readings)))


def test_spans_count_from_the_first_reading() -> None:
    trace = ticking()
    with trace.span("dit", step=0):
        pass
    assert trace.events == [{"event": "dit", "start_s": 0.0, "end_s": 1.0, "step": 0}]


def test_a_span_is_recorded_even_when_its_body_fails() -> None:
    trace = ticking()
    with pytest.raises(RuntimeError), trace.span("dit"):
        raise RuntimeError
    assert trace.total_s("dit") == 1.0


def test_a_trace_is_one_json_object_a_line(tmp_path: Path) -> None:
    trace = ticking()
    trace.note("engine", graph="dit")
    trace.note("engine", graph="finish")
    trace.write(tmp_path / "t.jsonl")
    lines = (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["graph"] for line in lines] == ["dit", "finish"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_trace_that_keeps_nothing_still_knows_when_things_began_and_ended() -> None:
    """What a stream of hours needs; events go to a file as they end."""
    seen: list[str] = []
    trace = ticking()
    trace.keep, trace.on_event = False, lambda entry: seen.append(entry["event"])
    for _ in range(3):
        with trace.span("dit"):
            pass
    assert not trace.events
    assert seen == ["dit"] * 3
    assert (trace.first_start_s, trace.last_end_s) == ({"dit": 0.0}, 5.0)
