# SPDX-License-Identifier: Apache-2.0
"""`Live` whole, with its own threads and clock, on a face that shows what it hears. A test lasts about a second."""

import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgereels.runtime.clock import MonotonicClock
from edgereels.runtime.errors import EdgereelsError, MediaError, NotFiniteError, UsageError
from edgereels.runtime.live_face import LiveFace
from edgereels.runtime.live_generator import Generator
from edgereels.runtime.live_outputs import to_callback, to_file
from edgereels.runtime.live_player import DRAWING_S
from edgereels.runtime.live_reports import ChunkMade, ShownMedia
from edgereels.runtime.live_settings import LiveSettings
from edgereels.runtime.live_sinks import SinkClosed
from edgereels.runtime.live_state import State
from edgereels.runtime.sources import OnBlock, ThreadedSource, WavSource

from .fake_room import LOUD, LOW, QUIET, FakeRoom, Viewer, bursts, is_loud, open_live

PATTERN = [0, 1, 5, 6, 7, 13, 14, 20, 21, 22, 23, 27]
SPEECH = bursts(PATTERN, count=30)


def loud_frames(viewer: Viewer) -> list[int]:
    return [media.index for media in viewer.spoken if is_loud(media)]


def push_in_blocks(live: Any, sound: np.ndarray, *, block: int) -> None:
    for first in range(0, len(sound), block):
        live.push(sound[first : first + block])
    live.end_utterance()


# ── What is seen is what is heard ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(37, id="crumbs", marks=pytest.mark.slow),
        pytest.param(640, id="frames"),
        pytest.param(50_000, id="whole", marks=pytest.mark.slow),
    ],
)
def test_every_frame_shows_its_own_sound_however_it_was_pushed(block: int) -> None:
    room, viewer = FakeRoom(), Viewer()
    with open_live(room, viewer) as live:
        push_in_blocks(live, SPEECH, block=block)
        assert live.wait_idle(10)
        assert live.state is State.READY
    assert loud_frames(viewer) == PATTERN
    assert viewer.out_of_step() == 0
    assert [media.index for media in viewer.spoken] == list(range(len(viewer.spoken)))
    assert len(viewer.spoken) >= 30 + 6  # and a way back to rest
    assert viewer.seen[-1].kind == "rest" and live.state is State.STOPPED
    assert room.closed == 1


@pytest.mark.slow
def test_a_face_that_lags_is_caught_by_the_same_measure() -> None:
    viewer = Viewer()
    with open_live(FakeRoom(), viewer) as live:
        push_in_blocks(live, SPEECH, block=640)
        live.wait_idle(10)
    late = sum(is_loud(a) != (np.abs(b.sound).max() > 0.01) for a, b in pairwise(viewer.spoken))
    assert late >= 8


@pytest.mark.slow
def test_sound_of_another_rate_comes_out_in_step() -> None:
    viewer = Viewer()
    with open_live(FakeRoom(), viewer) as live:
        sound = bursts(PATTERN, count=30, rate=24000)
        live.push((sound * 32767).astype(np.int16)[:, None], 24000)
        live.end_utterance()
        assert live.wait_idle(10)
    assert set(PATTERN) <= set(loud_frames(viewer))
    assert viewer.out_of_step() <= 12  # the resampler's ringing reaches into the frames beside a burst


@pytest.mark.slow
def test_utterances_follow_each_other_and_rest_in_between() -> None:
    viewer = Viewer()
    with open_live(FakeRoom(), viewer) as live:
        for _number in range(2):
            push_in_blocks(live, bursts([2, 3], count=8), block=640)
            assert live.wait_idle(10)
    by_utterance = {media.utterance for media in viewer.spoken}
    assert by_utterance == {0, 1}
    kinds = "".join(media.kind[0] for media in viewer.seen)
    assert "rs" in kinds.replace("h", "") and kinds.endswith("r")


@pytest.mark.slow
def test_frames_come_at_their_time() -> None:
    viewer = Viewer()
    stamps: list[float] = []
    with open_live(
        FakeRoom(), viewer, outputs=[to_callback(lambda media: stamps.append(time.perf_counter() - media.due_s))]
    ):
        time.sleep(1.0)
    assert 20 <= len(stamps) <= 30
    assert min(stamps) > -DRAWING_S - 0.001 and float(np.median(stamps)) < 0.02


# ── Never ahead of the sound ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_chunk_hears_nothing_that_had_not_arrived(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "speech.wav", np.tile(SPEECH, 2), 16000, subtype="PCM_16")
    chunks: list[ChunkMade] = []
    source = WavSource(tmp_path / "speech.wav", MonotonicClock())
    began_s = time.perf_counter()
    with open_live(FakeRoom(), Viewer(), source=source, on_chunk=chunks.append) as live:
        assert live.wait_over(20)
    first = chunks[0]
    assert first.needed_sample >= (17 - 5 + 2) * 640  # what the window needs by construction
    for chunk in chunks:
        assert chunk.needed_sample / 16000 <= chunk.audio_ready_s - began_s + 0.021
        assert chunk.intended_s <= chunk.audio_ready_s <= chunk.start_s <= chunk.ready_s
        assert sum(chunk.stages.values()) + sum(chunk.waits.values()) == pytest.approx(
            chunk.ready_s - chunk.audio_ready_s, abs=2e-3
        )


def test_time_that_nobody_measures_belongs_to_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, chunks = Generator._goes_on, list[ChunkMade]()

    def slow(generator: Generator, turn: Any) -> bool:
        time.sleep(0.05)
        return goes_on(generator, turn)

    monkeypatch.setattr(Generator, "_goes_on", slow)
    with open_live(FakeRoom(), Viewer(), on_chunk=chunks.append) as live:
        live.push(bursts([1], count=20))
        live.end_utterance()
        assert live.wait_idle(10)
    for chunk in chunks:
        assert sum(chunk.stages.values()) <= chunk.ready_s - chunk.start_s - 0.05 * len(chunk.pieces) + 1e-3


@pytest.mark.slow
def test_first_frames_that_are_late_get_more_time_and_cost_no_quality() -> None:
    room, events = FakeRoom(), list[dict[str, Any]]()
    late: list[int] = []
    with open_live(room, Viewer(), on_event=events.append) as live:
        for needs_s in (0.45, 0.75, 0.3):  # more than 0.28 s, more than it may become, less than it has become
            room.plan[room.windows_made] = needs_s
            live.push(bursts([1], count=20))
            live.end_utterance()
            assert live.wait_idle(10)
            late.append(live.counts.late_chunks)
    assert late == [1, 2, 2]
    codes = [event["code"] for event in events]
    assert "S_ALLOWANCE" in codes and "S_QUALITY" not in codes and "S_TOO_SLOW" not in codes


# ── Pieces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_decoded_is_on_before_the_rest_of_its_chunk_is_there() -> None:
    """The second piece of every window takes longer than the first has reserve; the face doesn't wait for it."""
    viewer, chunks = Viewer(), list[ChunkMade]()
    with open_live(FakeRoom(between_s=0.12), viewer, on_chunk=chunks.append) as live:
        live.push(bursts([3, 20], count=30))
        live.end_utterance()
        assert live.wait_idle(10)
    for chunk in chunks:
        assert [piece.frames for piece in chunk.pieces] == [4, chunk.frames - 4]
        assert chunk.start_s <= chunk.pieces[0].ready_s < chunk.pieces[1].ready_s - 0.1
        assert chunk.pieces[1].ready_s == chunk.ready_s and not chunk.missed
    assert viewer.out_of_step() == 0
    assert [media.index for media in viewer.spoken] == list(range(sum(chunk.frames for chunk in chunks)))


def test_a_fault_between_two_pieces_costs_the_second_alone() -> None:
    viewer, chunks, room = Viewer(), list[ChunkMade](), FakeRoom(broken_between={1: NotFiniteError("a test")})
    with open_live(room, viewer, on_chunk=chunks.append) as live:
        live.push(bursts([2, 14, 20, 30], count=40))
        live.end_utterance()
        assert live.wait_idle(10)
    assert [piece.frames for piece in chunks[1].pieces] == [4, 8]
    assert [media.index for media in viewer.spoken] == list(range(sum(chunk.frames for chunk in chunks)))
    seen = {media.index: is_loud(media) for media in viewer.spoken}
    assert [index for index, loud in seen.items() if loud] == [2, 14, 30]  # 20 was lost, its sound was not
    assert np.abs([media.sound for media in viewer.spoken][20]).max() > 0.1
    # The decoder goes on where it made the last frame that is shown: not in the first window, nor after the fault.
    assert room.went_on[:4] == [False, True, False, True]


# ── Interruption ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_an_interruption_stops_sound_and_mouth_within_a_frame() -> None:
    room, viewer = FakeRoom(), Viewer()
    with open_live(room, viewer) as live:
        push_in_blocks(live, bursts(range(200), count=200), block=3200)
        while len(viewer.spoken) < 15:
            time.sleep(0.01)
        live.interrupt()
        cut_s = live.position_s()
        assert live.wait_idle(10)
    after = [media for media in viewer.seen if media.media_s > cut_s + 0.04]
    assert after and not any(is_loud(media) and media.kind == "speech" for media in after)
    assert not any(np.abs(media.sound).max() > 0 for media in after)
    assert len(viewer.spoken) < 100 and viewer.seen[-1].kind == "rest"
    assert LOUD in room.began_from  # the way back begins at the face as it was


@pytest.mark.slow
def test_what_is_said_after_an_interruption_begins_where_the_face_is() -> None:
    room, viewer = FakeRoom(), Viewer()
    with open_live(room, viewer) as live:
        push_in_blocks(live, bursts(range(100), count=100), block=3200)
        while len(viewer.spoken) < 15:
            time.sleep(0.01)
        live.interrupt()
        made = room.windows_made
        push_in_blocks(live, bursts([20], count=24), block=640)
        assert live.wait_idle(10)
    assert room.began_from[made] == LOUD or LOUD in room.began_from[made : made + 2]
    assert loud_frames(viewer)[-1] == 20 and viewer.spoken[-1].utterance != viewer.spoken[0].utterance


@pytest.mark.slow
def test_nothing_of_what_was_pushed_before_an_interruption_is_said_after_it() -> None:
    """Even where much more was pushed than is taken at once, so that some of it is on its way."""
    viewer = Viewer()
    with open_live(FakeRoom(), viewer) as live:
        for _second in range(25):
            live.push(bursts(range(25), count=25))
        while len(viewer.spoken) < 5:
            time.sleep(0.01)
        live.interrupt()
        push_in_blocks(live, bursts([20], count=30), block=640)
        assert live.wait_idle(10)
    last = [media for media in viewer.spoken if media.utterance == viewer.spoken[-1].utterance]
    assert [media.index for media in last if is_loud(media)] == [20]
    assert [media.index for media in last if np.abs(media.sound).max() > 0] == [20]


@pytest.mark.slow
def test_the_way_back_to_rest_gives_way_to_what_is_said_next() -> None:
    viewer, chunks = Viewer(), list[ChunkMade]()
    with open_live(FakeRoom(), viewer, on_chunk=chunks.append) as live:
        push_in_blocks(live, bursts(range(100), count=100), block=3200)
        while len(viewer.spoken) < 15:
            time.sleep(0.01)
        live.interrupt()
        time.sleep(0.15)  # the way back is made, and not shown yet
        cut_s = live.position_s()
        push_in_blocks(live, bursts([0, 1], count=24), block=640)
        assert live.wait_idle(10)
    newest = viewer.spoken[-1].utterance
    begins_s = next(media.media_s for media in viewer.spoken if media.utterance == newest)
    assert begins_s - cut_s < live.latency.allowance_s + 0.15


# ── Faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_window_of_nan_costs_one_chunk() -> None:
    room, viewer, events = FakeRoom(plan={1: NotFiniteError("NaN")}), Viewer(), list[dict[str, Any]]()
    with open_live(room, viewer, on_event=events.append) as live:
        push_in_blocks(live, SPEECH, block=640)
        assert live.wait_idle(10)
        assert live.state is State.READY
    lost = [media.index for media in viewer.spoken if is_loud(media) != (media.index in PATTERN)]
    assert lost and all(12 <= index < 24 for index in lost)  # the second chunk's, and no other
    sounds = np.concatenate([media.sound for media in viewer.spoken])[: len(SPEECH)]
    assert np.array_equal(sounds, SPEECH)  # the sound goes on
    codes = [event["code"] for event in events]
    assert codes.count("S_NONFINITE") >= 1 and "S_RECOVERED" in codes and room.opened == 1


@pytest.mark.slow
def test_an_engine_that_fails_is_opened_anew() -> None:
    room, viewer = FakeRoom(plan={1: RuntimeError("out of memory")}, broken_openings=1), Viewer()
    with open_live(room, viewer) as live:
        push_in_blocks(live, SPEECH, block=640)
        assert live.wait_idle(20)
        assert live.state is State.READY
    assert room.opened == 3  # at first, in vain, and again
    assert [index for index in loud_frames(viewer) if index >= 24] == [27]


@pytest.mark.slow
def test_an_engine_that_always_fails_ends_the_stream_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgereels.runtime.recovery.BACKOFF_S", (0.01,))
    room = FakeRoom(plan={number: RuntimeError("gone") for number in range(100)})
    with open_live(room, Viewer()) as live:
        live.push(np.tile(SPEECH, 10))
        live.end_utterance()
        with pytest.raises(EdgereelsError, match="gone"):
            live.wait_over(30)
        assert live.state is State.FAILED
    assert live.state is State.FAILED


@pytest.mark.slow
def test_a_slow_machine_gives_up_quality_and_never_stands_still() -> None:
    better = LiveSettings(17, 5, 0, 2)
    room, viewer, events = FakeRoom(cost_s=0.55, settings=(better, LOW)), Viewer(), list[dict[str, Any]]()
    room_face = room.open
    room.open = lambda: _with_costs(room_face(), {better: 0.3, LOW: 0.1})  # type: ignore[method-assign]
    with open_live(room, viewer, on_event=events.append) as live:
        live.push(bursts(range(0, 120, 3), count=120))
        live.end_utterance()
        assert live.wait_idle(20)
    codes = [event["code"] for event in events]
    assert "S_LATE" in codes and "S_QUALITY" in codes and LOW in room.used
    assert loud_frames(viewer) == list(range(0, 120, 3))  # late, and all of it
    media = [each.media_s for each in viewer.seen]
    assert np.diff(media).max() < 0.041  # a picture in every slot
    assert live.counts.stalls >= 1


@pytest.mark.slow
def test_a_longer_window_in_mid_speech_is_due_as_much_later_as_its_sound_takes(tmp_path: Path) -> None:
    balanced, chunks = LiveSettings(33, 5, 4, 1), list[ChunkMade]()
    soundfile.write(tmp_path / "speech.wav", bursts(range(0, 220, 3), count=220), 16000, subtype="PCM_16")
    source = WavSource(tmp_path / "speech.wav", MonotonicClock())
    room = FakeRoom(cost_s=0.5, settings=(LOW, balanced))
    with open_live(room, Viewer(), source=source, on_chunk=chunks.append) as live:
        assert live.wait_over(30)
    change = [chunk.look_ahead_s for chunk in chunks].index(balanced.look_ahead_frames / 25)
    before, after = chunks[change - 1 : change + 1]
    wait_s = balanced.first_frame_s - LOW.first_frame_s
    assert after.due_s - before.due_s == pytest.approx(before.frames / 25 + wait_s, abs=0.05)
    assert not after.missed and after.pieces[0].ready_s > before.due_s + before.frames / 25, "or it needn't wait"


@pytest.mark.slow
def test_half_the_frames_stay_in_step() -> None:
    half = LiveSettings(17, 5, 0, 1, repeat=2)
    room, viewer = FakeRoom(settings=(half,)), Viewer()
    with open_live(room, viewer) as live:
        push_in_blocks(live, bursts([2, 3, 8, 9, 26, 27], count=34), block=640)
        assert live.wait_idle(10)
    assert loud_frames(viewer) == [2, 3, 8, 9, 26, 27] and viewer.out_of_step() == 0
    levels = [is_loud(media) for media in viewer.spoken]
    assert levels[::2] == levels[1::2]


def _with_costs(face: LiveFace, whole_s: dict[LiveSettings, float]) -> LiveFace:
    return replace(face, costs={each: replace(face.costs[each], whole_s=one) for each, one in whole_s.items()})


@pytest.mark.slow
def test_an_utterance_that_nobody_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgereels.runtime.live_generator.STARVED_S", 0.3)
    viewer, events = Viewer(), list[dict[str, Any]]()
    with open_live(FakeRoom(), viewer, on_event=events.append) as live:
        live.push(bursts([3], count=10))
        assert live.wait_idle(10)
        live.push(bursts([3], count=10))
        live.end_utterance()
        assert live.wait_idle(10)
    assert [event["code"] for event in events].count("S_STARVED") == 1
    assert {media.utterance for media in viewer.spoken} == {0, 1}


def test_what_a_listener_gets_wrong_ends_nothing() -> None:
    def listen(_event: dict[str, Any]) -> None:
        raise OSError("no space left on the device")

    viewer = Viewer()
    with open_live(FakeRoom(), viewer, on_event=listen) as live:
        push_in_blocks(live, bursts([2], count=8), block=640)
        assert live.wait_idle(10) and live.state is State.READY
    assert loud_frames(viewer) == [2]


def test_a_listener_may_end_the_stream(tmp_path: Path) -> None:
    pytest.importorskip("av")
    calls: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        if event.get("code") in ("S_UTTERANCE", "S_STOPPED"):
            calls.append(event["code"])
            live.stop()

    with open_live(FakeRoom(), Viewer(), outputs=[to_file(tmp_path / "talk.mp4")], on_event=listen) as live:
        live.push(SPEECH[:16000])  # in one piece: once the first is heard, the next would be refused
        began_s = time.perf_counter()
        while live.state is not State.STOPPED and time.perf_counter() - began_s < 3:
            time.sleep(0.01)
    assert calls == ["S_UTTERANCE", "S_STOPPED"] and live.state is State.STOPPED
    assert (tmp_path / "talk.mp4").exists() and not (tmp_path / "talk.mp4.partial").exists()


def test_a_listener_and_the_program_may_end_the_stream_at_once() -> None:
    speaks, ends = threading.Event(), threading.Event()

    def listen(event: dict[str, Any]) -> None:
        if event.get("code") == "S_UTTERANCE":
            speaks.set()
            ends.wait(5)
            time.sleep(0.1)  # the program is inside `stop` now
            live.stop()

    with open_live(FakeRoom(), Viewer(), on_event=listen) as live:
        live.push(SPEECH)
        assert speaks.wait(5)
        began_s = time.perf_counter()
        ends.set()
        live.stop()
        took_s = time.perf_counter() - began_s
    assert took_s < 2 and live.state is State.STOPPED


def test_sound_that_comes_late_is_no_slow_machine() -> None:
    events = list[dict[str, Any]]()
    better = LiveSettings(17, 5, 0, 2)
    room = FakeRoom(settings=(better, LOW))
    with open_live(room, Viewer(), on_event=events.append) as live:
        for _sentence in range(3):
            live.push(bursts([3], count=20))
            time.sleep(1.3)
        live.end_utterance()
        assert live.wait_idle(10)
    codes = [event["code"] for event in events]
    assert codes.count("S_LATE") >= 2 and "S_QUALITY" not in codes and set(room.used) == {better}


def test_what_is_wrong_with_a_listener_to_chunks_ends_nothing() -> None:
    def listen(_chunk: ChunkMade) -> None:
        raise OSError("no space left on the device")

    viewer = Viewer()
    with open_live(FakeRoom(), viewer, on_chunk=listen) as live:
        push_in_blocks(live, bursts([2, 20], count=30), block=640)
        assert live.wait_idle(10) and live.state is State.READY
    assert loud_frames(viewer) == [2, 20]


def test_a_source_that_fails_is_told() -> None:
    class Broken(ThreadedSource):
        def _produce(self, on_block: OnBlock) -> None:
            raise OSError("the network is gone")

    events = list[dict[str, Any]]()
    with open_live(FakeRoom(), Viewer(), source=Broken(), on_event=events.append) as live:
        with pytest.raises(EdgereelsError, match="the network is gone"):
            live.wait_over(5)
        assert live.state is State.DEGRADED and live.causes == ("S_SOURCE",)
    assert [event["message"] for event in events if event["code"] == "S_SOURCE" and event["event"] == "source_failed"]


@pytest.mark.slow
def test_pushing_into_a_stream_that_has_failed_is_refused_and_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgereels.runtime.recovery.BACKOFF_S", (0.01,))
    room = FakeRoom(plan={number: RuntimeError("gone") for number in range(100)})
    with open_live(room, Viewer()) as live:
        began_s = time.perf_counter()
        with pytest.raises(UsageError, match="FAILED"):
            while time.perf_counter() - began_s < 20:
                live.push(SPEECH)
                time.sleep(0.01)


# ── Outputs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_an_output_that_breaks_harms_no_other() -> None:
    def break_down(_media: ShownMedia) -> None:
        raise OSError("the cable was pulled")

    viewer, events = Viewer(), list[dict[str, Any]]()
    with open_live(
        FakeRoom(), viewer, outputs=[to_callback(break_down, name="broken")], on_event=events.append
    ) as live:
        push_in_blocks(live, SPEECH, block=640)
        assert live.wait_idle(10)
        assert live.state is State.DEGRADED and live.causes == ("S_FAILED",)
    assert loud_frames(viewer) == PATTERN
    assert [event["sink"] for event in events if event["event"] == "sink_failed"] == ["broken"]


def test_a_closed_window_ends_the_wait() -> None:
    def close(_media: ShownMedia) -> None:
        raise SinkClosed("the window was closed", code="WINDOW_CLOSED")

    with open_live(FakeRoom(), Viewer(), outputs=[to_callback(close)]) as live:
        began_s = time.perf_counter()
        assert live.wait_over(10)
        assert time.perf_counter() - began_s < 2


@pytest.mark.slow
def test_it_ends_within_two_seconds_with_a_sink_that_hangs_and_a_whole_file(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    hang = threading.Event()
    with open_live(
        FakeRoom(),
        Viewer(),
        outputs=[to_file(tmp_path / "talk.mp4"), to_callback(lambda _media: hang.wait(), limit_s=0.1)],
    ) as live:
        push_in_blocks(live, SPEECH, block=640)
        live.wait_idle(10)
        began_s = time.perf_counter()
        live.stop()
        took_s = time.perf_counter() - began_s
        hang.set()
    assert took_s < 2.0
    with av.open(str(tmp_path / "talk.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24")[0, 0, 0] for frame in film.decode(video=0)]
    loud = [number for number, level in enumerate(frames) if level > 100]
    assert len(loud) == len(PATTERN) and np.array_equal(np.diff(loud), np.diff(PATTERN))
    assert not (tmp_path / "talk.mp4.partial").exists()


# ── Wrong use ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_that_has_not_begun_or_has_ended_says_so() -> None:
    live = open_live(FakeRoom(), Viewer())
    with pytest.raises(UsageError, match="inside `with`"):
        live.position_s()
    with live:
        pass
    live.stop()
    with pytest.raises(UsageError, match="has run already"), live:
        pass
    with pytest.raises(UsageError, match="STOPPED"):
        live.push(SPEECH)


def test_pushing_into_a_stream_with_a_source_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "speech.wav", SPEECH, 16000)
    source = WavSource(tmp_path / "speech.wav", MonotonicClock())
    with open_live(FakeRoom(), Viewer(), source=source) as live:
        with pytest.raises(UsageError, match="leave the source out"):
            live.push(SPEECH)
        with pytest.raises(UsageError, match="leave the source out"):
            live.end_utterance()


def test_a_source_that_fails_is_told_at_the_end() -> None:
    class Broken:
        def start(self, on_block: Any, on_end: Any) -> None:
            on_end(MediaError("the file ends in the middle"))

        def stop(self) -> None:
            return None

    with open_live(FakeRoom(), Viewer(), source=Broken()) as live, pytest.raises(MediaError, match="in the middle"):
        live.wait_over(5)


def test_an_output_that_can_not_be_opened_stops_it_before_anything_runs(tmp_path: Path) -> None:
    room = FakeRoom()
    with pytest.raises(EdgereelsError), open_live(room, Viewer(), outputs=[to_file(tmp_path / "nowhere" / "talk.mp4")]):
        pass
    assert room.opened == 0 and room.closed == 1


def test_words_that_are_none_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    room = FakeRoom()
    with pytest.raises(UsageError, match="show, drop, hold"):
        open_live(room, Viewer(), late="never")
    with pytest.raises(UsageError, match="the same file"):
        open_live(room, Viewer(), outputs=[to_file(tmp_path / "a.mp4"), to_file(tmp_path / "a.mp4")])
    with pytest.raises(UsageError, match="more than 0"):
        to_callback(print, limit_s=0)
    assert open_live(room, Viewer(), late="drop") and room.opened == 0


def test_the_wait_for_idle_has_an_end() -> None:
    with open_live(FakeRoom(plan={0: 0.5}), Viewer()) as live:
        live.push(SPEECH)
        assert not live.wait_idle(0.1)
        assert QUIET < LOUD
