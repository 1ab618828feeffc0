# SPDX-License-Identifier: Apache-2.0
"""A calibration on a package that stands in for a real one: which calls it sees, what it does when time is short."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgereels.benchmarks.call_operations import CallOperations, points_of
from edgereels.benchmarks.live_plan import Call, Setting, chunk_calls, decoded_pieces
from edgereels.benchmarks.plan_calibration import Sample, calibrate, curves_of, hum
from edgereels.runtime import AvatarSession
from edgereels.runtime.canvas import Canvas

from .stand_in_package import write_stand_in

SETTINGS = [Setting(32, 32, 9, 1, 1, 0), Setting(64, 64, 17, 2, 5, 0), Setting(64, 64, 33, 1, 5, 4)]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AvatarSession]:
    still = np.full((96, 96, 3), 90, np.uint8)
    folder = tmp_path_factory.mktemp("plan") / "stand-in"
    write_stand_in(folder, canvases={"still": Canvas(still, (16, 16, 80, 80), 4)}, has_image=True)
    with AvatarSession.open(folder, threads=1) as opened:
        yield opened


def calls_of(samples: tuple[Sample, ...], setting: Setting) -> Counter[Call]:
    return Counter(sample.call for sample in samples if sample.setting == setting)


def calls_offline(setting: Setting, *, has_canvas: bool) -> Counter[Call]:
    """Return a window's calls where, unlike in a live stream, the decoder begins afresh with each."""
    live = chunk_calls(setting, has_image=True, has_canvas=has_canvas)
    calls = Counter(call for call in live if call.stage not in ("audio_encode", "vae_decode", "finish"))
    stop = 0
    for frames in decoded_pieces(setting.window - setting.drop):
        stop += frames
        calls[Call("vae_decode", frames)] += 1
        calls[Call("finish", frames)] += stop > setting.motion  # what was shown already needs no colours
    return +calls


def test_every_call_of_a_window_is_measured_as_often_as_it_is_made(session: AvatarSession) -> None:
    """Piece by piece, step by step."""
    operations = CallOperations(session.package).window
    found = calibrate(session, SETTINGS, operations=operations, avatar="still", canvas_at=SETTINGS[0], budget_s=60)
    assert [point.setting for point in found.points] == SETTINGS and not found.left_out
    for index, point in enumerate(found.points):
        made = calls_offline(point.setting, has_canvas=index == 0)
        seen = calls_of(found.samples, point.setting)
        seen = Counter({call: times for call, times in seen.items() if call.stage != "audio_encode"})
        assert seen == Counter({call: times * len(point.windows_s) for call, times in made.items()})
        assert all(taken_s > 0 for taken_s in point.windows_s)
    heard = [sample.call for sample in found.samples if sample.call.stage == "audio_encode"]
    assert heard == [Call("audio_encode", 200)] * 2, "the first of three finds nothing warm"


def test_a_plan_of_other_windows_is_seen(session: AvatarSession) -> None:
    """Negative control: what is measured does not fit to another motion."""
    operations = CallOperations(session.package).window
    found = calibrate(session, SETTINGS[1:2], operations=operations, avatar="still", canvas_at=None, budget_s=60)
    seen = {
        call: times / len(found.points[0].windows_s) for call, times in calls_of(found.samples, SETTINGS[1]).items()
    }
    seen = {call: times for call, times in seen.items() if call.stage != "audio_encode"}
    assert seen == calls_offline(SETTINGS[1], has_canvas=False)
    assert seen != calls_offline(Setting(64, 64, 17, 2, 9, 0), has_canvas=False)


def test_without_time_the_first_point_alone_is_measured(session: AvatarSession) -> None:
    operations = CallOperations(session.package).window
    found = calibrate(session, SETTINGS, operations=operations, avatar="still", canvas_at=None, budget_s=1e-9)
    assert [point.setting for point in found.points] == SETTINGS[:1]
    assert found.left_out == tuple(SETTINGS[1:])
    assert len(found.points[0].windows_s) == 1
    assert found.is_measured(SETTINGS[0]) and not found.is_measured(SETTINGS[1])
    assert not found.is_measured(replace(SETTINGS[0], steps=2)), "this size and window, with steps that did not run"
    assert "audio_encode" in curves_of(found.samples, operations=CallOperations(session.package))


def test_curves_take_the_median_of_the_same_work() -> None:
    call = Call("dit", 17)
    samples = [Sample(SETTINGS[1], call, taken_s) for taken_s in (1.0, 5.0, 2.0)]
    samples.append(Sample(SETTINGS[0], call, 0.5))
    curves = curves_of(samples, operations=lambda setting, _call: setting.height)
    assert curves["dit"].points == ((32, 0.5), (64, 2.0))


def test_operations_grow_with_what_is_given(session: AvatarSession) -> None:
    operations = CallOperations(session.package)
    small, large = SETTINGS[0], SETTINGS[2]
    for stage, frames in (("vae_encode", 9), ("dit", 9), ("vae_decode", 8), ("finish", 8), ("between", 9)):
        assert operations(large, Call(stage, frames)) > operations(small, Call(stage, frames)) > 0
    assert operations(small, Call("audio_encode", 200)) > operations(small, Call("audio_encode", 100))
    assert operations(small, Call("image_encode", 1)) == operations(large, Call("image_encode", 1)) > 0


def test_points_are_the_smallest_the_largest_and_the_wanted() -> None:
    settings = [Setting(size, size, window, 2, 5, 0) for size in (64, 96, 128) for window in (17, 33, 49)]
    found = points_of(settings, settings[4], steps=1, operations=lambda one: one.height**2 * one.window)
    assert [(one.height, one.window, one.steps) for one in found] == [
        (64, 17, 1),
        (96, 17, 1),
        (96, 33, 1),
        (128, 49, 1),
    ]


def test_a_package_that_is_heavy_everywhere_is_probed_below_its_sizes() -> None:
    settings = [Setting(480, 832, window, 1, 5, 0) for window in (17, 33)]

    def operations(one: Setting) -> float:
        return 1e7 * one.height * one.width * one.window

    found = points_of(settings, settings[1], steps=1, operations=operations)
    assert (found[0].height, found[0].width) == (64, 96)
    assert operations(found[0]) < 2e12 < operations(settings[0])
    assert len(points_of(settings, settings[1], steps=1, operations=lambda one: 1.0)) < len(found)


def test_the_sound_is_long_enough_and_no_silence(tmp_path: Path) -> None:
    sound = hum(200)
    assert sound.shape == (128000,) and sound.dtype == np.float32
    assert 0.05 < float(np.sqrt(np.mean(sound**2))) < 0.2
