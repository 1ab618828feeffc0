# SPDX-License-Identifier: Apache-2.0
"""trace.jsonl becomes report.json: figures, whether they may be published, and the verdict in one sentence.

The report is a function of the trace alone, so that anybody can compute it again. Its fields are specified in
docs/latency_report.schema.json.
"""

import json
import os
from pathlib import Path
from typing import Any

from .latency_measures import counts, figures, span_s
from .latency_trace import Event, Run
from .latency_trace_file import Recorded
from .latency_validity import contention, validity

FORMAT = "edgereels-latency-report/1"
QUALITY = "quality"
"""Event: steps, window or frame rate were given up (its field `is_better` is false) or taken up again."""
NEAREST = "nearest_live_setting"
"""Event with the field `setting`: which one would be live here, in words."""


def report_of(recorded: Recorded) -> dict[str, Any]:
    """Compute the report of a trace."""
    run, computed = recorded.run, figures(recorded)
    return {
        "format": FORMAT,
        "run": {
            "scenario": run.scenario,
            "settings": run.settings,
            "fps": run.fps,
            "streams": run.streams,
            "clock": run.clock,
            "started_utc": run.started_utc,
            "measured_s": span_s(recorded),
            "version": run.version,
        },
        "subject": {"package_digest": run.package_digest, "engines": run.engines},
        "environment": run.environment,
        "contention": contention(recorded),
        "validity": validity(recorded),
        "verdict": verdict(run, computed, recorded.events),
        "counts": counts(recorded),
        "figures": computed,
        "trace_sha256": recorded.sha256,
    }


def verdict(run: Run, computed: dict[str, Any], events: list[Event]) -> dict[str, Any]:
    """Say whether it was live, with what to spare: `live` is None where the scenario doesn't ask that."""
    needed, misses = computed["needed_speed"], computed["misses"]
    said = {"needed_speed": needed, "spare_share": None if needed is None else max(0.0, 1 - needed)}
    if not misses["n"]:
        return {"live": None, "sentence": "nothing was measured", **said}
    if run.scenario == "file":
        factor = computed["real_time_factor_in_total"]
        return {"live": None, "sentence": f"a second of video takes {factor:.2f} s of work on this machine", **said}
    lowered = sum(event.name == QUALITY and not event.details.get("is_better", False) for event in events)
    is_smooth = not computed["stalls"]["count"] and not computed["missed_frames"]["hits"]
    live = not misses["hits"] and not lowered and is_smooth
    sentence = _live(run, said) if live else f"not live: {_why_not(computed, lowered)}; {_nearest(events)}"
    return {"live": live, "sentence": sentence + _turns(run, computed), **said}


def _live(run: Run, said: dict[str, Any]) -> str:
    spare = said["spare_share"]
    to_spare = "" if spare is None else f" with {spare:.0%} to spare".replace("%", " %")
    streams = f"{run.streams} streams " if run.streams > 1 else ""
    return f"{streams}live at {run.fps:g} fps on this machine{to_spare}"


def _why_not(computed: dict[str, Any], lowered: int) -> str:
    needed, misses, stalls = computed["needed_speed"], computed["misses"], computed["stalls"]
    if lowered:
        return f"quality was lowered {_times(lowered)} to keep up"
    if misses["hits"] and needed is None:
        return "no speed would do, a chunk was due before its sound was to come"
    if needed is not None and needed > 1:
        return f"{_burst(computed)}needs {max(needed, 1.01):.2f}×"
    if misses["hits"]:
        return f"{misses['hits']} of {misses['n']} chunks were late, for other reasons than speed: see the waits"
    if stalls["count"]:
        return f"every chunk was made in time, and the picture still stood {_times(stalls['count'])}"
    missed = computed["missed_frames"]
    return f"every chunk was made in time, and {missed['hits']} of {missed['n']} frames still came a slot late or never"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _burst(computed: dict[str, Any]) -> str:
    """Say so where the machine is fast enough on the whole and lost time in places."""
    if computed["real_time_factor_in_total"] >= 1:
        return ""
    misses, latest_s = computed["misses"], computed["chunk_lateness_ms"]["max"] / 1000
    return f"{misses['hits']} of {misses['n']} chunks late, by up to {latest_s:.2f} s; in its slowest place it "


def _nearest(events: list[Event]) -> str:
    known = [event.details["setting"] for event in events if event.name == NEAREST]
    return f"nearest live setting: {known[-1] if known else 'not sought'}"


def _turns(run: Run, computed: dict[str, Any]) -> str:
    total, beyond = computed["first_frame_ms"]["turn"], computed["first_frame_ms"]["turn_beyond_look_ahead"]
    if run.scenario != "turns" or total["p50"] is None:
        return ""
    look_ahead = computed["first_frame_ms"]["turn_look_ahead"]["p50"]["value"]
    return (
        f"; the face moves {total['p50']['value']:.0f} ms after the first sound (median of {total['n']}: "
        f"{look_ahead:.0f} ms of look-ahead by construction, {beyond['p50']['value']:.0f} ms beyond it)"
    )


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report, aside first and then renamed."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)
