# SPDX-License-Identifier: Apache-2.0
"""The quality record of a package, quality.json: what the ladder found on which engine, and for which graphs.

docs/quality.md says what each field means. A record holds the digests of the graphs that were measured, so that it
can't be pasted onto other weights: `matches` tells.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import PackageError
from .ladder_gates import AT_LEAST, AT_MOST, GateResult
from .manifest import Manifest
from .model_package import ModelPackage
from .report import LIBRARY_NAMES

logger = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "edgereels-quality", 1
FILE = "quality.json"
PASSED, FAILED, UNMEASURED = "passed", "failed", "unmeasured"
TABLES = ("graphs", "engine", "machine", "versions", "counts", "rungs")
"""Keys of a ladder whose values are objects."""


@dataclass(frozen=True, slots=True)
class ControlResult:
    """A fault made on purpose, and the gate that caught it."""

    name: str
    """scaled weights, swapped frames or shifted audio."""
    rung: str
    """Where it was looked for."""
    caught_by: str
    """The gate's metric; empty where the control could not be run."""
    value: float | None
    """What the gate saw; None where the control could not be run."""
    limit: float | None
    """What it asks for."""
    note: str
    """What was done, or why not."""


@dataclass(frozen=True)
class Quality:
    """One ladder: a candidate on an engine against a reference."""

    source: str
    """Digest of the reference package."""
    graphs: Mapping[str, str]
    """Graph of the candidate to its digest, see `graph_digest`."""
    engine: Mapping[str, Any]
    """`library`, `provider`, what was asked (`device`, `compute`, `threads`), and per graph the `precision` got."""
    machine: Mapping[str, Any]
    """What the candidate ran on."""
    versions: Mapping[str, str]
    """Of everything that computes."""
    counts: Mapping[str, Any]
    """Seed, size, seconds and digest of the sound, frames, windows."""
    rungs: Mapping[str, Any]
    """Rung to its figures."""
    gates: tuple[GateResult, ...]
    """Every gate that applied."""
    controls: tuple[ControlResult, ...]
    """Every fault made on purpose; each was caught, or the ladder would have been refused."""
    rehearsal: tuple[Mapping[str, Any], ...] = field(default=())
    """What a rehearsal for engines of 16-bit floats found, where one was made."""

    @property
    def verdict(self) -> str:
        """`passed` where every gate was, `failed` where one was missed, `unmeasured` where there was none."""
        if not self.gates:
            return UNMEASURED
        return PASSED if all(gate.passed for gate in self.gates) else FAILED

    @property
    def misses(self) -> tuple[str, ...]:
        """One line for every gate that was missed: where, and by how much."""
        return tuple(gate.line for gate in self.gates if not gate.passed)

    @property
    def engine_name(self) -> str:
        """The engine in words: "OpenVINO CPU bf16"."""
        library, provider = str(self.engine.get("library", "")), str(self.engine.get("provider", ""))
        name = LIBRARY_NAMES.get(library, library)
        place = provider.removesuffix("ExecutionProvider").removeprefix(name).strip()
        return f"{name} {place} {self.engine.get('compute_got', '')}".strip()

    def matches(self, package: ModelPackage) -> bool:
        """Tell whether these figures are of this package's graphs, every one of them."""
        library = str(self.engine.get("library", "onnxruntime"))
        return dict(self.graphs) == graph_digests(package, library=library)

    def as_json(self) -> dict[str, Any]:
        """Return the record as quality.json holds it."""
        return asdict(self) | {"verdict": self.verdict}


# ── Digests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def graph_digests(package: ModelPackage, *, library: str) -> dict[str, str]:
    """Return the digest of every graph of a package, as an engine library reads it."""
    return {name: graph_digest(package, name, library=library) for name in package.manifest.graphs}


def graph_digest(package: ModelPackage, name: str, *, library: str) -> str:
    """Return a digest of a graph's file and of all weights that it refers to.

    SHA-256 over the listed digests of the graph's file and of its files of weights, sorted, one per line.
    """
    files = package.manifest.files
    weights = sorted({tensor.location for tensor in package.summary(name, library).tensors if tensor.location})
    own = files[package.graph(name).file_for(library)].sha256
    return hashlib.sha256("\n".join([own, *(files[file].sha256 for file in weights)]).encode("ascii")).hexdigest()


# ── Reading and writing ──────────────────────────────────────────────────────────────────────────────────────────────


def quality_bytes(ladders: Sequence[Quality]) -> bytes:
    """Return quality.json for the ladders of one package."""
    whole = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "ladders": [ladder.as_json() for ladder in ladders],
    }
    return (json.dumps(whole, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def read_quality(package: ModelPackage) -> tuple[Quality, ...]:
    """Return the ladders in a package's record; none where it has no record.

    Raises:
        PackageError: the record is none that this build reads.
    """
    record = package.quality()
    if record is None:
        return ()
    return parse_quality(record, where=f"{package.name}/{package.manifest.quality}")


def parse_quality(record: Mapping[str, Any], *, where: str) -> tuple[Quality, ...]:
    """Read the JSON of quality.json.

    Raises:
        PackageError: another format or version, or fields that are missing, unknown or of the wrong kind.
    """
    if not isinstance(record, Mapping):
        raise PackageError(f"{where} is no JSON object; measure again with `edgereels verify --ladder`", code="quality")
    if record.get("format") != FORMAT or record.get("format_version") != FORMAT_VERSION:
        raise PackageError(
            f"{where} has the format {record.get('format')!r} version {record.get('format_version')!r}; this build "
            f"reads {FORMAT} version {FORMAT_VERSION}: measure again with `edgereels verify --ladder`",
            code="quality",
        )
    try:
        return tuple(_ladder(ladder) for ladder in record["ladders"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(
            f"{where} does not make sense ({error}); measure again with `edgereels verify --ladder`", code="quality"
        ) from error


def _ladder(found: Mapping[str, Any]) -> Quality:
    ladder = dict(found)
    verdict = ladder.pop("verdict")
    known = {entry.name for entry in fields(Quality)}
    if set(ladder) != known:
        raise ValueError(f"its keys differ from the format's in {sorted(set(ladder) ^ known)}")
    if odd := [name for name in TABLES if not isinstance(ladder[name], Mapping)]:
        raise ValueError(f"{odd[0]} is no table")
    ladder["gates"] = tuple(_gate(gate) for gate in ladder["gates"])
    ladder["controls"] = tuple(ControlResult(**control) for control in ladder["controls"])
    ladder["rehearsal"] = tuple(ladder["rehearsal"])
    quality = Quality(**ladder)
    if quality.verdict != verdict:
        raise ValueError(f"its verdict is {verdict!r}, its gates say {quality.verdict!r}")
    return quality


def _gate(found: Mapping[str, Any]) -> GateResult:
    gate = GateResult(**found)
    holds = gate.value >= gate.limit if gate.sense == AT_LEAST else gate.value <= gate.limit
    if gate.sense not in (AT_LEAST, AT_MOST) or gate.passed is not holds:
        raise ValueError(f"the gate {gate.where} {gate.metric} contradicts itself")
    return gate


# ── For people ───────────────────────────────────────────────────────────────────────────────────────────────────────


def quality_line(package: ModelPackage) -> str:
    """Say in one line what a package's record says, and whether it is the package's own.

    "passed on ONNX Runtime CPU f32 and OpenVINO CPU bf16", "failed on ...", "stale: ...", "unmeasured".
    """
    ladders = read_quality(package)
    if not ladders:
        return UNMEASURED
    said: dict[str, list[str]] = {}
    for ladder in ladders:
        verdict = ladder.verdict if ladder.matches(package) else "stale: does not belong to these graphs"
        said.setdefault(verdict, []).append(ladder.engine_name)
    return "; ".join(f"{verdict} on {' and '.join(engines)}" for verdict, engines in said.items())


def quality_summary(package: ModelPackage) -> list[dict[str, Any]]:
    """Return the compact form of a package's record: one entry per engine, with every gate and control."""
    return [
        {
            "engine": ladder.engine_name,
            "verdict": ladder.verdict,
            "belongs": ladder.matches(package),
            "source": ladder.source,
            "gates": len(ladder.gates),
            "misses": list(ladder.misses),
            "controls": {control.name: control.value for control in ladder.controls},
            "clip": ladder.rungs.get("clip"),
        }
        for ladder in read_quality(package)
    ]


def table(quality: Quality) -> str:
    """Return a ladder as text: figures by rung, gates that were missed, controls, and the verdict."""
    lines = [f"ladder on {quality.engine_name} ({quality.machine.get('processor', 'unknown processor')})", ""]
    lines += _graph_lines(quality)
    for rung in ("window", "clip"):
        if rung in quality.rungs:
            lines += [f"{rung}: " + "  ".join(_figure(*item) for item in quality.rungs[rung].items()), ""]
    if quality.rehearsal:
        lines += [_rehearsal_line(quality.rehearsal), ""]
    lines += [_control_line(control) for control in quality.controls]
    passed = sum(gate.passed for gate in quality.gates)
    lines += ["", f"{quality.verdict}: {passed} of {len(quality.gates)} gates; against sha256:{quality.source[:16]}"]
    return "\n".join(lines) + "\n"


def _graph_lines(quality: Quality) -> list[str]:
    rows = [(rung, row) for rung in ("block", "graph") for row in quality.rungs.get(rung, ())]
    if not rows:
        return []
    width = max(len("graph"), *(len(row["graph"]) for _rung, row in rows))
    head = f"{'graph':{width}}  {'compute':7}  {'n':>3}  {'SQNR':>6}  {'worst':>6}  {'rel L2':>8}  {'/ bf16':>6}  gate"
    return [head, *(_graph_line(row, rung=rung, width=width, quality=quality) for rung, row in rows), ""]


def _graph_line(row: Mapping[str, Any], *, rung: str, width: int, quality: Quality) -> str:
    gate = next((gate for gate in quality.gates if gate.rung == rung and gate.where == row["graph"]), None)
    ratio = row["of_bf16"]
    verdict = (
        "" if gate is None else f"{gate.metric} {gate.sense} {gate.limit:.4g}: {'ok' if gate.passed else 'MISSED'}"
    )
    of_bf16 = "-" if ratio is None else f"{ratio:.2g}"
    return (
        f"{row['graph']:{width}}  {row['precision']:7}  {row['inputs']:3}  {row['sqnr_db']:6.1f}  "
        f"{row['worst_sqnr_db']:6.1f}  {row['rel_l2']:8.1e}  {of_bf16:>6}  {verdict}"
    )


def _figure(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{name} {value:.4g}"
    if isinstance(value, Mapping):
        return f"{name} " + ",".join(f"{key} {part:.2g}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return f"{name} [" + ", ".join(f"{part:.3g}" for part in value) + "]"
    return f"{name} {value}"


def _rehearsal_line(rehearsal: Sequence[Mapping[str, Any]]) -> str:
    worst = max(rehearsal, key=lambda entry: entry["largest"])
    inside = max(entry["inside"] for entry in rehearsal)
    verdict = "ok" if all(entry["passed"] for entry in rehearsal) else "TOO LARGE"
    return (
        f"16-bit rehearsal: largest value {worst['largest']:.4g} of {worst['limit']:g} at {worst['graph']}, "
        f"{worst['where']}: {verdict}; squares inside a norm up to {inside:.2g}"
    )


def _control_line(control: ControlResult) -> str:
    if control.value is None:
        return f"control {control.name}: not run: {control.note}"
    return f"control {control.name}: caught by {control.caught_by} {control.value:.4g} (gate {control.limit:.4g})"


def parity_summary(manifest: Manifest) -> dict[str, Any]:
    """Return the largest differences from PyTorch at export, over all graphs that were compared."""
    measured = [entry.parity for entry in manifest.graphs.values() if entry.parity]
    return {
        "max_abs": max((found.max_abs for found in measured), default=None),
        "max_rel": max((found.max_rel for found in measured), default=None),
        "graphs_measured": len(measured),
        "graphs": len(manifest.graphs),
    }
