# SPDX-License-Identifier: Apache-2.0
"""Replaying passes with graphs exchanged, ranking parts by what they do to frames, and recipes under a budget."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.dom import minidom

import numpy as np
import onnx
import pytest

from edgereels.quant.candidates import Part, keeping, part_name
from edgereels.quant.curve_drawing import describe, draw
from edgereels.quant.layers import read_model
from edgereels.quant.package_size import QUALITY_BYTES, package_bytes
from edgereels.quant.plan import make_plan, read_graphs
from edgereels.quant.recipes import Recipe, Rule, parse_recipe, recipe_bytes
from edgereels.quant.replay import REPLAYED, Outcome, Replay, pick_scenes
from edgereels.quant.rewrite import Range
from edgereels.quant.sensitivity import Curve, Harm, Ranked, compare, decibels, read_curve, search, within_size
from edgereels.quant.trajectory import Recording, record
from edgereels.quant.workbench import Workbench
from edgereels.runtime import AvatarSession, EdgereelsError, ModelPackage, UsageError

from .test_trajectory import speech, write_sound

MIXED = Recipe(
    "mixed",
    (
        Rule(("dit*",), ("head.head", "blocks.0.ffn.*", "blocks.4.self_attn.*"), ("MatMul",), "int8"),
        Rule(("vae_decoder*",), ("decoder.head.2", "decoder.middle.1.*"), ("Conv",), "int8-static"),
    ),
)
"""Five parts, the transformer's head among them, of which everybody knows that it suffers most."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def replay(embedded: ModelPackage, embedded_recording: Recording) -> Iterator[Replay]:
    with Replay(embedded, embedded_recording, scenes=1, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def curve(embedded: ModelPackage, embedded_recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    scratch = tmp_path_factory.mktemp("search")
    return search(embedded, embedded_recording, recipe=MIXED, scratch=scratch, least_db=30.0, scenes=1, threads=1)


# ── Replay ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_replayed_pass_comes_to_the_latents_that_the_session_decoded(
    embedded: ModelPackage, embedded_recording: Recording
) -> None:
    decoded = {call.pass_index: call.feeds()["latents"] for call in embedded_recording.calls["vae_decoder_first"]}
    with Replay(embedded, embedded_recording, scenes=9, threads=1) as replay:
        assert len(replay.scenes) == 4  # the key-frame pass and three windows
        for scene, outcome in zip(replay.scenes, replay.reference, strict=True):
            assert np.array_equal(outcome.latents[:, :, :1], decoded[scene.window.pass_index])


@pytest.mark.slow
def test_several_steps_and_motion_frames_are_replayed_as_they_were(embedded: ModelPackage, tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", speech(2.4))
    made = record(embedded, scratch=tmp_path, folder=tmp_path, threads=1, size=(64, 64), steps=3)
    decoded = {call.pass_index: call.feeds()["latents"] for call in made.calls["vae_decoder_first"]}
    with Replay(embedded, made, scenes=9, threads=1) as replay:
        for scene, outcome in zip(replay.scenes, replay.reference, strict=True):
            # motion latents are their noised form less its noise: float32 loses the last bits
            assert np.allclose(outcome.latents[:, :, :1], decoded[scene.window.pass_index], atol=1e-5)


def test_replayed_frames_are_those_that_the_session_would_colour(
    embedded: ModelPackage, embedded_recording: Recording
) -> None:
    seen: list[np.ndarray] = []

    def observe(graph: str, feeds: Mapping[str, np.ndarray], _outputs: Mapping[str, np.ndarray]) -> None:
        if graph == "finish":
            seen.append(np.array(feeds["frames"]))

    with AvatarSession.open(embedded.root, device="onnxruntime:CPU", threads=1, verify="size", observe=observe) as s:
        for _chunk in s.stream(audio=embedded_recording.clips[0].path, seed=0, size=(64, 64)):
            pass
    theirs = np.concatenate(seen, axis=2)
    with Replay(embedded, embedded_recording, scenes=1, threads=1) as replay:
        ours = replay.reference[0].frames
    shown = replay.scenes[0].window.emit_start
    first = ours[:, :, shown : shown + 1]
    nearest = np.abs(theirs - first).max(axis=(0, 1, 3, 4)).min()
    assert nearest == 0.0
    assert np.abs(theirs - first - 0.01).max(axis=(0, 1, 3, 4)).min() > 0  # negative control


@pytest.mark.parametrize("graph", [name for name in REPLAYED if name != "image_encoder"])
def test_exchanging_a_graph_for_itself_changes_nothing_and_for_another_something(
    embedded: ModelPackage, replay: Replay, tmp_path: Path, graph: str
) -> None:
    model = read_model(embedded.graph_path(graph))
    same = Workbench(embedded, tmp_path).write("same", model)
    other = Workbench(embedded, tmp_path).write("other", louder(model))
    (reference,) = replay.reference
    (ours,) = replay.run({graph: same})
    (theirs,) = replay.run({graph: other})
    assert np.abs(ours.frames - reference.frames).max() <= 1e-6  # the same bits in, the same arithmetic
    assert np.abs(theirs.frames - reference.frames).max() > 1e-4


def louder(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its first output 5 % larger."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    name = changed.graph.output[0].name
    for node in changed.graph.node:
        for names in (node.input, node.output):
            for index, value in enumerate(names):
                if value == name:
                    names[index] = f"{name}.before"
    factor = onnx.numpy_helper.from_array(np.float32(1.05), "louder.factor")
    changed.graph.initializer.append(factor)
    changed.graph.node.append(onnx.helper.make_node("Mul", [f"{name}.before", "louder.factor"], [name]))
    return changed


def test_a_graph_that_is_not_replayed_cannot_be_exchanged(replay: Replay, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="finish"):
        replay.run({"finish": tmp_path / "finish.onnx"})


def test_scenes_are_windows_that_show_something_first(embedded_recording: Recording) -> None:
    order = [scene.window.pass_index for scene in pick_scenes(embedded_recording, most=9)]
    assert order[-1] == 0  # of the key-frame pass nothing is shown
    ranks = embedded_recording.clips[0].ranks
    assert [ranks[index] for index in order[:-1]] == sorted(ranks[index] for index in order[:-1])


def test_a_recording_without_whole_passes_has_no_scene(embedded_recording: Recording) -> None:
    longer = replace(embedded_recording, timesteps=np.array([1000, 500, 0], np.float32))
    with pytest.raises(UsageError, match="no whole pass"):
        pick_scenes(longer, most=1)


# ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("place", "regions"),
    [
        ((slice(None), slice(0, 1), slice(0, 1)), {"whole"}),
        ((slice(20, 24), slice(12, 14), slice(6, 10)), {"whole", "mouth"}),
        ((slice(5, 6), slice(0, 1), slice(0, 1)), {"whole", "seam"}),
    ],
    ids=["a corner", "the mouth", "the first frame shown"],
)
def test_an_error_is_found_in_the_region_where_it_is(
    embedded_recording: Recording, place: tuple[slice, slice, slice], regions: set[str]
) -> None:
    scene = next(s for s in pick_scenes(embedded_recording, most=9) if s.window.emit_start == 5)
    theirs = Outcome(np.ones((1, 16, 9, 2, 2), np.float32), np.zeros((1, 3, 29, 16, 16), np.float32))
    frames = theirs.frames.copy()
    frames[:, :, place[0], place[1], place[2]] = 1.0
    if "seam" not in regions:
        frames[:, :, 5:9] = 0.0
    found = compare(replace(theirs, frames=frames), theirs, scene=scene, mouth_box=(0.7, 0.3, 0.95, 0.7))
    assert {region for region, error in found.items() if error > 0} == regions


def test_without_a_face_latents_and_frames_count_relative_to_the_reference(embedded_recording: Recording) -> None:
    scene = pick_scenes(embedded_recording, most=1)[0]
    ones = np.ones((1, 16, 9, 2, 2), np.float32)
    found = compare(Outcome(ones * 1.1, ones), Outcome(ones, ones), scene=scene, mouth_box=None)
    assert decibels(found["latents"]) == pytest.approx(20.0, abs=0.01)
    assert decibels(found["frames"]) == 200.0


# ── Search ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_head_does_the_most_harm_and_is_left_alone(curve: Curve) -> None:
    assert {one.part.name for one in curve.ranked} == {
        *("head", "blocks.0.ffn", "blocks.4.self_attn", "decoder.head.2", "decoder.middle.1"),
    }
    order = [one.part.name for one in curve.ranked]
    assert order.index("blocks.4.self_attn") < order.index("blocks.0.ffn") < order.index("head")
    assert curve.chosen.harm.worst_db >= 30.0


def test_more_parts_save_more_and_harm_more(curve: Curve) -> None:
    sizes = [point.package_bytes for point in curve.points]
    assert all(
        after < before + 4096 for before, after in pairwise(sizes)
    )  # a small part saves less than its nodes take
    assert sizes[-1] < sizes[0] - 200_000
    assert curve.saved_bytes(curve.points[0]) == 0 < curve.saved_bytes(curve.points[-1])
    assert curve.points[0].harm.worst == 0.0
    assert curve.points[-1].harm.worst > curve.points[1].harm.worst
    assert curve.points[-1].parts == len(curve.ranked)
    assert {region for point in curve.points for region in point.harm.regions} == {"whole", "mouth", "seam"}


def test_the_recipe_replays_the_choice(embedded: ModelPackage, curve: Curve) -> None:
    replayed = parse_recipe(recipe_bytes(curve.recipe), where="file")
    assert replayed == curve.recipe
    plan = make_plan(replayed, read_graphs(embedded), find_range=lambda _layer: Range(-1, 1))
    quantized = {
        (graph.source.subnetwork, part_name(choice.layer.name))
        for graph in plan.graphs
        for choice in graph.decided["openvino"]
        if choice.rule.form != "keep" and graph.source.name != "dit_time"
    }
    taken = {(one.part.subnetwork, one.part.name) for one in curve.ranked[: curve.chosen.parts]}
    assert quantized == taken


def test_a_curve_survives_json(curve: Curve) -> None:
    assert read_curve(json.loads(json.dumps(curve.as_json()))) == curve


def test_a_size_budget_takes_no_more_parts_than_it_needs(
    embedded: ModelPackage, embedded_recording: Recording, tmp_path: Path
) -> None:
    convolutions = Recipe("convolutions", (Rule(("vae_decoder*",), MIXED.rules[1].layers, ("Conv",), "int8"),))
    whole = package_bytes(embedded) + QUALITY_BYTES
    found = search(
        embedded, embedded_recording, recipe=convolutions, scratch=tmp_path, budget_bytes=whole, scenes=1, threads=1
    )
    assert [one.part.name for one in found.ranked] == ["decoder.middle.1", "decoder.head.2"]
    assert [one.taken for one in found.ranked] == [True, False]  # rules and nodes take more than nothing
    assert found.chosen.package_bytes <= whole < found.points[0].package_bytes
    assert found.chosen == found.points[1]


def ranked(*parts: tuple[str, int, float]) -> list[Ranked]:
    """Return parts: name, what they save, their harm."""
    return [Ranked(Part("dit", name, (name,), saves, 0), Harm({"whole": harm})) for name, saves, harm in parts]


LARGE_LAST = ranked(("a", 10, 1e-7), ("b", 200, 1e-5), ("c", 30, 1e-6), ("d", 700, 1e-3))
"""As the embedded package in int4: the last part saves a third of all."""


@pytest.mark.parametrize(
    ("budget", "names"),
    [
        (1000, ""),
        (995, "a"),
        (900, "b"),
        (780, "bc"),
        (760, "abc"),
        (350, "d"),
        (295, "ad"),
        (260, "acd"),
        (60, "abcd"),
    ],
)
def test_under_a_size_budget_no_part_is_taken_that_is_not_needed(budget: int, names: str) -> None:
    def size_of(parts: Sequence[Part]) -> int:
        return 1000 - sum(part.saved_bytes for part in parts)

    taken = within_size(LARGE_LAST, size_of, budget_bytes=budget)
    assert "".join(part.name for part in taken) == names
    assert size_of(taken) <= budget
    assert all(size_of([other for other in taken if other != part]) > budget for part in taken)


def test_sizes_that_do_not_fall_evenly_still_end_within_the_budget() -> None:
    """Graphs grow by some bytes where a first layer of theirs is quantized."""
    sizes = [1000, 1004, 800, 801, 100]
    taken = within_size(LARGE_LAST, lambda parts: sizes[len(parts)], budget_bytes=800)
    assert len(taken) in (2, 4)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"budget_bytes": 1000}, "with every part quantized the package takes"),
        ({"budget_bytes": 10**9}, "fits a budget of 1000.00 MB as it is"),
        ({"least_db": 150.0}, "no sum of parts stays within the error budget"),
    ],
    ids=["size", "nothing to do", "error"],
)
def test_a_budget_that_cannot_be_met_says_what_can(
    embedded: ModelPackage, embedded_recording: Recording, tmp_path: Path, wanted: Mapping[str, float], says: str
) -> None:
    one = Recipe("one", (Rule(("vae_decoder*",), ("decoder.middle.1.*",), ("Conv",), "int8"),))
    with pytest.raises(EdgereelsError, match=says):
        search(embedded, embedded_recording, recipe=one, scratch=tmp_path, scenes=1, threads=1, **wanted)  # type: ignore[arg-type]


def test_two_budgets_and_nothing_to_measure_are_refused(
    embedded: ModelPackage, embedded_recording: Recording, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="expected one of them"):
        search(embedded, embedded_recording, recipe=MIXED, scratch=tmp_path, budget_bytes=1, least_db=1.0)
    unseen = Recipe("unseen", (Rule(("dit_time",), ("*",), ("MatMul", "Gemm"), "int8"),))
    with pytest.raises(UsageError, match="changes nothing that a render"):
        search(embedded, embedded_recording, recipe=unseen, scratch=tmp_path)


def test_keeping_parts_puts_rules_in_front() -> None:
    part = Part("dit", "blocks.0.ffn", ("blocks.0.ffn.2", "blocks.0.ffn.0"), 100, 50)
    made = keeping(MIXED, [part], name="less")
    kept = made.rule_for(graph="dit_block_00", layer="blocks.0.ffn.0", operator="MatMul", engine="openvino")
    assert kept.form == "keep"
    assert made.rules[1:] == MIXED.rules
    others = made.rule_for(graph="dit", layer="blocks.4.self_attn.q", operator="MatMul", engine="openvino")
    assert others.form == "int8"


# ── What is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_text_names_every_part_and_the_choice(curve: Curve) -> None:
    text = describe(curve)
    assert all(f"{one.part.subnetwork} {one.part.name}" in text for one in curve.ranked)
    marked = [line for line in text.splitlines() if line.startswith("*")]
    assert len(marked) == curve.chosen.parts + 1 and f"{curve.chosen.parts} parts" in marked[-1]
    assert f"{curve.chosen.parts} of {len(curve.ranked)} parts" in text


def test_the_picture_is_well_formed_and_has_a_line_for_each_region(curve: Curve) -> None:
    picture = minidom.parseString(draw(curve))
    assert len(picture.getElementsByTagName("polyline")) == 3
    labels = {node.firstChild.data for node in picture.getElementsByTagName("text") if node.firstChild}  # type: ignore[union-attr]
    assert {"whole", "mouth", "seam"} <= labels
