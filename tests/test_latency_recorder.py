# SPDX-License-Identifier: Apache-2.0
"""What is written down of a stream, and what of a session's own word is not believed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgereels.benchmarks.latency_recorder import Recorder, TraceLog
from edgereels.benchmarks.latency_trace import Chunk, Event, Frame, SoundBlock, Turn
from edgereels.benchmarks.latency_trace_file import TraceWriter, read_trace
from edgereels.runtime import ChunkMade, Piece

from .latency_traces import RUN


class Desk:
    """A recorder, its lines and its clock."""

    def __init__(self, **fields: Any) -> None:
        self.lines: list[Any] = []
        self.now_s = 0.0
        self.recorder = Recorder(self.lines.append, lambda: self.now_s, **fields)

    def of(self, kind: type[Any]) -> list[Any]:
        return [line for line in self.lines if type(line) is kind]

    def say(self, length_s: float, *, late_s: float = 0.0) -> None:
        for number in range(1, round(length_s / 0.02) + 1):
            self.recorder.sent(0.02 * number, 0.02 * number + late_s, 320)

    def show(self, media_s: float, *, kind: str = "rest", utterance: int | None = None, **fields: Any) -> None:
        given = {"due_s": media_s, "lateness_s": 0.0, "index": 0, "frames": None} | fields
        self.recorder.on_shown(SimpleNamespace(media_s=media_s, kind=kind, utterance=utterance, **given))  # type: ignore[arg-type]


def made(**fields: Any) -> ChunkMade:
    usual: dict[str, Any] = {
        "index": 0,
        "utterance": 0,
        "first_frame": 0,
        "frames": 12,
        "is_last": False,
        "intended_s": 0.56,
        "audio_ready_s": 0.56,
        "start_s": 0.56,
        "ready_s": 0.8,
        "due_s": 0.9,
        "look_ahead_s": 0.08,
        "needed_sample": 14 * 640,
        "stages": {"dit": 0.24},
        "waits": {"queue": 0.0},
        "missed": False,
    }
    given = {**usual, **fields}
    return ChunkMade(**{"pieces": (Piece(given["frames"], given["ready_s"]),), **given})


def test_a_chunk_is_intended_when_its_last_sound_was_to_be_pushed_whatever_the_session_says() -> None:
    desk = Desk()
    desk.say(2.0, late_s=0.5)  # the session made the speaker wait
    desk.recorder.on_chunk(made(intended_s=1.06, audio_ready_s=1.06, start_s=1.06, ready_s=1.3, due_s=1.4))
    (chunk,) = desk.of(Chunk)
    assert chunk.intended_s == pytest.approx(0.56)
    assert chunk.due_s == pytest.approx(0.9), "and it is due half a second before the session says so"
    assert chunk.needed_sound_s == pytest.approx(0.56)


def test_a_chunk_that_needs_no_sound_or_some_that_was_never_pushed_keeps_its_own_time() -> None:
    desk = Desk()
    desk.say(0.2)
    desk.recorder.on_chunk(made(needed_sample=0, intended_s=7.0, audio_ready_s=7.0))
    desk.recorder.on_chunk(made(needed_sample=16000, intended_s=8.0, audio_ready_s=8.0))
    assert [chunk.intended_s for chunk in desk.of(Chunk)] == [7.0, 8.0]


def test_times_of_long_ago_are_forgotten_and_the_newest_are_not() -> None:
    desk = Desk()
    desk.say(1300.0)  # 65 000 blocks
    assert len(desk.recorder._stops) <= 40_000
    desk.recorder.on_chunk(made(needed_sample=1299 * 16000))
    assert desk.of(Chunk)[0].intended_s == pytest.approx(1299.0)


def test_a_late_utterance_that_the_session_moved_stays_late() -> None:
    desk = Desk()
    desk.say(3.0)
    desk.recorder.on_chunk(made())
    desk.recorder.on_chunk(made(index=1, first_frame=12, ready_s=3.0, due_s=1.38))
    desk.recorder.on_chunk(made(index=2, first_frame=24, ready_s=3.2, due_s=3.5))  # moved by 1.6 s
    assert [round(chunk.due_s, 3) for chunk in desk.of(Chunk)] == [0.9, 1.38, 1.86]
    assert desk.recorder.tally.missed == 2
    desk.show(3.5, kind="speech", utterance=0, index=24, due_s=3.5)
    assert desk.of(Frame)[0].due_s == pytest.approx(0.9 + 24 / 25)


def test_an_utterance_that_waits_for_the_one_before_is_late_where_speech_is_no_faster_than_pictures() -> None:
    queued = made(utterance=1, due_s=5.0, ready_s=4.0)
    free, bound = Desk(), Desk()
    bound.recorder.allowance_s = 0.3
    for desk in (free, bound):
        desk.say(1.0)
        desk.recorder.on_chunk(queued)
    assert free.of(Chunk)[0].due_s == 5.0
    assert bound.of(Chunk)[0].due_s == pytest.approx(0.56 + 0.3 + 0.04)


def test_warm_up_chunks_are_no_misses() -> None:
    desk = Desk(warm_up_chunks=1)
    desk.recorder.on_chunk(made(ready_s=2.0))
    assert desk.recorder.tally.missed == 0
    desk.recorder.on_chunk(made(index=1, ready_s=2.0))
    assert desk.recorder.tally.missed == 1


def test_frames_that_the_viewer_never_got_are_written_as_never_shown() -> None:
    desk = Desk()
    for number in (0, 1, 4, 5):
        desk.now_s = number / 25 + 0.001
        desk.show(number / 25)
    frames = desk.of(Frame)
    assert [frame.shown_s is None for frame in frames] == [False, False, True, True, False, False]
    assert [round(frame.media_s * 25) for frame in frames] == [0, 1, 2, 3, 4, 5]


def test_a_machine_that_slept_lost_no_frames() -> None:
    desk = Desk()
    desk.show(0.0)
    desk.show(60.0)
    assert len(desk.of(Frame)) == 2


def test_a_frame_is_composed_before_it_counts_as_shown() -> None:
    desk = Desk()

    class Slow(SimpleNamespace):
        @property
        def frames(self) -> None:
            desk.now_s = 5.0

    desk.recorder.on_shown(Slow(media_s=0.0, due_s=0.0, lateness_s=0.0, kind="rest", utterance=None, index=0))  # type: ignore[arg-type]
    assert desk.of(Frame)[0].shown_s == 5.0


def test_a_turn_is_the_first_frame_of_an_utterance_that_was_not_seen_before() -> None:
    desk = Desk()
    desk.say(3.0)
    desk.show(0.0, kind="speech", utterance=3)
    desk.recorder.expect_turn("turn", 0.02)
    desk.recorder.on_chunk(made(utterance=3, first_frame=12))
    desk.show(0.04, kind="speech", utterance=3)
    desk.show(0.08, kind="held", utterance=4)
    assert not desk.of(Turn)
    desk.recorder.on_chunk(made(utterance=4))
    desk.now_s = 0.99
    desk.show(0.12, kind="speech", utterance=4)
    desk.show(0.16, kind="speech", utterance=4)
    (turn,) = desk.of(Turn)
    assert (turn.kind, turn.first_sound_s, turn.first_moving_frame_s) == ("turn", 0.02, 0.99)
    assert turn.look_ahead_s == pytest.approx(0.54), "the chunk's sound was complete at 0.56 s"


def test_a_turn_is_written_whichever_is_told_first() -> None:
    desk = Desk()
    desk.say(3.0)
    desk.recorder.expect_turn("cold", -4.0, sound_from_s=0.02)
    desk.now_s = 0.9
    desk.show(0.0, kind="speech", utterance=0)
    desk.recorder.on_chunk(made())
    (turn,) = desk.of(Turn)
    assert (turn.kind, turn.first_sound_s, turn.first_moving_frame_s) == ("cold", -4.0, 0.9)
    assert turn.look_ahead_s == pytest.approx(0.54)


def test_events_of_any_make_become_json(tmp_path: Path) -> None:
    desk = Desk()
    told = {"event": "odd", "code": "X", "at_s": 1.0, "path": Path("a"), "nan": float("nan"), "many": (1, float("inf"))}
    desk.recorder.on_event(told)
    desk.recorder.on_event({"event": "quality", "code": None, "is_better": False})
    desk.recorder.on_event({"event": "quality", "code": None, "is_better": True})
    assert desk.recorder.tally.lowered == 1
    with TraceWriter(tmp_path / "t", RUN) as writer:
        for line in desk.of(Event):
            writer.write(line)
    assert read_trace(tmp_path / "t").events[0].details == {"path": "a", "nan": "nan", "many": [1, "Infinity"]}


def test_lines_wait_for_the_first_and_stop_at_the_last(tmp_path: Path) -> None:
    log = TraceLog()
    log.write(SoundBlock(1.0, 1.0, 320))
    with TraceWriter(tmp_path / "t", RUN) as writer:
        log.begin(writer)
        log.write(SoundBlock(2.0, 2.0, 320))
        log.end()
        log.write(SoundBlock(3.0, 3.0, 320))
    log.write(SoundBlock(4.0, 4.0, 320))
    assert [block.intended_s for block in read_trace(tmp_path / "t").sound_blocks] == [1.0, 2.0]
