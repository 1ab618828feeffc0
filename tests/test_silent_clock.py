# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from edgereels.runtime.silent_clock import SilentClock

from .virtual_clock import VirtualClock

RATE = 16000
VOICE = np.full(RATE, 0.5, np.float32)


def test_the_silent_clock_does_everything_that_speakers_do() -> None:
    clock = VirtualClock()
    events: list[dict] = []
    with SilentClock(RATE, now_s=clock.now_s, on_event=events.append) as silent:
        clock.advance(1.0)
        assert silent.position_s() == 1.0
        assert silent.write(VOICE, is_last=False) == 1.0
        assert silent.write(VOICE, is_last=False) == 2.0
        clock.advance(0.5)
        assert silent.clear() == pytest.approx(1.505)
        assert silent.write(VOICE, is_last=False, not_before_s=3.0) == 3.0
        clock.advance(4.0)
        assert silent.position_s() == 5.5
    assert (silent.underruns, silent.underrun_s) == (1, 1.5)
    assert [event["code"] for event in events] == ["AUDIO_UNDERRUN"]
