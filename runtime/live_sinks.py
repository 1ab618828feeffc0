# SPDX-License-Identifier: Apache-2.0
"""What a live stream flows into: the contract of a sink, the thread that serves one, and the sink that is a function.

::

    queue = FrameQueue(1.0, policy="block", name="file")
    worker = SinkWorker(RecordingSink(path, ...), queue, name="file", on_event=tell)
    worker.start()                      # raises here if the sink can't be opened
    queue.put(media, duration_s=0.04)   # frames with their sound
    worker.stop(timeout_s=2)
"""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from .frame_queue import FrameQueue, OnEvent


class Media(Protocol):
    """Frames with the sound of the same span; a `LiveChunk` is one."""

    @property
    def frames(self) -> npt.NDArray[np.uint8]:
        """Shape (T, H, W, 3), RGB."""
        ...

    @property
    def sound(self) -> npt.NDArray[np.float32]:
        """Shape (T x samples per frame,), mono."""
        ...


class SinkClosed(Exception):  # noqa: N818 - no error: the other side ended it
    """The other side ended the sink: somebody closed the window. `code` says how."""

    def __init__(self, message: str, *, code: str = "S_CLOSED") -> None:
        super().__init__(message)
        self.code = code


class LiveSink:
    """Takes media in order. Everything is called from one thread, the one that opened it with `with`.

    Leaving the `with` block closes the sink; what can be kept of a recording is kept, whatever the reason.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def write(self, media: Media) -> None:
        """Take what comes next.

        Raises:
            SinkClosed: nothing more is wanted.
        """
        raise NotImplementedError

    def idle(self) -> None:
        """Called about every `IDLE_S` while nothing comes, for sinks that must answer to somebody. May raise too."""


class CallbackSink(LiveSink):
    """Hands media to a function of the host program, from the worker's thread. What it raises ends this sink only."""

    def __init__(self, function: Callable[[Media], None]) -> None:
        self._function = function

    def write(self, media: Media) -> None:
        """Call the function."""
        self._function(media)


IDLE_S = 0.05
"""A window's keys are read at least this often, seconds."""


FINISHING_S = 0.6
"""What a file is given to be finished in, after the last frame was written."""


class SinkWorker:
    """Serves one sink from its queue, in a thread of its own, so that a slow or broken sink harms no other."""

    def __init__(
        self,
        sink: LiveSink,
        queue: FrameQueue[Any],
        *,
        name: str = "sink",
        on_event: OnEvent | None = None,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            sink: opened, served and closed by the worker.
            queue: where its media comes from; closed when the sink ends, so that `put` returns False from then on.
            name: of the sink, for the events.
            on_event: told `sink_failed` with the code of the error, `sink_closed` when the other side ended it, and
                `sink_ended` with the counts of the queue; from the worker's thread.
            now_s: clock reading for the events, seconds.
        """
        self._sink, self._queue, self._name = sink, queue, name
        self._on_event, self._now_s = on_event, now_s
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._opened = False
        self.error: Exception | None = None
        """What ended the sink, if it failed."""

    def start(self) -> None:
        """Open the sink in a thread of its own and serve it there; what opening raises is raised here."""
        self._thread = threading.Thread(target=self.run, name=f"edgereels-{self._name}", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self.error is not None and not self._opened:
            self._thread.join()
            raise self.error

    def run(self) -> None:
        """Open and serve the sink in this thread until its queue is closed and empty, or the sink ends.

        For a window where the system wants it on the main thread (macOS); otherwise `start` calls it. Raises nothing:
        `error` holds what happened.
        """
        try:
            with self._sink:
                self._opened = True
                self._ready.set()
                self._serve()
        except SinkClosed as ended:
            self._tell("sink_closed", ended.code, message=str(ended))
        except Exception as error:  # whatever a sink raises must not reach the others; it is told, with its type
            self.error = error
            if self._opened:
                code = getattr(error, "code", None) or "S_FAILED"
                self._tell("sink_failed", str(code), error=type(error).__name__, message=str(error))
        finally:
            self._queue.close()
            self._queue.clear()
            if self._opened:
                self._tell("sink_ended", "S_ENDED", **asdict(self._queue.counts))
            self._ready.set()

    def stop(self, *, timeout_s: float, drain: bool = True) -> bool:
        """End the sink and wait for it; return whether it ended in time.

        Args:
            timeout_s: longest wait; of what is queued after all but `FINISHING_S` of it nothing more is written, so
                that there is time to finish a file. A sink that hangs is left behind with an event `sink_stuck`, and
                its thread doesn't keep the process alive.
            drain: whether what is queued is still written; a window needs it not.
        """
        self._queue.close()
        if not drain:
            self._queue.clear()
        if self._thread is None or self._thread is threading.current_thread():
            return True
        self._thread.join(max(0.0, timeout_s - FINISHING_S))
        self._queue.clear()
        self._thread.join(min(timeout_s, FINISHING_S))
        if self._thread.is_alive():
            self._tell("sink_stuck", "S_STUCK", waited_s=timeout_s)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            media = self._queue.get(timeout_s=IDLE_S)
            if media is not None:
                self._sink.write(media)
            elif self._queue.closed:
                return
            else:
                self._sink.idle()

    def _tell(self, event: str, code: str, **fields: Any) -> None:
        if self._on_event is not None:
            self._on_event({"event": event, "code": code, "at_s": self._now_s(), "sink": self._name, **fields})
