# SPDX-License-Identifier: Apache-2.0
"""Days, devices that run fast, and plans of faults, on time that is only arithmetic."""

import time
from collections import deque
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.live_state import State
from edgereels.runtime.playout import Playout
from edgereels.runtime.playout_types import LatePolicy
from edgereels.runtime.recovery import Remedy

from .fake_live import CHUNK_FRAMES, CHUNK_S, KINDS, FakeLive, Fault, HungError
from .live_parts import FPS, REST, number_heard, number_seen, numbered_chunk

TO_END_IN = {State.READY, State.DEGRADED, State.FAILED}


def balanced(live: FakeLive) -> bool:
    counts = live.line.counts
    gone = counts.shown + counts.unseen + counts.dropped + counts.replaced + counts.interrupted
    return counts.added == live.delivered * CHUNK_FRAMES == gone + live.line.queued_frames


def sprinkled(chunks: int, *, every: int, kinds: list[str], seed: int) -> dict[int, Fault]:
    """Faults at about one chunk in `every`, mild enough that the stream can go on."""
    draw = np.random.default_rng(seed)
    amounts = {"slow": 3.0, "suspend": 60.0, "xrun": 0.02, "broken": 1.0, "contention": 20.0}
    at = draw.integers(0, chunks, chunks // every)
    return {int(number): Fault(kind := str(draw.choice(kinds)), amounts.get(kind, 0.0)) for number in at}


@pytest.mark.parametrize("chunks", [4_500, pytest.param(108_000, marks=pytest.mark.slow)], ids=["1 hour", "24 hours"])
def test_a_day_of_speech_with_faults(chunks: int) -> None:
    """A/V offset, drift, books and memory, with about three faults in a minute of chunks."""
    plan = sprinkled(chunks, every=25, kinds=[*(kind for kind in KINDS if kind not in ("broken", "disk_full"))], seed=7)
    # Most errors become underruns: five in ten minutes would end the stream, as they should.
    plan |= {number: Fault("xrun", 0.02) for number, fault in plan.items() if fault.kind == "error" and number % 50}
    live = FakeLive(plan, device_ppm=50)
    live.run(chunks)
    counts = live.line.counts
    media_s, offsets = np.array(live.offsets).T
    assert live.media_s > chunks * CHUNK_S * 0.9 and len(offsets) > chunks / 100
    assert live.worst_offset == 0, "frames between what is seen and what is heard, at every look"
    assert abs(np.polyfit(media_s / 3600, offsets * 1000 / FPS, 1)[0]) < 1, "ms per hour"
    assert balanced(live) and counts.shown + counts.unseen > 0.85 * counts.added
    assert live.most_queued < 4 * CHUNK_FRAMES
    assert live.state.state in TO_END_IN - {State.FAILED}
    assert {"S_STALL", "S_RESYNC", "S_INTERRUPTED", "S_NONFINITE", "S_QUALITY", "AUDIO_UNAVAILABLE"} <= set(live.codes)
    assert counts.stalls == live.codes["S_STALL"] and counts.resyncs == live.codes["S_RESYNC"]


def test_a_stream_without_faults_has_nothing_to_tell() -> None:
    """Negative control: the faults above are the plan's."""
    live = FakeLive()
    live.run(1_000)
    assert live.worst_offset == 0 and balanced(live)
    assert set(live.codes) == {"S_OPENED", "S_UTTERANCE", "S_IDLE"}
    assert live.line.counts.stalls == live.line.counts.late_chunks == 0


def test_the_offset_would_be_seen() -> None:
    """Negative control: speakers that play two frames late."""
    live = FakeLive()
    heard = live.speakers.heard
    live.speakers.heard = lambda slot: heard(slot - 2)
    live.run(50)
    assert live.worst_offset >= 2


def microphone_hour(device_ppm: float, *, video_follows: bool = True) -> tuple[Playout, int, float]:
    """One unbroken hour from a microphone with a true clock, heard from a device whose clock isn't.

    Returns the playout, the largest A/V offset in frames, and how much was queued at most, in s.
    """
    line, due_s, worst, most_s = Playout(FPS, REST), None, 0, 0.0
    for number in range(4_500):
        ready_s = (number + 1) * CHUNK_S + 0.3
        media_s = ready_s * (1 + device_ppm * 1e-6)
        start_s, samples = line.sound(media_s)
        shown = line.at(media_s if video_follows else ready_s)
        slot = int(media_s * FPS + 1e-6)
        position = slot - round(start_s * FPS)
        if shown.kind == "speech" and 0 <= position < len(samples) // 640:
            heard = number_heard(samples.reshape(-1, 640)[position])
            if heard or video_follows:  # silence has no number to compare a drifting picture with
                worst = max(worst, abs(number_seen(shown.frame) - heard))
        due_s = media_s + 0.2 if due_s is None else due_s
        due_s = line.add(numbered_chunk(1 + number * CHUNK_FRAMES, CHUNK_FRAMES), due_s).stop_s
        most_s = max(most_s, line.queued_s)
    return line, worst, most_s


def test_a_device_that_runs_fast_or_slow_takes_the_video_along() -> None:
    """200 ppm are 720 ms in an hour: 0.2 s are in reserve, the rest becomes single held frames."""
    fast, worst, _ = microphone_hour(+200)
    assert worst == 0 and fast.counts.dropped == 0
    assert fast.counts.stalled_s == pytest.approx(0.72 - 0.2, abs=0.08)
    assert fast.counts.stalls == pytest.approx(fast.counts.stalled_s * FPS)
    slow, worst, most_s = microphone_hour(-200)
    assert worst == 0 and slow.counts.stalls == 0
    assert most_s == pytest.approx(0.72 + 0.2 + CHUNK_S, abs=0.08), "what an hour without a pause adds to the delay"
    true, worst, most_s = microphone_hour(0)
    assert worst == true.counts.stalls == 0 and most_s < 0.2 + CHUNK_S + 0.05


def test_video_on_a_clock_of_its_own_would_drift() -> None:
    """Negative control: 720 ms in an hour are 18 frames."""
    _, worst, _ = microphone_hour(+200, video_follows=False)
    assert 17 <= worst <= 19


def random_plan(seed: int) -> dict[int, Fault]:
    """Anything at all, as bad as it likes."""
    draw = np.random.default_rng(seed)
    rate = draw.choice([0.02, 0.2, 0.8])
    plan: dict[int, Fault] = {}
    for number in range(60):
        if draw.random() < rate:
            amount = float(
                draw.choice([0.0, 0.02, 1.0, 3.0, 7.0, 60.0, 300.0], p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.05])
            )
            plan[number] = Fault(str(draw.choice(KINDS)), amount)
    return plan


def end_of(seed: int) -> FakeLive:
    live = FakeLive(
        random_plan(seed),
        policy=list(LatePolicy)[seed % 3],
        load=0.3 + seed % 7 * 0.25,
        device_ppm=(seed % 5 - 2) * 100.0,
        most_steps=50_000,
    )
    live.run(60)
    return live


@pytest.mark.slow
def test_every_plan_of_faults_ends_in_a_state_with_a_code() -> None:
    ends: dict[State, int] = {}
    for seed in range(200):
        start_s = time.process_time()
        live = end_of(seed)
        assert time.process_time() - start_s < 5, f"plan {seed} hangs"
        assert live.state.state in TO_END_IN and live.state.code, seed
        assert balanced(live), seed
        assert live.policy is LatePolicy.HOLD or live.worst_offset == 0, seed
        ends[live.state.state] = ends.get(live.state.state, 0) + 1
    assert set(ends) == TO_END_IN, ends


def test_the_same_plan_ends_the_same_way() -> None:
    once, again = end_of(11), end_of(11)
    assert (once.state.state, once.codes, once.line.counts) == (again.state.state, again.codes, again.line.counts)


def test_a_stream_that_never_gives_up_would_hang() -> None:
    """Negative control: the guard of the plans above sees what doesn't end."""

    class Stubborn:
        def after(self, **_: Any) -> tuple[Remedy, float]:
            return Remedy.REOPEN, 0.5

    live = FakeLive({3: Fault("broken", 1e9)}, recovery=Stubborn(), most_steps=5_000)
    with pytest.raises(HungError):
        live.run(10)
    sane = FakeLive({3: Fault("broken", 1e9)}, most_steps=5_000)
    sane.run(10)
    assert (sane.state.state, sane.state.code) == (State.FAILED, "S_TOO_MANY_FAULTS")


def test_memory_is_flat() -> None:
    """What a playout holds on to is what is queued, later as at first."""
    sizes: deque[int] = deque()
    live = FakeLive()
    for _ in range(3):
        live.state = type(live.state)()
        live.run(300)
        sizes.append(len(live.line._line._spans) + len(live.line._told) + live.line.queued_frames)
    assert max(sizes) <= 3
