# SPDX-License-Identifier: Apache-2.0
"""report.html: the verdict on top, then what it rests on. One file, no script, light or dark as the reader likes."""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .latency_drawing import Bar, histogram, line, timeline
from .latency_figures import PERCENTILES
from .latency_measures import measured
from .latency_pieces import lateness_s
from .latency_trace import Chunk
from .latency_trace_file import Recorded

STYLE = """
:root{color-scheme:light dark;--ground:#fbfbf9;--ink:#1d2326;--soft:#667078;--grid:#e3e5e4;--card:#fff;--good:#1a7f4e;
--bad:#b3372b;--blue:#2f6db3;--wait:#c9ced1;--c0:#2f6db3;--c1:#2b8f86;--c2:#8a63b8;--c3:#c07a2c;--c4:#5b7f3a;--c5:#a8487a;
--c6:#7a6a58}
@media (prefers-color-scheme:dark){:root{--ground:#14181a;--ink:#e6e9ea;--soft:#98a3aa;--grid:#2b3236;--card:#1b2124;
--good:#57c78d;--bad:#f08a7c;--blue:#7db2ee;--wait:#4a545a;--c0:#5d97da;--c1:#4fb5ab;--c2:#ab8ad6;--c3:#dca05a;
--c4:#8bb265;--c5:#d279a6;--c6:#b8a68f}svg .inside{fill:#10151a!important}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:980px;margin:0 auto;padding:40px 24px 64px}h1{font-size:15px;font-weight:600;color:var(--soft);margin:0}
.verdict{font-size:30px;line-height:1.25;font-weight:650;margin:6px 0 12px;text-wrap:balance}.live{color:var(--good)}
.not{color:var(--bad)}h2{font-size:17px;margin:40px 0 4px}p{margin:4px 0 12px;color:var(--soft);max-width:70ch}
.status{display:inline-block;padding:2px 10px;border:1px solid currentColor;border-radius:99px;font-size:14px}
ul{margin:8px 0;padding-left:20px;color:var(--bad)}.scroll{overflow-x:auto}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0}
.card{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:12px 14px;font-size:13px;
color:var(--soft)}.card b{display:block;font-size:22px;color:var(--ink);font-variant-numeric:tabular-nums}
svg{width:100%;height:auto;display:block;background:var(--card);border:1px solid var(--grid);border-radius:10px}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .soft{fill:var(--soft)}svg .inside{fill:#fff}
.grid{stroke:var(--grid)}.line{fill:none;stroke:var(--blue);stroke-width:1.5}.bar{fill:var(--blue)}
.limit{stroke:var(--bad);stroke-dasharray:5 4}.mark{stroke:var(--soft);stroke-dasharray:2 3}.wait{fill:var(--wait)}
.s0{fill:var(--c0)}.s1{fill:var(--c1)}.s2{fill:var(--c2)}.s3{fill:var(--c3)}.s4{fill:var(--c4)}.s5{fill:var(--c5)}
.s6{fill:var(--c6)}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;min-width:100%}
th,td{text-align:right;padding:4px 10px;border-bottom:1px solid var(--grid);white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal}
td small{display:block;color:var(--soft)}th{color:var(--soft);font-weight:500}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px;color:var(--soft)}
"""
COLOURS = 7
"""Classes s0 … s6, in the order in which stages first appear."""
MOST_DRAWN_ROWS = 2
"""Of the timeline: the chunk in the middle, and the latest."""


def page(report: dict[str, Any], recorded: Recorded) -> str:
    """Return the page of a report and the trace that it was made from."""
    chunks = measured(recorded).chunks
    drawings = [*_timelines(chunks), *_lateness(chunks, fps=recorded.run.fps), *_memory(recorded)] if chunks else []
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(report['verdict']['sentence'])}</title><style>{STYLE}</style><main>"
        + "".join([_head(report), _cards(report), *drawings, _table(report), _foot(report)])
        + "</main></html>\n"
    )


def write_page(path: Path, report: dict[str, Any], recorded: Recorded) -> None:
    """Write the page, aside first and then renamed."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(page(report, recorded), encoding="utf-8")
    os.replace(aside, path)


def _head(report: dict[str, Any]) -> str:
    run, verdict, validity = report["run"], report["verdict"], report["validity"]
    colour = {True: "live", False: "not", None: ""}[verdict["live"]]
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in validity["reasons"])
    machine = report["environment"].get("machine", "an unnamed machine")
    about = f"{run['scenario']}, {run['measured_s']:.0f} s at {run['fps']:g} fps on {machine}"
    sentence = verdict["sentence"][:1].upper() + verdict["sentence"][1:]
    status = (
        f'<span class="status {"live" if validity["status"] == "publishable" else "not"}">{validity["status"]}</span>'
    )
    return f'<h1>{escape(str(about))}</h1><div class="verdict {colour}">{escape(sentence)}</div>{status}' + (
        f"<ul>{reasons}</ul>" if reasons else ""
    )


def _cards(report: dict[str, Any]) -> str:
    figures = report["figures"]
    misses, stalls, peak = figures["misses"], figures["stalls"], figures["memory"]["peak_bytes"]
    factor, offset = figures["real_time_factor_in_total"], figures["av_offset_ms"]
    outside = figures["outside_graphs_share"]
    cards = [
        ("chunks late", f"{misses['hits']} of {misses['n']}"),
        ("work per second of video", "–" if factor is None else f"{factor:.2f} s"),
        ("stalls", f"{stalls['count']}" + (f", longest {stalls['longest_ms']:.0f} ms" if stalls["count"] else "")),
        ("sound before picture", "–" if not offset["n"] else f"{offset['min']:+.0f} to {offset['max']:+.0f} ms"),
        ("drift of that, ms per hour (95 %)", _interval(figures["av_drift_ms_per_h"])),
        ("of sound beyond a chunk that it waits for", _range(figures["look_ahead_ms"])),
        ("memory, at most", "–" if peak is None else f"{peak / 1e6:.0f} MB"),
        ("memory's growth, MB per minute (95 %)", _interval(figures["memory"]["slope_mb_per_min"])),
        ("of a chunk outside graphs", "–" if outside is None else f"{100 * outside:.1f} %"),
    ]
    shown = "".join(f'<div class="card"><b>{escape(value)}</b>{escape(name)}</div>' for name, value in cards)
    return f'<div class="cards">{shown}</div>'


def _interval(found: dict[str, float] | None) -> str:
    return "–" if found is None else f"{found['low']:+.2f} to {found['high']:+.2f}"


def _range(found: dict[str, Any]) -> str:
    if not found["n"]:
        return "–"
    low, high = round(found["min"]), round(found["max"])
    return f"{low} ms" if low == high else f"{low} to {high} ms"


def _timelines(chunks: Sequence[Chunk]) -> list[str]:
    ordered = sorted(chunks, key=lambda chunk: chunk.ready_s - chunk.audio_ready_s)
    middle, longest = ordered[len(ordered) // 2], ordered[-1]
    shown = [("the chunk in the middle", middle), ("the slowest chunk", longest)][: min(MOST_DRAWN_ROWS, len(chunks))]
    names = list(dict.fromkeys(name for chunk in chunks for name in chunk.stages))
    parts = [
        timeline([(f"chunk {one.index}", _bars(one, names))], title=label, due_s=one.due_s - one.audio_ready_s)
        for label, one in shown
    ]
    told = [f"<p>{label[:1].upper() + label[1:]}:</p>{drawn}" for (label, _), drawn in zip(shown, parts, strict=True)]
    explained = "Waits are grey and drawn first; the dashed line is when its first frame was to be on the screen. "
    explained += "Frames can be shown as soon as they are decoded, before the chunk is whole."
    return [f"<h2>Where a chunk's time goes</h2><p>{explained}</p>", *told]


def _bars(chunk: Chunk, names: Sequence[str]) -> list[Bar]:
    waits = [Bar(name, seconds, "wait") for name, seconds in chunk.waits.items()]
    return waits + [Bar(name, chunk.stages[name], f"s{names.index(name) % COLOURS}") for name in chunk.stages]


def _lateness(chunks: Sequence[Chunk], *, fps: float) -> list[str]:
    ordered = sorted(chunks, key=lambda chunk: chunk.due_s)
    begin_s = ordered[0].due_s
    at = [chunk.due_s - begin_s for chunk in ordered]
    ahead = [lateness_s(chunk, fps=fps) * 1000 for chunk in ordered]
    latency = [(chunk.ready_s - chunk.intended_s) * 1000 for chunk in ordered]
    values = np.sort(latency)
    marks = [("half", float(values[(len(values) - 1) // 2])), ("slowest", float(values[-1]))]
    over_time = line(at, ahead, x_name="s", y_name="ms after it was due", title="lateness over time", limit=0.0)
    spread = histogram(
        latency, x_name="ms from the intended time to ready", title="distribution of latency", marks=marks
    )
    return [
        f"<h2>Lateness over time</h2><p>Below the dashed line all of a chunk was ready when due.</p>{over_time}",
        f"<h2>Chunk latency</h2><p>Counted from when its sound was to be there, whatever held it up.</p>{spread}",
    ]


def _memory(recorded: Recorded) -> list[str]:
    if len(recorded.memory) < 2:
        return []
    begin_s = recorded.memory[0].at_s
    at = [one.at_s - begin_s for one in recorded.memory]
    used = [one.rss_bytes / 1e6 for one in recorded.memory]
    return ["<h2>Memory</h2>" + line(at, used, x_name="s", y_name="MB", title="memory over time")]


def _table(report: dict[str, Any]) -> str:
    figures = report["figures"]
    rows = {name: found for name, found in figures.items() if isinstance(found, dict) and "mad" in found}
    rows |= {f"stage {name}": found for name, found in figures["stages_ms"].items()}
    rows |= {f"wait {name}": found for name, found in figures["waits_ms"].items()}
    rows |= {f"first frame, {name}": found for name, found in figures["first_frame_ms"].items()}
    head = "".join(f"<th>{name}" for name in ("", "n", "min", *(f"p{one}" for one in PERCENTILES), "max", "MAD"))
    body = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}{_cells(found)}" for name, found in rows.items() if found["n"]
    )
    note = "A percentile stands only where the count carries it (p90 from 64, p99 from 662), with its 95 % interval."
    return f'<h2>All figures</h2><p>{note}</p><div class="scroll"><table><tr>{head}{body}</table></div>'


def _cells(found: dict[str, Any]) -> str:
    percentiles = [found[f"p{one}"] for one in PERCENTILES]
    told = [
        "" if one is None else f"{_n(one['value'])} <small>{_n(one['low'])}…{_n(one['high'])}</small>"
        for one in percentiles
    ]
    return "".join(f"<td>{one}" for one in (found["n"], _n(found["min"]), *told, _n(found["max"]), _n(found["mad"])))


def _n(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def _foot(report: dict[str, Any]) -> str:
    rest = {name: report[name] for name in ("run", "subject", "environment", "contention", "counts", "trace_sha256")}
    version, build = report["run"]["version"], report["environment"].get("build", "not recorded")
    told = f"<p>edgereels {escape(str(version))}, build {escape(str(build))}</p>"
    return f"<h2>What ran, where</h2>{told}<pre>{escape(json.dumps(rest, indent=1, ensure_ascii=False))}</pre>"
