# SPDX-License-Identifier: Apache-2.0
"""Live streams of the embedded avatar: each kind of bad day once on a real engine."""

import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.runtime import AvatarSession, UsageError, to_callback
from edgereels.runtime.audio import load_speech
from edgereels.runtime.errors import EdgereelsError
from edgereels.runtime.live_state import State
from edgereels.runtime.model_package import DEMO_SPEECH

from .fake_room import Viewer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session() -> Any:
    device = "openvino:CPU" if find_spec("openvino") else "cpu"
    with AvatarSession.open("default", device=device, threads=2, verify="size") as opened:
        yield opened


def speech(seconds: float) -> np.ndarray:
    return load_speech(DEMO_SPEECH)[: round(seconds * 16000)]


def test_it_speaks_rests_and_jumps_nowhere(session: AvatarSession) -> None:
    viewer = Viewer()
    watch = to_callback(viewer, policy="block", limit_s=60)
    with session.live(latency="low", canvas=False, outputs=[watch]) as live:
        for _turn in range(2):
            live.push(speech(2.0))
            live.end_utterance()
            assert live.wait_idle(60)
        assert live.state in (State.READY, State.DEGRADED)  # a slow machine says so, and goes on
    spoken = viewer.spoken
    assert {media.utterance for media in spoken} == {0, 1}
    first = [media for media in spoken if media.utterance == 0]
    assert len(first) >= 56 and [media.index for media in first] == list(range(len(first)))
    sound = np.concatenate([media.sound for media in first])
    assert np.array_equal(sound[: len(speech(2.0))], speech(2.0)) and not sound[len(speech(2.0)) :].any()
    frames = np.stack([media.frames[0] for media in viewer.seen]).astype(np.int16)
    changes = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    kinds = [f"{a.kind} {b.kind}" for a, b in pairwise(viewer.seen)]
    largest = {kind: max(change for change, each in zip(changes, kinds, strict=True) if each == kind) for kind in kinds}
    assert largest["speech speech"] > 0.5  # it moves
    for kind in ("rest rest", "rest speech", "speech rest", "rest held"):  # and goes to rest as smoothly as it speaks
        assert largest.get(kind, 0.0) <= 1.2 * largest["speech speech"], largest


def test_nan_in_the_latents_costs_one_chunk(session: AvatarSession, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgereels.runtime import passes

    whole, calls = passes.denoise, list[int]()
    events, viewer = list[dict[str, Any]](), Viewer()

    def broken(*arguments: Any, **named: Any) -> Any:
        made = whole(*arguments, **named)
        calls.append(len(calls))
        if armed and len(calls) == armed[0]:
            made[0, 0, 0, 0, 0] = np.nan
        return made

    armed: list[int] = []
    monkeypatch.setattr(passes, "denoise", broken)
    watch = to_callback(viewer, policy="block", limit_s=60)
    with session.live(latency="low", canvas=False, outputs=[watch], on_event=events.append) as live:
        armed.append(len(calls) + 2)
        live.push(speech(2.0))
        live.end_utterance()
        assert live.wait_idle(60)
        assert live.state is not State.FAILED
    assert [event["code"] for event in events].count("S_NONFINITE") >= 1
    still = [
        media.index
        for media, after in zip(viewer.spoken, viewer.spoken[1:], strict=False)
        if np.array_equal(media.frames, after.frames)
    ]
    assert set(range(12, 23)) <= set(still)  # the second chunk stands still
    assert not set(range(26, 40)) <= set(still)  # the third doesn't


def test_an_engine_that_breaks_is_opened_anew(session: AvatarSession, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgereels.runtime import passes

    whole, failures = passes.denoise, list[bool]()
    events = list[dict[str, Any]]()

    def broken(*arguments: Any, **named: Any) -> Any:
        if failures:
            failures.pop()
            raise RuntimeError("CUDA error: device lost")
        return whole(*arguments, **named)

    monkeypatch.setattr(passes, "denoise", broken)
    with session.live(latency="low", canvas=False, on_event=events.append) as live:
        failures.append(True)
        live.push(speech(2.0))
        live.end_utterance()
        assert live.wait_idle(90)
        assert live.state is not State.FAILED
    codes = [event["code"] for event in events]
    assert "S_UNEXPECTED" in codes and "S_RECOVERED" in codes


def test_one_stream_at_a_time_and_the_engines_come_back(session: AvatarSession) -> None:
    with session.live(latency="low", canvas=False) as live:
        with pytest.raises(EdgereelsError, match="already running"), session.live(latency="low"):
            pass
        with pytest.raises(EdgereelsError, match="already running"):
            next(iter(session.stream(audio=speech(1.0))))
        assert live.state is State.READY
    assert sum(len(chunk.frames) for chunk in session.stream(audio=speech(1.0), canvas=False)) == 25


def test_wrong_arguments_are_refused_before_anything_is_opened(session: AvatarSession) -> None:
    with pytest.raises(UsageError, match="low, balanced, quality"):
        session.live(latency="fast")
    with pytest.raises(EdgereelsError, match="nobody"):
        session.live(avatar="nobody")
    with pytest.raises(UsageError, match="seed"):
        session.live(seed=-1)


def test_ending_in_the_middle_of_a_window_takes_less_than_two_seconds(session: AvatarSession, tmp_path: Path) -> None:
    from edgereels.runtime import to_file

    av = pytest.importorskip("av")
    with session.live(latency="balanced", canvas=False, outputs=[to_file(tmp_path / "talk.mp4")]) as live:
        live.push(speech(4.0))
        time.sleep(1.5)
        began_s = time.perf_counter()
        live.stop()
        took_s = time.perf_counter() - began_s
    assert took_s < 2.0
    with av.open(str(tmp_path / "talk.mp4")) as film:
        assert sum(1 for _frame in film.decode(video=0)) >= 20
