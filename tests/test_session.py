# SPDX-License-Identifier: Apache-2.0
"""The public front on the embedded package: what users do with it, and what they may do wrong."""

import gc
import json
import threading
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgereels.runtime import AvatarSession, EdgereelsError, MediaError, PackageError, read_avatar, write_avatar
from edgereels.runtime.audio import SAMPLE_RATE, load_speech
from edgereels.runtime.cli import main
from edgereels.runtime.model_package import DEMO_SPEECH
from edgereels.runtime.prepare import find_avatar

SMALL = (64, 64)
"""A size at which streams take a seventh of the time; whole renders of files take the package's own."""


@pytest.fixture(scope="module")
def session():
    with AvatarSession.open("default") as opened:
        yield opened


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Three seconds of the bundled clip: two or three windows."""
    return load_speech(DEMO_SPEECH)[: 3 * SAMPLE_RATE]


def wav(path: Path, samples: np.ndarray, *, rate: int = SAMPLE_RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def test_the_embedded_package_is_small_enough_for_a_wheel(session: AvatarSession) -> None:
    assert sum(path.stat().st_size for path in session.package.root.rglob("*") if path.is_file()) <= 25_000_000


def test_chunks_follow_each_other_without_a_gap(session: AvatarSession, speech: np.ndarray) -> None:
    chunks = list(session.stream(audio=speech, size=SMALL))
    height, width = SMALL
    assert len(chunks) > 1
    at = 0
    for index, chunk in enumerate(chunks):
        assert (chunk.index, chunk.start_frame, chunk.start_s) == (index, at, at / 25)
        assert chunk.frames.dtype == np.uint8
        assert chunk.frames.shape[1:] == (height, width, 3)
        at += len(chunk.frames)
    assert at == 75
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize(("threads", "lines"), [(1, 0), (10_000, 1)])
def test_more_threads_than_cores_are_not_used_and_that_is_said(
    threads: int, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="edgereels")
    with AvatarSession.open("default", threads=threads, verify="size"):
        assert [record.message.startswith("threads is 10000, this process may use") for record in caplog.records] == [
            True
        ] * lines


def test_the_same_seed_gives_the_same_bits(session: AvatarSession, speech: np.ndarray) -> None:
    def made(seed: int) -> np.ndarray:
        stream = session.stream(audio=speech[: 2 * SAMPLE_RATE], seed=seed, size=SMALL)
        return np.concatenate([chunk.frames for chunk in stream])

    first = made(1)
    assert np.array_equal(first, made(1))
    assert not np.array_equal(first, made(2))


def test_sound_changes_the_picture(session: AvatarSession, speech: np.ndarray) -> None:
    heard = np.concatenate([chunk.frames for chunk in session.stream(audio=speech, size=SMALL)])
    silent = np.concatenate([chunk.frames for chunk in session.stream(audio=np.zeros_like(speech), size=SMALL)])
    assert heard.shape == silent.shape
    assert np.abs(heard.astype(float) - silent).max() > 30


def test_a_stream_that_is_closed_early_leaves_nothing_running(session: AvatarSession, speech: np.ndarray) -> None:
    before = threading.active_count()
    stream = session.stream(audio=speech, size=SMALL)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    next(session.stream(audio=speech[:SAMPLE_RATE], size=SMALL))


def test_a_second_stream_at_once_is_refused(session: AvatarSession, speech: np.ndarray) -> None:
    first = session.stream(audio=speech, size=SMALL)
    next(first)
    with pytest.raises(EdgereelsError, match="already running"):
        next(session.stream(audio=speech, size=SMALL))
    first.close()
    assert not session.thread_safe


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        pytest.param(np.zeros(0, np.float32), "at least 0.4 s", id="empty"),
        pytest.param(np.zeros(6000, np.float32), "at least 0.4 s", id="short"),
        pytest.param(np.full(16000, np.nan, np.float32), "NaN", id="nan"),
        pytest.param(np.zeros((16000, 2), np.float32), "expected mono", id="stereo"),
        pytest.param(np.zeros(16000, np.int16), "floating-point", id="integers"),
    ],
)
def test_sound_that_is_none_is_refused(session: AvatarSession, samples: np.ndarray, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        session.stream(audio=samples)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"window": 32}, id="window not 4n+1"),
        pytest.param({"window": 9, "motion": 5, "drop": 4}, id="nothing left"),
        pytest.param({"guidance_audio": 0.5}, id="guidance below 1"),
        pytest.param({"steps": -1}, id="steps"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    session: AvatarSession, speech: np.ndarray, settings: dict[str, int]
) -> None:
    with pytest.raises(ValueError):
        session.stream(audio=speech, **settings)


def test_an_unknown_avatar_is_refused_with_the_known_ones(session: AvatarSession, speech: np.ndarray) -> None:
    with pytest.raises(PackageError, match=session.avatars[0]):
        session.stream(audio=speech, avatar="nobody")


def test_a_foreign_face_is_refused_with_the_ways_out(
    session: AvatarSession, speech: np.ndarray, tmp_path: Path
) -> None:
    Image.new("RGB", (200, 200), "teal").save(tmp_path / "face.png")
    with pytest.raises(MediaError, match=rf"{session.avatars[0]}.*--avatar.*train_avatar"):
        session.stream(audio=speech, image=tmp_path / "face.png")


def test_prompts_are_refused_where_the_network_takes_none(session: AvatarSession, speech: np.ndarray) -> None:
    with pytest.raises(PackageError, match="prompt"):
        session.stream(audio=speech, prompt="a person is singing")
    with pytest.raises(PackageError, match="guidance"):
        session.stream(audio=speech, guidance_text=3.0)


def test_render_writes_video_frames_and_trace(tmp_path: Path, speech: np.ndarray) -> None:
    audio = wav(tmp_path / "s.wav", speech[:SAMPLE_RATE])
    files = {"--out": tmp_path / "v.mp4", "--frames": tmp_path / "f.npy", "--trace": tmp_path / "t.jsonl"}
    arguments = [str(part) for option in files.items() for part in option]
    assert main(["render", "--audio", str(audio), *arguments]) == 0
    assert np.load(tmp_path / "f.npy").shape[0] == 25
    events = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    report = events[-1]
    first = min(event["start_s"] for event in events if event["event"] == "dit")
    last = max(event["end_s"] for event in events if event["event"] != "report")
    assert report["real_time_factor"] == pytest.approx((last - first) / 1.0)
    assert {path.name for path in tmp_path.iterdir()} == {"s.wav", "v.mp4", "f.npy", "t.jsonl"}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty file"),
        pytest.param(lambda path: path.write_bytes(b"RIFF????WAVE"), id="truncated header"),
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: wav(path, np.zeros(100)), id="too short"),
        pytest.param(lambda path: wav(path, np.zeros(8000), rate=1), id="rate of 1 Hz"),
    ],
)
def test_bad_sound_is_one_line_and_leaves_nothing(damage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = wav(tmp_path / "s.wav", np.zeros(16000))
    damage(audio)
    left = {path.name for path in tmp_path.iterdir()}
    assert main(["render", "--audio", str(audio), "--out", str(tmp_path / "v.mp4")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.slow
def test_an_avatar_file_of_a_listed_face_renders_the_same(
    session: AvatarSession, speech: np.ndarray, tmp_path: Path
) -> None:
    known = find_avatar(session.package)
    Image.fromarray(known.portrait).save(tmp_path / "known.png")
    session.prepare_avatar(tmp_path / "known.png", tmp_path / "a.avatar")
    sound = speech[:SAMPLE_RATE]
    ours = np.concatenate([chunk.frames for chunk in session.stream(audio=sound, avatar=tmp_path / "a.avatar")])
    theirs = np.concatenate([chunk.frames for chunk in session.stream(audio=sound, canvas=False)])
    assert np.array_equal(ours, theirs)


def test_an_avatar_of_another_package_is_prepared_again(
    session: AvatarSession, speech: np.ndarray, tmp_path: Path
) -> None:
    """Latents that another package made are not believed: zeros here would change the picture."""
    import dataclasses

    known = find_avatar(session.package)
    session.prepare_avatar(_saved(known.portrait, tmp_path), tmp_path / "a.avatar", size=SMALL)
    prepared = read_avatar(tmp_path / "a.avatar")
    assert prepared.condition_latents is not None
    foreign = dataclasses.replace(
        prepared, package_digest="0" * 64, condition_latents=np.zeros_like(prepared.condition_latents)
    )
    write_avatar(tmp_path / "b.avatar", foreign)
    sound = speech[:SAMPLE_RATE]

    def shown(**arguments: object) -> np.ndarray:
        return np.concatenate([chunk.frames for chunk in session.stream(audio=sound, size=SMALL, **arguments)])

    theirs = shown()
    assert np.array_equal(shown(avatar=tmp_path / "b.avatar"), theirs)
    own = dataclasses.replace(foreign, package_digest=prepared.package_digest)  # control: these zeros are believed
    write_avatar(tmp_path / "c.avatar", own)
    assert not np.array_equal(shown(avatar=tmp_path / "c.avatar"), theirs)


def _saved(portrait: np.ndarray, folder: Path) -> Path:
    Image.fromarray(portrait).save(folder / "portrait.png")
    return folder / "portrait.png"


@pytest.mark.slow
def test_memory_is_flat_between_minute_three_and_minute_ten(session: AvatarSession) -> None:
    """One render of ten minutes; resident memory grows by less than 20 MB after the third."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("resident memory is read from /proc")

    def resident_mb() -> float:
        gc.collect()
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    clip = load_speech(DEMO_SPEECH)
    sound = np.tile(clip, 1 + 600 * SAMPLE_RATE // len(clip))[: 600 * SAMPLE_RATE]
    readings: dict[int, float] = {}
    for chunk in session.stream(audio=sound, size=(64, 64)):
        minute = int(chunk.stop_s // 60)
        if minute not in readings:
            readings[minute] = resident_mb()
    assert readings[10] - readings[3] < 20, readings
