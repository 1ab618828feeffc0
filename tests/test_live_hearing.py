# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from edgereels.runtime.audio_ring import FutureSoundError
from edgereels.runtime.live_hearing import LEAD_FRAMES, START_DEVIATION, LiveHearing

FRAME = 640


def speech(frames: int, *, seed: int = 0, level: float = 0.06) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(frames * FRAME) * level).astype(np.float32)


class Encoder:
    """Features are the mean power of each frame; remembers how long the sounds were."""

    def __init__(self) -> None:
        self.heard_frames: list[int] = []

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        assert len(sound) % FRAME == 0
        self.heard_frames.append(len(sound) // FRAME)
        return np.square(sound).reshape(-1, FRAME).mean(1)[:, None, None]


def test_features_lie_on_the_frames_of_their_sound() -> None:
    encoder = Encoder()
    hearing = LiveHearing(encoder, normalise=False)
    sound = np.zeros(50 * FRAME, np.float32)
    sound[20 * FRAME : 21 * FRAME] = 0.1
    hearing.push(sound)
    found = hearing.features(10, 30)[:, 0, 0]
    assert hearing.frames == 50
    assert int(np.argmax(found)) == 10 and np.count_nonzero(found) == 1


def test_before_an_utterance_lies_silence() -> None:
    hearing = LiveHearing(Encoder(), normalise=False)
    hearing.push(speech(20))
    assert not hearing.features(-LEAD_FRAMES, 0).any()
    assert hearing.features(0, 20).all()
    with pytest.raises(ValueError, match="more than are heard"):
        hearing.features(-LEAD_FRAMES - 1, 5)


def test_nothing_is_heard_before_it_was_said() -> None:
    hearing = LiveHearing(Encoder(), normalise=False)
    hearing.push(speech(20))
    with pytest.raises(FutureSoundError):
        hearing.features(10, 21)


def test_earlier_features_do_not_depend_on_when_later_sound_came() -> None:
    sound = speech(60)
    found = list[np.ndarray]()
    for block in (FRAME, 999, len(sound)):
        hearing = LiveHearing(Encoder(), normalise=False)
        for first in range(0, len(sound), block):
            hearing.push(sound[first : first + block])
        found.append(hearing.features(0, 40, until_frame=40))
    assert np.allclose(found[0], found[1], atol=1e-7) and np.allclose(found[0], found[2], atol=1e-7)


@pytest.mark.parametrize("heard_s", [1.0, 8.0])
def test_no_more_is_encoded_than_the_longest_that_is_heard(heard_s: float) -> None:
    encoder = Encoder()
    hearing = LiveHearing(encoder, normalise=False, heard_s=heard_s)
    for second in range(20):
        hearing.push(speech(25, seed=second))
        hearing.features(hearing.frames - 20, hearing.frames)
    assert max(encoder.heard_frames) == round(heard_s * 25)
    with pytest.raises(ValueError, match="at most 8"):
        LiveHearing(encoder, normalise=False, heard_s=8.1)


def test_what_the_encoder_gets_has_the_variance_of_the_speaker_so_far() -> None:
    hearing = LiveHearing(Encoder(), normalise=True)
    hearing.push(speech(200, level=START_DEVIATION))
    power = hearing.features(180, 200)[:, 0, 0].mean()
    assert power == pytest.approx(1.0, rel=0.35)
    raw = LiveHearing(Encoder(), normalise=False)
    raw.push(speech(200, level=START_DEVIATION))
    assert raw.features(180, 200)[:, 0, 0].mean() < 0.1  # the control: without, it is nowhere near


def test_a_quiet_speaker_is_turned_up_and_remembered_in_the_next_utterance() -> None:
    hearing = LiveHearing(Encoder(), normalise=False)
    hearing.push(speech(250, level=0.006))
    gain_db = hearing.gain_db
    assert gain_db > 6
    hearing.begin()
    assert hearing.gain_db == gain_db and hearing.frames == 0


def test_silence_behind_speech_fills_the_frame_and_follows() -> None:
    hearing = LiveHearing(Encoder(), normalise=False)
    hearing.push(speech(10)[:-100])
    hearing.push_silence(4)
    assert hearing.frames == 14
    assert not hearing.features(10, 14).any() and hearing.features(0, 10).all()


def test_a_damaged_second_does_not_count_for_hours() -> None:
    hearing = LiveHearing(Encoder(), normalise=True)
    hearing.push(np.full(16000, 3000, np.float32))
    for _minute in range(2):
        hearing.push(speech(1500, level=START_DEVIATION))
    assert hearing.features(hearing.frames - 20, hearing.frames)[:, 0, 0].mean() > 0.2
