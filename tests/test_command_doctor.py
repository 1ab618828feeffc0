# SPDX-License-Identifier: Apache-2.0
"""`edgereels doctor`: can a package run here, on what, and what would be better."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgereels.runtime import command_doctor, engine_libraries
from edgereels.runtime import doctor_diagnosis as diagnosis
from edgereels.runtime.cli import main as edgereels
from edgereels.runtime.command_doctor import advice, as_json, as_text
from edgereels.runtime.cuda_driver import Card, CudaDriver
from edgereels.runtime.doctor_diagnosis import Diagnosis, diagnose
from edgereels.runtime.doctor_trial_process import Answer
from edgereels.runtime.footprint import RENDER_GRAPHS, estimate
from edgereels.runtime.machine import Memory
from edgereels.runtime.model_package import ModelPackage

from .stand_in_package import write_stand_in

ASKED = {"device": "cpu", "threads": 1, "compute": "auto", "place": {}, "allow_fallback": False}
ONE_CARD = CudaDriver(True, "580.65", "13.0", (Card(0, "NVIDIA Stand-in", 24 << 30, 20 << 30, (8, 9)),))
GOT = {"library": "onnxruntime", "provider": "CPUExecutionProvider", "precision": "f32", "fallback": None}
RAN = {
    "event": "ran",
    "mode": "window",
    "wall_s": 1.0,
    "frames": 13,
    "size": [32, 32],
    "calls": {"dit": 2},
    "resident_peak_bytes": 300_000_000,
    "card_bytes": [],
    "engines": {"dit": GOT, "vae_encoder_next": GOT | {"library": "openvino", "provider": "OpenVINO GPU"}},
}
TIMED = {"now_ms": 30.0, "then_ms": 15.0, "provider": "OpenVINO CPU", "precision": "bf16", "calls": 2}
FASTER = {"event": "other", "device": "openvino:CPU", "graphs": {"dit": TIMED}}
FASTER |= {"gain": {"n": 7, "median": 1.72, "low": 1.5, "high": 1.9, "wins": 7}}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "stand-in.edgereels")


def asker(*package_events: Mapping[str, Any], fault: str = "", **libraries: Answer) -> Callable[..., Answer]:
    """Return what answers like a machine with both engines, where a package runs as the events say."""
    both = {
        "onnxruntime": Answer(({"event": "library", "version": "1.32.0", "providers": ["CPUExecutionProvider"]},)),
        "openvino": Answer(({"event": "library", "version": "2026.4.1", "devices": [{"name": "CPU"}]},)),
    }

    def ask(request: Mapping[str, Any], *, timeout_s: float) -> Answer:
        if request["job"] == "library":
            return {**both, **libraries}[request["library"]]
        return Answer(package_events, fault)

    return ask


def found(package: Path | str, ask: Callable[..., Answer], **changes: Any) -> Diagnosis:
    return diagnose(str(package), asked={**ASKED, **changes}, ask=ask)


def screen(diagnosed: Diagnosis) -> str:
    return "\n".join(as_text(diagnosed))


# ── On this machine ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_package_that_runs_here_is_exit_code_0_and_one_screen(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgereels(["doctor", str(package), "--quick", "--threads", "1"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 160
    assert lines[-1].startswith("verdict   stand-in.edgereels can run here, its transformer on CPUExecutionProvider")
    assert any("vae_decoder_first.onnx, vae_decoder_next.onnx" in line for line in lines)
    assert any(line.startswith("memory") and "measured" in line for line in lines)


@pytest.mark.slow
def test_other_engines_are_really_timed(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edgereels(["doctor", str(package), "--threads", "1", "--json", "--device", "onnxruntime:CPU"]) == 0
    text = capsys.readouterr().out
    assert str(package.parent) not in text
    report = json.loads(text)
    (gain,) = report["gains"]
    assert (gain["device"], gain["fault"]) == ("openvino:CPU", "")
    assert 5 <= gain["n"] <= 7 and gain["low"] <= gain["median"] <= gain["high"]
    assert gain["graphs"]["dit"]["calls"] == 2  # the key-frame pass and one window
    assert report["run"]["mode"] == "window" and report["run"]["size"] == [32, 32]
    assert {row["file"] for row in report["graphs"]} >= {"dit.onnx", "finish.onnx"}
    assert report["memory"][0]["is_measured"] and 50e6 < report["memory"][0]["needed_bytes"] < 2e9


@pytest.mark.parametrize("device", ["openvino:NPU", "cuda:99"])
def test_a_device_that_is_not_there_is_exit_code_1_with_the_way_out(
    package: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgereels(["doctor", str(package), "--quick", "--device", device]) == 1
    verdict = capsys.readouterr().out.split("verdict", 1)[1]
    assert f"can not run here: device {device} was asked for" in verdict


def test_a_placed_graph_runs_where_it_was_put(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", str(package), "--quick", "--json", "--device", "onnxruntime:CPU", "--place"]
    assert edgereels([*arguments, "dit=openvino:CPU"]) == 0
    rows = {row["graph"]: row["library"] for row in json.loads(capsys.readouterr().out)["graphs"]}
    assert (rows["dit"], rows["vae_decoder_next"]) == ("openvino", "onnxruntime")


@pytest.mark.parametrize(
    "arguments",
    [["--device", "tpu"], ["--place", "dit"], ["--place", "nobody=cpu"], ["--threads", "0"], ["a", "b"]],
    ids=["device", "place", "place of what is not there", "threads", "two packages"],
)
def test_wrong_usage_is_exit_code_2(package: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments if arguments == ["a", "b"] else [str(package), *arguments]
    assert edgereels(["doctor", "--quick", *given]) == 2
    assert "edgereels doctor: wrong usage: " in capsys.readouterr().err


def test_without_a_package_the_embedded_one_is_meant() -> None:
    assert command_doctor._parser().parse_args([]).package == "default"


# ── Packages that can't run ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_package_that_is_not_there_still_shows_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgereels(["doctor", str(tmp_path / "nothing")]) == 1
    output = capsys.readouterr().out
    assert "onnxruntime" in output and "does not exist" in output


@pytest.fixture
def damaged(package: Path, tmp_path: Path) -> Path:
    """A package with one byte changed where only a digest tells."""
    copied = shutil.copytree(package, tmp_path / "damaged.edgereels")
    golden = copied / "golden" / "finish.safetensors"
    golden.write_bytes(golden.read_bytes()[:-1] + b"\x7f")
    return copied


def test_a_damaged_package_can_not_run(damaged: Path) -> None:
    diagnosed = found(damaged, asker(RAN))
    assert not diagnosed.can_run and "SHA-256" in diagnosed.verdict


def test_a_package_of_many_gigabytes_is_not_hashed(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MOST_HASHED_BYTES", 1000)
    assert found(damaged, asker(RAN)).can_run


def test_a_package_without_a_transformer_can_not_run(tmp_path: Path) -> None:
    part = write_stand_in(tmp_path / "part.edgereels", without=("dit",))
    diagnosed = found(part, asker(RAN))
    assert not diagnosed.can_run and "has no dit" in diagnosed.verdict


def test_a_package_larger_than_memory_is_not_tried(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "memory_facts", lambda: Memory(64 << 20, 32 << 20, None))

    def must_not_run(request: Mapping[str, Any], *, timeout_s: float) -> Answer:
        assert request["job"] == "library"
        return asker()(request, timeout_s=timeout_s)

    diagnosed = found(package, must_not_run)
    assert not diagnosed.can_run and "GB are free (estimated, not tried)" in diagnosed.fault
    assert "NOT ENOUGH" in screen(diagnosed)


def test_a_package_that_fits_in_parts_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session splits a transformer that doesn't fit: doctor must not call that "can not run"."""
    whole = estimate(ModelPackage.open("default", verify="size"), graphs=RENDER_GRAPHS)
    monkeypatch.setattr(diagnosis, "memory_facts", lambda: Memory(None, whole.memory_bytes - 1, None))
    monkeypatch.setattr(diagnosis, "WINDOW_BUDGET_S", 0.0)
    diagnosed = found("default", asker(RAN | {"mode": "golden"}))
    (need,) = diagnosed.needs
    assert diagnosed.can_run and need.fits and need.how.endswith("the transformer in parts")


def test_memory_counts_where_each_graph_is_placed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "find_cards", lambda: ONE_CARD)
    monkeypatch.setattr(diagnosis, "WINDOW_BUDGET_S", 0.0)

    def needs(**asked: Any) -> dict[str, int]:
        diagnosed = found(package, asker(RAN | {"mode": "golden"}), **asked)
        return {need.where: need.needed_bytes for need in diagnosed.needs}

    everything = needs()
    placed = needs(place={"dit": "cuda:0", "vae_decoder": "cuda:0", "vae_decoder_first": "cpu"})
    assert set(everything) == {"memory"} and set(placed) == {"memory", "cuda:0"}
    assert sum(placed.values()) == pytest.approx(everything["memory"], rel=0.01)  # weights that both hold count twice
    assert needs(device="cuda:0", place={"dit": "cpu"})["cuda:0"] < needs(device="cuda:0")["cuda:0"]
    assert set(needs(place={"dit": "cuda:7"})) == {"memory"}  # no such card: the trial says so


def test_a_card_that_is_too_small_for_what_is_placed_on_it_is_not_tried(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = CudaDriver(True, "580.65", "13.0", (Card(0, "NVIDIA Stand-in", 24 << 30, 1000, (8, 9)),))
    monkeypatch.setattr(diagnosis, "find_cards", lambda: tiny)
    assert found(package, asker(RAN)).can_run  # nothing runs there
    diagnosed = found(package, asker(RAN), place={"vae_decoder": "cuda:0"})
    assert not diagnosed.can_run and "GB of cuda:0" in diagnosed.fault
    assert [need.fits for need in diagnosed.needs] == [True, False]


def test_memory_that_is_not_told_stops_nobody(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "memory_facts", lambda: Memory(None, None, None))
    diagnosed = found(package, asker(RAN))
    assert diagnosed.can_run and "unknown free" in screen(diagnosed)


def test_a_window_that_would_take_minutes_is_not_run(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden vectors are run instead, and the estimate stays an estimate."""
    monkeypatch.setattr(diagnosis, "WINDOW_BUDGET_S", 0.0)
    asked: list[bool] = []

    def ask(request: Mapping[str, Any], *, timeout_s: float) -> Answer:
        if request["job"] == "package":
            asked.append(request["whole_window"])
        return asker(RAN | {"mode": "golden"})(request, timeout_s=timeout_s)

    diagnosed = found(package, ask)
    assert asked == [False]
    assert [need.is_measured for need in diagnosed.needs] == [False]


def test_golden_vectors_really_run_where_a_window_does_not(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "WINDOW_BUDGET_S", 0.0)
    diagnosed = diagnose(str(package), asked=ASKED, quick=True)
    assert diagnosed.can_run and diagnosed.run["mode"] == "golden"
    assert {row.graph for row in diagnosed.rows} >= {"dit", "finish", "audio_encoder"}


# ── Engines that are missing or break ────────────────────────────────────────────────────────────────────────────────


def test_without_any_engine_nothing_runs_and_nothing_crashes(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_libraries, "installed_wheels", lambda _name: {})
    monkeypatch.setattr(engine_libraries, "module_is_there", lambda _name: False)
    diagnosed = found(package, asker())
    assert not diagnosed.can_run and "no engine works (pip install 'edgereels[cpu]')" in diagnosed.verdict
    assert "error: no engine is installed: pip install 'edgereels[cpu]'" in " ".join(screen(diagnosed).split())
    json.dumps(as_json(diagnosed), allow_nan=False)


def test_a_broken_engine_is_named_and_the_other_one_runs(package: Path) -> None:
    diagnosed = found(package, asker(RAN, openvino=Answer((), "ImportError: no libtbb")))
    assert diagnosed.can_run
    assert "BROKEN" in screen(diagnosed) and "no libtbb" in screen(diagnosed)


def test_a_crash_while_the_package_runs_is_a_verdict(package: Path) -> None:
    diagnosed = found(package, asker(fault="trying to run one window ended the process by SIGSEGV"))
    assert not diagnosed.can_run and "SIGSEGV" in diagnosed.verdict


def test_a_crash_while_others_are_timed_does_not_change_the_verdict(package: Path) -> None:
    diagnosed = found(package, asker(RAN, fault="trying to time openvino:CPU ended the process by SIGSEGV"))
    assert diagnosed.can_run
    assert "other engines could not be compared" in " ".join(screen(diagnosed).split())


def test_a_trial_that_is_killed_is_a_verdict_and_no_crash(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real process, killed by itself before it says anything."""
    monkeypatch.setenv("PYTHONPATH", os.fspath(_folder_that_kills(package)))
    diagnosed = diagnose(str(package), asked=ASKED, quick=True)
    assert not diagnosed.can_run and "no engine works (onnxruntime: trying to import onnxruntime" in diagnosed.fault
    assert all("by SIGKILL, as Linux does when memory runs out" in each.fault for each in diagnosed.libraries.values())


def _folder_that_kills(package: Path) -> Path:
    folder = package.parent / "kills"
    folder.mkdir(exist_ok=True)
    code = f"import os\nos.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    for module in ("onnxruntime", "openvino"):
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
    return folder


# ── What is said ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_faster_engine_is_one_sentence_with_count_and_spread(package: Path) -> None:
    diagnosed = found(package, asker(RAN, FASTER))
    assert advice(diagnosed) == (
        "openvino:CPU would run this package's transformer and VAE 1.7 times as fast, in bf16, at the package's own "
        "size (median of 7 paired rounds, 1.5 to 1.9, 7 of them faster): --device openvino:CPU"
    )


@pytest.mark.parametrize(
    ("changes", "is_faster"),
    [
        ({}, True),
        ({"wins": 6, "low": 0.9}, True),
        ({"wins": 5, "low": 0.9}, False),
        ({"median": 1.08}, False),
    ],
    ids=["in all rounds", "in all but one", "in all but two", "hardly"],
)
def test_an_engine_is_faster_only_beyond_chance(package: Path, changes: dict[str, Any], is_faster: bool) -> None:
    diagnosed = found(package, asker(RAN, FASTER | {"gain": {**FASTER["gain"], **changes}}))
    assert ("stay with this engine" not in advice(diagnosed)) is is_faster


def test_an_engine_that_could_not_be_timed_says_why(package: Path) -> None:
    fault = {"event": "other", "device": "openvino:GPU", "fault": "out of memory"}
    assert "openvino:GPU: could not be timed: out of memory" in screen(found(package, asker(RAN, fault)))


def test_a_path_that_nobody_ever_ran_is_unverified(package: Path) -> None:
    diagnosed = found(package, asker(RAN))
    rows = {row.graph: row for row in diagnosed.rows}
    assert rows["vae_encoder_next"].seen == ""
    assert any("OpenVINO GPU" in line and line.endswith("unverified") for line in screen(diagnosed).splitlines())
    assert (
        "unverified on this kind of machine: OpenVINO GPU" in diagnosed.verdict or "OpenVINO GPU" in diagnosed.verdict
    )


def test_a_fallback_is_shown_beside_the_graph(package: Path) -> None:
    got = GOT | {"fallback": "device cuda:0 was asked for"}
    assert "fallback: device cuda:0 was asked for" in screen(found(package, asker(RAN | {"engines": {"dit": got}})))


def test_a_transformer_in_parts_is_shown_beside_the_graph(package: Path) -> None:
    got = GOT | {"in_parts": {"blocks": 40, "open_blocks": 7}}
    diagnosed = found(package, asker(RAN | {"engines": {"dit": got}}))
    assert "in parts for lack of memory, 7 of 40 blocks stay open" in screen(diagnosed)
    (row,) = json.loads(json.dumps(as_json(diagnosed)))["graphs"]
    assert row["in_parts"] == {"blocks": 40, "open_blocks": 7}
    whole = found(package, asker(RAN))
    assert "in parts" not in screen(whole) and as_json(whole)["graphs"][0]["in_parts"] is None


def test_a_card_is_shown_and_its_memory_counts(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "find_cards", lambda: ONE_CARD)
    diagnosed = found(package, asker(RAN | {"card_bytes": [3 << 30]}))
    assert "cuda:0: NVIDIA Stand-in, 25.8 GB, 21.5 GB free, compute capability 8.9" in " ".join(
        screen(diagnosed).split()
    )
    assert [(need.where, need.needed_bytes) for need in diagnosed.needs][1] == ("cuda:0", 3 << 30)
    assert "NVIDIA Stand-in lies idle" in " ".join(screen(diagnosed).split())


def test_siblings_are_named_as_the_files_that_run(package: Path) -> None:
    """Which file a library reads is the manifest's word."""
    entry = ModelPackage.open(package).graph("dit")
    assert entry.file_for("openvino") == "dit.onnx"  # no sibling: the graph's own
