# SPDX-License-Identifier: Apache-2.0
"""A sound server with a loudspeaker that nobody hears, and a screen that nobody sees: real parts, private to a test.

Debian packages: pulseaudio, pulseaudio-utils, libasound2-plugins, libportaudio2; xvfb, openbox, xdotool. Where they are
missing the tests are skipped, unless EDGEREELS_REQUIRE_SOUND=1: there they fail.
"""

import ctypes
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.clock import MonotonicClock
from edgereels.runtime.microphone import MicrophoneSource
from edgereels.runtime.sources import SoundBlock

SINK = "speaker"
"""The null sink; what it plays is heard on its monitor, which is the default microphone."""

_ALSA = """</usr/share/alsa/alsa.conf>
pcm.!default { type pulse }
ctl.!default { type pulse }
"""

_OPENBOX = """<?xml version="1.0"?>
<openbox_config xmlns="http://openbox.org/3.4/rc">
<theme><keepBorder>no</keepBorder></theme>
<applications>
<application class="*"><decor>no</decor><position force="yes"><x>0</x><y>0</y></position></application>
</applications>
</openbox_config>
"""


def need(*programs: str, module: str) -> None:
    """Skip the test, or fail it where real devices are required, unless all of these are installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    missing += [module] * (find_spec(module) is None)
    if missing and os.environ.get("EDGEREELS_REQUIRE_SOUND") == "1":
        pytest.fail(f"not installed: {', '.join(missing)}; EDGEREELS_REQUIRE_SOUND=1 says that they are")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def start(*command: str, ready: Callable[[], Any], **settings: Any) -> subprocess.Popen[Any]:
    """Return a program that runs, and is ready; it ends with this process, however that ends."""
    child = subprocess.Popen(command, preexec_fn=_end_with_parent, **settings)
    until(lambda: child.poll() is not None or ready(), what=f"{command[0]} to be ready", within_s=20)
    assert child.poll() is None, f"{command[0]} ended with {child.returncode}"
    _RUNNING.append(child)
    return child


_RUNNING: list[subprocess.Popen[Any]] = []  # or Python complains that nobody waited for them


def _end_with_parent() -> None:
    """Linux only, as these programs are."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def until(condition: Callable[[], Any], *, what: str, within_s: float) -> Any:
    """Return what a condition is when it holds; fail where it doesn't in time."""
    stop_s = time.perf_counter() + within_s
    while not (found := condition()):
        if time.perf_counter() > stop_s:
            pytest.fail(f"waited {within_s:g} s for {what}")
        time.sleep(0.005)
    return found


class SoundServer:
    """PulseAudio with one null sink. `module` is sounddevice on top of it; needs `variables` in the environment."""

    def __init__(self, folder: Path) -> None:
        need("pulseaudio", "pactl", module="sounddevice")
        socket, alsa = folder / "sound.socket", folder / "asound.conf"
        alsa.write_text(_ALSA)
        self.variables = {"PULSE_SERVER": f"unix:{socket}", "ALSA_CONFIG_PATH": str(alsa)}
        own = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "XDG_CONFIG_HOME": str(folder)}
        with (folder / "log").open("wb") as log:
            start(
                *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"),
                *("-L", f"module-native-protocol-unix auth-anonymous=1 socket={socket}"),
                ready=lambda: socket.exists() and not self._pactl("info", check=False),
                env={**os.environ, **own},
                stderr=log,
            )
        self.plug()
        import sounddevice

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables.items():
                patch.setenv(name, value)
            sounddevice._terminate()  # another test may have loaded it where there was no device
            sounddevice._initialize()
        self.module: Any = sounddevice

    def plug(self) -> None:
        """Plug the loudspeaker in; its monitor becomes the microphone."""
        self._pactl("load-module", "module-null-sink", f"sink_name={SINK}", "rate=48000")
        self._pactl("set-default-sink", SINK)
        self._pactl("set-default-source", f"{SINK}.monitor")

    def unplug(self) -> None:
        """Pull it out; who played or listened loses the stream."""
        self._pactl("unload-module", "module-null-sink")

    def _pactl(self, *words: str, check: bool = True) -> int:
        environment = {**os.environ, **self.variables}
        return subprocess.run(["pactl", *words], check=check, capture_output=True, env=environment).returncode


class Screen:
    """An X server on memory, with a window manager; needs `variables` in the environment.

    Every window begins at the upper left corner, without a frame. Without a window manager one in ten of OpenCV's
    stayed black, in whatever order it was called: Qt misses the first exposure.

    There is one per process, and it lives as long: where it goes, Qt ends the process.
    """

    def __init__(self, folder: Path, *, height: int = 1100, width: int = 1280) -> None:
        need("Xvfb", "openbox", "xdotool", module="cv2")
        memory = folder / "Xvfb_screen0"
        reader, writer = os.pipe()
        start(
            *("Xvfb", "-displayfd", str(writer), "-screen", "0", f"{width}x{height}x24", "-fbdir", str(folder)),
            *("-nolisten", "tcp", "-noreset"),
            ready=memory.exists,
            pass_fds=[writer],
            stderr=subprocess.DEVNULL,
        )
        os.close(writer)
        with os.fdopen(reader, "rb") as number:
            self.variables = {"DISPLAY": f":{number.readline().decode().strip()}"}
        settings = folder / "openbox.xml"
        settings.write_text(_OPENBOX)
        start(
            *("openbox", "--config-file", str(settings)),
            ready=lambda: self._run("xdotool", "get_desktop") == 0,  # a window manager tells which desktop is on
            env={**os.environ, **self.variables},
            stderr=subprocess.DEVNULL,
        )
        with memory.open("rb") as file:
            self.pixels = _picture(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        """What is on the screen at this moment, (height, width, 3) BGR; a view."""

    def press(self, title: str, key: str) -> None:
        """Press a key in a window."""
        self._do(title, "key", key)

    def type(self, title: str, text: str) -> None:
        """Type a text in a window."""
        self._do(title, "type", text)

    def _do(self, title: str, *words: str) -> None:
        """Where a key closes the window, xdotool fails."""
        self._run("xdotool", "search", "--onlyvisible", "--name", title, "windowactivate", "windowfocus", *words)

    def _run(self, *command: str) -> int:
        environment = {**os.environ, **self.variables}
        return subprocess.run(command, check=False, capture_output=True, env=environment).returncode


def _picture(memory: mmap.mmap) -> np.ndarray:
    """Return the pixels of a dump in XWD format, 32 bits each: a header of 32-bit words, a table of colours, rows."""
    header = struct.unpack(">25I", memory[:100])
    header_bytes, width, height, row_bytes, colours = header[0], header[4], header[5], header[12], header[19]
    start = header_bytes + 12 * colours
    rows = np.frombuffer(memory, np.uint8, count=height * row_bytes, offset=start).reshape(height, row_bytes)
    return rows[:, : 4 * width].reshape(height, width, 4)[..., :3]


class Ear:
    """Writes down what a microphone hears, and when. By the same clock as everything else."""

    def __init__(self, module: Any, *, rate: int = 16000) -> None:
        self.events: list[dict[str, Any]] = []
        self._rate, self._blocks = rate, list[SoundBlock]()
        self.source = MicrophoneSource(MonotonicClock(), sample_rate=rate, module=module, on_event=self.events.append)

    def __enter__(self) -> "Ear":
        self.source.start(self._blocks.append, lambda error: None)
        until(lambda: self._blocks, what="the microphone to give sound", within_s=10)
        return self

    def __exit__(self, *error: object) -> None:
        self.source.stop()

    def samples(self) -> np.ndarray:
        """Return what was heard, (n,)."""
        return self.recording()[1]

    def recording(self) -> tuple[np.ndarray, np.ndarray]:
        """Return when each sample was heard, and the samples, both (n,).

        Blocks come late at times and never early: the earliest one is right.
        """
        blocks = list(self._blocks)
        arrived_s = np.array([block.arrived_s for block in blocks])
        lengths = np.array([len(block.samples) for block in blocks])
        streams = np.cumsum(np.diff(arrived_s, prepend=arrived_s[0]) > 0.4)  # begun anew after the device was lost
        times_s = []
        for stream in range(streams[-1] + 1):
            its_lengths, its_arrived_s = lengths[streams == stream], arrived_s[streams == stream]
            start_s = np.min(its_arrived_s - np.cumsum(its_lengths) / self._rate)
            times_s.append(start_s + np.arange(its_lengths.sum()) / self._rate)
        return np.concatenate(times_s), np.concatenate([block.samples[:, 0] for block in blocks])

    def loudness(self, *, last_s: float) -> float:
        """Return the root mean square of what was heard last."""
        newest = self.samples()[-round(last_s * self._rate) :]
        return float(np.sqrt(np.mean(np.square(newest))))

    def onsets_s(self, *, level: float = 0.1, quiet_s: float = 0.1) -> np.ndarray:
        """Return when it became loud after it had been quiet for a while."""
        times_s, samples = self.recording()
        loud = np.flatnonzero(np.abs(samples) > level)
        return times_s[loud[np.diff(loud, prepend=-self._rate) > quiet_s * self._rate]]


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Print a figure that was measured, also where the test passes."""
    with capsys.disabled():
        sys.stdout.write(f"\n    {line}\n")


def beep(*, length_s: float = 0.06, rate: int = 16000) -> np.ndarray:
    """Return a tone of 1 kHz that begins at once, (n,)."""
    return (0.5 * np.cos(2 * np.pi * 1000 * np.arange(round(length_s * rate)) / rate)).astype(np.float32)


@dataclass(frozen=True)
class Offsets:
    """How far apart things came that belong together."""

    values_s: np.ndarray

    @property
    def interval_s(self) -> tuple[float, float]:
        """Return the 95 % interval of the median, by resampling."""
        draws = np.random.default_rng(0).choice(self.values_s, (2000, len(self.values_s)))
        low_s, high_s = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
        return float(low_s), float(high_s)

    def are_within(self, most_s: float) -> bool:
        """Return whether the whole interval is."""
        low_s, high_s = self.interval_s
        return -most_s <= low_s and high_s <= most_s

    def __str__(self) -> str:
        low_s, high_s = self.interval_s
        median_s, least_s, most_s = np.median(self.values_s), self.values_s.min(), self.values_s.max()
        return (
            f"n = {len(self.values_s)}: median {1000 * median_s:.1f} ms (95 % {1000 * low_s:.1f} to "
            f"{1000 * high_s:.1f}), all {1000 * least_s:.1f} to {1000 * most_s:.1f} ms"
        )
