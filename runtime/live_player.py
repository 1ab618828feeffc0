# SPDX-License-Identifier: Apache-2.0
"""The thread of a live stream that shows frames: one per slot of media time, to every output, as the sound goes."""

import math
import threading
from collections.abc import Callable, Sequence

from .audio import SAMPLE_RATE
from .clock import Clock, read_together
from .composer import AHEAD, Composer
from .live_outputs import OpenOutput
from .live_reports import ShownMedia
from .playout import Playout
from .playout_types import Shown
from .silent_clock import SilentClock
from .speakers import Speakers

SPEAKERS_LEAD_S = 0.12
"""So far ahead of what is heard sound is ready for a device at least: one that begins asks for it."""

FEED_S = 0.1
"""And so far ahead of what it holds already: it asks for two blocks of 20 ms at a time, and doesn't wait for them.
With 0.06 one in six streams had a hole, on PulseAudio under load; with 0.1 none of 18."""

FEED_EVERY_S = 0.02
"""How often it is fed at least."""

MOST_BEHIND_S = 2.0
"""Who is further behind than this goes on from now; the machine was asleep."""

DRAWING_S = 0.005
"""So long before it is due a frame is handed out: drawing it takes that long."""

_SHORTEST_S = 0.002


class Player:
    """Runs in a thread of its own, by `run`."""

    def __init__(
        self,
        playout: Playout,
        sound_clock: SilentClock,
        outputs: Sequence[OpenOutput],
        *,
        clock: Clock,
        fps: int,
        composer: Composer | None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            playout: says what is on.
            sound_clock: the master clock; sound is written to it where it is a device.
            outputs: get every frame.
            clock: for readings.
            fps: slots per second.
            composer: lays frames into what they are shown in, if that is anything.
            on_tick: called about once a frame.
        """
        self._playout, self._sound_clock, self._outputs = playout, sound_clock, outputs
        self._clock, self._fps, self._composer, self._on_tick = clock, fps, composer, on_tick
        self._stopping = threading.Event()
        self._feeding = threading.Lock()  # an interruption must not come between reading sound and handing it over
        self.is_resting = True
        """Whether the last frame that was shown is one of the rest loop."""

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping.set()

    def run(self) -> None:
        """Show frames until `stop`."""
        slot = 0
        while not self._stopping.is_set():
            self._feed()
            position_s, now_s = read_together(self._sound_clock.position_s, self._clock)
            newest = math.floor((position_s + DRAWING_S) * self._fps + 1e-6)
            if newest - slot > MOST_BEHIND_S * self._fps:
                slot = newest
            while slot <= newest and not self._stopping.is_set():
                self._show(slot, due_s=now_s - (position_s - slot / self._fps))
                slot += 1
                if slot <= newest:  # it is behind: the sound must not run dry over the pictures
                    self._feed()
            self._on_tick()
            left_s = max(slot / self._fps - DRAWING_S - self._sound_clock.position_s(), _SHORTEST_S)
            is_fed = isinstance(self._sound_clock, Speakers)
            self._clock.wait_until(
                self._clock.now_s() + (min(left_s, FEED_EVERY_S) if is_fed else left_s), self._stopping
            )

    def interrupt(self, *, through_turn: int) -> Shown:
        """Stop sound and mouth; nothing more of these turns is shown or played.

        Returns:
            Where the face is.
        """
        with self._feeding:
            shown = self._playout.interrupt(self._sound_clock.position_s(), through_utterance=through_turn)
            self._sound_clock.clear()
        return shown

    def _show(self, slot: int, *, due_s: float) -> None:
        shown = self._playout.at(slot / self._fps)
        self.is_resting = shown.kind == "rest"
        media = ShownMedia(shown, due_s, None if self._composer is None else self._composer.picture(shown.frame))
        for output in self._outputs:
            output.put(media)
        if self._composer is not None and self._outputs:
            next_ones = self._playout.ahead((slot + 1 + AHEAD) / self._fps, AHEAD)
            self._composer.prepare([each.frame for each in next_ones])

    def _feed(self) -> None:
        """Hand a device its sound, if there is one; what it has passed already is not played any more."""
        if not isinstance(self._sound_clock, Speakers):
            return
        with self._feeding:
            position_s = self._sound_clock.position_s()
            until_s = max(position_s + SPEAKERS_LEAD_S, self._sound_clock.taken_s + FEED_S)
            start_s, sound = self._playout.sound(until_s)
            missed = round((self._sound_clock.end_s - start_s) * SAMPLE_RATE)
            if missed > 0:
                start_s, sound = start_s + missed / SAMPLE_RATE, sound[missed:]
            if len(sound):
                self._sound_clock.write(sound, is_last=not sound.any(), not_before_s=start_s)
