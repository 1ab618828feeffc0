# SPDX-License-Identifier: Apache-2.0
"""Which graph runs where: opens a package's graphs on the devices that were asked for, and says what was got."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .engine import Device, Engine, bounded_threads, library_of, open_engine, parse_device
from .errors import EngineError, MissingExtraError, UsageError
from .model_package import ModelPackage
from .observe import Observe, ObservedEngine
from .report import EngineReport
from .timing import Trace

logger = logging.getLogger(__name__)

BEST_CPU = "cpu"
"""What takes over under `allow_fallback`."""

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
    """Whether the best CPU engine takes over where a device can't be had; otherwise that is an error."""


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
        self._got: dict[str, EngineReport] = {}
        self._devices: dict[str, Device] = {}
        self._trace = Trace(keep=False)
        self._is_closed = False
        self._has_siblings = any("openvino" in entry.siblings for entry in package.manifest.graphs.values())

    def __getitem__(self, graph: str) -> Engine:
        if graph not in self._package.manifest.graphs:
            raise KeyError(graph)
        if graph not in self._engines:
            self._engines[graph] = self._open(graph)
        return self._engines[graph]

    def __iter__(self) -> Iterator[str]:
        return iter(self._package.manifest.graphs)

    def __len__(self) -> int:
        return len(self._package.manifest.graphs)

    @property
    def threads(self) -> int:
        """How many threads all engines together use at most."""
        return bounded_threads(self._asked.threads)

    def record_to(self, trace: Trace) -> None:
        """Record in a trace from now on what is opened; what is open already is recorded at once."""
        self._trace = trace
        for graph in self._engines:
            self._note(graph)

    def warm(self, *graphs: str) -> None:
        """Open graphs now rather than at first use, as far as the package has them."""
        for graph in graphs:
            if graph in self._package.manifest.graphs:
                _ = self[graph]

    def got(self) -> dict[str, EngineReport]:
        """Return graph name to what was asked and what was got, of everything that is open."""
        return dict(self._got)

    def asked_for(self, graph: str) -> str:
        """Return the device that a graph was asked to run on, as it was named."""
        place = self._asked.place
        return place.get(graph, place.get(self._package.graph(graph).subnetwork, self._asked.device))

    def close(self) -> None:
        """Free every engine; looking one up afterwards raises `EngineError`."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._got.clear()
        self._is_closed = True

    def _open(self, graph: str) -> Engine:
        if self._is_closed:  # opening again would leave engines that nobody closes
            raise EngineError(f"the session of {self._package.name} is closed; open the package again")
        engine, fallback = self._opened(graph)
        self._got[graph] = EngineReport(
            subnetwork=self._package.graph(graph).subnetwork,
            asked=self.asked_for(graph),
            library=engine.library,
            provider=engine.provider,
            precision=engine.precision,
            node_counts=dict(engine.node_counts),
            fallback=fallback,
        )
        self._note(graph)
        return engine if self._observe is None else ObservedEngine(engine, graph=graph, observe=self._observe)

    def _opened(self, graph: str) -> tuple[Engine, str | None]:
        """Open a graph where it was asked for, or where it may go instead; return why it went there."""
        asked, compute = self.asked_for(graph), self._compute(graph)
        try:
            return self._open_on(graph, asked, compute=compute), None
        except (EngineError, MissingExtraError) as error:
            if not self._asked.allow_fallback or asked == BEST_CPU:
                raise
            engine = self._open_on(graph, BEST_CPU, compute="f32" if compute == "f32" else "auto")
            reason = str(error)
            if all(got.fallback != reason for got in self._got.values()):  # one line, not one for each graph
                logger.warning("%s: %s runs instead", reason, engine.provider)
            return engine, reason

    def _open_on(self, graph: str, device: str, *, compute: str) -> Engine:
        if device not in self._devices:  # "auto" asks every library for its devices
            self._devices[device] = parse_device(device)
        library = library_of(self._devices[device], siblings=self._has_siblings)
        return open_engine(
            self._package.graph_path(graph, library),
            device=str(self._devices[device]),
            threads=self.threads,
            compute=compute,
            siblings=self._has_siblings,
        )

    def _compute(self, graph: str) -> str:
        chosen = self._package.graph(graph).subnetwork in LOW_PRECISION and graph not in ALWAYS_F32
        return self._asked.compute if chosen else "f32"

    def _note(self, graph: str) -> None:
        got = self._got[graph]
        fields = {name: value for name, value in got.as_dict().items() if name != "fallback"}
        self._trace.note("engine", graph=graph, **fields)
        if got.fallback is not None:
            self._trace.note("fallback", graph=graph, asked=got.asked, provider=got.provider, reason=got.fallback)


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
