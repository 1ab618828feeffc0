# SPDX-License-Identifier: Apache-2.0
"""Sound and picture where they come out: a beep on the sound server's monitor, a flash on the screen, and between them.

Everything is real but for the face: playout, player, speakers and window, on PulseAudio and on an X server.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from edgereels.runtime.clock import MonotonicClock
from edgereels.runtime.live_chunk import SAMPLES_PER_FRAME, LiveChunk
from edgereels.runtime.live_outputs import LiveFormat, OpenOutput, to_window
from edgereels.runtime.live_player import Player
from edgereels.runtime.playout import Playout
from edgereels.runtime.speakers import Speakers

from .real_devices import Ear, Offsets, Screen, SoundServer, beep, say, until

HEIGHT, WIDTH, RATE, FPS = 96, 128, 16000, 25
MOST_OFFSET_S = 0.02
FLASH_FRAMES = (10, 32, 57, 80, 105, 128, 151, 177, 200, 222)
"""About 0.9 s apart, and not evenly."""

pytestmark = pytest.mark.slow


def flashing(*, sound_later_s: float) -> LiveChunk:
    """Return a chunk that is white for four frames whenever it begins to beep, or so much earlier."""
    count = FLASH_FRAMES[-1] + 25
    frames = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    sound = np.zeros(count * SAMPLES_PER_FRAME, np.float32)
    tone = beep(length_s=0.1)
    for first in FLASH_FRAMES:
        frames[first : first + 4] = 255
        start = first * SAMPLES_PER_FRAME + round(sound_later_s * RATE)
        sound[start : start + len(tone)] = tone
    return LiveChunk(frames, sound, 0, 0, True, 0.0, 0.0)


@contextmanager
def watched(screen: Screen, *, y: int, x: int) -> Iterator[list[float]]:
    """Write down when a point of the screen becomes bright; it is looked at every millisecond."""
    begins_s: list[float] = []
    stopping = threading.Event()

    def watch() -> None:
        was_bright = False
        while not stopping.wait(0.001):
            is_bright = int(screen.pixels[y, x, 1]) > 127
            if is_bright and not was_bright:
                begins_s.append(time.perf_counter())
            was_bright = is_bright

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield begins_s
    finally:
        stopping.set()
        thread.join()


@contextmanager
def player_with(
    playout: Playout, sound_server: SoundServer, outputs: Sequence[OpenOutput]
) -> Iterator[tuple[Speakers, Ear]]:
    """Let a playout play on the speakers and to outputs."""
    with ExitStack() as stack:
        ear = stack.enter_context(Ear(sound_server.module))
        speakers = stack.enter_context(Speakers(sound_server.module, RATE))
        until(lambda: speakers.playing, what="the speakers to play", within_s=10)
        for output in outputs:
            output.start()
            stack.callback(output.stop, timeout_s=2)
        player = Player(playout, speakers, outputs, clock=MonotonicClock(), fps=FPS, composer=None)
        thread = threading.Thread(target=player.run)
        thread.start()
        stack.callback(thread.join)
        stack.callback(player.stop)
        time.sleep(0.5)
        yield speakers, ear


def offsets(sound_server: SoundServer, screen: Screen, *, sound_later_s: float) -> Offsets:
    """Play and return when each flash was seen less when its beep was heard, seconds."""
    playout = Playout(FPS, np.zeros((2, HEIGHT, WIDTH, 3), np.uint8))
    window = OpenOutput(to_window("av offset"), LiveFormat(HEIGHT, WIDTH, FPS, RATE, ""), on_event=None)
    with (
        player_with(playout, sound_server, [window]) as (speakers, ear),
        watched(screen, y=HEIGHT // 2, x=WIDTH // 2) as seen_s,
    ):
        placed = playout.add(flashing(sound_later_s=sound_later_s), speakers.position_s() + 0.5)
        until(lambda: speakers.position_s() > placed.stop_s + 0.5, what="the end of the sound", within_s=30)
        heard_s = ear.onsets_s()
    assert len(seen_s) == len(heard_s) == len(FLASH_FRAMES)
    return Offsets(np.array(seen_s) - heard_s)


def test_flash_and_beep_come_together(
    sound_server: SoundServer, screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    found = offsets(sound_server, screen, sound_later_s=0.0)
    say(capsys, f"picture less sound, {found}")
    assert found.are_within(MOST_OFFSET_S)


def test_sound_that_is_late_is_caught(sound_server: SoundServer, screen: Screen) -> None:
    """Negative control: 200 ms."""
    found = offsets(sound_server, screen, sound_later_s=0.2)
    assert not found.are_within(MOST_OFFSET_S)
    assert np.median(found.values_s) == pytest.approx(-0.2, abs=MOST_OFFSET_S)


def test_the_speakers_get_every_sample(sound_server: SoundServer) -> None:
    """Four seconds of noise; likeness is that of the worst 50 ms.

    The best of three: where another program has the processor for long, the device runs dry whoever feeds it.
    """
    count = 100
    draws = np.random.default_rng(0).normal(0, 0.1, count * SAMPLES_PER_FRAME)
    sound = np.convolve(draws, np.hanning(9) / 4, mode="same").astype(np.float32)  # below what resampling takes away
    chunk = LiveChunk(np.zeros((count, HEIGHT, WIDTH, 3), np.uint8), sound, 0, 0, True, 0.0, 0.0)
    best, found = np.zeros_like(sound), -1.0
    for _attempt in range(3):
        playout = Playout(FPS, np.zeros((2, HEIGHT, WIDTH, 3), np.uint8))
        with player_with(playout, sound_server, []) as (speakers, ear):
            placed = playout.add(chunk, speakers.position_s() + 0.5)
            until(lambda: speakers.position_s() > placed.stop_s + 0.5, what="the end of the sound", within_s=30)  # noqa: B023
            heard = ear.samples()
        at = int(np.argmax(np.correlate(heard, sound[:RATE], mode="valid")))
        likeness = worst_likeness(sound, heard[at : at + len(sound)])
        if likeness > found:
            best, found = heard[at : at + len(sound)].copy(), likeness
        if found > 0.9:
            break
    assert found > 0.9
    assert worst_likeness(sound, np.roll(best, 640)) < 0.9  # negative control: a frame late
    best[RATE : RATE + 320] = 0  # negative control: a hole of 20 ms
    assert worst_likeness(sound, best) < 0.9


def worst_likeness(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the smallest correlation of 50 ms with 50 ms."""
    pairs = zip(ours.reshape(-1, RATE // 20), theirs.reshape(-1, RATE // 20), strict=True)
    return min(float(np.dot(a, b) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-6)) for a, b in pairs)
