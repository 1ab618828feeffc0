# SPDX-License-Identifier: Apache-2.0
"""The running gain against that of the whole sound, and what must not move it: the cut, the future, silence."""

import numpy as np
import numpy.typing as npt
import pytest

from edgereels.runtime.loudness import loudness_lufs, normalise_loudness
from edgereels.runtime.running_loudness import RunningLoudness

RATE = 16_000


def speech(*, seconds: float, lufs: float) -> npt.NDArray[np.float32]:
    """Return noise with the slope of speech, four syllables a second and a pause after every eight."""
    count = round(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(count))
    frequencies = np.fft.rfftfreq(count, 1 / RATE)
    noise = np.fft.irfft(spectrum / (1 + frequencies / 500), count)
    times = np.arange(count) / RATE
    syllables = np.sin(np.pi * 4 * times) ** 2 * (times % 2.5 < 2.0)
    return normalise_loudness((noise * syllables).astype(np.float32), lufs)


def pushed(gain: RunningLoudness, samples: npt.NDArray[np.float32], *, size: int = 320) -> npt.NDArray[np.float32]:
    return np.concatenate([gain.push(samples[first : first + size]) for first in range(0, len(samples), size)])


@pytest.mark.parametrize("lufs", [-40.0, -30.0, -23.0, -10.0], ids="{}-LUFS".format)
def test_after_four_seconds_the_gain_is_within_1_db_of_the_whole_sound_s(lufs: float) -> None:
    sound = speech(seconds=10, lufs=lufs)
    ours, theirs = pushed(RunningLoudness(), sound), normalise_loudness(sound)
    for first_s in range(4, 9):
        span = slice(first_s * RATE, (first_s + 1) * RATE)
        apart_db = 10 * np.log10(np.mean(ours[span] ** 2) / np.mean(theirs[span] ** 2))
        assert abs(apart_db) < 1


def test_the_first_words_of_a_quiet_speaker_are_not_there_yet() -> None:
    """The negative control of the test above: the measure does see a gain that is off."""
    sound = speech(seconds=4, lufs=-40)
    ours, theirs = pushed(RunningLoudness(), sound), normalise_loudness(sound)
    assert 10 * np.log10(np.mean(theirs[:RATE] ** 2) / np.mean(ours[:RATE] ** 2)) > 6


@pytest.mark.parametrize("size", [1, 7, 640, 1601, 50_000], ids=str)
def test_how_the_sound_is_cut_changes_nothing(size: int) -> None:
    sound = speech(seconds=3, lufs=-35)
    np.testing.assert_allclose(
        pushed(RunningLoudness(), sound, size=size), pushed(RunningLoudness(), sound, size=320), rtol=0, atol=1e-6
    )


def test_later_sound_never_changes_earlier_output() -> None:
    sound = speech(seconds=4, lufs=-35)
    other = sound.copy()
    other[2 * RATE + 1 :] *= -7
    ours, theirs = pushed(RunningLoudness(), sound), pushed(RunningLoudness(), other)
    np.testing.assert_array_equal(ours[: 2 * RATE], theirs[: 2 * RATE])
    assert np.abs(ours[3 * RATE :] + theirs[3 * RATE :] / 7).max() > 1e-3  # negative control: later it does


def test_the_start_value_holds_for_the_first_0_4_s() -> None:
    sound = speech(seconds=2, lufs=-30)
    ours = pushed(RunningLoudness(-29.0), sound)
    np.testing.assert_allclose(ours[:6400], sound[:6400] * 10 ** (6 / 20), rtol=1e-6)
    assert not np.allclose(ours[8000:], sound[8000:] * 10 ** (6 / 20), rtol=1e-3)


def test_the_gain_never_moves_faster_than_6_db_a_second() -> None:
    gain = RunningLoudness()
    seen_db = [gain.gain_db]
    for block in np.split(np.concatenate([speech(seconds=3, lufs=-60), speech(seconds=3, lufs=-5)]), 300):
        gain.push(block)
        seen_db.append(gain.gain_db)
    steps_db = np.abs(np.diff(seen_db))
    assert 0.119 < steps_db.max() < 0.1201  # blocks of 20 ms; and it does move as fast as it may


@pytest.mark.parametrize("level", [0.0, 1e-5], ids=["digital", "room"])
def test_silence_moves_nothing(level: float) -> None:
    gain = RunningLoudness()
    gain.push(speech(seconds=5, lufs=-30))
    noise = np.random.default_rng(0).standard_normal(120 * RATE).astype(np.float32)
    gain.push(noise[:6400] * level)  # blocks that still hold speech
    before_db = gain.gain_db
    gain.push(noise * level)
    assert gain.gain_db == before_db
    gain.push(speech(seconds=5, lufs=-20))
    assert gain.gain_db < before_db - 2  # negative control: a louder speaker does


def test_only_the_last_minute_of_speech_counts() -> None:
    gain = RunningLoudness()
    gain.push(np.tile(speech(seconds=10, lufs=-20), 7))
    gain.push(np.tile(speech(seconds=10, lufs=-28), 7))
    assert gain.gain_db == pytest.approx(5, abs=0.5)
    assert len(gain._energies) <= 600


def test_a_blow_on_the_microphone_does_not_break_the_gain() -> None:
    gain = RunningLoudness()
    gain.push(speech(seconds=5, lufs=-30))
    before_db = gain.gain_db
    gain.push(np.full(RATE, 1e6, np.float32) * np.sign(np.sin(np.arange(RATE))).astype(np.float32))
    assert np.isfinite(gain.gain_db) and gain.gain_db == pytest.approx(before_db, abs=0.61)


def test_scaled_speech_measures_the_target() -> None:
    ours = pushed(RunningLoudness(), speech(seconds=12, lufs=-36))
    assert loudness_lufs(ours[4 * RATE :], sample_rate=RATE) == pytest.approx(-23, abs=1)
