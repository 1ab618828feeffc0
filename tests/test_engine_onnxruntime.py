# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: what it was given, what it keeps in memory, what it says when memory or wheels fail."""

import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgereels.runtime import AvatarSession, engine_onnxruntime
from edgereels.runtime import engine_onnxruntime_library as onnxruntime_library
from edgereels.runtime.engine import Device, open_engine
from edgereels.runtime.engine_onnxruntime import OnnxRuntimeEngine
from edgereels.runtime.engine_onnxruntime_library import CUDA, import_onnxruntime
from edgereels.runtime.errors import EngineError, MissingExtraError

GROWING = """
<ir_version: 10, opset_import: ["" : 23]>
growing (int64[1] size, float[1] x) => (float[n] y) {
  y = Expand(x, size)
}
"""


@pytest.fixture
def growing(tmp_path: Path) -> OnnxRuntimeEngine:
    """A graph that makes as many values as it is told to."""
    onnx.save(onnx.parser.parse_model(GROWING), tmp_path / "growing.onnx")
    engine = open_engine(tmp_path / "growing.onnx", device="onnxruntime:CPU", threads=1)
    assert isinstance(engine, OnnxRuntimeEngine)
    return engine


def feeds(size: int) -> dict[str, np.ndarray]:
    return {"size": np.array([size], np.int64), "x": np.ones(1, np.float32)}


def resident_mb() -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("resident memory is read from /proc")
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


# ── Memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_out_of_memory_says_so_and_the_engine_goes_on(growing: OnnxRuntimeEngine) -> None:
    """A real one: 1 EB is more than any address space."""
    with pytest.raises(EngineError, match="memory ran out while ONNX Runtime ran growing: ask for a smaller size"):
        growing.run(feeds(1 << 58))
    assert growing.run(feeds(5))["y"].tolist() == [1] * 5


def test_another_failure_is_not_called_a_lack_of_memory(growing: OnnxRuntimeEngine) -> None:
    """Negative control: a negative size is refused for another reason, and the engine goes on as well."""
    with pytest.raises(EngineError, match="failed while running growing") as caught:
        growing.run(feeds(-7))
    assert "memory ran out" not in str(caught.value)
    assert growing.run(feeds(5))["y"].tolist() == [1] * 5


@pytest.mark.parametrize(("graph", "kept"), [("audio_encoder", False), ("dit", True)])
def test_a_graph_that_runs_once_gives_its_memory_back(graph: str, kept: bool, tmp_path: Path) -> None:
    """256 MB on the way to one number; graphs that run again and again keep them, which is faster."""
    text = """
    <ir_version: 10, opset_import: ["" : 23]>
    wide (float[n] x) => (float y) { a = Exp(x) b = Neg(a) c = Mul(a, b) y = ReduceSum<keepdims = 0>(c) }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / f"{graph}.onnx")
    engine = open_engine(tmp_path / f"{graph}.onnx", device="onnxruntime:CPU", threads=1)
    given = {"x": np.ones(1 << 25, np.float32)}
    before = resident_mb()
    for _ in range(2):
        engine.run(given)
    assert (resident_mb() - before > 100) is kept


# ── What was got ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_operators_are_counted_per_provider(growing: OnnxRuntimeEngine) -> None:
    assert growing.node_counts == {"CPUExecutionProvider": 1}
    assert (growing.library, growing.precision) == ("onnxruntime", "f32")


def _with_assignment(monkeypatch: pytest.MonkeyPatch, *nodes: tuple[str, str]) -> None:
    """Let a session say that it was given to providers so."""
    parts = [
        SimpleNamespace(ep_name=name, get_nodes=lambda operator=operator: [SimpleNamespace(op_type=operator)])
        for name, operator in nodes
    ]
    ends = [SimpleNamespace(name="x", type="tensor(float)")]
    session = SimpleNamespace(
        get_provider_graph_assignment_info=lambda: parts,
        get_inputs=lambda: ends,
        get_outputs=lambda: ends,
        get_providers=lambda: [CUDA],
    )
    monkeypatch.setattr(engine_onnxruntime, "provider_of", lambda *_: CUDA)
    monkeypatch.setattr(engine_onnxruntime, "open_session", lambda *_, **__: (session, False))


def test_a_network_that_is_left_on_the_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime takes what the card lacks to the CPU without a word; here it is an error that names it."""
    _with_assignment(monkeypatch, ("CUDAExecutionProvider", "MatMul"), *[("CPUExecutionProvider", "Attention")] * 2)
    with pytest.raises(EngineError, match="leaves 2 Attention on the CPU"):
        open_engine(tmp_path / "dit.onnx", device="cuda:0")


def test_arithmetic_on_shapes_may_stay_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the one above; the count tells of it."""
    _with_assignment(
        monkeypatch,
        ("CUDAExecutionProvider", "MatMul"),
        ("CPUExecutionProvider", "Shape"),
        ("CPUExecutionProvider", "Gather"),
    )
    engine = open_engine(tmp_path / "dit.onnx", device="cuda:0")
    assert engine.node_counts == {"CUDAExecutionProvider": 1, "CPUExecutionProvider": 2}


class Sessions:
    """Stands in for the library: refuses to record CUDA graphs, or anything at all."""

    def __init__(self, said: str) -> None:
        self.asked: list[str] = []
        self._said = said

    def InferenceSession(self, _path: str, *, providers: list[tuple[str, dict[str, str]]], **_: object) -> object:  # noqa: N802
        self.asked.append(providers[0][1]["enable_cuda_graph"])
        if self.asked[-1] == "1" or "capture" not in self._said:
            raise RuntimeError(self._said)
        return SimpleNamespace(get_providers=lambda: [CUDA])


def test_a_graph_that_can_not_be_recorded_runs_without_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    library = Sessions("This session cannot use the graph capture feature as requested by the user")
    device = Device("cuda", "0")
    opened = onnxruntime_library.open_session(library, Path("dit.onnx"), provider=CUDA, device=device, options=None)  # type: ignore[arg-type]
    assert opened[1] is False
    assert library.asked == ["1", "0"]
    assert "dit runs without CUDA graphs" in caplog.text


def test_any_other_refusal_is_an_error_at_once() -> None:
    """Negative control."""
    library = Sessions("no such operator")
    with pytest.raises(EngineError, match="no such operator"):
        onnxruntime_library.open_session(
            library,  # type: ignore[arg-type]
            Path("dit.onnx"),
            provider=CUDA,
            device=Device("cuda", "0"),
            options=None,
        )
    assert library.asked == ["1"]


@pytest.mark.parametrize(
    ("dtype", "precision"), [(TensorProto.FLOAT, "f32"), (TensorProto.FLOAT16, "f16")], ids=["f32", "f16"]
)
def test_precision_is_the_type_that_the_graph_is_written_in(dtype: int, precision: str, tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, dtype, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [ends[0]], [ends[1]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "g.onnx")
    assert open_engine(tmp_path / "g.onnx", device="onnxruntime:CPU").precision == precision
    other = "f32" if precision == "f16" else "f16"
    with pytest.raises(EngineError, match=f"{other} arithmetic was asked for"):
        open_engine(tmp_path / "g.onnx", device="onnxruntime:CPU", compute=other)


def test_products_are_counted_by_what_they_compute_in(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 23]>
    mixed (float[2,4] x, float[4,4] a, int8[4,4] b) => (float[2,4] y, int32[2,4] z) {
      y = MatMul(x, a)
      whole, scale, zero = DynamicQuantizeLinear(y)
      z = MatMulInteger(whole, b, zero)
    }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "g.onnx")
    engine = open_engine(tmp_path / "g.onnx", device="onnxruntime:CPU")
    assert isinstance(engine, OnnxRuntimeEngine)
    assert engine.kernel_precisions == {"int8": 1, "f32": 1}


def test_activations_stay_whole_where_only_weights_are_quantized(tmp_path: Path) -> None:
    """ONNX Runtime's own default rounds them to int8: 38 dB on this product; ours is above 100 dB."""
    random = np.random.default_rng(0)
    weights = random.integers(-127, 127, (512, 256), dtype=np.int8)
    scales = random.uniform(0.001, 0.01, 256).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["whole"], axis=1),
        helper.make_node("MatMul", ["x", "whole"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 256])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(scales, "s")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "g.onnx")
    given = random.standard_normal((64, 512)).astype(np.float32)
    ours = open_engine(tmp_path / "g.onnx", device="onnxruntime:CPU", threads=1).run({"x": given})["y"]
    exact = given.astype(np.float64) @ (weights * scales.astype(np.float64))
    assert 10 * np.log10(np.sum(exact**2) / np.sum((ours - exact) ** 2)) > 100


# ── Wheels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _distribution(folder: Path, name: str) -> None:
    information = folder / f"{name.replace('-', '_')}-1.32.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.32.0\n", encoding="utf-8")


def test_two_wheels_of_onnx_runtime_are_an_error_that_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _distribution(tmp_path, "onnxruntime-gpu")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.metadata.version("onnxruntime-gpu") == "1.32.0"
    with pytest.raises(EngineError, match=r"onnxruntime-gpu 1.32.0 are both installed.*pip uninstall -y onnxruntime"):
        AvatarSession.open("default", device="onnxruntime:CPU", verify="size")


def test_a_wheel_whose_files_are_gone_is_an_error_that_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left after one of two wheels was uninstalled: metadata, and a module without content."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(EngineError, match=r"does not load.*pip install --force-reinstall onnxruntime"):
        import_onnxruntime()


def test_a_library_that_does_not_load_is_no_missing_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="installed and does not load"):
        import_onnxruntime()


def test_no_wheel_at_all_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(onnxruntime_library, "installed_wheels", lambda _library: {})
    with pytest.raises(MissingExtraError, match=r"pip install 'edgereels\[cuda\]'"):
        import_onnxruntime("cuda")
