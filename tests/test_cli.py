# SPDX-License-Identifier: Apache-2.0
"""The command's own manners: verbs, exit codes, one line of error."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from edgereels.runtime import cli
from edgereels.runtime.engine import open_engine
from edgereels.runtime.errors import EdgereelsError

from .test_engine import ENDLESS

VERBS = {"export", "inspect", "verify", "quantize", "avatar", "render", "demo", "doctor", "bench", "live", "plan"}


def fails(_arguments: list[str]) -> int:
    raise EdgereelsError("found a, expected b: do c")


def is_interrupted(_arguments: list[str]) -> int:
    raise KeyboardInterrupt


def is_terminated(_arguments: list[str]) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return 5


def breaks(_arguments: list[str]) -> int:
    raise ZeroDivisionError


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"fail": fails, "interrupt": is_interrupted, "terminate": is_terminated, "break": breaks}
    calls |= {"memory": lacks_memory, "disk": lacks_a_disk, "story": has_a_long_story, "warn": warns}
    entries = [EntryPoint(name, f"{__name__}:{call.__name__}", cli.COMMAND_GROUP) for name, call in calls.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)
    monkeypatch.setattr(cli, "_load", lambda verb: calls[verb.name])


def test_every_verb_is_installed() -> None:
    assert {entry.name for entry in cli.entry_points(group=cli.COMMAND_GROUP)} == VERBS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert f"edgereels {verb}" in capsys.readouterr().out


def lacks_memory(_arguments: list[str]) -> int:
    raise MemoryError


def lacks_a_disk(_arguments: list[str]) -> int:
    raise OSError(5, "Input/output error", "a.wav")


def has_a_long_story(_arguments: list[str]) -> int:
    logging.getLogger("edgereels.runtime.audio").warning("the header lies")
    raise EdgereelsError("found a\nand b")


def warns(_arguments: list[str]) -> int:
    logging.getLogger("edgereels.runtime.audio").warning("the header lies")
    return 0


@pytest.mark.parametrize("verb", ["memory", "disk", "story"])
def test_any_failure_is_one_line_and_exit_1(verb: str, verbs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_warnings_are_printed_where_a_verb_ends_well(verbs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["warn"]) == 0
    assert capsys.readouterr().err == "edgereels warn: warning: the header lies\n"


def test_a_verb_runs_on_another_thread(verbs: None) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["warn"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_our_errors_are_one_line_and_exit_1(verbs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fail"]) == 1
    assert capsys.readouterr().err == "edgereels fail: found a, expected b: do c\n"


def test_debug_shows_the_traceback(verbs: None) -> None:
    with pytest.raises(EdgereelsError):
        cli.main(["fail", "--debug"])


def test_other_errors_keep_their_traceback(verbs: None) -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["break"])


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to a process by number")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_a_graph_that_would_run_for_hours(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    onnx.save(onnx.parser.parse_model(ENDLESS), tmp_path / "g.onnx")
    engine = open_engine(tmp_path / "g.onnx", threads=1)

    def runs(_arguments: list[str]) -> int:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
        timer.start()
        engine.run({"x": np.ones(8, np.float32)})
        return 5

    monkeypatch.setattr(cli, "entry_points", lambda group: [EntryPoint("run", "a:b", group)])
    monkeypatch.setattr(cli, "_load", lambda verb: runs)
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are made deaf to it
    before, began_s = threading.active_count(), time.monotonic()
    try:
        assert cli.main(["run"]) == code
    finally:
        signal.signal(signal.SIGINT, heard)
    assert time.monotonic() - began_s < 30
    assert threading.active_count() <= before + 1  # the timer may not be gone yet
    assert signal.set_wakeup_fd(-1) == -1


def test_ctrl_c_exits_130(verbs: None) -> None:
    assert cli.main(["interrupt"]) == 130


def test_sigterm_exits_0(verbs: None) -> None:
    assert cli.main(["terminate"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no verb"),
        pytest.param(["sing"], id="unknown verb"),
        pytest.param(["render", "--audio", "a.wav"], id="nothing to write"),
        pytest.param(
            ["render", "--audio", "a.wav", "--out", "b.mp4", "--size", "100x100"], id="size not a multiple of 16"
        ),
        pytest.param(["render", "--audio", "a.wav", "--out", "b.mp4", "--size", "large"], id="size that is none"),
        pytest.param(
            ["render", "--audio", "a.wav", "--out", "b.mp4", "--seed", "1", "--noise", "n"],
            id="seed and recorded draws",
        ),
        pytest.param(
            ["render", "--audio", "a.wav", "--out", "b.mp4", "--image", "i.png", "--avatar", "anna"],
            id="picture and avatar",
        ),
        pytest.param(["render", "--audio", "a.wav", "--out", "b.mp4", "--thread", "2"], id="abbreviated option"),
        pytest.param(["avatar", "package", "image.png"], id="nothing to write an avatar to"),
        pytest.param(["verify"], id="no package"),
        pytest.param(["verify", "p", "--device", "abacus"], id="unknown device to verify on"),
        pytest.param(["inspect", "p", "--loudly"], id="unknown option of inspect"),
        pytest.param(["export", "checkpoint"], id="no package to export to"),
        pytest.param(["render", "--audio", "a.wav", "--out", "b.mp4", "--sing"], id="unknown option"),
        pytest.param(["render", "--audio", "a.wav", "--out", "b.mp4", "--device", "abacus"], id="unknown device"),
        pytest.param(["render", "--audio", "a.wav", "--out", "b.mp4", "--threads", "0"], id="no threads"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert not arguments or captured.err.count("\n") == 1
    assert not arguments or not captured.out


def test_the_command_starts_without_heavy_libraries() -> None:
    code = (
        "import sys; from edgereels.runtime.cli import main; main(['--help']); "
        "print(sorted({'torch', 'onnxruntime', 'cv2', 'av', 'PIL', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_name_that_the_terminal_can_not_show_is_escaped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgereels.runtime.cli", "inspect", "päckchen"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 1
    assert "p\\xe4ckchen does not exist" in done.stderr
    assert done.stderr.count("\n") == 1
