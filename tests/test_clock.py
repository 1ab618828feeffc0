# SPDX-License-Identifier: Apache-2.0
import threading
import time
from collections.abc import Callable

import pytest

from edgereels.runtime.clock import Clock, MonotonicClock, read_together

from .virtual_clock import VirtualClock


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_the_real_clock_waits_at_least_as_long_as_asked() -> None:
    clock: Clock = MonotonicClock()
    start_s = clock.now_s()
    assert clock.wait_until(start_s + 0.02)
    assert clock.now_s() >= start_s + 0.02


@pytest.mark.parametrize("clock", [MonotonicClock(), VirtualClock()], ids=["real", "virtual"])
def test_a_set_event_ends_a_wait_even_if_its_time_has_come(clock: Clock) -> None:
    """A loop that is behind its time has to see that it was asked to end."""
    wake = threading.Event()
    assert clock.wait_until(clock.now_s(), wake)  # negative control: unset, the time has come
    wake.set()
    assert not clock.wait_until(clock.now_s() - 1, wake)
    assert not clock.wait_until(clock.now_s() + 3600, wake)


@pytest.mark.parametrize("clock", [MonotonicClock(), VirtualClock()], ids=["real", "virtual"])
def test_a_thread_that_waits_is_woken_by_its_event(clock: Clock) -> None:
    wake, outcome = threading.Event(), list[bool]()
    thread = started(lambda: outcome.append(clock.wait_until(clock.now_s() + 3600, wake)))
    wake.set()
    thread.join(5)
    assert outcome == [False]


def test_setting_the_time_of_day_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = MonotonicClock()
    before_s = clock.now_s()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    assert clock.wait_until(before_s + 0.01)
    assert clock.now_s() - before_s < 60


def test_virtual_waiters_wake_in_order_at_their_own_times() -> None:
    clock, seen = VirtualClock(), list[tuple[str, float]]()

    def every(name: str, period_s: float) -> Callable[[], None]:
        def work() -> None:
            for count in range(1, 4):
                clock.wait_until(count * period_s)
                seen.append((name, clock.now_s()))

        return work

    threads = [started(every("slow", 3.0)), started(every("fast", 2.0))]
    clock.until_waiting(2)
    clock.advance(1.9)
    assert not seen
    clock.advance(3600)
    for thread in threads:
        thread.join(5)
    assert seen[:3] == [("fast", 2.0), ("slow", 3.0), ("fast", 4.0)]
    assert {entry for entry in seen[3:]} == {("fast", 6.0), ("slow", 6.0), ("slow", 9.0)}
    assert clock.now_s() == 3601.9


def test_virtual_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="can't go back"):
        VirtualClock().advance(-1)


class Paused:
    """The machine's clock and its sound, which plays as fast; some readings of it take 0.1 s."""

    def __init__(self, *, times: int) -> None:
        self._now_s, self._left = 10.0, times

    def now_s(self) -> float:
        return self._now_s

    def position_s(self) -> float:
        media_s = self._now_s - 7.0
        if self._left:
            self._left -= 1
            self._now_s += 0.1
        return media_s

    def wait_until(self, at_s: float, wake: threading.Event | None = None) -> bool:
        return at_s <= self._now_s


def test_a_pause_between_two_readings_is_no_pause_of_the_sound() -> None:
    held_up = Paused(times=3)
    media_s, now_s = read_together(held_up.position_s, held_up)
    assert now_s - media_s == pytest.approx(7.0)
    # Read one after the other they lie apart; and a thread that is always held up gets an answer too.
    held_up = Paused(times=1)
    assert held_up.position_s() - held_up.now_s() == pytest.approx(-7.1)
    held_up = Paused(times=99)
    media_s, now_s = read_together(held_up.position_s, held_up)
    assert now_s - media_s == pytest.approx(7.1)
