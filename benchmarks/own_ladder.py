# SPDX-License-Identifier: Apache-2.0
"""The quality ladder in a process of its own, for an environment that `edgereels verify` does not survive."""

from typing import Any

import numpy as np

from ..runtime import ModelPackage, climb

RUNGS = ("clip",)
"""The other rungs cut the sound to lengths at which a capped OpenVINO ends the process (see `sound.emulable`)."""


class OwnLadder:
    """A package on a device, held against another."""

    def __init__(self, *, package: str, reference: str, audio: str, threads: int, device: str, compute: str) -> None:
        self._packages = ModelPackage.open(package, verify="size"), ModelPackage.open(reference, verify="size")
        self._asked: dict[str, Any] = {"threads": threads, "device": device, "compute": compute}
        self._sound = np.load(audio)

    def climb(self) -> dict[str, Any]:
        """Return the record as `edgereels verify --ladder --json` gives it."""
        return climb(*self._packages, sound=self._sound, rungs=RUNGS, **self._asked).as_json()
