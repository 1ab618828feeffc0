# SPDX-License-Identifier: Apache-2.0
"""Where a live stream goes to: what a program asks for, and the queue and the thread that serve it.

Every output has a queue of its own, bounded in seconds, with a policy for when it is slow; what doesn't fit is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError
from .frame_queue import FrameQueue, OnEvent, Policy
from .live_reports import ShownMedia
from .live_sinks import CallbackSink, LiveSink, SinkWorker
from .recording import RecordingSink
from .video_window import VideoWindow


@dataclass(frozen=True)
class LiveFormat:
    """What flows into the outputs."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fps: int
    """Frames per second."""
    sample_rate: int
    """Of the sound, Hz."""
    comment: str
    """What files say about themselves."""


@dataclass(frozen=True)
class Output:
    """An output that is not open yet."""

    name: str
    """For events."""
    make: Callable[[LiveFormat, OnEvent | None], LiveSink]
    """Called with the format when the stream begins; checks what can be checked before work starts."""
    limit_s: float
    """Most that waits for it, seconds of media."""
    policy: Policy
    """When it is slow: `drop_oldest` or `block`."""
    drain: bool
    """Whether what waits at the end is still written."""
    check: Callable[[], None] | None = None
    """Called before anything else is done: raises what would fail later."""
    target: Path | None = None
    """The file that it writes, if it does."""

    def __post_init__(self) -> None:
        if not self.limit_s > 0:
            raise UsageError(f"limit_s of {self.name} is {self.limit_s}; expected more than 0 seconds")
        if self.policy not in ("drop_oldest", "block"):
            raise UsageError(f"policy of {self.name} is {self.policy!r}; expected 'drop_oldest' or 'block'")


def to_window(title: str = "edgereels", *, full_screen: bool = False, module: Any = None) -> Output:
    """Show the stream in a window, the newest frame first; Escape or q closes it, and the stream with it."""

    def make(_format: LiveFormat, _on_event: OnEvent | None) -> LiveSink:
        return VideoWindow(title, full_screen=full_screen, module=module)

    def check() -> None:
        VideoWindow(title, full_screen=full_screen, module=module)

    return Output("window", make, limit_s=0.2, policy="drop_oldest", drain=False, check=check)


def to_file(path: str | Path) -> Output:
    """Film the stream into an mp4 of fragments of a second; frames and sound wait up to 10 s for the disk."""

    def make(wanted: LiveFormat, on_event: OnEvent | None) -> LiveSink:
        return RecordingSink(
            Path(path),
            height=wanted.height,
            width=wanted.width,
            fps=wanted.fps,
            sample_rate=wanted.sample_rate,
            comment=wanted.comment,
            on_event=on_event,
        )

    def check() -> None:
        RecordingSink(Path(path), height=2, width=2, comment="")

    return Output("file", make, limit_s=10.0, policy="block", drain=True, check=check, target=Path(path))


def to_callback(
    function: Callable[[ShownMedia], None],
    *,
    name: str = "callback",
    limit_s: float = 0.2,
    policy: Policy = "drop_oldest",
) -> Output:
    """Hand every frame with its sound to a function, from a thread of its own.

    Args:
        function: called with each; what it raises ends this output and no other.
        name: for events.
        limit_s: most that waits for it, seconds.
        policy: `drop_oldest`: a slow function sees the newest frames; `block`: all of them in order, up to `limit_s`
            behind, and none beyond: the stream waits for nobody.
    """

    def make(_format: LiveFormat, _on_event: OnEvent | None) -> LiveSink:
        return CallbackSink(function)  # type: ignore[arg-type]  # what flows here is ShownMedia

    return Output(name, make, limit_s=limit_s, policy=policy, drain=policy == "block")


class OpenOutput:
    """An output with its queue and its thread."""

    def __init__(self, output: Output, wanted: LiveFormat, *, on_event: OnEvent | None) -> None:
        """Make the sink; `start` opens it."""
        self.output = output
        self.queue: FrameQueue[ShownMedia] = FrameQueue(
            output.limit_s, policy=output.policy, on_event=on_event, name=output.name
        )
        self._worker = SinkWorker(output.make(wanted, on_event), self.queue, name=output.name, on_event=on_event)
        self._frame_s = 1 / wanted.fps

    def start(self) -> None:
        """Open the sink; what that raises is raised here."""
        self._worker.start()

    def put(self, media: ShownMedia) -> None:
        """Hand a frame over, at once; one that a full queue doesn't take is counted as dropped."""
        self.queue.put(media, duration_s=self._frame_s, timeout_s=0.0)

    def stop(self, *, timeout_s: float) -> bool:
        """End the sink; whether it ended in time."""
        return self._worker.stop(timeout_s=timeout_s, drain=self.output.drain)
