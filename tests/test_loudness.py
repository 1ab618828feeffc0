# SPDX-License-Identifier: Apache-2.0
"""Loudness against the recorded figures, and against the recursive filters that the convolution stands for."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from edgereels.runtime.loudness import impulse_response, k_weighting, loudness_lufs, normalise_loudness

SIGNALS = ["gated", "loud", "quiet", "silence"]


def sine(*, seconds: float, rate: int = 48_000, level: float = 1.0) -> npt.NDArray[np.float32]:
    return (level * np.sin(2 * np.pi * 997 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.golden
@pytest.mark.parametrize("name", SIGNALS)
def test_a_recorded_signal_has_the_recorded_loudness(golden: Path, name: str) -> None:
    theirs = load_file(golden / "golden" / "loudness.safetensors")
    ours = loudness_lufs(theirs[f"{name}_in"], sample_rate=16_000)
    # pyloudnorm rounds to float32 between its filters: 2e-7 LU
    assert ours == pytest.approx(float(theirs[f"{name}_lufs"]), abs=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", SIGNALS)
def test_a_recorded_signal_is_normalised_to_the_bit(golden: Path, name: str) -> None:
    theirs = load_file(golden / "golden" / "loudness.safetensors")
    np.testing.assert_array_equal(normalise_loudness(theirs[f"{name}_in"]), theirs[f"{name}_out"])


@pytest.mark.golden
def test_another_target_is_noticed(golden: Path) -> None:
    theirs = load_file(golden / "golden" / "loudness.safetensors")
    assert np.abs(normalise_loudness(theirs["loud_in"], -22.99) - theirs["loud_out"]).max() > 1e-5


@pytest.mark.golden
@pytest.mark.parametrize("name", ["speech_short", "speech_long", "speech_e2e", "speech_e2e_short"])
def test_recorded_speech_has_the_recorded_loudness(golden: Path, name: str) -> None:
    theirs = load_file(golden / "golden" / f"wav2vec_{name}.safetensors")
    assert loudness_lufs(theirs["raw"], sample_rate=16_000) == pytest.approx(float(theirs["lufs"]), abs=1e-6)


def test_a_full_scale_sine_of_997_hz_measures_minus_3_01_lufs() -> None:
    # the calibration of BS.1770; its own filters, only approximated here, are specified to 0.1 LU
    assert loudness_lufs(sine(seconds=3), sample_rate=48_000) == pytest.approx(-3.01, abs=0.1)


def test_half_the_amplitude_is_6_02_lu_less() -> None:
    loud, half = (loudness_lufs(sine(seconds=1, level=level), sample_rate=48_000) for level in (1.0, 0.5))
    assert loud - half == pytest.approx(6.0206, abs=1e-4)


def test_pauses_are_gated_out() -> None:
    speech = sine(seconds=4, level=0.2)
    paused = np.concatenate([speech, np.zeros(48_000 * 4, np.float32)])
    # blocks that straddle the end of the sound lie above the gate and cost half a unit at most
    assert loudness_lufs(paused, sample_rate=48_000) == pytest.approx(
        loudness_lufs(speech, sample_rate=48_000), abs=0.5
    )


def test_normalised_sound_measures_the_target() -> None:
    ours = normalise_loudness(sine(seconds=2, rate=16_000, level=0.01))
    assert loudness_lufs(ours, sample_rate=16_000) == pytest.approx(-23, abs=1e-5)


def test_silence_is_returned_untouched() -> None:
    silence = np.zeros(8000, np.float32)
    assert loudness_lufs(silence, sample_rate=16_000) == float("-inf")
    assert normalise_loudness(silence) is silence


def test_sound_beyond_100_lufs_is_returned_untouched() -> None:
    monstrous = sine(seconds=1, rate=16_000, level=1e6)
    assert normalise_loudness(monstrous) is monstrous


def test_less_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="6399 samples"):
        loudness_lufs(np.ones(6399, np.float32), sample_rate=16_000)


@pytest.mark.parametrize("rate", [16_000, 48_000], ids="{}-Hz".format)
def test_the_convolution_is_the_recursion(rate: int) -> None:
    steps = len(impulse_response(rate)) + 500
    signal = np.zeros(steps)
    signal[:500] = np.random.default_rng(0).standard_normal(500)
    expected = signal.tolist()
    for numerator, denominator in k_weighting(rate):
        b, a = numerator.tolist(), denominator.tolist()
        before = [0.0, 0.0, *expected]
        after = [0.0, 0.0]
        for n in range(2, steps + 2):
            after.append(sum(b[k] * before[n - k] for k in range(3)) - a[1] * after[n - 1] - a[2] * after[n - 2])
        expected = after[2:]
    ours = np.convolve(signal, impulse_response(rate))[:steps]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)  # float64 sums of thousands of terms


def test_loudness_does_not_depend_on_where_the_sound_is_cut_for_filtering(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    whole = loudness_lufs(speech, sample_rate=16_000)
    monkeypatch.setattr("edgereels.runtime.loudness._CHUNK", 1237)
    assert loudness_lufs(speech, sample_rate=16_000) == pytest.approx(whole, abs=1e-10)
