# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.errors import UsageError
from edgereels.runtime.live_chunk import LiveChunk
from edgereels.runtime.playout import Playout
from edgereels.runtime.playout_types import LatePolicy

from .live_parts import FPS, REST, number_heard, numbered_chunk, told


def playout(**options: Any) -> tuple[Playout, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return Playout(FPS, REST, on_event=events.append, **options), events


def watch(line: Playout, first: int, stop: int) -> list[tuple[str, int, int]]:
    """Look once in each slot."""
    return [told(line.at(slot / FPS)) for slot in range(first, stop)]


def balanced(line: Playout) -> bool:
    counts = line.counts
    gone = counts.shown + counts.unseen + counts.dropped + counts.replaced + counts.interrupted
    return counts.added == gone + line.queued_frames


def speech(first: int, stop: int) -> list[tuple[str, int, int]]:
    return [("speech", number, number) for number in range(first, stop)]


def test_idle_speech_idle() -> None:
    line, events = playout()
    line.add(numbered_chunk(1, 5), due_s=0.2)
    line.add(numbered_chunk(6, 5, last=True), due_s=0.4)
    seen = watch(line, 0, 25)
    assert seen[5:15] == speech(1, 11)
    assert {kind for kind, *_ in seen[:5] + seen[15:]} == {"rest"}
    assert line.at(24 / FPS).index == 9, "the rest loop begins with its first frame when an utterance ends"
    assert not events and balanced(line) and line.counts.shown == 10


def test_looking_more_or_less_often_than_frames_change_is_counted_truly() -> None:
    line, _ = playout()
    line.add(numbered_chunk(1, 20, last=True), due_s=0.0)
    for tick in range(24):
        line.at(tick / 60)  # 60 Hz: 0.4 s, 10 frames
    assert (line.counts.shown, line.counts.unseen) == (10, 0)
    for tick in range(5):
        line.at(0.4 + tick * 0.08)  # every second frame of the rest
    assert (line.counts.shown, line.counts.unseen) == (15, 4)
    assert balanced(line)


def test_picture_and_sound_of_a_slot_belong_together_even_if_sound_is_asked_for_first() -> None:
    line, _ = playout()
    heard: dict[int, int] = {}
    for slot in range(40):
        start_s, samples = line.sound((slot + 4) / FPS)  # the speakers' buffer is three frames ahead
        for number, block in enumerate(samples.reshape(-1, 640)):
            heard[round(start_s * FPS) + number] = number_heard(block)
        if slot == 7:  # due in slot 9, which the speakers already have
            assert line.add(numbered_chunk(1, 10, last=True), due_s=9 / FPS).waited_s == 2 / FPS
        kind, seen, _ = told(line.at(slot / FPS))
        assert seen == heard[slot], (kind, slot)
    assert [heard[slot] for slot in range(11, 21)] == list(range(1, 11))


@pytest.mark.parametrize("slots_ahead", [0, 5])
def test_the_first_chunk_is_due_behind_the_sound_that_is_handed_out_already(slots_ahead: int) -> None:
    line, _ = playout()
    for slot in range(11):
        line.at(slot / FPS)
        line.sound((slot + 1 + slots_ahead) / FPS)
    assert line.expect(20 / FPS, utterance=0) == pytest.approx((20 + slots_ahead) / FPS)


def test_late_frames_are_shown_late_and_the_utterance_moves_with_them() -> None:
    line, events = playout(policy=LatePolicy.SHOW)
    line.add(numbered_chunk(1, 5), due_s=0.0)
    assert watch(line, 0, 8)[5:] == [("held", 5, 0)] * 3
    placed = line.add(numbered_chunk(6, 5), due_s=5 / FPS)
    assert (placed.start_s, placed.lateness_s, placed.waited_s) == (8 / FPS, 3 / FPS, 3 / FPS)
    next_one = line.add(numbered_chunk(11, 5, last=True), due_s=10 / FPS)
    assert (next_one.lateness_s, next_one.waited_s) == (3 / FPS, 0.0), "moved, but itself in time"
    assert watch(line, 8, 18) == speech(6, 16)
    assert line.counts.late_chunks == 1
    assert [event["event"] for event in events] == ["late", "stall"]
    assert balanced(line)


def test_the_next_utterance_is_not_moved_by_lateness_of_the_last() -> None:
    line, _ = playout()
    line.at(1.0)
    assert line.add(numbered_chunk(1, 5, last=True), due_s=0.0).lateness_s == 26 / FPS
    placed = line.add(numbered_chunk(6, 5, utterance=1, last=True), due_s=2.0)
    assert (placed.start_s, placed.lateness_s) == (2.0, 0.0)


def test_late_frames_are_dropped_with_their_sound() -> None:
    line, events = playout(policy=LatePolicy.DROP)
    line.add(numbered_chunk(1, 5), due_s=0.0)
    watch(line, 0, 8)
    line.add(numbered_chunk(6, 5), due_s=5 / FPS)
    line.add(numbered_chunk(11, 5, last=True), due_s=10 / FPS)
    assert watch(line, 8, 15) == speech(9, 16), "the delay did not grow"
    assert (line.counts.dropped, line.counts.stalls) == (3, 1)
    assert events[0]["dropped"] == 3 and balanced(line)


def test_chunks_that_are_wholly_late_leave_nothing_and_later_ones_are_in_time() -> None:
    line, _ = playout(policy=LatePolicy.DROP)
    line.add(numbered_chunk(1, 5), due_s=0.0)
    watch(line, 0, 17)
    for number in (6, 11):
        line.add(numbered_chunk(number, 5), due_s=(number - 1) / FPS)
    line.add(numbered_chunk(16, 5), due_s=15 / FPS)
    line.add(numbered_chunk(21, 5, last=True), due_s=20 / FPS)
    assert watch(line, 17, 25) == speech(18, 26)
    assert line.counts.dropped == 12 and balanced(line)


def test_an_utterance_whose_end_came_too_late_has_ended() -> None:
    line, events = playout(policy=LatePolicy.DROP, hold_s=9.0)
    line.add(numbered_chunk(1, 5), due_s=0.0)
    assert watch(line, 0, 20)[-1][0] == "held"
    line.add(numbered_chunk(6, 5, last=True), due_s=5 / FPS)
    assert watch(line, 20, 22) == [("rest", 0, 0)] * 2
    assert [event.get("length_s") for event in events if event["event"] == "stall"] == [15 / FPS]
    assert balanced(line)


def test_the_picture_waits_for_a_whole_chunk_while_the_sound_goes_on() -> None:
    line, _ = playout(policy=LatePolicy.HOLD)
    line.add(numbered_chunk(1, 5), due_s=0.0)
    watch(line, 0, 8)
    line.add(numbered_chunk(6, 5), due_s=5 / FPS)
    line.add(numbered_chunk(11, 5, last=True), due_s=10 / FPS)
    assert watch(line, 8, 15) == [("held", 5, 9), ("held", 5, 10), *speech(11, 16)]
    assert (line.counts.dropped, line.counts.replaced, line.counts.stalls) == (3, 2, 1)
    assert line.counts.stalled_s == 5 / FPS and balanced(line)


@pytest.mark.parametrize("policy", LatePolicy)
def test_a_stall_of_three_seconds_is_one_event_and_no_burst_follows(policy: LatePolicy) -> None:
    """The producer is stuck before its sixth chunk, then hands over everything at once."""
    line, events = playout(policy=policy, hold_s=1.0)
    for number in range(5):
        line.add(numbered_chunk(1 + number * 20, 20), due_s=number * 0.8)
    seen = watch(line, 0, 175)
    assert [kind for kind, *_ in seen[100:]] == ["held"] * 25 + ["rest"] * 50, "held a second, then the rest loop"
    for number in range(5, 12):
        line.add(numbered_chunk(1 + number * 20, 20, last=number == 11), due_s=number * 0.8)
    after = [number for kind, number, _ in watch(line, 175, 330) if kind == "speech"]
    assert all(later - earlier == 1 for earlier, later in pairwise(after)), "one frame per slot"
    (stall,) = [event for event in events if event["event"] == "stall"]
    expected = {LatePolicy.SHOW: 3.0, LatePolicy.DROP: 3.0, LatePolicy.HOLD: 3.2}
    assert stall["code"] == "S_STALL" and stall["length_s"] == pytest.approx(expected[policy])
    assert (stall["at_s"], line.counts.stalls) == (4.0, 1) and balanced(line)


def test_a_stall_that_never_ends_is_told_at_the_close() -> None:
    line, events = playout()
    line.add(numbered_chunk(1, 5), due_s=0.0)
    line.at(0.0)
    assert not events
    line.close(1.0)
    assert [(event["event"], event["length_s"]) for event in events] == [("stall", pytest.approx(0.8))]


def test_an_interruption_stops_mouth_and_sound_within_one_frame() -> None:
    line, events = playout(hold_s=0.2)
    line.add(numbered_chunk(1, 50, utterance=3), due_s=0.0)
    line.sound(0.6)
    watch(line, 0, 10)
    face = line.interrupt(0.38)
    assert (face.kind, face.utterance, face.index) == ("speech", 3, 9)
    assert line.sound(0.6)[0] == 0.4, "what was handed out for later is handed out again"
    assert watch(line, 10, 17) == [("held", 10, 0)] * 5 + [("rest", 0, 0)] * 2
    assert line.counts.interrupted == 40 and balanced(line)
    assert [event["event"] for event in events] == ["interrupted"], "no stall: nothing was due any more"


def test_chunks_of_an_interrupted_utterance_that_come_later_are_thrown_away() -> None:
    line, _ = playout()
    line.add(numbered_chunk(1, 5, utterance=0), due_s=0.0)
    watch(line, 0, 3)
    line.interrupt(2 / FPS, through_utterance=1)
    for utterance in (0, 1):
        line.add(numbered_chunk(6, 5, utterance=utterance), due_s=0.0)
    line.add(numbered_chunk(11, 5, utterance=2, last=True), due_s=4 / FPS)
    assert watch(line, 3, 9) == [("held", 3, 0), *speech(11, 16)]
    assert line.counts.interrupted == 2 + 10 and balanced(line)


def test_an_interruption_of_nobody_leaves_the_rest_loop_running() -> None:
    line, _ = playout()
    before = [line.at(slot / FPS).index for slot in range(13)]
    line.interrupt(12 / FPS)
    after = [line.at(slot / FPS).index for slot in range(13, 20)]
    assert before + after == [slot % 10 for slot in range(20)]


@pytest.mark.parametrize("by_sound", [False, True], ids=["window", "speakers"])
def test_after_a_minute_asleep_the_utterance_goes_on_where_it_was(by_sound: bool) -> None:
    line, events = playout()
    for number in range(4):
        line.add(numbered_chunk(1 + number * 20, 20), due_s=number * 0.8)
    watch(line, 0, 30)
    if by_sound:
        start_s, samples = line.sound(90.04)
        assert start_s == 90.0 and number_heard(samples) == 31
    line.add(numbered_chunk(81, 20, last=True), due_s=3.2)  # planned before the pause
    assert watch(line, 2250, 2320) == speech(31, 101)
    assert [event["event"] for event in events] == ["resync"]
    assert events[0]["length_s"] == pytest.approx(90.0 - 1.2)
    assert line.counts.late_chunks == line.counts.dropped == line.counts.unseen == 0 and balanced(line)


def test_after_a_pause_every_chunk_follows_the_one_before() -> None:
    line, events = playout()
    due_s = line.add(numbered_chunk(1, 20), due_s=0.0).stop_s
    due_s = line.add(numbered_chunk(21, 20), due_s=due_s).stop_s
    watch(line, 0, 25)
    seen = watch(line, 2250, 2260)
    for number in range(2, 5):
        due_s = line.add(numbered_chunk(1 + number * 20, 20, last=number == 4), due_s=due_s).stop_s
    seen += watch(line, 2260, 2330)
    assert [kind for kind, *_rest in seen[:75]] == ["speech"] * 75
    assert [event["event"] for event in events] == ["resync"] and line.moved_s == pytest.approx(90.0 - 1.0)
    line.expect(95.0, utterance=1)
    assert line.moved_s == 0.0


def test_a_way_back_that_is_queued_can_be_taken_back() -> None:
    line, _events = playout()
    line.add(numbered_chunk(1, 20, last=True), due_s=1.0)
    watch(line, 0, 5)
    line.clear_from(1.2)
    assert line.expect(1.2, utterance=1) == pytest.approx(1.2)
    assert line.counts.interrupted == 15 and balanced(line)


def test_without_resync_the_pause_would_be_lateness() -> None:
    """Negative control."""
    line, events = playout(resync_s=1000.0)
    line.add(numbered_chunk(1, 80), due_s=0.0)
    watch(line, 0, 30)
    assert told(line.at(90.0))[0] == "rest"
    assert line.counts.unseen == 50 and not events


def test_media_time_that_steps_back_shows_no_earlier_frame() -> None:
    line, _ = playout()
    line.add(numbered_chunk(1, 20, last=True), due_s=0.0)
    assert told(line.at(0.4)) == told(line.at(0.36)) == ("speech", 11, 11)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Playout(FPS, REST[:0])
    line, _ = playout()
    good = numbered_chunk(1, 5)
    with pytest.raises(UsageError, match=r"expected \(3200,\)"):
        line.add(LiveChunk(good.frames, good.sound[:-1], 0, 0, True, 0.0, 0.0), due_s=0.0)
    assert line.counts.added == 0


@pytest.mark.parametrize("policy", LatePolicy)
@pytest.mark.parametrize("seed", range(5))
def test_whatever_comes_when_no_frame_is_lost_from_the_books(policy: LatePolicy, seed: int) -> None:
    draw = np.random.default_rng(seed)
    line, _ = playout(policy=policy, hold_s=0.4)
    media_s, due_s, number, utterance, spoken = 0.0, 0.5, 1, 0, 0
    last_seen = 0
    for _step in range(1500):
        media_s += draw.choice([0.0, 0.01, 0.04, 0.1, 0.5], p=[0.1, 0.3, 0.4, 0.15, 0.05])
        if draw.random() < 0.1:
            count, last = int(draw.integers(0, 13)), bool(draw.random() < 0.2)
            placed = line.add(numbered_chunk(number, count, utterance=utterance, first_frame=spoken, last=last), due_s)
            number, spoken, due_s = number + count, spoken + count, placed.stop_s
            if last:
                utterance, spoken, due_s = utterance + 1, 0, media_s + draw.random()
        if draw.random() < 0.5:
            line.sound(media_s + 0.1)
        if draw.random() < 0.01:
            line.interrupt(media_s)
            utterance, spoken, due_s = utterance + 1, 0, media_s + 0.3
        kind, seen, heard = told(line.at(media_s))
        assert balanced(line)
        if kind == "speech":
            assert seen == heard >= last_seen
            last_seen = seen
    assert line.counts.shown > 100


def test_a_chunk_is_told_how_much_time_it_had_left() -> None:
    """Counted to when its place is decided, by whoever is ahead: sound that is handed out early counts in."""
    line, _events = playout()
    line.at(0.0)
    assert line.add(numbered_chunk(1, 5), 0.2).spare_s == pytest.approx(0.16)  # slot 5; slots before 1 are decided
    line.sound(0.48)
    behind = line.add(numbered_chunk(6, 5), 0.4)
    assert (behind.spare_s, behind.waited_s) == (pytest.approx(-0.08), pytest.approx(0.08))
