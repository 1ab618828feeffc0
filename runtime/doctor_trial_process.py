# SPDX-License-Identifier: Apache-2.0
"""Ask a trial, which runs in a process of its own, and take what it said before it ended, however it ended."""

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Ask = Callable[..., "Answer"]
"""`ask_trial`, or what stands in for it in tests."""


@dataclass(frozen=True)
class Answer:
    """What a trial said before it ended."""

    events: tuple[Mapping[str, Any], ...]
    """Its lines, in order, without those that only announced something."""
    fault: str = ""
    """Why it ended early; empty where it didn't."""

    def first(self, event: str) -> Mapping[str, Any] | None:
        """Return the first line of a kind, or None."""
        return next((line for line in self.events if line["event"] == event), None)

    def all(self, event: str) -> Iterator[Mapping[str, Any]]:
        """Yield the lines of a kind."""
        return (line for line in self.events if line["event"] == event)


def ask_trial(request: Mapping[str, Any], *, timeout_s: float) -> Answer:
    """Run `doctor_trial` in a process of its own and return what it said, however it ended."""
    command = [sys.executable, "-P", "-m", f"{__package__}.doctor_trial", json.dumps(dict(request))]
    events: list[dict[str, Any]] = []
    timed_out = threading.Event()
    with tempfile.TemporaryFile() as chatter:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=chatter)

        def give_up() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.start()
        try:
            assert process.stdout is not None
            with process.stdout:
                events += filter(None, map(_event, process.stdout))
            code = process.wait()
        finally:  # Ctrl-C, SIGTERM: nothing is left running
            timer.cancel()
            process.kill()
            process.wait()
        chatter.seek(0)
        last_words = chatter.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    said = tuple(event for event in events if event["event"] != "trying")
    fault = next((str(event["text"]) for event in said if event["event"] == "fault"), "")
    if not fault and code != 0:
        doing = next((event["what"] for event in reversed(events) if event["event"] == "trying"), "start")
        ended = f"took more than {timeout_s:g} s" if timed_out.is_set() else _ending(code, last_words)
        fault = f"trying to {doing} {ended}"
    return Answer(said, fault)


def _event(line: bytes) -> dict[str, Any] | None:
    """Read a line; None where a library printed it, or the process died while writing it."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _ending(code: int, last_words: Sequence[str]) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended the process by {name}" + (", as Linux does when memory runs out" if name == "SIGKILL" else "")
    return f"failed: {last_words[-1].strip()}" if last_words else f"ended the process with exit code {code}"
