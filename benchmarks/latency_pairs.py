# SPDX-License-Identifier: Apache-2.0
"""`edgereels bench compare`: two recipes of settings, both open at once, taking turns at the same words.

What is compared is work: seconds that a session computes on an utterance, divided by the utterance's length. Both run
live, so that windows and steps are those of the latency that was asked for.
"""

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..runtime import UsageError, VerificationError, __version__
from .latency_compare import Comparison, Pair, judge, tail_difference, take_pairs
from .latency_recorder import Recorder
from .latency_run import Surroundings
from .latency_scenarios import Stage
from .latency_validity import crowding, unread
from .machine_watch import MachineWatch
from .paced_sound import Clip, Samples

SESSION_FIELDS = frozenset({"device", "threads", "compute"})
"""Of a recipe: arguments of `AvatarSession.open`."""
LIVE_FIELDS = frozenset({"latency", "avatar", "canvas", "seed"})
"""Of a recipe: arguments of `AvatarSession.live`."""
FIELDS = SESSION_FIELDS | LIVE_FIELDS | {"package"}
VOID = "void"
"""The verdict where a side did less than its recipe says, or too much else ran."""
TAILS = (90, 99)
"""Percentiles of a chunk's work that are compared, where there are chunks enough."""


@dataclass(frozen=True)
class Recipe:
    """One side of a comparison."""

    package: str = "default"
    """Its folder, or "default"."""
    session: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of `AvatarSession.open`."""
    live: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of `AvatarSession.live`."""

    def settings(self) -> dict[str, Any]:
        """Return everything as a report says it; of paths the name alone."""
        given = {"package": self.package, **self.session, **self.live}
        return {name: Path(value).name if name in ("package", "avatar") else value for name, value in given.items()}


def read_recipe(text: str, *, defaults: Mapping[str, Any]) -> Recipe:
    """Read a recipe: a JSON file, or `device=openvino:CPU,latency=low`.

    Args:
        text: of the command line.
        defaults: fields that it doesn't name.

    Raises:
        UsageError: it is neither, or names what no recipe has.
    """
    if "=" in text:
        pairs = [part.partition("=") for part in text.split(",")]
        given: Any = {name.strip(): value.strip() for name, _equals, value in pairs}
    else:
        given = _read_json(Path(text))
    unknown = sorted(given.keys() - FIELDS) if isinstance(given, dict) else ["no object"]
    if unknown:
        raise UsageError(f"the recipe {text} holds {unknown[0]}; expected some of {', '.join(sorted(FIELDS))}")
    values = {**defaults, **{name: _value(name, value, text) for name, value in given.items()}}
    return Recipe(
        str(values.get("package") or "default"),
        {name: values[name] for name in sorted(SESSION_FIELDS) if values.get(name) is not None},
        {name: values[name] for name in sorted(LIVE_FIELDS) if values.get(name) is not None},
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"the recipe {path} can't be read ({error.strerror}); expected a JSON file, or settings such as latency=low"
        ) from error
    except ValueError as error:
        raise UsageError(f"the recipe {path} is no JSON ({error}); expected an object of settings") from error


def _value(name: str, value: Any, text: str) -> Any:
    """Return a setting as its argument takes it."""
    if name in ("threads", "seed"):
        try:
            return int(value)
        except (TypeError, ValueError):
            raise UsageError(f"the recipe {text} has {name} {value!r}; expected a whole number") from None
    if name == "canvas":
        known = {"on": True, "off": False, True: True, False: False}
        if not isinstance(value, str | bool) or value not in known:
            raise UsageError(f"the recipe {text} has canvas {value!r}; expected on or off")
        return known[value]
    if not isinstance(value, str):
        raise UsageError(f"the recipe {text} has {name} {value!r}; expected text")
    return value


class Side:
    """One open side: says an utterance and tells how much work that was."""

    def __init__(
        self, recipe: Recipe, samples: Samples, *, length_s: float, speed: float, around: Surroundings
    ) -> None:
        """Prepare; `opened` opens it.

        Args:
            recipe: its settings.
            samples: of the clip.
            length_s: of an utterance.
            speed: of pushing.
            around: opens sessions.
        """
        self.recipe, self.chunks = recipe, list[float]()
        self.engines: dict[str, list[str]] = {}
        self._clip, self._length_s, self._speed, self._around = Clip(samples), length_s, speed, around
        self._stage: Stage | None = None

    def open(self, stack: ExitStack) -> "Side":
        """Open session and stream; `stack` closes them."""
        clock = self._around.clock
        recorder = Recorder(lambda _line: None, clock.now_s)

        def keep(made: Any) -> None:
            self.chunks.append(sum(made.stages.values()) / (made.frames / 25))
            recorder.on_chunk(made)

        session = stack.enter_context(self._around.open_session(self.recipe.package, **self.recipe.session))
        live = stack.enter_context(session.live(**self.recipe.live, on_chunk=keep, on_event=recorder.on_event))
        self.engines = {graph: list(got) for graph, got in session.engines.items()}
        self._around.on_engines(session.engine_reports)
        self._stage = Stage(live, recorder, clock, stop=threading.Event())
        return self

    @property
    def lowered(self) -> int:
        """How often the session gave up quality: what it did then was other work than the recipe asks for."""
        return self._stage.recorder.tally.lowered if self._stage is not None else 0

    def work(self) -> float:
        """Say the clip's first seconds once; return seconds of work per second of video."""
        assert self._stage is not None, "opened before it works"
        tally = self._stage.recorder.tally
        work_s, media_s = tally.work_s, tally.media_s
        self._clip.rewind()
        self._stage.say(self._clip, self._length_s, start_s=self._stage.clock.now_s(), speed=self._speed, turn=None)
        self._stage.rest()
        return (tally.work_s - work_s) / (tally.media_s - media_s)


def run_compare(
    first: Recipe,
    second: Recipe,
    samples: Samples,
    *,
    pairs: int,
    length_s: float,
    speed: float,
    around: Surroundings,
) -> dict[str, Any]:
    """Measure the noise first, then the pairs; return the verdict with everything that it rests on."""
    lines: list[Any] = []
    watch: MachineWatch = around.watch(lines.append, now_s=around.clock.now_s)
    before = watch.contention(before=True)
    sides = [Side(one, samples, length_s=length_s, speed=speed, around=around) for one in (first, second)]
    with ExitStack() as stack:
        around.say("opening both sides")
        one, other = (side.open(stack) for side in sides)
        watch.contention()
        measure = _counted(2 * 2 * (pairs + 1), around)
        own = take_pairs(measure(one), measure(one), pairs=pairs)
        one.chunks.clear()
        both = take_pairs(measure(one), measure(other), pairs=pairs, seed=1)
        during = watch.contention()
    found = judge(own, both)
    tails = [tail_difference(one.chunks, other.chunks, percentile=percentile) for percentile in TAILS]
    lowered = {"first": one.lowered, "second": other.lowered}
    others = {"psi_before": before.psi, "steal_during": during.steal, "others_cpu_during": during.others_cpu}
    return {
        "format": "edgereels-latency-comparison/1",
        "sentence": _sentence(found, lowered, others),
        "verdict": _verdict(found, lowered, others),
        "figure": "seconds of work per second of video, one utterance, second over first",
        "first": one.recipe.settings(),
        "second": other.recipe.settings(),
        "engines": {"first": one.engines, "second": other.engines},
        "noise": asdict(found.noise),
        "ratio": asdict(found.ratio),
        "threshold_share": found.threshold,
        "quality_lowered": lowered,
        "chunk_work_tails": [asdict(tail) for tail in tails if tail is not None],
        "utterance_s": length_s,
        "contention": others,
        "environment": around.environment(),
        "version": __version__,
        "pairs_of_first_with_itself": [list(pair) for pair in own],
        "pairs": [list(pair) for pair in both],
    }


def _verdict(found: Comparison, lowered: Mapping[str, int], others: Mapping[str, float | None]) -> str:
    return VOID if _why_void(lowered, others) else found.verdict


def _sentence(found: Comparison, lowered: Mapping[str, int], others: Mapping[str, float | None]) -> str:
    """Say what was found, and whether it can be about the recipes at all."""
    said = [found.sentence, *unread(others)]
    if why := _why_void(lowered, others):
        said.append(f"void, since {' and '.join(why)}: compare on a quiet machine")
    return "; ".join(said)


def _why_void(lowered: Mapping[str, int], others: Mapping[str, float | None]) -> list[str]:
    """Return why it is no comparison of the recipes; a report is void beyond the same limits of what else ran."""
    times = sum(lowered.values())
    gave_up = [f"quality was lowered (times: {times}) to keep up"] if times else []
    return [*gave_up, *crowding(others)]


def verify_comparison(path: Path) -> int:
    """Judge the raw pairs of a comparison again; return how many there are.

    Raises:
        VerificationError: the file is damaged or lacks what else ran, or its figures don't follow from its pairs.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if "contention" not in report:
            raise VerificationError(f"{path} doesn't say what else ran (contention); compare again with this edgereels")
        own, both = ([_pair(pair) for pair in report[name]] for name in ("pairs_of_first_with_itself", "pairs"))
        found = judge(own, both)
        besides = report["quality_lowered"], report["contention"]
        sentence, verdict = (say(found, *besides) for say in (_sentence, _verdict))
        claimed = (report["sentence"], report["verdict"], report["noise"], report["ratio"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{path} is no comparison that bench wrote ({error})") from error
    if claimed != (sentence, verdict, asdict(found.noise), asdict(found.ratio)):
        raise VerificationError(f"{path} says {claimed[0]!r}; its pairs give {sentence!r}")
    return len(own) + len(both)


def _pair(values: Any) -> Pair:
    first, second = values
    return float(first), float(second)


def _counted(total: int, around: Surroundings) -> Callable[[Side], Callable[[], float]]:
    done = 0

    def measure(side: Side) -> Callable[[], float]:
        def run() -> float:
            nonlocal done
            done += 1
            around.say(f"compare: utterance {done}/{total}")
            return side.work()

        return run

    return measure
