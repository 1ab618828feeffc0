# SPDX-License-Identifier: Apache-2.0
"""One stream of a whole sound, pass by pass, as planned. State between passes: motion frames and key frames."""

from collections.abc import Iterator

from .chunks import KeyFrame, VideoChunk, WindowPlan, slice_audio
from .passes import Floats, Given, Passes
from .planner import Plan


class Stream:
    """Runs the passes of a plan."""

    def __init__(self, plan: Plan, *, passes: Passes, features: Floats, fps: float) -> None:
        """Begin with the portrait.

        Args:
            plan: all passes.
            passes: runs one of them.
            features: of the whole sound, [frames, layers, channels], a row per video frame.
            fps: frames per second.
        """
        self._plan = plan
        self._passes = passes
        self._features = features
        self._fps = fps
        self._key_frames: dict[int, KeyFrame] = {}
        self._motion: Floats = passes.conditions.portrait[None, :, None]

    def chunks(self) -> Iterator[VideoChunk]:
        """Yield the chunks in order, each as soon as its window is done."""
        wanted = {window.key_frame_index for window in self._plan.windows if window.key_frame_index is not None}
        start_frame = 0
        for window in self._plan.passes:
            key_frame = None if window.key_frame_index is None else self._key_frames[window.key_frame_index].pixels
            given = Given(self._motion, slice_audio(self._features, window), key_frame)
            is_key_pass = window.pass_index == 0
            made = self._passes.finish(
                window,
                self._passes.denoise(window, given),
                motion_start=self._motion_start(window),
                key_frames_wanted=wanted if is_key_pass else frozenset(),
            )
            self._key_frames |= {index: KeyFrame(pixels, index) for index, pixels in made.key_frames.items()}
            if not is_key_pass:
                self._motion = made.motion
            if len(made.pixels):
                is_last = window is self._plan.shown[-1]
                index = window.pass_index - (0 if self._plan.is_clip else 1)
                yield VideoChunk(made.pixels, index, start_frame, start_frame / self._fps, self._fps, is_last)
                start_frame += len(made.pixels)

    def _motion_start(self, window: WindowPlan) -> int:
        """Return the local frame where the motion frames of the next window begin; past the end where none follow."""
        following = [later for later in self._plan.windows if later.pass_index == window.pass_index + 1]
        start = following[0].condition_start if following and window.pass_index > 0 else None
        return window.kept_frames if start is None else start
