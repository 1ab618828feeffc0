# SPDX-License-Identifier: Apache-2.0
"""`edgereels render`, sentence by sentence of what it promises, on a package that stands in for a real one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from safetensors.numpy import save_file

from edgereels.runtime import engine_onnxruntime_library as onnxruntime_library
from edgereels.runtime.cli import main

from . import stand_in_package
from .stand_in_package import portrait, write_stand_in

RATE = 16000
PROMPTLY_S = 10
"""What a process may take to end; a tenth of a second on an idle machine, more where every core is busy."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "stand-in")


@pytest.fixture(scope="module")
def text_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "text", has_text=True, has_image=True)


@pytest.fixture(scope="module")
def listed_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "listed", portraits="listed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, holding one second of sound, s.wav."""
    write_wav(tmp_path / "s.wav", seconds=1.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_wav(path: Path, *, seconds: float, rate: int = RATE) -> Path:
    at_s = np.arange(int(seconds * rate)) / rate
    samples = 0.3 * np.sin(2 * np.pi * 220 * at_s) * (np.sin(2 * np.pi * 3 * at_s) > 0)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_portrait(path: Path, **options: Any) -> Path:
    Image.fromarray(portrait(**options)).save(path)
    return path


def render(package: Path, *options: object, audio: str = "s.wav", frames: str = "f.npy") -> npt.NDArray[np.uint8]:
    """Render into the working folder and return the frames."""
    arguments = ["--package", package, "--audio", audio, "--frames", frames, "--threads", 1, *options]
    assert main(["render", *map(str, arguments)]) == 0
    return np.load(frames)


def names() -> set[str]:
    return {path.name for path in Path().iterdir()}


# ── Results, progress, errors ────────────────────────────────────────────────────────────────────────────────────────


def test_json_is_one_document_on_stdout_and_stderr_is_silent(
    package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(package, "--json", "--out", "v.mp4")
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert captured.err == ""
    assert report["files"] == ["v.mp4", "f.npy"]
    assert (report["frame_count"], report["media_s"], report["height"], report["width"]) == (25, 1.0, 32, 32)
    assert report["real_time_factor"] == pytest.approx(report["wall_s"])
    assert (report["device"], report["provider"], report["precision"]) == ("cpu", "CPUExecutionProvider", "f32")


def test_progress_is_shown_only_where_it_is_asked_for(
    package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(package)
    assert capsys.readouterr().err == ""
    render(package, "--progress")
    captured = capsys.readouterr()
    assert captured.err.endswith("25/25 frames\n")
    assert "frames" in captured.out
    assert "\r" not in captured.out


BAD: dict[str, tuple[int, list[str], str]] = {
    "no audio file": (1, ["--audio", "none.wav"], "none.wav"),
    "no such package": (1, ["--package", "none"], "none"),
    "no such avatar": (1, ["--avatar", "nobody"], "anna"),
    "no such picture": (1, ["--image", "none.png"], "none.png"),
    "picture of 8 pixels": (1, ["--image", "small.png"], "16"),
    "parent missing": (1, ["--out", "nowhere/v.mp4"], "nowhere"),
    "parent of the trace missing": (1, ["--trace", "nowhere/t.jsonl"], "nowhere"),
    "target is a folder": (1, ["--out", "."], "folder"),
    "target is a device": (1, ["--frames", "/dev/full"], "/dev/full"),
    "prompt where none is taken": (1, ["--prompt", "hello"], "prompt"),
    "negative prompt where none is taken": (1, ["--negative-prompt", "hello"], "prompt"),
    "text guidance where no prompt is taken": (1, ["--guidance-text", "3"], "guidance"),
    "a device that is not here": (1, ["--device", "openvino:NPU"], "NPU"),
    "f16 on a CPU": (1, ["--compute", "f16"], "f32"),
    "draws from no such file": (1, ["--noise", "none"], "none"),
    "draws from a sound": (1, ["--noise", "s.wav"], "rng.NNN"),
    "two outputs of one name": (2, ["--out", "f.npy"], "f.npy"),
    "two outputs of one name, spelt differently": (2, ["--out", "./f.npy"], "f.npy"),
    "output over the audio": (2, ["--out", "s.wav"], "s.wav"),
    "output over the audio, by another way": (2, ["--out", "../{folder}/s.wav"], "s.wav"),
    "output over the picture": (2, ["--image", "small.png", "--out", "small.png"], "small.png"),
    "trace over the frames": (2, ["--trace", "f.npy"], "f.npy"),
    "output over what is still partial": (2, ["--out", "f.npy.partial"], "f.npy.partial"),
    "window not 4n+1": (2, ["--window", "12"], "12"),
    "window 0": (2, ["--window", "0"], "0"),
    "motion not 4n+1": (2, ["--motion", "4"], "4"),
    "motion 0": (2, ["--motion", "0"], "0"),
    "drop not 4n": (2, ["--drop", "5"], "5"),
    "drop below 0": (2, ["--drop", "-4"], "-4"),
    "nothing new in a window": (2, ["--window", "9", "--motion", "5", "--drop", "4"], "9"),
    "no steps": (2, ["--steps", "0"], "0"),
    "shift 0": (2, ["--shift", "0"], "0"),
    "shift that is no number": (2, ["--shift", "nan"], "nan"),
    "guidance below 1": (2, ["--guidance-audio", "0.5"], "0.5"),
    "shift beyond float32": (2, ["--shift", "1e300"], "1e+300"),
    "guidance beyond float32": (2, ["--guidance-audio", "1e39"], "1e+39"),
    "guidance without end": (2, ["--guidance-audio", "inf"], "inf"),
    "seed below 0": (2, ["--seed", "-1"], "-1"),
    "seed that is no number": (2, ["--seed", "a"], "a"),
    "size not a multiple of 16": (2, ["--size", "40x32"], "40x32"),
    "size 0": (2, ["--size", "0x32"], "0x32"),
    "seed and recorded draws": (2, ["--seed", "1", "--noise", "n"], "noise"),
    "picture and avatar": (2, ["--image", "small.png", "--avatar", "anna"], "image"),
    "threads 0": (2, ["--threads", "0"], "0"),
    "device that does not exist": (2, ["--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize("case", BAD, ids=BAD)
def test_what_is_wrong_is_one_line_that_names_it_and_leaves_nothing(
    case: str, package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save("small.png")
    code, options, named = BAD[case]
    options = [option.replace("{folder}", folder.name) for option in options]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    arguments = ["render", "--package", str(package), "--audio", "s.wav", "--frames", "f.npy", *options]
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("without", "named"),
    [("vae_decoder", "vae_decoder"), ("audio_encoder", "audio_encoder"), ("dit", "dit"), ("finish", "finish")],
)
def test_a_package_that_lacks_a_part_says_which(
    without: str, named: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = write_stand_in(folder / "partial-package", without=(without,))
    assert main(["render", "--package", str(package), "--audio", "s.wav", "--out", "v.mp4"]) == 1
    assert f"has no {named}" in capsys.readouterr().err
    assert main(["inspect", str(package)]) == 0
    assert main(["verify", str(package)]) == 0


@pytest.mark.parametrize(
    ("name", "table"),
    [
        pytest.param("timesteps", None, id="no timesteps"),
        pytest.param("modulation", None, id="no modulation"),
        pytest.param("modulation", np.ones((1, 6, 3), np.float32), id="another width"),
        pytest.param("head_modulation", np.ones((2, 12), np.float32), id="another count"),
        pytest.param("head_modulation", np.ones((1, 12), np.float64), id="another type"),
    ],
)
def test_a_schedule_with_gaps_is_one_line(
    name: str, table: npt.NDArray[Any] | None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = write_stand_in(folder / "odd-package", tables_changed={name: table})
    assert main(["render", "--package", str(package), "--audio", "s.wav", "--frames", "f.npy"]) == 1
    error = capsys.readouterr().err
    assert f"{name} in the tables" in error
    assert error.count("\n") == 1


def test_an_audio_encoder_for_another_rate_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(stand_in_package.SETTINGS, "sample_rate", 8000)
    package = write_stand_in(folder / "odd-package")
    assert main(["render", "--package", str(package), "--audio", "s.wav", "--frames", "f.npy"]) == 1
    assert "8000 Hz" in capsys.readouterr().err


def test_a_damaged_package_is_refused(package: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = Path(shutil.copytree(package, folder / "damaged"))
    content = bytearray((damaged / "dit.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "dit.onnx").write_bytes(content)
    assert main(["render", "--package", str(damaged), "--audio", "s.wav", "--out", "v.mp4"]) == 1
    assert "dit.onnx" in capsys.readouterr().err
    assert main(["verify", str(damaged)]) == 1


@pytest.mark.parametrize("name", ["päckchen mit Leerzeichen", "no-suffix", "with.suffix.edgereels"])
def test_a_package_may_be_called_anything_and_named_relatively(name: str, package: Path, folder: Path) -> None:
    shutil.copytree(package, folder / "sub" / name)
    assert len(render(Path("sub") / name)) == 25


# ── What comes out ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_mp4_is_playable_in_sync_and_says_what_it_is(package: Path, folder: Path) -> None:
    import av

    write_wav(folder / "long.wav", seconds=2.31)
    frames = render(package, "--out", "v.mp4", audio="long.wav")
    assert frames.shape == (58, 32, 32, 3)
    assert frames.dtype == np.uint8
    digest = json.loads((package / "manifest.json").read_text())["digest"]
    with av.open("v.mp4") as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.average_rate, video.codec_context.pix_fmt) == (25, "yuv420p")
        assert "AI-generated" in container.metadata["comment"]
        assert digest in container.metadata["comment"]
        assert float(audio.duration * audio.time_base) == pytest.approx(58 / 25, abs=1024 / RATE)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video)])
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(float) - frames).mean() < 8


def test_targets_without_a_suffix_are_written(package: Path, folder: Path) -> None:
    render(package, "--out", "video", "--trace", "trace", frames="frames")
    assert names() == {"s.wav", "video", "frames", "trace"}


def test_a_target_that_exists_is_replaced(package: Path, folder: Path) -> None:
    for name in ("f.npy", "v.mp4", "t.jsonl"):
        (folder / name).write_text("old")
    render(package, "--out", "v.mp4", "--trace", "t.jsonl")
    assert all((folder / name).read_bytes() != b"old" for name in ("f.npy", "v.mp4", "t.jsonl"))


def test_what_a_killed_run_left_is_swept(package: Path, folder: Path) -> None:
    for name in ("f.npy.partial", "v.mp4.partial"):
        (folder / name).write_text("half")
    render(package, "--out", "v.mp4")
    assert names() == {"s.wav", "v.mp4", "f.npy"}


def test_sound_beyond_200_s_is_encoded_in_segments_and_not_cut(package: Path, folder: Path) -> None:
    """Just over: 60 s are kept of each segment, 21.2 s of the last. What is kept does not depend on where cuts lie."""
    write_wav(folder / "long.wav", seconds=201.2)
    options = ["--window", "33", "--trace", "t.jsonl"]
    frames = render(package, *options, audio="long.wav")
    assert len(frames) == 5030
    events = [json.loads(line) for line in (folder / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(event["event"] == "audio_encode" for event in events) == 4
    means = frames.reshape(5030, -1).mean(axis=1)
    assert np.ptp(means[2000:4900]) > 5  # the sound still shows where later segments are heard


def test_the_trace_tells_what_was_asked_and_got_and_repeats_the_figures(package: Path, folder: Path) -> None:
    render(package, "--trace", "t.jsonl", "--out", "v.mp4")
    events = [json.loads(line) for line in (folder / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    *stages, report = events
    assert report["event"] == "report"
    opened = {event["graph"]: event for event in stages if event["event"] == "engine"}
    assert {"audio_encoder", "dit", "vae_decoder_next", "finish"} <= set(opened)
    assert (opened["dit"]["asked"], opened["dit"]["provider"]) == ("cpu", "CPUExecutionProvider")
    first_s = min(event["start_s"] for event in stages if event["event"] == "dit")
    last_s = max(event["end_s"] for event in stages)
    assert report["real_time_factor"] == pytest.approx((last_s - first_s) / report["media_s"])
    assert max(event["start_s"] for event in stages if event["event"] == "engine") <= first_s
    assert [event["sink"] for event in stages[-2:]] == ["ArraySink", "Mp4Sink"]
    assert {event["event"] for event in stages[-2:]} == {"sink_finish"}


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_gives_the_same_bits(package: Path, folder: Path) -> None:
    first = render(package, "--seed", 7)
    assert np.array_equal(first, render(package, "--seed", 7))
    assert not np.array_equal(first, render(package, "--seed", 8))
    assert np.array_equal(render(package), render(package, "--seed", 42))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--size", "48x80"], id="size outside the table"),
        pytest.param(["--window", "9", "--motion", "1", "--drop", "0"], id="shortest windows"),
        pytest.param(["--window", "33", "--motion", "9", "--drop", "8"], id="clip shorter than a window"),
        pytest.param(["--motion", "1"], id="motion 1"),
        pytest.param(["--drop", "0"], id="drop 0"),
        pytest.param(["--steps", "2"], id="2 steps"),
        pytest.param(["--steps", "8"], id="8 steps"),
        pytest.param(["--guidance-audio", "4"], id="audio guidance"),
    ],
)
def test_every_setting_changes_the_picture_and_not_its_length(options: list[str], package: Path, folder: Path) -> None:
    plain, other = render(package), render(package, *options)
    assert len(other) == 25
    assert other.shape != plain.shape or not np.array_equal(other, plain)


def test_shift_moves_the_steps_between_the_first_and_the_last(package: Path, folder: Path) -> None:
    assert not np.array_equal(render(package, "--steps", 3), render(package, "--steps", 3, "--shift", 5))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(48, 48, (32, 32)), (40, 90, (32, 64)), (90, 40, (64, 32)), (50, 45, (32, 32))]
)
def test_the_size_is_the_nearest_of_the_table(
    height: int, width: int, size: tuple[int, int], package: Path, folder: Path
) -> None:
    write_portrait(folder / "i.png", height=height, width=width)
    assert render(package, "--image", "i.png").shape[1:3] == size


def draws(count_of_windows: int, *, latent: tuple[int, ...] = (16, 4, 4, 4), motion: int = 2) -> dict[str, Any]:
    """Return the draws of a render with one step: one for the key frames, one for the first window, then three each."""
    random = np.random.default_rng(3)
    shapes = [latent, latent]
    for _ in range(count_of_windows - 1):
        shapes += [latent, (16, motion, *latent[2:]), (16, motion, *latent[2:])]
    return {f"rng.{index:03d}.x": random.standard_normal(shape, dtype=np.float32) for index, shape in enumerate(shapes)}


def test_recorded_draws_are_used_in_order_and_other_tensors_ignored(package: Path, folder: Path) -> None:
    """25 frames in windows of 13 with 4 new ones: 4 windows."""
    recorded = draws(4)
    save_file(recorded | {"video": np.zeros(3, np.uint8)}, folder / "n")
    first = render(package, "--noise", "n")
    assert np.array_equal(first, render(package, "--noise", "n"))
    keys = sorted(recorded)
    changed = recorded | {keys[1]: recorded[keys[1]] + 1}
    save_file(changed, folder / "n2")
    assert not np.array_equal(first, render(package, "--noise", "n2"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda recorded: recorded.pop("rng.003.x"), id="one too few"),
        pytest.param(lambda recorded: recorded.update({"rng.999.x": np.zeros((16, 4, 4, 4), np.float32)}), id="more"),
        pytest.param(lambda recorded: recorded.update({"rng.001.x": np.zeros((16, 4, 4, 8), np.float32)}), id="shape"),
        pytest.param(
            lambda recorded: recorded.update({"rng.001.x": np.full((16, 4, 4, 4), np.nan, np.float32)}), id="nan"
        ),
        pytest.param(lambda recorded: recorded.clear(), id="none"),
    ],
)
def test_draws_that_do_not_fit_are_refused(
    change: Any, package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = draws(4)
    change(recorded)
    save_file(recorded | {"video": np.zeros(3, np.uint8)}, folder / "n")
    code = main(["render", "--package", str(package), "--audio", "s.wav", "--frames", "f.npy", "--noise", "n"])
    assert code == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert names() == {"s.wav", "n"}


# ── Faces ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_existing_path_comes_before_a_name_in_the_package(package: Path, folder: Path) -> None:
    inside = render(package, "--avatar", "anna")
    assert np.array_equal(inside, render(package))
    write_portrait(folder / "other.png", seed=1)
    assert main(["avatar", str(package), "other.png", "anna"]) == 0
    other = render(package, "--avatar", "anna")
    assert not np.array_equal(inside, other)
    assert np.array_equal(other, render(package, "--image", "other.png"))


def test_a_package_of_listed_faces_names_them_and_the_ways_out(
    listed_package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_portrait(folder / "other.png", seed=1)
    code = main(
        ["render", "--package", str(listed_package), "--audio", "s.wav", "--frames", "f.npy", "--image", "other.png"]
    )
    assert code == 1
    line = capsys.readouterr().err
    assert all(part in line for part in ("anna", "--avatar", "train_avatar"))
    assert main(["avatar", str(listed_package), "other.png", "other"]) == 1
    assert names() == {"s.wav", "other.png"}
    assert len(render(listed_package, "--avatar", "anna")) == 25


# ── Prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def graphs_opened(folder: Path) -> set[str]:
    events = map(json.loads, (folder / "t.jsonl").read_text(encoding="utf-8").splitlines())
    return {event["graph"] for event in events if event["event"] == "engine"}


def test_prompts_are_read_where_they_are_given_and_nowhere_else(text_package: Path, folder: Path) -> None:
    pytest.importorskip("ftfy")
    plain = render(text_package, "--trace", "t.jsonl")
    assert "text_encoder" not in graphs_opened(folder)
    sung = render(text_package, "--trace", "t.jsonl", "--prompt", "a person is  singing")
    assert "text_encoder" in graphs_opened(folder)
    assert not np.array_equal(plain, sung)
    guided = render(text_package, "--guidance-text", 3, "--trace", "t.jsonl")
    assert "text_encoder" not in graphs_opened(folder)
    assert not np.array_equal(plain, guided)
    assert not np.array_equal(guided, render(text_package, "--guidance-text", 3, "--negative-prompt", "talking"))


def test_a_prepared_avatar_never_loads_the_text_encoder(text_package: Path, folder: Path) -> None:
    pytest.importorskip("ftfy")
    write_portrait(folder / "i.png", seed=1)
    prompts = ["--prompt", "a person is singing", "--negative-prompt", "talking"]
    told = render(text_package, "--image", "i.png", "--guidance-text", 3, *prompts)
    assert main(["avatar", str(text_package), "i.png", "a", *prompts]) == 0
    prepared = render(text_package, "--avatar", "a", "--guidance-text", 3, "--trace", "t.jsonl")
    assert np.array_equal(told, prepared)
    assert "text_encoder" not in graphs_opened(folder)
    assert "image_encoder" in graphs_opened(folder)


@pytest.mark.parametrize("module", ["ftfy", "tokenizers"])
def test_a_prompt_without_its_libraries_names_the_command_that_installs_them(
    module: str, text_package: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    arguments = ["render", "--package", str(text_package), "--audio", "s.wav", "--frames", "f.npy"]
    assert main([*arguments, "--prompt", "a person is singing"]) == 1
    assert "pip install 'edgereels[text]'" in capsys.readouterr().err
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("module", "extra", "options"),
    [
        pytest.param("av", "video", ["--out", "v.mp4"], id="no PyAV"),
        pytest.param("onnxruntime", "cpu", ["--frames", "f.npy", "--device", "onnxruntime:CPU"], id="no ONNX Runtime"),
    ],
)
def test_a_missing_library_names_the_command_that_installs_it(
    module: str,
    extra: str,
    options: list[str],
    package: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(onnxruntime_library, "installed_wheels", lambda _library: {})
    assert main(["render", "--package", str(package), "--audio", "s.wav", *options]) == 1
    assert f"pip install 'edgereels[{extra}]'" in capsys.readouterr().err
    assert names() == {"s.wav"}


# ── Signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def started(package: Path, folder: Path) -> subprocess.Popen[str]:
    """Start a render of two minutes and return it when frames have been written."""
    write_wav(folder / "long.wav", seconds=120)
    command = [sys.executable, "-m", "edgereels.runtime.cli", "render", "--package", str(package), "--threads", "1"]
    command += ["--audio", "long.wav", "--out", "v.mp4", "--frames", "f.npy", "--trace", "t.jsonl", "--progress"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = ""
    while seen.count("frames") < 20:
        seen += process.stderr.read(1)
        assert process.poll() is None, seen
    return process


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, float]:
    """Send a signal; return the exit code and how long the process took to end."""
    began_s = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=20)
    return process.returncode, time.monotonic() - began_s


def test_sigterm_ends_with_whole_shorter_files_and_0(package: Path, folder: Path) -> None:
    import av

    code, took_s = ended(started(package, folder), signal.SIGTERM)
    assert code == 0
    assert took_s < PROMPTLY_S
    assert names() == {"s.wav", "long.wav", "v.mp4", "f.npy", "t.jsonl"}
    frame_count = len(np.load("f.npy"))
    assert 50 < frame_count < 3000
    with av.open("v.mp4") as container:
        audio = container.streams.audio[0]
        assert float(audio.duration * audio.time_base) == pytest.approx(frame_count / 25, abs=0.2)
        assert (
            abs(sum(1 for _ in container.decode(video=0)) - frame_count) <= 9
        )  # a chunk goes to one file after another
    assert all(json.loads(line) for line in (folder / "t.jsonl").read_text(encoding="utf-8").splitlines())


def test_ctrl_c_ends_with_nothing_and_130(package: Path, folder: Path) -> None:
    process = started(package, folder)
    code, took_s = ended(process, signal.SIGINT)
    assert code == 130
    assert took_s < PROMPTLY_S
    assert names() == {"s.wav", "long.wav"}


def test_kill_9_leaves_partial_files_only(package: Path, folder: Path) -> None:
    code, _ = ended(started(package, folder), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert names() == {"s.wav", "long.wav", "v.mp4.partial", "f.npy.partial", "t.jsonl.partial"}
    render(package, "--out", "v.mp4", "--trace", "t.jsonl")
    assert names() == {"s.wav", "long.wav", "v.mp4", "f.npy", "t.jsonl"}


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param(["--frames", "f.npy"], id="frames"),
        pytest.param(["--out", "v.mp4"], id="video"),
        pytest.param(["--frames", "f.npy", "--trace", "t.jsonl"], id="frames and trace"),
    ],
)
def test_a_full_disk_is_one_line_and_no_file(targets: list[str], package: Path, folder: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    pytest.importorskip("resource")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from edgereels.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["render", "--package", str(package), "--audio", "s.wav", *targets]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert names() == {"s.wav"}


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_to_itself_is_one_line(package: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "loop").symlink_to("loop")
    assert main(["render", "--package", str(package), "--audio", "s.wav", "--out", "loop/v.mp4"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("option", ["--out", "--frames", "--trace"])
def test_nothing_is_written_into_a_package(
    option: str, package: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in package.iterdir()}
    arguments = [
        "render",
        "--package",
        str(package),
        "--audio",
        "s.wav",
        "--out",
        "v.mp4",
        option,
        str(package / "made"),
    ]
    assert main(arguments) == 2
    assert "expected a file outside of it" in capsys.readouterr().err
    assert {path.name for path in package.iterdir()} == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_closed_is_one_line(package: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "closed").mkdir(mode=0o500)
    arguments = ["render", "--package", str(package), "--audio", "s.wav", "--out", "closed/v.mp4"]
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
