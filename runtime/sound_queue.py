# SPDX-License-Identifier: Apache-2.0
"""Sound on its way to the loudspeaker: what is queued, which sample comes next, and silence where there is none."""

from collections import deque

import numpy as np
import numpy.typing as npt

from .errors import OutputError

Samples = npt.NDArray[np.float32]

FADE_S = 0.005
"""Length of the ramp to silence at an interruption: too short for speech, too long for a click."""


class SoundAheadError(OutputError):
    """More sound is queued than the limit allows: whoever makes it doesn't wait for the clock."""

    code = "S_SOUND_AHEAD"


class SoundQueue:
    """Mono samples with absolute numbers: silence that was handed out counts too. Pure; the caller locks."""

    def __init__(self, sample_rate: int, *, limit_s: float = 30.0) -> None:
        """Make an empty queue.

        Args:
            sample_rate: Hz.
            limit_s: most that is held, seconds.
        """
        self.taken = 0
        """Number of the sample that is handed out next."""
        self.underruns = 0
        """How often it ran dry before an utterance had ended."""
        self.dry_samples = 0
        """Samples of silence that were handed out within utterances."""
        self._sample_rate, self._limit_samples = sample_rate, round(limit_s * sample_rate)
        self._pieces: deque[Samples] = deque()
        self._held = 0
        self._utterance_open = self._is_dry = False

    @property
    def stop(self) -> int:
        """Number of the sample behind the last one that is queued."""
        return self.taken + self._held

    def put(self, sound: Samples, *, is_last: bool, not_before: int = 0) -> int:
        """Queue sound behind what is queued; return the number that its first sample gets.

        Args:
            sound: (n,) in [-1, 1], copied; NaN and Inf become 0.
            is_last: whether the utterance ends here, so that running dry afterwards is no underrun.
            not_before: earliest number of its first sample; the gap is silent.

        Raises:
            SoundAheadError: it would be more than the limit; nothing was queued.
        """
        gap = max(not_before - self.stop, 0)
        ahead = self._held + gap + len(sound)
        if ahead > self._limit_samples:
            raise SoundAheadError(
                f"{ahead / self._sample_rate:.1f} s of sound would be queued; expected at most "
                f"{self._limit_samples / self._sample_rate:.1f} s: hand it over when it is due"
            )
        if gap:
            self._append(np.zeros(gap, dtype=np.float32))
        start = self.stop
        self._append(np.clip(np.nan_to_num(sound, posinf=0, neginf=0), -1, 1, dtype=np.float32))
        self._utterance_open, self._is_dry = not is_last, False
        return start

    def take(self, count: int) -> Samples:
        """Return the next samples, (count,); silence where none are queued."""
        block = np.zeros(count, dtype=np.float32)
        filled = 0
        while filled < count and self._pieces:
            piece = self._pieces.popleft()
            part = piece[: count - filled]
            block[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(piece):
                self._pieces.appendleft(piece[len(part) :])
        self._held -= filled
        self.taken += count
        self._count_dry(count - filled)
        return block

    def skip_to(self, number: int) -> None:
        """Throw away what comes before a sample; does nothing if that is behind."""
        while self._pieces and self.taken < number:
            piece = self._pieces.popleft()
            cut = min(len(piece), number - self.taken)
            self.taken, self._held = self.taken + cut, self._held - cut
            if cut < len(piece):
                self._pieces.appendleft(piece[cut:])
        if self.taken < number:
            self._count_dry(number - self.taken)
            self.taken = number

    def clear(self) -> int:
        """Throw away what is queued but for a ramp to silence; return the number where the silence begins."""
        fade = round(FADE_S * self._sample_rate)
        tail = self.take(min(fade, self._held))
        self.taken -= len(tail)
        self._pieces.clear()
        self._held = 0
        if len(tail):
            self._append(tail * np.linspace(1, 0, len(tail), dtype=np.float32))
        self._utterance_open = False
        return self.stop

    def _append(self, piece: Samples) -> None:
        self._pieces.append(piece)
        self._held += len(piece)

    def _count_dry(self, samples: int) -> None:
        if samples and self._utterance_open:
            self.dry_samples += samples
            self.underruns += not self._is_dry
            self._is_dry = True
