# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from edgereels.runtime.errors import UsageError
from edgereels.runtime.live_settings import LATENCIES, LiveLatency, LiveSettings, lesser_settings, live_settings
from edgereels.runtime.manifest import Settings

OWN = Settings(fps=25, sample_rate=16000, window=33, motion=5, drop=4, steps=1, shift=11.0, max_offline_s=200)


def test_latency_by_construction_is_what_the_first_window_hears() -> None:
    low, balanced, quality = (live_settings(latency, OWN) for latency in LATENCIES)
    assert (low.chunk_frames, low.look_ahead_frames, low.first_frame_s) == (12, 2, 0.56)
    assert (balanced.chunk_frames, balanced.look_ahead_frames, balanced.first_frame_s) == (24, 6, 1.2)
    assert (quality.chunk_frames, quality.look_ahead_frames, quality.first_frame_s) == (64, 14, 3.12)
    assert quality.steps == 2 and low.steps == balanced.steps == 1


def test_steps_are_given_up_first_then_short_windows_then_the_frame_rate() -> None:
    four = replace(OWN, steps=4)
    assert [(each.steps, each.repeat) for each in lesser_settings(live_settings("quality", four), four)] == [
        (4, 1),
        (4, 2),
    ]
    low = live_settings("low", OWN)
    assert lesser_settings(low, OWN) == (LiveSettings(33, 5, 4, 1), LiveSettings(33, 5, 4, 1, repeat=2))
    assert lesser_settings(live_settings("balanced", OWN), OWN) == (LiveSettings(33, 5, 4, 1, repeat=2),)


def test_half_the_frames_last_twice_as_long() -> None:
    half = LiveSettings(17, 5, 0, 1, repeat=2)
    assert (half.chunk_frames, half.look_ahead_frames, half.pinned_frames) == (24, 4, 16)


def test_a_word_that_is_none_and_windows_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="expected one of low, balanced, quality"):
        live_settings("fast", OWN)
    with pytest.raises(UsageError):
        LiveSettings(18, 5, 0, 1)
    with pytest.raises(UsageError, match="steps is 0"):
        LiveSettings(17, 5, 0, 0)


def test_both_latencies_are_printed() -> None:
    said = str(LiveLatency(look_ahead_s=0.56, allowance_s=0.28, window=17, steps=1, chunk_frames=12))
    assert "0.56 s of look-ahead by construction" in said and "0.28 s for computing" in said and "1 step)" in said
