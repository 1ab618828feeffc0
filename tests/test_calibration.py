# SPDX-License-Identifier: Apache-2.0
"""Ranges of activations: what was seen, how much of it is worth a level, and what it does to a graph."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import save_file

from edgereels.quant.calibration import (
    METHODS,
    Histogram,
    Ranges,
    choose_min_max,
    choose_mse,
    choose_percentile,
    choose_ranges,
    find_ranges,
    squared_error,
    stride_for,
    watch,
)
from edgereels.quant.candidates import Candidates
from edgereels.quant.layers import find_layers, read_model
from edgereels.quant.plan import make_plan, read_graphs
from edgereels.quant.recipes import BUILT_IN, Recipe, Rule
from edgereels.quant.rewrite import Range
from edgereels.quant.trajectory import Call, Recording, record
from edgereels.runtime import EngineError, ModelPackage, UsageError
from edgereels.runtime.metrics import sqnr_db

STATIC = Recipe(
    "static",
    (
        Rule(("dit", "dit_epilogue"), ("head.head",), ("MatMul",), "keep"),
        Rule(("dit",), ("*",), ("MatMul", "Gemm"), "int8-static"),
        Rule(("vae_*coder_next",), ("*",), ("Conv",), "int8-static"),
    ),
)


# ── Histograms ───────────────────────────────────────────────────────────────────────────────────────────────────────


def filled(*pieces: np.ndarray, weights: tuple[float, ...] = ()) -> Histogram:
    made = Histogram()
    for piece, weight in zip(pieces, weights or (1.0,) * len(pieces), strict=True):
        values = piece.astype(np.float32)
        made.add(values, low=float(values.min()), high=float(values.max()), weight=weight)
    return made


def test_a_histogram_keeps_weights_and_places_while_it_widens() -> None:
    made = filled(np.full(10, 0.5), np.full(1000, -3.0), np.full(5, 100.0), weights=(1.0, 2.0, 0.5))
    values, weights = made.filled()
    assert made.reach == 128.0
    width = 2 * made.reach / len(made.counts)
    assert np.allclose(values, [-3.0, 0.5, 100.0], atol=width)
    assert np.allclose(weights, [2.0, 1.0, 0.5])  # by call, however many samples it gave
    assert (made.low, made.high) == (-3.0, 100.0)


def test_extremes_count_even_where_no_sample_met_them() -> None:
    made = Histogram()
    made.add(np.zeros(4, np.float32), low=-7.5, high=2.0, weight=1.0)
    assert choose_min_max(made) == Range(-7.5, 2.0)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["NaN", "Inf"])
def test_values_that_are_no_numbers_are_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="values from"):
        Histogram().add(np.zeros(1, np.float32), low=0.0, high=value, weight=1.0)


# ── Ranges ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def outlier() -> Histogram:
    """Values of one standard deviation, and one in a million of forty."""
    return filled(np.random.default_rng(1).standard_normal(20_000), np.full(1, 40.0), weights=(1.0, 1e-6))


def test_min_max_covers_an_outlier_and_the_others_give_it_up() -> None:
    seen = outlier()
    assert choose_min_max(seen).high == 40.0
    assert choose_percentile(seen).high < 6.0
    # 1e-6 (40 - h)^2 of clipping and (h + 3.8)^2 / 255^2 / 12 of rounding are least together near h = 16
    assert choose_mse(seen).high == pytest.approx(16.0, abs=1.6)


def test_the_mse_range_has_the_least_error_of_all_ways() -> None:
    for seen in (outlier(), filled(np.random.default_rng(2).uniform(-1, 3, 5000)), filled(np.full(100, 0.25))):
        values, weights = seen.filled()
        errors = [squared_error(values, weights, choose(seen)) for choose in (choose_min_max, choose_percentile)]
        assert squared_error(values, weights, choose_mse(seen)) <= 1.02 * min(
            errors
        )  # ends are searched in 2 % of them


def test_nothing_is_clipped_where_every_value_is_as_likely() -> None:
    """One in 255 of a uniform range is all that clipping could win; within 3 % the whole range is taken."""
    found = choose_mse(filled(np.random.default_rng(3).uniform(-2, 2, 50_000)))
    assert found.low == pytest.approx(-2, rel=0.03) and found.high == pytest.approx(2, rel=0.03)


def test_a_step_that_spans_more_noise_weighs_more() -> None:
    """Values of 10 come in a step of 0.01 or in one of 0.84; only in the second are they worth wide levels."""
    common = np.random.default_rng(4).standard_normal(4000)
    rare = np.append(common[:2000], np.full(20, 10.0))
    seldom, often = (choose_mse(filled(common, rare, weights=weights)).high for weights in ((1, 1e-4), (1e-4, 1)))
    assert seldom < 6.0 < often


def test_strides_are_primes_so_that_no_axis_hides() -> None:
    assert [stride_for(size) for size in (1, 200_000, 1_000_000, 16_000_000)] == [1, 1, 17, 251]


# ── On the embedded avatar ───────────────────────────────────────────────────────────────────────────────────────────


def test_extremes_are_those_of_every_value_in_every_call(
    embedded: ModelPackage, embedded_recording: Recording, tmp_path: Path
) -> None:
    """Ours come out of an instrumented graph, theirs are all values of the tensor, fetched whole."""
    graph, layer = "vae_decoder_next", "decoder.head.2"
    seen = watch(embedded, embedded_recording, scratch=tmp_path, layers={graph: (layer,)}, threads=1)
    assert set(seen) == {(graph, layer)}
    path = embedded.graph_path(graph)
    tensor = next(found.activation for found in find_layers(read_model(path), graph=graph) if found.name == layer)
    whole = onnx.load(str(path))
    whole.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    values = [session.run([tensor], call.feeds())[0] for call in embedded_recording.calls[graph]]
    ours, low, high = seen[graph, layer], min(v.min() for v in values), max(v.max() for v in values)
    assert (ours.low, ours.high) == pytest.approx((float(low), float(high)), rel=1e-4)  # f32 sums in another order
    assert ours.counts.sum() == pytest.approx(len(values))


def test_parts_of_the_transformer_take_the_ranges_of_the_whole(
    embedded: ModelPackage, embedded_recording: Recording, tmp_path: Path
) -> None:
    found = find_ranges(
        embedded, embedded_recording, scratch=tmp_path, layers={"dit_block_03": ("blocks.3.ffn.2",)}, threads=1
    )
    assert found.of("dit_block_03", "blocks.3.ffn.2") == found.of("dit", "blocks.3.ffn.2")


def test_a_layer_that_no_render_runs_has_no_range(
    embedded: ModelPackage, embedded_recording: Recording, tmp_path: Path
) -> None:
    found = find_ranges(
        embedded, embedded_recording, scratch=tmp_path, layers={"dit_time": ("time_embedding.0",)}, threads=1
    )
    with pytest.raises(UsageError, match="never run while the package rendered"):
        found.of("dit_time", "time_embedding.0")


def test_an_unknown_way_to_choose_is_refused_before_any_work(
    embedded: ModelPackage, embedded_recording: Recording, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="min-max"):
        find_ranges(embedded, embedded_recording, scratch=tmp_path, method="entropy")
    assert not list(tmp_path.iterdir())


def test_a_broken_activation_is_named(embedded: ModelPackage, embedded_recording: Recording, tmp_path: Path) -> None:
    good: Call = embedded_recording.calls["vae_encoder_next"][0]
    feeds = good.feeds()
    feeds["frames"][0, 0, 0, 0, 0] = np.nan
    save_file(feeds, tmp_path / "broken.safetensors")
    broken = replace(
        embedded_recording, calls={"vae_encoder_next": (replace(good, file=tmp_path / "broken.safetensors"),)}
    )
    with pytest.raises(EngineError, match=r"vae_encoder_next: .* takes values from"):
        watch(embedded, broken, scratch=tmp_path, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "output", "least_db"),
    [("dit", "velocity", 24.0), ("vae_decoder_next", "frames", 28.0), ("vae_encoder_next", "latents", 25.0)],
    ids=["dit", "decoder", "encoder"],
)
def test_ranges_serve_windows_that_they_were_not_taken_from(
    embedded: ModelPackage, embedded_recording: Recording, tmp_path: Path, graph: str, output: str, least_db: float
) -> None:
    """W8A8 is gated at 20 dB; measured are 28, 32 and 30 dB at this size. Ranges a tenth as wide must fail."""
    seen = watch(
        embedded,
        embedded_recording,
        scratch=tmp_path,
        layers={graph: tuple(layer.name for layer in find_layers(read_model(embedded.graph_path(graph)), graph=graph))},
        calls=lambda call: call.pass_index < 2,
        threads=1,
    )
    ranges = choose_ranges(seen)
    held_out = [call for call in embedded_recording.calls[graph] if call.pass_index == 2]
    good = quality(embedded, graph, output, ranges, held_out, scratch=tmp_path / "good")
    assert good >= least_db
    narrow = {layer: Range(found.low / 10, found.high / 10) for layer, found in ranges.of_layers.items()}
    bad = quality(embedded, graph, output, Ranges("narrow", narrow), held_out, scratch=tmp_path / "bad")
    assert bad < 20.0


def quality(
    package: ModelPackage,
    graph: str,
    output: str,
    ranges: Ranges,
    calls: list[Call],
    *,
    scratch: Path,
    recipe: Recipe = STATIC,
) -> float:
    """Return the signal to noise of a graph in which a recipe quantizes whatever it covers, in decibels."""
    plan = make_plan(
        recipe, read_graphs(package), find_range=lambda layer: ranges.of_layers.get((layer.graph, layer.name))
    )
    candidates = Candidates(package, plan, library="openvino", scratch=scratch)
    path = candidates.write(candidates.parts)[graph]
    ours, theirs = (
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for file in (path, package.graph_path(graph))
    )
    results = [(ours.run([output], call.feeds())[0], theirs.run([output], call.feeds())[0]) for call in calls]
    mine, reference = (np.concatenate([pair[side].ravel() for pair in results]) for side in (0, 1))
    return sqnr_db(mine, reference)


@pytest.mark.slow
def test_the_default_way_is_the_best_on_the_embedded_demonstration(embedded: ModelPackage, tmp_path: Path) -> None:
    """Held-out passes of the whole demonstration at full size, as in docs/calibration.md."""
    made = record(embedded, scratch=tmp_path, threads=1)
    names = tuple(layer.name for layer in find_layers(read_model(embedded.graph_path("dit")), graph="dit"))
    seen = watch(
        embedded,
        made,
        scratch=tmp_path,
        layers={"dit": names},
        calls=lambda call: call.pass_index % 2 == 0,
        threads=1,
    )
    held_out = [call for call in made.calls["dit"] if call.pass_index % 2]
    w8a8 = BUILT_IN["w8a8"]
    found = {
        method: quality(
            embedded,
            "dit",
            "velocity",
            choose_ranges(seen, method=method),
            held_out,
            scratch=tmp_path / method,
            recipe=w8a8,
        )
        for method in METHODS
    }
    assert max(found, key=found.__getitem__) == METHODS[0] == "mse"
    assert found["mse"] > 30.0  # measured: 32.3
    # Without the recipe's rule for the first block's feed-forward it is 25.8: the rule has to earn its place.
    everywhere = quality(embedded, "dit", "velocity", choose_ranges(seen), held_out, scratch=tmp_path / "everywhere")
    assert found["mse"] > everywhere + 3.0
    assert w8a8.needs_ranges
