# SPDX-License-Identifier: Apache-2.0
"""The clip that is measured with: the beginning of a WAV file."""

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16000

Samples = npt.NDArray[np.float32]


def read_sound(path: Path, *, seconds: float) -> Samples:
    """Return the first seconds of a WAV file of 16 kHz, one channel and 16 bits.

    Raises:
        ValueError: another form of WAV.
    """
    with wave.open(str(path)) as file:
        found = (file.getframerate(), file.getnchannels(), 8 * file.getsampwidth())
        if found != (SAMPLE_RATE, 1, 16):
            raise ValueError(f"{path} has (rate, channels, bits) {found}; expected ({SAMPLE_RATE}, 1, 16)")
        raw = file.readframes(round(seconds * SAMPLE_RATE))
    return np.frombuffer(raw, "<i2") * np.float32(1 / 32768)


def write_sound(path: Path, samples: Samples) -> None:
    """Write samples as .npy, the form in which contenders take them."""
    np.save(path, samples)
