# SPDX-License-Identifier: Apache-2.0
"""Is a graph its module? Both run on the same inputs, at two shapes; the result stands in the package.

The engine is the one that will run the package, at float32. The outputs of the module for the smaller shape become the
package's golden vectors, and what PyTorch's own bfloat16 makes of the module on them is recorded too: what an engine's
low precision is measured against.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..runtime.errors import VerificationError
from ..runtime.golden import F32, OutputResult, Tolerance, compare_output, golden_bytes
from ..runtime.metrics import rel_l2
from .graph_spec import GraphSpec

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.generic]
Module = Callable[[tuple[Tensor, ...]], Sequence[Tensor]]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

FP16_STORAGE = Tolerance(
    rel_l2=5e-3,
    max_abs=5e-2,
    reason="weights rounded to float16: 2^-11 each, and a few layers that amplify it",
    levels=2,
)


@dataclass(frozen=True)
class Parity:
    """How near a graph came to its module, over all outputs and shapes."""

    max_abs: float
    """Largest absolute difference of a float output."""
    max_rel: float
    """The same, relative to the largest absolute value of that output's reference."""
    shapes: int
    """At how many input shapes they were compared."""
    golden: bytes
    """Golden file: inputs and the module's outputs at the first shape."""
    bf16_rel_l2: float | None
    """Relative L2 of the module's first output at the first shape under bfloat16 autocast; None where it can't run."""

    def record(self) -> dict[str, float | int | None]:
        """Return what the manifest says."""
        measured = {"max_abs": self.max_abs, "max_rel": self.max_rel, "shapes": self.shapes}
        return {**measured, "bf16_rel_l2": self.bf16_rel_l2}


def tolerance_for(precision: str) -> Tolerance:
    """Return how far a graph may be from its module, by how its weights are stored."""
    return F32 if precision == "fp32" else FP16_STORAGE


def compare(spec: GraphSpec, *, run: Run, module: Module, precision: str) -> Parity:
    """Run module and graph on both example inputs.

    Args:
        spec: names and inputs.
        run: runs the graph; inputs and outputs by name.
        module: what the graph must agree with; takes one set of inputs.
        precision: how the graph's weights are stored, fp32 or fp16.

    Raises:
        VerificationError: they differ by more than `tolerance_for` allows, or a value is not finite.
        EngineError: the engine refuses the graph.
    """
    tolerance = tolerance_for(precision)
    results: list[OutputResult] = []
    references: list[dict[str, Array]] = []
    for example in spec.examples:
        references.append(_reference(spec, module, example))
        ours = run(_inputs(spec, example))
        results += [_checked(spec, ours.get(name), theirs, name, tolerance) for name, theirs in references[-1].items()]
    floats = [result for result in results if references[0][result.output].dtype.kind == "f"]
    return Parity(
        max_abs=max((result.max_abs for result in floats), default=0.0),
        max_rel=max((result.rel_max for result in floats), default=0.0),
        shapes=len(spec.examples),
        golden=golden_bytes(_inputs(spec, spec.examples[0]), references[0], tolerance=_as_measured(tolerance, floats)),
        bf16_rel_l2=_bf16_cost(spec, module, spec.examples[0], reference=references[0]),
    )


def _bf16_cost(
    spec: GraphSpec, module: Module, example: tuple[Tensor, ...], *, reference: Mapping[str, Array]
) -> float | None:
    """Return how far bfloat16 takes the module's first output from float32, relative L2.

    It is autocast's bfloat16, in which the published code runs: products in bfloat16, norms and softmax in float32.
    None, with the reason in the log, where an operator has no kernel for it or none takes part.
    """
    name = spec.output_names[0]
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")  # slower, not wrong
            ours = module(example)[0].float().numpy()
    except NotImplementedError as error:  # an operator without a kernel; whatever else goes wrong ends the export
        logger.warning("graph %s: bfloat16 was not measured: %s", spec.name, str(error).splitlines()[0])
        return None
    cost = rel_l2(ours, reference[name])
    if cost == 0:
        logger.info("graph %s: bfloat16 was not measured: nothing in it computes in bfloat16", spec.name)
    return cost or None


def _as_measured(allowed: Tolerance, results: Sequence[OutputResult]) -> Tolerance:
    """Return the tolerance for other devices: four times what was measured here, within float32's and the one allowed.

    Where rounding cost nothing (a float16 checkpoint stored as float16), a device is then held to float32.
    """
    rel_l2 = max((result.rel_l2 for result in results), default=0.0)
    rel_max = max((result.rel_max for result in results), default=0.0)
    return replace(
        allowed,
        rel_l2=min(allowed.rel_l2, max(F32.rel_l2, 4 * rel_l2)),
        max_abs=min(allowed.max_abs, max(F32.max_abs, 4 * rel_max)),
    )


def _checked(spec: GraphSpec, ours: Array | None, theirs: Array, name: str, tolerance: Tolerance) -> OutputResult:
    result = compare_output(name, ours=ours, theirs=theirs, tolerance=tolerance)
    if not result.passed:
        raise VerificationError(
            f"graph {spec.name} is not its PyTorch module: output {name} {list(theirs.shape)}: {result.fault}"
        )
    return result


def _reference(spec: GraphSpec, module: Module, example: tuple[Tensor, ...]) -> dict[str, Array]:
    with torch.no_grad():
        outputs = module(example)
    named = dict(zip(spec.output_names, (output.numpy() for output in outputs), strict=True))
    broken = [name for name, array in named.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if broken:
        raise VerificationError(f"graph {spec.name}: the PyTorch module gives NaN or infinity in {', '.join(broken)}")
    return named


def _inputs(spec: GraphSpec, example: tuple[Tensor, ...]) -> Mapping[str, Array]:
    return {name: tensor.numpy() for name, tensor in zip(spec.input_names, example, strict=True)}
