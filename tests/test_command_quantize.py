# SPDX-License-Identifier: Apache-2.0
"""`edgereels quantize` on the command line: what it prints, what it leaves, and its bad days."""

import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from edgereels.quant import gate
from edgereels.quant.recipes import BUILT_IN, parse_recipe, recipe_bytes
from edgereels.runtime.cli import main as edgereels
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.quality import read_quality

from .layered_package import write_layered

SPEECH_S = 6.0  # two windows of the embedded package


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that can not render; not to be changed."""
    return write_layered(tmp_path_factory.mktemp("command") / "layered").root


def quantize(*words: str | Path) -> int:
    return edgereels(["quantize", *map(str, words)])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write_sound(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.clip(samples * 32767, -32768, 32767).astype("<i2").tobytes())


def test_a_table_says_what_is_covered_and_how_much_smaller_it_is(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(source, tmp_path / "out", "--recipe", "int4", "--no-gate") == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines() if line.startswith("dit ")]
    assert [(row[1], row[2], row[-1]) for row in rows] == [("int4", "9", "0.141×"), ("int8", "3", "0.264×")]
    assert "note: int8 instead of int4, inputs no multiple of 64: audio.odd" in printed.out
    assert ModelPackage.open(tmp_path / "out").digest in printed.out.splitlines()[-1]
    assert "was written unjudged: layered has no audio_encoder" in printed.err


def test_json_is_for_machines(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(source, tmp_path / "out", "--recipe", "int8", "--no-gate", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["digest"] == ModelPackage.open(tmp_path / "out").digest
    assert [row["form"] for row in printed["coverage"]] == ["int8"]
    assert 0.25 < printed["coverage"][0]["ratio"] <= 0.30


def test_progress_goes_to_stderr_where_it_is_asked_for(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(source, tmp_path / "out", "--recipe", "int8", "--no-gate", "--progress") == 0
    assert "weights 4 of 4" in capsys.readouterr().err


def test_a_recipe_file_is_followed(source: Path, tmp_path: Path) -> None:
    rule = {"graphs": ["dit*"], "layers": ["blocks.1.*"], "form": "int4"}
    fields = {"format": "edgereels-recipe", "format_version": 1, "name": "mine", "rules": [rule]}
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    assert quantize(source, tmp_path / "out", "--recipe", tmp_path / "mine.json", "--no-gate") == 0
    found = ModelPackage.open(tmp_path / "out").manifest.quantization
    assert found is not None
    assert (found.recipe, found.covered.layers) == ("mine", 5)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--recipe", "int9"], 2, "expected fp16, bf16, int8"),
        (["--recipe", "int8", "--budget-mb", "none"], 2, "expected a size in MB"),
        ([], 2, "--recipe"),
        (["--recipe", "int8"], 1, "has no audio_encoder, vae_encoder, finish and can not render"),
        (["--recipe", "w8a8", "--no-gate"], 1, "has no audio_encoder"),
    ],
    ids=["unknown recipe", "no number", "no recipe", "gate of what can't render", "calibration of what can't render"],
)
def test_bad_days_are_one_line_and_leave_nothing(
    words: list[str], code: int, said: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(source, tmp_path / "out", *words) == code
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert names(tmp_path) == set()


@pytest.mark.parametrize("option", ["--write-recipe", "--draw"])
@pytest.mark.parametrize(
    "place",
    ["in/found", "in", "in/weights/found", "link/found", "out", "out/found", "out.partial", "out.partial/found"],
)
def test_no_result_is_written_into_a_package(
    option: str, place: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "in"
    shutil.copytree(source, package)
    (tmp_path / "link").symlink_to(package)
    there = sorted(package.rglob("*"))
    assert quantize(package, tmp_path / "out", "--recipe", "int8", "--no-gate", option, tmp_path / place) == 2
    printed = capsys.readouterr().err
    assert f"{option} {tmp_path / place} means the package" in printed and printed.count("\n") == 1
    assert sorted(package.rglob("*")) == there and names(tmp_path) == {"in", "link"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--write-recipe", "found", "--draw", "found"], "--draw and --write-recipe both mean found"),
        (["--write-recipe", "mine.json"], "--write-recipe and --recipe both mean mine.json"),
        (["--draw", "missing/found"], "missing is no folder"),
        (["--draw", "elsewhere/found"], "has no audio_encoder"),  # control: what is outside is no reason
    ],
    ids=["both", "the recipe", "nowhere", "elsewhere"],
)
def test_results_replace_neither_each_other_nor_the_recipe(
    words: list[str],
    said: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.json").write_bytes(recipe_bytes(BUILT_IN["int8"]))
    monkeypatch.chdir(tmp_path)
    assert quantize(source, "out", "--recipe", "mine.json", "--no-gate", *words) != 0
    assert said in capsys.readouterr().err
    assert names(tmp_path) == {"elsewhere", "mine.json"}


def test_a_target_that_exists_needs_force(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert quantize(source, tmp_path / "out", "--recipe", "int8", "--no-gate") == 1
    assert "--force" in capsys.readouterr().err
    assert quantize(source, tmp_path / "out", "--recipe", "int8", "--no-gate", "--force") == 0


def test_a_quantized_package_is_no_source(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(source, tmp_path / "first", "--recipe", "int8", "--no-gate") == 0
    assert quantize(tmp_path / "first", tmp_path / "second", "--recipe", "int4", "--no-gate") == 1
    assert "quantize the package that it was made from" in capsys.readouterr().err
    assert names(tmp_path) == {"first"}


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros(int(SPEECH_S * 16000)), "is silent"),
        (np.random.default_rng(0).normal(0, 0.1, 4000), "0.4 s"),
    ],
    ids=["silent", "shorter than anything"],
)
def test_sounds_that_teach_nothing_are_refused(
    samples: np.ndarray, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sounds").mkdir()
    write_sound(tmp_path / "sounds" / "a.wav", samples)
    out = tmp_path / "out"
    assert quantize("default", out, "--recipe", "w8a8", "--calibration", tmp_path / "sounds", "--no-gate") == 1
    assert said in capsys.readouterr().err
    assert names(tmp_path) == {"sounds"}


def test_a_link_to_nothing_among_the_sounds_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.wav").symlink_to(tmp_path / "gone.wav")
    words = ("--recipe", "w8a8", "--calibration", tmp_path / "sounds", "--no-gate")
    assert quantize("default", tmp_path / "out", *words) == 1
    printed = capsys.readouterr().err
    assert "a.wav is a link to" in printed and "remove it" in printed and printed.count("\n") == 1
    assert names(tmp_path) == {"sounds"}


def test_a_calibration_that_nobody_needs_is_said_to_be_unheard(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--recipe", "int8", "--no-gate", "--calibration")
    assert quantize(source, tmp_path / "out", *words, tmp_path / "nowhere") == 1
    assert "nowhere is not a folder" in capsys.readouterr().err and names(tmp_path) == set()
    assert quantize(source, tmp_path / "out", *words, tmp_path) == 0
    assert "was not heard: the recipe int8 needs no ranges" in capsys.readouterr().err


def test_without_an_engine_the_gate_says_what_to_install(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "find_spec", lambda _module: None)
    assert quantize(source, tmp_path / "out", "--recipe", "int8") == 1
    assert "pip install 'edgereels[cpu]'" in capsys.readouterr().err


def test_without_onnx_the_extra_is_named(source: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["onnx"] = None
from edgereels.runtime.cli import main
sys.exit(main(["quantize", {str(source)!r}, {str(tmp_path / "out")!r}, "--recipe", "int8"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "edgereels[quant]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_needs_no_onnx() -> None:
    program = """
import sys
sys.modules["onnx"] = None
from edgereels.runtime.cli import main
sys.exit(main(["quantize", "--help"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--calibration DIR" in done.stdout


@pytest.mark.slow
def test_the_embedded_package_passes_its_gate_on_every_engine(tmp_path: Path) -> None:
    """In `w8a8`; .ci/run does the same with `int8` and the built wheel."""
    assert quantize("default", tmp_path / "out", "--recipe", "w8a8") == 0
    package = ModelPackage.open(tmp_path / "out")
    ladders = read_quality(package)
    assert [ladder.verdict for ladder in ladders] == ["passed"] * len(gate.installed_devices())
    assert all(ladder.matches(package) for ladder in ladders)
    found = package.manifest.quantization
    assert found is not None
    assert found.covered.size_bytes <= 0.30 * found.covered.fp32_bytes
    assert found.calibration is not None


@pytest.mark.slow
def test_a_search_writes_a_recipe_that_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgereels.quant.quantize.why_unjudgeable", lambda _source: "this test is about the search")
    words = ("--recipe", "int8", "--no-gate", "--budget-mb", "11", "--write-recipe", tmp_path / "found.json")
    assert quantize("default", tmp_path / "searched", *words) == 0
    package = ModelPackage.open(tmp_path / "searched")
    assert sum(entry.size_bytes for name, entry in package.manifest.files.items() if name != "quality.json") <= 11e6
    recipe = parse_recipe((tmp_path / "found.json").read_bytes(), where="found")
    assert quantize("default", tmp_path / "again", "--recipe", tmp_path / "found.json", "--no-gate") == 0
    again = ModelPackage.open(tmp_path / "again")
    weights = [{name for name in found.manifest.files if name.startswith("weights/")} for found in (package, again)]
    assert weights[0] == weights[1]
    assert recipe.rules[0].form == "keep"
