# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import pytest

from edgereels.runtime.errors import MediaError, MissingExtraError
from edgereels.runtime.silent_clock import SilentClock
from edgereels.runtime.sound_device import import_sounddevice, open_clock
from edgereels.runtime.speakers import Speakers

from .fake_sound_device import FakeSoundModule
from .virtual_clock import VirtualClock


def test_with_portaudio_there_are_speakers() -> None:
    """Negative control; nothing is opened before `with`."""
    module = FakeSoundModule(VirtualClock())
    assert type(open_clock(load=lambda: module)) is Speakers
    assert module.opened == 0


def test_without_portaudio_there_is_a_silent_clock_and_it_is_told() -> None:
    def load():
        raise MediaError("PortAudio library not found")

    events: list[dict] = []
    clock = open_clock(on_event=events.append, load=load)
    assert type(clock) is SilentClock
    assert [(event["code"], event["reason"]) for event in events] == [
        ("AUDIO_UNAVAILABLE", "PortAudio library not found")
    ]


def test_without_sounddevice_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgereels\[live\]'"):
        open_clock()


def test_without_portaudio_the_message_names_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MediaError, match=r"listening to a microphone .* libportaudio2"):
        import_sounddevice(purpose="listening to a microphone")
    events: list[dict] = []
    assert type(open_clock(on_event=events.append)) is SilentClock
    assert [event["code"] for event in events] == ["AUDIO_UNAVAILABLE"]
