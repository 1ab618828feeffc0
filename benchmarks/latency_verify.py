# SPDX-License-Identifier: Apache-2.0
"""Compute a report again from its trace, and name every figure that differs."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..runtime import VerificationError
from .latency_report import report_of
from .latency_trace_file import read_trace

TOLERANCE = 1e-9
"""Relative: sums of the same numbers differ by so much between versions of NumPy."""
MOST_SHOWN = 10
"""Differences that a message lists."""


def verify(trace: Path, report: Path) -> int:
    """Recompute a report; return how many values agree.

    Raises:
        VerificationError: The trace is damaged, or the report isn't what follows from it.
    """
    try:
        claimed = json.loads(report.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VerificationError(f"{report} is no JSON ({error}); a report is what `bench` wrote") from error
    computed = json.loads(json.dumps(report_of(read_trace(trace))))
    if found := list(differences(claimed, computed)):
        more = f"; and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        raise VerificationError(f"{report} doesn't follow from {trace}: {'; '.join(found[:MOST_SHOWN])}{more}")
    return sum(1 for _ in leaves(computed))


def differences(claimed: Any, computed: Any, *, at: str = "") -> Iterator[str]:
    """Say where a report differs from what its trace gives."""
    if isinstance(claimed, dict) and isinstance(computed, dict):
        for key in sorted(claimed.keys() | computed.keys()):
            inner = f"{at}.{key}" if at else key
            if key not in claimed or key not in computed:
                yield f"{inner} is in {'the report' if key in claimed else 'the trace'} alone"
            else:
                yield from differences(claimed[key], computed[key], at=inner)
    elif isinstance(claimed, list) and isinstance(computed, list) and len(claimed) == len(computed):
        for index, pair in enumerate(zip(claimed, computed, strict=True)):
            yield from differences(*pair, at=f"{at}[{index}]")
    elif not _same(claimed, computed):
        yield f"{at} is {claimed!r}, the trace gives {computed!r}"


def leaves(value: Any) -> Iterator[Any]:
    """Yield every value that isn't a mapping or a list."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def _same(claimed: Any, computed: Any) -> bool:
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in (claimed, computed)]
    if all(numbers):
        return math.isclose(claimed, computed, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(claimed) is type(computed) and claimed == computed
