# SPDX-License-Identifier: Apache-2.0
"""Which graph runs where: opens a package's graphs on the devices that were asked for, and says what was got."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .engine import (
    Device,
    Engine,
    Shapes,
    bounded_threads,
    library_of,
    open_engine,
    parse_device,
    require_device,
)
from .errors import EdgereelsError, EngineError, MissingExtraError, UsageError
from .model_package import ModelPackage
from .observe import Observe, ObservedEngine
from .report import EngineReport
from .split_dit import FUSED, SplitDit, parts_of, split_for
from .timing import Trace

logger = logging.getLogger(__name__)

OnCompile = Callable[[int, int, str], None]
"""Called with (graphs compiled, graphs in all, name of the one that is next or was the last)."""

LOW_PRECISION = ("dit", "vae_encoder", "vae_decoder")
"""Subnetworks whose arithmetic `compute` chooses. All others compute in f32 wherever they run: they are cheap, and
positions, colours and schedules don't survive less (the audio encoder in bf16: 12.7 dB against 121 dB)."""

ALWAYS_F32 = ("dit_time",)
"""Graphs of those subnetworks that are no exception: modulations come from float64 everywhere else."""


@dataclass(frozen=True)
class Asked:
    """Where a package is asked to run."""

    device: str = "cpu"
    """One of `engine.DEVICE_CHOICES`."""
    threads: int = 0
    """All engines together use at most this many; 0: the cores this process may use."""
    compute: str = "auto"
    """Arithmetic precision of the transformer and the VAE."""
    place: Mapping[str, str] = field(default_factory=dict[str, str])
    """Subnetwork or graph to its own device; a graph's own entry counts before its subnetwork's."""
    allow_fallback: bool = False
    """Whether the best CPU engine that is left takes over where a device can't be had; otherwise that is an error."""


class Placement(Mapping[str, Engine]):
    """Graph name to its engine. A graph is opened when it is first looked up, and only once."""

    def __init__(self, package: ModelPackage, asked: Asked, *, observe: Observe | None = None) -> None:
        """Check what was asked; nothing is opened.

        Args:
            package: whose graphs.
            asked: where they run.
            observe: told of every run.

        Raises:
            UsageError: `asked.place` names what the package doesn't have, or a device that doesn't exist.
        """
        _check_place(package, asked.place)
        self._package = package
        self._asked = asked
        self._observe = observe
        self._engines: dict[str, Engine] = {}
        self._fallbacks: dict[str, str] = {}
        self._devices: dict[str, Device] = {}
        self._expected: dict[str, list[Shapes]] = {}
        self._coming: Mapping[str, Sequence[Shapes]] = {}
        self._trace = Trace(keep=False)
        self._is_closed = False
        self._has_siblings = any("openvino" in entry.siblings for entry in package.manifest.graphs.values())

    def __getitem__(self, graph: str) -> Engine:
        if graph not in self._package.manifest.graphs:
            raise KeyError(graph)
        if graph not in self._engines:
            self._open(graph)
            self._note(graph)
        engine = self._engines[graph]
        return engine if self._observe is None else ObservedEngine(engine, graph=graph, observe=self._observe)

    def __iter__(self) -> Iterator[str]:
        return iter(self._package.manifest.graphs)

    def __len__(self) -> int:
        return len(self._package.manifest.graphs)

    @property
    def threads(self) -> int:
        """How many threads all engines together use at most."""
        return bounded_threads(self._asked.threads)

    def require_devices(self) -> None:
        """Raise `EngineError` or `MissingExtraError` for a device that can't be had, where nothing may take over."""
        if not self._asked.allow_fallback:
            for device in dict.fromkeys((self._asked.device, *self._asked.place.values())):
                require_device(device, siblings=self._has_siblings)

    def record_to(self, trace: Trace) -> None:
        """Record in a trace from now on what is opened; what is open already is recorded at once."""
        self._trace = trace
        for graph in self._engines:
            self._note(graph)

    def freeze(self, shapes: Mapping[str, Sequence[Shapes]], *, on_compile: OnCompile | None = None) -> None:
        """Open graphs and make them ready for the input shapes that will come, so that no run has to compile.

        Args:
            shapes: graph to all shapes of its inputs; {} stands for any. Graphs that the package lacks are left out.
            on_compile: told before each graph that takes time, and at the end.

        Raises:
            EngineError: a device, or a graph on it, can't be had.
        """
        wanted = {graph: each for graph, each in shapes.items() if graph in self._package.manifest.graphs}
        opened = [graph for graph in wanted if graph not in self._engines]
        self._coming = wanted  # how a graph is opened depends on its size
        with self._trace.span("freeze"):
            for graph in opened:
                self._open(graph)
            self._freeze({graph: self._unseen(graph, each) for graph, each in wanted.items()}, on_compile=on_compile)
        for graph in opened:
            self._note(graph)

    def got(self) -> dict[str, EngineReport]:
        """Return graph name to what was asked and what was got, of everything that is open."""
        return {graph: self._report(graph) for graph in self._engines}

    def asked_for(self, graph: str) -> str:
        """Return the device that a graph was asked to run on, as it was named."""
        place = self._asked.place
        return place.get(graph, place.get(self._package.graph(graph).subnetwork, self._asked.device))

    def close(self) -> None:
        """Free every engine; looking one up afterwards raises `EngineError`."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._is_closed = True

    def _open(self, graph: str) -> None:
        if self._is_closed:  # opening again would leave engines that nobody closes
            raise EngineError(f"the session of {self._package.name} is closed; open the package again")
        try:
            self._engines[graph] = self._opened_on(self._device(graph), graph, compute=self._compute(graph))
        except (EngineError, MissingExtraError) as error:
            self._fall_back(graph, error)

    def _opened_on(self, device: Device, graph: str, *, compute: str) -> Engine:
        split = None
        if graph == FUSED:
            shapes = self._coming.get(FUSED, ())
            tokens = max((each["rope_cos"][0] for each in shapes if "rope_cos" in each), default=None)
            split = split_for(self._package, device, library=self._library(device), tokens=tokens)
        if split is None:
            return self._opened_whole(device, graph, compute=compute)
        blocks = len(parts_of(self._package)) - 2
        self._on_event("split", graph=graph, blocks=blocks, **asdict(split))
        logger.warning(
            "the transformer needs about %.1f GB in one piece and %.1f GB are free: it runs in parts, %d of %d blocks "
            "stay open and the others are read again in every step",
            split.needed_bytes / 1e9,
            split.free_bytes / 1e9,
            split.open_blocks,
            blocks,
        )
        return SplitDit(
            self._package,
            open_part=lambda part: self._opened_whole(device, part, compute=compute),
            open_blocks=split.open_blocks,
        )

    def _opened_whole(self, device: Device, graph: str, *, compute: str) -> Engine:
        library = self._library(device)
        if library == "openvino" and self._is_precise(graph):
            compute = "f32"
        return open_engine(
            self._package.graph_path(graph, library),
            device=str(device),
            threads=self.threads,
            compute=compute,
            siblings=self._has_siblings,
            on_event=self._on_event,
        )

    def _fall_back(self, graph: str, error: EdgereelsError) -> None:
        """Open a graph on what is left; raise the error where that is not allowed."""
        if not self._asked.allow_fallback or graph in self._fallbacks:
            raise error
        is_first = str(error) not in self._fallbacks.values()  # one line, not one for each graph
        self._fallbacks[graph] = str(error)
        device = self._fallback_device(self._device(graph))
        compute = "auto" if self._compute(graph) != "f32" else "f32"
        engine = self._engines[graph] = self._opened_on(device, graph, compute=compute)
        if is_first:
            logger.warning("%s; %s runs instead", error, engine.provider)

    def _fallback_device(self, device: Device) -> Device:
        """Return the CPU for a card, and the other library's CPU for a CPU."""
        if device.kind == "cuda" or device.name in ("GPU", "NPU"):
            return Device("cpu", "")
        return Device("openvino", "CPU") if self._library(device) == "onnxruntime" else Device("onnxruntime", "CPU")

    def _device(self, graph: str) -> Device:
        asked = self.asked_for(graph)
        if asked not in self._devices:  # "auto" asks every library for its devices
            self._devices[asked] = parse_device(asked)
        return self._devices[asked]

    def _library(self, device: Device) -> str:
        return library_of(device, siblings=self._has_siblings)

    def _compute(self, graph: str) -> str:
        """Return the precision to ask for; ONNX Runtime has none but the one that a graph is written in."""
        is_low = self._asked.compute in ("bf16", "f16")
        return "auto" if is_low and self._is_precise(graph) else self._asked.compute

    def _is_precise(self, graph: str) -> bool:
        return self._package.graph(graph).subnetwork not in LOW_PRECISION or graph in ALWAYS_F32

    def _unseen(self, graph: str, shapes: Sequence[Shapes]) -> list[Shapes]:
        """Return those shapes that a graph is not ready for yet."""
        return [each for each in shapes if each not in self._expected.get(graph, ())]

    def _freeze(self, shapes: Mapping[str, list[Shapes]], *, on_compile: OnCompile | None) -> None:
        """Make engines ready; those of OpenVINO all at once."""
        compiled = {graph: new for graph, new in shapes.items() if new and self._is_compiled(graph)}
        if compiled:
            self._compile(compiled, on_compile=on_compile)
        for graph, new in shapes.items():
            self._expected.setdefault(graph, []).extend(new)
            fixed = [each for each in self._expected[graph] if each]
            if new and fixed and not self._is_compiled(graph):
                self._engines[graph].freeze(fixed)

    def _is_compiled(self, graph: str) -> bool:
        return self._engines[graph].library == "openvino" and not isinstance(self._engines[graph], SplitDit)

    def _compile(self, shapes: Mapping[str, list[Shapes]], *, on_compile: OnCompile | None) -> None:
        from .engine_openvino import OpenVinoEngine, freeze_all

        engines = {graph: engine for graph in shapes if isinstance(engine := self._engines[graph], OpenVinoEngine)}
        try:
            freeze_all([(engine, shapes[graph]) for graph, engine in engines.items()], progress=on_compile)
        except EngineError:
            if not self._asked.allow_fallback:
                raise
            for graph, engine in engines.items():  # which of them was it?
                try:
                    engine.freeze(shapes[graph])
                except EngineError as error:
                    engine.close()
                    self._fall_back(graph, error)

    def _report(self, graph: str) -> EngineReport:
        engine = self._engines[graph]
        return EngineReport(
            subnetwork=self._package.graph(graph).subnetwork,
            asked=self.asked_for(graph),
            library=engine.library,
            provider=engine.provider,
            precision=engine.precision,
            node_counts=dict(engine.node_counts),
            kernel_precisions=dict(getattr(engine, "kernel_precisions", {})),  # not every engine tells
            fallback=self._fallbacks.get(graph),
            in_parts=engine.in_parts if isinstance(engine, SplitDit) else None,
        )

    def _note(self, graph: str) -> None:
        got = self._report(graph)
        fields = {name: value for name, value in got.as_dict().items() if name not in ("fallback", "subnetwork")}
        self._trace.note("engine", graph=graph, **fields)
        if got.fallback is not None:
            self._trace.note("fallback", graph=graph, asked=got.asked, provider=got.provider, reason=got.fallback)

    def _on_event(self, code: str, /, **fields: Any) -> None:
        self._trace.note(code, **fields)


def _check_place(package: ModelPackage, place: Mapping[str, str]) -> None:
    graphs = package.manifest.graphs
    names = {*graphs, *(entry.subnetwork for entry in graphs.values())}
    unknown = [name for name in place if name not in names]
    if unknown:
        raise UsageError(
            f"{package.name} has no {', '.join(unknown)} to be placed; expected of it: {', '.join(sorted(names))}"
        )
    for device in place.values():
        check_device(device)


def check_device(device: str) -> None:
    """Raise `UsageError` for a device that doesn't exist."""
    if device == "auto":  # resolving that one asks libraries
        return
    try:
        parse_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
