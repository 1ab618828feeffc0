# SPDX-License-Identifier: Apache-2.0
"""The files that a verb makes, before anything is computed: can they be written, and does none replace another?"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError
from .sinks import check_target


def check_targets(made: Mapping[str, Path], *, inputs: Mapping[str, Any], packages: Collection[Path] = ()) -> None:
    """Refuse files that can't be written, and files of which one would replace another or what is read.

    Args:
        made: option or argument to the file that is written.
        inputs: the same for what is read; values that are no paths are passed over.
        packages: folders, there or not yet, that hold what their manifest lists and nothing else.

    Raises:
        OutputError: a folder is missing or closed, or a name belongs to something that is no file.
        UsageError: two names mean the same file, or one lies in a package.
    """
    for name, path in made.items():
        for package in packages:
            _check_outside(path, package, name=name)
        check_target(path)
    taken = {_placed(Path(value)): name for name, value in inputs.items() if isinstance(value, str | Path)}
    for name, path in made.items():
        for used in (_placed(path), _placed(path.with_name(path.name + ".partial"))):
            if used in taken:
                raise UsageError(f"{name} and {taken[used]} both mean {used.name}; expected a file for each")
            taken[used] = name


def _check_outside(path: Path, package: Path, *, name: str) -> None:
    """Refuse a file that is a package, lies in one, or is written aside as one."""
    for used in (path, path.parent / f"{path.name}.partial"):
        if _placed(used).is_relative_to(os.path.realpath(package)):
            raise UsageError(
                f"{name} {path} means the package {package} or a file in it; expected a file outside of it, since a "
                "package holds what its manifest lists and nothing else: choose another folder"
            )


def _placed(path: Path) -> Path:
    """Return a file's name in its real folder; a link is its own name, because it is what gets replaced."""
    return Path(os.path.realpath(path.parent)) / path.name  # for a link to itself, `resolve` raises RuntimeError
