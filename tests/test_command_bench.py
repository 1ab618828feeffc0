# SPDX-License-Identifier: Apache-2.0
"""`edgereels bench` from the outside: what is refused before work starts, what is printed, how it exits."""

import json
import wave
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.benchmarks import command_bench, command_bench_compare, latency_run
from edgereels.benchmarks.build_digest import build_digest
from edgereels.benchmarks.latency_scenarios import Plan
from edgereels.runtime import AvatarSession, Stopped, cli

from .fake_session import FakeSession, Fault, QuietWatch, drive
from .virtual_clock import VirtualClock

VERB = EntryPoint("bench", "edgereels.benchmarks.command_bench:main", "edgereels.commands")


def bench(*arguments: object) -> int:
    return cli._run(VERB, [str(argument) for argument in arguments])


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "speech.wav"
    samples = np.random.default_rng(0).integers(-3000, 3000, 16000 * 2).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return bench on a session that makes nothing, in time that passes at once."""

    def run(*arguments: object, fault: Fault | None = None, work_s: float = 0.2) -> int:
        clock = VirtualClock(50.0, patience_s=2.0)
        around = partial(
            latency_run.Surroundings,
            open_session=lambda *_package, **_asked: FakeSession(clock, work_s=work_s, fault=fault),
            clock=clock,
            clock_kind="virtual",
            watch=QuietWatch,
            nearest=lambda *_session, **_asked: "something slower",
            began_s=49.0,
        )
        monkeypatch.setattr(command_bench, "Surroundings", around)
        monkeypatch.setattr(command_bench_compare, "Surroundings", around)
        return drive(clock, lambda: bench(*arguments), waiting=3)

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--scenario", "sleep"], 2, "invalid choice: 'sleep'"),
        (["--duration", "0"], 2, "'0': expected a number above 0"),
        (["--duration", "-5"], 2, "expected a number above 0"),
        (["--duration", "long"], 2, "'long': expected a number above 0"),
        (["--duration", "nan"], 2, "expected a number above 0"),
        (["--turns", "0"], 2, "at least 1"),
        (["--latency", "none"], 2, "invalid choice"),
        (["--audio", "nothing.wav"], 1, "nothing.wav doesn't exist"),
        (["--out", "taken"], 1, "exists; expected a new folder"),
        (["--out", "no/where"], 1, "there is no folder"),
        (["--device", "abacus"], 2, "abacus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_can_not_be_measured_is_refused_in_one_line_before_work_starts(
    arguments: list[str],
    code: int,
    words: str,
    audio: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AvatarSession, "open", lambda *_a, **_b: pytest.fail("work started"))
    Path("taken").mkdir()
    usual = {"--scenario": "paced", "--audio": str(audio), "--out": "out", "--duration": "1"}
    given = usual | dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert bench(*[part for pair in given.items() for part in pair]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and words in captured.err
    assert not captured.out
    assert not Path("out").exists()


def test_a_live_run_exits_0_and_leaves_three_files(
    fake: Callable[..., int], audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert fake("--scenario", "paced", "--duration", 4, "--audio", audio, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("live at 25 fps on this machine with ")
    assert captured.out.endswith("\neverything on OpenVINO (OpenVINO CPU, f32); asked for cpu\n")
    assert captured.err == "", "no progress where nobody watches"
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "trace.jsonl"]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["environment"]["build"] == build_digest()
    assert f"edgereels {report['run']['version']}, build {build_digest()}" in (out / "report.html").read_text("utf-8")
    assert bench("verify", out) == 0
    assert "follow from its trace" in capsys.readouterr().out


def test_a_missed_deadline_is_a_finding_and_no_failure(
    fake: Callable[..., int], audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert fake("--scenario", "paced", "--duration", 4, "--audio", audio, "--out", out, work_s=0.9) == 0
    assert capsys.readouterr().out.startswith("not live: needs ")


def test_an_invalid_report_exits_1_and_says_why(
    fake: Callable[..., int], audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = fake("--scenario", "paced", "--duration", 3, "--audio", audio, "--out", out, fault=Fault(peek_from=2))
    captured = capsys.readouterr()
    assert code == 1
    assert "the report is invalid: " in captured.err and "sound that had not arrived" in captured.err
    assert (out / "report.json").exists(), "the report is there to be read"


@pytest.mark.slow
def test_machines_read_the_report_itself(
    fake: Callable[..., int], audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fake("--scenario", "turns", "--turns", 2, "--utterance", 1, "--audio", audio, "--out", out, "--json", "--progress")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert "turns: " in captured.err


def test_force_replaces_a_report(fake: Callable[..., int], audio: Path, tmp_path: Path) -> None:
    arguments = ["--scenario", "soak", "--duration", "2", "--audio", audio, "--out", tmp_path / "out"]
    assert fake(*arguments) == 0
    before = (tmp_path / "out/trace.jsonl").stat().st_ino
    assert fake(*arguments) == 1
    assert fake(*arguments, "--force") == 0
    assert (tmp_path / "out/trace.jsonl").stat().st_ino != before


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_leaves_a_report_of_what_there_was(
    fake: Callable[..., int], audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    progress = latency_run._progress

    def end(*arguments: Any) -> Callable[[], None]:
        show = progress(*arguments)

        def look() -> None:
            show()
            looks.append(1)
            if len(looks) == 5:
                raise Stopped

        return look

    monkeypatch.setattr(latency_run, "_progress", end)
    out = tmp_path / "out"
    assert fake("--scenario", "paced", "--duration", 60, "--audio", audio, "--out", out) == 0
    assert bench("verify", out) == 0
    assert 1 < json.loads((out / "report.json").read_text(encoding="utf-8"))["run"]["measured_s"] < 10


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(
    fake: Callable[..., int], audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: Any) -> Callable[[], None]:
        def look() -> None:
            raise KeyboardInterrupt

        return look

    monkeypatch.setattr(latency_run, "_progress", interrupt)
    assert fake("--scenario", "paced", "--duration", 60, "--audio", audio, "--out", tmp_path / "out") == 130
    assert [path.name for path in tmp_path.iterdir()] == [audio.name]


def test_verify_finds_a_line_that_was_removed_and_a_figure_that_was_changed(
    fake: Callable[..., int], audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fake("--scenario", "paced", "--duration", 2, "--audio", audio, "--out", out)
    whole, report = (out / "trace.jsonl").read_bytes(), (out / "report.json").read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    (out / "trace.jsonl").write_bytes(b"".join(lines[:40] + lines[41:]))
    assert bench("verify", out) == 1
    (out / "trace.jsonl").write_bytes(whole)
    changed = json.loads(report)
    changed["figures"]["misses"]["hits"] += 1
    (out / "report.json").write_text(json.dumps(changed), encoding="utf-8")
    assert bench("verify", out) == 1
    assert "figures.misses.hits is 1" in capsys.readouterr().err
    (out / "report.json").write_text(report, encoding="utf-8")
    assert bench("verify", out) == 0
    assert bench("verify", tmp_path) == 1


def test_compare_writes_what_it_rests_on(
    fake: Callable[..., int], audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    recipes = ["device=openvino:CPU", "device=onnxruntime:CPU"]
    assert fake("compare", *recipes, "--audio", audio, "--out", out, "--pairs", 2, "--utterance", 1) == 0
    verdict, first, second = capsys.readouterr().out.splitlines()
    assert verdict.startswith("too few pairs: 1.000×")
    assert first == "first: everything on OpenVINO (OpenVINO CPU, f32); asked for openvino:CPU"
    assert second == "second: everything on OpenVINO (OpenVINO CPU, f32); asked for onnxruntime:CPU"
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert (found["first"]["device"], found["second"]["device"]) == ("openvino:CPU", "onnxruntime:CPU")
    assert found["environment"]["build"] == build_digest()
    assert bench("verify", out) == 0


def test_machines_read_a_report_or_a_comparison_and_nothing_else(
    fake: Callable[..., int], audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("--scenario", "paced", "--duration", 1, "--audio", audio, "--out", tmp_path / "one", "--json")
    assert json.loads(capsys.readouterr().out)["format"] == "edgereels-latency-report/1"
    sides = ["seed=1", "seed=2", "--pairs", 1, "--utterance", 1]
    fake("compare", *sides, "--audio", audio, "--out", tmp_path / "two", "--json")
    assert json.loads(capsys.readouterr().out)["format"] == "edgereels-latency-comparison/1"


def test_a_recipe_that_is_none_exits_2(audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("compare", "colour=red", "latency=low", "--audio", audio, "--out", tmp_path / "out") == 2
    assert "holds colour" in capsys.readouterr().err


def test_utterances_are_whole_frames() -> None:
    assert command_bench.whole_frames(1.03) == pytest.approx(1.04)
    assert command_bench.whole_frames(0.001) == pytest.approx(0.04)
    assert command_bench.whole_frames(float("inf")) == float("inf")


def test_settings_name_no_folder() -> None:
    asked = latency_run.Asked(Plan("paced", 1.0), package="/home/somebody/a.edgereels", live={"avatar": "/x/anna"})
    settings = asked.settings()
    assert (settings["package"], settings["avatar"]) == ("a.edgereels", "anna")
    assert "turns" not in settings
