# SPDX-License-Identifier: Apache-2.0
"""Which graph runs where: what is asked for is what is got, or an error, or a fallback that everybody is told of."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.runtime import AvatarSession, EngineError, ModelPackage, Trace, UsageError, placement
from edgereels.runtime.cli import main
from edgereels.runtime.placement import Asked, Placement
from edgereels.runtime.report import EngineReport, engines_line

from .stand_in_package import write_stand_in

SOUND = (0.3 * np.sin(np.arange(16000) * 0.1)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "stand-in")


@pytest.fixture(scope="module")
def package(folder: Path) -> ModelPackage:
    return ModelPackage.open(folder)


def look_up(placement: Placement, *graphs: str) -> None:
    """Open graphs, as a stream does."""
    for graph in graphs:
        assert placement[graph]


class Recorded:
    """Stands in for `open_engine`: remembers what it was asked, and gives what it was asked for."""

    library, precision, node_counts = "onnxruntime", "f32", {"CPUExecutionProvider": 3}

    def __init__(self, *, refused: tuple[str, ...] = ()) -> None:
        self.asked: dict[str, dict[str, Any]] = {}
        self._refused = refused

    def __call__(self, graph: Path, **asked: Any) -> "Recorded":
        if asked["device"] in self._refused:
            raise EngineError(f"no {asked['device']} here")
        self.asked[graph.stem] = asked
        self.provider = asked["device"]
        return self

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded(refused=("cuda:0",))
    monkeypatch.setattr(placement, "open_engine", recorded)
    return recorded


def test_a_subnetwork_and_a_graph_can_have_their_own_device(package: ModelPackage, opened: Recorded) -> None:
    place = {"vae_decoder": "openvino:GPU", "vae_decoder_first": "onnxruntime:CPU"}
    made = Placement(package, Asked(device="cpu", place=place))
    look_up(made, "dit", "vae_decoder_first", "vae_decoder_next")
    where = {graph: asked["device"] for graph, asked in opened.asked.items()}
    assert where == {"dit": "cpu", "vae_decoder_first": "onnxruntime:CPU", "vae_decoder_next": "openvino:GPU"}
    assert made.got()["vae_decoder_next"].asked == "openvino:GPU"


def test_only_transformer_and_vae_compute_in_less_than_f32(package: ModelPackage, opened: Recorded) -> None:
    made = Placement(package, Asked(compute="bf16"))
    look_up(made, *made)
    low = {graph for graph, asked in opened.asked.items() if asked["compute"] == "bf16"}
    assert low == {"dit", "vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next"}


def test_a_library_runs_its_own_sibling(
    package: ModelPackage, opened: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = dict(package.manifest.graphs)
    graphs["dit"] = dataclasses.replace(graphs["dit"], siblings={"openvino": "dit.openvino.onnx"})
    quantized = dataclasses.replace(package, manifest=dataclasses.replace(package.manifest, graphs=graphs))
    for library, file in (("openvino", "dit.openvino"), ("onnxruntime", "dit")):
        opened.asked.clear()
        monkeypatch.setattr(placement, "library_of", lambda _device, *, siblings, library=library: library)
        look_up(Placement(quantized, Asked()), "dit")
        assert list(opened.asked) == [file]
        assert opened.asked[file]["siblings"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        pytest.param({"unet": "cpu"}, "no unet to be placed; expected of it: audio_encoder", id="name"),
        pytest.param({"dit": "gpu"}, "device 'gpu' is unknown", id="device"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(folder: Path, place: Mapping[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AvatarSession.open(folder, place=place)


@pytest.mark.parametrize("text", ["dit", "dit=gpu", "=cpu", "dit=cpu,dit=cpu", "dit=cpu,"])
def test_a_place_that_can_not_be_read_is_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "--audio", "a.wav", "--frames", "f.npy", "--place", text]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_name_on_the_command_line_is_wrong_usage(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["render", "--package", str(folder), "--audio", "a.wav", "--frames", str(tmp_path / "f.npy")]
    assert main([*arguments, "--place", "unet=cpu"]) == 2
    assert "unet" in capsys.readouterr().err


def test_a_device_that_can_not_be_had_is_an_error(package: ModelPackage, opened: Recorded) -> None:
    with pytest.raises(EngineError, match="no cuda:0 here"):
        look_up(Placement(package, Asked(device="cuda:0")), "dit")


def test_a_session_does_not_open_where_a_device_is_missing(folder: Path) -> None:
    """Before anything is prepared; a host program learns of it at once."""
    with pytest.raises(EngineError, match="NPU"):
        AvatarSession.open(folder, place={"dit": "openvino:NPU"})
    AvatarSession.open(folder, place={"dit": "openvino:NPU"}, allow_fallback=True).close()


def test_a_fallback_that_was_allowed_is_told(
    package: ModelPackage, opened: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    trace = Trace()
    made = Placement(package, Asked(device="cuda:0", compute="f16", allow_fallback=True))
    made.record_to(trace)
    look_up(made, "dit", "vae_decoder_next", "finish")
    assert {got.asked for got in made.got().values()} == {"cuda:0"}
    assert {got.provider for got in made.got().values()} == {"cpu"}
    told = [event for event in trace.events if event["event"] == "fallback"]
    assert [event["graph"] for event in told] == ["dit", "vae_decoder_next", "finish"]
    assert {event["reason"] for event in told} == {"no cuda:0 here"}
    assert len(caplog.messages) == 1  # not one for each graph
    assert opened.asked["dit"]["compute"] == "auto"  # f16 is the card's


def test_what_was_had_is_no_fallback(package: ModelPackage, opened: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    """Negative control."""
    trace = Trace()
    made = Placement(package, Asked(device="cpu", allow_fallback=True))
    made.record_to(trace)
    look_up(made, "dit")
    assert made.got()["dit"].fallback is None
    assert not [event for event in trace.events if event["event"] == "fallback"]
    assert not caplog.messages


def test_a_real_render_without_a_card_falls_back_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's CPU build has no CUDA: one line on stderr, the report, the trace."""
    import onnxruntime
    import soundfile

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime was built for CUDA")
    soundfile.write(tmp_path / "a.wav", SOUND, 16000)
    arguments = ["render", "--package", str(folder), "--audio", str(tmp_path / "a.wav")]
    arguments += ["--frames", str(tmp_path / "f.npy"), "--trace", str(tmp_path / "t.jsonl"), "--json"]
    assert main([*arguments, "--place", "dit=cuda:0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*arguments, "--place", "dit=cuda:0", "--allow-fallback"]) == 0
    out, err = capsys.readouterr()
    engines = json.loads(out)["engines"]
    assert engines["dit"]["asked"] == "cuda:0"
    assert "cuda:0" in engines["dit"]["fallback"]
    assert engines["finish"]["fallback"] is None
    assert "warning" in err and err.count("\n") == 1
    events = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["graph"] for event in events if event["event"] == "fallback"] == ["dit"]


def _report(subnetwork: str, **changed: Any) -> EngineReport:
    fields = {"asked": "cpu", "library": "onnxruntime", "provider": "CPUExecutionProvider", "precision": "f32"}
    return EngineReport(subnetwork=subnetwork, **(fields | {"node_counts": {}} | changed))


def test_one_line_says_what_runs_on_what() -> None:
    alike = {"dit": _report("dit"), "finish": _report("finish")}
    assert engines_line(alike) == "everything on ONNX Runtime (CPUExecutionProvider, f32)"
    openvino = {"library": "openvino", "provider": "OpenVINO GPU", "precision": "f16"}
    mixed = alike | {f"vae_decoder_{part}": _report("vae_decoder", **openvino) for part in ("first", "next")}
    assert engines_line(mixed) == (
        "DiT, colours on ONNX Runtime (CPUExecutionProvider, f32); VAE decoder on OpenVINO (OpenVINO GPU, f16)"
    )


def test_int8_products_are_named_in_that_line() -> None:
    report = _report("dit", kernel_precisions={"int8": 49, "f32": 12})
    assert engines_line({"dit": report}) == "everything on ONNX Runtime (CPUExecutionProvider, int8 and f32)"


def test_operators_on_several_providers_are_counted_in_that_line() -> None:
    counts = {"CUDAExecutionProvider": 300, "CPUExecutionProvider": 12}
    said = engines_line({"dit": _report("dit", node_counts=counts)})
    assert "12 operators on CPUExecutionProvider, 300 operators on CUDAExecutionProvider" in said


# ── With OpenVINO ────────────────────────────────────────────────────────────────────────────────────────────────────


def rendered(folder: Path, *, trace: Trace | None = None, **asked: Any) -> np.ndarray:
    with AvatarSession.open(folder, threads=1, **asked) as session:
        return np.concatenate([chunk.frames for chunk in session.stream(audio=SOUND, trace=trace)])


@pytest.mark.parametrize(
    "place",
    [
        pytest.param({"dit": "openvino:CPU"}, id="transformer"),
        pytest.param({"vae_decoder_next": "openvino:CPU"}, id="one of two graphs that share caches"),
        pytest.param({"vae_encoder": "openvino:CPU", "finish": "openvino:CPU"}, id="two subnetworks"),
    ],
)
def test_two_libraries_make_one_video(folder: Path, place: Mapping[str, str]) -> None:
    """In f32 the two differ by rounding: at most one of 255 levels."""
    ours = rendered(folder, place=place, device="onnxruntime:CPU", compute="f32").astype(int)
    theirs = rendered(folder, device="onnxruntime:CPU").astype(int)
    assert np.abs(ours - theirs).max() <= 1


def windows(device: str, *, seed: int) -> list[np.ndarray]:
    from edgereels.runtime.audio import load_speech
    from edgereels.runtime.model_package import DEMO_SPEECH

    with AvatarSession.open("default", device=device, compute="f32") as session:
        sound = load_speech(DEMO_SPEECH)[:27000]  # two windows
        return [chunk.frames.astype(int) for chunk in session.stream(audio=sound, seed=seed)]


@pytest.mark.slow
def test_both_libraries_make_the_same_avatar_window_by_window() -> None:
    """Rounding alone: one of 255 levels at most, 99.99 % of values identical when this was written."""
    theirs = windows("onnxruntime:CPU", seed=1)
    ours, others = (windows("openvino:CPU", seed=seed) for seed in (1, 2))
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one - other).max() <= 1
        assert np.mean(one == other) >= 0.999
    assert any(np.mean(one == other) < 0.999 for one, other in zip(others, theirs, strict=True))  # negative control


def test_what_is_compiled_is_told_before_the_first_step(folder: Path) -> None:
    trace = Trace()
    rendered(folder, device="openvino:CPU", compute="f32", trace=trace)
    told = [event["event"] for event in trace.events]
    ready = [index for index, event in enumerate(told) if event in ("compiled", "cache_hit")]
    assert ready and max(ready) < told.index("dit")
    engines = {event["graph"]: event for event in trace.events if event["event"] == "engine"}
    assert engines["dit"]["library"] == "openvino"
    assert engines["dit"]["node_counts"]["OpenVINO CPU"] > 0


def test_a_second_stream_of_the_same_size_compiles_nothing(folder: Path) -> None:
    with AvatarSession.open(folder, device="openvino:CPU", threads=1) as session:
        list(session.stream(audio=SOUND))
        again, larger = Trace(), Trace()
        list(session.stream(audio=SOUND, trace=again))
        list(session.stream(audio=SOUND, trace=larger, size=(48, 48)))
    for trace, is_compiled in ((again, False), (larger, True)):
        assert any(event["event"] in ("compiled", "cache_hit") for event in trace.events) is is_compiled


def test_a_graph_that_does_not_compile_falls_back_where_that_is_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from edgereels.runtime import engine_openvino

    real = engine_openvino.freeze_all

    def refusing(wanted: Any, **options: Any) -> None:
        if any("velocity" in engine.output_names for engine, _shapes in wanted):
            raise EngineError("OpenVINO refuses the transformer")
        real(wanted, **options)

    monkeypatch.setattr(engine_openvino, "freeze_all", refusing)
    with pytest.raises(EngineError, match="refuses the transformer"):
        rendered(folder, device="openvino:CPU")
    with AvatarSession.open(folder, device="openvino:CPU", threads=1, allow_fallback=True) as session:
        list(session.stream(audio=SOUND))
        got = session.engine_reports
    assert (got["dit"].provider, got["dit"].fallback) == ("CPUExecutionProvider", "OpenVINO refuses the transformer")
    assert got["finish"].provider == "OpenVINO CPU"
    assert len(caplog.messages) == 1
