# SPDX-License-Identifier: Apache-2.0
"""What a live stream takes from its session: engines, a face, how it is shown; and gives back at the end."""

from collections.abc import Callable, Sequence
from typing import Any

from .audio import SAMPLE_RATE
from .avatar import Avatar
from .canvas import Canvas
from .errors import EngineError
from .live_face import LiveFace, open_face
from .live_outputs import LiveFormat
from .live_settings import LiveSettings
from .model_package import ModelPackage
from .placement import OnCompile, Placement
from .timing import Trace


class LiveRoom:
    """Opens the engines when the stream begins, and anew when they have failed."""

    def __init__(
        self,
        package: ModelPackage,
        face: Avatar,
        *,
        settings: Sequence[LiveSettings],
        seed: int,
        canvas_of: Callable[[tuple[int, int]], Canvas | None],
        placement: Callable[[bool], Placement],
        release: Callable[[], None],
        on_compile: OnCompile | None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            package: open.
            face: the avatar.
            settings: every quality that may be used, the wanted one first.
            seed: of the draws.
            canvas_of: the (height, width) of frames to what they are shown in.
            placement: returns engines for this stream alone; True: new ones, for those before have failed.
            release: called once when the stream has ended.
            on_compile: as of `AvatarSession.open`.
        """
        self.settings = tuple(settings)
        """Every quality that may be used, the wanted one first."""
        self.graphs_s: dict[str, float] = {}
        """Seconds that every graph has run, by stage."""
        self._package, self._face, self._seed = package, face, seed
        self._canvas_of, self._placement, self._release = canvas_of, placement, release
        self._on_compile = on_compile
        self._trace = Trace(keep=False, on_event=self._count)
        self._is_open = self._is_closed = False

    def open(self) -> LiveFace:
        """Open the engines, for the first time or anew, and make the face ready."""
        if self._is_closed:
            raise EngineError("this live stream has ended; expected one that runs: begin another")
        placement = self._placement(self._is_open)
        self._is_open = True
        placement.record_to(self._trace)
        return open_face(
            self._package,
            placement,
            self._face,
            settings=self.settings,
            seed=self._seed,
            trace=self._trace,
            on_compile=self._on_compile,
        )

    def shown_as(self, face: LiveFace) -> tuple[LiveFormat, Canvas | None]:
        """Return what flows into outputs, and what frames are shown in."""
        canvas = self._canvas_of(face.size)
        height, width = face.size if canvas is None else canvas.size
        fps = round(self._package.manifest.settings.fps)
        return LiveFormat(height, width, fps, SAMPLE_RATE, self._package.credit), canvas

    def close(self) -> None:
        """Give the engines back; called again it does nothing."""
        self._is_closed = True
        if self._is_open:
            self._is_open = False
            self._release()

    def _count(self, event: dict[str, Any]) -> None:
        name = event["event"]
        self.graphs_s[name] = self.graphs_s.get(name, 0.0) + event["end_s"] - event["start_s"]
