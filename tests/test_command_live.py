# SPDX-License-Identifier: Apache-2.0
"""What `edgereels live` keeps of its events on bad days."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgereels.runtime.command_live import _Events
from edgereels.runtime.errors import OutputError
from edgereels.runtime.sinks import LinesSink


class FullDisk(LinesSink):
    def write(self, entry: Mapping[str, Any]) -> None:
        raise OutputError(f"no space left for {self.path} beside {entry['code']}")


def test_a_full_disk_is_said_once_and_the_stream_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = _Events()
    with FullDisk(tmp_path / "events.jsonl") as events.lines:
        for _number in range(3):
            events.note({"event": "late", "code": "S_LATE", "at_s": 0.0})
    events.finish()
    assert events.failed == {"events"} and events.counted["S_LATE"] == 3
    assert capsys.readouterr().err.count("no space left") == 1


def test_events_are_kept_as_they_came(tmp_path: Path) -> None:
    events = _Events()
    with LinesSink(tmp_path / "events.jsonl") as events.lines:
        events.note({"event": "late", "code": "S_LATE", "at_s": 0.0})
        events.finish()
    assert (tmp_path / "events.jsonl").read_text() == '{"event": "late", "code": "S_LATE", "at_s": 0.0}\n'
    assert not events.failed
