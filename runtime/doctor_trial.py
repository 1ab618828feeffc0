# SPDX-License-Identifier: Apache-2.0
"""A process that tries out what may end it: importing a library, running a package, timing engines.

`python -m edgereels.runtime.doctor_trial REQUEST` takes one JSON object and answers with JSON lines, each with
`event`, as soon as it knows something; what an earlier line said stays true when the process dies later.
`{"event": "trying"}` says what comes next, so that the last one names what killed it. Whatever libraries print goes to
stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from .audio import SAMPLE_RATE
from .avatar import Avatar
from .cuda_driver import find_cards
from .doctor_gain import HEAVY, Load, LoadRecorder, interleave, ratio, window_ms
from .engine import Engine
from .errors import EdgereelsError
from .footprint import RENDER_GRAPHS
from .golden import load_golden
from .machine import resident_bytes
from .model_package import ModelPackage
from .placement import Asked, Placement
from .session import AvatarSession

SHORTEST_SOUND_S = 0.5
"""Shorter ones are refused below 0.4 s."""

Say = Callable[..., None]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the request asks for; return 0 even where it failed, because the lines say so."""
    request: dict[str, Any] = json.loads((sys.argv[1:] if argv is None else argv)[0])
    with _own_stdout() as stream:

        def say(event: str, **fields: Any) -> None:
            print(json.dumps({"event": event, **fields}), file=stream, flush=True)

        try:
            JOBS[request.pop("job")](say, **request)
        except (EdgereelsError, OSError, MemoryError) as error:
            say("fault", text=_one_line(error))
        except Exception as error:  # a native library's own, or an incomplete installation: news for whoever asked
            say("fault", text=f"{type(error).__name__}: {_one_line(error)}")
    return 0


@contextmanager
def _own_stdout() -> Iterator[TextIO]:
    """Keep the real stdout for our lines and let everything else that is printed go to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stream:
            yield stream
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ── A library ────────────────────────────────────────────────────────────────────────────────────────────────────────


def try_library(say: Say, *, library: str) -> None:
    """Import an engine's library and say what it offers."""
    say("trying", what=f"import {library}")
    say("library", **(_onnxruntime_facts() if library == "onnxruntime" else _openvino_facts()))


def _onnxruntime_facts() -> dict[str, Any]:
    import onnxruntime

    if not hasattr(onnxruntime, "InferenceSession"):
        raise ImportError("the module has no InferenceSession: its files are incomplete")
    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def _openvino_facts() -> dict[str, Any]:
    from .engine_openvino_library import device_facts, library_version

    return {"version": library_version(), "devices": [dict(facts) for facts in device_facts()]}


# ── A package ────────────────────────────────────────────────────────────────────────────────────────────────────────


def try_package(
    say: Say, *, package: str, asked: Mapping[str, Any], whole_window: bool, others: Sequence[str] = ()
) -> None:
    """Run a package as a render would, then time its heavy graphs on other devices.

    Args:
        say: takes the answer.
        package: its folder, or "default".
        asked: keyword arguments of `AvatarSession.open`: device, threads, compute, place, allow_fallback.
        whole_window: stream one window; otherwise run the golden vectors only.
        others: devices to time against what was asked for.
    """
    opened = ModelPackage.open(package, verify="size")
    say("trying", what="run one window" if whole_window else "run the golden vectors")
    run = _stream if whole_window else _run_golden
    before, cards_before = resident_bytes(), _card_bytes()
    started_s = time.perf_counter()
    loads, facts = run(opened, asked)
    after, cards_after = resident_bytes(), _card_bytes()
    say(
        "ran",
        mode="window" if whole_window else "golden",
        wall_s=time.perf_counter() - started_s,
        resident_before_bytes=before and before[0],
        resident_peak_bytes=after and after[1],
        card_bytes=[free - cards_after[index] for index, free in cards_before.items() if index in cards_after],
        **facts,
    )
    if others and loads:
        _time_others(say, opened, asked=asked, others=others, loads=loads)


def _card_bytes() -> dict[int, int]:
    """Return card to its free memory, as far as that is told."""
    return {card.index: card.free_bytes for card in find_cards().cards if card.free_bytes is not None}


def _stream(package: ModelPackage, asked: Mapping[str, Any]) -> tuple[dict[str, Load], dict[str, Any]]:
    """Render the shortest stream there is, a key-frame pass and a window, and keep what graphs were given."""
    own, recorder = package.manifest.settings, LoadRecorder()
    sound = speechlike(max(own.window / own.fps, SHORTEST_SOUND_S))
    face = None if package.manifest.avatars else grey_face(package)
    with AvatarSession.open(package.root, verify="size", observe=recorder, **asked) as session:
        shapes = [chunk.frames.shape for chunk in session.stream(audio=sound, avatar=face, canvas=False)]
        engines = {name: got.as_dict() for name, got in session.engine_reports.items()}
    _count, height, width, _channels = shapes[0]
    facts = {
        "frames": sum(shape[0] for shape in shapes),
        "size": [height, width],
        "calls": recorder.calls,
        "engines": engines,
    }
    return recorder.loads(), facts


def speechlike(duration_s: float) -> npt.NDArray[np.float32]:
    """Return a sound with syllables: a hum of 140 Hz and its overtones that comes and goes four times a second."""
    at_s = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * 140 * overtone * at_s) / overtone for overtone in range(1, 12))
    loud = np.clip(np.sin(2 * np.pi * 4 * at_s), 0.05, 1)
    return (0.2 * hum * loud).astype(np.float32)


def grey_face(package: ModelPackage) -> Avatar:
    """Return somebody for a package that takes any face and brings none: grey, of the package's squarest size."""
    sizes = package.manifest.sizes[package.manifest.default_size].values()
    height, width = min(sizes, key=lambda size: (abs(np.log(size[0] / size[1])), size))
    return Avatar(name="grey", portrait=np.full((height, width, 3), 128, dtype=np.uint8))


def _run_golden(package: ModelPackage, asked: Mapping[str, Any]) -> tuple[dict[str, Load], dict[str, Any]]:
    """Open every graph that a render uses and run its golden vectors, where it has some."""
    fields = {**asked, "threads": asked.get("threads") or 0}
    loads: dict[str, Load] = {}
    with ExitStack() as stack:
        placement = Placement(package, Asked(**fields))
        stack.callback(placement.close)
        for graph in RENDER_GRAPHS:
            path = package.golden_path(graph)
            if graph in package.manifest.graphs:
                engine = placement[graph]
                if path is not None:
                    vectors = load_golden(path)
                    engine.run(vectors.inputs)
                    if graph in HEAVY:
                        loads[graph] = Load(vectors.inputs, 1)
        engines = {name: got.as_dict() for name, got in placement.got().items()}
    return loads, {"engines": engines, "calls": {name: 1 for name in engines}}


# ── Other engines ────────────────────────────────────────────────────────────────────────────────────────────────────


def _time_others(
    say: Say, package: ModelPackage, *, asked: Mapping[str, Any], others: Sequence[str], loads: Mapping[str, Load]
) -> None:
    """Open the heavy graphs where they run now and on other devices, and say how these compare."""
    now = {**asked, "threads": asked.get("threads") or 0}
    with ExitStack() as stack:
        contenders: dict[str, Mapping[str, Engine]] = {}
        for device in ("", *others):
            settings = {**now, "device": device, "place": {}, "allow_fallback": False} if device else now
            say("trying", what=f"time {device or 'what was asked for'}")
            try:
                placement = Placement(package, Asked(**settings))
                stack.callback(placement.close)
                contenders[device] = _frozen(placement, loads)
            except Exception as error:  # a device that can't be had must not take the others' comparison along
                say("other", device=device, fault=_one_line(error))
                if not device:  # nothing to compare with
                    return
                continue
            if device and _same(contenders[""], contenders[device]):
                del contenders[device]
        if len(contenders) > 1:
            rounds = interleave(contenders, loads)
            say("trying", what="compare what was timed")
            for device in contenders:
                if device:
                    say("other", device=device, **_comparison(contenders, rounds, loads, device=device))


def _frozen(placement: Placement, loads: Mapping[str, Load]) -> dict[str, Engine]:
    engines = {graph: placement[graph] for graph in loads}
    for graph, engine in engines.items():
        engine.freeze([loads[graph].shapes])
    return engines


def _same(ours: Mapping[str, Engine], theirs: Mapping[str, Engine]) -> bool:
    """Tell whether both are the same engines under two names."""
    return all(
        (ours[graph].provider, ours[graph].precision) == (theirs[graph].provider, theirs[graph].precision)
        for graph in ours
    )


def _comparison(
    contenders: Mapping[str, Mapping[str, Engine]],
    rounds: Mapping[str, Sequence[Mapping[str, float]]],
    loads: Mapping[str, Load],
    *,
    device: str,
) -> dict[str, Any]:
    totals = {name: [window_ms(taken, loads) for taken in rounds[name]] for name in ("", device)}
    graphs = {
        graph: {
            "provider": contenders[device][graph].provider,
            "precision": contenders[device][graph].precision,
            "now_ms": float(np.median([taken[graph] for taken in rounds[""]])),
            "then_ms": float(np.median([taken[graph] for taken in rounds[device]])),
            "calls": load.calls,
        }
        for graph, load in loads.items()
    }
    return {"gain": asdict(ratio(totals[""], totals[device])), "graphs": graphs}


JOBS: Mapping[str, Callable[..., None]] = {"library": try_library, "package": try_package}


if __name__ == "__main__":
    sys.exit(main())
