# SPDX-License-Identifier: Apache-2.0
"""`edgereels verify` compares a package with its own golden vectors on the engine that is installed."""

import hashlib
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
from edgereels.runtime.golden import Tolerance, golden_bytes
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


def test_a_report_says_what_others_need_to_compare_machines(original: Path, tmp_path: Path) -> None:
    verify(original, "--device", "openvino:CPU", "--report", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["passed"] and report["format_version"] == 2
    for graph in report["graphs"]:
        assert (graph["library"], graph["provider"], graph["precision"]) == ("openvino", "OpenVINO CPU", "f32")
        assert graph["node_counts"]["OpenVINO CPU"] > 0
        assert graph["runs"] == 5 and graph["run_ms_min"] <= graph["run_ms"] <= graph["run_ms_max"]
        assert graph["first_ms"] > 0
    assert report["openvino_devices"][0]["name"] == "CPU"
    assert report["machine"]["usable_cores"] >= 1 and report["cuda"]["cards"] == []


def test_a_library_runs_its_own_sibling(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sibling's weights are wrong on purpose: OpenVINO fails on it, ONNX Runtime never opens it."""
    wrong = inline(WEIGHTS * np.float32(1.05))
    (package / "dit_block_00.openvino.onnx").write_bytes(wrong)

    def add(fields: dict[str, Any]) -> None:
        fields["graphs"]["dit_block_00"]["siblings"] = {"openvino": "dit_block_00.openvino.onnx"}
        fields["files"]["dit_block_00.openvino.onnx"] = {
            "size_bytes": len(wrong),
            "sha256": hashlib.sha256(wrong).hexdigest(),
        }

    change_manifest(package, add)
    assert verify(package, "--device", "onnxruntime:CPU") == 0
    assert verify(package, "--device", "openvino:CPU") == 1
    assert "dit_block_00: velocity: rel L2 0.05" in capsys.readouterr().err


def test_a_quantized_graph_is_judged_by_what_its_golden_file_allows(package: Path) -> None:
    """Quantizing writes a wider tolerance beside the same float32 outputs; a worse graph still fails."""
    allowed = Tolerance(rel_l2=0.06, max_abs=0.2, reason="int8 weights, 30 dB", levels=4)
    content = golden_bytes({"tokens": TOKENS}, {"velocity": TOKENS @ WEIGHTS}, tolerance=allowed)
    replace_file(package, "golden/dit_block_00.safetensors", content)
    replace_file(package, "dit_block_00.onnx", inline(WEIGHTS * np.float32(1.05)))
    assert verify(package) == 0
    assert verify(package, "--device", "openvino:CPU", "--compute", "auto") == 0
    replace_file(package, "dit_block_00.onnx", inline(WEIGHTS * np.float32(1.10)))
    assert verify(package) == 1


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


@pytest.mark.parametrize("place", ["tiny.edgereels", "tiny.edgereels/report.json", "tiny.edgereels/golden/report.json"])
@pytest.mark.parametrize("role", ["package", "reference"])
def test_a_report_into_a_package_is_refused_first(
    place: str, role: str, package: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--report", str(tmp_path / place))
    if role == "reference":
        assert verify(original, "--ladder", "--reference", str(package), *words) == 2
    else:
        assert verify(package, *words) == 2
    printed = capsys.readouterr().err
    assert "a package holds what its manifest lists" in printed and printed.count("\n") == 1
    assert verify(package) == 0  # nothing was added to it
    assert verify(package, "--report", str(tmp_path / "report.json")) == 0  # control: beside it is fine


@pytest.mark.parametrize(
    "arguments",
    [[], ["a", "--device", "tpu"], ["a", "--compute", "int4"], ["a", "--threads", "0"], ["a", "--threads", "two"]],
    ids=["no package", "device", "compute", "no threads", "threads"],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert edgereels(["verify", *arguments]) == 2
    assert "edgereels verify: wrong usage: " in capsys.readouterr().err


# ── The ladder ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Climbed:
    """What a ladder's record is to the command line."""

    def __init__(self, verdict: str) -> None:
        self.verdict = verdict
        self.misses = () if verdict == "passed" else ("graph dit: SQNR 12.0 dB, at least 30 dB",)

    def as_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict}


@pytest.fixture
def climbs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the ladder was asked for; its verdict is in the reference's name."""
    asked: list[dict[str, Any]] = []

    def climb(candidate: ModelPackage, reference: ModelPackage, **arguments: Any) -> Climbed:
        asked.append({"candidate": candidate.name, "reference": reference.name, **arguments})
        return Climbed("failed" if "failing" in reference.name else "passed")

    monkeypatch.setattr(command_verify, "climb", climb)
    monkeypatch.setattr(command_verify, "table", lambda quality: f"ladder {quality.verdict}\n")
    return asked


def test_a_ladder_computes_as_a_render_does(
    original: Path, climbs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(original, "--ladder") == 0
    assert (climbs[0]["compute"], climbs[0]["reference"]) == ("auto", "tiny.edgereels")
    assert "ladder passed" in capsys.readouterr().out
    assert verify(original, "--ladder", "--compute", "f32") == 0
    assert climbs[1]["compute"] == "f32"


def test_a_gate_that_is_missed_is_a_line_and_exit_code_1(
    original: Path, tmp_path: Path, climbs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    failing = shutil.copytree(original, tmp_path / "failing.edgereels")
    report = tmp_path / "report.json"
    assert verify(original, "--ladder", "--reference", str(failing), "--report", str(report)) == 1
    assert capsys.readouterr().err == "edgereels verify: graph dit: SQNR 12.0 dB, at least 30 dB\n"
    assert json.loads(report.read_bytes())["ladder"] == {"verdict": "failed"}
    assert len(climbs) == 1


def test_without_a_ladder_the_report_has_none(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(original, "--json")
    assert json.loads(capsys.readouterr().out)["ladder"] is None


@pytest.mark.parametrize(
    "arguments",
    [["--reference", "x"], ["--rungs", "graph"], ["--ladder", "--rungs", "attic"]],
    ids=["reference alone", "rungs alone", "unknown rung"],
)
def test_options_of_the_ladder_need_it(
    original: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(original, *arguments) == 2
    assert "wrong usage" in capsys.readouterr().err


def quantized_from(source: str, root: Path) -> Path:
    """Make a package say that it was quantized from one with that digest."""

    def quantize(fields: dict[str, Any]) -> None:
        covered = {"layers": 1, "parameters": 12, "size_bytes": 12, "fp32_bytes": 48}
        fields["quantization"] = {"recipe": "int8", "rules": [], "source": source, "calibration": None}
        fields["quantization"]["covered"] = covered

    change_manifest(root, quantize)
    return root


def test_a_quantized_package_needs_its_reference(
    package: Path, climbs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    quantized_from("ab" * 32, package)
    assert verify(package, "--ladder") == 2
    assert "needs --reference, the package with the digest abab" in capsys.readouterr().err
    assert climbs == []


def test_a_quantized_package_is_held_against_its_source_alone(
    original: Path, package: Path, tmp_path: Path, climbs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one has the same graphs and settings, and differs in its name alone."""
    source = ModelPackage.open(original).digest
    quantized_from(source, package)
    assert verify(package, "--ladder", "--reference", str(original)) == 0
    other = shutil.copytree(original, tmp_path / "other.edgereels")
    change_manifest(other, lambda fields: fields.update(name="other"))
    capsys.readouterr()
    for reference in (other, package):  # nor against itself
        assert verify(package, "--ladder", "--reference", str(reference)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        digest = ModelPackage.open(reference).digest
        assert f"has the digest {digest[:16]}; expected {source[:16]}" in line and "--reference" in line
    assert len(climbs) == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"name": "renamed"}, id="another export of the checkpoint"),
        pytest.param({"sources": {"dit": [{"file": "b", "size_bytes": 1, "sha256": "1" * 64}]}}, id="retrained"),
        pytest.param({"sources": {}}, id="from nobody knows what"),
    ],
)
def test_an_unquantized_package_is_held_against_exports_of_its_checkpoint(
    original: Path,
    package: Path,
    climbs: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
) -> None:
    change_manifest(package, lambda fields: fields.update(change))
    is_other = "sources" in change
    assert verify(original, "--ladder", "--reference", str(package)) == (2 if is_other else 0)
    assert ("is another model than tiny.edgereels" in capsys.readouterr().err) == is_other
    assert len(climbs) == (0 if is_other else 1)


def test_a_quantized_package_is_no_reference(
    original: Path, package: Path, climbs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    quantized_from("ab" * 32, package)
    assert verify(original, "--ladder", "--reference", str(package)) == 2
    assert "is quantized (int8); expected the package that it was made from, abab" in capsys.readouterr().err
    assert climbs == []


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
