# SPDX-License-Identifier: Apache-2.0
"""Integrated loudness after ITU-R BS.1770, and speech brought to the loudness that the audio encoder was shown.

The figures are those of pyloudnorm 0.2 (blocks of 0.4 s that overlap by 75 %, gates at -70 LUFS and at 10 LU below the
mean), because the published pipeline measures with it; facts only, own code. The recursive filters are applied as one
convolution with their impulse response, by FFT: no recursion over samples, and exact to float64 rounding.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BLOCK_S = 0.4
"""Length of one measuring block, in seconds; shorter sound has no loudness."""

TARGET_LUFS = -23.0
"""Where the published pipeline brings speech."""

UNMEASURABLE_LUFS = 100.0
"""Beyond this, silence above all, sound is left as it is."""

_STEP = 0.25  # of a block
_OFFSET_LUFS = -0.691
_ABSOLUTE_GATE_LUFS = -70.0
_RELATIVE_GATE_LU = -10.0
_CHUNK = 1 << 18  # samples filtered at once: 8 MB of float64 on the way

Biquad = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def loudness_lufs(samples: npt.NDArray[np.float32], *, sample_rate: int) -> float:
    """Return the integrated loudness of mono sound in LUFS; minus infinity for silence.

    Raises:
        ValueError: the sound is shorter than one block of 0.4 s.
    """
    if len(samples) < BLOCK_S * sample_rate:
        raise ValueError(
            f"{len(samples)} samples at {sample_rate} Hz are less than {BLOCK_S} s; loudness needs a block"
        )
    energies = _block_energies(samples, sample_rate=sample_rate)
    gated = energies[gate_blocks(energies)]
    return float(block_loudness(gated.mean())) if len(gated) else float("-inf")


def gate_blocks(energies: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which blocks count towards the integrated loudness, by their mean squares, shape (blocks,).

    Those above -70 LUFS that lie less than 10 LU below the mean of all above -70 LUFS.
    """
    loudness = block_loudness(energies)
    heard = energies[loudness >= _ABSOLUTE_GATE_LUFS]
    if not len(heard):
        return np.zeros(len(energies), dtype=np.bool_)
    gate = float(block_loudness(heard.mean())) + _RELATIVE_GATE_LU
    return (loudness > gate) & (loudness > _ABSOLUTE_GATE_LUFS)


def normalise_loudness(
    samples: npt.NDArray[np.float32], target_lufs: float = TARGET_LUFS, *, sample_rate: int = 16_000
) -> npt.NDArray[np.float32]:
    """Return mono sound at a target loudness: one gain, no limiter. Sound beyond 100 LUFS is returned as it is.

    Raises:
        ValueError: the sound is shorter than one block of 0.4 s.
    """
    found = loudness_lufs(samples, sample_rate=sample_rate)
    if abs(found) > UNMEASURABLE_LUFS:
        return samples
    return samples * np.float32(10 ** ((target_lufs - found) / 20))


def block_loudness(energy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the loudness in LUFS of K-weighted mean squares; minus infinity for silence."""
    with np.errstate(divide="ignore"):
        return np.asarray(_OFFSET_LUFS + 10 * np.log10(energy))


def k_weighting(sample_rate: int) -> tuple[Biquad, Biquad]:
    """Return the two filters of the K weighting, each as (numerator, denominator) with the denominator led by 1.

    A shelf of +4 dB above 1.5 kHz stands for the head, a high pass at 38 Hz for the ear; both after Bristow-Johnson.
    """
    gain = 10 ** (4.0 / 40)
    omega = 2 * np.pi * 1500.0 / sample_rate
    cosine, root = np.cos(omega), 2 * np.sqrt(gain) * np.sin(omega) / (2 / np.sqrt(2))
    shelf = _led_by_one(
        [
            gain * ((gain + 1) + (gain - 1) * cosine + root),
            -2 * gain * ((gain - 1) + (gain + 1) * cosine),
            gain * ((gain + 1) + (gain - 1) * cosine - root),
        ],
        [
            (gain + 1) - (gain - 1) * cosine + root,
            2 * ((gain - 1) - (gain + 1) * cosine),
            (gain + 1) - (gain - 1) * cosine - root,
        ],
    )
    omega = 2 * np.pi * 38.0 / sample_rate
    cosine, alpha = np.cos(omega), np.sin(omega) / (2 * 0.5)
    half = (1 + cosine) / 2
    high_pass = _led_by_one([half, -2 * half, half], [1 + alpha, -2 * cosine, 1 - alpha])
    return shelf, high_pass


def impulse_response(sample_rate: int) -> npt.NDArray[np.float64]:
    """Return the response of both filters in a row to one sample of 1, until it is lost in float64 rounding."""
    # The slowest pole, a double one of the high pass, lies near exp(-2 pi 38 / rate): 44 time constants end at 1e-17.
    length = int(44 * sample_rate / (2 * np.pi * 38.0))
    response = [1.0] + [0.0] * (length - 1)
    for numerator, denominator in k_weighting(sample_rate):
        (b0, b1, b2), (_, a1, a2) = numerator.tolist(), denominator.tolist()
        first = second = 0.0
        for index, value in enumerate(response):  # some thousand steps, once: transposed direct form II
            out = b0 * value + first
            first, second = b1 * value - a1 * out + second, b2 * value - a2 * out
            response[index] = out
    return np.array(response)


def _led_by_one(numerator: list[float], denominator: list[float]) -> Biquad:
    return np.array(numerator) / denominator[0], np.array(denominator) / denominator[0]


def _block_energies(samples: npt.NDArray[np.float32], *, sample_rate: int) -> npt.NDArray[np.float64]:
    """Return the mean square of every block. Block j covers quarters j … j + 3; quarters end at whole samples."""
    count = int(np.round((len(samples) / sample_rate - BLOCK_S) / (BLOCK_S * _STEP))) + 1
    edges = (BLOCK_S * (np.arange(count + 4) * _STEP) * sample_rate).astype(np.int64)
    edges = np.minimum(edges, len(samples))  # rounding may promise a quarter that isn't quite there
    quarters = np.zeros(count + 3)
    start = 0
    for filtered in _weighted(samples, sample_rate=sample_rate):
        stop = start + len(filtered)
        inside = np.arange(np.searchsorted(edges, start, "right") - 1, np.searchsorted(edges[:-1], stop, "left"))
        if len(inside):
            sums = np.concatenate([[0.0], np.cumsum(filtered * filtered)])
            lower = np.clip(edges[inside] - start, 0, len(filtered))
            upper = np.clip(edges[inside + 1] - start, 0, len(filtered))
            quarters[inside] += sums[upper] - sums[lower]
        start = stop
    blocks = quarters[:-3] + quarters[1:-2] + quarters[2:-1] + quarters[3:]
    return blocks / (BLOCK_S * sample_rate)


def _weighted(samples: npt.NDArray[np.float32], *, sample_rate: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the K-weighted sound, some samples at a time (overlap-save)."""
    response = impulse_response(sample_rate)
    chunk = min(_CHUNK, len(samples))
    size = 1 << (chunk + len(response) - 1).bit_length()
    spectrum = np.fft.rfft(response, size)
    history = np.zeros(len(response) - 1)
    for first in range(0, len(samples), chunk):
        piece = np.concatenate([history, samples[first : first + chunk].astype(np.float64)])
        filtered = np.fft.irfft(np.fft.rfft(piece, size) * spectrum, size)
        yield filtered[len(history) : len(piece)]
        history = piece[len(piece) - len(history) :]
