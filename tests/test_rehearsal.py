# SPDX-License-Identifier: Apache-2.0
"""The rehearsal in 16-bit floats: every activation is rounded, the largest is found, a too large one fails."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest

from edgereels.quant import gate, rehearsal
from edgereels.quant.rehearsal import LARGEST, rehearse, rounded_everywhere
from edgereels.runtime.errors import EngineError
from edgereels.runtime.ladder_gates import AT_LEAST, Gate, check
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.quality import Quality, parse_quality, quality_bytes

from .stand_in_package import CHANNELS, DIM, write_stand_in

NORM = """
<ir_version: 10, opset_import: ["" : 23]>
norm (float[2,rows] x, int64[1] pick) => (float[2,1] y, float[2,rows] twice)
<int64[1] last = {-1}, float[1] two = {2.0}>
{
  kept = Cast<to = 7>(pick)
  twice = Mul(x, two)
  y = ReduceL2<keepdims = 1>(twice, last)
}"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return ModelPackage.open(write_stand_in(tmp_path_factory.mktemp("packages") / "stand-in"))


def feeds(*, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return inputs of the stand-in's transformer, its latents `scale` times as large as usual."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    return {
        "latents": draw(1, 16, 2, 4, 4) * np.float32(scale),
        "condition": draw(1, 20, 2, 4, 4),
        "audio_first": draw(1, 5, 1, CHANNELS),
        "audio_rest": draw(1, 8, 1, CHANNELS),
        "modulation": draw(1, 6, DIM),
        "head_modulation": draw(1, DIM),
        "rope_cos": draw(8, DIM // 4),
        "rope_sin": draw(8, DIM // 4),
    }


def run(model: onnx.ModelProto, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(model)
    session = rehearsal._session(model, folder=".")  # pyright: ignore[reportPrivateUsage]
    return session.run(names, given)


def test_every_float_activation_is_rounded_and_measured() -> None:
    model = onnx.parser.parse_model(NORM)
    rounded, cuts = rounded_everywhere(model)
    assert list(cuts) == ["twice", "y"]  # integers are left alone
    x = np.array([[1.0001, -3.0], [0.0, 1000.3]], np.float32)
    twice, y, most_twice, most_y = run(rounded, ["twice", "y", *cuts.values()], {"x": x, "pick": np.zeros(1, np.int64)})
    halved = (2 * x).astype(np.float16).astype(np.float32)
    assert np.array_equal(twice, halved)
    assert np.array_equal(y, np.linalg.norm(halved, axis=1, keepdims=True).astype(np.float16).astype(np.float32))
    assert most_twice == np.float32(2000.6)  # before rounding
    assert most_y == pytest.approx(2000.6, rel=1e-3)


def test_a_graph_with_small_values_passes(package: ModelPackage) -> None:
    (found,) = rehearse(package, [("dit", feeds())])
    assert found["passed"] and found["graph"] == "dit" and found["inputs"] == 1
    assert found["largest"] < 10 and found["cuts"] > 10
    assert 50 < found["sqnr_db"] < 90  # ten bits of mantissa, rounded a few times


def test_a_graph_with_a_large_activation_fails(package: ModelPackage) -> None:
    (found,) = rehearse(package, [("dit", feeds()), ("dit", feeds(scale=20_000))])
    assert not found["passed"] and found["largest"] > LARGEST
    assert found["where"].startswith(("Mul noise", "Sub velocity"))
    assert found["sqnr_db"] > 60  # it would still fit; the limit leaves room for louder speech
    (found,) = rehearse(package, [("dit", feeds(scale=50_000))])
    assert found["sqnr_db"] < 0  # beyond 65 504 nothing is left


def test_a_value_that_is_no_number_fails(package: ModelPackage) -> None:
    (found,) = rehearse(package, [("dit", feeds(scale=np.inf))])
    assert not found["passed"] and found["largest"] == 1e38 and found["sqnr_db"] < 0


def test_squares_inside_a_norm_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: ModelPackage) -> None:
    onnx.save(onnx.parser.parse_model(NORM), tmp_path / "norm.onnx")
    monkeypatch.setattr(ModelPackage, "graph_path", lambda *_: tmp_path / "norm.onnx")
    x = np.array([[30.0, 40.0], [0.0, 300.0]], np.float32)
    found = rehearsal.rehearse_graph(package, "norm", [{"x": x, "pick": np.zeros(1, np.int64)}])
    assert found.largest == 600 and found.inside == 360_000


def test_what_computes_in_float32_anyway_is_not_rehearsed(package: ModelPackage) -> None:
    sinusoid = np.zeros((1, 256), np.float32)
    assert rehearse(package, [("dit_time", {"sinusoid": sinusoid}), ("elsewhere", {})]) == []


def test_inputs_are_spread_over_the_recording(package: ModelPackage) -> None:
    (found,) = rehearse(package, [("dit", feeds(scale=scale)) for scale in (1, 2, 3, 4, 5, 6, 20_000)])
    assert found["inputs"] == 4 and not found["passed"]  # the last is among them


def test_a_run_that_fails_is_our_error(package: ModelPackage) -> None:
    with pytest.raises(EngineError, match="the rehearsal of dit in 16-bit floats failed"):
        rehearse(package, [("dit", feeds() | {"rope_cos": np.zeros((3, 1, 1), np.float32)})])


def test_without_onnxruntime_the_gate_says_that_there_is_no_rehearsal(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    (found,) = gate._rehearsed(package, [("dit", feeds())], progress=said.append)  # pyright: ignore[reportPrivateUsage]
    assert found["passed"] and said == ["a rehearsal in 16-bit floats"]
    monkeypatch.setattr(gate, "find_spec", lambda _module: None)
    assert gate._rehearsed(package, [("dit", feeds())], progress=said.append) == ()  # pyright: ignore[reportPrivateUsage]
    assert "no rehearsal in 16-bit floats: it needs ONNX Runtime" in caplog.text


# ── As a gate ────────────────────────────────────────────────────────────────────────────────────────────────────────


def scaled_inside(package: ModelPackage, target: Path, *, factor: float) -> ModelPackage:
    """Return a copy whose transformer is larger by a factor at one cut, and gives the same velocity."""
    shutil.copytree(package.root, target)
    model = onnx.load(target / "dit.onnx", load_external_data=False)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["small" if name == output else name for name in node.output]
    for name, value in (("up", factor), ("down", 1 / factor)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    model.graph.node.append(onnx.helper.make_node("Mul", ["small", "up"], ["large"]))
    model.graph.node.append(onnx.helper.make_node("Mul", ["large", "down"], [output]))
    onnx.save(model, target / "dit.onnx")
    return ModelPackage(target, package.manifest)


def judged(candidate: ModelPackage, source: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> tuple[Quality, ...]:
    """Judge a package by the rehearsal and a ladder that passes everything."""
    passing = check(Gate("sqnr_db", 20.0, AT_LEAST, "tried"), 30.0, rung="graph", where="dit")
    engine = {"library": "onnxruntime", "provider": "CPUExecutionProvider", "compute_got": "f32"}
    quality = Quality("0" * 64, {}, engine, {}, {}, {}, {}, (passing,), ())
    recorded = SimpleNamespace(recording=SimpleNamespace(inputs=lambda: [("dit", feeds())]))
    monkeypatch.setattr("edgereels.runtime.ladder.prepare", lambda *_, **__: recorded)
    monkeypatch.setattr("edgereels.runtime.ladder.climb", lambda *_, **__: quality)
    return gate.judge(source, candidate, threads=1, progress=lambda _line: None)


@pytest.mark.parametrize(("factor", "verdict"), [(1e4, "failed"), (10.0, "passed")], ids=["too large", "control"])
def test_a_cut_beyond_the_limit_misses_the_gate_of_the_package(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, verdict: str
) -> None:
    ladders = judged(scaled_inside(package, tmp_path / "scaled", factor=factor), package, monkeypatch)
    assert len(ladders) == len(gate.installed_devices())
    assert {ladder.verdict for ladder in ladders} == {verdict}
    assert gate.passed(ladders) is (verdict == "passed")
    assert [ladder.rehearsal[0]["passed"] for ladder in ladders] == [verdict == "passed"] * len(ladders)
    for line in gate.misses(ladders):
        assert line.startswith("ONNX Runtime CPU f32: rehearsal: dit at Mul large: largest_value ")
        assert "at most 1.6e+04 (missed by " in line
    (record,) = parse_quality(json.loads(quality_bytes(ladders[:1])), where="record")
    assert record == ladders[0]


@pytest.mark.parametrize("is_scaled", [True, False], ids=["its source too", "control"])
def test_a_miss_says_where_no_recipe_would_mend_it(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_scaled: bool
) -> None:
    source = scaled_inside(package, tmp_path / "source", factor=1e4) if is_scaled else package
    ladders = judged(scaled_inside(package, tmp_path / "scaled", factor=1e4), source, monkeypatch)
    assert all(("no recipe mends that" in line) is is_scaled for line in gate.misses(ladders))
    assert gate.misses(ladders)
