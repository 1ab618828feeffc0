# SPDX-License-Identifier: Apache-2.0
"""The scenario `file`: a whole clip is rendered into a video as fast as it goes, chunk after chunk: a closed loop.

Nothing is due while a file is rendered. A chunk's due time is when it would be on if the video were played from its
first chunk on, so that `needed_speed` says whether one could watch it while it is made.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..runtime import GRAPH_STAGES, MissingExtraError, __version__
from .latency_first_line import first_line
from .latency_recorder import FPS, SAMPLE_RATE
from .latency_run import Asked, Surroundings
from .latency_trace import Chunk, Turn
from .latency_trace_file import TraceWriter
from .paced_sound import Samples
from .report_folder import TRACE

WARM_UP_S = 2.0
"""Of the clip, rendered once before: engines compile, caches fill."""
NOT_WORK = frozenset({"report", "sink_finish"})
"""Events of a render that are no part of any chunk."""


@dataclass(frozen=True)
class Rendered:
    """What a render told."""

    called_s: float
    """Clock reading when it was asked for."""
    ready: list[tuple[float, int]]
    """Clock reading when each chunk had been written, and the frames written by then."""
    events: list[dict[str, Any]]
    """Lines of its trace, docs/trace.md."""


def run_file(asked: Asked, samples: Samples, folder: Path, around: Surroundings) -> None:
    """Measure a render; write `folder/trace.jsonl`."""
    lines: list[Any] = []
    watch = around.watch(lines.append, now_s=around.clock.now_s)
    watch.contention(before=True)
    around.say("opening the package")
    with around.open_session(asked.package, **asked.session) as session:
        first = _render(asked, session, samples[: round(WARM_UP_S * SAMPLE_RATE)], around)
        watch.contention()
        watch.energy_begins()
        measured = _render(asked, session, samples, around)
        watch.memory()
        watch.contention()
        watch.energy()
        lines += [
            Turn(around.began_s, first.ready[0][0], "cold"),
            Turn(measured.called_s, measured.ready[0][0], "warm"),
        ]
        around.on_engines(session.engine_reports)
        run = first_line(
            "file",
            session=session,
            compute=asked.session.get("compute", "auto"),
            settings=asked.settings(),
            environment=around.environment(),
            graph_stages=list(GRAPH_STAGES),
            clock=around.clock_kind,
            started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
        )
    with TraceWriter(folder / TRACE, run) as writer:
        for line in (*lines, *chunks_of(measured)):
            writer.write(line)


def chunks_of(rendered: Rendered) -> list[Chunk]:
    """Return the chunks of a render, each from where the one before it was written to where it was written itself."""
    work = [event for event in rendered.events if event["event"] not in NOT_WORK and event["end_s"] > event["start_s"]]
    origin_s = _origin_s(rendered.ready, work)
    start_s = origin_s + min((event["start_s"] for event in work), default=0.0)
    first_ready_s, before = rendered.ready[0][0], 0
    made: list[Chunk] = []
    for index, (ready_s, frames) in enumerate(rendered.ready):
        stages: dict[str, float] = {}
        for event in work:
            if start_s <= origin_s + event["start_s"] < ready_s:
                name = event["event"]
                stages[name] = stages.get(name, 0.0) + event["end_s"] - event["start_s"]
        stages["between"] = max(0.0, ready_s - start_s - sum(stages.values()))
        made.append(
            Chunk(
                index=index,
                utterance=0,
                frames=frames - before,
                intended_s=start_s,
                audio_ready_s=start_s,
                start_s=start_s,
                ready_s=ready_s,
                due_s=first_ready_s + before / FPS,
                look_ahead_s=0.0,
                stages=stages,
                waits={},
            )
        )
        start_s, before = ready_s, frames
    return made


def _origin_s(ready: Sequence[tuple[float, int]], work: Sequence[dict[str, Any]]) -> float:
    """Return the clock reading at which a render's own trace counts from 0.

    A chunk is ready when its last event has ended, and the program is told right after: the shortest way from one to
    the other, over all chunks, tells the two clocks' difference.
    """
    written = sorted(event["end_s"] for event in work if event["event"] == "sink")
    ends = written if len(written) == len(ready) else [max(event["end_s"] for event in work)]
    return min(at - end for (at, _frames), end in zip(ready[-len(ends) :], ends, strict=True))


def _render(asked: Asked, session: Any, samples: Samples, around: Surroundings) -> Rendered:
    """Render into a folder that is thrown away; without a video where nothing here writes one."""
    ready: list[tuple[float, int]] = []

    def note(done: int, total: int) -> None:
        ready.append((around.clock.now_s(), done))
        around.say(f"file: {done}/{total} frames")

    live_only = ("latency",)
    arguments = {name: value for name, value in asked.live.items() if name not in live_only}
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        called_s = around.clock.now_s()
        try:
            session.render(audio=samples, out=Path(folder) / "out.mp4", trace=trace, on_progress=note, **arguments)
        except MissingExtraError:  # raised before any work
            called_s = around.clock.now_s()
            session.render(audio=samples, trace=trace, on_progress=note, **arguments)
        events = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    return Rendered(called_s, ready, events)
