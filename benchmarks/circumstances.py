# SPDX-License-Identifier: Apache-2.0
"""What else the machine was doing while it was measured."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..runtime import processor_name


def circumstances() -> dict[str, Any]:
    """Return machine, time, load average, and how much processor time other machines on the host took (steal)."""
    return {
        "machine": processor_name(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_1_min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "steal_s": _steal_s(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _steal_s() -> float | None:
    """Return seconds stolen from this virtual machine since it started; None where the system doesn't tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:  # not Linux
        return None
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")
