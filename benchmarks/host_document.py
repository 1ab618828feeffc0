# SPDX-License-Identifier: Apache-2.0
"""Lips against the truth, engine against engine, and what a host program lives by, in words."""

from collections.abc import Mapping
from typing import Any

from .agreement import LEAST_PSNR_DB, MOST_LEVELS
from .host_program import MOST_FIRST_FRAME_S, MOST_INSTALLED_MB, MOST_MEMORY_MB, MOST_THREADS
from .lip_sync import MOST_LOSS
from .markdown_tables import MISSING, decibels, digits, named, percent, spread, table, yes
from .recipe_packages import BEST, NONE


def lip_sync_section(parts: Mapping[str, Any]) -> str:
    """Return what quantizing costs of lip-sync, held-out speech against what was drawn."""
    measured = [entry for entry in parts.get("lip_sync", []) if "error" not in entry]
    if not measured:
        return ""
    whole = measured[0]["correlation"]
    rows: list[list[str]] = []
    losses: list[float] = []
    for entry in measured:
        loss = whole - entry["correlation"]
        losses += [loss] if entry["recipe"] == BEST else []
        low, high = entry["correlation_95"]
        rows.append(
            [
                f"{named(entry['recipe'])}, {entry['device']}, {entry['compute']}",
                f"{entry['correlation']:.3f} ({low:.3f}–{high:.3f})",
                f"{loss:+.3f}",
                f"{entry['lag_ms']:+.1f}",
                f"{entry['amplitude_ratio']:.2f}",
                f"{entry['wrong_audio']:.2f}",
            ]
        )
    header = ["package, device, compute", "correlation (95 %)", "loss", "lag ms", "amplitude", "another clip's sound"]
    verdict = yes(bool(losses) and max(losses) <= MOST_LOSS)
    return f"""## Lip-sync against the drawn truth

{measured[0]["clips"]} held-out utterances, {measured[0]["seconds"]} s, speakers and sentences never heard in training;
correlation of the mouth's opening with what was drawn. Aim: `{BEST}` loses at most {MOST_LOSS}: {verdict}.

{table(header, rows)}"""


def agreement_section(parts: Mapping[str, Any]) -> str:
    """Return how far two engines lie apart, window by window."""
    if "agreement" not in parts:
        return ""
    pieces = [
        f"""## The same package and seed on two engines

ONNX Runtime in f32 against OpenVINO, window by window, 128×128. Tolerance in f32: no value more than {MOST_LEVELS} of
255 levels apart, and at least {LEAST_PSNR_DB:g} dB: the engines sum in another order, and the conversion to bytes cuts
fractions off, so values next to a step differ by one."""
    ]
    for engine, windows in parts["agreement"].items():
        rows = [
            [
                str(window["index"]),
                str(window["frames"]),
                str(window["levels"]),
                percent(window["share"]),
                decibels(window["psnr_db"]),
            ]
            for window in windows
        ]
        note = f": {yes(_agrees(windows))}" if engine == "OpenVINO f32" else ", for comparison"
        header = ["window", "frames", "largest difference", "values that differ", "PSNR dB"]
        pieces.append(f"{engine}{note}\n\n{table(header, rows)}")
    return "\n\n".join(pieces)


def _agrees(windows: list[Mapping[str, Any]]) -> bool:
    return all(each["levels"] <= MOST_LEVELS and each["psnr_db"] >= LEAST_PSNR_DB for each in windows)


def host_section(parts: Mapping[str, Any]) -> str:
    """Return what a host program waits for, and what of the machine it gets."""
    if "host" not in parts:
        return ""
    rows: list[list[str]] = []
    threads: list[list[str]] = []
    for key, found in parts["host"].items():
        name = key.replace(NONE, named(NONE), 1) if key.startswith(NONE) else key
        first, peak = found["first_frame_s"], found["peak_mb"]
        rows.append(
            [
                name,
                f"{spread(first)}, {yes(first['max'] <= MOST_FIRST_FRAME_S)}",
                spread(found["open_s"]),
                spread(found["from_process_start_s"]),
                f"{spread(peak)}, {yes(peak['max'] <= MOST_MEMORY_MB)}",
            ]
        )
        threads += [_thread_row(name, count, each) for count, each in found["threads"].items()]
    header = ["package, engine", "open to first frame s", "of it opening s", "from process start s", "peak MB"]
    runs = int(next(iter(parts["host"].values()))["first_frame_s"]["n"])
    second = ["package, engine", "`threads=`", "processor ÷ wall time", "running at once, share of samples", "obeyed"]
    return f"""## What a host program lives by

{runs} fresh processes each, compiled graphs in the cache, files in the page cache; 4 s of sound, of which the first
frames come as a chunk of a whole window. Aims, for `{BEST}`: at most {MOST_FIRST_FRAME_S:g} s to the first frame, and
at most {MOST_MEMORY_MB:.0f} MB resident after four renders.

{table(header, rows)}

`threads=` while rendering for 3 s: processor time of all threads over wall time, at most {MOST_THREADS}× what was
asked; and how many threads the system showed running or waiting for a core, sampled every few milliseconds.

{table(second, threads)}"""


def _thread_row(name: str, count: str, found: Mapping[str, Any]) -> list[str]:
    at_once = ", ".join(f"{number}: {percent(share)}" for number, share in found["running_at_once"].items())
    return [name, count, digits(found["mean"]), at_once or MISSING, yes(found["obeyed"])]


def environments_section(parts: Mapping[str, Any]) -> str:
    """Return what has to be installed."""
    if "environments" not in parts:
        return ""
    rows = [
        [
            f"`.[{extras}]`",
            f"{found['size_mb']:.0f}",
            str(found["packages"]),
            yes(found["size_mb"] <= MOST_INSTALLED_MB),
        ]
        for extras, found in parts["environments"].items()
    ]
    return f"""### What has to be installed

Fresh environments on disk, pip included. Aim: at most {MOST_INSTALLED_MB} MB.

{table(["extras", "MB", "packages", f"≤ {MOST_INSTALLED_MB} MB"], rows)}"""
