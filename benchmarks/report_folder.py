# SPDX-License-Identifier: Apache-2.0
"""The folder of a measurement: made aside and renamed when it is whole, so that an error leaves nothing behind.

::

    DIR.partial/   while it is written; swept by the next run
    DIR/           trace.jsonl · report.json · report.html
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..runtime import OutputError
from .latency_page import write_page
from .latency_report import report_of, write_report
from .latency_trace_file import read_trace

TRACE, REPORT, PAGE, COMPARISON = "trace.jsonl", "report.json", "report.html", "comparison.json"
OURS = frozenset({TRACE, REPORT, PAGE, COMPARISON, "tried"})
"""What may be in a folder that --force replaces."""


def check_folder(target: Path, *, force: bool) -> None:
    """Refuse a folder that can't be made, or that holds something else than a measurement.

    Raises:
        OutputError: it exists (without force), holds files that are not ours, or has no folder to lie in.
    """
    parent = target.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{target} can't be made: there is no folder {parent}; make it first")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{target} can't be made: {parent} may not be written to; choose another folder")
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputError(f"{target} exists; expected a new folder: choose another name, or --force replaces it")
    if not target.is_dir() or target.is_symlink():
        raise OutputError(f"{target} is no folder; expected one that bench made, or none: choose another name")
    if strange := sorted({path.name for path in target.iterdir()} - OURS):
        raise OutputError(f"{target} holds {strange[0]}, which bench did not write; --force replaces reports alone")


@contextmanager
def report_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a folder to write into, which gets its name at the end; an error removes it.

    Raises:
        OutputError: see `check_folder`.
    """
    check_folder(target, force=force)
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
    try:
        aside.mkdir()
        yield aside
        if os.path.lexists(target):
            shutil.rmtree(target)
        aside.rename(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_reports(folder: Path) -> dict[str, Any]:
    """Write report.json and report.html beside a folder's trace; return the report."""
    recorded = read_trace(folder / TRACE)
    report = report_of(recorded)
    write_report(folder / REPORT, report)
    write_page(folder / PAGE, report, recorded)
    return report
