# SPDX-License-Identifier: Apache-2.0
"""Lip-sync against the drawn truth, by the evaluation of `examples/train_avatar`: before and after quantizing."""

import json
import subprocess
import sys
from typing import Any

from .measurement import Run
from .recipe_packages import BEST, NONE, folder_of, root_folder
from .rounds import read_part, write_part

MOST_LOSS = 0.03
"""Of correlation, that the best int8 recipe may cost."""
CLIPS = 8
"""Held-out utterances of six seconds, of each of three synthesizers."""
MEASURED = (
    (NONE, "onnxruntime:CPU", "f32"),
    (BEST, "onnxruntime:CPU", "f32"),
    (BEST, "openvino:CPU", "auto"),
)
"""Recipe, device, compute."""


def lip_sync(run: Run) -> list[dict[str, Any]]:
    """Return the evaluation's figures for each of `MEASURED`."""
    folder = run.work / "lip_sync"
    folder.mkdir(exist_ok=True)
    found: list[dict[str, Any]] = []
    for recipe, device, compute in MEASURED:
        part = folder / f"{recipe}, {device.replace(':', ' ')}, {compute}.json"
        if not part.exists():
            asked = {"recipe": recipe, "device": device, "compute": compute}
            write_part(part, asked | _evaluate(run, recipe, device, compute))
            print(part.name, file=sys.stderr, flush=True)
        found.append(read_part(part))
    return found


def _evaluate(run: Run, recipe: str, device: str, compute: str) -> dict[str, Any]:
    options = ["--package", folder_of(run, recipe), "--device", device, "--compute", compute]
    options += ["--threads", str(run.threads), "--clips", str(CLIPS), "--parts", "speech", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "examples.train_avatar.evaluate", *options],
        cwd=root_folder(),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"error": (done.stderr.strip().splitlines() or [""])[-1]}
