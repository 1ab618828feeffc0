# SPDX-License-Identifier: Apache-2.0
"""Quantized graphs compute what their codecs promise, on both engines, and in the forms that engines fuse."""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgereels.quant import quantize
from edgereels.quant.learn import Learned
from edgereels.quant.quantize import quantize_package
from edgereels.quant.recipes import BUILT_IN, Recipe, Rule, load_recipe
from edgereels.quant.request import Request
from edgereels.quant.rewrite import Range
from edgereels.runtime.engine import open_engine
from edgereels.runtime.errors import PackageError
from edgereels.runtime.graph_identity import identify
from edgereels.runtime.model_package import ModelPackage

from .layered_package import feeds_of, write_layered

GRAPHS = ("dit", "dit_block_01", "vae_decoder_first", "vae_decoder_next")  # OpenVINO runs every other one
# What a recipe leaves of the signal on normal weights and inputs, two blocks deep: weights of 8 bits leave 41 dB each,
# of 4 bits 20 dB; activations of uint8 within [-12, 12] 31 dB each. A wrong scale, axis or zero point leaves below 10.
LEAST_DB = {"fp16": 60, "bf16": 40, "int8": 34, "int4": 14, "int8-dynamic": 30, "w8a8": 24}
ENGINES = {"onnxruntime": "onnxruntime:CPU", "openvino": "openvino:CPU"}
Make = Callable[[str], ModelPackage]


def sqnr_db(ours: np.ndarray, theirs: np.ndarray) -> float:
    noise = np.square(ours.astype(np.float64) - theirs).sum()
    return 10 * float(np.log10(np.square(theirs.astype(np.float64)).sum() / max(noise, 1e-30)))


def run(package: ModelPackage, graph: str, *, library: str = "onnxruntime", seed: int = 1) -> np.ndarray:
    return run_file(package.graph_path(graph, library), graph, library, seed)


@functools.cache  # OpenVINO compiles a graph that it does not know in a process of its own: half a second
def run_file(path: Path, graph: str, library: str, seed: int) -> np.ndarray:
    engine = open_engine(path, device=ENGINES[library], threads=1, compute="f32")
    try:
        return next(iter(engine.run(feeds_of(graph, seed=seed)).values()))
    finally:
        engine.close()


def learned(_source: object, _graphs: object, *, request: Request, **_others: object) -> Learned:
    """Stand for a calibration: normal inputs, and what becomes of them, lie within these ranges."""
    return Learned(request.recipe, lambda _layer: Range(-12.0, 12.0), None, None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_layered(tmp_path_factory.mktemp("rewrite") / "layered")


@pytest.fixture(scope="module")
def made(source: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("made")
    known: dict[str, ModelPackage] = {}

    def make(recipe: str) -> ModelPackage:
        if recipe not in known:
            known[recipe] = quantized(source, folder / recipe, load_recipe(recipe))
        return known[recipe]

    return make


def quantized(source: ModelPackage, target: Path, recipe: Recipe) -> ModelPackage:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "learn", learned)
        request = Request(source.root, target, recipe, gate=False)
        return quantize_package(request, progress=lambda _line: None).package


def optimised(package: ModelPackage, graph: str, folder: Path) -> Counter[str]:
    """Return the operators that ONNX Runtime runs in the end."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(package.graph_path(graph)), options)
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node)


def operators(package: ModelPackage, graph: str, library: str = "onnxruntime") -> Counter[str]:
    model = onnx.load(package.graph_path(graph, library), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("library", list(ENGINES))
@pytest.mark.parametrize("recipe", list(LEAST_DB))
def test_a_recipe_costs_what_its_rounding_costs(recipe: str, library: str, made: Make, source: ModelPackage) -> None:
    package = made(recipe)
    for graph in GRAPHS if library == "onnxruntime" else GRAPHS[::2]:
        if operators(package, graph, library) == operators(source, graph):
            continue  # not covered
        found = sqnr_db(run(package, graph, library=library), run(source, graph))
        assert found > LEAST_DB[recipe], graph
        assert found < 100, f"{graph} is not quantized at all"


@pytest.mark.parametrize("recipe", ["int8", "int4", "w8a8"])
def test_other_inputs_are_no_match(recipe: str, made: Make, source: ModelPackage) -> None:
    assert sqnr_db(run(made(recipe), "dit", seed=2), run(source, "dit", seed=1)) < 10


@pytest.mark.parametrize("recipe", ["int8", "int4", "int8-dynamic"])
def test_engines_agree_on_the_same_integers(recipe: str, made: Make) -> None:
    ours, theirs = (run(made(recipe), "dit", library=library) for library in ENGINES)
    # Weight-only forms compute the same floats in another order; int8-dynamic rounds activations, each in its own way.
    assert sqnr_db(ours, theirs) > (30 if recipe == "int8-dynamic" else 55)


def test_int4_and_int8_weights_fuse_into_one_kernel(made: Make, tmp_path: Path) -> None:
    for recipe in ("int8", "int4"):
        found = optimised(made(recipe), "dit_block_00", tmp_path)
        assert found["MatMulNBits"] == 5, found
        assert not found["DequantizeLinear"] + found["MatMul"]


def test_dynamic_int8_fuses_and_q_k_and_v_share_their_input(made: Make, tmp_path: Path) -> None:
    package = made("int8-dynamic")
    assert operators(package, "dit_block_01")["DynamicQuantizeLinear"] == 3  # q, k and v; both of the feed-forward
    found = optimised(package, "dit_block_01", tmp_path)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == 5, found
    assert not found["MatMulInteger"] + found["Cast"]


def test_openvino_is_asked_to_round_activations_in_its_own_way(made: Make) -> None:
    package = made("int8-dynamic")
    ours, theirs = (identify(package.graph_path("dit", library)) for library in ENGINES)
    assert (ours.dynamic_activations, theirs.dynamic_activations) == (False, True)
    found = operators(package, "dit", "openvino")
    assert not found["DynamicQuantizeLinear"]
    assert found["DequantizeLinear"] == 12


def test_weight_only_convolutions_fold_into_constants(made: Make, tmp_path: Path) -> None:
    found = optimised(made("w8a8"), "vae_decoder_next", tmp_path)
    assert found["Conv"] + found["FusedConv"] == 2
    assert not found["DequantizeLinear"] + found["Cast"] + found["Mul"]


def test_static_layers_see_integers_on_both_sides(made: Make) -> None:
    package = made("w8a8")
    for graph in ("vae_decoder_first", "dit"):
        model = onnx.load(package.graph_path(graph, "openvino"), load_external_data=False)
        made_by = {node.output[0]: node for node in model.graph.node}
        for node in model.graph.node:
            if node.op_type == "Conv":
                assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    assert operators(package, "dit_block_01", "openvino")["QuantizeLinear"] == 3  # shared by q, k and v


def test_the_tap_of_a_kernel_is_taken_from_integers(made: Make) -> None:
    model = onnx.load(made("w8a8").graph_path("vae_decoder_first", "openvino"), load_external_data=False)
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types[gather.input[0]] == onnx.TensorProto.INT8


def test_layers_that_were_left_alone_are_bit_for_bit_the_same(source: ModelPackage, tmp_path: Path) -> None:
    rule = Rule(("dit",), ("blocks.1.ffn.0",), ("MatMul",), "int8")
    package = quantized(source, tmp_path / "one", Recipe("one", (rule,)))
    assert np.array_equal(run(package, "dit_block_01"), run(source, "dit_block_01"))
    assert not np.array_equal(run(package, "dit"), run(source, "dit"))


@pytest.mark.parametrize("form", ["int8", "int4", "int8-dynamic", "bf16"])
def test_half_precision_sources_give_the_same_as_their_floats(form: str, tmp_path: Path) -> None:
    # The source's own rounding to float16 costs 70 dB; quantizing it may add nothing but the form's rounding.
    source = write_layered(tmp_path / "half", half=True)
    package = quantized(source, tmp_path / form, BUILT_IN[form])
    assert sqnr_db(run(package, "dit"), run(source, "dit")) > LEAST_DB[form]


def test_storage_that_is_there_already_is_no_recipe(tmp_path: Path) -> None:
    source = write_layered(tmp_path / "half", half=True, dim=128)
    with pytest.raises(PackageError, match="fp16 changes nothing in half"):
        quantized(source, tmp_path / "again", BUILT_IN["fp16"])


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [(-1.0, 1.55, 0.01, 100), (0.5, 2.55, 0.01, 0), (-2.55, -1.0, 0.01, 255), (0.0, 0.0, 1.0, 0)],
    ids=["both sides", "above", "below", "nothing"],
)
def test_a_range_includes_zero(low: float, high: float, scale: float, zero: int) -> None:
    found = Range(low, high).quantization()
    assert (float(found[0]), int(found[1])) == (pytest.approx(scale), zero)
