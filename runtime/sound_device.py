# SPDX-License-Identifier: Apache-2.0
"""Finding a sound device: sounddevice and its library, and the clock that a machine can have."""

import time
from collections.abc import Callable
from typing import Any

from .errors import MediaError, MissingExtraError, UsageError
from .frame_queue import OnEvent
from .silent_clock import SilentClock
from .speakers import Speakers


def import_sounddevice(*, purpose: str = "playing sound") -> Any:
    """Return sounddevice.

    Args:
        purpose: what wants it, for the message.

    Raises:
        MissingExtraError: it is not installed.
        MediaError: it is, and its library PortAudio is not.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError("sounddevice", extra="live", purpose=purpose) from error
    except OSError as error:
        raise MediaError(
            f"{purpose} needs PortAudio, which doesn't load ({error}); expected the library libportaudio2: install it"
        ) from error
    return sounddevice


def check_device(module: Any, device: int | str, kind: str) -> None:
    """Refuse a device that was named and isn't there; the default one may be missing, and come.

    Args:
        module: sounddevice, or what stands for it.
        device: number, or part of its name.
        kind: input or output.

    Raises:
        UsageError: it is not there; the message names those that are.
    """
    try:
        module.query_devices(device, kind)
    except (ValueError, module.PortAudioError) as error:
        there = [each["name"] for each in module.query_devices() if each[f"max_{kind}_channels"] > 0]
        raise UsageError(
            f"there is no {kind} device {device!r} ({error}); expected one of: {', '.join(there) or 'there is none'}"
        ) from error


def open_clock(
    sample_rate: int = 16000,
    *,
    on_event: OnEvent | None = None,
    device: int | str | None = None,
    load: Callable[[], Any] = import_sounddevice,
) -> SilentClock:
    """Return speakers, or the silent clock where PortAudio is missing, which `on_event` is told.

    Raises:
        MissingExtraError: sounddevice is not installed.
    """
    try:
        module = load()
    except MediaError as error:
        if on_event is not None:
            told = {"event": "audio_lost", "code": "AUDIO_UNAVAILABLE", "at_s": time.perf_counter()}
            on_event({**told, "reason": str(error)})
        return SilentClock(sample_rate, on_event=on_event)
    if device is not None:
        check_device(module, device, "output")
    return Speakers(module, sample_rate, on_event=on_event, device=device)
