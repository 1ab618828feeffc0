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


def emulable(samples: Samples) -> Samples:
    """Cut a sound to a length at which OpenVINO runs the audio encoder with its instruction set capped.

    OpenVINO 2026.4.1 ends the process (SIGSEGV) in a normalisation over a length that is no multiple of 16 where
    `ONEDNN_MAX_CPU_ISA` caps a processor that has AVX-512: the kernel is still the one for AVX-512, the code for its
    last values the one for AVX2. The length is that of the first convolution's output, kernel 10, stride 5. A
    processor without AVX-512 does not mix them.
    """
    steps = (len(samples) - 10) // 5 + 1
    return samples[: (steps // 16 * 16 - 1) * 5 + 10]


def write_sound(path: Path, samples: Samples) -> None:
    """Write samples as .npy, the form in which contenders take them."""
    np.save(path, samples)
