# SPDX-License-Identifier: Apache-2.0
"""Speakers and microphone on a real sound server: what is played is heard, and when."""

import time

import numpy as np
import pytest

from edgereels.runtime.speakers import Speakers

from .real_devices import Ear, Offsets, SoundServer, beep, say, until

RATE = 16000
MOST_OFFSET_S = 0.04
"""Between what the clock says and what the monitor hears: one frame. The null sink itself plays in blocks, and its
monitor hears a block when it begins."""

pytestmark = pytest.mark.slow


def wait_for(speakers: Speakers, media_s: float) -> float:
    """Return the clock reading when the speakers say that a media time is heard."""
    while (position_s := speakers.position_s()) < media_s:
        time.sleep(min(0.005, media_s - position_s))
    return time.perf_counter() - (position_s - media_s)


def playing(speakers: Speakers) -> None:
    until(lambda: speakers.playing, what="the speakers to play", within_s=10)


def test_what_is_played_is_heard(sound_server: SoundServer, capsys: pytest.CaptureFixture[str]) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    sound = np.convolve(sound, np.hanning(9) / 4, mode="same").astype(np.float32)  # below what resampling takes away
    events: list[dict] = []
    with Ear(sound_server.module) as ear, Speakers(sound_server.module, RATE, on_event=events.append) as speakers:
        playing(speakers)
        wait_for(speakers, speakers.write(sound) + 1.5)
        heard = ear.samples()
    match = np.correlate(heard, sound, mode="valid")
    at = int(np.argmax(np.abs(match)))
    likeness = match[at] / np.linalg.norm(heard[at : at + len(sound)]) / np.linalg.norm(sound)
    say(capsys, f"correlation of what was played with what was heard: {likeness:.4f}")
    assert likeness > 0.95
    assert np.linalg.norm(heard[at : at + len(sound)]) / np.linalg.norm(sound) == pytest.approx(1, abs=0.1)
    assert [event["code"] for event in events] == ["AUDIO_PLAYING"]
    assert not ear.events
    other = np.random.default_rng(1).permutation(sound)  # negative control
    assert np.max(np.abs(np.correlate(heard, other, mode="valid"))) < 0.2 * match[at]


def test_the_position_is_what_is_heard(sound_server: SoundServer, capsys: pytest.CaptureFixture[str]) -> None:
    """n = 20 beeps; offset: heard by the monitor, less heard by the word of the clock."""
    draws = np.random.default_rng(0)
    said_s = []
    with Ear(sound_server.module) as ear, Speakers(sound_server.module, RATE) as speakers:
        playing(speakers)
        for _ in range(20):
            promised_s = speakers.write(beep(), not_before_s=speakers.position_s() + 0.2 + 0.1 * draws.random())
            said_s.append(wait_for(speakers, promised_s))
        time.sleep(0.5)
        onsets_s = ear.onsets_s()
        counted = (speakers.underruns, ear.source.overflows)
    assert len(onsets_s) == len(said_s)
    found = Offsets(onsets_s - np.array(said_s))
    say(capsys, f"sound heard less sound said, {found}")
    assert found.are_within(MOST_OFFSET_S)
    assert not Offsets(found.values_s + 0.2).are_within(MOST_OFFSET_S)  # negative control
    assert counted == (0, 0)


def test_running_dry_is_counted_once_and_heard_as_silence(sound_server: SoundServer) -> None:
    events: list[dict] = []
    with Ear(sound_server.module) as ear, Speakers(sound_server.module, RATE, on_event=events.append) as speakers:
        playing(speakers)
        wait_for(speakers, speakers.write(beep(), is_last=False) + 0.5)
        wait_for(speakers, speakers.write(beep(), is_last=True) + 0.8)
        assert speakers.underruns == 1
        assert 0.3 < speakers.underrun_s < 0.6
        onsets_s = ear.onsets_s()
    assert [event["code"] for event in events] == ["AUDIO_PLAYING", "AUDIO_UNDERRUN"]
    assert len(onsets_s) == 2


def test_an_interruption_is_silent_soon(sound_server: SoundServer, capsys: pytest.CaptureFixture[str]) -> None:
    """What the device holds is still heard: `clear` says until when."""
    lateness_s, after_s = [], []
    with Ear(sound_server.module) as ear, Speakers(sound_server.module, RATE) as speakers:
        playing(speakers)
        for _ in range(5):
            speakers.write(beep(length_s=5.0))
            time.sleep(0.5)
            asked_s, position_s = time.perf_counter(), speakers.position_s()
            silent_s = asked_s + speakers.clear() - position_s
            time.sleep(0.5)
            times_s, samples = ear.recording()
            last_s = times_s[np.flatnonzero(np.abs(samples) > 0.02)[-1]]
            after_s.append(last_s - asked_s)
            lateness_s.append(last_s - silent_s)
    say(
        capsys,
        f"last sound after `clear`: {1000 * max(after_s):.0f} ms at most (n = {len(after_s)}), by its word "
        f"{1000 * min(lateness_s):.0f} to {1000 * max(lateness_s):.0f} ms later",
    )
    assert Offsets(np.array(lateness_s)).are_within(MOST_OFFSET_S)
    assert np.median(after_s) < 0.2


def test_a_loudspeaker_that_is_pulled_comes_back(sound_server: SoundServer, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[dict] = []
    looks: list[tuple[float, float]] = []

    def look(seconds: float) -> None:
        stop_s = time.perf_counter() + seconds
        while time.perf_counter() < stop_s:
            before_s = time.perf_counter()
            looks.append((before_s, speakers.position_s()))
            time.sleep(0.01)

    def codes() -> list[str]:
        return [event["code"] for event in events if event["code"] != "AUDIO_XRUN"]

    with Ear(sound_server.module) as ear, Speakers(sound_server.module, RATE, on_event=events.append) as speakers:
        playing(speakers)
        look(0.5)
        sound_server.unplug()
        look(1.5)
        assert not speakers.playing
        sound_server.plug()
        look(6.5)  # attempts after 0.5, 1, 2 and 5 s
        assert speakers.playing
        before = len(ear.onsets_s())
        promised_s = speakers.write(beep(), not_before_s=speakers.position_s() + 0.3)
        said_s = wait_for(speakers, promised_s)
        time.sleep(0.4)
        onsets_s = ear.onsets_s()
    times_s, positions_s = np.array(looks).T
    assert codes()[:2] == ["AUDIO_PLAYING", "AUDIO_UNAVAILABLE"]
    assert codes()[-1] == "AUDIO_PLAYING"
    assert [event["code"] for event in ear.events] == ["AUDIO_UNAVAILABLE", "AUDIO_AVAILABLE"]
    jumps_s, stand_s = np.diff(positions_s) - np.diff(times_s), (times_s - times_s[0]) - (positions_s - positions_s[0])
    say(capsys, f"largest jump {1000 * jumps_s.max():.0f} ms; time that stood still {1000 * stand_s[-1]:.0f} ms")
    assert np.all(np.diff(positions_s) >= 0)
    assert jumps_s.max() < 0.045
    assert stand_s[-1] < 0.25
    assert len(onsets_s) == before + 1
    assert abs(onsets_s[-1] - said_s) <= MOST_OFFSET_S
