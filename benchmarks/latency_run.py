# SPDX-License-Identifier: Apache-2.0
"""Runs a scenario against live sessions and writes its trace: opens, records, watches, seals."""

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..runtime import (
    GRAPH_STAGES,
    AvatarSession,
    Clock,
    EngineReport,
    MonotonicClock,
    Stopped,
    __version__,
    old_objects_left_alone,
    to_callback,
)
from .build_digest import build_digest
from .latency_first_line import first_line
from .latency_nearest import nearest_setting
from .latency_recorder import SAMPLE_RATE, Recorder, TraceLog
from .latency_report import NEAREST, report_of
from .latency_scenarios import OWN_SETTINGS, Plan, Stage, attend, first_words, play
from .latency_trace import Event, Line
from .latency_trace_file import TraceWriter, read_trace
from .latency_validity import ASKED_TO_END
from .machine_watch import MachineWatch, environment, process_began_s
from .paced_sound import BLOCK_S, Clip, Samples
from .report_folder import TRACE

WARM_UP_CHUNKS = 2
"""Of each stream, left out of all figures but their own."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What is measured."""

    plan: Plan
    """What is said."""
    package: str = "default"
    """Its folder, or "default"."""
    session: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of `AvatarSession.open`: device, threads, compute, place, allow_fallback."""
    live: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of `AvatarSession.live`: latency, avatar, canvas, seed."""
    audio: str = ""
    """Name of the sound file, for the report."""
    streams: int = 8
    """At most so many are tried in `multi`."""

    def settings(self) -> dict[str, Any]:
        """Return everything as a report says it; of paths the name alone."""
        own = ("duration_s", *OWN_SETTINGS.get(self.plan.scenario, ()))
        given: dict[str, Any] = {"package": self.package, **self.session, **self.live}
        given |= {name: getattr(self.plan, name) for name in own}
        for name in ("on_compile", *(("latency",) if self.plan.scenario == "file" else ())):
            given.pop(name, None)
        for name in ("package", "avatar"):
            given[name] = Path(given[name]).name if given.get(name) else None
        if math.isinf(self.plan.duration_s):
            given["duration_s"] = None
        return given | {"audio": self.audio, "sample_rate": SAMPLE_RATE, "block_s": BLOCK_S}


@dataclass(frozen=True)
class Surroundings:
    """What a run is done with; a test has others."""

    open_session: Callable[..., Any] = AvatarSession.open
    """Opens a session."""
    clock: Clock = field(default_factory=MonotonicClock)
    """The session's."""
    clock_kind: str = "monotonic"
    """As the trace calls it."""
    watch: Callable[..., MachineWatch] = MachineWatch
    """Looks at the machine."""
    nearest: Callable[..., str | None] = nearest_setting
    """Says what would be live where something was not; arguments as of `nearest_setting`."""
    say: Say = lambda _text: None
    """Shows progress."""
    on_engines: Callable[[Mapping[str, EngineReport]], None] = lambda _engines: None
    """Told of every session, once its engines are open, what was asked of them and what was got."""
    began_s: float = field(default_factory=process_began_s)
    """When the process began."""
    build: str = field(default_factory=build_digest)
    """Which build measures: read before anything runs."""

    def environment(self) -> dict[str, Any]:
        """Return what a report says of the machine and of this build."""
        return environment() | {"build": self.build}


def run_live(asked: Asked, samples: Samples, folder: Path, around: Surroundings) -> None:
    """Measure one session; write `folder/trace.jsonl`.

    Raises:
        Stopped: the process was asked to end; the trace is whole, up to there.
    """
    log = TraceLog()
    watch = around.watch(log.write, now_s=around.clock.now_s)
    watch.contention(before=True)
    with opened(asked, around) as session:
        run = RunTo(folder / TRACE, log, watch, around)
        if asked.plan.scenario == "turns":
            stage = _run_turns(asked, session, samples, run)
        else:
            (stage,) = run_streams(asked, [session], samples, run)
        found = nearest_of(asked, session, stage, run)
    if found:
        add_lines(folder / TRACE, folder / TRACE, found)


@dataclass(frozen=True)
class RunTo:
    """Where a run goes to, and what watches it."""

    path: Path
    """Of the trace."""
    log: TraceLog
    """Takes lines before there is a file."""
    watch: MachineWatch
    """Writes into the same log."""
    around: Surroundings
    """Clock, progress."""


@contextmanager
def opened(asked: Asked, around: Surroundings) -> Iterator[Any]:
    """Open a session."""
    around.say("opening the package")
    with around.open_session(asked.package, **asked.session) as session:
        yield session


@contextmanager
def _stage(asked: Asked, session: Any, run: RunTo, *, stream: int, stop: threading.Event) -> Iterator[Stage]:
    """Run a live stream whose viewer and listeners are a recorder."""
    clock = run.around.clock
    warm_up = 0 if asked.plan.scenario == "turns" else WARM_UP_CHUNKS
    recorder = Recorder(run.log.write, clock.now_s, stream=stream, warm_up_chunks=warm_up)
    with session.live(
        **asked.live,
        outputs=[to_callback(recorder.on_shown)],
        on_event=recorder.on_event,
        on_chunk=recorder.on_chunk,
    ) as live:
        if asked.plan.scenario != "turns":
            recorder.allowance_s = live.latency.allowance_s
        with old_objects_left_alone():
            yield Stage(live, recorder, clock, stop=stop)


@contextmanager
def _writing(asked: Asked, session: Any, stages: list[Stage], run: RunTo) -> Iterator[None]:
    """Write the trace while the body runs; seal it also when the process is asked to end."""
    latency = stages[0].live.latency
    run.around.on_engines(session.engine_reports)
    line = first_line(
        asked.plan.scenario,
        session=session,
        compute=asked.session.get("compute", "auto"),
        settings=asked.settings() | {name: getattr(latency, name) for name in _field_names(latency)},
        environment=run.around.environment(),
        graph_stages=list(GRAPH_STAGES),
        clock=run.around.clock_kind,
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        streams=len(stages),
        warm_up_chunks=0 if asked.plan.scenario == "turns" else WARM_UP_CHUNKS,
    )
    stopped: Stopped | None = None
    with TraceWriter(run.path, line) as writer:
        run.log.begin(writer)
        try:
            yield
        except Stopped as asked_to_end:
            stopped = asked_to_end
            run.log.write(Event(ASKED_TO_END, "S_STOPPED", run.around.clock.now_s()))
        finally:
            run.log.end()
    if stopped is not None:
        raise stopped


def _field_names(latency: Any) -> list[str]:
    return [one.name for one in dataclasses.fields(latency)]


def run_streams(asked: Asked, sessions: list[Any], samples: Samples, run: RunTo) -> list[Stage]:
    """Play the scenario on a stream per session, all at once."""
    stop = threading.Event()
    with ExitStack() as stack:
        stages = [
            stack.enter_context(_stage(asked, session, run, stream=number, stop=stop))
            for number, session in enumerate(sessions)
        ]
        with _writing(asked, sessions[0], stages, run):
            jobs = [_job(asked.plan, stage, Clip(samples)) for stage in stages]
            attend(stages, jobs, watch=run.watch, progress=_progress(asked.plan, stages, run))
        return stages


def _job(plan: Plan, stage: Stage, clip: Clip) -> Callable[[], None]:
    return lambda: play(plan, stage, clip)


def _run_turns(asked: Asked, session: Any, samples: Samples, run: RunTo) -> Stage:
    """Measure the first words of a first and of a second stream, then turns in the second.

    The lines of the first stream wait until the trace begins with the second, whose engines are the same.
    """
    plan, clip, clock = asked.plan, Clip(samples), run.around.clock
    words = {"length_s": plan.utterance_s, "speed": plan.push_speed}
    with _stage(asked, session, run, stream=0, stop=threading.Event()) as cold:
        run.around.say("first words of all")
        first_words(cold, clip, kind="cold", from_s=run.around.began_s, **words)
    asked_s = clock.now_s()
    with _stage(asked, session, run, stream=1, stop=threading.Event()) as warm:

        def talk() -> None:
            first_words(warm, clip, kind="warm", from_s=asked_s, **words)
            play(plan, warm, clip)

        with _writing(asked, session, [warm], run):
            attend([warm], [talk], watch=run.watch, progress=_progress(plan, [warm], run))
    return warm


def was_live(trace: Path) -> bool | None:
    """Return the verdict of a trace: whether the run was live; None where nothing was measured."""
    return report_of(read_trace(trace))["verdict"]["live"]


def nearest_of(asked: Asked, session: Any, stage: Stage, run: RunTo) -> list[Event]:
    """Return what would be live, where the verdict of the trace is that this was not."""
    around, latency = run.around, stage.live.latency
    if was_live(run.path) is not False:
        return []
    around.say("looking for what would be live")
    setting = around.nearest(
        session,
        device=asked.session.get("device", "cpu"),
        avatar=asked.live.get("avatar"),
        window=latency.window,
        steps=latency.steps,
        say=around.say,
    )
    return [] if setting is None else [Event(NEAREST, None, around.clock.now_s(), {"setting": setting})]


def _progress(plan: Plan, stages: list[Stage], run: RunTo) -> Callable[[], None]:
    start_s = run.around.clock.now_s()

    def show() -> None:
        spent_s = run.around.clock.now_s() - start_s
        tallies = [stage.recorder.tally for stage in stages]
        chunks, late = sum(one.chunks for one in tallies), sum(one.missed for one in tallies)
        turns = f", {sum(one.turns for one in tallies)}/{plan.turns + 1} turns" if plan.scenario == "turns" else ""
        streams = f", {len(stages)} streams" if plan.scenario == "multi" else ""
        length = "" if plan.scenario == "turns" else f"/{plan.duration_s:.0f}"
        run.around.say(f"{plan.scenario}: {spent_s:.0f}{length} s{streams}{turns}, {chunks} chunks, {late} late")

    return show


def add_lines(source: Path, target: Path, more: Sequence[Line]) -> None:
    """Write a trace again, with more lines."""
    recorded = read_trace(source)
    with TraceWriter(target, recorded.run) as writer:
        for lines in recorded.lines.values():
            for line in lines:
                writer.write(line)
        for line in more:
            writer.write(line)
