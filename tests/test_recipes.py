# SPDX-License-Identifier: Apache-2.0
"""Recipes: which rule decides, what a file may say, and what a slip of the pen leads to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.quant.recipes import (
    BUILT_IN,
    Recipe,
    Rule,
    check_names,
    load_recipe,
    parse_recipe,
    recipe_bytes,
)
from edgereels.runtime.errors import UsageError

LAYERS = {
    "dit": [(name, "MatMul") for name in ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.ffn.0", "head.head")],
    "vae_decoder_next": [("decoder.conv1", "Conv")],
}


def file_of(*rules: dict[str, Any], **more: Any) -> bytes:
    return json.dumps(
        {"format": "edgereels-recipe", "format_version": 1, "name": "mine", "rules": list(rules), **more}
    ).encode()


def a_rule(**fields: Any) -> dict[str, Any]:
    return {"graphs": ["dit*"], "layers": ["*"], "form": "int8", **fields}


def form(recipe: Recipe, *, graph: str, layer: str = "x", operator: str = "MatMul", engine: str = "onnxruntime") -> str:
    return recipe.rule_for(graph=graph, layer=layer, operator=operator, engine=engine).form


@pytest.mark.parametrize(
    ("recipe", "graph", "operator", "on_onnxruntime", "on_openvino"),
    [
        ("fp16", "text_encoder", "Parameter", "fp16", "fp16"),
        ("bf16", "vae_decoder_next", "Conv", "bf16", "bf16"),
        ("int8", "dit_block_07", "MatMul", "int8", "int8"),
        ("int8", "audio_encoder", "MatMul", "int8", "int8"),
        ("int8", "audio_encoder", "Conv", "keep", "keep"),
        ("int8", "vae_decoder_next", "Conv", "keep", "keep"),
        ("int4", "dit", "MatMul", "int4", "int4"),
        ("int4", "text_encoder", "MatMul", "int4", "int4"),
        ("int4", "image_encoder", "MatMul", "int8", "int8"),
        ("int8-dynamic", "dit", "Gemm", "int8-dynamic", "int8-dynamic"),
        ("int8-dynamic", "image_encoder", "MatMul", "int8-dynamic", "int8-dynamic"),
        ("w8a8", "dit_block_00", "MatMul", "int8-dynamic", "int8-static"),
        ("w8a8", "vae_encoder_first", "Conv", "int8", "int8-static"),
        ("w8a8", "vae_decoder_next", "MatMul", "keep", "keep"),
        ("w8a8", "dit_time", "Gemm", "int8", "int8"),
        ("w8a8", "audio_encoder", "MatMul", "keep", "keep"),
    ],
)
def test_the_built_in_recipes_cover_what_the_command_line_promises(
    recipe: str, graph: str, operator: str, on_onnxruntime: str, on_openvino: str
) -> None:
    found = BUILT_IN[recipe]
    assert form(found, graph=graph, operator=operator) == on_onnxruntime
    assert form(found, graph=graph, operator=operator, engine="openvino") == on_openvino


@pytest.mark.parametrize("recipe", ["int8", "int4", "int8-dynamic", "w8a8"])
def test_the_velocity_projection_stays_as_it_is(recipe: str) -> None:
    for engine in ("onnxruntime", "openvino"):
        assert form(BUILT_IN[recipe], graph="dit", layer="head.head", engine=engine) == "keep"


def test_the_static_encoder_does_not_saturate_without_vnni() -> None:
    rule = BUILT_IN["w8a8"].rule_for(graph="vae_encoder_next", layer="x", operator="Conv", engine="openvino")
    assert (rule.form, rule.weight_bits) == ("int8-static", 7)
    assert 255 * 63 * 2 <= np.iinfo(np.int16).max < 255 * 127 * 2  # two products of uint8 and int8 in one int16


def test_the_first_rule_that_fits_decides() -> None:
    recipe = parse_recipe(
        file_of(a_rule(layers=["blocks.0.*"], form="keep"), a_rule(form="int4", engine="onnxruntime"), a_rule()),
        where="mine",
    )
    assert form(recipe, graph="dit", layer="blocks.0.ffn.0") == "keep"
    assert form(recipe, graph="dit", layer="blocks.1.ffn.0") == "int4"
    assert form(recipe, graph="dit", layer="blocks.1.ffn.0", engine="openvino") == "int8"
    assert form(recipe, graph="vae_decoder_next") == "keep"


def test_a_rule_without_operators_takes_those_its_form_can_be_given_to() -> None:
    recipe = parse_recipe(file_of(a_rule(form="int4")), where="mine")
    assert recipe.rules[0].operators == ("MatMul", "Gemm")


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_recipe_survives_its_file(name: str) -> None:
    assert parse_recipe(recipe_bytes(BUILT_IN[name]), where=name) == BUILT_IN[name]


def test_seven_bits_are_read() -> None:
    recipe = parse_recipe(file_of(a_rule(form="int8-static", bits=7)), where="mine")
    assert recipe.rules[0].weight_bits == 7
    assert recipe.needs_ranges


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "no valid UTF-8 JSON"),
        (file_of(a_rule(), format="edgereels-package"), "this build reads edgereels-recipe version 1"),
        (file_of(a_rule(), format_version=2), "version 2"),
        (file_of(), "at least one rule"),
        (file_of(a_rule(), rule=[]), "unknown key 'rule'; nearest: rules"),
        (file_of(a_rule(form="int9")), "nearest: int8"),
        (file_of(a_rule(engine="open_vino")), "nearest: openvino"),
        (file_of(a_rule(operators=["Conv"], form="int4")), "operators of int4 is 'Conv'"),
        (file_of(a_rule(bits=6)), "int8 takes 8 or 7"),
        (file_of(a_rule(form="fp16", bits=8)), "fp16 takes no bits"),
        (file_of(a_rule(layer=["x"])), "unknown key 'layer'; nearest: layers"),
        (file_of(a_rule(graphs="dit")), "must be a list"),
        (file_of({"graphs": ["dit"], "layers": ["*"]}), "has no 'form'"),
        (b'{"format": "edgereels-recipe", "format": "edgereels-recipe"}', "twice"),
    ],
    ids=[
        "no JSON", "another format", "another version", "no rules", "unknown key", "unknown form", "unknown engine",
        "operator that the form has not", "bits", "bits of floats", "key of a rule", "text for a list", "missing key",
        "a key twice",
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_with_its_place(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=r"^mine") as error:
        parse_recipe(data, where="mine")
    assert said in str(error.value)


def test_an_unknown_recipe_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"expected fp16, bf16, int8.*nearest: w8a8"):
        load_recipe("w8a")


def test_a_file_goes_before_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "int8").write_bytes(file_of(a_rule(form="int4")))
    monkeypatch.chdir(tmp_path)
    assert load_recipe("int8").name == "mine"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule(("dti",), ("*",), ("MatMul",), "int8"), r"no graph 'dti'; nearest: dit"),
        (
            Rule(("dit",), ("blocks.0.ffn.1",), ("MatMul",), "int8"),
            r"is called 'blocks.0.ffn.1'; nearest: blocks.0.ffn.0",
        ),
        (Rule(("dit*",), ("block.*",), ("MatMul",), "int8"), r"no layer of dit is called 'block.\*'"),
        (Rule(("dit",), ("blocks.0.*",), ("Conv", "Gemm"), "int8"), r"'blocks.0.\*' is MatMul; the rule is for Conv"),
    ],
    ids=["graph", "layer", "pattern without a match", "operator that the layer is not"],
)
def test_a_rule_that_names_nothing_is_refused_with_the_nearest_names(rule: Rule, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_names(Recipe("mine", (rule,)), LAYERS)


def test_patterns_that_match_are_taken_and_subnetworks_may_be_missing() -> None:
    rules = (
        Rule(("dit*",), ("blocks.*", "*.ffn.0"), ("MatMul",), "int8"),
        Rule(("text_encoder*",), ("*",), ("MatMul",), "int8"),
        Rule(("vae_decoder_next",), ("decoder.conv1",), ("Conv",), "int8"),
    )
    check_names(Recipe("mine", rules), LAYERS)


def test_built_in_recipes_are_for_any_package() -> None:
    for recipe in BUILT_IN.values():
        check_names(recipe, {"dit": [("another.network", "MatMul")]})
