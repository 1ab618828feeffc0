# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime and OpenVINO on the CPU: the embedded package, the same sound and seed, window by window."""

from pathlib import Path

import numpy as np
import pytest

import edgereels.runtime
from edgereels.benchmarks.agreement import (
    LEAST_PSNR_DB,
    MOST_LEVELS,
    OPENVINO_F32,
    ORT_F32,
    Window,
    compare,
    windows_of,
)
from edgereels.benchmarks.sound import read_sound

DEMO = Path(edgereels.runtime.__file__).parent / "embedded" / "demo.wav"


@pytest.mark.slow
def test_two_engines_make_the_same_windows() -> None:
    sound = read_sound(DEMO, seconds=3)
    theirs, ours = (windows_of("default", sound, threads=1, **asked) for asked in (ORT_F32, OPENVINO_F32))
    assert len(ours) == len(theirs) >= 3
    found = [compare(*pair, index=index) for index, pair in enumerate(zip(ours, theirs, strict=True))]
    assert all(window.agrees for window in found), found
    # Negative control: other noise makes other windows, far outside the tolerance.
    assert not compare(ours[1], theirs[0][: len(ours[1])], index=1).agrees


def test_a_level_here_and_there_agrees_and_a_shifted_window_does_not() -> None:
    generator = np.random.default_rng(0)
    theirs = generator.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    ours = theirs.copy()
    assert compare(ours, theirs, index=0) == Window(0, 4, 0, 0.0, 200.0)
    ours.flat[::1000] ^= 1
    almost = compare(ours, theirs, index=0)
    assert (almost.levels, almost.share) == (1, pytest.approx(1 / 1000, rel=0.1))
    assert almost.agrees
    assert not compare(np.roll(theirs, 1, axis=2), theirs, index=0).agrees


def test_one_pixel_too_far_off_is_no_agreement() -> None:
    theirs = np.full((4, 32, 32, 3), 100, np.uint8)
    ours = theirs.copy()
    ours[0, 0, 0, 0] += MOST_LEVELS + 1
    found = compare(ours, theirs, index=0)
    assert found.psnr_db > LEAST_PSNR_DB
    assert not found.agrees
