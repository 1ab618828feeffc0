# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime as all of ours use it: imported where one wheel of it works, asked for providers and sessions."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .cuda_driver import find_cards
from .engine import Device
from .engine_wheels import installed_wheels, wheel_findings
from .errors import EngineError, MissingExtraError

logger = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

RUN_ONCE = ("audio_encoder", "text_encoder", "image_encoder", "dit_time")
"""Beginnings of the names of graphs that run once a stream: their memory goes back after each run, or the arena would
hold for ever what one long sound took."""

OUT_OF_MEMORY = ("Failed to allocate", "bad_alloc", "out of memory", "OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")


def import_onnxruntime(extra: str = "cpu") -> ModuleType:
    """Import ONNX Runtime.

    Args:
        extra: names the pip line where it is missing.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: several wheels of it are, or it is broken.
    """
    wheels = installed_wheels("onnxruntime")
    if len(wheels) > 1:
        found = next(iter(wheel_findings({"onnxruntime": wheels}, is_there=lambda _: True, has_card=extra == "cuda")))
        raise EngineError(f"{found.text}: {found.command}")
    try:
        import onnxruntime
    except ImportError as error:
        if not wheels:
            raise MissingExtraError("onnxruntime", extra=extra, purpose="running a package on this machine") from error
        raise _broken(wheels, str(error)) from error
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left of a wheel that another one overwrote
        raise _broken(wheels, "its files are gone")
    return onnxruntime


def _broken(wheels: Mapping[str, str], why: str) -> EngineError:
    wheel = next(iter(wheels), "onnxruntime")
    return EngineError(
        f"{wheel} {wheels.get(wheel, '')} is installed and does not load ({' '.join(why.split())}): "
        f"pip install --force-reinstall {wheel}"
    )


def require_device(device: Device) -> None:
    """Raise `EngineError` or `MissingExtraError` where a device can't be had; nothing is opened."""
    provider_of(import_onnxruntime("cuda" if device.kind == "cuda" else "cpu"), device)


def cuda_is_offered() -> bool:
    """Tell whether the installed ONNX Runtime was built for CUDA, and there is a card."""
    return CUDA in import_onnxruntime().get_available_providers() and _card_count() > 0


def _card_count() -> int:
    return len(find_cards().cards)


def provider_of(onnxruntime: ModuleType, device: Device) -> str:
    """Return the provider for a device; raise `EngineError` where this build lacks it."""
    if device.kind != "cuda":
        return CPU
    if CUDA not in onnxruntime.get_available_providers():
        raise EngineError(
            f"device {device} was asked for; ONNX Runtime offers {', '.join(onnxruntime.get_available_providers())}: "
            "pip uninstall onnxruntime && pip install 'edgereels[cuda]', or use --device cpu"
        )
    cards = _card_count()
    if int(device.name) >= cards:
        raise EngineError(
            f"device {device} was asked for; NVIDIA's driver finds {cards} cards, the first of them cuda:0: "
            "install the driver, or use --device cpu"
        )
    onnxruntime.preload_dlls()
    return CUDA


def _provider_options(provider: str, device: Device, *, replay: bool) -> dict[str, str]:
    if provider == CPU:
        return {}
    return {
        "device_id": device.name,
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles, and a card is full sooner
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm at every new shape
        "use_tf32": "0",  # f32 is f32
        "enable_cuda_graph": "1" if replay else "0",
    }


def session_options(onnxruntime: ModuleType, *, graph: str, threads: int) -> Any:
    """Return the options that a graph is opened with, by its name: everything that changes results, threads, memory."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors come back as exceptions; warnings would be printed over progress
    # Graphs run one after the other, so `threads` bounds them all together. Idle threads must sleep for that: eight
    # sessions whose threads spin while another works ran 3.3 times slower, with sleeping ones 1.1 times. ONNX
    # Runtime's one pool for the whole process is no choice for a library: once it exists, every session that the
    # host program opens in its own way fails ("use_per_session_threads must be false").
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Planning a run's memory as one block is no faster here and keeps 145 MB more (the embedded package: 312 MB
    # resident without, 457 with). Without any arena the VAE encoder takes 1.8 times as long: fresh pages at each run.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = not graph.startswith(RUN_ONCE)
    # int8 and int4 weights behind DequantizeLinear stay packed in memory. By default ONNX Runtime would also round
    # the activations to int8, without a word: 38 dB instead of 122 (six layers of 1024 x 4096). A recipe that wants
    # rounded activations says so with operators.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def open_session(
    onnxruntime: ModuleType, graph: Path, *, provider: str, device: Device, options: Any
) -> tuple[Any, bool]:
    """Return a session, and whether it can be replayed as CUDA graphs."""

    def attempt(*, replay: bool) -> Any:
        providers = [(provider, _provider_options(provider, device, replay=replay))]
        return onnxruntime.InferenceSession(str(graph), sess_options=options, providers=providers)

    replays = provider == CUDA
    try:
        try:
            session = attempt(replay=replays)
        except Exception as error:  # ONNX Runtime's exceptions have no root of their own
            if not replays or "graph capture" not in str(error):
                raise
            logger.warning("%s runs without CUDA graphs: %s", graph.stem, _first_line(error))
            replays = False
            session = attempt(replay=False)
    except Exception as error:
        raise EngineError(f"ONNX Runtime refuses {graph.name}: {_first_line(error)}") from error
    got = session.get_providers()[0]
    if got != provider:
        raise EngineError(
            f"{provider} was asked for {graph.name}, ONNX Runtime gave {got}: "
            "use --device cpu, or install edgereels[cuda]"
        )
    return session, replays


def failure_of(graph: str, error: Exception) -> EngineError:
    """Return what to raise for whatever ONNX Runtime raised while it ran a graph."""
    said = _first_line(error)
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return EngineError(
            f"memory ran out while ONNX Runtime ran {graph}: ask for a smaller size or window, or free memory; "
            f"the session can be used again ({said})"
        )
    return EngineError(f"ONNX Runtime failed while running {graph}: {said}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
