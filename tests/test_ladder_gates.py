# SPDX-License-Identifier: Apache-2.0
"""Gates: which line of the table holds for which graph, and that a figure on the wrong side misses it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgereels.runtime import ladder_gates as gates
from edgereels.runtime.ladder_gates import AT_LEAST, AT_MOST, Gate, check
from edgereels.runtime.model_package import ModelPackage

from .package_examples import change_manifest, replace_file
from .stand_in_package import write_stand_in


def quantized(folder: Path, *rules: dict[str, Any]) -> ModelPackage:
    """Return a stand-in whose manifest says that it was quantized, and of which one graph holds integers."""
    root = write_stand_in(folder / "candidate")
    model = onnx.load(root / "vae_decoder_next.onnx")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((8, 8), np.int8), "q"))
    replace_file(root, "vae_decoder_next.onnx", model.SerializeToString())
    covered = {"layers": 1, "parameters": 64, "size_bytes": 64, "fp32_bytes": 256}
    entry = {"recipe": "x", "rules": list(rules), "source": "0" * 64, "calibration": None, "covered": covered}
    change_manifest(root, lambda fields: fields.update(quantization=entry))
    return ModelPackage.open(root)


def rule(form: str, *, engine: str | None = None, graphs: str = "vae_*") -> dict[str, Any]:
    found = {"graphs": [graphs], "layers": ["*"], "operators": ["Conv"], "form": form}
    return found | ({"engine": engine} if engine else {})


@pytest.mark.parametrize(
    ("gate", "value", "passes"),
    [
        pytest.param(Gate("sqnr_db", 20.0, AT_LEAST, ""), 20.0, True, id="just-enough"),
        pytest.param(Gate("sqnr_db", 20.0, AT_LEAST, ""), 18.9, False, id="too-little"),
        pytest.param(Gate("rel_l2", 1e-4, AT_MOST, ""), 1e-4, True, id="just-allowed"),
        pytest.param(Gate("rel_l2", 1e-4, AT_MOST, ""), 2e-4, False, id="too-much"),
        pytest.param(Gate("rel_l2", 1e-4, AT_MOST, ""), float("nan"), False, id="nan-at-most"),
        pytest.param(Gate("sqnr_db", 20.0, AT_LEAST, ""), float("nan"), False, id="nan-at-least"),
    ],
)
def test_a_gate_is_held_from_its_side(gate: Gate, value: float, passes: bool) -> None:
    assert check(gate, value, rung="graph", where="dit").passed is passes


def test_a_miss_says_where_and_by_how_much() -> None:
    result = check(Gate("sqnr_db", 20.0, AT_LEAST, ""), 18.9, rung="graph", where="dit")
    assert result.line == "graph: dit: sqnr_db 18.9, at least 20 (missed by 1.1)"


@pytest.mark.parametrize(
    ("kind", "subnetwork", "metric", "limit"),
    [
        pytest.param(gates.SAME, "dit", "rel_l2", 1e-4, id="another-engine"),
        pytest.param(gates.HALF, "dit", "sqnr_db", 35, id="bf16-dit"),
        pytest.param(gates.HALF, "vae_decoder", "sqnr_db", 40, id="bf16-vae"),
        pytest.param(gates.W8, "dit", "sqnr_db", 30, id="w8-dit"),
        pytest.param(gates.W8, "vae_encoder", "sqnr_db", 35, id="w8-vae"),
        pytest.param(gates.W8, "audio_encoder", "cosine", 0.999, id="w8-audio"),
        pytest.param(gates.COARSE, "dit", "sqnr_db", 20, id="w8a8-dit"),
        pytest.param(gates.COARSE, "audio_encoder", "sqnr_db", 20, id="w8a8-audio"),
    ],
)
def test_the_table_is_the_published_one(kind: str, subnetwork: str, metric: str, limit: float) -> None:
    gate = gates.tensor_gate(kind, subnetwork)
    assert (gate.metric, gate.limit) == (metric, limit)
    assert gate.reason


def test_bfloat16_is_not_asked_for_more_than_pytorchs_gives() -> None:
    assert gates.tensor_gate(gates.HALF, "vae_decoder", bf16_rel_l2=1e-3).limit == 40  # 60 dB: the table is wider
    weak = gates.tensor_gate(gates.HALF, "vae_decoder", bf16_rel_l2=0.01)  # 40 dB
    assert weak.limit == pytest.approx(40 - 6.02, abs=0.01) and "40.0 dB" in weak.reason
    assert gates.tensor_gate(gates.SAME, "vae_decoder", bf16_rel_l2=0.01).limit == 1e-4
    assert gates.tensor_gate(gates.W8, "vae_decoder", bf16_rel_l2=0.01).limit == 35


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        pytest.param("keep", gates.SAME, id="keep"),
        pytest.param("bf16", gates.HALF, id="bf16"),
        pytest.param("int8", gates.W8, id="int8"),
        pytest.param("int4", gates.COARSE, id="int4"),
        pytest.param("int8-dynamic", gates.COARSE, id="dynamic"),
        pytest.param("int8-static", gates.COARSE, id="static"),
    ],
)
def test_the_recipe_decides_the_class(tmp_path: Path, form: str, kind: str) -> None:
    candidate = quantized(tmp_path, rule(form))
    found = gates.class_of(candidate, graph="vae_decoder_next", library="onnxruntime", precision="f32")
    assert found == kind


def test_a_rule_of_another_engine_does_not_excuse_this_one(tmp_path: Path) -> None:
    candidate = quantized(tmp_path, rule("int8-static", engine="openvino"), rule("int8", engine="onnxruntime"))
    classes = {
        library: gates.class_of(candidate, graph="vae_decoder_next", library=library, precision="f32")
        for library in ("onnxruntime", "openvino")
    }
    assert classes == {"onnxruntime": gates.W8, "openvino": gates.COARSE}


def test_a_graph_without_integers_is_not_excused_by_a_rule(tmp_path: Path) -> None:
    candidate = quantized(tmp_path, rule("int8-static", graphs="*"))
    found = gates.class_of(candidate, graph="finish", library="onnxruntime", precision="f32")
    assert found == gates.SAME


@pytest.mark.parametrize(
    ("precision", "storage", "kind"),
    [
        pytest.param("bf16", "fp32", gates.HALF, id="computed-in-bf16"),
        pytest.param("f32", "fp16", gates.HALF, id="reference-stored-otherwise"),
        pytest.param("f32", "fp32", gates.SAME, id="the-same"),
    ],
)
def test_arithmetic_and_storage_decide_where_no_recipe_does(
    tmp_path: Path, precision: str, storage: str, kind: str
) -> None:
    candidate = ModelPackage.open(write_stand_in(tmp_path / "plain"))
    found = gates.class_of(candidate, graph="dit", library="openvino", precision=precision, reference_storage=storage)
    assert found == kind


def test_the_coarser_of_weights_and_arithmetic_decides(tmp_path: Path) -> None:
    candidate = quantized(tmp_path, rule("int8"))
    found = gates.class_of(candidate, graph="vae_decoder_next", library="openvino", precision="bf16")
    assert found == gates.W8


def test_a_reference_with_visible_seams_sets_their_limit() -> None:
    assert gates.seam_gate(1.2).limit == 1.5
    assert gates.seam_gate(1.53).limit == pytest.approx(1.683)
    assert "1.530" in gates.seam_gate(1.53).reason


def test_the_lag_may_be_one_frame() -> None:
    assert gates.lag_gate(25).limit == 40
