# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on CPUs and on CUDA."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .cuda_driver import find_cards
from .engine import Device, Shapes, Value, endable, one_graph_at_a_time
from .engine_wheels import installed_wheels, wheel_findings
from .errors import EngineError, MissingExtraError
from .onnxruntime_device import DeviceRuns

logger = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

PRECISIONS = {"tensor(float)": "f32", "tensor(float16)": "f16", "tensor(bfloat16)": "bf16"}
"""ONNX Runtime computes in the types that a graph is written in."""

SHAPE_OPERATORS = frozenset(
    (
        *("Shape", "Size", "Constant", "ConstantOfShape", "Identity", "Cast", "Range", "Expand", "Reshape"),
        *("Gather", "GatherND", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Transpose", "ReduceProd"),
        *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Min", "Max", "ReduceSum", "Where"),
        *("Equal", "Less", "Greater", "And", "Or", "Not"),
    )
)
"""What ONNX Runtime may leave on the CPU beside a card: arithmetic on shapes. A matrix product there is a fallback."""

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
    _provider(import_onnxruntime("cuda" if device.kind == "cuda" else "cpu"), device)


def cuda_is_offered() -> bool:
    """Tell whether the installed ONNX Runtime was built for CUDA, and there is a card."""
    return CUDA in import_onnxruntime().get_available_providers() and _card_count() > 0


def _card_count() -> int:
    return len(find_cards().cards)


class OnnxRuntimeEngine:
    """One graph in one `InferenceSession`."""

    def __init__(self, graph: Path, *, device: Device, threads: int, compute: str) -> None:
        """Open a graph.

        Raises:
            EngineError: the device or the precision is not to be had, or the graph is refused.
            MissingExtraError: ONNX Runtime is not installed.
        """
        onnxruntime = import_onnxruntime("cuda" if device.kind == "cuda" else "cpu")
        self._name = graph.stem
        self._new_run_options: Callable[[], Any] = onnxruntime.RunOptions
        self._provider = _provider(onnxruntime, device)
        options = _options(onnxruntime, graph=graph.stem, threads=threads)
        self._session: Any
        self._session, replays = _opened(onnxruntime, graph, provider=self._provider, device=device, options=options)
        self._inputs = tuple(value.name for value in self._session.get_inputs())
        self._outputs = tuple(value.name for value in self._session.get_outputs())
        self._expected: set[tuple[tuple[int, ...], ...]] = set()
        self._precision = _precision(self._session)
        self._node_counts = self._counted_nodes()
        if compute not in ("auto", self._precision):
            raise EngineError(
                f"{compute} arithmetic was asked for; ONNX Runtime computes {graph.name} in {self._precision}, the "
                f"type that it is written in: use --compute {self._precision} or auto"
            )
        self._device_runs: DeviceRuns | None = None
        if self._provider == CUDA:
            self._device_runs = DeviceRuns(
                onnxruntime, self._session, device=("cuda", int(device.name)), replay=replays
            )

    @property
    def library(self) -> str:
        """Always "onnxruntime"."""
        return "onnxruntime"

    @property
    def provider(self) -> str:
        """Execution provider that runs the graph."""
        return self._provider

    @property
    def precision(self) -> str:
        """The type that the graph's own inputs have: fp16 weights behind a Cast are computed with in f32."""
        return self._precision

    @property
    def node_counts(self) -> Mapping[str, int]:
        """Provider to how many of the graph's operators it was given."""
        return self._node_counts

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return self._inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return self._outputs

    def freeze(self, shapes: Sequence[Shapes]) -> None:
        """Expect these shapes: their runs are replayed on a card. On a CPU shapes cost ONNX Runtime little."""
        self._expected = {tuple(tuple(each[name]) for name in self._inputs) for each in shapes}

    def hold(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Put what several runs are given on the device once; the values are good until the next `hold`."""
        if self._device_runs is None:
            return dict(feeds)
        with one_graph_at_a_time:  # allocating spoils what another thread records on the card
            return self._device_runs.hold({name: value for name, value in feeds.items() if name in self._inputs})

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        """Run the graph once. On a card, what is in `keep` stays there, and is good until the run after the next.

        Raises:
            EngineError: the engine is closed, ONNX Runtime refuses the feeds, or memory ran out; the engine can be
                used again.
        """
        if self._session is None:
            raise EngineError("the engine is closed; open the session again")
        try:
            wanted = {name: feeds[name] for name in self._inputs}
        except KeyError as error:
            raise EngineError(f"the graph's input {error} was not given; got {', '.join(feeds)}") from error
        options = self._new_run_options()
        try:
            with one_graph_at_a_time, endable(lambda: setattr(options, "terminate", True)):
                if self._device_runs is not None:
                    is_expected = tuple(_shape(value) for value in wanted.values()) in self._expected
                    return self._device_runs.run(wanted, options=options, keep=keep, is_expected=is_expected)
                values = self._session.run(list(self._outputs), wanted, options)
        except Exception as error:  # ONNX Runtime's exceptions have no root of their own
            raise _failure(self._name, error) from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._device_runs = None  # holds values of the session
        self._session = None

    def _counted_nodes(self) -> dict[str, int]:
        """Count operators per provider; refuse a card that was given less than all of the network."""
        assigned = [
            (part.ep_name, node.op_type)
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
        if self._provider == CUDA:
            strays = Counter(operator for provider, operator in assigned if _is_stray(provider, operator))
            if strays:
                listed = ", ".join(f"{count} {operator}" for operator, count in strays.most_common(5))
                raise EngineError(
                    f"{CUDA} was asked for {self._name}; ONNX Runtime leaves {listed} on the CPU: install a newer "
                    "onnxruntime-gpu, use --device cpu, or --allow-fallback"
                )
        return dict(Counter(provider for provider, _ in assigned))


def _is_stray(provider: str, operator: str) -> bool:
    return provider != CUDA and operator not in SHAPE_OPERATORS


def _shape(value: Value) -> tuple[int, ...]:
    return value.shape


def _precision(session: Any) -> str:
    """Return what a graph computes in: the lowest float type among its inputs."""
    types = {PRECISIONS.get(value.type) for value in session.get_inputs()}
    return next((precision for precision in ("bf16", "f16") if precision in types), "f32")


def _provider(onnxruntime: ModuleType, device: Device) -> str:
    """Return the provider for a device, or raise where this build lacks it."""
    if device.kind != "cuda":
        return CPU
    if CUDA not in onnxruntime.get_available_providers():
        raise EngineError(
            f"device {device} was asked for; ONNX Runtime offers {', '.join(onnxruntime.get_available_providers())}: "
            "pip uninstall onnxruntime && pip install 'edgereels[cuda]', or use --device cpu"
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


def _options(onnxruntime: ModuleType, *, graph: str, threads: int) -> Any:
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


def _opened(onnxruntime: ModuleType, graph: Path, *, provider: str, device: Device, options: Any) -> tuple[Any, bool]:
    """Return a session, and whether it can be replayed as CUDA graphs."""

    def open_session(*, replay: bool) -> Any:
        providers = [(provider, _provider_options(provider, device, replay=replay))]
        return onnxruntime.InferenceSession(str(graph), sess_options=options, providers=providers)

    replays = provider == CUDA
    try:
        try:
            session = open_session(replay=replays)
        except Exception as error:  # ONNX Runtime's exceptions have no root of their own
            if not replays or "graph capture" not in str(error):
                raise
            logger.warning("%s runs without CUDA graphs: %s", graph.stem, _first_line(error))
            replays = False
            session = open_session(replay=False)
    except Exception as error:
        raise EngineError(f"ONNX Runtime refuses {graph.name}: {_first_line(error)}") from error
    got = session.get_providers()[0]
    if got != provider:
        raise EngineError(
            f"{provider} was asked for {graph.name}, ONNX Runtime gave {got}: "
            "use --device cpu, or install edgereels[cuda]"
        )
    return session, replays


def _failure(graph: str, error: Exception) -> EngineError:
    said = _first_line(error)
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return EngineError(
            f"memory ran out while ONNX Runtime ran {graph}: ask for a smaller size or window, or free memory; "
            f"the session can be used again ({said})"
        )
    return EngineError(f"ONNX Runtime failed while running {graph}: {said}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
