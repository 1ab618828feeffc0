# SPDX-License-Identifier: Apache-2.0
"""What somebody wants quantized, and how."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .recipes import Recipe

Progress = Callable[[str], None]
"""Called with a line before each piece of work."""


@dataclass(frozen=True)
class Request:
    """What to quantize, and how."""

    package: str | Path
    """Folder of the package, or the text "default"."""
    target: Path
    """Folder to write."""
    recipe: Recipe
    """What to follow."""
    calibration: Path | None = None
    """Folder with sounds (and pictures); None: the embedded demonstration."""
    gate: bool = True
    """Whether a missed gate leaves no package; else it is written, and its quality record says that it failed."""
    search: bool = False
    """Whether to look for the layers that the recipe may take, and leave the others as they are."""
    budget_bytes: int | None = None
    """With search: size that the package may have; None: the search's own error budget."""
    force: bool = False
    """Whether to replace a package that exists."""
    threads: int | None = None
    """For engines, as everywhere."""
