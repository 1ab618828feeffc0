# SPDX-License-Identifier: Apache-2.0
import threading
import time

import numpy as np
import pytest

from edgereels.runtime.live_ears import AHEAD_S, LiveEars
from edgereels.runtime.live_settings import LATENCIES, lesser_settings, live_settings
from edgereels.runtime.manifest import Settings
from edgereels.runtime.sources import SoundBlock


def block(samples: np.ndarray, *, at_s: float = 0.0, rate: int = 16000, ends: bool = False) -> SoundBlock:
    return SoundBlock(samples, rate, arrived_s=at_s, intended_s=at_s - 0.001, ends_utterance=ends)


NOTHING = np.zeros(0, np.float32)


def ramp(count: int, *, first: int = 0) -> np.ndarray:
    return (np.arange(first, first + count) / 1e5).astype(np.float32)


def test_an_utterance_is_read_as_it_was_pushed_and_ends_on_a_frame() -> None:
    ears = LiveEars(ends="mark")
    ears.hear(block(ramp(1000)))
    spoken = ears.next(timeout_s=0)
    assert spoken is not None and spoken.start == 0
    assert ears.wait_for(spoken, 1000, timeout_s=0).samples == 1000
    ears.hear(block(ramp(500, first=1000)))
    ears.hear(block(NOTHING, ends=True))
    heard = ears.wait_for(spoken, 10_000, timeout_s=5)
    assert heard.ended and heard.samples == 1920  # three frames
    sound = ears.read(spoken, 0, heard.samples)
    assert np.array_equal(sound[:1500], ramp(1500)) and not sound[1500:].any()
    assert ears.is_quiet and ears.next(timeout_s=0) is None


def test_when_a_sample_arrived_is_known() -> None:
    ears = LiveEars(ends="mark")
    for number in range(10):
        ears.hear(block(ramp(320), at_s=0.02 * number))
    assert ears.arrival(320) == pytest.approx((-0.001, 0.0))
    assert ears.arrival(321) == pytest.approx((0.019, 0.02))
    assert ears.arrival(3200)[1] == pytest.approx(0.18)


def test_the_source_waits_while_nobody_reads() -> None:
    ears = LiveEars(ends="mark")
    done = threading.Event()

    def push() -> None:
        for _second in range(int(AHEAD_S) + 3):
            ears.hear(block(ramp(16000)))
        done.set()

    threading.Thread(target=push, daemon=True).start()
    spoken = ears.next(timeout_s=1)
    assert spoken is not None and not done.wait(0.2)
    held = ears.stop
    assert held <= (AHEAD_S + 1) * 16000
    ears.read(spoken, 0, 4 * 16000)
    assert done.wait(2) and ears.stop > held


def test_what_is_dropped_is_gone_and_what_follows_is_heard() -> None:
    ears = LiveEars(ends="mark")
    ears.hear(block(ramp(5000)))
    first = ears.next(timeout_s=0)
    assert first is not None
    ears.drop()
    assert ears.wait_for(first, 10_000, timeout_s=5).dropped
    ears.hear(block(ramp(700)))
    second = ears.next(timeout_s=1)
    assert second is not None and second.number == 1 and not second.dropped
    assert np.array_equal(ears.read(second, 0, 700), ramp(700))


def test_sound_of_two_rates_in_one_utterance_keeps_its_length() -> None:
    ears = LiveEars(ends="mark")
    ears.hear(block(ramp(16000)))
    ears.hear(block(ramp(24000), rate=24000))
    ears.hear(block(NOTHING, rate=24000, ends=True))
    spoken = ears.next(timeout_s=0)
    assert spoken is not None
    assert ears.wait_for(spoken, 10**6, timeout_s=1).samples == 32000


def test_speech_is_found_by_its_level() -> None:
    generator = np.random.default_rng(0)
    room = (generator.standard_normal(3 * 16000) * 0.0005).astype(np.float32)
    voice = (generator.standard_normal(16000) * 0.1).astype(np.float32)
    ears = LiveEars(ends="silence")
    ears.hear(block(room))
    assert ears.next(timeout_s=0) is None
    ears.hear(block(voice))
    spoken = ears.next(timeout_s=0)
    assert spoken is not None and abs(spoken.start - 3 * 16000) <= 0.2 * 16000
    assert not ears.is_quiet
    ears.hear(block(room))
    assert ears.wait_for(spoken, 10**6, timeout_s=1).ended and ears.is_quiet


def test_the_end_of_the_source_ends_the_utterance() -> None:
    ears = LiveEars(ends="mark")
    ears.hear(block(ramp(1000), rate=24000))
    ears.close(None)
    spoken = ears.next(timeout_s=0)
    assert spoken is not None and spoken.stop == 1280 and ears.is_over and ears.failure is None


@pytest.mark.parametrize("milliseconds", [5, 20, 40])
def test_the_shortest_of_sounds_has_a_time_of_arrival(milliseconds: int) -> None:
    ears = LiveEars(ends="mark", now_s=lambda: 7.0)
    ears.hear(block(ramp(round(44.1 * milliseconds)), rate=44100, at_s=6.0))
    ears.close(None)
    spoken = ears.next(timeout_s=0)
    assert spoken is not None and spoken.stop is not None
    assert ears.arrival(spoken.stop) == (7.0, 7.0)  # not before then it was known that nothing more comes


def test_what_is_on_its_way_when_everything_is_dropped_is_dropped() -> None:
    ears = LiveEars(ends="mark")
    ears.hear(block(ramp(100)))
    ears.drop(generation=1)
    ears.hear(block(ramp(100)))  # of generation 0
    assert ears.next(timeout_s=0) is None
    ears.hear(SoundBlock(ramp(100), 16000, 0.0, 0.0, generation=1))
    assert ears.next(timeout_s=0) is not None


def test_a_window_of_any_quality_needs_less_than_may_wait() -> None:
    own = Settings(fps=25, sample_rate=16000, window=33, motion=5, drop=4, steps=4, shift=11.0, max_offline_s=200)
    for latency in LATENCIES:
        wanted = live_settings(latency, own)
        for settings in (wanted, *lesser_settings(wanted, own)):
            assert settings.first_frame_s < AHEAD_S


def test_who_waits_is_woken_at_the_end_of_the_stream() -> None:
    ears = LiveEars(ends="mark")
    threading.Timer(0.05, ears.stop_waiting).start()
    began_s = time.perf_counter()
    assert ears.next(timeout_s=5) is None
    assert time.perf_counter() - began_s < 1
    ears.hear(block(ramp(100)))  # takes nothing more, and waits for nobody
    assert ears.stop == 0


def test_after_the_end_of_the_source_nobody_asks_without_a_pause() -> None:
    ears = LiveEars(ends="mark")
    ears.close(None)
    began_s = time.perf_counter()
    assert ears.next(timeout_s=0.1) is None
    assert time.perf_counter() - began_s > 0.08


def test_an_utterance_that_nobody_ended_in_time_has_all_its_sound_and_no_other_follows() -> None:
    ears = LiveEars(ends="mark")
    ears.hear(block(np.full(2205, 0.1, np.float32), rate=22050))
    spoken = ears.next(timeout_s=0)
    assert spoken is not None
    ears.end(spoken)
    whole = ears.wait_for(spoken, 10_000, timeout_s=0)
    assert whole.ended and whole.samples == 1920
    assert np.abs(ears.read(spoken, 1500, 1590)).min() > 0.05  # what the change of rate held back
    ears.hear(block(NOTHING, rate=22050, ends=True))
    assert ears.next(timeout_s=0) is None and ears.is_quiet
