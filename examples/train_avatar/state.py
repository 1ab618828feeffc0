# SPDX-License-Identifier: Apache-2.0
"""Saved states of training: written aside and renamed, so that a kill never costs more than a minute."""

import time
from pathlib import Path
from typing import Any

import torch

SAVE_EVERY_S = 60


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state for `torch.load`."""
    torch.save(state, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


class SaveClock:
    """Says once a minute that it is time to save."""

    def __init__(self) -> None:
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Return whether a minute has passed since this last returned True."""
        now = time.monotonic()
        if now - self._saved_at < SAVE_EVERY_S:
            return False
        self._saved_at = now
        return True
