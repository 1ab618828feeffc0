# SPDX-License-Identifier: Apache-2.0
"""The quality record: read, written, keyed by digests, and refused where it contradicts itself."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgereels.runtime import quality
from edgereels.runtime.cli import main as edgereels
from edgereels.runtime.command_inspect import main as inspect
from edgereels.runtime.errors import PackageError
from edgereels.runtime.ladder_gates import AT_LEAST, Gate, check
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.quality import FAILED, PASSED, UNMEASURED, ControlResult, Quality, graph_digests

from .package_examples import change_manifest, replace_file, write_package

DB = Gate("sqnr_db", 20.0, AT_LEAST, "tried")


def ladder(package: ModelPackage, *, value: float = 30.0, library: str = "onnxruntime") -> Quality:
    """Return a record with one gate."""
    row = {"graph": "finish", "precision": "f32", "inputs": 8, "sqnr_db": value, "worst_sqnr_db": value}
    row |= {"rel_l2": 0.01, "of_bf16": 1.5, "bf16_rel_l2": 0.01}
    provider = {"onnxruntime": "CPUExecutionProvider", "openvino": "OpenVINO CPU"}[library]
    return Quality(
        source="ab" * 32,
        graphs=graph_digests(package, library=library),
        engine={"library": library, "provider": provider, "compute_got": "f32", "device": "cpu"},
        machine={"processor": "a processor"},
        versions={"numpy": "2"},
        counts={"seed": 42},
        rungs={"graph": [row], "clip": {"psnr_db": 40.0, "drift_per_min": {"luma": 0.1}, "curve": [1.0, 2.0]}},
        gates=(check(DB, value, rung="graph", where="finish"),),
        controls=(ControlResult("scaled weights", "graph", "sqnr_db", 12.0, 20.0, "times 1.25"),),
    )


def with_record(folder: Path, *ladders: Callable[[ModelPackage], Quality]) -> ModelPackage:
    """Return a package that carries a record of these ladders."""
    package = write_package(folder / "tiny")
    return put(package, *(make(package) for make in ladders))


def put(package: ModelPackage, *ladders: Quality) -> ModelPackage:
    """Write a record into a package."""
    change_manifest(package.root, lambda fields: fields.update(quality="quality.json"))
    replace_file(package.root, "quality.json", quality.quality_bytes(ladders))
    return ModelPackage.open(package.root)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    package = with_record(tmp_path, ladder)
    (read,) = quality.read_quality(package)
    assert read == ladder(package)
    assert read.verdict == PASSED and read.matches(package)


def test_a_package_without_a_record_is_unmeasured(tmp_path: Path) -> None:
    package = write_package(tmp_path / "tiny")
    assert quality.read_quality(package) == ()
    assert quality.quality_line(package) == UNMEASURED


def test_the_verdict_follows_the_gates(tmp_path: Path) -> None:
    found = ladder(write_package(tmp_path / "tiny"))
    assert found.verdict == PASSED and not found.misses
    missed = replace(found, gates=(check(DB, 18.9, rung="graph", where="dit"),))
    assert missed.verdict == FAILED
    assert missed.misses == ("graph: dit: sqnr_db 18.9, at least 20 (missed by 1.1)",)
    assert replace(found, gates=()).verdict == UNMEASURED


def test_a_record_does_not_fit_other_weights(tmp_path: Path) -> None:
    package = with_record(tmp_path, ladder)
    other = dict(package.manifest.files)
    (location,) = [name for name in other if name.startswith("weights/")]
    other[location] = replace(other[location], sha256="0" * 64)
    changed = replace(package, manifest=replace(package.manifest, files=other))
    (read,) = quality.read_quality(package)
    assert not read.matches(changed)
    assert quality.quality_line(changed) == "stale: does not belong to these graphs on ONNX Runtime CPU f32"


def test_a_record_does_not_fit_another_graph_over_the_same_weights(tmp_path: Path) -> None:
    package = with_record(tmp_path, ladder)
    graph = package.graph_path("finish").read_bytes()
    replace_file(package.root, "finish.onnx", graph.replace(b"clipped", b"clopped"))
    assert not quality.read_quality(package)[0].matches(ModelPackage.open(package.root))


def test_several_engines_are_named_by_their_verdicts(tmp_path: Path) -> None:
    package = with_record(
        tmp_path,
        ladder,
        lambda package: ladder(package, library="openvino"),
        lambda package: replace(ladder(package, value=1.0), engine={"library": "openvino", "provider": "OpenVINO GPU"}),
    )
    line = quality.quality_line(package)
    assert line == "passed on ONNX Runtime CPU f32 and OpenVINO CPU f32; failed on OpenVINO GPU"


def test_the_text_names_gates_figures_and_controls(tmp_path: Path) -> None:
    text = quality.table(ladder(write_package(tmp_path / "tiny"), value=18.9))
    assert "ladder on ONNX Runtime CPU f32 (a processor)" in text
    assert "sqnr_db at least 20: MISSED" in text
    assert "psnr_db 40" in text and "luma 0.1" in text and "[1, 2]" in text
    assert "control scaled weights: caught by sqnr_db 12 (gate 20)" in text
    assert "failed: 0 of 1 gates; against sha256:abababababababab" in text


def test_the_text_tells_what_a_rehearsal_found(tmp_path: Path) -> None:
    entry = {"graph": "dit", "largest": 20000.0, "where": "Mul noise", "limit": 16000.0, "inside": 4e8, "passed": False}
    text = quality.table(replace(ladder(write_package(tmp_path / "tiny")), rehearsal=(entry,)))
    assert "largest value 2e+04 of 16000 at dit, Mul noise: TOO LARGE; squares inside a norm up to 4e+08" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda record: record.update(format="else"), "has the format 'else'", id="format"),
        pytest.param(lambda record: record.update(format_version=2), "version 2", id="version"),
        pytest.param(lambda record: record.pop("ladders"), "does not make sense", id="no-ladders"),
        pytest.param(lambda record: record["ladders"][0].pop("graphs"), "['graphs']", id="missing-key"),
        pytest.param(lambda record: record["ladders"][0].update(more=1), "['more']", id="unknown-key"),
        pytest.param(lambda record: record["ladders"][0].update(verdict="failed"), "its verdict", id="other-verdict"),
        pytest.param(
            lambda record: record["ladders"][0]["gates"][0].update(value=1.0), "contradicts itself", id="edited-value"
        ),
        pytest.param(
            lambda record: record["ladders"][0]["gates"][0].update(sense="near"), "contradicts itself", id="sense"
        ),
        pytest.param(lambda record: record["ladders"][0].update(engine="cpu"), "engine is no table", id="no-table"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    record = json.loads(quality.quality_bytes([ladder(write_package(tmp_path / "tiny"))]))
    change(record)
    with pytest.raises(PackageError, match="quality") as caught:
        quality.parse_quality(record, where="tiny/quality.json")
    assert says in str(caught.value) and caught.value.code == "quality"


def test_a_record_that_is_a_list_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = with_record(tmp_path, ladder)
    replace_file(package.root, "quality.json", b"[]")
    assert edgereels(["inspect", str(package.root)]) == 1
    assert capsys.readouterr().err.endswith("is no JSON object; measure again with `edgereels verify --ladder`\n")


def test_inspect_shows_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = with_record(tmp_path, lambda package: ladder(package, value=18.9))
    assert inspect([str(package.root)]) == 0
    text = capsys.readouterr().out
    assert "  quality    failed on ONNX Runtime CPU f32\n" in text
    assert "  missed     graph: finish: sqnr_db 18.9, at least 20 (missed by 1.1)\n" in text
    assert inspect([str(package.root), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["quality"]["ladders"]
    assert shown["verdict"] == FAILED and shown["belongs"] is True and shown["controls"] == {"scaled weights": 12.0}


def test_inspect_says_that_a_pasted_record_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = with_record(tmp_path, lambda package: replace(ladder(package), graphs={"finish": "0" * 64}))
    assert inspect([str(package.root)]) == 0
    assert "quality    stale: does not belong to these graphs" in capsys.readouterr().out
    shutil.rmtree(package.root)
