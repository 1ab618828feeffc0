# SPDX-License-Identifier: Apache-2.0
"""The live audio front end: what the network hears of speech that is still arriving.

Three things differ from a whole recording. It is brought to its loudness by what was heard so far (`RunningLoudness`).
The encoder hears the newest seconds again for every window, at most 8, instead of everything once. And what it is given
has the variance of the speaker so far instead of the recording's, for encoders that were trained with that.

Sound lies on the grid of video frames, so that features fall where those of the whole recording fall.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .audio_ring import AudioRing
from .live_chunk import SAMPLES_PER_FRAME
from .running_loudness import RunningLoudness

Floats = npt.NDArray[np.float32]

LONGEST_HEARD_S = 8.0
"""Most that is encoded for one window."""

LEAD_FRAMES = 16
"""Of silence before an utterance: what the first window hears of the time before, and what the encoder begins with."""

START_DEVIATION = 0.07
"""Standard deviation of speech at -23 LUFS, pauses included (24 clips of three synthesizers: 0.058 to 0.078)."""

START_WEIGHT_S = 2.0
"""How much speech the start value counts for."""


class LiveHearing:
    """Hears one utterance after the other of one speaker. Not safe for several threads at once."""

    def __init__(
        self,
        encode: Callable[[Floats], Floats],
        *,
        normalise: bool,
        heard_s: float = LONGEST_HEARD_S,
        start_lufs: float = -23.0,
    ) -> None:
        """Begin with a speaker of whom nothing is known.

        Args:
            encode: samples of f whole frames at 16 kHz, (640 f,), to features [f, layers, channels].
            normalise: whether the encoder wants sound of unit variance.
            heard_s: most that is encoded for one window, at most 8 s.
            start_lufs: how loud the speaker is taken to be until 0.4 s were heard.
        """
        if not 0 < heard_s <= LONGEST_HEARD_S:
            raise ValueError(f"heard_s is {heard_s}; expected more than 0 and at most {LONGEST_HEARD_S}")
        self._encode, self._normalise = encode, normalise
        self._heard_frames = round(heard_s * 25)
        self._loudness = RunningLoudness(start_lufs)
        self._ring = AudioRing((self._heard_frames + LEAD_FRAMES) / 25)
        self._energy = START_DEVIATION**2 * START_WEIGHT_S
        self._weight_s = START_WEIGHT_S
        self.begin()

    @property
    def frames(self) -> int:
        """Whole frames of the utterance that were heard, its lead not counted."""
        return (self._ring.stop - self._origin) // SAMPLES_PER_FRAME

    @property
    def gain_db(self) -> float:
        """What the speaker is turned up by."""
        return self._loudness.gain_db

    def begin(self) -> None:
        """Begin an utterance: out of silence, with the loudness of those before."""
        self._ring = AudioRing(self._ring.capacity_samples / 16000)
        self._ring.append(np.zeros(LEAD_FRAMES * SAMPLES_PER_FRAME, np.float32))
        self._origin = self._ring.stop

    def push(self, speech: Floats) -> None:
        """Take the next samples of the utterance, (n,), as they came in."""
        scaled = self._loudness.push(speech)
        within = np.clip(scaled, -1, 1)  # what is beyond full scale is damage, and would count for hours
        self._energy += float(np.sum(np.square(within, dtype=np.float64))) / 16000
        self._weight_s += len(speech) / 16000
        self._ring.append(scaled)

    def push_silence(self, frames: int) -> None:
        """Put silence behind what was heard, up to a whole frame and then some frames more."""
        rest = -(self._ring.stop - self._origin) % SAMPLES_PER_FRAME
        self._ring.append(np.zeros(rest + frames * SAMPLES_PER_FRAME, np.float32))

    def features(self, first_frame: int, stop_frame: int, *, until_frame: int | None = None) -> Floats:
        """Return the features of some frames, [stop_frame - first_frame, layers, channels].

        Args:
            first_frame: of the utterance; its lead has negative numbers.
            stop_frame: behind the last one.
            until_frame: how far the encoder hears, at least `stop_frame` and by default just that; never beyond what
                was pushed.

        Raises:
            FutureSoundError: these frames have not been heard.
            ValueError: more frames are asked for than are encoded at once.
        """
        until = stop_frame if until_frame is None else until_frame
        begin = max(-LEAD_FRAMES, until - self._heard_frames)
        if first_frame < begin:
            raise ValueError(f"frames {first_frame} to {stop_frame} are more than are heard at once; expected fewer")
        sound = self._ring.read(self._origin + begin * SAMPLES_PER_FRAME, self._origin + until * SAMPLES_PER_FRAME)
        if self._normalise:
            sound = sound / np.float32(math.sqrt(self._energy / self._weight_s))
        return self._encode(sound)[first_frame - begin : stop_frame - begin]
