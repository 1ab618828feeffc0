# SPDX-License-Identifier: Apache-2.0
"""What a live stream says about itself: one of seven states, and why. Every change is an event with a code."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from .errors import UsageError


class State(StrEnum):
    """Where a live stream is."""

    STARTING = "STARTING"
    """Opens engines, devices and files; nothing is shown yet."""
    READY = "READY"
    """The rest loop is on; an utterance may begin."""
    STREAMING = "STREAMING"
    """An utterance is on."""
    DEGRADED = "DEGRADED"
    """Goes on, idle or speaking, with something missing: `LiveState.causes` says what."""
    RECOVERING = "RECOVERING"
    """Something was thrown away and is being made anew; the face rests or is held meanwhile."""
    STOPPED = "STOPPED"
    """Ended as asked."""
    FAILED = "FAILED"
    """Ended because it couldn't go on."""


_ENDS = {State.STOPPED, State.FAILED}
_GOING = {State.READY, State.STREAMING, State.DEGRADED, State.RECOVERING}
TRANSITIONS: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.READY, State.DEGRADED} | _ENDS),
    **{state: frozenset((_GOING - {state}) | _ENDS) for state in _GOING},
    **{state: frozenset() for state in _ENDS},
}
"""From each state to where it may change. What ended stays ended."""


class LiveState:
    """The state of one stream. Not safe for several threads at once: one of them decides.

    While something is missing the state is DEGRADED, and stays so until the last cause is gone, whatever utterances
    begin and end meanwhile; then it is READY or STREAMING, as it would have been.
    """

    def __init__(self, *, on_event: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.state = State.STARTING
        """Where the stream is."""
        self.code = "S_STARTING"
        """Why it is there."""
        self.causes: dict[str, float] = {}
        """Code of what is missing, and the clock reading since when."""
        self._speaking = False
        self._on_event = on_event

    @property
    def has_ended(self) -> bool:
        """Whether the state is STOPPED or FAILED."""
        return self.state in _ENDS

    def change(self, to: State, *, code: str, now_s: float, **details: Any) -> None:
        """Change the state; tell `on_event` from where, to where and why.

        Raises:
            UsageError: there is no such way, or it would hide that something is missing.
        """
        if to not in TRANSITIONS[self.state]:
            ways = ", ".join(sorted(TRANSITIONS[self.state])) or "nothing: it has ended"
            raise UsageError(f"a stream can't go from {self.state} to {to} ({code}); from there it can go to {ways}")
        if self.causes and to in {State.READY, State.STREAMING}:
            raise UsageError(
                f"a stream that lacks something ({', '.join(self.causes)}) can't be {to} ({code}); restore that first"
            )
        came_from, self.state, self.code = self.state, to, code
        if to in {State.READY, State.STREAMING}:
            self._speaking = to is State.STREAMING
        self._tell("state", code, now_s, {"from": str(came_from), "to": str(to), **details})

    def utterance_begins(self, *, now_s: float) -> None:
        """Note that somebody speaks."""
        self._speak(True, code="S_UTTERANCE", now_s=now_s)

    def utterance_ends(self, *, now_s: float) -> None:
        """Note that nobody speaks any longer."""
        self._speak(False, code="S_IDLE", now_s=now_s)

    def degrade(self, code: str, *, now_s: float, **details: Any) -> None:
        """Note that something is missing from now on; a second time it changes nothing."""
        if code in self.causes or self.has_ended:
            return
        self.causes[code] = now_s
        self._tell("missing", code, now_s, details)
        if self.state in {State.READY, State.STREAMING}:
            self.change(State.DEGRADED, code=code, now_s=now_s)

    def restore(self, code: str, *, now_s: float) -> None:
        """Note that something is no longer missing; if it wasn't, nothing changes."""
        since_s = self.causes.pop(code, None)
        if since_s is None or self.has_ended:
            return
        self._tell("restored", code, now_s, {"length_s": now_s - since_s})
        if self.state is State.DEGRADED and not self.causes:
            self.go_on(code=f"{code}_RESTORED", now_s=now_s)

    def go_on(self, *, code: str, now_s: float) -> None:
        """Leave STARTING, RECOVERING or DEGRADED for where the stream now belongs."""
        speaking = self._speaking
        if self.causes:
            self.change(State.DEGRADED, code=code, now_s=now_s)
        elif self.state is State.STARTING or not speaking:
            self.change(State.READY, code=code, now_s=now_s)
            if speaking:  # since before it was ready
                self.utterance_begins(now_s=now_s)
        else:
            self.change(State.STREAMING, code=code, now_s=now_s)

    def _speak(self, speaking: bool, *, code: str, now_s: float) -> None:
        self._speaking = speaking
        to = State.STREAMING if speaking else State.READY
        if self.state in {State.READY, State.STREAMING} and self.state is not to:
            self.change(to, code=code, now_s=now_s)

    def _tell(self, event: str, code: str, now_s: float, details: dict[str, Any]) -> None:
        if self._on_event is not None:
            self._on_event({"event": event, "code": code, "at_s": now_s, **details})
