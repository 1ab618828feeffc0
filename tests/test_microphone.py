# SPDX-License-Identifier: Apache-2.0
"""A microphone that is pulled, comes back, is missing or overflows; a module stands in for sounddevice."""

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.clock import MonotonicClock
from edgereels.runtime.errors import MediaError, MissingExtraError
from edgereels.runtime.microphone import MicrophoneSource
from edgereels.runtime.sources import SoundBlock

from .virtual_clock import VirtualClock


class PortAudioError(Exception):
    pass


class Status:
    def __init__(self, *, input_overflow: bool = False) -> None:
        self.input_overflow = input_overflow

    def __bool__(self) -> bool:
        return self.input_overflow


class Stream:
    """What RawInputStream is to the source; the test speaks into it."""

    def __init__(self, module: "Module", **settings: Any) -> None:
        self.settings, self._module, self.active, self.closed = settings, module, False, False

    def start(self) -> None:
        if not self._module.is_there:
            raise PortAudioError("Error starting stream: Device unavailable [PaErrorCode -9985]")
        self.active = True

    def close(self) -> None:
        self.closed, self.active = True, False

    def speak(self, value: float = 0.5, *, overflow: bool = False) -> None:
        frames = self.settings["blocksize"]
        data = np.full((frames, self.settings["channels"]), value, np.float32).tobytes()
        self.settings["callback"](memoryview(data), frames, None, Status(input_overflow=overflow))

    def end(self) -> None:
        """Stop as a pulled device does that PortAudio notices."""
        self.active = False
        self.settings["finished_callback"]()


class Module:
    """Stands in for sounddevice."""

    PortAudioError = PortAudioError

    def __init__(self) -> None:
        self.is_there, self.streams = True, list[Stream]()

    def query_devices(self, device: Any, kind: str) -> dict[str, Any]:
        return {"default_samplerate": 48_000.0}

    def RawInputStream(self, **settings: Any) -> Stream:  # noqa: N802
        self.streams.append(Stream(self, **settings))
        return self.streams[-1]


class Room:
    """A source on a virtual clock, with all that it said."""

    def __init__(self) -> None:
        self.clock, self.module = VirtualClock(patience_s=5), Module()
        self.blocks, self.events = list[SoundBlock](), list[dict[str, Any]]()
        self.came = threading.Condition()
        self.ends = list[Exception | None]()
        self.source = MicrophoneSource(self.clock, module=self.module, on_event=self.events.append)

    def take(self, block: SoundBlock) -> None:
        with self.came:
            self.blocks.append(block)
            self.came.notify_all()

    def speak(self, **how: Any) -> None:
        """Speak into the newest stream and wait until it was heard and the source waits again."""
        wanted = len(self.blocks) + 1
        self.module.streams[-1].speak(**how)
        with self.came:
            assert self.came.wait_for(lambda: len(self.blocks) >= wanted, 5)
        self.until(lambda: not self.source._roused.is_set())
        self.clock.until_waiting(1)

    def until(self, condition: Callable[[], bool]) -> None:
        with self.came:
            for _ in range(1000):
                if condition():
                    return
                self.came.wait(0.005)
        raise TimeoutError

    @property
    def codes(self) -> list[str]:
        return [event["code"] for event in self.events]


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    with room.source:
        yield room


def start(room: Room) -> None:
    room.source.start(room.take, room.ends.append)
    room.clock.until_waiting(1)


def test_what_is_spoken_is_heard_at_the_rate_of_the_device(room: Room) -> None:
    start(room)
    room.clock.advance(0.25)
    room.speak(value=0.25)
    (block,) = room.blocks
    assert block.samples.shape == (960, 1) and (block.samples == 0.25).all()
    assert (block.sample_rate, block.arrived_s) == (48_000, 0.25)
    assert not room.events


@pytest.mark.parametrize("way", ["told", "silent"])
def test_a_pulled_device_is_noticed_and_opened_again_when_it_is_back(room: Room, way: str) -> None:
    start(room)
    room.speak()
    room.module.is_there = False
    if way == "told":
        room.module.streams[-1].end()
        room.until(lambda: bool(room.events))
    else:
        room.clock.advance(0.49)
        assert not room.events  # negative control: half a second may pass
        room.clock.advance(0.02)
        room.until(lambda: bool(room.events))
    lost_s = room.events[0]["at_s"]
    room.clock.until_waiting(1)
    room.clock.advance(1.6)  # two attempts that fail
    assert len(room.module.streams) == 3
    room.module.is_there = True
    room.clock.advance(2.0)
    room.until(lambda: len(room.module.streams) == 4)
    room.clock.until_waiting(1)
    room.speak()
    assert room.codes == ["AUDIO_UNAVAILABLE", "AUDIO_AVAILABLE"]
    assert room.events[1]["away_s"] == pytest.approx(room.clock.now_s() - lost_s)
    assert all(stream.closed for stream in room.module.streams[:-1])
    assert not room.ends


def test_a_device_may_take_its_time_before_the_first_block(room: Room) -> None:
    start(room)
    room.clock.advance(2.9)
    room.speak()
    assert not room.events and len(room.module.streams) == 1


def test_a_device_that_never_gives_a_block_is_lost(room: Room) -> None:
    """Negative control."""
    start(room)
    room.clock.advance(3.1)
    room.until(lambda: bool(room.events))
    assert room.codes == ["AUDIO_UNAVAILABLE"]


def test_a_missing_device_is_tried_again_ever_more_rarely_and_said_once(room: Room) -> None:
    room.module.is_there = False
    start(room)
    tried_s = [0.0]
    for _ in range(200):
        room.clock.advance(0.1)
        if len(room.module.streams) > len(tried_s):
            tried_s.append(room.clock.now_s())
    np.testing.assert_allclose(np.diff(tried_s), [0.5, 1.0, 2.0, 5.0, 5.0, 5.0], atol=0.11)
    assert room.codes == ["AUDIO_UNAVAILABLE"]
    assert "unavailable" in room.events[0]["reason"]


def test_an_overflow_is_counted_and_said(room: Room) -> None:
    start(room)
    room.speak()
    assert not room.events
    room.speak(overflow=True)
    assert room.source.overflows == 1
    assert room.codes == ["AUDIO_OVERFLOW"]


def test_what_a_slow_callback_leaves_lying_is_bounded_and_counted(room: Room) -> None:
    start(room)
    held = threading.Event()

    def hold(block: SoundBlock) -> None:
        held.wait(5)

    source = MicrophoneSource(room.clock, module=room.module, on_event=room.events.append)
    with source:
        source.start(hold, room.ends.append)
        room.until(lambda: len(room.module.streams) == 2)
        room.until(lambda: room.module.streams[-1].active)
        for _ in range(520):
            room.module.streams[-1].speak()
        assert len(source._arrived) <= 500 and source.overflows >= 19
        held.set()
        room.until(lambda: "AUDIO_OVERFLOW" in room.codes)


def test_stopping_closes_the_device_within_its_thread() -> None:
    module, before = Module(), threading.active_count()
    source = MicrophoneSource(MonotonicClock(), module=module)
    source.start(lambda block: None, lambda error: None)
    source.stop()
    assert threading.active_count() == before
    assert all(stream.closed for stream in module.streams)


def test_more_channels_than_are_mixed_are_refused() -> None:
    with pytest.raises(MediaError, match="9 channels"):
        MicrophoneSource(VirtualClock(), module=Module(), channels=9)


def test_without_the_module_the_message_is_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtraError, match=r"listening to a microphone .* pip install 'edgereels\[live\]'"):
        MicrophoneSource(VirtualClock())
