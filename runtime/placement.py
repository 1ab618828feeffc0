# SPDX-License-Identifier: Apache-2.0
"""Which graph runs where: opens a package's graphs on the device that was asked for, and says what was got."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .engine import Engine, bounded_threads, open_engine
from .errors import EngineError
from .model_package import ModelPackage
from .timing import Trace


@dataclass(frozen=True)
class Asked:
    """Where a package is asked to run."""

    device: str = "cpu"
    """cpu, cuda:N, openvino:NAME or auto."""
    threads: int = 0
    """All engines together use at most this many; 0: the cores this process may use."""
    compute: str = "auto"
    """Arithmetic precision."""


class Placement(Mapping[str, Engine]):
    """Graph name to its engine. A graph is opened when it is first looked up, and only once."""

    def __init__(self, package: ModelPackage, asked: Asked) -> None:
        self._package = package
        self._asked = asked
        self._engines: dict[str, Engine] = {}
        self._trace = Trace(keep=False)
        self._is_closed = False

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
        for graph, engine in self._engines.items():
            self._note(graph, engine)

    def warm(self, *graphs: str) -> None:
        """Open graphs now rather than at first use, as far as the package has them."""
        for graph in graphs:
            if graph in self._package.manifest.graphs:
                _ = self[graph]

    def got(self) -> dict[str, tuple[str, str]]:
        """Return graph name to (provider, precision) of everything that is open."""
        return {name: (engine.provider, engine.precision) for name, engine in self._engines.items()}

    def close(self) -> None:
        """Free every engine; looking one up afterwards raises `EngineError`."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._is_closed = True

    def _open(self, graph: str) -> Engine:
        if self._is_closed:  # opening again would leave engines that nobody closes
            raise EngineError(f"the session of {self._package.name} is closed; open the package again")
        path = self._package.graph_path(graph)
        engine = open_engine(path, device=self._asked.device, threads=self.threads, compute=self._asked.compute)
        self._note(graph, engine)
        return engine

    def _note(self, graph: str, engine: Engine) -> None:
        self._trace.note(
            "engine", graph=graph, asked=self._asked.device, provider=engine.provider, precision=engine.precision
        )
