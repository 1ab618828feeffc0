# SPDX-License-Identifier: Apache-2.0
"""The example programs as a user runs them: on a real screen, with a real voice, heard on a real sound server."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import CHECKOUT
from .real_devices import Ear, Screen, SoundServer, need, say, until

LONGEST_GAP_S = 0.3
"""So long at most may a desktop window not answer, on two cores that also make the frames."""

pytestmark = pytest.mark.slow


@contextmanager
def running(*command: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run a program; with the lines of its standard error, which grow."""
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    ) as program:
        said, errors = list[str](), program.stderr
        assert errors is not None
        reader = threading.Thread(target=lambda: said.extend(iter(errors.readline, "")))
        reader.start()
        try:
            yield program, said
        finally:
            program.kill()
            reader.join()


def finish(program: subprocess.Popen[str], said: list[str]) -> str:
    """Wait for a program that was asked to end; return what it printed."""
    assert program.stdout is not None
    assert program.wait(30) == 0, said[-5:]
    return program.stdout.read()


@pytest.fixture
def screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A screen of its own: a program that ends while a key is down leaves it down for the next window."""
    folder = tmp_path / "screen"
    folder.mkdir()
    own = Screen(folder)
    for name, value in own.variables.items():
        monkeypatch.setenv(name, value)
    return own


def test_the_kiosk_says_lines_and_a_new_one_interrupts(
    screen: Screen, sound_server: SoundServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("espeak-ng", module="av")
    film = tmp_path / "kiosk.mp4"
    script = str(CHECKOUT / "examples" / "kiosk" / "kiosk.py")
    with Ear(sound_server.module) as ear, running(script, "--threads", "2", "--film", str(film)) as (kiosk, said):
        assert kiosk.stdin is not None
        until(lambda: any("ready" in line for line in said), what="the kiosk to be ready", within_s=240)
        until(lambda: screen.pixels[:1000, :1000].std() > 20, what="a face in the window", within_s=10)
        assert ear.loudness(last_s=0.5) < 0.001
        begun_s = time.perf_counter()
        kiosk.stdin.write(
            "This is a long sentence about nothing at all, and it goes on and on, until a new one comes.\n"
        )
        kiosk.stdin.flush()
        until(lambda: ear.loudness(last_s=0.3) > 0.01, what="the voice", within_s=30)
        first_sound_s = time.perf_counter() - begun_s
        kiosk.stdin.write("Stop.\n")
        kiosk.stdin.close()
        printed = finish(kiosk, said)
    say(capsys, f"kiosk: {printed.strip()}; first sound after {first_sound_s:.2f} s")
    assert "2 lines, 1 interrupted" in printed
    assert int(re.findall(r"(\d+) frames spoken", printed)[0]) >= 10
    assert film.stat().st_size > 10_000


def test_the_desktop_window_answers_while_it_speaks(
    screen: Screen, sound_server: SoundServer, capsys: pytest.CaptureFixture[str]
) -> None:
    need("espeak-ng", module="PySide6")
    script = str(CHECKOUT / "examples" / "qt_window" / "qt_window.py")
    with Ear(sound_server.module) as ear, running(script, "--threads", "2") as (desktop, said):
        until(lambda: screen.pixels[50:300, 50:300].std() > 20, what="a face in the window", within_s=240)
        time.sleep(1.0)
        screen.type("^edgereels$", "Good morning, how do you do?")
        screen.press("^edgereels$", "Return")
        until(lambda: ear.loudness(last_s=0.3) > 0.01, what="the voice", within_s=30)
        time.sleep(3.0)
        screen.press("^edgereels$", "ctrl+q")
        printed = finish(desktop, said)
    say(capsys, f"desktop window: {' '.join(printed.split())}")
    gap_ms, beats = map(int, re.findall(r"for (\d+) ms at most \((\d+) beats\)", printed)[0])
    assert int(re.findall(r"(\d+) frames spoken", printed)[0]) >= 10
    assert gap_ms <= 1000 * LONGEST_GAP_S and beats > 100


@pytest.mark.parametrize("name", ["kiosk/kiosk.py", "qt_window/qt_window.py"])
def test_each_program_is_short(name: str) -> None:
    assert len((CHECKOUT / "examples" / name).read_text().splitlines()) < 150
