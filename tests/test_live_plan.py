# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of `edgereels plan`: what a window consists of, costs over operations, what is live and nearest."""

import doctest

import pytest

from edgereels.benchmarks import live_plan
from edgereels.benchmarks.live_plan import (
    AUDIO_REACH,
    HEARD_FRAMES,
    WORDS,
    Call,
    Curve,
    Prediction,
    Setting,
    chunk_calls,
    decoded_pieces,
    distance,
    drop_of,
    encoded_pieces,
    grid,
    nearest_live,
    predict,
    sentence,
    why_not,
)
from edgereels.runtime import chunks, live_hearing, vae_stream
from edgereels.runtime.live_settings import live_settings
from edgereels.runtime.manifest import Settings

SMALL = Setting(160, 160, 17, 1, 5, 0)
BALANCED = Setting(192, 192, 33, 1, 5, 4)


def predicted(setting: Setting, factor: float) -> Prediction:
    """Return a prediction that comes to a real-time factor at 25 fps."""
    return Prediction(setting, 25, {"dit": factor * setting.chunk_frames / 25}, False)


def test_examples_in_docstrings() -> None:
    failed, attempted = doctest.testmod(live_plan)
    assert attempted and not failed


# ── Held to the runtime, which may not be imported there ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("window", WORDS)
def test_windows_are_those_that_live_streams_have(window: int) -> None:
    own = Settings(fps=25, sample_rate=16000, window=33, motion=5, drop=4, steps=1, shift=11.0, max_offline_s=200)
    theirs = live_settings(WORDS[window], own)
    ours = Setting(192, 192, window, 1, theirs.motion, drop_of(window))
    assert (ours.window, ours.drop, ours.chunk_frames) == (theirs.window, theirs.drop, theirs.chunk_frames)
    assert ours.look_ahead_s(25) == theirs.first_frame_s


def test_numbers_are_the_runtimes_own() -> None:
    assert AUDIO_REACH == chunks.AUDIO_REACH
    assert HEARD_FRAMES == live_hearing.LONGEST_HEARD_S * 25
    assert live_plan.ENCODED_AT_ONCE == vae_stream.ENCODED_AT_ONCE
    assert live_plan.DECODED_AT_ONCE == vae_stream.DECODED_AT_ONCE


@pytest.mark.parametrize("frames", range(1, 100, 4))
def test_pieces_are_those_of_the_vae(frames: int) -> None:
    latents = 1 + (frames + 2) // 4
    later = vae_stream.later_calls(latents, at_once=vae_stream.DECODED_AT_ONCE)
    assert decoded_pieces(frames) == [1, *(4 * count for count in later)]
    later = vae_stream.later_calls(1 + (frames - 1) // 4, at_once=vae_stream.ENCODED_AT_ONCE)
    assert encoded_pieces(frames) == [1, *(4 * count for count in later)]


# ── Settings and calls ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_grid_leaves_out_what_does_not_exist() -> None:
    found = grid([(64, 64), (128, 128)], [9, 17, 18], [2, 1], motion=5, drop=None)
    assert [(one.height, one.window, one.steps) for one in found] == [
        (128, 17, 1),
        (128, 17, 2),
        (64, 17, 1),
        (64, 17, 2),
    ]


def test_a_window_says_why_it_can_not_be() -> None:
    assert "frames, not 18" in why_not(18, motion=5, drop=0)
    assert "has no room" in why_not(9, motion=5, drop=4)
    assert not why_not(17, motion=5, drop=4)


def test_a_window_consists_of_these_calls() -> None:
    calls = chunk_calls(Setting(192, 192, 17, 2, 5, 0), has_image=False, has_canvas=True)
    assert calls == (
        Call("audio_encode", 200),
        Call("vae_encode", 17),
        Call("dit", 17),
        Call("dit", 17),
        Call("vae_decode", 4),
        Call("finish", 4),
        Call("vae_decode", 8),
        Call("finish", 8),
        Call("canvas", 12),
        Call("between", 17),
    )


def test_what_a_package_does_not_have_costs_nothing() -> None:
    bare = {call.stage for call in chunk_calls(BALANCED, has_image=False, has_canvas=False)}
    whole = {call.stage for call in chunk_calls(BALANCED, has_image=True, has_canvas=True)}
    assert whole - bare == {"image_encode", "canvas"} and whole == set(live_plan.STAGES)


# ── Costs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_curve_is_straight_between_points_and_in_proportion_above() -> None:
    curve = Curve(((10, 1.0), (20, 3.0)))
    assert [curve.seconds(work) for work in (10, 15, 20, 40)] == [1.0, 2.0, 3.0, 6.0]


def test_below_its_points_a_curve_keeps_the_part_that_does_not_depend_on_size() -> None:
    assert Curve(((10, 3.0), (20, 4.0))).seconds(5) == 2.5
    assert Curve(((10, 1.0), (20, 3.0))).seconds(5) == 0.5, "a line that would fall below proportion"
    assert Curve(((10, 3.0), (20, 2.0))).seconds(5) == 3.0, "nor does less work take longer, whatever noise says"
    assert Curve(((10, 3.0),)).seconds(5) == 1.5


@pytest.mark.parametrize("points", [(), ((20, 1.0), (10, 1.0)), ((10, 1.0), (10, 2.0))], ids=["none", "falls", "twice"])
def test_a_curve_without_an_order_is_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="rise in operations"):
        Curve(points)


def test_a_machine_that_obeys_the_model_is_predicted_exactly() -> None:
    """Costs made of a constant per call and a rate: from two settings, those between follow, and steps as well."""

    def operations(setting: Setting, call: Call) -> float:
        return call.frames * (1 if call.stage == "audio_encode" else setting.height * setting.width)

    def machine_s(setting: Setting, call: Call) -> float:
        return 0.002 + 1e-8 * operations(setting, call)

    known = [SMALL, Setting(192, 192, 81, 1, 5, 12)]
    curves = {
        stage: Curve(
            tuple(
                sorted(
                    {
                        (operations(one, call), machine_s(one, call))
                        for one in known
                        for call in chunk_calls(one, has_image=False, has_canvas=False)
                        if call.stage == stage
                    }
                )
            )
        )
        for stage in ("audio_encode", "vae_encode", "dit", "vae_decode", "finish", "between")
    }
    wanted = Setting(176, 176, 49, 3, 5, 4)
    found = predict(wanted, fps=25, curves=curves, operations=operations)
    truth_s = sum(machine_s(wanted, call) for call in chunk_calls(wanted, has_image=False, has_canvas=False))
    assert found.cost_s == pytest.approx(truth_s)
    assert found.real_time_factor == pytest.approx(truth_s * 25 / 40)
    # Negative control: a machine with a constant twice as large is predicted wrong from the same curves.
    slower_s = truth_s + 0.002 * len(chunk_calls(wanted, has_image=False, has_canvas=False))
    assert found.cost_s != pytest.approx(slower_s)


# ── Verdict ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_live_says_what_is_to_spare() -> None:
    wanted = predicted(BALANCED, 0.62)
    said = sentence(wanted, [wanted], error=0.1)
    assert said == "live at 25 fps with 192x192, window 33, 1 step: 38 % to spare"


def test_what_is_close_to_the_limit_is_called_so() -> None:
    live, late = predicted(BALANCED, 0.95), predicted(BALANCED, 1.05)
    assert "within this plan's error" in sentence(live, [live], error=0.1)
    assert "needs 1.05× (within this plan's error)" in sentence(late, [late], error=0.1)
    assert "error" not in sentence(live, [live], error=0.01)


def test_what_is_not_live_names_the_nearest_that_is() -> None:
    wanted = predicted(Setting(192, 192, 33, 4, 5, 4), 1.8)
    others = [predicted(Setting(192, 192, 33, 2, 5, 4), 0.88), predicted(Setting(160, 160, 33, 1, 5, 4), 0.4)]
    said = sentence(wanted, [wanted, *others], error=0.1)
    assert said == (
        "not live here: 192x192, window 33, 4 steps needs 1.80×; nearest live setting: 192x192, window 33, 2 steps "
        "(12 % to spare)"
    )


def test_where_nothing_is_live_the_fastest_is_named() -> None:
    wanted, other = predicted(BALANCED, 3.0), predicted(SMALL, 1.5)
    said = sentence(wanted, [wanted, other], error=0.1)
    assert said.endswith("none in this table; the fastest, 160x160, window 17, 1 step, needs 1.50×")
    assert nearest_live(BALANCED, [wanted, other]) is None


def test_nearer_is_what_changes_by_less_and_among_equals_what_keeps_the_size() -> None:
    wanted = Setting(192, 192, 33, 2, 5, 4)
    fewer_steps = Setting(192, 192, 33, 1, 5, 4)
    smaller = Setting(96, 192, 33, 2, 5, 4)
    both = Setting(96, 192, 33, 1, 5, 4)
    assert distance(wanted, fewer_steps) < distance(wanted, smaller) < distance(wanted, both)
    live = [predicted(one, 0.5) for one in (both, smaller, fewer_steps)]
    found = nearest_live(wanted, live)
    assert found is not None and found.setting == fewer_steps
