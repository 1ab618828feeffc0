# SPDX-License-Identifier: Apache-2.0
"""What a live stream outlives, and how it ends: hangs, leaks, signals, whatever can be raised."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgereels.runtime.engine import endable
from edgereels.runtime.errors import EngineError, NotFiniteError
from edgereels.runtime.live_state import State
from edgereels.runtime.model_package import DEMO_SPEECH

from .fake_room import FakeRoom, Viewer, bursts, open_live


class HangingRoom(FakeRoom):
    """Its second window hangs until runs are ended, as a native library does."""

    def open(self) -> Any:
        face = super().open()
        for windows in face.windows.values():
            make = windows.make

            def hang(*arguments: Any, _make: Any = make, **named: Any) -> Any:
                if self.windows_made == 1:
                    self.windows_made += 1
                    ended = threading.Event()
                    with endable(ended.set):
                        ended.wait(30)
                    raise EngineError("the run was ended")
                return _make(*arguments, **named)

            windows.make = hang  # type: ignore[method-assign]
        return face


@pytest.mark.slow
def test_a_window_that_hangs_is_broken_off_while_the_face_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgereels.runtime.live_generator.HUNG_S", 0.5)
    monkeypatch.setattr("edgereels.runtime.recovery.BACKOFF_S", (0.01,))
    room, viewer, events = HangingRoom(), Viewer(), list[dict[str, Any]]()
    with open_live(room, viewer, on_event=events.append) as live:
        live.push(bursts([1, 2, 30], count=40))
        live.end_utterance()
        assert live.wait_idle(15)
        assert live.state is State.READY
    codes = [event["code"] for event in events]
    assert codes.count("S_HUNG") == 1 and "S_RECOVERED" in codes and room.opened == 2
    media = [each.media_s for each in viewer.seen]
    assert np.diff(media).max() < 0.041  # a picture in every slot meanwhile
    assert 30 in [each.index for each in viewer.spoken if each.frames[0, 0, 0, 0] > 100]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what /proc shows")
def test_nothing_is_left_of_a_stream_that_has_ended(tmp_path: Path) -> None:
    def once() -> None:
        with open_live(FakeRoom(), Viewer()) as live:
            live.push(bursts([1], count=4))

    once()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _cycle in range(60):
        once()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


@pytest.mark.slow
def test_whatever_goes_wrong_it_ends_in_a_state_with_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded plans of faults on the real threads; none may hang."""
    monkeypatch.setattr("edgereels.runtime.recovery.BACKOFF_S", (0.01,))
    monkeypatch.setattr("edgereels.runtime.live_faults.ENDING_S", 0.01)
    source = random.Random(5)
    kinds = [NotFiniteError("NaN"), RuntimeError("driver"), MemoryError("no more"), ValueError("shape"), 0.05]
    for _plan in range(12):
        plan: dict[int, Exception | float] = {n: source.choice(kinds) for n in range(8) if source.random() < 0.5}
        room = FakeRoom(plan=plan, broken_openings=source.choice([0, 0, 1, 7]))
        events: list[dict[str, Any]] = []
        with open_live(room, Viewer(), on_event=events.append) as live:
            for _turn in range(2):
                live.push(bursts([1], count=source.randint(1, 30)))
                live.end_utterance()
            if source.random() < 0.3:
                live.interrupt()
            began_s = time.perf_counter()
            live.wait_idle(8)
            assert time.perf_counter() - began_s < 8.5
            assert live.state in (State.READY, State.DEGRADED, State.FAILED), (plan, live.state)
            if live.state is State.FAILED:
                assert [event for event in events if event.get("to") == "FAILED"][-1]["code"]
        assert room.closed == 1


# ── Signals, on a real process and a real engine ─────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["term", "int"])
def test_a_signal_ends_it_within_two_seconds_with_a_whole_file(tmp_path: Path, number: int, code: int) -> None:
    av = pytest.importorskip("av")
    sound, _rate = soundfile.read(DEMO_SPEECH, dtype="float32")
    soundfile.write(tmp_path / "long.wav", np.tile(sound, 8), _rate)
    command = [sys.executable, "-m", "edgereels.runtime.cli", "live", "--audio", "long.wav", "--out", "talk.mp4"]
    command += ["--events", "events.jsonl", "--canvas", "off", "--latency", "low"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("live:"):
                break
        time.sleep(4.0)
        began_s = time.perf_counter()
        process.send_signal(number)
        assert process.wait(10) == code
        took_s = time.perf_counter() - began_s
    finally:
        process.kill()
        process.stderr.close()
    assert took_s < 2.0 + 0.5  # and Python's own end
    with av.open(str(tmp_path / "talk.mp4")) as film:
        assert sum(1 for _frame in film.decode(video=0)) >= 50
    assert not list(tmp_path.glob("*.partial"))
