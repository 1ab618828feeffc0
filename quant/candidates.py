# SPDX-License-Identifier: Apache-2.0
"""Makes graphs in which only some layers of a planned recipe are quantized, ready for an engine.

Every quantized tensor is written once, whatever number of candidates takes it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..runtime.model_package import ModelPackage
from .layers import ELEMENT_BYTES, Layer, StoredTensor
from .package_size import predicted_bytes
from .plan import Plan, PlannedGraph
from .recipes import KEEP, OPERATORS, Recipe, Rule
from .replay import REPLAYED
from .rewrite import KEPT, Decided, Storage, StoredWeight, rewrite
from .stored_weights import lay_out, named, pieces, unchanged
from .workbench import Workbench

_PARTS_OF_NAMES = frozenset(
    {"self_attn", "audio_cross_attn", "cross_attn", "ffn", "attention", "feed_forward", "attn", "mlp"}
)
"""What a block of a transformer consists of, as published checkpoints call it."""


_EMBEDDINGS = frozenset({"text_embedding", "img_emb", "time_embedding", "time_projection"})
"""Parts of the transformer before its blocks whose layers are numbered."""


@dataclass(frozen=True)
class Part:
    """Layers that are quantized together or not at all: one part of one block."""

    subnetwork: str
    """dit, vae_decoder and so on."""
    name: str
    """`blocks.3.ffn`, `decoder.upsamples.6`."""
    layers: tuple[str, ...]
    """Names of its layers."""
    stored_bytes: int
    """What their weights take in the package as it is."""
    quantized_bytes: int
    """What they take once quantized, scales included; twice where engines want different integers."""

    @property
    def saved_bytes(self) -> int:
        """What quantizing it saves; below 0 for an integer form of few, large scales."""
        return self.stored_bytes - self.quantized_bytes

    @property
    def keys(self) -> frozenset[tuple[str, str]]:
        """(subnetwork, layer) of each of its layers."""
        return frozenset((self.subnetwork, layer) for layer in self.layers)


def part_name(layer: str) -> str:
    """Return the part of a block that a layer belongs to.

    >>> part_name("blocks.3.self_attn.q"), part_name("decoder.upsamples.6.residual.2"), part_name("head.head")
    ('blocks.3.self_attn', 'decoder.upsamples.6', 'head')
    >>> part_name("encoder.layers.0.attention.q_proj"), part_name("audio_proj.proj1"), part_name("decoder.conv1")
    ('encoder.layers.0.attention', 'audio_proj', 'decoder.conv1')
    >>> part_name("text_embedding.2"), part_name("img_emb.proj.1")
    ('text_embedding', 'img_emb')
    """
    words = layer.split(".")
    if words[0] in _EMBEDDINGS:
        return words[0]
    number = next((index for index, word in enumerate(words) if word.isdigit()), None)
    if number is None:
        return ".".join(words[:2]) if words[0] in ("encoder", "decoder") else words[0]
    has_kind = len(words) > number + 1 and words[number + 1] in _PARTS_OF_NAMES
    return ".".join(words[: number + 1 + has_kind])


class Candidates:
    """Graphs of one package under one plan, with any choice of parts quantized."""

    def __init__(self, package: ModelPackage, plan: Plan, *, library: str, scratch: Path) -> None:
        """Plan nothing yet.

        Args:
            package: the source.
            plan: what the whole recipe comes to.
            library: whose form of a layer is taken where a recipe has one for each.
            scratch: folder for graphs and weights.
        """
        self._package = package
        self._plan = plan
        self._graphs = {graph.source.name: graph for graph in plan.graphs}
        self._library = library
        self._workbench = Workbench(package, scratch / "candidates")
        self._written: dict[tuple[object, Storage], StoredWeight] = {}

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every part of which the plan changes something, in the order of the graphs that a replay can exchange."""
        wanted = self._plan.wanted()
        found: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
        for name in REPLAYED:
            if name not in self._graphs:
                continue
            subnetwork = self._graphs[name].source.subnetwork
            for choice in self._choices(name):
                if choice.rule.form != KEEP.form:
                    part = found.setdefault((subnetwork, part_name(choice.layer.name)), {})
                    part[choice.layer.name] = _bytes(choice.layer.stored, wanted[choice.layer.stored])
        return tuple(
            Part(
                subnetwork,
                name,
                tuple(layers),
                sum(before for before, _ in layers.values()),
                sum(after for _, after in layers.values()),
            )
            for (subnetwork, name), layers in found.items()
        )

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Graphs that the plan changes, and of which no graph that a replay can exchange has the layers."""
        measured = _keys(self.parts)
        changed: dict[str, None] = {}
        for name, graph in self._graphs.items():
            for choice in self._choices(name):
                key = (graph.source.subnetwork, choice.layer.name)
                if choice.rule.form != KEEP.form and key not in measured:
                    changed[name] = None
        return tuple(changed)

    def package_bytes(self, parts: Collection[Part]) -> int:
        """Return what the package takes with these parts quantized; what is not measured is as the recipe says."""
        left = [part for part in self.parts if part not in parts]
        recipe = keeping(self._plan.recipe, left, name=self._plan.recipe.name)
        return predicted_bytes(replace(self._only(parts), recipe=recipe), source=self._package)

    def write(self, parts: Collection[Part]) -> dict[str, Path]:
        """Return graph to a file in which these parts are quantized, for those graphs that this changes."""
        paths: dict[str, Path] = {}
        for graph in self._only(parts).graphs:
            choices = graph.decided[self._library]
            if graph.source.name in REPLAYED and any(choice.rule.form != KEEP.form for choice in choices):
                model = rewrite(graph.source.model, choices, place=self._place)
                paths[graph.source.name] = self._workbench.write(graph.source.name, model)
        return paths

    def _only(self, parts: Collection[Part]) -> Plan:
        """Return the plan in which all other parts are kept as they are."""
        left = _keys(self.parts) - _keys(parts)

        def settled(graph: PlannedGraph, choice: Decided) -> Decided:
            is_left = (graph.source.subnetwork, choice.layer.name) in left
            return replace(choice, rule=KEEP, range=None) if is_left else choice

        return replace(
            self._plan,
            graphs=tuple(
                replace(
                    graph,
                    decided={
                        library: tuple(settled(graph, choice) for choice in choices)
                        for library, choices in graph.decided.items()
                    },
                )
                for graph in self._plan.graphs
            ),
        )

    def _choices(self, graph: str) -> tuple[Decided, ...]:
        return self._graphs[graph].decided[self._library]

    def _place(self, layer: Layer, storage: Storage) -> StoredWeight:
        if storage == KEPT:
            return unchanged({layer.stored: (storage,)})[layer.stored, storage]
        key = (layer.stored, storage)
        if key not in self._written:
            slots = lay_out({layer.stored: (storage,)})
            content = b"".join(
                piece if isinstance(piece, bytes) else np.asarray(piece).tobytes()
                for piece in pieces(slots, root=self._package.root)
            )
            location = self._workbench.add_weights(content)
            self._written[key] = named(slots, location=location)[key]
        return self._written[key]


def _keys(parts: Iterable[Part]) -> frozenset[tuple[str, str]]:
    return frozenset[tuple[str, str]]().union(*(part.keys for part in parts))


def _bytes(stored: StoredTensor, storages: tuple[Storage, ...]) -> tuple[int, int]:
    """Return what a weight takes before and after, in every form that an engine wants of it."""
    return stored.elements * ELEMENT_BYTES[stored.dtype], sum(slot.size_bytes for slot in lay_out({stored: storages}))


def keeping(recipe: Recipe, parts: Iterable[Part], *, name: str) -> Recipe:
    """Return a recipe that does the same but for these parts, which it leaves alone."""
    layers: dict[str, list[str]] = {}
    for part in parts:
        layers.setdefault(part.subnetwork, []).extend(part.layers)
    rules = [Rule((f"{subnetwork}*",), tuple(sorted(names)), OPERATORS, "keep") for subnetwork, names in layers.items()]
    return replace(recipe, name=name, rules=(*rules, *recipe.rules))
