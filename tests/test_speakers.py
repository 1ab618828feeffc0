# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest

from edgereels.runtime.speakers import Speakers

from .fake_sound_device import FakeSoundModule
from .virtual_clock import VirtualClock

RATE = 16000
VOICE = np.random.default_rng(0).uniform(0.2, 0.9, 10 * RATE).astype(np.float32)
"""No sample is silent, so that silence can be told from it."""


class Scene:
    """Speakers on a fake device with a virtual clock; `run` looks at the position every 10 ms."""

    def __init__(self, *, available: bool = True, fills_blocks: int = 0, wakes_after_s: float = 0, **device) -> None:
        self.clock = VirtualClock(100.0)
        self.module = FakeSoundModule(self.clock, **device)
        self.module.available = available
        self.module.fills_blocks, self.module.wakes_after_s = fills_blocks, wakes_after_s
        self.events: list[dict] = []
        self.speakers = Speakers(
            self.module, RATE, on_event=self.events.append, now_s=self.clock.now_s, own_thread=False
        ).__enter__()
        self.positions: list[float] = [0.0]

    def run(self, seconds: float) -> None:
        self.module.run(seconds, each=self.look)

    def look(self) -> None:
        self.speakers.watch()
        self.positions.append(self.speakers.position_s())

    def codes(self) -> list[str]:
        return [event["code"] for event in self.events]

    def largest_jump_s(self) -> float:
        """How much further than the 10 ms between two looks the position moved."""
        assert np.all(np.diff(self.positions) >= 0)
        return float(np.max(np.diff(self.positions))) - 0.01

    def longest_stand_s(self) -> float:
        moved = np.flatnonzero(np.diff(self.positions) > 0)
        return float(np.max(np.diff(np.concatenate([[-1], moved, [len(self.positions) - 1]])))) * 0.01

    def heard_from_s(self) -> float:
        """Clock reading when the first sample of the last sound was heard."""
        for at_s, block in self.module.played:
            if block.any():
                return at_s + int(np.argmax(block != 0)) / RATE
        raise AssertionError("nothing was heard")


def test_sound_is_heard_at_the_media_time_that_write_promised() -> None:
    scene = Scene()
    scene.run(0.5)
    promised_s = scene.speakers.write(VOICE[:RATE])
    while scene.speakers.position_s() < promised_s:
        scene.run(0.01)
    assert scene.clock.now_s() - scene.heard_from_s() == pytest.approx(0, abs=0.011)  # a look is 10 ms
    scene.run(1.5)
    heard = scene.module.heard()
    assert np.array_equal(heard[heard != 0], VOICE[:RATE])


def test_a_later_media_time_is_kept() -> None:
    scene = Scene()
    assert scene.speakers.write(VOICE[:RATE], not_before_s=2.0) == 2.0
    assert scene.speakers.end_s == 3.0
    scene.run(2.5)
    assert scene.heard_from_s() - 100.0 == pytest.approx(2.0, abs=0.001)


def test_the_position_is_what_is_heard_not_what_was_handed_over() -> None:
    """A device that holds half a second ahead."""
    scene = Scene(lead_s=0.5)
    scene.run(3.0)
    blocks = scene.module.played
    latest_s, block = blocks[-1]
    handed_over_s = 3.0 + (latest_s + len(block) / RATE - scene.clock.now_s())
    assert handed_over_s == pytest.approx(3.5, abs=0.03)
    assert scene.positions[-1] == pytest.approx(3.0, abs=0.001)


def test_what_the_device_holds_is_ahead_of_the_position() -> None:
    scene = Scene(lead_s=0.5)
    assert scene.speakers.taken_s == 0
    scene.run(3.0)
    assert scene.speakers.taken_s == pytest.approx(3.5, abs=0.03)


def test_calls_that_come_late_do_not_shake_the_position() -> None:
    draws = np.random.default_rng(0)
    scene = Scene(jitter=lambda: float(draws.exponential(0.004)))
    scene.run(1.0)
    start_s, start_at_s = scene.speakers.position_s(), scene.clock.now_s()
    worst_s = 0.0
    for _ in range(300):
        scene.run(0.01)
        worst_s = max(worst_s, abs(scene.positions[-1] - start_s - (scene.clock.now_s() - start_at_s)))
    assert worst_s < 0.003


def test_a_driver_that_gives_no_times_is_believed_its_latency() -> None:
    scene = Scene(lead_s=0.2)
    scene.module.gives_times = False
    scene.run(2.0)
    assert scene.speakers.playing
    assert scene.positions[-1] == pytest.approx(2.0, abs=0.03)


def test_a_device_that_runs_fast_is_followed() -> None:
    """200 ppm are 120 ms in ten minutes; the position must follow the device, not the machine."""
    scene = Scene(ppm=200)
    first_heard_s = None
    errors = []
    for _ in range(60):
        scene.module.run(10, step_s=0.02)
        position_s = scene.speakers.position_s()
        at_s, block = scene.module.played[-1]
        true_s = (scene.module.stream.samples - len(block)) / RATE + scene.clock.now_s() - at_s
        first_heard_s = position_s - true_s if first_heard_s is None else first_heard_s
        errors.append(position_s - true_s - first_heard_s)
        scene.module.played.clear()
    assert max(map(abs, errors)) < 0.002
    assert position_s - 600 == pytest.approx(0.12, abs=0.002)  # negative control: the machine's clock would be wrong


def test_running_dry_is_silence_and_counted_once() -> None:
    scene = Scene()
    scene.run(0.5)
    scene.speakers.write(VOICE[:1600], is_last=False)
    scene.run(1.0)
    assert scene.speakers.underruns == 1
    assert scene.codes().count("AUDIO_UNDERRUN") == 1
    scene.speakers.write(VOICE[:1600], is_last=True)
    dry_s = scene.speakers.underrun_s
    assert 0.8 < dry_s < 1.0
    scene.run(1.0)
    assert (scene.speakers.underruns, scene.speakers.underrun_s) == (1, dry_s)  # silence behind the end is none
    assert scene.positions[-1] == pytest.approx(2.5, abs=0.001)


def test_an_xrun_is_counted_and_the_position_stands_while_nothing_is_heard() -> None:
    scene = Scene()
    scene.run(1.0)
    before = scene.positions[-1]
    handed_over_s = before + scene.module.played[-1][0] + 0.02 - scene.clock.now_s()
    scene.module.silent = True
    scene.run(0.12)
    assert scene.positions[-1] == pytest.approx(handed_over_s, abs=0.001)
    assert handed_over_s < before + 0.08
    scene.module.silent, scene.module.underflow_next = False, True
    scene.run(0.5)
    assert scene.speakers.xruns == 1
    assert scene.codes().count("AUDIO_XRUN") == 1
    assert scene.speakers.playing
    assert scene.positions[-1] <= before + 0.62 + 0.001
    assert scene.largest_jump_s() < 0.045


def test_an_interruption_is_silent_within_a_block() -> None:
    scene = Scene()
    scene.run(0.5)
    scene.speakers.write(VOICE, is_last=False)
    scene.run(1.0)
    handed_over = sum(len(block) for _at_s, block in scene.module.played)
    silent_from_s = scene.speakers.clear()
    scene.run(1.0)
    after = scene.module.heard()[handed_over:]
    assert np.flatnonzero(after)[-1] < 0.005 * RATE
    assert (
        silent_from_s - scene.positions[-101] < 0.05 + 0.02 + 0.005 + 0.001
    )  # what the device held, a block, the ramp
    assert scene.speakers.underruns == 0


def test_without_a_device_the_clock_runs_on_time_and_it_is_told_once() -> None:
    scene = Scene(available=False)
    scene.run(20.0)
    assert scene.positions[-1] == pytest.approx(20.0, abs=0.001)
    assert scene.codes() == ["AUDIO_UNAVAILABLE"]
    assert "querying device" in scene.events[0]["reason"]


def test_attempts_to_open_a_device_become_rarer() -> None:
    scene = Scene(available=False)
    tries: list[float] = []

    def refuse(**_settings):
        tries.append(scene.clock.now_s() - 100)
        raise scene.module.PortAudioError("none")

    scene.module.RawOutputStream = refuse  # type: ignore[method-assign]
    scene.run(15.0)
    assert np.round(tries, 1).tolist() == [0.5, 1.5, 3.5, 8.5, 13.5]


@pytest.mark.parametrize("how", ["unplugged", "asks for nothing"])
def test_a_lost_device_becomes_a_silent_clock_and_comes_back_without_a_jump(how: str) -> None:
    scene = Scene()
    scene.run(1.0)
    scene.speakers.write(VOICE, is_last=True)
    scene.run(1.0)
    if how == "unplugged":
        scene.module.unplug()
    else:
        scene.module.silent = True
    scene.run(0.2)
    assert not scene.speakers.playing
    at_loss_s = scene.positions[-1]
    scene.run(2.8)
    assert scene.positions[-1] == pytest.approx(at_loss_s + 2.8, abs=0.011)
    scene.module.available, scene.module.silent = True, False
    scene.run(6.0)
    assert scene.speakers.playing
    assert scene.codes() == ["AUDIO_PLAYING", "AUDIO_UNAVAILABLE", "AUDIO_PLAYING"]
    assert scene.largest_jump_s() < 0.045
    assert scene.longest_stand_s() <= 0.2


def test_after_a_loss_the_sound_is_in_step_again() -> None:
    """What would have been heard meanwhile is skipped: a sample has one media time, for good."""
    scene = Scene()
    scene.run(1.0)
    promised_s = scene.speakers.write(VOICE, is_last=True)
    scene.run(1.0)
    scene.module.unplug()
    scene.run(1.0)
    scene.module.available = True
    scene.run(3.0)
    at_s, block = next((at_s, block) for at_s, block in scene.module.played[::-1] if block.any())
    (index,) = np.flatnonzero(block[0] == VOICE)
    position_when_heard_s = scene.positions[-1] + (at_s - scene.clock.now_s())
    assert position_when_heard_s == pytest.approx(promised_s + index / RATE, abs=0.001)


def test_a_machine_that_hung_for_a_moment_keeps_its_device() -> None:
    scene = Scene()
    scene.run(1.0)
    scene.module.silent = True
    scene.run(0.4)
    scene.module.silent = False
    scene.run(1.0)
    assert scene.speakers.playing
    assert scene.module.opened == 1
    assert scene.largest_jump_s() < 0.045


@pytest.mark.parametrize("wakes_after_s", [0.0, 0.4, 2.0])
def test_a_device_that_is_woken_begins_when_it_plays(wakes_after_s: float) -> None:
    """A sound server asks for its whole buffer at once, and for nothing until the device that slept plays."""
    scene = Scene(fills_blocks=4, wakes_after_s=wakes_after_s)
    scene.speakers.write(VOICE, is_last=True)
    scene.run(4.0)
    assert scene.codes() == ["AUDIO_PLAYING"]
    assert scene.module.opened == 1
    assert scene.largest_jump_s() < 0.045
    at_s, block = scene.module.played[-1]
    (index,) = np.flatnonzero(block[0] == VOICE)
    assert scene.positions[-1] + at_s - scene.clock.now_s() == pytest.approx(index / RATE, abs=0.001)


def test_a_device_that_fills_its_buffer_and_never_plays_is_opened_anew() -> None:
    """Negative control."""
    scene = Scene(fills_blocks=4, wakes_after_s=1000)
    scene.run(3.9)
    assert (scene.module.opened, scene.codes()) == (1, [])
    scene.run(1.0)
    assert (scene.module.opened, scene.codes()) == (2, ["AUDIO_UNAVAILABLE"])
    assert scene.positions[-1] == pytest.approx(4.9, abs=0.001)


def test_a_closed_device_that_still_calls_gets_silence() -> None:
    scene = Scene()
    scene.run(0.1)
    stream = scene.module.stream
    scene.speakers.write(VOICE)
    scene.speakers.__exit__(None, None, None)
    scene.module.played.clear()
    stream.ask_until(scene.clock.now_s() + 0.05)
    assert not scene.module.heard().any()
    assert not scene.speakers.playing
    assert "AUDIO_UNAVAILABLE" not in scene.codes()


def test_its_own_thread_ends_with_it() -> None:
    before = threading.active_count()
    module = FakeSoundModule(VirtualClock())
    for _ in range(5):
        with Speakers(module, RATE):
            assert threading.active_count() == before + 1
    assert threading.active_count() == before
