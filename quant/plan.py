# SPDX-License-Identifier: Apache-2.0
"""Settle what a recipe means for one package, before a byte is written.

Every layer of every graph gets a rule for each engine library. Where a form does not suit a layer (an int4 layer whose
inputs are no whole number of blocks, a static one that no render runs) a plain one takes its place, and a note says so:
nothing is replaced silently, and the rules that the package carries name these layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from ..runtime.errors import PackageError
from ..runtime.manifest import LIBRARIES
from ..runtime.model_package import ModelPackage
from .codecs import INT4_BLOCK
from .layers import Layer, StoredTensor, find_layers, read_model
from .recipes import KEEP, Recipe, Rule, check_names
from .rewrite import INT4_OPSET, KEPT, Decided, Range, Storage

STORAGE_ELEMENTS = 4096
"""Smaller tensors (norms, biases, modulations) stay as they are in fp16 and bf16: they weigh nothing and set scales."""

FindRange = Callable[[Layer], Range | None]


@dataclass(frozen=True)
class SourceGraph:
    """A graph of the package that is quantized."""

    name: str
    """In the manifest."""
    subnetwork: str
    """That it belongs to."""
    model: onnx.ModelProto
    """Without its weights."""
    layers: tuple[Layer, ...]
    """What a recipe can name in it."""


@dataclass(frozen=True)
class PlannedGraph:
    """A graph and what happens to it."""

    source: SourceGraph
    """As it is."""
    decided: Mapping[str, tuple[Decided, ...]]
    """Engine library to every layer with its rule."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Engine libraries that get a file of their own; the first one's is for every other."""
        ours, theirs = (
            [(choice.rule.form, choice.rule.weight_bits) for choice in self.decided[library]] for library in LIBRARIES
        )
        return LIBRARIES if ours != theirs or "int8-dynamic" in self.forms else LIBRARIES[:1]

    @property
    def forms(self) -> frozenset[str]:
        """What its layers become, on any engine."""
        return frozenset(choice.rule.form for choices in self.decided.values() for choice in choices)


@dataclass(frozen=True)
class Plan:
    """What a recipe means for a package."""

    recipe: Recipe
    """With a rule in front for every layer that got another form than the recipe asked for."""
    graphs: tuple[PlannedGraph, ...]
    """In the order of the manifest."""
    notes: tuple[str, ...]
    """A line for every kind of exception that was made."""

    def wanted(self) -> dict[StoredTensor, tuple[Storage, ...]]:
        """Return every stored tensor with the storages that its layers ask for, in the order of the files."""
        wanted: dict[StoredTensor, set[Storage]] = {}
        for graph in self.graphs:
            for choices in graph.decided.values():
                for choice in choices:
                    wanted.setdefault(choice.layer.stored, set()).add(Storage.of(choice.rule, choice.layer))
        return {stored: tuple(sorted(wanted[stored])) for stored in sorted(wanted)}


def read_graphs(package: ModelPackage) -> tuple[SourceGraph, ...]:
    """Read the graphs of a package and find their layers.

    Raises:
        PackageError: a graph is too old to hold quantized weights.
    """
    return tuple(_read_graphs(package))


def _read_graphs(package: ModelPackage) -> Iterator[SourceGraph]:
    for name, entry in package.manifest.graphs.items():
        model = read_model(package.graph_path(name))
        opset = max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)
        if opset < INT4_OPSET:
            raise PackageError(f"{package.name}: {name} has opset {opset}, quantized weights need {INT4_OPSET}: export")
        yield SourceGraph(name, entry.subnetwork, model, tuple(find_layers(model, graph=name)))


def check_recipe(recipe: Recipe, graphs: Sequence[SourceGraph]) -> None:
    """Raise `UsageError` where a recipe names a graph or a layer that is not there."""
    check_names(recipe, {graph.name: [(layer.name, layer.operator) for layer in graph.layers] for graph in graphs})


def static_layers(recipe: Recipe, graphs: Sequence[SourceGraph]) -> dict[str, tuple[str, ...]]:
    """Return graph to the layers whose activations need a range; graphs without any are left out."""

    def is_static(layer: Layer) -> bool:
        return any(_rule(recipe, layer, library).form == "int8-static" for library in LIBRARIES)

    found = {graph.name: tuple(layer.name for layer in graph.layers if is_static(layer)) for graph in graphs}
    return {graph: names for graph, names in found.items() if names}


def make_plan(recipe: Recipe, graphs: Sequence[SourceGraph], *, find_range: FindRange) -> Plan:
    """Settle every layer.

    Args:
        recipe: what is asked for.
        graphs: what there is.
        find_range: returns what a calibration found of a layer's activation, or None.
    """
    exceptions: dict[str, list[tuple[Layer, str, Rule]]] = {}
    planned: list[PlannedGraph] = []
    for graph in graphs:
        decided: dict[str, tuple[Decided, ...]] = {}
        for library in LIBRARIES:
            choices: list[Decided] = []
            for layer in graph.layers:
                asked = _rule(recipe, layer, library)
                choice, note = _settle(layer, asked, find_range=find_range)
                choices.append(choice)
                if note:
                    exceptions.setdefault(note, []).append((layer, library, choice.rule))
            decided[library] = tuple(choices)
        planned.append(PlannedGraph(graph, decided))
    rules = tuple(rule for entries in exceptions.values() for rule in _rules_for(entries))
    notes = tuple(f"{note}: {_names(entries)}" for note, entries in exceptions.items())
    return Plan(replace(recipe, rules=(*rules, *recipe.rules)), tuple(planned), notes)


def _rule(recipe: Recipe, layer: Layer, library: str) -> Rule:
    return recipe.rule_for(graph=layer.graph, layer=layer.name, operator=layer.operator, engine=library)


def _settle(layer: Layer, rule: Rule, *, find_range: FindRange) -> tuple[Decided, str]:
    """Return a layer with a rule that suits it, and why it is not the one asked for, or ""."""
    if rule.form in ("fp16", "bf16"):
        is_small = layer.stored.elements < STORAGE_ELEMENTS
        is_so_already = layer.stored.dtype == {"fp16": "float16", "bf16": "bfloat16"}[rule.form]
        return Decided(layer, KEEP if is_small or is_so_already else rule, None), ""
    if rule.form == "int4" and (why := _unfit_for_int4(layer)):
        return Decided(layer, _plain_int8(rule), None), f"int8 instead of int4, {why}"
    if rule.form == "int8-static":
        found = find_range(layer)
        if found is None:
            return Decided(layer, _plain_int8(rule), None), "int8 weights only, no calibrated window ran these layers"
        return Decided(layer, rule, found), ""
    return Decided(layer, rule, None), ""


def _unfit_for_int4(layer: Layer) -> str:
    inputs = layer.stored.shape[layer.input_axis]
    if inputs % INT4_BLOCK:
        return f"inputs no multiple of {INT4_BLOCK}"
    return "the layer takes part of a stored weight" if len(layer.stored.shape) != 2 else ""


def _plain_int8(rule: Rule) -> Rule:
    return Rule(rule.graphs, rule.layers, rule.operators, "int8", rule.engine, rule.bits)


def _rules_for(entries: Sequence[tuple[Layer, str, Rule]]) -> Iterator[Rule]:
    """Yield rules that say what was done: one for each graph, engine and bits."""
    groups: dict[tuple[str, str, int | None], dict[str, str]] = {}
    for layer, library, rule in entries:
        groups.setdefault((layer.graph, library, rule.bits), {})[layer.name] = layer.operator
    for (graph, library, bits), layers in groups.items():
        operators = tuple(dict.fromkeys(layers.values()))
        yield Rule((graph,), tuple(layers), operators, "int8", library, bits)


def _names(entries: Sequence[tuple[Layer, str, Rule]]) -> str:
    names = list(dict.fromkeys(layer.name for layer, _, _ in entries))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def keeps_everything(plan: Plan) -> bool:
    """Tell whether a plan changes nothing."""
    return all(storages == (KEPT,) for storages in plan.wanted().values())
