# SPDX-License-Identifier: Apache-2.0
"""Export one graph and compare ONNX Runtime with the module that it came from."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from edgereels.export.graph_spec import GraphSpec


def export_and_compare(spec: GraphSpec, folder: Path, *, more_inputs: Sequence[tuple[Tensor, ...]] = ()) -> float:
    """Write ``<folder>/<name>.onnx``; return the largest absolute difference over all outputs and example inputs."""
    return max(differences_of(spec, folder, more_inputs=more_inputs).values())


def differences_of(
    spec: GraphSpec, folder: Path, *, more_inputs: Sequence[tuple[Tensor, ...]] = ()
) -> dict[str, float]:
    """Write ``<folder>/<name>.onnx``; return output to its largest absolute difference over all example inputs."""
    path = folder / f"{spec.name}.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # Without gradients, or torch traces another attention kernel than it decomposes; the exporter's own deprecations
    # are none of ours.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            spec.module,
            spec.examples[0],
            input_names=list(spec.input_names),
            output_names=list(spec.output_names),
            dynamic_shapes=spec.nested_dynamic_shapes(),
            opset_version=23,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(spec.input_names)
    assert [value.name for value in session.get_outputs()] == list(spec.output_names)
    found = [_differences(spec, session, example) for example in (*spec.examples, *more_inputs)]
    return {name: max(each[name] for each in found) for name in spec.output_names}


def _differences(
    spec: GraphSpec, session: onnxruntime.InferenceSession, example: tuple[Tensor, ...]
) -> dict[str, float]:
    ours = session.run(None, {name: value.numpy() for name, value in zip(spec.input_names, example, strict=True)})
    with torch.no_grad():
        theirs = [value.numpy() for value in spec.module(*example)]
    assert [value.shape for value in ours] == [value.shape for value in theirs]
    assert [value.dtype for value in ours] == [value.dtype for value in theirs]
    return {
        name: float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
        for name, a, b in zip(spec.output_names, ours, theirs, strict=True)
    }
