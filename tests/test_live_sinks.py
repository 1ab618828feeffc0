# SPDX-License-Identifier: Apache-2.0
import gc
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from edgereels.runtime.errors import OutputError
from edgereels.runtime.frame_queue import FrameQueue
from edgereels.runtime.live_sinks import CallbackSink, LiveSink, SinkClosed, SinkWorker

MEDIA = SimpleNamespace(frames=np.zeros((1, 8, 8, 3), np.uint8), sound=np.zeros(640, np.float32))


class DiaryOfASink(LiveSink):
    def __init__(self, *, fails_at: str = "", error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self._fails_at, self._error = fails_at, error or RuntimeError("broken")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())
        if call == self._fails_at:
            raise self._error

    def __enter__(self):
        self._note("open")
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._note("close")

    def write(self, media) -> None:
        self._note("write")


def worker_of(sink: LiveSink, events: list[dict], *, policy="block") -> tuple[SinkWorker, FrameQueue]:
    queue = FrameQueue(1.0, policy=policy)
    return SinkWorker(sink, queue, name="test", on_event=events.append), queue


def names(events: list[dict]) -> list[tuple[str, str]]:
    return [(event["event"], event["code"]) for event in events]


def test_everything_reaches_the_function_in_order() -> None:
    got, events = [], []
    worker, queue = worker_of(CallbackSink(got.append), events)
    worker.start()
    sent = [SimpleNamespace(number=number) for number in range(50)]
    assert all(queue.put(media, duration_s=0.04) for media in sent)
    assert worker.stop(timeout_s=5)
    assert got == sent
    assert names(events) == [("sink_ended", "S_ENDED")]
    assert (events[0]["taken"], events[0]["dropped"]) == (50, 0)


def test_a_sink_lives_in_one_thread_that_is_not_ours() -> None:
    sink = DiaryOfASink()
    worker, queue = worker_of(sink, [])
    worker.start()
    queue.put(MEDIA, duration_s=0.04)
    worker.stop(timeout_s=5)
    assert sink.calls == ["open", "write", "close"]
    assert len(sink.threads) == 1 and threading.get_ident() not in sink.threads


def test_a_sink_may_be_served_on_the_thread_that_calls() -> None:
    sink = DiaryOfASink()
    worker, queue = worker_of(sink, [])
    queue.put(MEDIA, duration_s=0.04)
    queue.close()
    worker.run()
    assert sink.threads == {threading.get_ident()}


def test_what_opening_raises_is_raised_before_anything_starts() -> None:
    events: list[dict] = []
    worker, queue = worker_of(DiaryOfASink(fails_at="open", error=OutputError("no screen")), events)
    with pytest.raises(OutputError, match="no screen"):
        worker.start()
    assert not queue.put(MEDIA, duration_s=0.04)
    assert events == []


@pytest.mark.parametrize("fails_at", ["write", "close"])
def test_a_sink_that_fails_is_closed_and_told_and_the_others_go_on(fails_at: str) -> None:
    events, got = [], []
    broken = DiaryOfASink(fails_at=fails_at)
    broken_worker, broken_queue = worker_of(broken, events)
    good_worker, good_queue = worker_of(CallbackSink(got.append), [])
    for worker in (broken_worker, good_worker):
        worker.start()
    for _ in range(50):
        broken_queue.put(MEDIA, duration_s=0.04)
        assert good_queue.put(MEDIA, duration_s=0.04)
    assert broken_worker.stop(timeout_s=5) and good_worker.stop(timeout_s=5)
    assert broken.calls[0] == "open" and broken.calls[-1] == "close" and broken.calls.count("close") == 1
    assert names(events) == [("sink_failed", "S_FAILED"), ("sink_ended", "S_ENDED")]
    assert events[0]["message"] == "broken" and events[0]["error"] == "RuntimeError"
    assert len(got) == 50


def test_the_code_of_an_error_is_told() -> None:
    error = OutputError("full")
    error.code = "S_DISK_FULL"  # type: ignore[attr-defined]
    events: list[dict] = []
    worker, queue = worker_of(DiaryOfASink(fails_at="write", error=error), events)
    worker.start()
    queue.put(MEDIA, duration_s=0.04)
    worker.stop(timeout_s=5)
    assert names(events)[0] == ("sink_failed", "S_DISK_FULL")


def test_a_sink_that_the_other_side_ends_has_not_failed() -> None:
    events: list[dict] = []
    sink = DiaryOfASink(fails_at="write", error=SinkClosed("closed", code="WINDOW_CLOSED"))
    worker, queue = worker_of(sink, events)
    worker.start()
    queue.put(MEDIA, duration_s=0.04)
    worker.stop(timeout_s=5)
    assert names(events) == [("sink_closed", "WINDOW_CLOSED"), ("sink_ended", "S_ENDED")]
    assert worker.error is None


def test_a_sink_that_hangs_holds_nobody_up() -> None:
    """Its queue stays bounded, the end doesn't wait for it, and it is told."""
    events: list[dict] = []
    began, hang = threading.Event(), threading.Event()

    def wait_for_ever(_media: object) -> None:
        began.set()
        hang.wait(10)

    worker, queue = worker_of(CallbackSink(wait_for_ever), events, policy="drop_oldest")
    worker.start()
    queue.put(MEDIA, duration_s=0.04)
    assert began.wait(5)
    for _ in range(200):
        assert queue.put(MEDIA, duration_s=0.04)
    assert queue.held_s <= 1.0 + 1e-6
    assert queue.counts.dropped == 175
    assert not worker.stop(timeout_s=0.05, drain=False)
    assert ("sink_stuck", "S_STUCK") in names(events)
    hang.set()
    assert worker.stop(timeout_s=5, drain=False)


def test_an_idle_sink_is_asked_for_a_sign_of_life() -> None:
    asked = threading.Event()

    class Idle(LiveSink):
        def idle(self) -> None:
            asked.set()

    worker, _queue = worker_of(Idle(), [])
    worker.start()
    assert asked.wait(5)
    worker.stop(timeout_s=5)


def test_opening_and_closing_leaves_no_thread_and_no_file() -> None:
    def open_and_close() -> None:
        worker, queue = worker_of(CallbackSink(lambda _media: None), [])
        worker.start()
        queue.put(MEDIA, duration_s=0.04)
        assert worker.stop(timeout_s=5)

    open_and_close()
    before = threading.active_count(), count_files()
    for _ in range(200):
        open_and_close()
    gc.collect()
    assert (threading.active_count(), count_files()) == before


def count_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
