# SPDX-License-Identifier: Apache-2.0
"""One window of a live stream: it goes on from what is shown, hears what has arrived, and ends on a given picture.

Unlike the windows of `planner`, one doesn't know how many will follow. Every window begins with the motion frames that
are on the screen before it, also the first one of an utterance, and ends on a key frame (`live_key_frames`)::

    local frame   0 … motion-1 │ motion …………………… emit_stop-1 │ … window-1
                  shown before │ new, emitted                │ dropped; the key frame stands in the last five
    hears         from two frames before the window to two frames after it
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .chunks import AUDIO_REACH, WindowPlan, slice_audio
from .image import to_unit
from .passes import Given, Passes, Pixels

Floats = npt.NDArray[np.float32]


def heard_frames(window: int) -> int:
    """Return how many frames of sound a window hears: two more on either side."""
    return window + 2 * AUDIO_REACH


class LiveWindows:
    """Makes windows of one length for one face."""

    def __init__(self, passes: Passes, *, window: int, motion: int) -> None:
        """Prepare.

        Args:
            passes: of the face, with tables for this window.
            window: frames denoised together, 4n + 1.
            motion: frames taken over from what is shown, 4n + 1.
        """
        self._passes = passes
        self.window, self.motion = window, motion
        self._made = 0

    def make(
        self, shown: Pixels, features: Floats, key_frame: Floats, *, emit_stop: int, goes_on: bool = False
    ) -> Iterator[Pixels]:
        """Yield the new frames of one window, emit_stop - motion in all, (T, H, W, 3) at a time, as they are decoded.

        Args:
            shown: (motion, H, W, 3): the frames before the new ones, as the network made them.
            features: [window + 4, layers, channels] of the sound, from two frames before the window on.
            key_frame: (3, H, W) RGB in [-1, 1]: what the window ends on.
            emit_stop: local frame behind the last one that is wanted.
            goes_on: whether `shown` are the last frames that this yielded, all of them taken: then they aren't decoded
                once more, and the decoder sees no cut between windows.

        Raises:
            NotFiniteError: the latents came out as NaN or Inf.
        """
        plan = self._plan(condition=self.motion, emit_start=self.motion, emit_stop=emit_stop)
        motion = np.stack([to_unit(frame) for frame in shown], axis=1)[None]
        yield from self._run(plan, motion, features, key_frame, goes_on=goes_on)

    def first(self, features: Floats, key_frame: Floats, *, emit_stop: int) -> Iterator[Pixels]:
        """Yield the first frames of all, emit_stop of them: a window that begins with the portrait."""
        plan = self._plan(condition=1, emit_start=0, emit_stop=emit_stop)
        yield from self._run(plan, self._passes.conditions.portrait[None, :, None], features, key_frame, goes_on=False)

    def _run(
        self, plan: WindowPlan, motion: Floats, features: Floats, key_frame: Floats, *, goes_on: bool
    ) -> Iterator[Pixels]:
        given = Given(motion, slice_audio(features, plan), key_frame)
        self._made += 1
        return self._passes.pixels(plan, self._passes.denoise(plan, given), goes_on=goes_on)

    def _plan(self, *, condition: int, emit_start: int, emit_stop: int) -> WindowPlan:
        heard = heard_frames(self.window)
        return WindowPlan(
            pass_index=self._made + 1,
            window=self.window,
            start_frame=AUDIO_REACH,
            audio_frames=heard,
            padded_frames=heard,
            condition_frames=condition,
            condition_start=None if emit_start == 0 else 0,
            key_frame_index=self.window - 1,
            kept_frames=emit_stop,
            emit_start=emit_start,
            emit_stop=emit_stop,
        )


def last_frames(pieces: Sequence[Pixels], *, count: int) -> Pixels:
    """Return the last frames of some runs of frames, (count, H, W, 3); the first one is repeated where there are fewer.

    Raises:
        ValueError: there is no frame at all.
    """
    frames = np.concatenate(pieces)[-count:]
    if not len(frames):
        raise ValueError("there are no frames to go on from; expected at least one")
    return np.concatenate([np.repeat(frames[:1], count - len(frames), axis=0), frames])
