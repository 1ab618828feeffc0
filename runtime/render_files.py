# SPDX-License-Identifier: Apache-2.0
"""The files of a render, before anything is computed: can they be written, and does none replace another?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError
from .sinks import check_target, import_av


def check_targets(made: Mapping[str, Path], *, inputs: Mapping[str, Any]) -> None:
    """Refuse files that can't be written, and files of which one would replace another or what is read.

    Raises:
        OutputError: a folder is missing or closed, or a name belongs to something that is no file.
        UsageError: two names mean the same file.
    """
    for path in made.values():
        check_target(path)
    taken = {_placed(Path(value)): name for name, value in inputs.items() if isinstance(value, str | Path)}
    for name, path in made.items():
        for used in (_placed(path), _placed(path.with_name(path.name + ".partial"))):
            if used in taken:
                raise UsageError(f"{name} and {taken[used]} both mean {used.name}; expected a file for each")
            taken[used] = name
    if "out" in made:
        import_av()


def _placed(path: Path) -> Path:
    """Return a file's name in its real folder; a link is its own name, because it is what gets replaced."""
    return path.parent.resolve() / path.name
