# SPDX-License-Identifier: Apache-2.0
"""How the error of `edgereels plan` is found: that a render consists of the calls that are predicted."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from edgereels.benchmarks.live_plan import Call, Setting, decoded_pieces
from edgereels.benchmarks.plan_error import render_calls, summary
from edgereels.runtime import AvatarSession, Trace

from .stand_in_package import write_stand_in


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AvatarSession]:
    folder = write_stand_in(tmp_path_factory.mktemp("plan") / "stand-in", has_image=True)
    with AvatarSession.open(folder, threads=1) as opened:
        yield opened


def traced_calls(session: AvatarSession, frames: int, setting: Setting) -> Counter[str]:
    """Render so many frames and return how often each stage ran from the first denoising step on."""
    trace = Trace()
    sound = np.sin(np.arange(frames * 640) * 0.1).astype(np.float32)
    stream = session.stream(
        audio=sound,
        size=(setting.height, setting.width),
        window=setting.window,
        motion=setting.motion,
        drop=setting.drop,
        steps=setting.steps,
        canvas=False,
        trace=trace,
    )
    assert sum(len(chunk.frames) for chunk in stream) == frames
    began_s = min(event["start_s"] for event in trace.events if event["event"] == "dit")
    return Counter(event["event"] for event in trace.events if event["start_s"] >= began_s)


@pytest.mark.parametrize("frames", [33, 34, 60, 61, 75, 100])
@pytest.mark.parametrize("window", [(17, 0), (17, 4), (33, 4)], ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_a_render_consists_of_the_calls_that_are_predicted(
    session: AvatarSession, window: tuple[int, int], frames: int
) -> None:
    setting = Setting(32, 32, window[0], 2, 5, window[1])
    ours = Counter(call.stage for call in render_calls(frames, setting, has_image=True))
    theirs = traced_calls(session, frames, setting)
    del ours["between"]
    assert ours == theirs
    other = Counter(call.stage for call in render_calls(frames + setting.chunk_frames, setting, has_image=True))
    assert other != theirs, "negative control: a window more is seen"


def test_a_render_of_less_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="less than a window"):
        render_calls(32, Setting(32, 32, 33, 1, 5, 4), has_image=False)


def test_the_last_window_is_decoded_as_far_as_it_is_kept() -> None:
    setting = Setting(32, 32, 17, 1, 5, 0)
    calls = [call for call in render_calls(20, setting, has_image=False) if call.stage == "vae_decode"]
    assert calls == [Call("vae_decode", frames) for frames in decoded_pieces(17) * 2 + decoded_pieces(8)]


def test_errors_pair_what_was_predicted_and_measured_in_one_run() -> None:
    common = {"kind": "render", "size": "32x32", "window": 17, "steps": 1, "was_calibrated": False}
    common |= {"others_percent": {"plan": 3.0, "measurement": None}}
    runs = [common | {"predicted": 1.1, "measured": 1.0}, common | {"predicted": 1.8, "measured": 2.0}]
    (row,) = summary(runs)
    assert row["n"] == 2 and not row["was_calibrated"] and row["most_others_percent"] == 3.0
    assert row["error"] == pytest.approx({"median": 0.0, "min": -0.1, "max": 0.1})
