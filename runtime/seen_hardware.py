# SPDX-License-Identifier: Apache-2.0
"""On which hardware edgereels was ever run. One table: `edgereels doctor` marks by it, docs/hardware.md shows it.

A path that nobody ran counts as unverified, however likely it is to work. A row gets its `seen` from a report that
`edgereels verify --report` made on such a machine, and from nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Path:
    """One way from a graph to a result: a system, a kind of processor, a part of a library."""

    provider: str
    """As engines name it; "*": any of them."""
    system: str
    """As Python's `platform.system()` names it; "*": any."""
    processor: str
    """"avx512", "avx2", "other x86", "arm"; "*": any."""
    seen: str
    """Where it was run; empty where it never was."""

    def matches(self, *, provider: str, system: str, processor: str) -> bool:
        """Tell whether this row speaks of a path."""
        asked = {"provider": provider, "system": system, "processor": processor}
        return all(getattr(self, name) in ("*", value) for name, value in asked.items())


EPYC = "2 cores of an AMD EPYC (AVX-512 with VNNI and bf16), virtual machine, November 2026"

PATHS = (
    Path("*", "Windows", "*", ""),
    Path("*", "Darwin", "*", ""),
    Path("CUDAExecutionProvider", "Linux", "*", ""),
    Path("OpenVINO GPU", "Linux", "*", ""),
    Path("OpenVINO NPU", "Linux", "*", ""),
    Path("CPUExecutionProvider", "Linux", "avx512", EPYC),
    Path("OpenVINO CPU", "Linux", "avx512", EPYC),
    # ONEDNN_MAX_CPU_ISA=AVX2 on the machine above is an emulation: it takes OpenVINO's kernels away and leaves the
    # machine's caches and clock, and everything of ONNX Runtime. It is no such processor.
    Path("*", "Linux", "avx2", ""),
    Path("*", "Linux", "other x86", ""),
    Path("*", "Linux", "arm", ""),
)
"""The first row that matches counts; a path without a row was never seen."""


def seen_on(*, provider: str, system: str, processor: str) -> str:
    """Return where a path was run; empty: unverified."""
    rows = (row for row in PATHS if row.matches(provider=provider, system=system, processor=processor))
    return next(rows, Path(provider, system, processor, "")).seen


def table() -> Iterator[str]:
    """Yield the table in Markdown, as docs/hardware.md has it."""
    yield "| provider | system | processor | seen on |"
    yield "|---|---|---|---|"
    for row in PATHS:
        cells = ("any" if cell == "*" else cell for cell in (row.provider, row.system, row.processor))
        yield f"| {' | '.join(cells)} | {row.seen or '**unverified**'} |"
