# SPDX-License-Identifier: Apache-2.0
"""The transformer in parts: prologue, blocks one after the other, epilogue, over the same weights as the fused graph.

Fused is how it normally runs. Where that doesn't fit into the memory that is free, the parts do: as many blocks as fit
stay open, the others are opened for each run and freed after it, so that memory holds one of them at a time and a run
reads the rest of the weights from disk.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .cuda_driver import find_cards
from .engine import Device, Engine, Shapes, Value
from .errors import EngineError
from .footprint import Footprint, dit_activations_bytes, estimate
from .machine import memory_facts
from .model_package import ModelPackage
from .report import InParts

FIRST_PART, LAST_PART, BLOCK = "dit_prologue", "dit_epilogue", "dit_block_"
FUSED = "dit"

SHARE_OF_FREE = 0.9
"""The rest is left to the system and to what other graphs will still ask for."""


@dataclass(frozen=True)
class Split:
    """Why and how a transformer runs in parts."""

    needed_bytes: int
    """What the fused graph would take, estimated."""
    free_bytes: int
    """What was free."""
    open_blocks: int
    """Blocks that stay open; the others are opened one at a time."""


def parts_of(package: ModelPackage) -> list[str]:
    """Return the graphs that the transformer consists of, in order; none where it is stored whole only."""
    graphs = package.manifest.graphs
    if FIRST_PART not in graphs or LAST_PART not in graphs:
        return []
    return [FIRST_PART, *sorted(name for name in graphs if name.startswith(BLOCK)), LAST_PART]


def split_for(package: ModelPackage, device: Device, *, library: str, tokens: int | None = None) -> Split | None:
    """Return how the transformer has to be split on a device; None where it fits whole, as far as can be told.

    Args:
        package: whose transformer.
        device: where.
        library: whose files run there.
        tokens: in a window, of the size that will be rendered; None: not known, and only weights are counted. That of
            the package's own table says nothing: a package whose weights take 19 MB would seem to need 9.7 GB.
    """
    free = _free_bytes(device)
    blocks = [part for part in parts_of(package) if part.startswith(BLOCK)]
    dit = package.manifest.dit
    if free is None or not blocks or dit is None:
        return None
    needed = estimate(package, graphs=(FUSED,), library=library).weights_bytes
    if tokens is not None:
        needed += dit_activations_bytes(dit, tokens=tokens, library=library)
    room = int(free * SHARE_OF_FREE) - needed
    if room >= 0:
        return None
    each = estimate(package, graphs=blocks[:1], library=library).weights_bytes
    closed = -(room // max(1, each)) + 1  # rounded up, and one more is open while it runs
    return Split(needed, free, max(0, len(blocks) - closed))


def in_parts(package: ModelPackage, whole: Footprint, *, library: str) -> Footprint:
    """Return the least that a package needs: the same with one block of its transformer open at a time."""
    blocks = [part for part in parts_of(package) if part.startswith(BLOCK)]
    if not blocks:
        return whole
    every, one = (estimate(package, graphs=graphs, library=library).weights_bytes for graphs in (blocks, blocks[:1]))
    return replace(whole, weights_bytes=whole.weights_bytes - every + one)


def chain(
    package: ModelPackage, feeds: Mapping[str, Value], *, run: Callable[[str, dict[str, Value]], Mapping[str, Value]]
) -> Iterator[tuple[str, dict[str, Value], Mapping[str, Value]]]:
    """Run the transformer's parts one after the other; yield each with what it was given and what it made.

    Names say what goes where: a part takes what it needs of the feeds and of what the parts before it made.

    Args:
        package: whose transformer.
        feeds: of the fused graph.
        run: runs a part on its inputs.
    """
    known = dict(feeds)
    for part in parts_of(package):
        given = {spec.name: known[spec.name] for spec in package.graph(part).inputs}
        made = run(part, given)
        yield part, given, made
        known |= made
        if "tokens_out" in known:  # a block's output is the next one's input
            known["tokens"] = known.pop("tokens_out")


def _free_bytes(device: Device) -> int | None:
    if device.kind == "cuda":
        return next((card.free_bytes for card in find_cards().cards if str(card.index) == device.name), None)
    return memory_facts().free_bytes if device.name in ("", "CPU") else None


class SplitDit:
    """An `Engine` with the inputs and outputs of the fused graph. State: the parts that are open."""

    def __init__(self, package: ModelPackage, *, open_part: Callable[[str], Engine], open_blocks: int) -> None:
        """Open the parts that stay open.

        Args:
            package: whose transformer.
            open_part: opens a part by its graph's name.
            open_blocks: how many blocks stay open; prologue and epilogue do in any case.

        Raises:
            EngineError: a part can't be opened.
        """
        entry = package.graph(FUSED)
        self.input_names = tuple(spec.name for spec in entry.inputs)
        self.output_names = tuple(spec.name for spec in entry.outputs)
        self._package = package
        self._open_part = open_part
        parts = parts_of(package)
        blocks = [part for part in parts if part.startswith(BLOCK)]
        staying = blocks[:open_blocks]
        self._stay = {FIRST_PART, LAST_PART, *staying}
        self.in_parts = InParts(len(blocks), len(staying))
        """How many blocks there are, and how many stay open."""
        self._open: dict[str, Engine] = {}
        try:
            for part in parts:
                if part in self._stay:
                    self._part(part)
        except BaseException:
            self.close()  # nobody else knows of those that are open by now
            raise
        first = self._open[FIRST_PART]
        self.library, self.provider, self.precision = first.library, first.provider, first.precision

    @property
    def node_counts(self) -> Mapping[str, int]:
        """Provider to operators, of the parts that are open."""
        return _sum(engine.node_counts for engine in self._open.values())

    @property
    def kernel_precisions(self) -> Mapping[str, int]:
        """Matrix products by what they compute in, of the parts that are open and tell."""
        return _sum(getattr(engine, "kernel_precisions", {}) for engine in self._open.values())

    def freeze(self, shapes: Sequence[Shapes]) -> None:
        """Do nothing: shapes of what flows between the parts are known when it flows."""

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        """Run the parts in order.

        Raises:
            EngineError: a part can't be opened or run, or the engine is closed.
        """
        if not self._open:
            raise EngineError("the engine is closed; open the session again")
        last: Mapping[str, Value] = {}
        for _part, given, made in chain(self._package, feeds, run=self._run_part):
            del given  # before the next part runs: its tokens are large, and memory is why there are parts
            last = made
        return {name: last[name] for name in self.output_names}

    def close(self) -> None:
        """Free every part."""
        for engine in self._open.values():
            engine.close()
        self._open.clear()

    def _part(self, part: str) -> Engine:
        if part not in self._open:
            self._open[part] = self._open_part(part)
        return self._open[part]

    def _run_part(self, part: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        engine = self._part(part)
        try:
            return engine.run(feeds)
        finally:
            if part not in self._stay:
                self._open.pop(part).close()


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
