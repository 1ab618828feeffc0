# SPDX-License-Identifier: Apache-2.0
"""The face at work: it hears an utterance and makes its frames, window after window. No threads, no clock."""

from collections.abc import Iterator

import numpy as np

from .chunks import AUDIO_REACH
from .live_chunk import SAMPLES_PER_FRAME
from .live_face import LiveFace
from .live_hearing import Floats, LiveHearing
from .live_settings import LiveSettings
from .live_settling import settle, settling_frames
from .live_windows import Pixels

TAIL_FRAMES = 6
"""At least so many follow the speech before the face rests: a mouth closes, a head turns back."""

KEPT_FRAMES = 16
"""Of what was shown, for the next window to go on from, whatever its settings."""


class LiveActor:
    """Makes the frames of one utterance after the other."""

    def __init__(self, face: LiveFace) -> None:
        self.face = face
        """May be replaced by the same face on engines that were opened anew."""
        self._hearing = LiveHearing(lambda sound: self.face.encode(sound), normalise=face.normalise)
        self._unshown = np.zeros(0, np.float32)
        self._shown: Pixels | None = None
        self.made = 0
        """Frames of the utterance so far."""
        self.owed = 0
        """Frames of the window that are still to come."""
        self._is_last = False  # whether that window is the utterance's last
        self._made_by: tuple[LiveFace, LiveSettings] | None = None  # who made what is shown, to its last frame

    def begin(self) -> None:
        """Begin an utterance; `start_from` says where the face is."""
        self._hearing.begin()
        self._unshown, self._shown, self.made = np.zeros(0, np.float32), None, 0
        self.owed, self._made_by = 0, None

    def start_from(self, shown: Pixels) -> None:
        """Go on from the frames before the first of the utterance, (`KEPT_FRAMES`, H, W, 3)."""
        self._shown = shown

    def hear(self, sound: Floats) -> None:
        """Take the next samples of the utterance, (n,), as they came in."""
        self._hearing.push(sound)
        self._unshown = np.concatenate([self._unshown, sound])

    def hear_silence(self, until_frame: int) -> None:
        """Hear silence behind the utterance, up to a frame."""
        if self._hearing.frames < until_frame:
            self._hearing.push_silence(until_frame - self._hearing.frames)

    def needed_frames(self, settings: LiveSettings) -> int:
        """Return how many frames of the utterance the next window needs to hear."""
        return self.made + settings.chunk_frames + settings.look_ahead_frames

    def can_end(self, spoken_frames: int, settings: LiveSettings) -> bool:
        """Return whether the next window can bring an utterance of so many frames to its end."""
        return spoken_frames + TAIL_FRAMES <= self.made + settings.pinned_frames

    def make(self, settings: LiveSettings, *, is_last: bool) -> Iterator[Pixels]:
        """Yield the frames of the next window, (T, H, W, 3) at a time, as they are decoded; the last one comes to rest.

        Whatever a library raises is passed on: `hold` then goes on without the frames that are `owed`.
        """
        assert self._shown is not None
        self._is_last, before = is_last, self._made_by
        self._made_by = None
        self.owed = self._new(settings, is_last=is_last) * settings.repeat
        motion = settings.motion * settings.repeat
        pieces = self.face.windows[settings].make(
            self._shown[-motion:][settings.repeat - 1 :: settings.repeat],
            self._heard(settings),
            self._key_frame(settings, is_last=is_last),
            emit_stop=settings.motion + self._new(settings, is_last=is_last),
            goes_on=before == (self.face, settings),
        )
        for frames in pieces:
            yield self._taken(np.repeat(frames, settings.repeat, axis=0))
        self._made_by = self.face, settings

    def hold(self) -> Pixels:
        """Return what stands in for the frames of a window that could not be made: the last picture, as often."""
        assert self._shown is not None
        return self._taken(np.repeat(self._shown[-1:], self.owed, axis=0))

    def sound(self, frames: int) -> Floats:
        """Return the sound beside the next frames that are handed on, (frames x 640,); silence behind the utterance."""
        count = frames * SAMPLES_PER_FRAME
        sound, self._unshown = self._unshown[:count], self._unshown[count:]
        return np.pad(sound, (0, count - len(sound)))

    @staticmethod
    def _new(settings: LiveSettings, *, is_last: bool) -> int:
        return (settings.pinned_frames if is_last else settings.chunk_frames) // settings.repeat

    def _taken(self, frames: Pixels) -> Pixels:
        """Note that frames were made; where the network stopped short of the rest pose, add the rest of the way."""
        assert self._shown is not None
        self.owed -= len(frames)
        if self._is_last and not self.owed:
            rest = self.face.rest_loop[0]
            frames = np.concatenate([frames, settle(frames[-1], rest, count=settling_frames(frames[-1], rest))])
        self._shown = np.concatenate([self._shown, frames])[-KEPT_FRAMES:]
        self.made += len(frames)
        return frames

    def _heard(self, settings: LiveSettings) -> Floats:
        """Return the features of what a window hears, [window + 4, layers, channels]."""
        first = self.made - (settings.motion + AUDIO_REACH) * settings.repeat
        return self._hearing.features(first, self.needed_frames(settings))[:: settings.repeat]

    def _key_frame(self, settings: LiveSettings, *, is_last: bool) -> Floats:
        """Return what a window ends on."""
        key_frames = self.face.key_frames
        last = self.made + (settings.window - settings.motion) * settings.repeat - 1
        return key_frames.rest if is_last else key_frames.at(last)
