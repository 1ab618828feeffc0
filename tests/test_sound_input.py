# SPDX-License-Identifier: Apache-2.0
"""Sound that arrives in pieces becomes the samples of its file; what is not finite is silence, and counted."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from edgereels.runtime.audio import load_speech
from edgereels.runtime.errors import MediaError
from edgereels.runtime.sound_input import LARGEST, SoundInput


def speech(*, frames: int, channels: int = 1) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(0).standard_normal((frames, channels)).astype(np.float32)
    return np.clip(0.2 * noise, -1, 1)


def taken(sound: SoundInput, block: npt.NDArray[Any], *, sizes: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Push a sound in blocks of the given sizes, over and over, and return all that comes out."""
    out, first, turn = [], 0, 0
    while first < len(block):
        size = sizes[turn % len(sizes)]
        out.append(sound.push(block[first : first + size]))
        first, turn = first + size, turn + 1
    return np.concatenate([*out, sound.finish()])


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000], ids="{}-Hz".format)
def test_a_stream_becomes_what_its_file_becomes(tmp_path: Path, rate: int) -> None:
    sound = speech(frames=rate + 123, channels=2)
    soundfile.write(tmp_path / "a.wav", sound, rate, subtype="FLOAT")
    file = load_speech(tmp_path / "a.wav")
    stream = taken(SoundInput(rate, 2), sound, sizes=(1, 479, 7, 4410))
    np.testing.assert_allclose(stream, file, rtol=0, atol=1e-6)  # soxr sums in another order where blocks are cut
    assert np.abs(stream[1:] - file[:-1]).max() > 0.01  # negative control: one sample late is noticed


@pytest.mark.parametrize("kind", ["int16", "int32", "float64"])
def test_integers_and_wide_floats_are_the_same_sound(kind: str) -> None:
    sound = np.array([-1.0, -0.5, 0.0, 0.25], dtype=np.float32)
    scale = {"int16": 2**15, "int32": 2**31, "float64": 1}[kind]
    np.testing.assert_array_equal(SoundInput(16_000).push((sound.astype(np.float64) * scale).astype(kind)), sound)


def test_the_next_sound_begins_afresh() -> None:
    sound, one = SoundInput(48_000), speech(frames=5000)
    first, second = (taken(sound, one, sizes=(333,)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(first) == 1667


def test_what_the_resampler_holds_back_is_told() -> None:
    sound = SoundInput(48_000)
    given = sum(len(sound.push(speech(frames=960))) for _ in range(50))
    assert sound.held_back_s == pytest.approx(1 - given / 16_000)
    assert 0 < sound.held_back_s < 0.03
    sound.finish()
    assert sound.held_back_s == 0


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf, 2 * LARGEST], ids=str)
@pytest.mark.parametrize("rate", [16_000, 44_100], ids="{}-Hz".format)
def test_what_is_not_finite_becomes_silence_and_is_counted(damage: float, rate: int) -> None:
    sound, clean = SoundInput(rate), speech(frames=1000)[:, 0]
    broken, silenced = clean.copy(), clean.copy()
    broken[100:103], silenced[100:103] = damage, 0
    np.testing.assert_array_equal(taken(sound, broken, sizes=(64,)), taken(SoundInput(rate), silenced, sizes=(64,)))
    assert (sound.nonfinite, sound.nonfinite_share) == (3, 0.003)


@pytest.mark.parametrize(("bad", "codes"), [(160, []), (161, ["M_NONFINITE"])], ids=["1-percent", "more"])
def test_more_than_one_percent_of_a_second_is_an_event(bad: int, codes: list[str]) -> None:
    events: list[dict[str, Any]] = []
    sound, broken = SoundInput(16_000, on_event=events.append), speech(frames=16_000)[:, 0]
    broken[np.linspace(0, 15_999, bad).astype(int)] = np.nan
    taken(sound, broken, sizes=(320,))
    assert [event["code"] for event in events] == codes


def test_lasting_damage_is_said_once_until_it_was_gone() -> None:
    events: list[dict[str, Any]] = []
    sound, clean = SoundInput(16_000, on_event=events.append), speech(frames=16_000)[:, 0]
    for block in [clean] * 100 + [clean * np.nan] * 3 + [clean, clean * np.nan]:
        sound.push(block)
    assert [(event["code"], event["at_s"]) for event in events] == [("M_NONFINITE", 101.0), ("M_NONFINITE", 105.0)]


@pytest.mark.parametrize(
    ("rate", "channels"), [(1, 1), (2**32 - 1, 1), (16_000, 0), (16_000, 9)], ids=lambda value: str(value)
)
def test_rates_and_channels_of_damaged_headers_are_refused(rate: int, channels: int) -> None:
    with pytest.raises(MediaError, match="expected"):
        SoundInput(rate, channels)


@pytest.mark.parametrize(
    "block",
    [np.zeros(4, np.uint8), np.zeros(4, np.complex64), np.zeros((4, 3), np.float32), np.zeros(4, np.float32)],
    ids=["uint8", "complex", "3-channels", "interleaved"],
)
def test_what_is_no_block_of_stereo_is_refused(block: npt.NDArray[Any]) -> None:
    with pytest.raises(MediaError, match=r"expected .* \(n, 2\)"):
        SoundInput(16_000, 2).push(block)
