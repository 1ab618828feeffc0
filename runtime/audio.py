# SPDX-License-Identifier: Apache-2.0
"""From a sound file to what the audio encoder hears: load, bring to 16 kHz mono, normalise, cut long speech up.

The chain is that of the published pipeline: channels averaged, soxr's high quality resampler, -23 LUFS (`loudness`),
zero mean and unit variance over the whole utterance, and one fractional place on the encoder's own time axis for every
video frame. SkyReels-V3 commit 28c771e, a2v_preprocess.py and wav2vec2.py (facts only, own code).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import MediaError
from .loudness import loudness_lufs, normalise_loudness
from .sound_file import Sound, open_sound

__all__ = [
    "SAMPLE_RATE",
    "SpeechSegment",
    "check_speech",
    "encode_segments",
    "encoder_input",
    "encoder_length",
    "encoder_positions",
    "load_speech",
    "loudness_lufs",
    "normalise_loudness",
    "video_frame_count",
]

SAMPLE_RATE = 16_000
"""Rate of all speech inside the runtime, in Hz."""

FPS = 25
"""Video frames per second, and so feature frames per second."""

SHORTEST_S = 0.4
"""The published pipeline refuses less: loudness needs one block of this length."""

LOWEST_RATE, HIGHEST_RATE = 8_000, 192_000
"""Rates that are resampled, in Hz; others are taken for damage."""

MOST_CHANNELS = 8
"""Channels that are mixed down."""

WHOLE_S = 200
"""Speech up to this long is encoded in one piece, as published; longer speech in segments."""

Samples = npt.NDArray[np.float32]

_STATISTICS_BLOCK = 1 << 20
_VARIANCE_FLOOR = 1e-7  # transformers 4.53, feature_extraction_wav2vec2.py


def load_speech(path: Path | str) -> Samples:
    """Read a sound file as mono speech at 16 kHz, shape (samples,), nominally in [-1, 1].

    Channels are averaged. Where a header promises more than the file holds, what it holds counts. The file is read
    block by block; only the result is in memory.

    Raises:
        MediaError: the file is missing, empty, of an unknown format, shorter than 0.4 s, sampled below 8 or above
            192 kHz, of more than 8 channels, or holds NaN or Inf.
    """
    path = Path(path)
    with open_sound(path) as sound:
        if not LOWEST_RATE <= sound.sample_rate <= HIGHEST_RATE:
            raise MediaError(
                f"{path} is sampled at {sound.sample_rate} Hz; expected {LOWEST_RATE} to {HIGHEST_RATE} Hz: resample it"
            )
        if sound.channels > MOST_CHANNELS:
            raise MediaError(f"{path} has {sound.channels} channels; expected at most {MOST_CHANNELS}: mix it down")
        collected, frames = _collect(sound, path=path)
    if not frames:
        raise MediaError(f"{path} holds no samples; expected at least {SHORTEST_S} s of sound: record it again")
    if frames < SHORTEST_S * sound.sample_rate:
        raise MediaError(
            f"{path} lasts {frames / sound.sample_rate:.3f} s; expected at least {SHORTEST_S} s: use a longer recording"
        )
    samples = np.frombuffer(collected, dtype=np.float32)
    wanted = math.ceil(frames * (SAMPLE_RATE / sound.sample_rate))  # librosa 0.11: resampled sound is cut or padded
    return samples[:wanted] if len(samples) >= wanted else np.pad(samples, (0, wanted - len(samples)))


def check_speech(samples: Samples) -> Samples:
    """Return samples that a program hands over as float32, shape (samples,).

    Raises:
        MediaError: they are not mono floating-point numbers, hold NaN or Inf, or last less than 0.4 s.
    """
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise MediaError(
            f"the sound is {samples.dtype} of shape {samples.shape}; expected mono floating-point samples (n,), 16 kHz"
        )
    if not np.isfinite(samples).all():
        raise MediaError("the sound holds NaN or Inf; expected numbers in [-1, 1]")
    if len(samples) < SHORTEST_S * SAMPLE_RATE:
        raise MediaError(f"the sound lasts {len(samples) / SAMPLE_RATE:.3f} s; expected at least {SHORTEST_S} s")
    return samples.astype(np.float32, copy=False)


def _collect(sound: Sound, *, path: Path) -> tuple[bytearray, int]:
    """Return all samples of a sound as mono float32 at 16 kHz, and how many frames it had at its own rate."""
    import soxr

    stream = None
    if sound.sample_rate != SAMPLE_RATE:
        stream = soxr.ResampleStream(sound.sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    collected, frames = bytearray(), 0  # grows in place: an array would be copied when it is joined
    for block in sound.blocks:
        with np.errstate(over="ignore", invalid="ignore"):
            mono = block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            at_s = (frames + int(np.argmin(np.isfinite(mono)))) / sound.sample_rate
            raise MediaError(f"{path} holds NaN or Inf at {at_s:.3f} s; expected numbers: export it again")
        frames += len(mono)
        collected += (mono if stream is None else stream.resample_chunk(mono)).tobytes()
    if stream is not None:
        collected += stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True).tobytes()
    return collected, frames


def encoder_input(samples: Samples) -> Samples:
    """Return speech with zero mean and unit variance over its whole length, as wav2vec2's feature extractor does.

    Statistics are taken in float64, block by block.
    """
    if not len(samples):
        return samples
    mean = float(samples.mean(dtype=np.float64))
    power = 0.0
    for first in range(0, len(samples), _STATISTICS_BLOCK):
        power += float(np.sum((samples[first : first + _STATISTICS_BLOCK].astype(np.float64) - mean) ** 2))
    deviation = math.sqrt(power / len(samples) + _VARIANCE_FLOOR)
    return ((samples - np.float32(mean)) / np.float32(deviation)).astype(np.float32, copy=False)


def video_frame_count(samples: int, *, fps: float = FPS, sample_rate: int = SAMPLE_RATE) -> int:
    """Return how many video frames a sound of a given length gets: rounded up, in float64 as published.

    The rounding of float64 adds a frame to some exact lengths (8960 samples are 14 frames, the published pipeline makes
    15); that is kept, so that frames and noise fall where the published ones do.

    >>> video_frame_count(16_001)
    26
    """
    return math.ceil(fps * (samples / sample_rate))


def encoder_length(samples: int, *, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many steps the encoder's convolutions make of a sound; 0 if it is too short for them.

    >>> encoder_length(16_000, kernels=(10, 3, 3, 3, 3, 2, 2), strides=(5, 2, 2, 2, 2, 2, 2))
    49
    """
    for kernel, stride in zip(kernels, strides, strict=True):
        if samples < kernel:
            return 0
        samples = (samples - kernel) // stride + 1
    return samples


def encoder_positions(samples: int, frames: int, *, kernels: Sequence[int], strides: Sequence[int]) -> Samples:
    """Return where each video frame lies on the time axis behind the encoder's convolutions, shape (frames,).

    The first frame lies at step 0 and the last one at the last step, in float32 as torch's linear interpolation with
    align_corners computes it.

    Raises:
        ValueError: there are no frames, or the sound is too short for the convolutions.
    """
    steps = encoder_length(samples, kernels=kernels, strides=strides)
    if frames < 1 or steps < 1:
        raise ValueError(
            f"{samples} samples give {steps} encoder steps for {frames} frames; expected at least 1 of each"
        )
    scale = np.float32(steps - 1) / np.float32(frames - 1) if frames > 1 else np.float32(0)
    return (np.arange(frames, dtype=np.float32) * scale).astype(np.float32, copy=False)


@dataclass(frozen=True)
class SpeechSegment:
    """A piece of long speech that is encoded by itself, and the part of its features that is kept."""

    start_sample: int
    """First sample that the encoder hears."""

    stop_sample: int
    """One past the last."""

    frames: int
    """Feature frames asked of the encoder for these samples."""

    keep_start: int
    """First of these frames that is kept."""

    keep_stop: int
    """One past the last."""

    first_frame: int
    """Video frame that the first kept one belongs to."""


def encode_segments(
    samples: int, *, fps: float = FPS, whole_s: float = WHOLE_S, segment_s: int = 60, context_s: int = 4
) -> list[SpeechSegment]:
    """Return the pieces in which speech is encoded; one, as published, up to `whole_s`.

    Longer speech is cut into runs of `segment_s` that are kept and heard together with `context_s` of sound on either
    side. Cuts lie on the video frame grid, where a piece of f frames is 2f - 1 encoder steps of wav2vec2: frames keep
    the spacing of exactly two steps, so a piece interpolates at the same places as the whole would. What differs from
    encoding the whole is what the encoder sees at once: its attention, and the statistics of its first layer.

    >>> [(s.start_sample / 16_000, s.stop_sample / 16_000, s.first_frame) for s in encode_segments(16_000 * 201)]
    [(0.0, 64.0, 0), (56.0, 124.0, 1500), (116.0, 184.0, 3000), (176.0, 201.0, 4500)]
    """
    total = video_frame_count(samples, fps=fps)
    if samples <= whole_s * SAMPLE_RATE:
        return [SpeechSegment(0, samples, frames=total, keep_start=0, keep_stop=total, first_frame=0)]
    segment_frames, context_frames = round(segment_s * fps), round(context_s * fps)
    segments: list[SpeechSegment] = []
    for first in range(0, total, segment_frames):
        last = min(first + segment_frames, total)
        start = max(0, first - context_frames)
        stop = min(last + context_frames, total)
        segments.append(
            SpeechSegment(
                int(start * SAMPLE_RATE / fps),
                samples if stop == total else int(stop * SAMPLE_RATE / fps),
                frames=stop - start,
                keep_start=first - start,
                keep_stop=last - start,
                first_frame=first,
            )
        )
    return segments
