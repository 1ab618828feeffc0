# SPDX-License-Identifier: Apache-2.0
"""The quality ladder: a reference passes against itself, a damaged candidate fails where it is damaged, and faults made
on purpose are caught, or the ladder is refused."""

import json
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgereels.runtime import ladder_controls as controls
from edgereels.runtime import metrics
from edgereels.runtime.cli import main as edgereels
from edgereels.runtime.engine import open_engine
from edgereels.runtime.errors import UsageError, VerificationError
from edgereels.runtime.golden import load_golden
from edgereels.runtime.ladder import RUNGS, Prepared, climb, prepare
from edgereels.runtime.ladder_gates import AT_MOST, Gate, GateResult
from edgereels.runtime.ladder_recording import Recording, Sample, ladder_sound, prepare_trial, record
from edgereels.runtime.ladder_rungs import clip_figures, figures_of
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.package_files import sha256_of
from edgereels.runtime.placement import Asked
from edgereels.runtime.quality import FAILED, PASSED, Quality, quality_bytes

from .package_examples import change_manifest, copy_of, replace_file
from .stand_in_package import write_stand_in

MOUTH = [0.25, 0.25, 0.75, 0.75]
ON_ONNX_RUNTIME = Asked(device="onnxruntime:CPU", threads=1, compute="f32")


def speech(seconds: float = 2.4) -> np.ndarray:
    """Return a sound whose envelope moves like syllables, with a pause."""
    count = round(seconds * 16000)
    random = np.random.default_rng(7)
    envelope = np.interp(np.arange(count), np.arange(0, count + 1600, 1600), random.uniform(0, 1, count // 1600 + 1))
    envelope[count // 2 : count // 2 + 4000] = 0
    return (0.4 * envelope).astype(np.float32)  # the stand-in hears single samples: no carrier, only the envelope


def damaged(reference: Path, target: Path, *, graph: str, scale: float) -> ModelPackage:
    """Return a copy with one graph's weights scaled."""
    root = copy_of(reference, target)
    model = onnx.load(root / f"{graph}.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    replace_file(root, f"{graph}.onnx", model.SerializeToString())
    return ModelPackage.open(root)


@pytest.fixture(scope="module")
def faceless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "stand-in")


@pytest.fixture(scope="module")
def reference(faceless: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    root = copy_of(faceless, tmp_path_factory.mktemp("packages") / "face")
    change_manifest(root, lambda fields: fields.update(mouth_box=MOUTH))
    return ModelPackage.open(root)


def climbed(candidate: ModelPackage, reference: ModelPackage, **arguments: object) -> Quality:
    given = {"device": "onnxruntime:CPU", "threads": 1, "sound": speech(), **arguments}
    return climb(candidate, reference, **given)  # pyright: ignore[reportArgumentType] - by name


@pytest.fixture(scope="module")
def itself(reference: ModelPackage) -> Quality:
    return climbed(reference, reference)


def test_a_package_against_itself_passes_every_gate(itself: Quality) -> None:
    assert itself.verdict == PASSED, itself.misses
    assert {gate.rung for gate in itself.gates} == {"graph", "window", "clip"}  # a stand-in has no blocks
    assert itself.rungs["clip"]["psnr_db"] == metrics.MOST_DB
    assert itself.rungs["window"]["step_sqnr_db"] == [metrics.MOST_DB]


def test_the_record_belongs_to_the_candidate(itself: Quality, reference: ModelPackage) -> None:
    assert itself.matches(reference)
    assert itself.source == reference.digest
    assert itself.engine_name == "ONNX Runtime CPU f32"
    assert itself.counts["windows"] > 2 and itself.counts["height"] == 32


def test_every_fault_made_on_purpose_is_caught(itself: Quality) -> None:
    caught = {control.name: control.caught_by for control in itself.controls}
    assert caught == {"scaled weights": "rel_l2", "swapped frames": "psnr_db", "shifted audio": "lag_ms"}
    assert itself.controls[0].note.endswith("on CPUExecutionProvider in f32")


def test_the_shifted_sound_moves_the_lips_by_its_shift(itself: Quality) -> None:
    (lag,) = [control.value for control in itself.controls if control.name == "shifted audio"]
    assert lag == pytest.approx(120, abs=50)  # a stand-in shows four frames alike; the embedded face: 121


def test_each_graph_is_fed_from_the_whole_trajectory(itself: Quality) -> None:
    inputs = {row["graph"]: row["inputs"] for row in itself.rungs["graph"]}
    assert min(count for graph, count in inputs.items() if graph != "dit_time") >= 8


def test_the_document_names_every_field(itself: Quality) -> None:
    document = (Path(__file__).parents[1] / "docs" / "quality.md").read_text(encoding="utf-8")
    (ladder,) = json.loads(quality_bytes([itself]))["ladders"]
    tables = [ladder, ladder["engine"], ladder["counts"], ladder["gates"][0], ladder["controls"][0]]
    tables += [ladder["rungs"], ladder["rungs"]["graph"][0], ladder["rungs"]["window"], ladder["rungs"]["clip"]]
    names = {name for table in tables for name in table if not name.startswith("worst_") or name in document}
    missing = [name for name in names if f"`{name}`" not in document]
    assert not missing


@pytest.mark.parametrize("graph", ["vae_encoder_next", "vae_decoder_next"])
def test_a_damaged_graph_fails_at_its_own_place(reference: ModelPackage, tmp_path: Path, graph: str) -> None:
    candidate = damaged(reference.root, tmp_path / "damaged", graph=graph, scale=1.01)
    found = climbed(candidate, reference, rungs=("graph",))
    assert found.verdict == FAILED
    assert [gate.where for gate in found.gates if not gate.passed] == [graph]


def test_what_a_viewer_sees_fails_too(reference: ModelPackage, tmp_path: Path) -> None:
    candidate = damaged(reference.root, tmp_path / "damaged", graph="vae_decoder_next", scale=1.5)
    found = climbed(candidate, reference, rungs=("clip",))
    assert {gate.metric for gate in found.gates if not gate.passed} >= {"psnr_db"}


def test_without_a_mouth_box_there_are_no_gates_of_a_face(faceless: Path) -> None:
    package = ModelPackage.open(faceless)
    found = climbed(package, package, rungs=("clip",))
    assert {gate.metric for gate in found.gates} == {"psnr_db", "ssim", "levels_per_min"}
    (not_run,) = [control for control in found.controls if control.value is None]
    assert not_run.name == "shifted audio" and "mouth box" in not_run.note


@pytest.mark.slow
def test_a_package_without_avatars_borrows_the_embedded_face(faceless: Path, tmp_path: Path) -> None:
    root = copy_of(faceless, tmp_path / "nobody")

    def forget(fields: dict[str, Any]) -> None:
        fields["avatars"] = {}
        del fields["files"]["avatars/anna.safetensors"]

    change_manifest(root, forget)
    (root / "avatars" / "anna.safetensors").unlink()
    (root / "avatars").rmdir()
    package = ModelPackage.open(root)
    found = climbed(package, package, rungs=("graph",), sound=None)
    assert found.verdict == PASSED and found.counts["windows"] in (2, 3)
    assert (found.counts["height"], found.counts["width"]) == (192, 192)  # the face's own
    assert climbed(package, package, rungs=("graph",), size=(64, 32)).counts["height"] == 64


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param({"rungs": ("graph", "ladder")}, "rungs ladder", id="unknown-rung"),
        pytest.param({"rungs": ()}, "rungs are none", id="no-rung"),
        pytest.param({"rungs": ("block",)}, "without blocks", id="no-blocks"),
        pytest.param({"sound": speech(0.5)}, "needs two windows", id="short-sound"),
    ],
)
def test_what_makes_no_ladder_is_wrong_usage(reference: ModelPackage, arguments: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        climbed(reference, reference, **arguments)


def test_engines_share_what_the_reference_prepared(reference: ModelPackage, itself: Quality, tmp_path: Path) -> None:
    prepared = prepare(reference, threads=1, sound=speech())
    again = climbed(reference, reference, sound=None, prepared=prepared)
    assert (again.rungs, again.gates, again.controls) == (itself.rungs, itself.gates, itself.controls)
    other = damaged(reference.root, tmp_path / "other", graph="vae_decoder_next", scale=1.01)
    with pytest.raises(UsageError, match="of another package"):
        climbed(other, other, prepared=prepared)
    with pytest.raises(UsageError, match="no window"):
        climbed(reference, reference, prepared=replace(prepared, window_latents=()))


def test_a_package_of_another_network_is_no_candidate(reference: ModelPackage, tmp_path: Path) -> None:
    other = ModelPackage.open(write_stand_in(tmp_path / "other", has_image=True))
    with pytest.raises(UsageError, match="the package that it was made from"):
        climbed(other, reference)


def test_a_package_that_is_sampled_in_another_way_is_no_candidate(reference: ModelPackage, tmp_path: Path) -> None:
    root = copy_of(reference.root, tmp_path / "other")
    change_manifest(root, lambda fields: fields["settings"].update(window=17))
    with pytest.raises(UsageError, match="sampled in another way"):
        climb(ModelPackage.open(root), reference, device="onnxruntime:CPU", threads=1)


def test_openvino_is_held_against_onnx_runtime(reference: ModelPackage) -> None:
    found = climbed(reference, reference, device="openvino:CPU", compute="f32", rungs=("graph", "window"))
    assert found.verdict == PASSED, found.misses
    assert found.engine["library"] == "openvino"
    (control,) = found.controls  # goes through the gate of the engine under test, and runs on it
    assert control.note.endswith("on OpenVINO CPU in f32")
    assert 0 < max(row["rel_l2"] for row in found.rungs["graph"]) < 1e-5  # other kernels, the same arithmetic


@pytest.mark.slow
def test_the_command_line_climbs_and_says_where_a_gate_is_missed(
    reference: ModelPackage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = tmp_path / "speech.wav"
    with wave.open(str(sound), "wb") as stream:
        stream.setparams((1, 2, 16000, 0, "NONE", ""))
        stream.writeframes((speech() * 32767).astype("<i2").tobytes())
    options = ["--ladder", "--device", "onnxruntime:CPU", "--threads", "1", "--audio", str(sound)]
    assert edgereels(["verify", str(reference.root), *options]) == 0
    assert "passed: " in capsys.readouterr().out
    candidate = damaged(reference.root, tmp_path / "damaged", graph="vae_decoder_next", scale=1.01)
    options += ["--reference", str(reference.root), "--rungs", "graph"]
    assert edgereels(["verify", str(candidate.root), *options]) == 1
    assert "edgereels verify: graph: vae_decoder_next: rel_l2 0.0" in capsys.readouterr().err


# ── The embedded package ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def embedded() -> ModelPackage:
    return ModelPackage.open("default", verify="size")


@pytest.fixture(scope="module")
def spoken(embedded: ModelPackage) -> Prepared:
    """A little more than two windows of the embedded package."""
    return prepare(embedded, threads=1, sound=ladder_sound()[: round(2.4 * 16000)], rungs=("block",))


@pytest.mark.slow
def test_blocks_are_fed_one_after_the_other_and_give_what_the_whole_gives(spoken: Prepared) -> None:
    samples = spoken.recording.samples
    for part, whole in zip(samples["dit_epilogue"], samples["dit"], strict=True):
        # Fused or in parts: the same sums, in an order that the engine chooses by what it sees together.
        assert metrics.rel_l2(part.outputs["velocity"], whole.outputs["velocity"]) < 1e-5


@pytest.mark.slow
def test_each_block_is_judged_alone(embedded: ModelPackage, spoken: Prepared) -> None:
    found = climbed(embedded, embedded, sound=None, prepared=spoken, rungs=("block",))
    assert found.verdict == PASSED
    assert [row["graph"] for row in found.rungs["block"]] == [
        "dit_prologue",
        *(f"dit_block_{number:02d}" for number in range(5)),
        "dit_epilogue",
    ]
    assert all(row["bf16_rel_l2"] > 0 and row["of_bf16"] == 0 for row in found.rungs["block"])
    (control,) = found.controls
    assert control.caught_by == "rel_l2" and control.note.startswith("all matrices and kernels of dit_epilogue")


# ── Faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def recording(reference: ModelPackage) -> Recording:
    return record(reference, prepare_trial(reference, sound=speech()), asked=ON_ONNX_RUNTIME)


def test_the_recording_holds_silence_and_speech(recording: Recording) -> None:
    loudness = [float(np.abs(sample.feeds["audio_rest"]).mean()) for sample in recording.samples["dit"]]
    assert min(loudness) < 0.8 * max(loudness)
    assert any(not sample.feeds["waveform"].any() for sample in recording.samples["audio_encoder"])


def test_a_clip_with_swapped_chunks_is_caught(recording: Recording) -> None:
    def judge(frames: np.ndarray) -> list[GateResult]:
        return clip_figures(frames, recording, fps=25, box=None)[1]

    control = controls.swapped_frames(recording.frames, recording, judge=judge)
    assert control.caught_by == "psnr_db" and control.value is not None and control.value < 30
    with pytest.raises(VerificationError, match="proves nothing"):  # gates that let everything pass
        controls.swapped_frames(recording.frames, recording, judge=lambda _frames: [])


def test_a_clip_of_a_still_picture_proves_nothing(recording: Recording) -> None:
    still = np.repeat(recording.frames[:1], len(recording.frames), axis=0)
    standing = Recording(recording.samples, still, recording.seams)
    with pytest.raises(VerificationError, match="swapped frames"):
        controls.swapped_frames(
            still, standing, judge=lambda frames: clip_figures(frames, standing, fps=25, box=None)[1]
        )


def test_a_lag_that_does_not_move_proves_nothing(recording: Recording) -> None:
    with pytest.raises(VerificationError, match="shifted audio"):
        controls.shifted_audio(
            recording.frames, judge=lambda frames: clip_figures(frames, recording, fps=25, box=(0, 0, 1, 1))[1]
        )


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        pytest.param("float32", np.array([2.0, -4.0], "<f4").tobytes(), id="float32"),
        pytest.param("float16", np.array([2.0, -4.0], "<f2").tobytes(), id="float16"),
        pytest.param("bfloat16", np.array([2.0, -4.0], "<f4").view("<u2")[1::2].tobytes(), id="bfloat16"),
    ],
)
def test_weights_of_every_width_are_scaled(dtype: str, bits: bytes) -> None:
    scaled = controls.scaled_bytes(bits, dtype=dtype, scale=1.5)
    wide = b"".join(b"\0\0" + scaled[at : at + 2] for at in (0, 2)) if dtype == "bfloat16" else scaled
    kind = {"float32": "<f4", "float16": "<f2", "bfloat16": "<f4"}[dtype]
    assert np.frombuffer(wide, kind).tolist() == [3.0, -6.0]


@pytest.mark.parametrize("device", ["onnxruntime:CPU", "openvino:CPU"])
def test_scaled_weights_are_seen_by_every_engine(embedded: ModelPackage, device: str, tmp_path: Path) -> None:
    """OpenVINO's engine knows weights by the digest in their name: under the old one it refused them."""
    golden = embedded.golden_path("dit_epilogue")
    assert golden is not None
    vectors = load_golden(golden)
    made: list[np.ndarray] = []
    for path in (
        embedded.graph_path("dit_epilogue"),  # the original first, so that the cache has it
        controls.scaled_copy(embedded, "dit_epilogue", folder=tmp_path, scale=1.25),
    ):
        engine = open_engine(path, device=device, threads=1, compute="f32")
        made.append(engine.run(vectors.inputs)["velocity"])
        engine.close()
    assert metrics.rel_l2(made[1], made[0]) > 0.2
    assert all(sha256_of(file) == file.stem for file in (tmp_path / "weights").iterdir())


def test_an_engine_that_does_not_see_scaled_weights_proves_nothing(
    reference: ModelPackage, recording: Recording
) -> None:
    """Negative control: it opens the graph itself instead of the copy, as one with a stale cache would."""
    with pytest.raises(VerificationError, match=r"'scaled weights' .*proves nothing"):
        controls.scaled_weights(
            reference,
            recording,
            gates={"vae_decoder_next": Gate("rel_l2", 1e-4, AT_MOST, "tried")},
            open_copy=lambda graph, _copy: open_engine(reference.graph_path(graph), device="onnxruntime:CPU"),
        )


def test_the_rungs_are_named_from_the_bottom() -> None:
    assert RUNGS == ("block", "graph", "window", "clip")


# ── Figures of one graph ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_farthest_output_counts_and_caches_do_not() -> None:
    theirs = {"tokens": np.ones(4), "context": np.ones(4), "next_cache_03": np.ones(4)}
    ours = {"tokens": np.ones(4), "context": np.full(4, 1.1), "next_cache_03": np.full(4, 2.0)}
    samples, results = (Sample({}, theirs), Sample({}, theirs)), [ours, theirs]
    figures = figures_of(samples, results, outputs=list(theirs))
    assert figures["output"] == "context"
    assert figures["sqnr_db"] == pytest.approx(20 + 10 * np.log10(2))  # one input of two
    assert figures["worst_sqnr_db"] == pytest.approx(20)
    assert figures["state_sqnr_db"] == pytest.approx(0)
