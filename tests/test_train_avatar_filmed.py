# SPDX-License-Identifier: Apache-2.0
"""A face is learned from video files: they are read right, the face is found, what can't be used is named."""

import importlib
import json
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .train_avatar_parts import part

for needed in ("torch", "scipy", "cv2", "av"):
    pytest.importorskip(needed, reason=f"filmed faces need {needed}: pip install '.[train,export,video]'")

SAMPLE_RATE = 16_000
WIDTH, HEIGHT = 160, 120
MOUTH = (64, 80, 84, 108)
"""Top, bottom, left, right of where the mouth of `scene` moves; its head reaches from row 24 to row 96."""


def speech(duration_s: float, *, seed: int = 0, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Return noise that swells and fades as syllables do, with pauses, shape (samples,)."""
    generator = np.random.default_rng(seed)
    level = syllables(duration_s, seed=seed)
    ticks = np.arange(int(duration_s * rate)) / rate
    return (0.1 * np.interp(ticks * 100, np.arange(len(level)), level) * generator.standard_normal(len(ticks))).astype(
        np.float32
    )


def syllables(duration_s: float, *, seed: int = 0) -> np.ndarray:
    """Return how loud the speech is, 100 times a second, 0 to 1; silent in the last second of every four."""
    generator = np.random.default_rng([seed, 1])
    heights = generator.uniform(0.15, 1.0, int(duration_s * 5) + 3)
    time_s = np.arange(int(duration_s * 100) + 1) / 100
    level = np.interp(time_s * 5, np.arange(len(heights)), heights)
    return level * np.interp(time_s % 4, [0, 2.8, 2.9, 3.9, 4.0], [1, 1, 0, 0, 1])


def scene(time_s: float, opening: float, *, seed: int = 0) -> np.ndarray:
    """Return a picture of a head that sways, blinks and speaks, beside a lamp that flickers."""
    picture = np.full((HEIGHT, WIDTH, 3), (90, 120, 100), np.uint8)
    sway = round(2 * np.sin(time_s * 1.3 + seed))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    picture[((rows - 60) / 36.0) ** 2 + ((columns - 96 - sway) / 28.0) ** 2 < 1] = (220, 180, 150)
    if time_s % 2.3 > 0.15:
        picture[44:50, 82 + sway : 90 + sway] = picture[44:50, 102 + sway : 110 + sway] = 30
    height = 2 + round(10 * opening)
    picture[72 - height // 2 : 72 + (height + 1) // 2, 86 + sway : 106 + sway] = (120, 20, 30)
    picture[10:30, 6:26] = 255 if int(time_s * 7.7) % 3 else 0
    return picture


def film(
    path: Path,
    *,
    pictures: Iterable[np.ndarray] | None = None,
    times: Iterable[Fraction] | None = None,
    sound: np.ndarray | None,
    rate: int = SAMPLE_RATE,
    layout: str = "mono",
    duration_s: float = 4.0,
    seed: int = 0,
    fps: int = 25,
    late_s: float = 0.0,
) -> Path:
    """Write a video; by default `scene` with a mouth that follows the syllables of `seed`."""
    import av

    level = syllables(duration_s, seed=seed)
    if pictures is None:
        middles = [(index + 0.5) / fps for index in range(int(duration_s * fps))]
        pictures = [scene(at, level[min(int(at * 100), len(level) - 1)], seed=seed) for at in middles]
    stamps = iter(times) if times is not None else None
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=fps)
        audio: Any = container.add_stream("aac", rate=rate, layout=layout) if sound is not None else None
        pictures = list(pictures)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt, video.options = "yuv420p", {"crf": "14", "preset": "ultrafast"}
        video.codec_context.time_base = Fraction(1, 12800)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            at = next(stamps) if stamps is not None else Fraction(index, fps)
            frame.time_base, frame.pts = Fraction(1, 12800), round(at * 12800)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            shaped = np.atleast_2d(sound).astype(np.float32)
            for first in range(0, shaped.shape[1], 1024):
                block = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(shaped[:, first : first + 1024]), format="fltp", layout=layout
                )
                block.sample_rate, block.pts = rate, first + round(late_s * rate)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


def numbered(count: int) -> list[np.ndarray]:
    """Return pictures whose brightness tells their number."""
    return [np.full((32, 48, 3), 20 + 4 * (index % 50), np.uint8) for index in range(count)]


def numbers(found: Iterable[np.ndarray]) -> list[int]:
    return [round((float(picture[8:24, 8:40].mean()) - 20) / 4) for picture in found]


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fps", [25, 30, 50, 15])
def test_the_picture_of_each_40_ms_is_the_one_shown_in_their_middle(tmp_path: Path, fps: int) -> None:
    reading = part("film_file")
    opened = reading.open_film(film(tmp_path / "a.mp4", pictures=numbered(40), fps=fps, sound=speech(40 / fps)))
    wanted = [(2 * index + 1) * fps // 50 for index in range(opened.frames)]
    assert numbers(reading.pictures(opened)) == wanted
    assert opened.frames == 40 * 25 // fps


def test_uneven_time_stamps_are_followed(tmp_path: Path) -> None:
    reading = part("film_file")
    times = [Fraction(at, 100) for at in (0, 3, 10, 11, 30, 38, 41, 60, 80, 90)]
    opened = reading.open_film(film(tmp_path / "a.mkv", pictures=numbered(10), times=times, sound=speech(2.0)))
    middles = [Fraction(2 * index + 1, 50) for index in range(opened.frames)]
    assert numbers(reading.pictures(opened)) == [sum(at <= middle for at in times) - 1 for middle in middles]


@pytest.mark.parametrize(("rate", "layout"), [(44_100, "stereo"), (48_000, "mono"), (16_000, "stereo")])
def test_sound_becomes_mono_at_16_khz_and_stays_in_step(tmp_path: Path, rate: int, layout: str) -> None:
    clicks = np.zeros((2 if layout == "stereo" else 1, 2 * rate), np.float32)
    clicks[0, rate // 2 : rate // 2 + rate // 100] = 0.8  # the left one at 0.5 s
    clicks[-1, rate + rate // 4 : rate + rate // 4 + rate // 100] = 0.8  # the right one at 1.25 s
    opened = part("film_file").open_film(film(tmp_path / "a.mp4", duration_s=2, sound=clicks, rate=rate, layout=layout))
    loud = np.flatnonzero(np.abs(opened.sound) > 0.5 * np.abs(opened.sound).max())
    places_s = loud[np.flatnonzero(np.diff(loud, prepend=-9999) > 800)] / SAMPLE_RATE
    assert places_s == pytest.approx([0.5, 1.25], abs=0.003)  # AAC rings before a click


def test_sound_that_begins_late_is_preceded_by_silence(tmp_path: Path) -> None:
    sound = np.sin(np.arange(SAMPLE_RATE) * 0.3) * 0.3
    opened = part("film_file").open_film(film(tmp_path / "a.mkv", duration_s=2, sound=sound, late_s=0.5))
    loud = np.flatnonzero(np.abs(opened.sound) > 0.3 * np.abs(opened.sound).max())
    assert loud[0] / SAMPLE_RATE == pytest.approx(0.5, abs=0.005)


def test_loudness_is_brought_to_what_the_runtime_brings_speech_to(tmp_path: Path) -> None:
    from edgereels.runtime.audio import loudness_lufs

    for gain in (0.1, 1.0):
        opened = part("film_file").open_film(film(tmp_path / f"{gain}.mp4", sound=speech(4.0) * gain))
        assert loudness_lufs(opened.sound, sample_rate=SAMPLE_RATE) == pytest.approx(-23, abs=0.1)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2), ((1, 0, 0, 1), 0)],
    ids=["clockwise", "anticlockwise", "upside down", "upright"],
)
def test_pictures_of_a_turned_camera_come_upright(tmp_path: Path, matrix: tuple[int, ...], turns: int) -> None:
    reading = part("film_file")
    picture = scene(1.0, 0.5)
    path = film(tmp_path / "a.mp4", pictures=[picture] * 50, sound=speech(2.0))
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2: the track's matrix
    a, b, c, d = (value << 16 for value in matrix)
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    opened = reading.open_film(path)
    wanted = np.rot90(picture, turns)
    assert (opened.height, opened.width) == wanted.shape[:2]
    first = next(reading.pictures(opened))
    assert np.abs(first.astype(int) - wanted).mean() < 4  # a codec's loss
    small = next(reading.pictures(opened, size=(opened.width // 4, opened.height // 4), grey=True))
    assert small.shape == (opened.height // 4, opened.width // 4)


def broken(path: Path, kind: str) -> Path:
    if kind == "no sound":
        return film(path, sound=None)
    if kind == "silent":
        return film(path, sound=np.zeros(4 * SAMPLE_RATE, np.float32))
    if kind == "text":
        path.write_text("no video at all")
    elif kind == "truncated":
        data = film(path, sound=speech(4.0)).read_bytes()
        path.write_bytes(data[: len(data) // 3])
    elif kind == "short":
        return film(path, duration_s=0.3, sound=speech(0.3))
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no sound", "no sound track"),
        ("silent", "sound is silent"),
        ("text", "can't be decoded"),
        ("truncated", "can't be decoded"),
        ("short", "film longer"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_in_one_line(tmp_path: Path, kind: str, said: str) -> None:
    reading = part("film_file")
    with pytest.raises(reading.FilmError, match=said) as caught:
        reading.open_film(broken(tmp_path / "a.mp4", kind))
    assert "\n" not in str(caught.value)


# ── Which files, which clips ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_unusable_file_is_named_and_the_others_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filming = part("film_footage")
    monkeypatch.setattr(filming, "SHORTEST_S", 8)
    monkeypatch.setattr(filming, "FEWEST_CLIPS", 1)
    film(tmp_path / "good.mp4", duration_s=9, sound=speech(9.0))
    broken(tmp_path / "notes.txt", "text")
    broken(tmp_path / "mute.mp4", "no sound")
    (tmp_path / ".hidden").write_text("left by a file manager")
    assert [found.path.name for found in filming.usable_films(tmp_path)] == ["good.mp4"]
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2
    assert all(line.startswith("warning: ") for line in warned)
    assert any("mute.mp4" in line and "no sound track" in line for line in warned)
    assert any("notes.txt" in line for line in warned)


def test_a_folder_without_a_usable_film_is_refused(tmp_path: Path) -> None:
    filming = part("film_footage")
    with pytest.raises(SystemExit, match="holds no files; expected video files with sound"):
        filming.usable_films(tmp_path)
    broken(tmp_path / "mute.mp4", "no sound")
    with pytest.raises(SystemExit, match="holds 1 file, none of them usable"):
        filming.usable_films(tmp_path)


def test_too_little_film_says_how_much_there_is_and_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film(tmp_path / "a.mp4", duration_s=9, sound=speech(9.0))
    film(tmp_path / "b.mp4", duration_s=4, sound=speech(4.0))
    with pytest.raises(SystemExit, match="holds 13 s of film with sound, 1 clips of 8 s; expected at least 60 s and 6"):
        part("film_footage").usable_films(tmp_path)
    assert "b.mp4 lasts 4.0 s; clips have 8 s" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "held_out"), [(6, [1, 4]), (50, [5, 15, 25, 35, 45]), (10, [2, 7])])
def test_one_clip_in_ten_is_held_out_and_at_least_two(count: int, held_out: list[int]) -> None:
    assert part("film_footage").held_out_clips(count) == held_out


# ── Finding the face ─────────────────────────────────────────────────────────────────────────────────────────────────


def maps_of(clips: int, *, follows: bool = True, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    """Return the motion maps of `scene`; with `follows` false the sound is another's."""
    made = part("motion_box").MotionMaps(size)
    for seed in range(clips):
        level = syllables(8.0, seed=seed)
        frames = [scene((at + 0.5) / 25, level[at * 4 + 2], seed=seed).mean(2).astype(np.uint8) for at in range(200)]
        made.add(np.stack(frames), speech(8.0, seed=seed if follows else seed + 100))
    return made


def test_the_box_is_around_the_face_whose_mouth_follows_the_sound() -> None:
    box, found = part("motion_box").find_box(maps_of(4), width=WIDTH, height=HEIGHT)
    assert found
    assert box.top <= 24 and box.top + box.side >= 96  # the whole head
    assert abs(box.left + box.side / 2 - 96) < 8  # the mouth's column, far from the middle and from the lamp


@pytest.mark.slow
def test_without_a_mouth_that_follows_the_sound_the_middle_is_taken() -> None:
    box, found = part("motion_box").find_box(maps_of(4, follows=False), width=WIDTH, height=HEIGHT)
    assert not found
    assert (box.top, box.left, box.side) == (0, 20, 120)


def test_the_mouth_counts_most_and_the_eyes_more_than_what_is_still() -> None:
    cut = part("motion_box").MotionMaps((48, 48))
    import cv2

    for seed in range(4):
        level = syllables(8.0, seed=seed)
        shown = [scene((at + 0.5) / 25, level[at * 4 + 2], seed=seed)[:, 36:156] for at in range(200)]
        grey = [cv2.resize(one.mean(2).astype(np.uint8), (48, 48), interpolation=cv2.INTER_AREA) for one in shown]
        cut.add(np.stack(grey), speech(8.0, seed=seed))
    weight = part("motion_box").pixel_weight(cut)
    scale = 192 / 120
    mouth = weight[round(72 * scale), round((96 - 36) * scale)]
    eyes = [weight[round(47 * scale), round((column - 36) * scale)] for column in (86, 106)]
    assert weight.shape == (192, 192)
    assert mouth == pytest.approx(4.0, abs=0.1)
    assert all(2.0 < eye < 3.5 for eye in eyes)
    assert weight[180, 20] == pytest.approx(1.0, abs=0.1)
    assert (weight > 3.5).mean() < 0.1  # only the mouth


def test_blinks_are_found_where_lids_close_and_become_draws_that_mean_a_blink() -> None:
    blinking, above = part("filmed_blinks"), part("chance").BLINK_ABOVE
    small, closed = eyes_that_nod_and_blink()
    weight = np.ones((192, 192), np.float32)
    weight[60:84, 50:142], weight[120:140, 70:120] = 3.0, 4.0
    draws = blinking.blink_draws(small, weight, clips=5)
    assert draws.shape == (5, 50, 4)
    for clip, starts in closed.items():
        wanted = {-(-max(start - 1, 0) // 4) for start in starts}
        found = {int(latent) for latent in np.flatnonzero(draws[clip, :, 0] > above)}
        assert len(wanted ^ found) <= 1, (clip, wanted, found)
    assert np.isnan(draws[..., 1:]).all()  # where the eyes look stays free
    assert np.isnan(draws[4]).all()  # a clip that wasn't looked at


def test_a_face_that_only_nods_has_no_blinks() -> None:
    small, _ = eyes_that_nod_and_blink(blinks=0)
    weight = np.ones((192, 192), np.float32)
    weight[60:84, 50:142], weight[120:140, 70:120] = 3.0, 4.0
    assert part("filmed_blinks").blink_draws(small, weight, clips=4) is None


def eyes_that_nod_and_blink(blinks: int = 4) -> tuple[dict[int, np.ndarray], dict[int, list[int]]]:
    """Return grey pictures (200, 48, 48) of four clips, and the frames in which lids close."""
    generator = np.random.default_rng(5)
    small, closed = dict[int, np.ndarray](), dict[int, list[int]]()
    texture = generator.normal(150, 30, (80, 48))
    for clip in range(4):
        nod = 20 + np.round(3 * np.sin(np.arange(200) / generator.uniform(4, 9))).astype(int)
        frames = np.stack([texture[at : at + 48] for at in nod]) + generator.normal(0, 2, (200, 48, 48))
        frames[:, 15:21, 13:35] += 12 * np.sin(np.arange(200) / 5)[:, None, None]
        starts = sorted(int(start) for start in 10 + np.arange(blinks) * 45 + generator.integers(0, 25, blinks))
        for start in starts:
            frames[start : start + 5, 16:20, 14:20] = frames[start : start + 5, 16:20, 28:34] = 230
        small[clip], closed[clip] = np.clip(frames, 0, 255).astype(np.uint8), starts
    return small, closed


# ── The whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_folder_of_films_becomes_footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filming, footage = part("film_footage"), part("footage")
    monkeypatch.setattr(filming, "SHORTEST_S", 30)
    monkeypatch.setattr(filming, "FEWEST_CLIPS", 4)
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    film(films / "a.mp4", duration_s=17, sound=speech(17.0, seed=1), seed=1)
    film(films / "b.mp4", duration_s=16.5, sound=speech(16.5, seed=2), seed=2, fps=30)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "Wan2.1_VAE.safetensors").touch()
    (checkpoint / "overrides.json").write_text(json.dumps({"_video_vae": part("start").vae_settings()}))
    part("start").remember(out, checkpoint, videos=films, name="zoe")
    filming.make(out, steps=1)
    made = footage.Footage.open(out)
    assert made.frames.shape == (4, 200, 192, 192, 3)
    assert (made.faces, made.held_out) == (("zoe",) * 4, {1, 3})
    assert made.sound.std() > 500
    portrait, weight = made.portraits["zoe"], made.weights["zoe"]
    mouth = weight > 3.5
    darkest = [made.frames[clip][:, mouth].mean((1, 2)) for clip in made.training]
    # Closed: hardly darker than the picture in which most of the mouth is skin.
    assert portrait[mouth].mean() > np.percentile(np.concatenate(darkest), 70)
    still = np.asarray(importlib.import_module("PIL.Image").open(out / "footage" / "still_zoe.png"))
    assert still.shape[0] % 2 == still.shape[1] % 2 == 0
    stored = made.frames[0].copy()
    filming.make(out, steps=1)  # finished: nothing is done again
    assert np.array_equal(footage.Footage.open(out).frames[0], stored)
    (out / "footage" / "frames.npy").unlink()  # 90 MB


def test_what_is_shown_around_the_box_has_even_sides_and_holds_the_box() -> None:
    filming, box_type = part("film_footage"), part("motion_box").Box
    picture = np.arange(481 * 641 * 3, dtype=np.uint32).astype(np.uint8).reshape(481, 641, 3)
    for box in (box_type(0, 0, 201), box_type(281, 441, 200), box_type(60, 100, 400), box_type(0, 80, 481)):
        still, inside = filming.around(picture, box)
        assert still.shape[0] % 2 == still.shape[1] % 2 == 0
        assert inside.top + inside.side <= still.shape[0]
        assert inside.left + inside.side <= still.shape[1]
        assert np.array_equal(inside.cut(still)[:100, :100], box.cut(picture)[:100, :100])


@pytest.mark.slow
def test_the_stranger_is_nobody_of_the_package_and_comes_as_a_film_with_sound(tmp_path: Path) -> None:
    pytest.importorskip("skia", reason="drawing needs skia: pip install '.[train]'")
    drawing, performing = part("draw_stranger"), part("performance")
    assert drawing.STRANGER not in part("identities").IDENTITIES.values()
    spoken = part("speech").Speech(speech(1.2), [], "nobody")
    acted = performing.Performance(np.zeros((30, len(performing.DRIVES)), np.float32), np.zeros(30, np.int64))
    for index, (rate, layout) in enumerate(drawing.SOUND):
        path = tmp_path / f"{index}.mp4"
        drawing.write_video(path, drawing.filmed(acted, seed=index), spoken, index=index)
        opened = part("film_file").open_film(path)
        assert (opened.width, opened.height, opened.frames) == (drawing.WIDTH, drawing.HEIGHT, 30), (rate, layout)
        first = next(part("film_file").pictures(opened))
        hair = np.abs(first[120, 280].astype(int) - drawing.STRANGER.hair)  # the head is left of the middle
        assert hair.max() < 70
