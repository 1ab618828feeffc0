# SPDX-License-Identifier: Apache-2.0
"""Recipes: which layer of which graph is stored and computed how.

A recipe is an ordered list of rules. For each layer and engine the first rule that fits decides; where none fits the
layer stays as it is. The rules travel in the package that they made, and replay from there.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..runtime.errors import EdgereelsError, UsageError
from ..runtime.manifest import LIBRARIES, parse_json

FORMAT = "edgereels-recipe"
FORMAT_VERSION = 1
OPERATORS = ("MatMul", "Gemm", "Conv", "Parameter")
"""What a rule may name: three kinds of layers, and "Parameter" for any other stored tensor (an embedding, a norm)."""
FORMS: Mapping[str, tuple[str, ...]] = {
    "keep": OPERATORS,
    "fp16": OPERATORS,
    "bf16": OPERATORS,
    "int8": ("MatMul", "Gemm", "Conv"),
    "int4": ("MatMul", "Gemm"),
    "int8-dynamic": ("MatMul", "Gemm"),
    "int8-static": ("MatMul", "Gemm", "Conv"),
}
"""Form to the operators that it can be given to, which are also the default of a rule that names none."""
BITS: Mapping[str, tuple[int, ...]] = {"int8": (8, 7), "int8-dynamic": (8, 7), "int8-static": (8, 7)}
"""Bits of a weight, the default first: 7 keep the sums of AVX2's 16-bit dot product from saturating."""


@dataclass(frozen=True)
class Rule:
    """One line of a recipe."""

    graphs: tuple[str, ...]
    """Patterns of graph names, as the shell matches them: `dit`, `dit_block_*`."""
    layers: tuple[str, ...]
    """Patterns of layer names: `blocks.3.*`, `*.ffn.0`."""
    operators: tuple[str, ...]
    """Kinds of layers, of `OPERATORS`."""
    form: str
    """One of `FORMS`."""
    engine: str | None = None
    """The engine library that it is for; None: every engine."""
    bits: int | None = None
    """Bits of a weight; None: the form's default."""

    def fits(self, *, graph: str, layer: str, operator: str, engine: str) -> bool:
        """Tell whether the rule decides about a layer."""
        return (
            self.engine in (None, engine)
            and operator in self.operators
            and any(fnmatchcase(graph, pattern) for pattern in self.graphs)
            and any(fnmatchcase(layer, pattern) for pattern in self.layers)
        )

    @property
    def weight_bits(self) -> int:
        """Bits of a weight where the form rounds weights to integers, else 0."""
        return self.bits or BITS.get(self.form, (4 if self.form == "int4" else 0,))[0]

    def as_json(self) -> dict[str, Any]:
        """Return the rule as a recipe file holds it."""
        fields: dict[str, Any] = {
            "graphs": list(self.graphs),
            "layers": list(self.layers),
            "operators": list(self.operators),
            "form": self.form,
        }
        if self.engine is not None:
            fields["engine"] = self.engine
        if self.bits is not None:
            fields["bits"] = self.bits
        return fields


KEEP = Rule(("*",), ("*",), OPERATORS, "keep")
"""What decides where no rule of a recipe does."""


@dataclass(frozen=True)
class Recipe:
    """An ordered list of rules with a name."""

    name: str
    """What it is called; `quality.json` and tables print it."""
    rules: tuple[Rule, ...]
    """First fit decides."""

    def rule_for(self, *, graph: str, layer: str, operator: str, engine: str) -> Rule:
        """Return the rule that decides about a layer on an engine."""
        fitting = (rule for rule in self.rules if rule.fits(graph=graph, layer=layer, operator=operator, engine=engine))
        return next(fitting, KEEP)

    @property
    def needs_ranges(self) -> bool:
        """Whether any rule quantizes activations with ranges from a calibration."""
        return any(rule.form == "int8-static" for rule in self.rules)

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as its file holds it."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "rules": [rule.as_json() for rule in self.rules],
        }


# ── What comes with edgereels ────────────────────────────────────────────────────────────────────────────────────────

_MATMULS = ("MatMul", "Gemm")
_ENCODERS = ("text_encoder*", "image_encoder*", "audio_encoder*")
_ALL = ("*",)


# The last projection makes the velocity out of channels of which few are large and cancel: in the embedded package it
# alone takes an int8 DiT from 38 dB to 20 dB, and it is 0.3 % of the weights.
_HEAD = Rule(("dit", "dit_epilogue*"), ("head.head",), _MATMULS, "keep")

# The same at the end of the encoder, whose 1x1x1 convolution makes the latents: alone it costs 1.4 of 32.7 dB.
_LATENTS = Rule(("vae_encoder*",), ("conv1",), ("Conv",), "keep")

# The first block's feed-forward makes the few large channels that the whole network then adds to: in int4 it alone
# takes the embedded DiT to 17 dB, where every other layer leaves 38 dB or more; with its activations in int8 the
# velocity comes to 27.7 dB, without 34. Int8 weights and whole activations here cost 3 of 33 ms.
_FIRST = Rule(("dit", "dit_block_00"), ("blocks.0.ffn.*",), _MATMULS, "int8")


def _storage(form: str) -> Recipe:
    return Recipe(form, (Rule(_ALL, _ALL, OPERATORS, form),))


BUILT_IN: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _storage("fp16"),
        _storage("bf16"),
        Recipe(
            "int8",
            (
                _HEAD,
                Rule(("dit*", *_ENCODERS), _ALL, _MATMULS, "int8"),
            ),
        ),
        Recipe(
            "int4",
            (
                _HEAD,
                _FIRST,
                Rule(("dit*", "text_encoder*"), _ALL, _MATMULS, "int4"),
                Rule(_ENCODERS[1:], _ALL, _MATMULS, "int8"),
            ),
        ),
        Recipe("int8-dynamic", (_HEAD, _FIRST, Rule(("dit*", *_ENCODERS), _ALL, _MATMULS, "int8-dynamic"))),
        Recipe(
            "w8a8",
            (
                _HEAD,
                _FIRST,
                _LATENTS,
                # No render runs dit_time at the package's own schedule, so there is no trajectory to take ranges from.
                Rule(("dit_time*",), _ALL, _MATMULS, "int8"),
                Rule(("dit*",), _ALL, _MATMULS, "int8-dynamic", engine="onnxruntime"),
                Rule(("dit*",), _ALL, _MATMULS, "int8-static", engine="openvino"),
                # ONNX Runtime's quantized convolutions are slower than its float32 ones: 93 ms against 58.
                Rule(("vae_*",), _ALL, ("Conv",), "int8", engine="onnxruntime"),
                # Sums of 8-bit products saturate on CPUs without VNNI: the embedded encoder has 31 dB with it and 4 dB
                # without, at 7 bits 29 dB on both; the decoder has 41 and 34 dB at 8 bits, 36 on both at 7.
                Rule(("vae_encoder*",), _ALL, ("Conv",), "int8-static", engine="openvino", bits=7),
                Rule(("vae_*",), _ALL, ("Conv",), "int8-static", engine="openvino"),
            ),
        ),
    )
}


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_recipe(named: str) -> Recipe:
    """Return the recipe that a person means: a file that is there, else one of `BUILT_IN`.

    Raises:
        UsageError: neither, or the file is no recipe; the message says where.
    """
    path = Path(named)
    if path.is_file():
        try:
            return parse_recipe(path.read_bytes(), where=path.name)
        except OSError as error:
            raise UsageError(f"the recipe {named} can not be read: {error.strerror or error}") from error
    if named in BUILT_IN:
        return BUILT_IN[named]
    raise UsageError(
        f"the recipe {named!r} is neither a file nor built in; expected {', '.join(BUILT_IN)}{nearest(named, BUILT_IN)}"
    )


def parse_recipe(data: bytes, *, where: str) -> Recipe:
    """Read the bytes of a recipe file; `where` begins the messages.

    Raises:
        UsageError: no strict JSON, an unknown format, version, key, operator, form or engine.
    """
    try:
        fields = parse_json(data, where=where)
    except EdgereelsError as error:
        raise UsageError(str(error)) from error
    table = _object(fields, where=where, keys=("format", "format_version", "name", "rules"))
    version = table["format_version"]
    if table["format"] != FORMAT or type(version) is not int or version != FORMAT_VERSION:
        raise UsageError(
            f"{where} has the format {table['format']!r} version {version!r}; this build reads {FORMAT} version "
            f"{FORMAT_VERSION}"
        )
    name, rules = table["name"], table["rules"]
    if not isinstance(name, str) or not name.isprintable() or not name or not isinstance(rules, list) or not rules:
        raise UsageError(f"{where}: name must be text and rules a list with at least one rule")
    return Recipe(name, tuple(parse_rule(rule, where=f"{where}: rules[{n}]") for n, rule in enumerate(rules)))


def parse_rule(value: object, *, where: str) -> Rule:
    """Read one rule from its JSON; raise `UsageError` that says what is wrong with it."""
    required, optional = ("graphs", "layers", "form"), ("operators", "engine", "bits")
    table = _object(value, where=where, keys=required, optional=optional)
    form = _choice(table["form"], tuple(FORMS), where=f"{where}: form")
    operators = _texts(table.get("operators", list(FORMS[form])), where=f"{where}: operators")
    for operator in operators:
        _choice(operator, FORMS[form], where=f"{where}: operators of {form}")
    engine, bits = table.get("engine"), table.get("bits")
    if engine is not None:
        _choice(engine, LIBRARIES, where=f"{where}: engine")
    if bits is not None and (type(bits) is not int or bits not in BITS.get(form, ())):
        allowed = " or ".join(str(bit) for bit in BITS.get(form, ())) or "no bits"
        raise UsageError(f"{where}: bits is {bits!r}; {form} takes {allowed}")
    return Rule(
        graphs=_texts(table["graphs"], where=f"{where}: graphs"),
        layers=_texts(table["layers"], where=f"{where}: layers"),
        operators=operators,
        form=form,
        engine=engine,
        bits=bits,
    )


def recipe_bytes(recipe: Recipe) -> bytes:
    """Return the file of a recipe; the same recipe gives the same bytes."""
    return (json.dumps(recipe.as_json(), indent=1, ensure_ascii=True) + "\n").encode("ascii")


def _object(value: object, *, where: str, keys: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be an object")
    for key in keys:
        if key not in value:
            raise UsageError(f"{where} has no {key!r}")
    for key in value:
        if key not in (*keys, *optional):
            raise UsageError(f"{where} has the unknown key {key!r}{nearest(str(key), (*keys, *optional))}")
    return value


def _texts(value: object, *, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise UsageError(f"{where} must be a list of names or patterns, at least one")
    return tuple(value)


def _choice(value: object, choices: Sequence[str], *, where: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{where} is {value!r}; expected {', '.join(choices)}{nearest(str(value), choices)}")
    return value


# ── Against a package ────────────────────────────────────────────────────────────────────────────────────────────────

_WILD = frozenset("*?[")


def check_names(recipe: Recipe, layers: Mapping[str, Iterable[tuple[str, str]]]) -> None:
    """Refuse rules that name what is not there, rather than let a slip leave layers as they are.

    A name without wildcards must exist. A pattern of layers must match something in the graphs of its rule, of an
    operator that the rule is for; a pattern of graphs may match none, since a package need not hold every subnetwork.
    The built-in recipes are for any package and are not checked.

    Args:
        recipe: what is about to be followed.
        layers: graph to its layers, (name, operator) each.

    Raises:
        UsageError: naming the nearest names that are there.
    """
    for number, rule in enumerate(() if recipe in BUILT_IN.values() else recipe.rules):
        where = f"recipe {recipe.name}: rules[{number}]"
        for pattern in rule.graphs:
            if not _WILD & set(pattern) and pattern not in layers:
                raise UsageError(f"{where}: there is no graph {pattern!r}{nearest(pattern, layers)}")
        graphs = [graph for graph in layers if any(fnmatchcase(graph, pattern) for pattern in rule.graphs)]
        operators: dict[str, set[str]] = {}
        for name, operator in (layer for graph in graphs for layer in layers[graph]):
            operators.setdefault(name, set()).add(operator)
        for pattern in rule.layers:
            if pattern == "*" or not graphs:
                continue
            found = set[str]().union(*(kinds for name, kinds in operators.items() if fnmatchcase(name, pattern)))
            if not found:
                raise UsageError(
                    f"{where}: no layer of {', '.join(graphs[:3])}{' ...' if len(graphs) > 3 else ''} is called "
                    f"{pattern!r}{nearest(pattern, sorted(operators))}"
                )
            if not found & set(rule.operators):
                raise UsageError(
                    f"{where}: {pattern!r} is {' or '.join(sorted(found))}; the rule is for {', '.join(rule.operators)}"
                )


def nearest(name: str, names: Iterable[str]) -> str:
    """Return "; nearest: a, b" for an unknown name, or "" where nothing is near."""
    found = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f"; nearest: {', '.join(found)}" if found else ""
