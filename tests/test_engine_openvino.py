# SPDX-License-Identifier: Apache-2.0
"""OpenVINO does what was asked, says what was got, and never writes to what it handed out."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from edgereels.runtime import engine_openvino_library as openvino_library
from edgereels.runtime import engine_openvino_runner as openvino_runner
from edgereels.runtime.engine import Device, Engine, open_engine
from edgereels.runtime.engine_openvino import OpenVinoEngine, available_devices, device_facts, freeze_all
from edgereels.runtime.engine_openvino_cache import HEADER_BYTES
from edgereels.runtime.errors import EngineError, MissingExtraError

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'
DOUBLING = "doubling (float[n] x) => (float[n] y) { y = Add(x, x) }"
# A step of a stream: what was seen goes in and out again; `seen` moves on by a matrix that no rounding hides.
STEP = """step (float[n,8] data, float[2,8] cache) => (float[n,8] shown, float[2,8] next_cache)
<float half = {0.5}, int64[1] newest = {-2}, int64[1] end = {9223372036854775807}, int64[1] axis = {0}>
{
  both = Concat<axis = 0>(cache, data)
  next_cache = Slice(both, newest, end, axis)
  level = ReduceSum(cache)
  some = Mul(level, half)
  shown = Add(data, some)
}"""
ONES = np.ones(3, np.float32)


def write(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(HEADER + text), path)
    return path


def opened(graph: Path, **changed: Any) -> OpenVinoEngine:
    settings: dict[str, Any] = {"device": Device("openvino", "CPU"), "threads": 1, "compute": "f32", **changed}
    return OpenVinoEngine(graph, **settings)


def codes(engine: OpenVinoEngine) -> list[str]:
    return [event["code"] for event in engine.events]


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A graph that doubles its input."""
    return write(tmp_path / "g.onnx", DOUBLING)


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A graph with a cache."""
    return write(tmp_path / "step.onnx", STEP)


# ── What was asked and what was got ──────────────────────────────────────────────────────────────────────────────────


def test_a_graph_runs_and_says_where(doubling: Path) -> None:
    engine: Engine = open_engine(doubling, device="openvino:CPU", threads=1)
    assert engine.node_counts == {}
    assert engine.run({"x": ONES})["y"].tolist() == [2, 2, 2]
    assert (engine.library, engine.provider, engine.precision) == ("openvino", "OpenVINO CPU", "f32")
    assert engine.node_counts["OpenVINO CPU"] > 0
    assert (engine.input_names, engine.output_names) == (("x",), ("y",))


def test_importing_it_reports_to_nobody(doubling: Path, tmp_path: Path) -> None:
    """OpenVINO leaves files in the home folder when it is imported plainly, where its telemetry is installed."""
    ours = f"""
        from pathlib import Path
        from edgereels.runtime.engine import open_engine
        engine = open_engine(Path({str(doubling)!r}), device="openvino:CPU", threads=1)
        engine.freeze([{{"x": (3,)}}])
    """
    for code, expected in ((ours, False), ("import openvino, openvino_telemetry", True)):
        home = tmp_path / f"home_{expected}"
        home.mkdir()
        done = run_python(code, HOME=str(home), USERPROFILE=str(home), EDGEREELS_CACHE=str(tmp_path / "cache"))
        if expected and b"No module named 'openvino_telemetry'" in done.stderr:
            continue  # nothing to control with
        assert done.returncode == 0, done.stderr.decode()
        assert any(home.iterdir()) == expected


def run_python(code: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    # OpenVINO's telemetry keeps still where these tell it that the machine is one of a build farm: here it may speak.
    inherited = {name: value for name, value in os.environ.items() if name not in {"CI", "TF_BUILD", "JENKINS_URL"}}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, timeout=120)


def test_without_openvino_the_line_to_install_it_is_printed(doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgereels\[openvino\]'"):
        opened(doubling)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "its files are incomplete"),
        ("import its_own_part_that_is_gone", "lacks the module 'its_own_part_that_is_gone'"),
        ("raise ImportError('libopenvino.so: cannot open shared object file')", "libopenvino.so: cannot open"),
        ("raise RuntimeError('bad wheel')", "bad wheel"),
    ],
    ids=["empty", "a part is gone", "a library is gone", "raises"],
)
def test_a_broken_installation_is_said_to_be_broken(content: str, reason: str, doubling: Path, tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text(content, encoding="utf-8")
    done = run_python(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from pathlib import Path
        from edgereels.runtime.engine import open_engine
        from edgereels.runtime.errors import EngineError
        try:
            open_engine(Path({str(doubling)!r}), device="openvino:CPU")
        except EngineError as error:
            print(error)
    """)
    assert done.stdout.decode().startswith("OpenVINO is installed and can not be used ("), done.stderr.decode()
    assert reason in done.stdout.decode()
    assert "pip install --force-reinstall" in done.stdout.decode()


@pytest.mark.parametrize("name", ["GPU", "NPU"])
def test_a_device_that_is_not_there_is_an_error_and_not_auto(name: str, doubling: Path) -> None:
    if any(device.startswith(name) for device in available_devices()):
        pytest.skip(f"this machine has a {name}")
    with pytest.raises(EngineError, match=rf"openvino:{name} was asked for; OpenVINO sees CPU"):
        opened(doubling, device=Device("openvino", name))


def test_devices_tell_what_they_are() -> None:
    facts = {each["name"]: each for each in device_facts()}
    assert facts["CPU"]["full_name"]
    assert "FP32" in facts["CPU"]["capabilities"]


def test_f16_on_a_cpu_is_f16_or_an_error(doubling: Path) -> None:
    """Where the processor has no arithmetic for it OpenVINO gives bf16 and says nothing."""
    (cpu,) = (each for each in device_facts() if each["name"] == "CPU")
    if "FP16" in cpu["capabilities"]:  # Xeons from Sapphire Rapids on
        assert opened(doubling, compute="f16").precision == "f16"
        return
    with pytest.raises(EngineError, match=r"f16 .*OpenVINO gives \w+ on its CPU"):
        opened(doubling, compute="f16")


def test_bf16_is_an_error_where_kernels_are_capped(doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(EngineError, match="ONEDNN_MAX_CPU_ISA=AVX2"):
        opened(doubling, compute="bf16")


@pytest.mark.parametrize(
    ("graph", "is_low"),
    [
        ("dit", True),
        ("dit.openvino", True),
        ("dit_block_03", True),
        ("vae_decoder_next", True),
        ("dit_time", False),
        ("audio_encoder", False),
        ("text_encoder", False),
        ("finish", False),
        ("g", False),
    ],
)
@pytest.mark.parametrize("is_native", [True, False], ids=["native bf16", "no bf16"])
def test_auto_computes_in_bf16_what_bears_it_where_the_cpu_has_it(
    graph: str, is_low: bool, is_native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_library, "has_native_bf16", lambda: is_native)
    monkeypatch.setattr(openvino_library, "_obtained_precision", lambda target, asked: asked)
    engine = opened(write(tmp_path / f"{graph}.onnx", DOUBLING), compute="auto")
    assert engine.precision == ("bf16" if is_low and is_native else "f32")


def test_bf16_is_what_the_compiled_graph_says(tmp_path: Path) -> None:
    if not openvino_library.has_native_bf16():
        pytest.skip("this CPU has no bf16")
    text = "g (float[m,64] x, float[64,64] w) => (float[m,64] y) { y = MatMul(x, w) }"
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal((64, 64), dtype=np.float32) for name in "xw"}
    exact = feeds["x"] @ feeds["w"]
    errors = {}
    for precision in ("f32", "bf16"):
        engine = opened(write(tmp_path / "g.onnx", text), compute=precision)
        engine.freeze([{"x": (64, 64), "w": (64, 64)}])
        errors[precision] = np.linalg.norm(engine.run(feeds)["y"] - exact) / np.linalg.norm(exact)
        assert engine.kernel_precisions == {precision: 1}
    # 24 bits of mantissa against 8: one rounding of each factor.
    assert errors["f32"] < 1e-6 < 1e-3 < errors["bf16"] < 1e-2


def test_a_compiled_graph_of_another_precision_is_never_used(doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgereels.runtime import engine_openvino

    engine = opened(doubling, cache=doubling.parent / "cache")
    engine.freeze([{"x": (3,)}])
    monkeypatch.setattr(engine_openvino, "precision_of", lambda compiled: "bf16")
    again = opened(doubling, cache=doubling.parent / "cache")
    again.freeze([{"x": (3,)}])
    assert codes(again) == ["cache_rejected", "compiled", "cache_rejected", "compiled"]
    assert not again.events[-1]["isolated"], "compiled here, where its precision is checked"


# ── Shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_set_of_shapes_is_compiled_once_and_others_run_too(step: Path) -> None:
    engine = opened(step, cache=step.parent / "cache")
    engine.freeze([{"data": (4, 8), "cache": (2, 8)}, {"data": (6, 8), "cache": (2, 8)}])
    assert codes(engine) == ["compiled"] * 2
    engine.freeze([{"data": (4, 8), "cache": (2, 8)}])
    for rows in (4, 6, 4, 6):
        assert engine.run(feeds_of(rows))["shown"].shape == (rows, 8)
    assert codes(engine) == ["compiled"] * 2
    for rows in (5, 7):
        assert engine.run(feeds_of(rows))["shown"].shape == (rows, 8)
    assert codes(engine) == ["compiled"] * 3, "one for all other shapes"


def feeds_of(rows: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((count, 8), np.float32) for name, count in (("data", rows), ("cache", 2))}


def stepped(data: np.ndarray, cache: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the step graph computes."""
    both = np.concatenate([cache, data])
    return {"shown": data + 0.5 * cache.sum(), "next_cache": both[-2:]}


def test_frozen_and_unfrozen_runs_agree(step: Path) -> None:
    frozen, other = opened(step), opened(step)
    frozen.freeze([{"data": (4, 8), "cache": (2, 8)}])
    ours, theirs = frozen.run(feeds_of(4)), other.run(feeds_of(4))
    for name, expected in stepped(**feeds_of(4)).items():
        # Sums of sixteen float32: another order of adding moves the last bits.
        np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(theirs[name], expected, rtol=1e-5, atol=1e-5)


def test_shapes_that_leave_an_input_out_are_refused(step: Path) -> None:
    with pytest.raises(EngineError, match="'cache', whose shape was not given"):
        opened(step).freeze([{"data": (4, 8)}])


def test_an_input_that_no_operator_uses_does_no_harm(tmp_path: Path) -> None:
    """OpenVINO drops it."""
    text = "g (float[n] idle, float[n] x) => (float[n] y) { y = Add(x, x) }"
    engine = opened(write(tmp_path / "g.onnx", text))
    assert engine.input_names == ("idle", "x")
    engine.freeze([{"idle": (3,), "x": (3,)}])
    for count in (3, 4):
        ones = np.ones(count, np.float32)
        assert engine.run({"idle": ones, "x": ones})["y"].tolist() == [2] * count


def test_outputs_that_are_inputs_or_constants_are_copies(tmp_path: Path) -> None:
    text = """g (float[2,3] x) => (float[2,3] same, float[3,2] turned, float[2] fixed)
    <int64[2] shape = {3,2}, float[2] five = {5.0,6.0}>
    { same = Identity(x)  turned = Reshape(x, shape)  fixed = Identity(five) }"""
    engine = opened(write(tmp_path / "g.onnx", text))
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    made = engine.run({"x": value})
    assert not any(np.shares_memory(value, made[name]) for name in made)
    value[:] = -1
    assert made["same"].ravel().tolist() == made["turned"].ravel().tolist() == [0, 1, 2, 3, 4, 5]
    made["fixed"][:] = 0
    assert engine.run({"x": value})["fixed"].tolist() == [5, 6]


# ── Who owns what ────────────────────────────────────────────────────────────────────────────────────────────────────


def chain(engine: OpenVinoEngine, *, steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Run step after step with the cache kept; return all that was shown and all caches."""
    cache, shown, caches = feeds_of(4)["cache"], [], [feeds_of(4)["cache"]]
    for seed in range(steps):
        made = engine.run({"data": feeds_of(4, seed=seed)["data"], "cache": cache}, keep=("next_cache",))
        cache = made["next_cache"]
        shown.append(made["shown"])
        caches.append(cache)
    return shown, caches


def check_chain(shown: list[np.ndarray], caches: list[np.ndarray]) -> None:
    cache = feeds_of(4)["cache"]
    for seed in range(len(shown)):
        expected = stepped(feeds_of(4, seed=seed)["data"], cache)
        cache = expected["next_cache"]
        np.testing.assert_allclose(shown[seed], expected["shown"], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(caches[seed + 1], cache)


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "any shape"])
def test_ten_steps_leave_every_earlier_value_as_it_was(is_frozen: bool, step: Path) -> None:
    engine = opened(step)
    if is_frozen:
        engine.freeze([{"data": (4, 8), "cache": (2, 8)}])
    shown, caches = chain(engine, steps=10)
    check_chain(shown, caches)
    chain(engine, steps=3)  # a second stream on the same engine
    check_chain(shown, caches)


def test_that_check_sees_memory_that_is_used_again(step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: arrays that go back into use while somebody holds them."""
    engine = opened(step)
    engine.freeze([{"data": (4, 8), "cache": (2, 8)}])
    monkeypatch.setattr(openvino_runner, "UNSHARED", 0)
    monkeypatch.setattr(sys, "getrefcount", lambda value: 0)
    shown, caches = chain(engine, steps=10)
    with pytest.raises(AssertionError):
        check_chain(shown, caches)


def test_memory_goes_back_into_use_when_nobody_holds_it(step: Path) -> None:
    """Two arrays take turns: addresses stay the same however long a stream is."""
    engine = opened(step)
    engine.freeze([{"data": (4, 8), "cache": (2, 8)}])
    cache, addresses = feeds_of(4)["cache"], []
    for _ in range(20):
        cache = engine.run({"data": feeds_of(4)["data"], "cache": cache}, keep=("next_cache",))["next_cache"]
        addresses.append(cache.ctypes.data)
    assert len(set(addresses)) == 2
    assert all(addresses[at] != addresses[at + 1] for at in range(19))


def test_a_view_keeps_its_array(step: Path) -> None:
    engine = opened(step)
    engine.freeze([{"data": (4, 8), "cache": (2, 8)}])
    row = engine.run(feeds_of(4))["shown"][2:][0]
    expected = row.copy()
    for seed in range(1, 6):
        engine.run(feeds_of(4, seed=seed))
    np.testing.assert_array_equal(row, expected)


def test_results_outlive_their_engine(step: Path) -> None:
    engine = opened(step)
    engine.freeze([{"data": (4, 8), "cache": (2, 8)}])
    made = engine.run(feeds_of(4))
    engine.close()
    np.testing.assert_allclose(made["shown"], stepped(**feeds_of(4))["shown"], rtol=1e-5, atol=1e-5)


def unaligned(value: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"ab" + value.tobytes(), value.dtype, offset=2).reshape(value.shape)


def read_only(value: np.ndarray) -> np.ndarray:
    copy = value.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize(
    "arranged",
    [read_only, np.asfortranarray, unaligned, lambda value: np.repeat(value, 2, axis=1)[:, ::2]],
    ids=["read only", "columns first", "unaligned", "every second"],
)
def test_inputs_may_lie_in_memory_as_they_like(arranged: Callable[[Any], Any], step: Path) -> None:
    engine = opened(step)
    feeds = {name: arranged(value) for name, value in feeds_of(4).items()}
    made = engine.run(feeds)
    np.testing.assert_allclose(made["shown"], stepped(**feeds_of(4))["shown"], rtol=1e-5, atol=1e-5)
    for name, value in feeds_of(4).items():
        np.testing.assert_array_equal(feeds[name], value)


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_closed_engine_does_not_run(doubling: Path) -> None:
    engine = opened(doubling)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"x": ONES})
    with pytest.raises(EngineError, match="closed"):
        engine.freeze([{"x": (3,)}])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"z": ONES}, "'x' was not given; got z"),
        ({"x": ONES.astype(np.float64)}, r"'x' is float64 \(3,\); g.onnx takes float32 \('n',\)"),
        ({"x": ONES[None]}, r"'x' is float32 \(1, 3\)"),
    ],
    ids=["missing", "another type", "another rank"],
)
def test_feeds_that_do_not_fit_are_named(feeds: dict[str, Any], message: str, doubling: Path) -> None:
    with pytest.raises(EngineError, match=message):
        opened(doubling).run(feeds)


def test_sizes_that_contradict_each_other_are_one_line(step: Path) -> None:
    engine = opened(step)
    with pytest.raises(EngineError, match=r"^OpenVINO [^\n]*step.onnx at data 4x8, cache 3x9[^\n]*$"):
        engine.run({"data": feeds_of(4)["data"], "cache": np.ones((3, 9), np.float32)})
    assert engine.run(feeds_of(4))["shown"].shape == (4, 8), "the engine goes on"


def test_a_graph_that_no_package_may_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"\x08\x0a junk")
    for graph in (tmp_path / "g.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(EngineError, match=f"{graph.name} can not be opened"):
            opened(graph)


# ── The cache ────────────────────────────────────────────────────────────────────────────────────────────────────────

WEIGHTED = "g (float[m,64] x) => (float[m,64] y) { y = MatMul(x, w) }"


@pytest.fixture
def weighted(tmp_path: Path) -> Path:
    """A graph whose weights are most of its bytes."""
    model = onnx.parser.parse_model(HEADER + WEIGHTED)
    weight = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_what_was_compiled_once_is_taken_from_the_cache(weighted: Path) -> None:
    value = np.random.default_rng(1).standard_normal((4, 64), np.float32)
    results = []
    for expected in ("compiled", "cache_hit"):
        engine = opened(weighted, cache=weighted.parent / "cache")
        engine.freeze([{"x": (4, 64)}])
        assert codes(engine) == [expected]
        results.append(engine.run({"x": value})["y"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    "changed", [{"threads": 2}, {"compute": "bf16"}, {"graph": True}], ids=lambda changed: next(iter(changed))
)
def test_what_was_compiled_for_something_else_is_not(changed: dict[str, Any], weighted: Path) -> None:
    if "compute" in changed and not openvino_library.has_native_bf16():
        pytest.skip("this CPU has no bf16")
    opened(weighted, cache=weighted.parent / "cache").freeze([{"x": (4, 64)}])
    if changed.pop("graph", False):
        model = onnx.load(weighted)
        model.doc_string = "another one"
        onnx.save(model, weighted)
    engine = opened(weighted, cache=weighted.parent / "cache", **changed)
    engine.freeze([{"x": (4, 64)}])
    assert codes(engine) == ["compiled"]


def flip_weights(cache: Path) -> None:
    """Flip one bit in the middle of every compiled graph, where the weights are."""
    for file in cache.glob("*.graph"):
        data = bytearray(file.read_bytes())
        data[len(data) - 64 * 64 * 2] ^= 0x40
        file.write_bytes(data)


def test_flipped_weights_in_the_cache_are_found_and_compiled_again(weighted: Path) -> None:
    cache = weighted.parent / "cache"
    value = np.random.default_rng(1).standard_normal((4, 64), np.float32)
    first = opened(weighted, cache=cache)
    expected = first.run({"x": value})["y"]
    flip_weights(cache)
    second = opened(weighted, cache=cache)
    np.testing.assert_array_equal(second.run({"x": value})["y"], expected)
    assert codes(second) == ["cache_rejected", "compiled"]


def test_openvino_itself_would_use_flipped_weights(weighted: Path) -> None:
    """Negative control: the damage above is one that OpenVINO doesn't see, and it changes results."""
    cache = weighted.parent / "cache"
    value = np.random.default_rng(1).standard_normal((4, 64), np.float32)
    expected = opened(weighted, cache=cache).run({"x": value})["y"]
    flip_weights(cache)
    blob = next(cache.glob("*.graph")).read_bytes()[HEADER_BYTES:]
    request = (
        openvino_library.core().import_model(blob, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    )
    request.infer({"x": value})
    assert np.abs(request.get_output_tensor(0).data - expected).max() > 0.1


def test_a_cached_graph_that_openvino_refuses_is_compiled_again(weighted: Path) -> None:
    """A file that is whole by its digest, and no graph."""
    from edgereels.runtime.engine_openvino_cache import CompileCache

    engine = opened(weighted, cache=weighted.parent / "cache")
    (job,) = engine.jobs([{"x": (4, 64)}])
    assert CompileCache(Path(job.folder)).store(job.key, b"no graph")
    engine.freeze([{"x": (4, 64)}])
    assert codes(engine) == ["cache_rejected", "compiled"]


def test_without_a_writable_cache_everything_works_and_one_event_says_so(weighted: Path) -> None:
    engine = opened(weighted, cache=weighted / "below a file")
    engine.run({"x": np.ones((4, 64), np.float32)})
    assert codes(engine) == ["cache_unusable", "compiled"]
    engine.close()


def test_events_are_told_as_they_happen(doubling: Path) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    engine = opened(doubling, cache=doubling.parent / "c", on_event=lambda code, **fields: told.append((code, fields)))
    engine.freeze([{"x": (3,)}])
    assert [(code, set(fields)) for code, fields in told] == [("compiled", {"graph", "seconds", "isolated"})]


# ── Threads, signals, memory ─────────────────────────────────────────────────────────────────────────────────────────

SQUARES = """squares (float[n,n] x) => (float[n,n] y) {
  x1 = MatMul(x, x)  x2 = MatMul(x1, x)  x3 = MatMul(x2, x)  y = MatMul(x3, x)
}"""


def test_threads_bound_the_work_of_all_graphs_together(tmp_path: Path) -> None:
    """Two threads with an engine of one thread each take no more than one processor."""
    graph = write(tmp_path / "g.onnx", SQUARES)
    engines = [opened(graph), opened(graph)]
    value = np.zeros((400, 400), np.float32)
    freeze_all([(engine, [{"x": value.shape}]) for engine in engines])

    def work(engine: OpenVinoEngine) -> None:
        for _ in range(30):
            engine.run({"x": value})

    workers = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    wall_s, processor_s = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wall_s, processor_s = time.perf_counter() - wall_s, time.process_time() - processor_s
    assert processor_s < 1.2 * wall_s


def loop_of(graph: Path, *, size: int) -> str:
    """Return a program that runs a graph until it is interrupted."""
    return f"""
        import signal, sys
        import numpy as np
        from pathlib import Path
        from edgereels.runtime.engine import open_engine
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are made deaf to it
        engine = open_engine(Path({str(graph)!r}), device="openvino:CPU", threads=1)
        value = np.zeros(({size}, {size}), np.float32)
        engine.freeze([{{"x": value.shape}}])
        print("running", flush=True)
        try:
            while True:
                engine.run({{"x": value}})
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sys.exit(130)
    """


@pytest.mark.parametrize("size", [64, 6000], ids=["short runs", "one run of many seconds"])
def test_ctrl_c_ends_a_program_in_the_middle_of_a_run(size: int, tmp_path: Path) -> None:
    """The long run is 1.7 TFLOP on one thread, which takes longer than the limit; the process doesn't wait for it."""
    code = loop_of(write(tmp_path / "g.onnx", SQUARES), size=size)
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"running\n"
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    began_s = time.monotonic()
    limit = threading.Timer(20, child.kill)  # one that is deaf would run for hours
    limit.start()
    with child:
        assert child.stdout.read() == b"interrupted\n"
    limit.cancel()
    assert child.wait() == 130
    assert time.monotonic() - began_s < 5


def test_a_run_can_be_ended_from_another_thread(tmp_path: Path) -> None:
    graph = write(tmp_path / "g.onnx", SQUARES)
    done = run_python(f"""
        import threading, time
        import numpy as np
        from pathlib import Path
        from edgereels.runtime.engine import end_runs, open_engine
        from edgereels.runtime.errors import EngineError
        engine = open_engine(Path({str(graph)!r}), device="openvino:CPU", threads=1)
        value = np.zeros((6000, 6000), np.float32)
        engine.freeze([{{"x": value.shape}}])
        threading.Timer(0.5, end_runs).start()
        began_s = time.monotonic()
        try:
            engine.run({{"x": value}})
        except EngineError as error:
            print(error, time.monotonic() - began_s < 5)
    """)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == "the run of g.onnx was ended True"


# The second output keeps OpenVINO from fusing the lines, which would take hardly any memory.
ATTENTION = """g (float[n,4] x) => (float[n,4] y, float sum) {
  a = Transpose<perm = [1,0]>(x)  b = MatMul(x, a)  c = Softmax(b)  y = MatMul(c, x)
  sum = ReduceSum<keepdims = 0>(c)
}"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space as on Linux")
def test_a_run_without_memory_says_so_and_the_next_one_is_well(tmp_path: Path) -> None:
    """A real one: the products of 20 000 tokens take 1.6 GB where there are 0.6. The compiled graph is broken then."""
    graph = write(tmp_path / "g.onnx", ATTENTION)
    done = run_python(f"""
        import resource
        import numpy as np
        from pathlib import Path
        from edgereels.runtime.engine import open_engine
        from edgereels.runtime.errors import EngineError
        engine = open_engine(Path({str(graph)!r}), device="openvino:CPU", threads=1)
        small, big = np.ones((10, 4), np.float32), np.ones((20000, 4), np.float32)
        engine.run({{"x": small}})
        used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), resource.RLIM_INFINITY))
        try:
            engine.run({{"x": big}})
        except EngineError as error:
            print(error)
        print(engine.run({{"x": small}})["y"].shape, [e["code"] for e in engine.events if e["code"][0] == "e"])
    """)
    assert done.returncode == 0, done.stderr.decode()
    failed, well = done.stdout.decode().splitlines()
    assert failed.startswith("not enough memory to run g.onnx at x 20000x4, tried twice (")
    assert "ask for a smaller size" in failed
    assert well == "(10, 4) ['engine_reopened']"


@pytest.mark.parametrize(
    "error",
    [MemoryError("std::bad_alloc"), RuntimeError("Exception from x.cpp:1:\nFailed to allocate 160000 bytes")],
    ids=["bad_alloc", "said otherwise"],
)
def test_an_engine_that_ran_out_of_memory_once_is_opened_again(
    error: Exception, doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(doubling)
    engine.freeze([{"x": (3,)}])
    broken = next(iter(engine._runners.values()))

    def fail(feeds: object) -> None:
        raise error

    monkeypatch.setattr(broken, "run", fail)
    assert engine.run({"x": ONES})["y"].tolist() == [2, 2, 2]
    assert codes(engine).count("engine_reopened") == 1
    assert engine.run({"x": ONES})["y"].tolist() == [2, 2, 2]
    assert codes(engine).count("engine_reopened") == 1
    assert broken not in engine._runners.values()


def test_another_failure_is_not_taken_for_memory(doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    engine = opened(doubling)
    engine.freeze([{"x": (3,)}])

    def fail(feeds: object) -> None:
        raise RuntimeError("Exception from x.cpp:1:\nthe graph is odd")

    monkeypatch.setattr(next(iter(engine._runners.values())), "run", fail)
    with pytest.raises(EngineError, match=r"^OpenVINO failed while running g.onnx at x 3: the graph is odd$"):
        engine.run({"x": ONES})
    assert "engine_reopened" not in codes(engine)
