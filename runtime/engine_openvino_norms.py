# SPDX-License-Identifier: Apache-2.0
"""A way round a fault: with AVX2 alone, OpenVINO's kernel for group normalisation over long rows ends the process.

Seen with OpenVINO 2026.4.1 under `ONEDNN_MAX_CPU_ISA=AVX2`: an audio encoder whose first layer normalises 25 599 values
at a time dies (SIGSEGV) in its first run, with 3 199 it doesn't. Spelt out in sums and products the same is
computed by other kernels, to 7e-7 of the largest value. The kernel that dies is one for AVX-512, so a real processor
without it may not have the fault; nobody could look.
"""

from typing import Any

from .engine_openvino_library import cap_leaves, import_openvino
from .machine import processor_facts

AVX512_CAPS = ("ALL", "DEFAULT", "AVX512", "AVX10")
"""Beginnings of the values of ONEDNN_MAX_CPU_ISA that leave AVX-512 kernels in."""


def is_needed(target: str) -> bool:
    """Tell whether a device has the faulty kernel."""
    abilities = processor_facts().abilities
    has_avx512 = abilities.get("avx512f", False) and cap_leaves(AVX512_CAPS)
    return target == "CPU" and abilities.get("avx2", False) and not has_avx512


def spell_out(model: Any) -> int:
    """Replace every group normalisation of an OpenVINO model by sums and products; return how many there were."""
    found = [node for node in model.get_ops() if node.get_type_name() == "GroupNormalization"]
    for node in found:
        node.output(0).replace(_spelt_out(node).output(0))
    return len(found)


def _spelt_out(node: Any) -> Any:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + shift, of [N, C, …] in groups of channels."""
    op = import_openvino().opset13
    values, scale, shift = (node.input_value(place) for place in range(3))
    attributes = node.get_attributes()
    groups, epsilon = int(attributes["num_groups"]), float(attributes["epsilon"])
    by_group = op.reshape(values, [0, groups, -1], True)
    from_mean = op.subtract(by_group, op.reduce_mean(by_group, [2], True))
    # The mean of what is left is 0 but for rounding. Subtracting its square keeps OpenVINO from seeing through this.
    rounding = op.reduce_mean(from_mean, [2], True)
    variance = op.subtract(
        op.reduce_mean(op.multiply(from_mean, from_mean), [2], True), op.multiply(rounding, rounding)
    )
    normalised = op.divide(from_mean, op.sqrt(op.add(variance, _like(values, epsilon))))
    back = op.reshape(normalised, op.shape_of(values), False)
    by_channel = [1, -1] + [1] * (values.get_partial_shape().rank.get_length() - 2)
    return op.add(op.multiply(back, op.reshape(scale, by_channel, False)), op.reshape(shift, by_channel, False))


def _like(values: Any, number: float) -> Any:
    """Return a constant of the element type of other values."""
    openvino = import_openvino()
    return openvino.opset13.constant(number, dtype=values.get_element_type())
