# SPDX-License-Identifier: Apache-2.0
"""The scenario `multi`: one stream, then two at once, … until they are not live."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .latency_recorder import TraceLog
from .latency_run import Asked, RunTo, Surroundings, add_lines, nearest_of, opened, run_streams, was_live
from .latency_trace import Contention, Event
from .paced_sound import Samples
from .report_folder import TRACE

TRIED = "tried"
"""Folder with a trace per number of streams."""


def run_multi(asked: Asked, samples: Samples, folder: Path, around: Surroundings) -> None:
    """Raise the number of streams until they are not live; `folder/trace.jsonl` is that of the most that were.

    Each stream has a session, a speaker and a viewer of its own. The traces of all numbers are kept in `folder/tried`.
    """
    tried: list[dict[str, Any]] = []
    (folder / TRIED).mkdir()
    with ExitStack() as stack:
        sessions, found = list[Any](), list[Event]()
        before: Contention | None = None
        while len(sessions) < asked.streams:
            log = TraceLog()
            watch = around.watch(log.write, now_s=around.clock.now_s)
            if before is None:
                before = watch.contention(before=True)
            else:  # the minute before was ours
                log.write(before)
            sessions.append(stack.enter_context(opened(asked, around)))
            count = len(sessions)
            run = RunTo(folder / TRIED / f"streams-{count}.jsonl", log, watch, around)
            stages = run_streams(asked, sessions, samples, run)
            tallies = [stage.recorder.tally for stage in stages]
            missed, chunks = sum(one.missed + one.lowered for one in tallies), sum(one.chunks for one in tallies)
            live = was_live(run.path)
            tried.append({"streams": count, "missed": missed, "chunks": chunks, "live": live})
            if live is False:
                found += nearest_of(asked, sessions[0], stages[0], run) if count == 1 else []
                break
    best = max((one["streams"] for one in tried if one["live"] is not False), default=1)
    found.append(Event("streams_tried", None, around.clock.now_s(), {"tried": tried}))
    add_lines(folder / TRIED / f"streams-{best}.jsonl", folder / TRACE, found)
