# SPDX-License-Identifier: Apache-2.0
"""OpenVINO as all of ours use it: imported without its telemetry, asked for devices, precisions and compiled graphs."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from .engine import Device, Shapes
from .errors import EngineError, MissingExtraError
from .machine import processor_facts

LOW_PRECISION_GRAPHS = ("dit", "vae_encoder", "vae_decoder")
"""Beginnings of the names of graphs that `compute="auto"` lets compute in less than f32."""
F32_GRAPHS = ("dit_time",)
"""Exceptions from these."""

PRECISIONS = {"f32": "f32", "bf16": "bf16", "bfloat16": "bf16", "f16": "f16", "float16": "f16"}
BF16_CAPS = ("ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10")
"""Beginnings of the values of ONEDNN_MAX_CPU_ISA that leave bf16 kernels in."""
INT8_CAPS = (*BF16_CAPS, "AVX512_CORE_VNNI")
"""The same of kernels that multiply int8 without saturating."""

DYNAMIC_GROUP_SIZE = 32  # OpenVINO's own default: one scale for 32 activations

MATRIX_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention", "RNNSeq")
"""Layers whose kernels decide about speed and precision, as OpenVINO's runtime model calls them."""
TOLD_SHAPES = 2  # a decoder has a dozen inputs, and the first ones tell the size
NO_OPERATORS = ("Const", "Input", "Output")


def import_openvino() -> ModuleType:
    """Import OpenVINO.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: what is installed can't be used.
    """
    # Importing it sends an event by default and leaves files in the home folder; without this module its own stub
    # takes over. A host program that has imported telemetry itself keeps it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise _unusable(f"it lacks the module {error.name!r}") from error
        raise MissingExtraError("openvino", extra="openvino", purpose="running a package on OpenVINO") from error
    except Exception as error:  # a half-installed wheel raises anything
        raise _unusable(reason_of(error)) from error
    if not hasattr(openvino, "Core"):
        raise _unusable("its files are incomplete")
    return openvino


def _unusable(reason: str) -> EngineError:
    return EngineError(
        f"OpenVINO is installed and can not be used ({reason}): pip install --force-reinstall --no-deps openvino"
    )


def library_version() -> str:
    """Return OpenVINO's version without importing it; raise `MissingExtraError` where it is not installed."""
    try:
        return version("openvino")
    except PackageNotFoundError as error:
        raise MissingExtraError("openvino", extra="openvino", purpose="running a package on OpenVINO") from error


@cache
def core() -> Any:
    """Return the process's `openvino.Core`: plugins are loaded once. Nothing is set on it, so that nobody sees us."""
    return import_openvino().Core()


def available_devices() -> tuple[str, ...]:
    """Return the devices that OpenVINO sees: "CPU", "GPU", "GPU.1", "NPU"."""
    return tuple(core().available_devices)


def device_facts() -> tuple[Mapping[str, Any], ...]:
    """Return of each device: name, full_name, capabilities, default_precision and what else it tells."""
    return tuple(_facts(name) for name in available_devices())


def _facts(name: str) -> Mapping[str, Any]:
    facts: dict[str, Any] = {
        "name": name,
        "full_name": str(core().get_property(name, "FULL_DEVICE_NAME")).strip(),
        "capabilities": [str(each) for each in core().get_property(name, "OPTIMIZATION_CAPABILITIES")],
        "default_precision": _precision(core().get_property(name, "INFERENCE_PRECISION_HINT")),
    }
    supported = set(core().get_property(name, "SUPPORTED_PROPERTIES"))
    for fact, key in (("memory_bytes", "GPU_DEVICE_TOTAL_MEM_SIZE"), ("driver", "NPU_DRIVER_VERSION")):
        if key in supported:
            facts[fact] = core().get_property(name, key)
    return facts


def _precision(told: Any) -> str:
    """Return "f32", "bf16" or "f16" for an element type of OpenVINO, other names as they are."""
    name: str = told.to_string()
    return PRECISIONS.get(name, name)


# ── Device and precision ─────────────────────────────────────────────────────────────────────────────────────────────


def target_of(device: Device) -> str:
    """Return OpenVINO's name of a device.

    Raises:
        EngineError: OpenVINO doesn't see it. There is no AUTO here, which would take another one.
    """
    wanted = device.name if device.kind == "openvino" else "CPU"
    seen = available_devices()
    if not any(name == wanted or name.startswith(f"{wanted}.") for name in seen):
        raise EngineError(
            f"device {device} was asked for; OpenVINO sees {', '.join(seen) or 'none'}: install the driver of the "
            f"{wanted}, or use --device cpu"
        )
    return wanted


def has_native_bf16() -> bool:
    """Tell whether OpenVINO's CPU kernels multiply bfloat16 in hardware; emulated it is slower than float32."""
    facts = processor_facts()
    # Under a cap OpenVINO still names bf16 its default, and then has no kernels for it.
    if not cap_leaves(BF16_CAPS):
        return False
    if facts.bf16 is not None:
        return facts.bf16
    return _precision(core().get_property("CPU", "INFERENCE_PRECISION_HINT")) == "bf16"


def has_native_int8() -> bool:
    """Tell whether OpenVINO's CPU kernels multiply int8 in hardware that doesn't saturate."""
    return cap_leaves(INT8_CAPS) and bool(processor_facts().int8)


def cap_leaves(allowed: tuple[str, ...]) -> bool:
    """Tell whether ONEDNN_MAX_CPU_ISA is not set, or begins with one of these."""
    cap = processor_facts().isa_cap
    return not cap or cap.upper().startswith(allowed)


def chosen_precision(graph: str, *, target: str, compute: str) -> str:
    """Return the precision to ask for.

    Args:
        graph: its name: "dit", "vae_decoder_next".
        target: OpenVINO's name of the device.
        compute: what the user said.

    Raises:
        EngineError: the device doesn't compute in what the user said.
    """
    is_cpu = target == "CPU"
    if compute == "bf16" and is_cpu and not has_native_bf16():
        cap = processor_facts().isa_cap
        raise EngineError(
            f"bf16 arithmetic was asked for; OpenVINO has no kernels for it on this CPU"
            f"{f' (ONEDNN_MAX_CPU_ISA={cap})' if cap else ''}: use --compute f32 or auto"
        )
    if compute == "auto":
        is_robust = graph.startswith(LOW_PRECISION_GRAPHS) and not graph.startswith(F32_GRAPHS)
        if not is_robust:
            return "f32"
        compute = ("bf16" if has_native_bf16() else "f32") if is_cpu else "f16"
    got = _obtained_precision(target, compute)
    if got != compute:
        raise EngineError(
            f"{compute} arithmetic was asked for; OpenVINO gives {got} on its {target}: use --compute {got} or auto"
        )
    return compute


@cache
def _obtained_precision(target: str, asked: str) -> str:
    """Return what a compiled graph says to a precision hint: f16 on most CPUs becomes bf16 without a word."""
    openvino = import_openvino()
    value = openvino.opset13.parameter([1], openvino.Type.f32)
    model = openvino.Model([openvino.opset13.relu(value)], [value], "probe")
    return precision_of(core().compile_model(model, target, {"INFERENCE_PRECISION_HINT": asked}))


def precision_of(compiled: Any) -> str:
    """Return the arithmetic precision that a compiled graph says it has."""
    return _precision(compiled.get_property("INFERENCE_PRECISION_HINT"))


# ── Graphs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def settings(*, target: str, precision: str, threads: int, dynamic_activations: bool) -> dict[str, Any]:
    """Return the properties that a graph is compiled and imported with: everything that changes results or threads."""
    shared = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if target != "CPU":
        return shared
    return {
        **shared,
        "INFERENCE_NUM_THREADS": threads,
        # Threads tied to cores would stand in the way of the host program's own.
        "ENABLE_CPU_PINNING": False,
        # By default activations of int8 and int4 products are rounded to 8 bits even in "f32" (45 dB): only on request.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": DYNAMIC_GROUP_SIZE if dynamic_activations else 0,
    }


def compile_graph(
    graph: Path,
    *,
    shapes: Shapes | None,
    target: str,
    properties: Mapping[str, Any],
    change: Callable[[Any], object] | None = None,
) -> Any:
    """Read and compile a graph; with shapes for exactly these, without for any; `change` is given the model before."""
    model = core().read_model(graph)
    if change is not None:
        change(model)
    if shapes is not None:
        # Inputs that no operator uses are gone.
        there = {name for value in model.inputs for name in value.get_names()}
        model.reshape({name: list(shape) for name, shape in shapes.items() if name in there})
    return core().compile_model(model, target, dict(properties))


def operator_precisions(compiled: Any) -> tuple[int, dict[str, int]]:
    """Return how many operators a compiled graph has, and its matrix products by precision: {"int8": 21, "f32": 2}."""
    layers = [
        {key: info[key].astype(str) for key in ("layerType", "primitiveType") if key in info}
        for info in (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    ]
    counted = [layer for layer in layers if layer.get("layerType") not in NO_OPERATORS]
    kernels = Counter(
        _kernel_precision(layer.get("primitiveType", ""))
        for layer in counted
        if layer.get("layerType") in MATRIX_LAYERS
    )
    return len(counted), dict(kernels)


def _kernel_precision(primitive: str) -> str:
    """Return the precision at the end of a kernel's name: "brgconv_avx512_I8" computes in int8."""
    ending = primitive.rpartition("_")[2].lower()
    return "int8" if ending in ("i8", "u8") else PRECISIONS.get(ending, ending or "unknown")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether OpenVINO failed for want of memory, which it says in several ways."""
    said = str(error)
    return isinstance(error, MemoryError) or any(
        words in said for words in ("bad_alloc", "Failed to allocate", "Check 'ptr' failed", "out of memory", "OUT_OF_")
    )


def reason_of(error: BaseException) -> str:
    """Return what OpenVINO means: the last line of a message that begins with its own source files."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (told or [line for line in lines if line] or [type(error).__name__])[-1]


def flat(shapes: Shapes) -> str:
    """Return shapes for people: "latents 1x16x9x16x16, condition 1x20x9x16x16 and 6 more"."""
    told = [f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items()]
    return ", ".join(told[:TOLD_SHAPES]) + (f" and {len(told) - TOLD_SHAPES} more" if len(told) > TOLD_SHAPES else "")


def device_identity(target: str) -> dict[str, Any]:
    """Return what a compiled graph depends on besides the graph: OpenVINO's version and the device with its kernels."""
    facts = processor_facts()
    processor = [facts.name, facts.architecture, sorted(facts.abilities.items()), facts.isa_cap]
    name = "" if target == "CPU" else str(core().get_property(target, "FULL_DEVICE_NAME"))
    return {"openvino": import_openvino().get_version(), "processor": processor, "device": name}
