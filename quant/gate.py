# SPDX-License-Identifier: Apache-2.0
"""The gate: the quality ladder on every engine that is installed, and a rehearsal for engines of 16-bit floats.

Before a quantized package gets its name. The rehearsal's gates stand in every engine's record: what they say is of the
package.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from ..runtime.errors import VerificationError
from ..runtime.ladder_gates import AT_MOST, Gate, GateResult, check
from ..runtime.model_package import ModelPackage
from ..runtime.quality import PASSED, Quality
from .rehearsal import LARGEST, Feeds, rehearse
from .request import Progress

logger = logging.getLogger(__name__)

DEVICES = {"onnxruntime": "onnxruntime:CPU", "openvino": "openvino:CPU"}
"""Where each engine library is asked; these are the engines that a recipe can name."""
NEEDED = ("audio_encoder", "vae_encoder", "vae_decoder", "dit", "finish")
"""Subnetworks without which nothing can be rendered, and so nothing be judged."""
LARGEST_VALUE = Gate("largest_value", LARGEST, AT_MOST, "a quarter of what float16 holds: other speakers are louder")
"""Of the rehearsal, for every graph that would compute in 16 bits."""


def installed_devices() -> list[str]:
    """Return where a ladder can be climbed here."""
    return [device for module, device in DEVICES.items() if find_spec(module) is not None]


def why_unjudgeable(source: ModelPackage) -> str:
    """Return why nothing could judge what is made from a package, or ""."""
    if not installed_devices():
        return "no engine is installed (pip install 'edgereels[cpu]' or 'edgereels[openvino]')"
    missing = [name for name in NEEDED if not source.has(name)]
    return f"{source.name} has no {', '.join(missing)} and can not render" if missing else ""


def check_judgeable(source: ModelPackage) -> None:
    """Refuse before any work what could not be judged after it.

    Raises:
        VerificationError: no engine is installed, or a subnetwork is missing.
    """
    if why := why_unjudgeable(source):
        raise VerificationError(f"nothing would judge the result: {why}; --no-gate writes it unjudged")


def judge(
    source: ModelPackage, candidate: ModelPackage, *, threads: int | None, progress: Progress
) -> tuple[Quality, ...]:
    """Climb the ladder on every engine that is installed, and rehearse the package for 16-bit floats.

    Args:
        source: the package that the candidate was made from.
        candidate: what is judged; it need not have its name yet.
        threads: as for a session.
        progress: called with a line before each piece of work.

    Raises:
        VerificationError: a fault made on purpose passed: the ladder proves nothing here.
        EngineError: a graph could not be run.
    """
    from ..runtime.ladder import climb, prepare

    prepared = prepare(source, threads=threads, progress=progress)
    ladders: list[Quality] = []
    for device in installed_devices():
        ladders.append(
            climb(
                candidate,
                source,
                device=device,
                threads=threads,
                prepared=prepared,
                progress=lambda line, device=device: progress(f"{device}: {line}"),
            )
        )
    rehearsal = _rehearsed(candidate, prepared.recording.inputs(), progress=progress)
    theirs: dict[str, float] = {}
    if any(found["largest"] > LARGEST for found in rehearsal):  # whose fault is it?
        found_before = _rehearsed(source, prepared.recording.inputs(), progress=progress)
        theirs = {found["graph"]: found["largest"] for found in found_before}
    gates = tuple(_rehearsal_gate(found, before=theirs.get(found["graph"])) for found in rehearsal)
    return tuple(replace(ladder, rehearsal=rehearsal, gates=(*ladder.gates, *gates)) for ladder in ladders)


def _rehearsed(
    candidate: ModelPackage, inputs: Iterable[tuple[str, Feeds]], *, progress: Progress
) -> tuple[Mapping[str, Any], ...]:
    """Rehearse a package for 16-bit floats; nothing where ONNX Runtime, which alone leaves every cut in, is missing."""
    if find_spec("onnxruntime") is None:
        logger.warning("no rehearsal in 16-bit floats: it needs ONNX Runtime, pip install 'edgereels[cpu]'")
        return ()
    progress("a rehearsal in 16-bit floats")
    return tuple(rehearse(candidate, inputs))


def _rehearsal_gate(found: Mapping[str, Any], *, before: float | None) -> GateResult:
    where = f"{found['graph']} at {found['where']}"
    if before is not None and before > LARGEST:
        where += f"; no recipe mends that, unquantized it comes to {before:.0f}"
    return check(LARGEST_VALUE, found["largest"], rung="rehearsal", where=where)


def misses(ladders: Sequence[Quality]) -> list[str]:
    """Return a line for every gate that was missed: on which engine, where, and by how much."""
    return [f"{ladder.engine_name}: {line}" for ladder in ladders for line in ladder.misses]


def passed(ladders: Sequence[Quality]) -> bool:
    """Tell whether every ladder was climbed to the top."""
    return bool(ladders) and all(ladder.verdict == PASSED for ladder in ladders)
