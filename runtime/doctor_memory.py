# SPDX-License-Identifier: Apache-2.0
"""Memory that a package needs against what is free, in the machine and on its cards: estimated first, then measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .cuda_driver import Card, CudaDriver
from .engine import Device, library_of
from .footprint import PROCESS_BYTES, RENDER_GRAPHS, Footprint, estimate
from .machine import Memory
from .model_package import ModelPackage
from .split_dit import FUSED, in_parts

MEMORY = "memory"
"""What `Need.where` says of everything that is no card."""


@dataclass(frozen=True)
class Need:
    """Memory that the package needs against what is free."""

    where: str
    """"memory" or "cuda:0"."""
    needed_bytes: int
    """At its peak, the whole process."""
    free_bytes: int | None
    """None where the system doesn't tell."""
    is_measured: bool
    """Whether it was measured while running; otherwise estimated from the manifest."""
    how: str
    """What was measured, or what the estimate rests on."""

    @property
    def fits(self) -> bool:
        """Whether there is enough; unknown counts as enough."""
        return self.free_bytes is None or self.needed_bytes <= self.free_bytes


def estimated_needs(
    package: ModelPackage, *, asked: Mapping[str, Any], memory: Memory, cuda: CudaDriver
) -> tuple[Need, ...]:
    """Return what a render would need wherever its graphs are asked to run, in the order of `RENDER_GRAPHS`.

    Where that is more than what is free, the transformer counts as a session would split it: one block at a time.

    Args:
        package: opened.
        asked: keyword arguments of `AvatarSession.open`: device and place count.
        memory: of the machine.
        cuda: its cards; a card that isn't there counts as memory, and the trial will say that it is missing.
    """
    placed: dict[str, dict[str, list[str]]] = {}
    for graph in RENDER_GRAPHS:
        if graph in package.manifest.graphs:
            device = device_of(package, graph, asked=asked)
            where = f"cuda:{card.index}" if (card := _card(device, cuda)) else MEMORY
            placed.setdefault(where, {}).setdefault(library_for(package, device), []).append(graph)
    free = {f"cuda:{card.index}": card.free_bytes for card in cuda.cards} | {MEMORY: memory.free_bytes}
    return tuple(_need(package, graphs, where=where, free_bytes=free[where]) for where, graphs in placed.items())


def _need(package: ModelPackage, placed: Mapping[str, Sequence[str]], *, where: str, free_bytes: int | None) -> Need:
    """Return what graphs need in one place, given by the library that runs them."""
    guesses = {library: estimate(package, graphs=graphs, library=library) for library, graphs in placed.items()}
    how = "weights, caches and the widest activations at the default size"
    whole = Need(where, _bytes(guesses, where=where), free_bytes, False, how)
    runs_dit = next((library for library, graphs in placed.items() if FUSED in graphs), None)
    if whole.fits or runs_dit is None:
        return whole
    guesses[runs_dit] = in_parts(package, guesses[runs_dit], library=runs_dit)
    return replace(whole, needed_bytes=_bytes(guesses, where=where), how=f"{how}, the transformer in parts")


def _bytes(guesses: Mapping[str, Footprint], *, where: str) -> int:
    process = PROCESS_BYTES if where == MEMORY else 0
    return process + sum(guess.weights_bytes + guess.activations_bytes for guess in guesses.values())


def device_of(package: ModelPackage, graph: str, *, asked: Mapping[str, Any]) -> str:
    """Return the device that a graph was asked to run on, as it was named."""
    place: Mapping[str, str] = asked["place"]
    return place.get(graph, place.get(package.graph(graph).subnetwork, str(asked["device"])))


def library_for(package: ModelPackage, device: str) -> str:
    """Return which library's files a device would read; "auto" is taken for the CPU, only an estimate hangs on it."""
    kind, _, name = device.partition(":")
    return library_of(Device("cpu" if kind == "auto" else kind, name), siblings=package.has_siblings())


def _card(device: str, cuda: CudaDriver) -> Card | None:
    kind, _, number = device.partition(":")
    return next((card for card in cuda.cards if kind == "cuda" and str(card.index) == (number or "0")), None)


def measured_needs(
    ran: Mapping[str, Any], *, estimated: Sequence[Need], memory: Memory, cuda: CudaDriver
) -> Iterator[Need]:
    """Yield what a trial took; what it could not measure stays estimated.

    Args:
        ran: what the trial said of its run.
        estimated: of the same package.
        memory: before the trial.
        cuda: the same.
    """
    peak = ran.get("resident_peak_bytes")
    whole = ran["mode"] == "window"
    if peak is not None and whole:
        yield Need(MEMORY, peak, memory.free_bytes, True, "resident at its peak, one window in a process of its own")
    else:  # golden vectors are small: what they take says little about a real size
        yield from estimated
    for index, grown in enumerate(ran.get("card_bytes", ())):
        if grown > 0 and whole and index < len(cuda.cards):
            free = cuda.cards[index].free_bytes
            yield Need(f"cuda:{index}", grown, free, True, "taken on the card while one window ran")
