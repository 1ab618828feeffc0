# SPDX-License-Identifier: Apache-2.0
"""Finding a sound device: sounddevice and its library, and the clock that a machine can have."""

import time
from collections.abc import Callable
from typing import Any

from .errors import MediaError, MissingExtraError
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
    return Speakers(module, sample_rate, on_event=on_event, device=device)
