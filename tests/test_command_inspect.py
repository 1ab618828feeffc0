# SPDX-License-Identifier: Apache-2.0
"""`edgereels inspect` says what a package holds, and runs nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgereels.runtime.cli import main as edgereels
from edgereels.runtime.command_inspect import main
from edgereels.runtime.printable import printable

from .package_examples import LOCATION, change_manifest, write_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("inspect") / "tiny.edgereels").root


@pytest.fixture
def text(package: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(package)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def whole(package: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([str(package), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def line_of(text: str, begin: str) -> str:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(begin)]
    return " ".join(line.split())


def test_it_says_what_the_package_is(text: str) -> None:
    assert text.startswith("tiny.edgereels: tiny, a package for talking-avatar (format version 3)\n")


def test_it_says_how_the_network_is_sampled(text: str) -> None:
    line = line_of(text, "settings")
    assert line == "settings 25 fps, window 33, motion 5, drop 4 frames, 1 step, shift 11, sound at 16000 Hz"


def test_it_says_how_near_to_pytorch_it_is(text: str, whole: dict[str, Any]) -> None:
    assert line_of(text, "parity") == "parity 3 of 3 graphs within 1.0e-07 (relative 1.0e-07) of PyTorch at export"
    measured = {"max_abs": 1e-7, "max_rel": 1e-7, "graphs_measured": 3, "graphs": 3}
    assert whole["quality"] == {**measured, "said": "unmeasured", "ladders": []}


def test_a_package_without_a_record_is_unmeasured(text: str) -> None:
    assert line_of(text, "quality") == "quality unmeasured"


def test_it_says_whose_face_it_takes(text: str) -> None:
    assert line_of(text, "portraits") == "portraits listed; avatars: anna"


def test_it_says_who_licenses_what(text: str) -> None:
    licences = [" ".join(line.split()) for line in text.partition("licences\n")[2].splitlines()]
    assert licences == ["dit Apache-2.0", "finish unknown"]


def test_blocks_share_a_line(text: str) -> None:
    """Parameters are added up; the weights that both blocks share are counted once."""
    assert line_of(text, "dit_block x 2") == "dit_block x 2 dit 32 64 B 2 1.0e-07 1.0e-07 yes"
    assert "dit_block_00" not in text


def test_json_holds_the_manifest_and_what_was_found(whole: dict[str, Any]) -> None:
    assert whole["format_version"] == 3
    assert whole["checked"] == "full"
    assert whole["settings"]["window"] == 33
    assert whole["portraits"] == "listed" and whole["avatars"] == {"anna": "avatars/anna.safetensors"}
    assert whole["graphs"]["finish"]["nodes"] == 5
    assert whole["graphs"]["finish"]["weights"] == [LOCATION]
    assert whole["graphs"]["finish"]["parity"] == {
        "max_abs": 1e-7,
        "max_rel": 1e-7,
        "shapes": 2,
        "bf16_rel_l2": None,
    }
    assert whole["weights_bytes"] == 64
    assert whole["file_count"] == len(whole["files"])


def test_quick_says_that_digests_were_not_compared(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(package), "--quick"]) == 0
    assert "digests not compared" in capsys.readouterr().out


def test_a_package_with_one_subnetwork_is_shown(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = write_package(tmp_path / "partial").root

    def keep_finish(fields: dict[str, Any]) -> None:
        fields.update(graphs={"finish": fields["graphs"]["finish"]}, dit=None, tables=None, mouth_box=None)
        fields.update(golden={}, made_with={}, avatars={}, portraits="any")
        for name in [name for name in fields["files"] if not name.startswith(("finish", "weights", "licences"))]:
            del fields["files"][name]
            (partial / name).unlink()
            if not any((partial / name).parent.iterdir()):
                (partial / name).parent.rmdir()

    change_manifest(partial, keep_finish)
    assert main([str(partial)]) == 0
    assert line_of(capsys.readouterr().out, "portraits") == "portraits any"


def test_a_damaged_package_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = write_package(tmp_path / "tiny").root
    (package / LOCATION).write_bytes(bytes(64))
    assert edgereels(["inspect", str(package)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("edgereels inspect: tiny: ") and output.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--unknown"]], ids=["none", "two", "unknown"])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert edgereels(["inspect", *arguments]) == 2
    assert "edgereels inspect: wrong usage: " in capsys.readouterr().err


def test_inspecting_loads_no_engine(package: Path) -> None:
    program = (
        "import sys; from edgereels.runtime.command_inspect import main; main([sys.argv[1], '--json']);"
        "assert not {'onnxruntime', 'openvino', 'onnx', 'torch', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(package)], check=True, stdout=subprocess.DEVNULL)


# ── Names that a terminal would obey ─────────────────────────────────────────────────────────────────────────────────

HOSTILE = "a\x1b[2J\x9b31mb\rc\nd\u202ee\x07"


def test_names_of_a_package_can_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_package(tmp_path / "tiny.edgereels").root
    change_manifest(
        root, lambda fields: fields.update(name=HOSTILE, made_with={"torch": HOSTILE}, licences={"dit": HOSTILE})
    )
    assert main([str(root)]) == 0
    text = capsys.readouterr().out
    assert text.count(r"a\x1b[2J\x9b31mb\rc\nd\u202ee\x07") == 3
    assert all(sign.isprintable() for line in text.split("\n") for sign in line)
    assert main([str(root), "--json"]) == 0
    shown = capsys.readouterr().out
    assert shown.isascii() and "\x1b" not in shown and json.loads(shown)["name"] == HOSTILE  # whole, for machines


@pytest.mark.skipif(sys.platform == "win32", reason="no such file names")
@pytest.mark.parametrize("verb", ["inspect", "verify", "doctor"])
def test_neither_can_the_name_of_a_folder(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a\x1b]0;title\x07.edgereels"
    assert edgereels([verb, str(folder), *(["--quick"] if verb == "doctor" else [])]) == 1  # it isn't there
    output = capsys.readouterr()
    assert r"a\x1b]0;title\x07.edgereels" in output.out + output.err
    assert "\x1b" not in output.out + output.err


def test_what_is_harmless_is_printed_as_it_is() -> None:
    for line in ("", "Anna's façade: 3 × 4 µm, 窓", "  two  spaces"):
        assert printable(line) == line
