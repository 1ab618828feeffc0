# SPDX-License-Identifier: Apache-2.0
"""What the side-by-side run found, in words: who is how fast, against which peak, and where an aim is missed, why."""

from collections.abc import Mapping, Sequence
from typing import Any

from .markdown_tables import MISSING, decibels, digits, percent, sentence_list, spread, table, times, yes
from .peers import BEST, EAGER, FAITHFUL_DB, PEERS
from .rounds import figures, paired
from .workload import SUBNETWORKS

LEAST_TO_BEST, LEAST_TO_EAGER = 2.0, 4.0
LEAST_OF_PEAK = 0.60
MOST_SPLIT = 1.15
MOST_OUTSIDE = 0.05
NAMES = {
    "audio_encoder": "audio encoder",
    "vae_encoder": "VAE encoder",
    "dit": "DiT",
    "vae_decoder": "VAE decoder",
    "finish": "colours",
}
OURS = "edgereels, "
"""How names of edgereels' contenders begin."""
MULTIPLYING = ("conv", "matmul", "gemm", "fullyconnected", "attention", "mha", "inner")
"""Beginnings and parts of names of operators that multiply and add; the rest moves and rounds."""
TOP_OPERATORS = 5


def of_all(result: Mapping[str, Any], name: str) -> list[float]:
    """Return the seconds per second of video of all subnetworks together, round by round."""
    return [run["total"] for run in result["rounds"][name]]


def of_one(result: Mapping[str, Any], name: str, subnetwork: str) -> list[float]:
    """Return the seconds per second of video of one subnetwork, round by round."""
    return [run["seconds"][subnetwork] for run in result["rounds"][name]]


def own(result: Mapping[str, Any]) -> list[str]:
    """Return edgereels' contenders."""
    return [name for name in result["rounds"] if name not in PEERS]


def best_own(result: Mapping[str, Any]) -> str:
    """Return edgereels' fastest contender."""
    return min(own(result), key=lambda name: figures(of_all(result, name))["median"])


def peers_section(parts: Mapping[str, Any]) -> str:
    """Return the sections about peers, as far as they were measured."""
    if "rounds" not in parts:
        return ""
    result = parts["rounds"]
    pieces = [_side_by_side(result), _ratios(result)]
    pieces += [_trials(parts["trials"], result)] if parts.get("trials") else []
    pieces += [_peaks(result), _shares(result, parts.get("profiles", {})), _outside(result)]
    pieces += [_parts(parts["parts"])] if "parts" in parts else []
    return "\n\n".join(pieces)


# ── Who is how fast ──────────────────────────────────────────────────────────────────────────────────────────────────


def _side_by_side(result: Mapping[str, Any]) -> str:
    count = len(next(iter(result["rounds"].values())))
    header = ["seconds per second of video", *(NAMES[name] for name in SUBNETWORKS), "all", "smallest–largest"]
    rows: list[list[str]] = []
    for name in [*(peer for peer in PEERS if peer in result["rounds"]), *own(result)]:
        each = [digits(figures(of_one(result, name, part))["median"]) for part in SUBNETWORKS]
        whole = figures(of_all(result, name))
        rows.append([name, *each, digits(whole["median"]), f"{digits(whole['min'])}–{digits(whole['max'])}"])
    versions = ", ".join(f"{name} {version.split('-')[0]}" for name, version in result["versions"].items())
    return f"""## The same work in other hands

Every graph call of one recorded render of 4 s, {count} rounds in random order after one that is not counted, medians;
{result["threads"]} threads for everybody; {versions}. "Plain" is what a user writes in ten lines: default options,
dynamic shapes, the library's own choice of precision. PyTorch runs the modules that the graphs were exported from;
its inputs are converted before the clock runs and its outputs stay tensors. edgereels is timed inside a session that
renders, by its own trace.

{table(header, rows)}"""


def _ratios(result: Mapping[str, Any]) -> str:
    named = [name for name in PEERS if name in result["rounds"]]
    rows = [
        [mine, *(times(paired(of_all(result, peer), of_all(result, mine))) for peer in named)] for mine in own(result)
    ]
    text = f"""How many times longer the others took, all subnetworks together, paired round by round:

{table(["", *named], rows)}"""
    best = best_own(result)
    aims = [(BEST, LEAST_TO_BEST), (EAGER, LEAST_TO_EAGER)]
    for peer, least in aims:
        if peer in named:
            ratio = paired(of_all(result, peer), of_all(result, best))
            verdict = yes(ratio["median"] >= least)
            text += f"\n\nAim: at least {least:g}× against {peer}. {best}: {times(ratio)}: {verdict}."
    if BEST in named:
        each = [
            f"{NAMES[part]} {times(paired(of_one(result, BEST, part), of_one(result, best, part)))}"
            for part in SUBNETWORKS
        ]
        text += f" By subnetwork against {BEST}: {sentence_list(each)}."
    faithful = [(name, result["fidelity_db"][name]) for name in named]
    rows = [[name, *(decibels(found[part]) for part in SUBNETWORKS)] for name, found in faithful]
    return f"""{text}

That it is the same work: SQNR in dB of what came out against the recording (ONNX Runtime f32). OpenVINO's plain form
computes in bfloat16 where the processor has it, the audio encoder's positions included.

{table(["", *(NAMES[part] for part in SUBNETWORKS)], rows)}"""


def _trials(tried: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    variants = dict.fromkeys(variant for found in tried.values() for variant in found)
    rows = [[variant, *(_trial(tried[part].get(variant)) for part in tried)] for variant in variants]
    won = sentence_list([f"{NAMES[part]} {variant}" for part, variant in result["best"].items()])
    return f"""### What PyTorch's best is

Tried beforehand, each in a process of its own with at most 4 minutes for compiling and running; seconds per second of
video, median of 3, with SQNR in dB. A variant counts only from {FAITHFUL_DB:g} dB. Won: {won}.

{table(["variant", *(NAMES[part] for part in tried)], rows)}"""


def _trial(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return MISSING
    if "error" in found:
        return "failed" if "without an answer" not in found["error"] else "not in time"
    return f"{digits(found['seconds']['median'])} ({decibels(found['sqnr_db'])})"


# ── Peaks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def peak_of(result: Mapping[str, Any], *, kind: str, precision: str) -> float | None:
    """Return the highest rate of any library for "matmul" or "conv3d" at a precision, medians, GFLOP/s."""
    rates = [
        figures(values)["median"] for name, values in result["peaks"].items() if name.endswith(f"{precision} {kind}")
    ]
    return max(rates, default=None)


def _peaks(result: Mapping[str, Any]) -> str:
    libraries = sorted({name.split(" ")[0] for name in result["peaks"]})
    rows: list[list[str]] = []
    for precision in ("f32", "bf16", "int8"):
        for kind in ("matmul", "conv3d"):
            found = [result["peaks"].get(f"{library} {precision} {kind}") for library in libraries]
            rows.append([f"{precision} {kind}", *(spread(figures(values)) if values else MISSING for values in found)])
    return f"""### Peaks, measured in the same rounds

Billions of operations a second (a product with its sum counts as two): a matrix product of 1536³, and a convolution of
64 to 64 channels over 8×64×64 with 3×3×3 kernels.

{table(["", *libraries], rows)}"""


def precision_of(result: Mapping[str, Any], name: str, subnetwork: str) -> str:
    """Return what a contender multiplies a subnetwork in: what the engine says, or int8 where a recipe says so."""
    if "w8a8" in name and subnetwork in ("vae_encoder", "dit", "vae_decoder"):
        return "int8"
    got = [engine[1] for graph, engine in result["got"][name].items() if graph.startswith(subnetwork)]
    return got[0] if got else "f32"


def share_of_peak(result: Mapping[str, Any], name: str, subnetwork: str) -> float | None:
    """Return the reached rate over the peak of its kind and precision; None where nothing was counted."""
    operations = result["operations"].get(subnetwork, 0.0)
    kind = "conv3d" if subnetwork.startswith("vae") else "matmul"
    peak = peak_of(result, kind=kind, precision=precision_of(result, name, subnetwork))
    if not operations or peak is None:
        return None
    return operations / figures(of_one(result, name, subnetwork))["median"] / peak


def _shares(result: Mapping[str, Any], profiles: Mapping[str, Any]) -> str:
    counted = [part for part in SUBNETWORKS if result["operations"].get(part, 0.0) > 0.01]
    if not counted:
        return ""
    rows: list[list[str]] = []
    missed: list[tuple[str, str, float]] = []
    for name in own(result):
        cells: list[str] = []
        for part in counted:
            share = share_of_peak(result, name, part)
            cells.append(MISSING if share is None else f"{percent(share)} of {precision_of(result, name, part)}")
            if share is not None and share < LEAST_OF_PEAK:
                missed.append((name, part, share))
        rows.append([name, *cells])
    rates = sentence_list([f"{NAMES[part]} {digits(result['operations'][part])}" for part in counted])
    return f"""### Share of the peak

Aim: at least {percent(LEAST_OF_PEAK)} of the highest rate that any library reached above at that precision: of the
convolution for the VAE, of the product for DiT and audio encoder. Billions of operations per second of video, counted
by PyTorch: {rates}.

{table(["", *(NAMES[part] for part in counted)], rows)}

{_reasons(result, missed, profiles)}"""


def _reasons(result: Mapping[str, Any], missed: Sequence[tuple[str, str, float]], profiles: Mapping[str, Any]) -> str:
    if not missed:
        return "The aim is met everywhere."
    rows: list[list[str]] = []
    for name, part, share in missed:
        short = name.removeprefix(OURS)
        profile = profiles.get(short, {}).get(part)
        if profile is None:
            continue
        multiplying = sum(value for kind, value in profile.items() if _multiplies(kind))
        first = list(profile.items())[:TOP_OPERATORS]
        rows.append(
            [
                f"{short}: {NAMES[part]}",
                percent(share),
                percent(multiplying),
                percent(share / multiplying) if multiplying > share else MISSING,
                "; ".join(f"{kind} {percent(value)}" for kind, value in first),
            ]
        )
    header = ["where it is missed", "reached", "time in multiplying kernels", "rate inside them", "operators by time"]
    return f"""Why it is missed, from each library's own profile (shapes frozen, precision as edgereels sets it): the
time that goes into kernels that multiply, the rate that these would have reached with all of their time, and which
operators take longest. No rate is given where products run inside fused kernels too (attention is a Subgraph), so that
the time of those that multiply is not known.

{table(header, rows)}"""


def _multiplies(kind: str) -> bool:
    return any(part in kind.lower() for part in MULTIPLYING)


# ── Around the graphs ────────────────────────────────────────────────────────────────────────────────────────────────


def _outside(result: Mapping[str, Any]) -> str:
    rows: list[list[str]] = []
    met: list[bool] = []
    for name in own(result):
        runs = result["rounds"][name]
        shares = figures([run["outside"] / run["whole"] for run in runs])
        met.append(shares["median"] <= MOST_OUTSIDE)
        low, high = percent(shares["min"]), percent(shares["max"])
        rows.append(
            [
                name,
                spread(figures([run["whole"] for run in runs])),
                spread(figures([run["outside"] for run in runs])),
                f"{percent(shares['median'])} ({low}–{high})",
            ]
        )
    header = ["", "whole, s per s", "outside graphs, s per s", "share"]
    verdict = yes(all(met))
    return f"""### Time outside graphs

From the call to the last chunk, less what the trace has for audio encoder, VAE, DiT and colours; reading and
normalising the sound, planning, noise and copies are left. Neither mp4 nor files are written. Aim: at most
{percent(MOST_OUTSIDE)}: {verdict}.

{table(header, rows)}"""


def _parts(found: Mapping[str, Any]) -> str:
    rows: list[list[str]] = []
    met: list[bool] = []
    for engine, runs in found.items():
        ratio = paired([run["fused"] for run in runs], [run["split"] for run in runs])
        met.append(ratio["median"] <= MOST_SPLIT)
        rows.append([engine, times(ratio), str(len(runs)), yes(met[-1])])
    return f"""### The DiT fused and in parts

All DiT calls of the render through `dit.onnx`, over the same through prologue, blocks and epilogue. Aim: at most
{MOST_SPLIT}.

{table(["engine", "fused ÷ split", "rounds", f"≤ {MOST_SPLIT}"], rows)}"""
