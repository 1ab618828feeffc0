# SPDX-License-Identifier: Apache-2.0
"""Recording a real trajectory: real windows, real speech, every step, and never more than the disk was promised."""

import logging
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgereels.quant.trajectory import (
    CALLS_PER_GRAPH,
    Recording,
    files_in,
    gather_clips,
    record,
)
from edgereels.runtime import Avatar, AvatarSession, EdgereelsError, MediaError, ModelPackage
from edgereels.runtime.model_package import DEMO_SPEECH
from edgereels.runtime.package_files import sha256_of

from .stand_in_package import portrait, write_stand_in

RATE = 16_000


def speech(seconds: float, *, level: float = 0.3) -> npt.NDArray[np.float32]:
    """Return something with syllables: loud from 1.0 to 1.5 s, faint everywhere else."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    strength = np.where((time_s >= 1.0) & (time_s < 1.5), 1.0, 0.02)
    return (level * strength * np.sin(2 * np.pi * 200 * time_s)).astype(np.float32)


def write_sound(path: Path, samples: npt.NDArray[np.float32]) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """Windows of 13 frames, 4 of which are new: 2 s are 50 frames in 11 windows behind the key-frame pass."""
    return ModelPackage.open(write_stand_in(tmp_path_factory.mktemp("packages") / "stand-in"))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    write_sound(folder / "speech.wav", speech(2.0))
    return folder


@pytest.fixture(scope="module")
def recording(package: ModelPackage, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(package, scratch=tmp_path_factory.mktemp("scratch"), folder=sounds, threads=1, calls_per_graph=99)


def test_every_graph_of_a_render_is_recorded_with_what_it_was_fed(
    package: ModelPackage, sounds: Path, recording: Recording
) -> None:
    theirs: dict[str, list[dict[str, npt.NDArray[np.float32]]]] = {}

    def observe(graph: str, feeds: Mapping[str, np.ndarray], _outputs: Mapping[str, np.ndarray]) -> None:
        theirs.setdefault(graph, []).append({name: np.array(value) for name, value in feeds.items()})

    with AvatarSession.open(package.root, device="onnxruntime:CPU", threads=1, observe=observe) as session:
        for _chunk in session.stream(audio=sounds / "speech.wav", seed=0):
            pass
    assert set(recording.calls) == set(theirs)
    for graph, calls in recording.calls.items():
        assert len(calls) == len(theirs[graph])
        for call, feeds in zip(calls, theirs[graph], strict=True):
            ours = call.feeds()
            assert ours.keys() == feeds.keys()
            assert all(np.array_equal(ours[name], feeds[name]) for name in ours), f"{graph} {call.pass_index}"


def test_calls_know_the_pass_and_the_step_that_they_belong_to(recording: Recording) -> None:
    assert [(call.pass_index, call.index) for call in recording.calls["dit"]] == [(index, 0) for index in range(12)]
    assert [call.pass_index for call in recording.calls["vae_decoder_first"]] == list(range(12))
    assert {recording.window(call).pass_index == call.pass_index for call in recording.calls["vae_encoder_next"]} == {
        True
    }


def test_the_manifest_learns_what_was_heard(recording: Recording, sounds: Path) -> None:
    found = recording.calibration
    assert (found.clips, found.windows, found.duration_s) == (1, 12, 2.0)
    assert found.sounds == (sha256_of(sounds / "speech.wav"),)


def test_every_kept_pass_has_all_steps_weighted_by_the_noise_they_span(
    package: ModelPackage, sounds: Path, tmp_path: Path
) -> None:
    made = record(package, scratch=tmp_path, folder=sounds, threads=1, calls_per_graph=9, steps=4)
    kept: dict[int, list[int]] = {}
    for call in made.calls["dit"]:
        kept.setdefault(call.pass_index, []).append(call.index)
    assert len(kept) == 2  # 9 calls hold two whole passes of four steps
    assert all(steps == [0, 1, 2, 3] for steps in kept.values())
    weights = [call.weight for call in made.calls["dit"][:4]]
    assert np.allclose(weights, [0.0434, 0.1100, 0.8357, 0.0109], atol=1e-4)  # shift 11: one step spans 0.84
    assert {call.weight for call in made.calls["vae_decoder_next"]} == {1.0}


def test_loud_quiet_outer_and_key_frame_passes_are_kept_first(
    package: ModelPackage, sounds: Path, tmp_path: Path
) -> None:
    made = record(package, scratch=tmp_path, folder=sounds, threads=1, calls_per_graph=5)
    ranks = made.clips[0].ranks
    order = sorted(ranks, key=ranks.__getitem__)
    loudest, quietest = order[:2]
    assert {1, 11, 0} <= set(order[:5])  # the first window, the last, the key-frame pass
    starts = {window.pass_index: window.start_frame for window in made.clips[0].plan.windows}
    assert starts[loudest] <= 25 and starts[loudest] + 13 >= 37  # the loud half second
    assert starts[quietest] + 13 <= 25 or starts[quietest] >= 37
    assert sorted(call.pass_index for call in made.calls["dit"]) == sorted(order[:5])


@pytest.mark.parametrize(("calls", "most_bytes", "kept"), [(3, 1 << 30, 3), (99, 1, 1)], ids=["calls", "bytes"])
def test_a_recording_keeps_to_its_bounds_on_disk(
    package: ModelPackage, sounds: Path, tmp_path: Path, calls: int, most_bytes: int, kept: int
) -> None:
    made = record(package, scratch=tmp_path, folder=sounds, threads=1, calls_per_graph=calls, most_bytes=most_bytes)
    for graph, found in made.calls.items():
        assert len(found) == min(kept, 1 if graph == "audio_encoder" else kept)
    files = list((tmp_path / "recording").rglob("*.safetensors"))
    assert len(files) == sum(len(found) for found in made.calls.values())  # what was outdone is gone
    assert made.size_bytes <= sum(file.stat().st_size for file in files)


def test_progress_ends_with_all_passes(package: ModelPackage, sounds: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_sound(tmp_path / "again.wav", speech(1.6))
    write_sound(tmp_path / "speech.wav", speech(1.6))
    (tmp_path / "scratch").mkdir()
    record(
        package,
        scratch=tmp_path / "scratch",
        folder=tmp_path,
        threads=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 18) for done in range(1, 19)]


def test_without_a_folder_the_embedded_demonstration_is_heard(package: ModelPackage) -> None:
    (clip,) = gather_clips(package, None)
    assert clip.path == DEMO_SPEECH
    assert clip.sha256 == sha256_of(DEMO_SPEECH)
    assert clip.face == "anna"
    assert CALLS_PER_GRAPH >= 9  # the embedded package's own demonstration is kept whole


# ── Faces ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_package_for_any_face_takes_the_pictures_of_the_folder(package: ModelPackage, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write_sound(tmp_path / name, speech(1.0))
    for seed, name in enumerate(("x.png", "y.png")):
        Image.fromarray(portrait(seed=seed)).save(tmp_path / name)
    clips = gather_clips(package, tmp_path)
    assert [clip.face for clip in clips] == [tmp_path / "x.png", tmp_path / "y.png", tmp_path / "x.png"]


def test_a_package_for_listed_faces_leaves_pictures_out_and_says_so(
    tmp_path: Path, sounds: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = ModelPackage.open(write_stand_in(tmp_path / "listed", portraits="listed"))
    folder = tmp_path / "folder"
    folder.mkdir()
    write_sound(folder / "a.wav", speech(1.0))
    Image.fromarray(portrait()).save(folder / "x.png")
    with caplog.at_level(logging.WARNING):
        (clip,) = gather_clips(listed, folder)
    assert clip.face == "anna"
    assert "1 pictures are left out" in caplog.text


def test_a_package_without_avatars_borrows_the_embedded_portrait(package: ModelPackage, sounds: Path) -> None:
    from dataclasses import replace

    bare = ModelPackage(package.root, replace(package.manifest, avatars={}))
    (clip,) = gather_clips(bare, sounds)
    assert isinstance(clip.face, Avatar)
    assert clip.face.portrait.shape[2] == 3
    assert clip.face.condition_latents is None  # of another package: only the portrait is of use


# ── What can't be used ───────────────────────────────────────────────────────────────────────────────────────────────


def no_folder(_folder: Path) -> None:
    _folder.rmdir()


def only_pictures(folder: Path) -> None:
    Image.fromarray(portrait()).save(folder / "x.png")


def silence(folder: Path) -> None:
    write_sound(folder / "a.wav", np.zeros(3 * RATE, np.float32))


def nearly_silence(folder: Path) -> None:
    write_sound(folder / "a.wav", speech(3.0, level=0.001))


def one_of_two_is_silent(folder: Path) -> None:
    write_sound(folder / "a.wav", speech(3.0))
    write_sound(folder / "b.wav", np.zeros(3 * RATE, np.float32))


def half_a_second(folder: Path) -> None:
    write_sound(folder / "a.wav", speech(3.0)[RATE : RATE + RATE // 2])


def a_blink(folder: Path) -> None:
    write_sound(folder / "a.wav", speech(3.0)[RATE : RATE + 5000])


def not_a_sound(folder: Path) -> None:
    (folder / "a.wav").write_bytes(b"RIFF????WAVEnothing of the kind")


def not_a_picture(folder: Path) -> None:
    write_sound(folder / "a.wav", speech(3.0))
    (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing of the kind")


def a_link_to_nothing(folder: Path) -> None:
    write_sound(folder / "a.wav", speech(3.0))
    (folder / "b.wav").symlink_to("gone.wav")


def a_link_to_itself(folder: Path) -> None:
    write_sound(folder / "a.wav", speech(3.0))
    (folder / "notes.txt").symlink_to("notes.txt")


def not_numbers(folder: Path) -> None:
    samples = speech(3.0).astype("<f4")
    samples[RATE] = np.nan
    fmt = b"fmt " + (16).to_bytes(4, "little") + b"\x03\x00\x01\x00" + RATE.to_bytes(4, "little")
    fmt += (4 * RATE).to_bytes(4, "little") + b"\x04\x00\x20\x00"
    data = b"data" + samples.nbytes.to_bytes(4, "little") + samples.tobytes()
    body = b"WAVE" + fmt + data
    (folder / "a.wav").write_bytes(b"RIFF" + len(body).to_bytes(4, "little") + body)


def test_one_window_of_speech_is_enough_and_said_to_be_little(
    package: ModelPackage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scratch, folder = tmp_path / "scratch", tmp_path / "folder"
    scratch.mkdir()
    folder.mkdir()
    half_a_second(folder)
    recording = record(package, scratch=scratch, folder=folder, threads=1)
    assert recording.calls["dit"]
    assert "two windows of stand-in" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_folder, "is not a folder; expected one with sound files"),
        (lambda _folder: None, "holds no sound file"),
        (only_pictures, "holds no sound file"),
        (silence, "is silent"),
        (nearly_silence, "is silent"),
        (one_of_two_is_silent, "b.wav is silent"),
        (a_blink, "expected at least 0.4 s"),
        (not_a_sound, "a.wav"),
        (not_numbers, "holds NaN or Inf"),
        (not_a_picture, "x.png"),
        (a_link_to_nothing, r"b.wav is a link to gone.wav and can not be read \(No such file.*mend it, or remove it"),
        (a_link_to_itself, "notes.txt is a link to notes.txt and can not be read"),
    ],
    ids=[
        "no folder",
        "empty",
        "pictures",
        "silent",
        "faint",
        "one silent",
        "short",
        "damaged",
        "NaN",
        "picture",
        "dangling link",
        "endless link",
    ],
)
def test_sounds_that_calibrate_nothing_are_refused_in_one_line_before_any_work(
    package: ModelPackage, tmp_path: Path, spoil: object, says: str
) -> None:
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(MediaError, match=says) as raised:
        record(package, scratch=scratch, folder=folder, threads=1)
    assert "\n" not in str(raised.value)
    assert not list(scratch.iterdir())


def test_hidden_files_folders_and_links_to_sounds_are_no_reason_to_refuse(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav", speech(1.0))
    (tmp_path / "b.wav").symlink_to(sound)
    (tmp_path / ".#b.wav").symlink_to("gone")  # an editor's lock
    (tmp_path / "folder.wav").mkdir()
    assert files_in(tmp_path) == [sound, tmp_path / "b.wav"]


def test_a_file_that_is_closed_to_this_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sound(tmp_path / "a.wav", speech(1.0))

    def closed(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    assert files_in(tmp_path)
    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(MediaError, match=r"a.wav is there and can not be read \(Permission denied\)"):
        files_in(tmp_path)


def test_a_package_that_cannot_render_is_refused(tmp_path: Path) -> None:
    half = ModelPackage.open(write_stand_in(tmp_path / "half", without=("vae_decoder",)))
    with pytest.raises(EdgereelsError, match="has no vae_decoder"):
        record(half, scratch=tmp_path, threads=1)
