# SPDX-License-Identifier: Apache-2.0
"""Bursts in noise are found where they are, noise alone is none, and marks are taken at their word."""

import numpy as np
import numpy.typing as npt
import pytest

from edgereels.runtime.utterances import PRE_ROLL_SAMPLES, Utterance, Utterances

RATE = 16_000


def noise(*, seconds: float, dbfs: float, slope: str = "white", seed: int = 0) -> npt.NDArray[np.float32]:
    count = round(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    if slope == "rumble":
        spectrum /= 1 + np.fft.rfftfreq(count, 1 / RATE) / 100
    sound = np.fft.irfft(spectrum, count)
    return (sound * 10 ** (dbfs / 20) / sound.std()).astype(np.float32)


def with_bursts(room: npt.NDArray[np.float32], *spans: tuple[int, int], dbfs: float) -> npt.NDArray[np.float32]:
    """Return a room with somebody in it who speaks from … to, in samples."""
    sound = room.copy()
    for first, last in spans:
        sound[first:last] += noise(seconds=(last - first) / RATE, dbfs=dbfs, seed=first)
    return sound


def found(utterances: Utterances, sound: npt.NDArray[np.float32], *, size: int = 320) -> list[Utterance]:
    first = utterances.position
    return [
        change
        for at in range(0, len(sound), size)
        for change in utterances.push(sound[at : at + size], first_sample=first + at)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_a_burst_is_found_where_it_begins(seed: int) -> None:
    random = np.random.default_rng(seed)
    onset = int(random.integers(2 * RATE, 3 * RATE))
    sound = with_bursts(noise(seconds=6, dbfs=random.uniform(-70, -45)), (onset, onset + RATE), dbfs=-25)
    begun, ended = found(Utterances(), sound)
    assert begun.stop_sample is None and ended.stop_sample is not None
    assert ended.start_sample == begun.start_sample
    assert abs(begun.start_sample + PRE_ROLL_SAMPLES - onset) <= 640  # 40 ms
    assert abs(ended.stop_sample - (onset + RATE + 0.6 * RATE)) <= 640
    assert begun.start_sample % 640 == ended.stop_sample % 640 == 0


@pytest.mark.parametrize("slope", ["white", "rumble"])
@pytest.mark.parametrize("dbfs", [-70, -60, -50, -40, -30], ids="{}-dBFS".format)
def test_steady_noise_is_no_speech(dbfs: int, slope: str) -> None:
    late = [u for u in found(Utterances(), noise(seconds=20, dbfs=dbfs, slope=slope)) if u.stop_sample is None]
    assert not [u for u in late if u.start_sample > RATE]
    spoken = with_bursts(noise(seconds=20, dbfs=dbfs, slope=slope), (15 * RATE, 16 * RATE), dbfs=dbfs + 20)
    assert [u for u in found(Utterances(), spoken) if u.start_sample > 14 * RATE]  # negative control


@pytest.mark.parametrize("dbfs", [-70, -50, -38], ids="{}-dBFS".format)
def test_noise_of_an_ordinary_room_is_no_speech_from_the_first_sample(dbfs: int) -> None:
    assert not found(Utterances(), noise(seconds=5, dbfs=dbfs))


def test_speech_right_at_the_start_is_heard() -> None:
    sound = with_bursts(noise(seconds=3, dbfs=-60), (0, RATE), dbfs=-25)
    assert found(Utterances(), sound)[0].start_sample == 0


def test_a_pause_between_words_ends_nothing_and_a_longer_one_does() -> None:
    spans = [(2 * RATE, 3 * RATE), (int(3.5 * RATE), 4 * RATE), (5 * RATE, 6 * RATE)]
    changes = found(Utterances(), with_bursts(noise(seconds=8, dbfs=-60), *spans, dbfs=-25))
    assert [(u.number, u.stop_sample is None) for u in changes] == [(0, True), (0, False), (1, True), (1, False)]


@pytest.mark.parametrize("size", [1, 97, 640, 100_000], ids=str)
def test_how_the_sound_is_cut_changes_nothing(size: int) -> None:
    sound = with_bursts(noise(seconds=5, dbfs=-60), (RATE, 2 * RATE), (3 * RATE, 4 * RATE), dbfs=-25)
    assert found(Utterances(), sound, size=size) == found(Utterances(), sound)


def test_a_click_is_no_speech() -> None:
    room = noise(seconds=4, dbfs=-60)
    assert not found(Utterances(), with_bursts(room, (32_000, 32_300), dbfs=-20))
    assert found(Utterances(), with_bursts(room, (32_000, 33_300), dbfs=-20))  # negative control: 80 ms is


def test_a_new_fan_is_taken_for_speech_only_until_the_room_is_known() -> None:
    changes = found(Utterances(), np.concatenate([noise(seconds=4, dbfs=-65), noise(seconds=20, dbfs=-35)]))
    assert [u.stop_sample is None for u in changes] == [True, False]
    assert changes[-1].stop_sample is not None and changes[-1].stop_sample < (4 + 4) * RATE


def test_blocks_that_a_sound_card_dropped_do_not_make_noise_speech() -> None:
    room = noise(seconds=20, dbfs=-40)
    for first in range(2 * RATE, 20 * RATE, RATE):
        room[first : first + 640] = 0
    assert not found(Utterances(), room)


def test_an_offset_of_the_microphone_hides_nobody() -> None:
    sound = with_bursts(noise(seconds=5, dbfs=-60), (2 * RATE, 3 * RATE), dbfs=-35) + np.float32(0.1)
    assert found(Utterances(), sound)


def test_a_mark_ends_what_was_pushed_on_the_next_whole_frame() -> None:
    utterances = Utterances(ends="mark")
    silence = np.zeros(1000, np.float32)
    assert found(utterances, silence) == [Utterance(0, 0)]
    assert utterances.end() == Utterance(0, 0, 1280)
    assert utterances.end() is None
    assert utterances.push(silence, first_sample=1280) == [Utterance(1, 1280)]
    assert utterances.current == Utterance(1, 1280)


def test_speech_can_be_ended_early_and_the_next_does_not_reach_back_into_it() -> None:
    sound = with_bursts(noise(seconds=3, dbfs=-60), (2 * RATE, 3 * RATE), dbfs=-25)
    utterances = Utterances()
    found(utterances, sound[: 2 * RATE + 3333])
    ended = utterances.end()
    assert ended is not None and ended.stop_sample == utterances.position == 35_840
    (begun,) = found(utterances, sound[35_840:])
    assert begun == Utterance(1, 35_840)


def test_a_gap_in_the_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0"):
        Utterances().push(np.zeros(10, np.float32), first_sample=10)
