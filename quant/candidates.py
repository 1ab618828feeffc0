# SPDX-License-Identifier: Apache-2.0
"""Makes graphs in which only some layers of a planned recipe are quantized, ready for an engine.

Every quantized tensor is written once, whatever number of candidates takes it.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..runtime.manifest import LIBRARIES
from ..runtime.model_package import ModelPackage
from .layers import ELEMENT_BYTES, Layer
from .plan import Plan
from .recipes import KEEP
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


QUALITY_BYTES = 1 << 16
"""Of the quality record of two engines; 38 kB for the embedded package."""


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
    """What they take once quantized, scales included."""

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
        self._graphs = {graph.source.name: graph for graph in plan.graphs}
        self._library = library
        self._workbench = Workbench(package, scratch / "candidates")
        self._written: dict[tuple[object, Storage], StoredWeight] = {}

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part of which the plan changes something, in the order of the graphs that a replay can exchange."""
        found: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
        for name in REPLAYED:
            if name not in self._graphs:
                continue
            subnetwork = self._graphs[name].source.subnetwork
            for choice in self._choices(name):
                if choice.rule.form != KEEP.form:
                    part = found.setdefault((subnetwork, part_name(choice.layer.name)), {})
                    part[choice.layer.name] = _bytes(choice)
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
        measured = frozenset[tuple[str, str]]().union(*(part.keys for part in self.parts))
        changed: dict[str, None] = {}
        for name, graph in self._graphs.items():
            for choice in self._choices(name):
                key = (graph.source.subnetwork, choice.layer.name)
                if choice.rule.form != KEEP.form and key not in measured:
                    changed[name] = None
        return tuple(changed)

    @property
    def fixed_bytes(self) -> int:
        """What the package grows by whatever parts are taken, at most; below 0 where it shrinks.

        Graphs grow, above all by OpenVINO's siblings (0.4 MB of 14 in the embedded package), the quality record comes
        along, and layers that are not measured shrink.
        """
        sizes = self._package.manifest.files
        grown = QUALITY_BYTES
        for name, graph in self._graphs.items():
            libraries = LIBRARIES if graph.has_sibling else LIBRARIES[:1]
            for library in libraries:
                model = rewrite(graph.source.model, graph.decided[library], place=_somewhere)
                grown += model.ByteSize()
            grown -= sizes[self._package.graph(name).file].size_bytes
        measured = frozenset[tuple[str, str]]().union(*(part.keys for part in self.parts))
        others = {
            choice.layer.stored: _bytes(choice)
            for name, graph in self._graphs.items()
            for choice in self._choices(name)
            if choice.rule.form != KEEP.form and (graph.source.subnetwork, choice.layer.name) not in measured
        }
        return grown + sum(after - before for before, after in others.values())

    def write(self, parts: Collection[Part]) -> dict[str, Path]:
        """Return graph to a file in which these parts are quantized, for those graphs that this changes."""
        wanted = frozenset[tuple[str, str]]().union(*(part.keys for part in parts))
        paths: dict[str, Path] = {}
        for name in REPLAYED:
            if name not in self._graphs:
                continue
            source = self._graphs[name].source
            choices = [
                choice if (source.subnetwork, choice.layer.name) in wanted else replace(choice, rule=KEEP, range=None)
                for choice in self._choices(name)
            ]
            if any(choice.rule.form != KEEP.form for choice in choices):
                paths[name] = self._workbench.write(name, rewrite(source.model, choices, place=self._place))
        return paths

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


def _somewhere(layer: Layer, storage: Storage) -> StoredWeight:
    """Return a place as long to write down as a real one."""
    key = (layer.stored, storage)
    return named(lay_out({layer.stored: (storage,)}), location=f"weights/{'0' * 64}.bin")[key]


def _bytes(choice: Decided) -> tuple[int, int]:
    """Return what a layer's weight takes before and after."""
    stored = choice.layer.stored
    before = stored.elements * ELEMENT_BYTES[stored.dtype]
    (slot,) = lay_out({stored: (Storage.of(choice.rule, choice.layer),)})
    return before, slot.size_bytes
