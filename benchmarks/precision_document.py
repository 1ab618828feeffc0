# SPDX-License-Identifier: Apache-2.0
"""docs/precision.md from what was measured: the answer first, then recipes, engines, peers and the host program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .host_document import agreement_section, environments_section, host_section, lip_sync_section
from .ladders import CONTROL, ENGINES, REFERENCE
from .markdown_tables import (
    MISSING,
    decibels,
    named,
    sentence_list,
    spread,
    table,
    times,
    wrapped,
    yes,
)
from .peers_document import peers_section
from .recipe_packages import FOUND, FOUND_BASE, FOUND_MB, NONE
from .rounds import figures, paired

COMMAND = "python -m edgereels.benchmarks.precision --work FOLDER --checkpoint examples/train_avatar/checkpoint"
MOST_OF_FP32 = {"int8": 0.30, "int4": 0.20}
"""Recipe to the largest share of its float32 size that what it covers may take."""
CAPPED = "OpenVINO f32, AVX2"
ENGINE_NAMES = {
    "ONNX Runtime f32": "ONNX Runtime",
    "OpenVINO f32": "OpenVINO, rest in f32",
    "OpenVINO auto": "OpenVINO, rest in bf16",
    CAPPED: "OpenVINO capped to AVX2",
}
Parts = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One recipe on one engine."""

    recipe: str
    engine: str
    seconds: Mapping[str, float] | None
    """Per second of video: median and spread; None where it was not timed."""
    gain: Mapping[str, float] | None
    """How many times faster than the reference of its group, paired."""
    peak_mb: float | None
    """Resident, with the process around it."""
    ladder: Mapping[str, Any]
    """What `verify --ladder` found; empty where it was not asked."""

    @property
    def passed(self) -> bool:
        """Whether every gate was."""
        return self.ladder.get("verdict") == "passed"


def rows_of(parts: Parts) -> list[Row]:
    """Return recipe by recipe, engine by engine, what is known."""
    found: list[Row] = []
    recipes = dict.fromkeys([*parts.get("speed", {}), *parts.get("ladders", {})])
    for recipe in recipes:
        group = parts.get("speed", {}).get(recipe, {"rounds": {}, "memory_mb": {}})
        for engine in ENGINES:
            runs = group["rounds"].get(engine)
            reference = group["rounds"].get("reference", group["rounds"].get(REFERENCE[1]))
            whole = [run["whole"] for run in runs] if runs else []
            found.append(
                Row(
                    recipe,
                    engine,
                    figures(whole) if whole else None,
                    paired([run["whole"] for run in reference], whole) if whole and reference else None,
                    group["memory_mb"].get(engine, {}).get("peak"),
                    parts.get("ladders", {}).get(recipe, {}).get(engine, {}),
                )
            )
    return found


def document(parts: Parts) -> str:
    """Return the whole document; what was not measured is listed at its end."""
    sections: list[Callable[[Parts], str]] = [
        _head,
        _advice,
        _circumstances,
        _sizes,
        _costs,
        _fidelity,
        lip_sync_section,
        agreement_section,
        peers_section,
        host_section,
        environments_section,
        _unmeasured,
    ]
    return wrapped("\n\n".join(text for text in (section(parts) for section in sections) if text)) + "\n"


# ── The answer ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _head(_parts: Parts) -> str:
    return f"""<!-- Written by `{COMMAND}`: change the benchmark, not this file. -->

# Precision: which recipe, which extra, at what cost

Measured on the embedded avatar, 128×128 at 25 frames a second. "s per s" is seconds of work per second of video, from
the call to the last frame: below 1 is faster than real time. Figures are medians with their smallest and largest value.
[precision.json](precision.json) holds every single one."""


def _advice(parts: Parts) -> str:
    rows = [row for row in rows_of(parts) if row.seconds is not None and row.passed]
    if not rows:
        return ""
    sizes = parts.get("packages", {})
    lines = [
        _advised("CPU with bfloat16 (AVX-512 BF16, AMX)", _fastest(rows, not_on=(CAPPED,)), sizes),
        _advised("CPU without it: mini-PC, kiosk (emulated)", _fastest(rows, only_on=(CAPPED,)), sizes),
        _advised("any CPU, ONNX Runtime only", _fastest(rows, only_on=("ONNX Runtime f32",)), sizes),
        _advised("the smallest download", _smallest(rows, sizes), sizes),
        ["NVIDIA card", "`.[cuda,video]`", "as exported", "ONNX Runtime, CUDA", "not measured here", ""],
        ["Intel GPU", "`.[openvino,video]`", "as exported", "OpenVINO GPU", "not measured here", ""],
    ]
    header = ["your machine", "install", "recipe", "engine", "s per s", "package MB"]
    return f"""## In short

{table(header, [line for line in lines if line])}

Only what passed every gate of the quality ladder is recommended. Other hardware: [hardware.md](hardware.md); what the
recipes do: [quantization.md](quantization.md); what the gates ask: [quality.md](quality.md).

![seconds per second of video against PSNR](precision.svg)"""


def _fastest(rows: list[Row], *, only_on: tuple[str, ...] = (), not_on: tuple[str, ...] = ()) -> Row | None:
    fitting = [row for row in rows if (not only_on or row.engine in only_on) and row.engine not in not_on]
    return min(fitting, key=lambda row: row.seconds["median"] if row.seconds else 0.0, default=None)


def _smallest(rows: list[Row], sizes: Parts) -> Row | None:
    weighed = [row for row in rows if "size_bytes" in sizes.get(row.recipe, {}) and row.engine != CAPPED]
    return min(
        weighed,
        key=lambda row: (sizes[row.recipe]["size_bytes"], row.seconds["median"] if row.seconds else 0.0),
        default=None,
    )


def _advised(machine: str, row: Row | None, sizes: Parts) -> list[str]:
    if row is None or row.seconds is None:
        return [machine, MISSING, MISSING, MISSING, "nothing passed", ""]
    extra = "`.[openvino,video]`" if row.engine.startswith("OpenVINO") else "`.[cpu,video]`"
    size = sizes.get(row.recipe, {}).get("size_bytes")
    recipe = "as exported" if row.recipe == NONE else row.recipe
    return [machine, extra, recipe, ENGINE_NAMES[row.engine], spread(row.seconds), _megabytes(size)]


def _megabytes(size_bytes: float | None) -> str:
    return MISSING if size_bytes is None else f"{size_bytes / 1e6:.1f}"


def _circumstances(parts: Parts) -> str:
    told = [group["circumstances"] for group in parts.get("speed", {}).values()]
    told += [parts["rounds"]["circumstances"]] if "rounds" in parts else []
    if not told:
        return ""
    machine = told[0]["before"].get("machine")
    loads = [each["before"]["load_1_min"] for each in told if each["before"]["load_1_min"] is not None]
    stolen = sum(each["after"]["steal_s"] - each["before"]["steal_s"] for each in told)
    began, ended = min(each["before"]["at"] for each in told), max(each["after"]["at"] for each in told)
    load = f"Load average as a group of processes started: {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    return f"""## How it was measured

{machine or "One machine"}, a virtual one; {began} to {ended}. {load} (what ran before is still in the
higher ones); time stolen by other machines on the host while timing: {stolen:.1f} s. Whatever is compared ran in the
same rounds, each in a process of its own, in random order; ratios pair two runs of one round.

"{ENGINE_NAMES[CAPPED]}" is **an emulation of a kiosk CPU**: `ONEDNN_MAX_CPU_ISA=AVX2` caps oneDNN, with which OpenVINO
computes, to AVX2; clock, caches and memory stay those of the machine above. ONNX Runtime has kernels of its own and
ignores it, so its rows hold for this machine only.{_control(parts)}"""


def _control(parts: Parts) -> str:
    group = parts.get("speed", {}).get(NONE, {}).get("rounds", {})
    engine = next(iter(CONTROL))
    if engine not in group or REFERENCE[1] not in group:
        return ""
    noise = paired(*([run["whole"] for run in group[name]] for name in (REFERENCE[1], engine)))
    return f" The same twice, ONNX Runtime with and without the cap, came out as {times(noise)}: the noise of a pair."


# ── Recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sizes(parts: Parts) -> str:
    if "packages" not in parts:
        return ""
    rows: list[list[str]] = []
    for recipe, found in parts["packages"].items():
        covered = found.get("covered")
        if "size_bytes" not in found:
            rows.append([named(recipe), *[MISSING] * 4, found["outcome"]])
            continue
        ratio = covered["size_bytes"] / covered["fp32_bytes"] if covered and covered["fp32_bytes"] else None
        rows.append(
            [
                named(recipe),
                _megabytes(found["size_bytes"]),
                MISSING if covered is None else str(covered["layers"]),
                MISSING if covered is None else _megabytes(covered["fp32_bytes"]),
                MISSING if ratio is None else _ratio(recipe, ratio),
                found.get("outcome", ""),
            ]
        )
    header = ["recipe", "package MB", "layers covered", "their float32 MB", "of that", "`edgereels quantize`"]
    return f"""## Recipes and what they weigh

What is exported is stored in float16. `{FOUND}` is the recipe that the sensitivity pass wrote for a package of
{FOUND_MB} MB, beginning with `{FOUND_BASE}`.
Aims: int8 at most {MOST_OF_FP32["int8"]} of the float32 size of what it covers, int4 at most {MOST_OF_FP32["int4"]}.

{table(header, rows)}"""


def _ratio(recipe: str, ratio: float) -> str:
    limit = MOST_OF_FP32.get(recipe)
    return f"{ratio:.3f}×" + ("" if limit is None else f", {yes(ratio <= limit)}")


def _costs(parts: Parts) -> str:
    rows = [row for row in rows_of(parts) if row.seconds is not None]
    if not rows:
        return ""
    shown = [
        [
            named(row.recipe),
            ENGINE_NAMES[row.engine],
            _computes(parts, row),
            spread(row.seconds),
            times(row.gain) if row.gain else MISSING,
            f"{row.peak_mb:.0f}" if row.peak_mb else MISSING,
            "passed" if row.passed else "**missed**" if row.ladder.get("verdict") else MISSING,
        ]
        for row in rows
        if row.seconds is not None
    ]
    count = sorted({int(row.seconds["n"]) for row in rows if row.seconds})
    errors = [
        f"{named(recipe)}, {engine}: {text}"
        for recipe, group in parts["speed"].items()
        for engine, text in group["errors"].items()
    ]
    header = ["recipe", "engine", "DiT, decoder in", "s per s", "against the first row", "peak MB", "gates"]
    failed = "\n\nCould not be run: " + "; ".join(errors) + "." if errors else ""
    return f"""## Recipe × engine: time and memory

{sentence_list([str(number) for number in count])} rounds of 4 s of video, {_thread_count(parts)} threads. Memory is the
process's peak of resident memory, Python included, with compiled graphs in the cache.

{table(header, shown)}{failed}"""


def _thread_count(parts: Parts) -> str:
    return str(parts.get("rounds", {}).get("threads", 2))


def _computes(parts: Parts, row: Row) -> str:
    got = parts["speed"][row.recipe]["got"].get(row.engine, {})
    precisions = [engine[1] for graph, engine in got.items() if graph in ("dit", "vae_decoder_next")]
    return sentence_list(list(dict.fromkeys(precisions)))


def _fidelity(parts: Parts) -> str:
    rows = [row for row in rows_of(parts) if row.ladder]
    if not rows:
        return ""
    header = ["recipe", "engine", "DiT", "decoder", "latents", "clip PSNR", "mouth PSNR", "SSIM"]
    header += ["seams (reference's)", "lips", "lag ms", "gates"]
    missed = [f"- {named(row.recipe)}, {ENGINE_NAMES[row.engine]}: {line}" for row in rows for line in _missed(row)]
    below = "\n\nGates that were missed, and by how much:\n\n" + "\n".join(missed) if missed else ""
    counts = max((row.ladder["counts"] for row in rows if "counts" in row.ladder), key=lambda each: each["frames"])
    return f"""## Recipe × engine: the quality ladder

`edgereels verify --ladder`, {counts["frames"]} frames in {counts["windows"]} windows from the same noise as the
reference, which is the package as exported on ONNX Runtime in float32. DiT, decoder and latents of a window: SQNR in
dB; clips in dB; "lips" is the correlation of the mouth's motion with the reference's. Capped to AVX2 it is the 4 s that
were timed, and the clip only: at other lengths of sound OpenVINO 2026.4.1 ends the process under the cap, in a
normalisation whose last values go through code for another instruction set.

{table(header, [_ladder_row(row) for row in rows])}{below}"""


def _ladder_row(row: Row) -> list[str]:
    first = [named(row.recipe), ENGINE_NAMES[row.engine]]
    if "rungs" not in row.ladder:
        return [*first, *[MISSING] * 9, row.ladder.get("error", "")]
    rungs = row.ladder["rungs"]
    graphs = {entry["graph"]: entry["sqnr_db"] for entry in rungs.get("graph", [])}
    clip = rungs["clip"]
    seams = f"{clip['seam_ratio']:.2f} ({clip['reference_seam_ratio']:.2f})" if "seam_ratio" in clip else MISSING
    return [
        *first,
        decibels(graphs.get("dit")),
        decibels(graphs.get("vae_decoder_next")),
        decibels(rungs.get("window", {}).get("last_sqnr_db")),
        decibels(clip["psnr_db"]),
        decibels(clip.get("mouth_psnr_db")),
        f"{clip['ssim']:.4f}",
        seams,
        f"{clip['lip_correlation']:.3f}" if "lip_correlation" in clip else MISSING,
        f"{clip['lip_lag_ms']:+.1f}" if "lip_lag_ms" in clip else MISSING,
        "passed" if row.passed else "**missed**",
    ]


def _missed(row: Row) -> list[str]:
    return [
        f"{gate['where']} ({gate['rung']}): {gate['metric']} {gate['value']:.4g}, {gate['sense']} {gate['limit']:.4g}"
        for gate in row.ladder.get("gates", [])
        if not gate["passed"]
    ]


def _unmeasured(parts: Parts) -> str:
    expected = ("packages", "ladders", "speed", "lip_sync", "agreement", "host", "environments", "rounds", "parts")
    absent = [name for name in (*expected, "trials", "profiles") if not parts.get(name)]
    text = "" if not absent else f"Not measured in this run: {sentence_list(absent)}. "
    return f"""## What is not here

{text}Cards (CUDA, Intel GPU, NPU), Windows and macOS: nobody has run them. One machine, one avatar, one size: at
another the shares of DiT and VAE differ. The emulation of AVX2 says nothing about clock and memory of a real kiosk."""
