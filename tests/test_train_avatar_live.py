# SPDX-License-Identifier: Apache-2.0
"""Frames as a live stream makes them, without its clock, for whoever measures a face."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.audio import load_speech
from edgereels.runtime.model_package import DEMO_SPEECH

from .train_avatar_parts import part

pytestmark = pytest.mark.slow
for needed in ("torch", "skia", "scipy", "cv2"):
    pytest.importorskip(needed, reason=f"the training needs {needed}: pip install '.[train,export]'")

DEVICE = "openvino:CPU" if find_spec("openvino") else "cpu"


def renderer() -> Any:
    return part("live_rendering").LiveRenderer("default", device=DEVICE, compute="auto", threads=2, latency="low")


def test_every_frame_of_the_speech_is_there_and_they_move() -> None:
    ours = renderer()
    with ours.frames(load_speech(DEMO_SPEECH)[:16000], avatar="anna") as frames:
        assert frames.shape == (25, 192, 192, 3) and frames.dtype == np.uint8
        assert np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3)).min() > 0
    assert ours.seams(25) == [12, 24]


def test_a_stream_that_fails_is_an_error_and_no_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_named: object) -> None:
        raise AttributeError("not what a playout has")

    ours = renderer()
    monkeypatch.setattr(part("live_rendering")._Collector, "ahead", broken)
    with pytest.raises(AttributeError, match="a playout"), ours.frames(np.zeros(16000, np.float32), avatar="anna"):
        pass
