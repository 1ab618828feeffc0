# SPDX-License-Identifier: Apache-2.0
"""`edgereels verify` compares a package with its own golden vectors on the engine that is installed."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import helper, numpy_helper

from edgereels.runtime import command_verify
from edgereels.runtime.cli import main as edgereels
from edgereels.runtime.engine import open_engine
from edgereels.runtime.errors import EngineError
from edgereels.runtime.golden import golden_bytes
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.verification import broken_weights, verify_package

from .package_examples import (
    LOCATION,
    TOKENS,
    WEIGHTS,
    change_manifest,
    matmul_model,
    replace_file,
    write_package,
)

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good package, not to be changed."""
    return write_package(tmp_path_factory.mktemp("verify") / "tiny.edgereels").root


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(original, tmp_path / "tiny.edgereels")


def verify(package: Path, *more: str) -> int:
    return edgereels(["verify", str(package), "--threads", "1", *more])


def inline(weights: Array) -> bytes:
    """Return the graph of a block with its weights inside."""
    return matmul_model(weight=numpy_helper.from_array(weights, "weight")).SerializeToString()


def test_a_good_package_passes(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(original) == 0
    output = capsys.readouterr()
    assert "3 of 3 graphs agree on CPUExecutionProvider (cpu, f32)" in output.out
    assert output.err == ""


def test_the_table_has_a_line_for_every_graph(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(original)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")]
    assert [row[0] for row in rows] == ["dit_block_00", "dit_block_01", "finish"]


def test_progress_goes_to_stderr(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(original, "--progress", "--json")
    output = capsys.readouterr()
    assert "verifying finish" in output.err
    json.loads(output.out)


# ── Mismatches ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_that_are_a_little_off_fail_with_one_line(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace_file(package, "dit_block_01.onnx", inline(WEIGHTS * np.float32(1.05)))
    assert verify(package) == 1
    output = capsys.readouterr()
    assert output.err == "edgereels verify: dit_block_01: velocity: rel L2 0.05, at most 1e-05 allowed\n"
    assert "2 of 3 graphs agree" in output.out


def test_every_failing_graph_has_a_line(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dit_block_00", "dit_block_01"):
        replace_file(package, f"{name}.onnx", inline(WEIGHTS.T.copy()))
    assert verify(package) == 1
    assert capsys.readouterr().err.count("\n") == 2


def test_weights_with_a_valid_digest_that_are_not_numbers_fail(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = WEIGHTS.copy()
    broken[1, 2] = np.nan
    replace_file(package, "dit_block_00.onnx", inline(broken))
    assert verify(package) == 1
    assert "dit_block_00: velocity: 3 of 12 values are not finite" in capsys.readouterr().err


def test_an_index_outside_of_a_constant_fails(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One engine refuses it, another reads past the end without a word: the comparison notices either."""
    index = numpy_helper.from_array(np.array([0, 1, 2, 99]), "index")
    nodes = [
        helper.make_node("Gather", ["weight", "index"], ["rows"], axis=0),
        helper.make_node("MatMul", ["tokens", "rows"], ["velocity"]),
    ]
    replace_file(package, "dit_block_00.onnx", matmul_model(nodes=nodes, more_tensors=[index]).SerializeToString())
    assert verify(package) == 1
    assert "dit_block_00: " in capsys.readouterr().err


def test_a_graph_that_the_engine_refuses_fails_alone(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MatMul of 4 columns with 3 rows passes opening, which infers no shapes, and no engine."""
    replace_file(package, "dit_block_00.onnx", inline(WEIGHTS[:3]))
    assert verify(package) == 1
    output = capsys.readouterr()
    assert output.err.startswith("edgereels verify: dit_block_00: ONNX Runtime") and output.err.count("\n") == 1
    assert "2 of 3 graphs agree" in output.out


def test_golden_vectors_of_other_inputs_fail(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = golden_bytes({"latents": TOKENS}, {"velocity": TOKENS @ WEIGHTS})
    replace_file(package, "golden/dit_block_00.safetensors", content)
    assert verify(package) == 1
    assert "dit_block_00: " in capsys.readouterr().err


def test_a_flipped_byte_is_found_before_an_engine_is_opened(
    package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*_: object, **__: object) -> None:
        raise AssertionError("an engine was opened")

    monkeypatch.setattr(command_verify, "open_engine", must_not_run)
    data = bytearray((package / LOCATION).read_bytes())
    data[5] ^= 1
    (package / LOCATION).write_bytes(data)
    assert verify(package) == 1
    assert capsys.readouterr().err.startswith("edgereels verify: tiny.edgereels: 'weights/")


def test_a_device_that_is_not_there_is_one_line(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not one line for each graph, and no table: nothing was verified."""
    assert verify(original, "--device", "openvino:NPU") == 1
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and "openvino:NPU" in output.err
    assert output.out == ""


# ── Full ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_full_finds_what_the_golden_vectors_do_not_touch(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An infinite weight behind Clip never shows; a scan of the weights sees it."""
    wide = numpy_helper.from_array(np.array([np.inf], np.float32), "wide")
    nodes = [
        helper.make_node("MatMul", ["tokens", "weight"], ["product"]),
        helper.make_node("Min", ["product", "wide"], ["velocity"]),
    ]
    replace_file(package, "dit_block_00.onnx", matmul_model(nodes=nodes, more_tensors=[wide]).SerializeToString())
    assert verify(package) == 0
    assert verify(package, "--full") == 1
    assert "dit_block_00.onnx: wide: holds NaN or infinity" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_scan_knows_every_float(package: Path, dtype: str) -> None:
    extra = numpy_helper.from_array(np.array([1, -np.inf], dtype), "extra")
    replace_file(package, "dit_block_00.onnx", matmul_model(more_tensors=[extra]).SerializeToString())
    assert list(broken_weights(ModelPackage.open(package))) == ["dit_block_00.onnx: extra"]


def test_the_scan_reads_shared_weights_once_and_finds_nothing_in_good_ones(original: Path) -> None:
    assert list(broken_weights(ModelPackage.open(original))) == []


def test_full_notices_an_engine_that_does_not_repeat_itself(original: Path) -> None:
    class Drifting:
        library, provider, precision = "drifting", "Drifting", "f32"
        input_names, output_names = ("tokens",), ("velocity",)
        node_counts: Mapping[str, int] = {}

        def freeze(self, shapes: object) -> None:
            pass

        def __init__(self, graph: Path) -> None:
            self._engine = open_engine(graph, threads=1)
            self._runs = 0

        def run(self, feeds: Mapping[str, Array], *, keep: Collection[str] = ()) -> dict[str, Array]:
            self._runs += 1
            tiny = np.float32(1 + 1e-7 * self._runs)
            found = self._engine.run(feeds)
            return {name: value * tiny if value.dtype == np.float32 else value for name, value in found.items()}

        def close(self) -> None:
            self._engine.close()

    package = ModelPackage.open(original)
    assert verify_package(package, open_engine=Drifting).passed
    faults = verify_package(package, open_engine=Drifting, full=True).faults
    assert faults == tuple(f"dit_block_0{index}: two runs gave different bits" for index in (0, 1))


# ── Partial packages, reports, usage ─────────────────────────────────────────────────────────────────────────────────


def test_graphs_without_golden_vectors_are_named(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def forget(fields: dict[str, Any]) -> None:
        name = fields["golden"].pop("finish")
        del fields["files"][name]
        (package / name).unlink()

    change_manifest(package, forget)
    assert verify(package) == 0
    assert "no golden vectors, not run: finish" in capsys.readouterr().out


def test_a_report_holds_results_versions_and_machine(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(original, "--json", "--report", str(tmp_path / "report.json")) == 0
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report == json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert report["package"]["digest"] == ModelPackage.open(original).digest
    assert report["versions"]["onnxruntime"]
    assert report["asked"] == {"device": "cpu", "compute": "f32", "threads": 1}
    assert [graph["provider"] for graph in report["graphs"]] == ["CPUExecutionProvider"] * 3


def test_a_report_names_no_folder(original: Path, tmp_path: Path) -> None:
    verify(original, "--report", str(tmp_path / "report.json"))
    text = (tmp_path / "report.json").read_text()
    assert str(original.parent) not in text


def test_a_failed_report_is_valid_json(package: Path, tmp_path: Path) -> None:
    """Infinite differences have no place in JSON: they are null."""
    replace_file(package, "dit_block_01.onnx", inline(WEIGHTS * np.float32(np.inf)))
    assert verify(package, "--report", str(tmp_path / "report.json")) == 1
    report = json.loads((tmp_path / "report.json").read_bytes(), parse_constant=pytest.fail)
    assert report["passed"] is False
    assert report["graphs"][1]["outputs"][0]["max_abs"] is None


def test_a_report_into_a_folder_that_is_missing_is_refused_first(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(original, "--report", str(tmp_path / "missing" / "report.json")) == 1
    assert "create it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["a", "--device", "tpu"], ["a", "--compute", "int4"], ["a", "--threads", "0"], ["a", "--threads", "two"]],
    ids=["no package", "device", "compute", "no threads", "threads"],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert edgereels(["verify", *arguments]) == 2
    assert "edgereels verify: wrong usage: " in capsys.readouterr().err


@pytest.mark.parametrize("fail_at", [0, 2], ids=["opening", "running"])
def test_every_engine_is_closed(original: Path, fail_at: int) -> None:
    closed: list[str] = []

    class Failing:
        library, provider, precision = "failing", "Failing", "f32"
        input_names, output_names = ("tokens",), ("velocity",)
        node_counts: Mapping[str, int] = {}

        def freeze(self, shapes: object) -> None:
            pass

        def __init__(self, graph: Path) -> None:
            if fail_at == 0 and graph.stem == "dit_block_00":
                raise EngineError("refused")
            self._name = graph.stem

        def run(self, feeds: Mapping[str, Array], *, keep: Collection[str] = ()) -> dict[str, Array]:
            raise EngineError("failed while running")

        def close(self) -> None:
            closed.append(self._name)

    verify_package(ModelPackage.open(original), open_engine=Failing)
    assert closed == ["dit_block_00", "dit_block_01", "finish"][0 if fail_at else 1 :]
