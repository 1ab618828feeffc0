# SPDX-License-Identifier: Apache-2.0
"""The training example's modules, which lie outside the package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


def part(name: str) -> ModuleType:
    """Return the module `name` of `examples/train_avatar`."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(f"train_avatar.{name}")
