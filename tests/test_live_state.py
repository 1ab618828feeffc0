# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from edgereels.runtime.errors import UsageError
from edgereels.runtime.live_state import TRANSITIONS, LiveState, State


def ready(events: list[dict[str, Any]] | None = None) -> LiveState:
    state = LiveState(on_event=None if events is None else events.append)
    state.go_on(code="S_OPENED", now_s=1.0)
    return state


def test_every_change_is_an_event_with_a_code() -> None:
    events: list[dict[str, Any]] = []
    state = ready(events)
    state.utterance_begins(now_s=2.0)
    state.utterance_ends(now_s=3.0)
    state.change(State.STOPPED, code="S_ASKED", now_s=4.0, signal="SIGTERM")
    assert [(event["from"], event["to"], event["code"]) for event in events] == [
        ("STARTING", "READY", "S_OPENED"),
        ("READY", "STREAMING", "S_UTTERANCE"),
        ("STREAMING", "READY", "S_IDLE"),
        ("READY", "STOPPED", "S_ASKED"),
    ]
    assert events[-1] == {
        "event": "state",
        "code": "S_ASKED",
        "at_s": 4.0,
        "from": "READY",
        "to": "STOPPED",
        "signal": "SIGTERM",
    }


@pytest.mark.parametrize("end", [State.STOPPED, State.FAILED])
def test_what_ended_stays_ended(end: State) -> None:
    state = ready()
    state.change(end, code="S_END", now_s=2.0)
    assert state.has_ended and not TRANSITIONS[end]
    with pytest.raises(UsageError, match=f"from {end} to READY .*it has ended"):
        state.change(State.READY, code="S_AGAIN", now_s=3.0)
    state.degrade("S_DISK_FULL", now_s=3.0)
    state.utterance_begins(now_s=3.0)
    assert state.state is end


def test_every_state_can_end_and_none_leads_back_to_the_start() -> None:
    going = [state for state in State if TRANSITIONS[state]]
    assert len(going) == 5
    assert all({State.STOPPED, State.FAILED} <= TRANSITIONS[state] for state in going)
    assert not any(State.STARTING in ways for ways in TRANSITIONS.values())


def test_a_way_that_does_not_exist_is_refused_and_changes_nothing() -> None:
    events: list[dict[str, Any]] = []
    state = LiveState(on_event=events.append)
    with pytest.raises(UsageError, match="from STARTING to STREAMING"):
        state.change(State.STREAMING, code="S_UTTERANCE", now_s=0.0)
    assert state.state is State.STARTING and not events


def test_it_stays_degraded_until_the_last_cause_is_gone() -> None:
    state = ready()
    state.degrade("AUDIO_UNAVAILABLE", now_s=2.0)
    state.degrade("S_QUALITY", now_s=3.0)
    state.utterance_begins(now_s=4.0)
    state.restore("AUDIO_UNAVAILABLE", now_s=5.0)
    assert (state.state, set(state.causes)) == (State.DEGRADED, {"S_QUALITY"})
    state.restore("S_QUALITY", now_s=6.0)
    assert state.state is State.STREAMING, "the utterance that began meanwhile is still on"


def test_what_is_missing_can_not_be_hidden() -> None:
    state = ready()
    state.degrade("AUDIO_UNAVAILABLE", now_s=2.0)
    with pytest.raises(UsageError, match=r"lacks something \(AUDIO_UNAVAILABLE\)"):
        state.change(State.READY, code="S_FINE", now_s=3.0)
    assert state.state is State.DEGRADED


def test_a_cause_is_told_once_and_its_length_at_its_end() -> None:
    events: list[dict[str, Any]] = []
    state = ready(events)
    events.clear()
    for now_s in (2.0, 3.0):
        state.degrade("S_DISK_FULL", now_s=now_s)
    state.restore("S_DISK_FULL", now_s=9.0)
    state.restore("S_DISK_FULL", now_s=10.0)
    assert [event["event"] for event in events] == ["missing", "state", "restored", "state"]
    assert events[2]["length_s"] == 7.0


def test_after_recovery_it_is_where_it_belongs() -> None:
    state = ready()
    state.utterance_begins(now_s=2.0)
    state.change(State.RECOVERING, code="S_NONFINITE", now_s=3.0)
    state.degrade("AUDIO_UNAVAILABLE", now_s=4.0)
    assert state.state is State.RECOVERING
    state.go_on(code="S_RECOVERED", now_s=5.0)
    assert state.state is State.DEGRADED
    state.restore("AUDIO_UNAVAILABLE", now_s=6.0)
    assert state.state is State.STREAMING


def test_speech_that_began_before_it_was_ready_is_not_forgotten() -> None:
    events: list[dict[str, Any]] = []
    state = LiveState(on_event=events.append)
    state.utterance_begins(now_s=0.5)
    assert state.state is State.STARTING
    state.go_on(code="S_OPENED", now_s=1.0)
    assert [event["to"] for event in events] == ["READY", "STREAMING"]


def test_something_missing_from_the_start_is_said() -> None:
    state = LiveState()
    state.degrade("AUDIO_UNAVAILABLE", now_s=0.5)
    state.go_on(code="S_OPENED", now_s=1.0)
    assert state.state is State.DEGRADED
