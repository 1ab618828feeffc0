# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on CPUs and on CUDA."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .engine import Device, Shapes, Value, endable, one_graph_at_a_time
from .engine_onnxruntime_device import DeviceRuns
from .engine_onnxruntime_library import (
    CUDA,
    cuda_is_offered,
    failure_of,
    import_onnxruntime,
    open_session,
    provider_of,
    require_device,
    session_options,
)
from .errors import EngineError

__all__ = ["OnnxRuntimeEngine", "cuda_is_offered", "require_device"]

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


INTEGER_PRODUCTS = frozenset(
    ("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DynamicQuantizeMatMul", "QGemm", "QAttention")
)
FLOAT_PRODUCTS = frozenset(
    ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "MatMulNBits", "MultiHeadAttention")
)
"""Operators that decide about speed and precision; `FLOAT_PRODUCTS` with packed weights compute in float, too."""


class OnnxRuntimeEngine:
    """One graph in one `InferenceSession`."""

    library = "onnxruntime"
    """Always that."""

    def __init__(self, graph: Path, *, device: Device, threads: int, compute: str) -> None:
        """Open a graph.

        Raises:
            EngineError: the device or the precision is not to be had, or the graph is refused.
            MissingExtraError: ONNX Runtime is not installed.
        """
        onnxruntime = import_onnxruntime("cuda" if device.kind == "cuda" else "cpu")
        self._name = graph.stem
        self._new_run_options: Callable[[], Any] = onnxruntime.RunOptions
        self.provider = provider_of(onnxruntime, device)
        """Execution provider that runs the graph."""
        options = session_options(onnxruntime, graph=graph.stem, threads=threads)
        self._session: Any
        self._session, replays = open_session(
            onnxruntime, graph, provider=self.provider, device=device, options=options
        )
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        """Names of the graph's inputs."""
        self.output_names = tuple(value.name for value in self._session.get_outputs())
        """Names of the graph's outputs."""
        self._expected: set[tuple[tuple[int, ...], ...]] = set()
        self.precision = _precision(self._session)
        """The type that the graph's own inputs have: fp16 weights behind a Cast are computed with in f32."""
        self._assigned = [
            (part.ep_name, node.op_type)
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
        self._refuse_strays()
        if compute not in ("auto", self.precision):
            raise EngineError(
                f"{compute} arithmetic was asked for; ONNX Runtime computes {graph.name} in {self.precision}, the "
                f"type that it is written in: use --compute {self.precision} or auto"
            )
        self._device_runs: DeviceRuns | None = None
        if self.provider == CUDA:
            self._device_runs = DeviceRuns(
                onnxruntime, self._session, device=("cuda", int(device.name)), replay=replays
            )

    @property
    def node_counts(self) -> Mapping[str, int]:
        """Provider to how many of the graph's operators it was given."""
        return dict(Counter(provider for provider, _operator in self._assigned))

    @property
    def kernel_precisions(self) -> Mapping[str, int]:
        """Matrix products, convolutions and attentions by what they compute in: {"int8": 49, "f32": 12}."""
        operators = Counter(operator for _provider, operator in self._assigned)
        counted = {
            "int8": sum(operators[operator] for operator in INTEGER_PRODUCTS),
            self.precision: sum(operators[operator] for operator in FLOAT_PRODUCTS),
        }
        return {precision: count for precision, count in counted.items() if count}

    def freeze(self, shapes: Sequence[Shapes]) -> None:
        """Expect these shapes: their runs are replayed on a card. On a CPU shapes cost ONNX Runtime little."""
        self._expected = {tuple(tuple(each[name]) for name in self.input_names) for each in shapes}

    def hold(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Put what several runs are given on the device once; the values are good until the next `hold`."""
        if self._device_runs is None:
            return dict(feeds)
        with one_graph_at_a_time:  # allocating spoils what another thread records on the card
            return self._device_runs.hold({name: value for name, value in feeds.items() if name in self.input_names})

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        """Run the graph once. On a card, what is in `keep` stays there, and is good until the run after the next.

        Raises:
            EngineError: the engine is closed, ONNX Runtime refuses the feeds, or memory ran out; the engine can be
                used again.
        """
        if self._session is None:
            raise EngineError("the engine is closed; open the session again")
        try:
            wanted = {name: feeds[name] for name in self.input_names}
        except KeyError as error:
            raise EngineError(f"the graph's input {error} was not given; got {', '.join(feeds)}") from error
        options = self._new_run_options()
        try:
            with one_graph_at_a_time, endable(lambda: setattr(options, "terminate", True)):
                if self._device_runs is not None:
                    is_expected = tuple(_shape(value) for value in wanted.values()) in self._expected
                    return self._device_runs.run(wanted, options=options, keep=keep, is_expected=is_expected)
                values = self._session.run(list(self.output_names), wanted, options)
        except Exception as error:  # ONNX Runtime's exceptions have no root of their own
            raise failure_of(self._name, error) from error
        return dict(zip(self.output_names, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._device_runs = None  # holds values of the session
        self._session = None

    def _refuse_strays(self) -> None:
        """Refuse a card that was given less than all of the network."""
        strays = Counter(operator for provider, operator in self._assigned if _is_stray(provider, operator))
        if self.provider == CUDA and strays:
            listed = ", ".join(f"{count} {operator}" for operator, count in strays.most_common(5))
            raise EngineError(
                f"{CUDA} was asked for {self._name}; ONNX Runtime leaves {listed} on the CPU: install a newer "
                "onnxruntime-gpu, use --device cpu, or --allow-fallback"
            )


def _is_stray(provider: str, operator: str) -> bool:
    return provider != CUDA and operator not in SHAPE_OPERATORS


def _shape(value: Value) -> tuple[int, ...]:
    return value.shape


def _precision(session: Any) -> str:
    """Return what a graph computes in: the lowest float type among its inputs."""
    types = {PRECISIONS.get(value.type) for value in session.get_inputs()}
    return next((precision for precision in ("bf16", "f16") if precision in types), "f32")
