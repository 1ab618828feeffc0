# SPDX-License-Identifier: Apache-2.0
"""What a live stream does about a window that failed: throw it away, open the engines anew, or end as FAILED."""

import threading

from .errors import NotFiniteError
from .live_actor import LiveActor
from .live_generator_parts import GeneratorParts
from .live_state import State
from .recovery import Recovery, Remedy

ENDING_S = 0.1
"""A run that failed may have been ended by a signal that ends the stream as well: so long it is waited for."""


class LiveFaults:
    """Carries out what `Recovery` chooses, in the generator's thread."""

    def __init__(self, parts: GeneratorParts, actor: LiveActor) -> None:
        """Begin without faults; the actor gets a new face where engines are opened anew."""
        self._parts, self._actor, self._recovery = parts, actor, Recovery()
        self.failure: Exception | None = None
        """What ended the stream, if something did."""
        self.count = 0
        """How many there were."""

    def recover(self, error: Exception, stopping: threading.Event) -> bool:
        """Do what follows a fault; whether the stream goes on. Else it is ending, or has failed: `failure` says why."""
        self.count += 1
        contained, state = isinstance(error, NotFiniteError), self._parts.state
        if not contained and not self._parts.clock.wait_until(self._now_s + ENDING_S, stopping):
            return False  # no fault: the program is ending, and its engines with it
        code = "S_NONFINITE" if contained else "S_UNEXPECTED"
        self._tell("chunk_lost", code, error)
        state.change(State.RECOVERING, code=code, now_s=self._now_s)
        while not stopping.is_set():
            remedy, wait_s = self._recovery.after(is_contained=contained, now_s=self._now_s)
            if remedy is Remedy.GIVE_UP:
                self.failure = error
                state.change(State.FAILED, code="S_TOO_MANY_FAULTS", now_s=self._now_s, message=str(error))
                stopping.set()
                self._parts.ears.stop_waiting()
                return False
            if not self._parts.clock.wait_until(self._now_s + wait_s, stopping):
                return False
            try:
                if remedy is Remedy.REOPEN:
                    self._actor.face = self._parts.open_face()
            except Exception as again:  # it may be the device that is gone
                self._tell("reopening_failed", "S_UNEXPECTED", again)
                contained = False
                continue
            state.go_on(code="S_RECOVERED", now_s=self._now_s)
            return True
        return False

    @property
    def _now_s(self) -> float:
        return self._parts.clock.now_s()

    def _tell(self, event: str, code: str, error: Exception) -> None:
        told = {"error": type(error).__name__, "message": str(error)}
        self._parts.on_event({"event": event, "code": code, "at_s": self._now_s, **told})
