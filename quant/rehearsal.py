# SPDX-License-Identifier: Apache-2.0
"""A rehearsal for engines that compute in 16-bit floats and that nobody could touch here: Intel's graphics.

Every float activation of a graph is rounded to float16 and back, and the largest value at each of these cuts is
measured before it is rounded. float16 ends at 65 504; a quarter of that leaves room for other speakers and faces, and
what is larger misses the package's gate (see `gate`). The rehearsal runs in ONNX Runtime on the CPU with all of its
optimisations off, so that no cut is fused away. Sums inside an operator are not rounded. Of those only the squares
inside an L2 norm are known: `inside` says how large they get, and beyond 65 504 a device has to add them in float32.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from ..runtime.engine import Array
from ..runtime.errors import EngineError
from ..runtime.metrics import sqnr_db
from ..runtime.model_package import ModelPackage

LARGEST = 16_000.0
"""Limit at every cut: 65 504 over four."""

SUBNETWORKS = ("dit", "vae_encoder", "vae_decoder")
"""What computes in 16 bits on such a device; all others are kept in float32 everywhere."""
KEPT_F32 = ("dit_time",)
PARTS = ("dit_prologue", "dit_block_", "dit_epilogue")
"""The transformer in parts: the same values once more, where it is there as a whole."""

MOST_INPUTS = 4
"""Runs of each graph, spread over the recording: without optimisations and with hundreds of cuts they are slow."""

LIBRARY = "openvino"
"""Whose files are rehearsed."""

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Rehearsal:
    """What 16-bit floats do to one graph."""

    graph: str
    """Name of the graph."""
    inputs: int
    """Runs."""
    cuts: int
    """Activations that were rounded."""
    largest: float
    """Largest absolute value at any cut; 1e38 where one was no finite number."""
    where: str
    """Operator and name of that cut."""
    limit: float
    """What `largest` may be."""
    inside: float
    """Largest sum of squares inside an L2 norm; 0 where there is none."""
    sqnr_db: float
    """Signal to noise of the first output against the same graph without rounding; the worst run."""

    @property
    def passed(self) -> bool:
        """Whether every value has room."""
        return self.largest <= self.limit


def rehearse(package: ModelPackage, recording: Iterable[tuple[str, Feeds]]) -> list[dict[str, Any]]:
    """Rehearse every graph of a package that would compute in 16 bits.

    Args:
        package: whose graphs, as OpenVINO reads them.
        recording: pairs of graph and real feeds; graphs that are missing here are not rehearsed.

    Returns:
        A plain value for each graph, as quality.json holds it: the fields of `Rehearsal` and `passed`.

    Raises:
        EngineError: ONNX Runtime refuses or fails.
    """
    feeds: dict[str, list[Feeds]] = {}
    for graph, given in recording:
        if graph in package.manifest.graphs and _is_rehearsed(package, graph):
            feeds.setdefault(graph, []).append(given)
    found: list[Rehearsal] = []
    for graph, given in feeds.items():
        try:
            found.append(rehearse_graph(package, graph, _spread(given)))
        except Exception as error:  # ONNX Runtime's exceptions have no root of their own
            raise EngineError(f"the rehearsal of {graph} in 16-bit floats failed: {error}") from error
    return [asdict(result) | {"passed": result.passed} for result in found]


def _is_rehearsed(package: ModelPackage, graph: str) -> bool:
    is_part = graph.startswith(PARTS) and "dit" in package.manifest.graphs
    return package.graph(graph).subnetwork in SUBNETWORKS and graph not in KEPT_F32 and not is_part


def _spread(given: list[Feeds]) -> list[Feeds]:
    places = np.linspace(0, len(given) - 1, num=min(MOST_INPUTS, len(given))).round().astype(int)
    return [given[place] for place in dict.fromkeys(places.tolist())]


def rehearse_graph(package: ModelPackage, graph: str, given: Iterable[Feeds]) -> Rehearsal:
    """Run one graph with and without rounding on the same feeds."""
    path = package.graph_path(graph, LIBRARY)
    plain = onnx.load(path, load_external_data=False)
    rounded, cuts = rounded_everywhere(plain)
    main = plain.graph.output[0].name
    largest, noise = dict.fromkeys(cuts, 0.0), []
    runs, exact_runs = _session(rounded, folder=str(path.parent)), _session(plain, folder=str(path.parent))
    for feeds in given:
        ours = _run(runs, [main, *cuts.values()], feeds)
        (theirs,) = _run(exact_runs, [main], feeds)
        noise.append(sqnr_db(ours[0], theirs))
        for name, value in zip(cuts, ours[1:], strict=True):
            largest[name] = max(largest[name], _finite(float(value)))
    worst = max(largest, key=largest.__getitem__, default="")
    operators = {output: node.op_type for node in plain.graph.node for output in node.output}
    return Rehearsal(
        graph=graph,
        inputs=len(noise),
        cuts=len(cuts),
        largest=largest.get(worst, 0.0),
        where=f"{operators.get(worst, 'nothing')} {worst}".strip(),
        limit=LARGEST,
        inside=max((largest[name] ** 2 for name in cuts if operators.get(name) == "ReduceL2"), default=0.0),
        sqnr_db=min(noise),
    )


def _finite(value: float) -> float:
    return value if np.isfinite(value) else 1e38


def rounded_everywhere(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return a copy whose float activations pass through float16, and which says how large they were.

    Returns:
        (the model; name of each activation -> name of the scalar output with its largest absolute value).
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = list(changed.graph.node)
    names = {name: f"{name}/f16" for name in _float_activations(model)}
    outputs = {value.name for value in changed.graph.output}
    del changed.graph.node[:]
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        for at, name in enumerate(node.output):  # what leaves the graph keeps its name, and is rounded as well
            if name in names and name in outputs:
                node.output[at] = f"{name}/exact"
        changed.graph.node.append(node)
        for name in [name.removesuffix("/exact") for name in node.output if name.removesuffix("/exact") in names]:
            changed.graph.node.extend(_cut(name, rounded=names[name], leaves=name in outputs))
    largest = {name: f"{name}/largest" for name in names}
    changed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in largest.values())
    return changed, largest


def _cut(name: str, *, rounded: str, leaves: bool) -> Iterator[onnx.NodeProto]:
    """Yield what rounds a value to float16 and takes its largest absolute value before that."""
    exact = f"{name}/exact" if leaves else name
    yield helper.make_node("Abs", [exact], [f"{name}/abs"])
    yield helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/largest"], keepdims=0)
    yield helper.make_node("Cast", [exact], [f"{name}/half"], to=TensorProto.FLOAT16)
    yield helper.make_node("Cast", [f"{name}/half"], [rounded], to=TensorProto.FLOAT)
    if leaves:
        yield helper.make_node("Identity", [rounded], [name])


def _float_activations(model: onnx.ModelProto) -> list[str]:
    """Return the float32 values that depend on an input, in order; weights on their way to float32 are none."""
    inferred = shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    moving = {value.name for value in model.graph.input}
    found: list[str] = []
    for node in model.graph.node:
        if moving.intersection(node.input):
            moving.update(node.output)
            # Operators of com.microsoft have no inferred type; those of ours give float32.
            found += [name for name in node.output if name and kinds.get(name, TensorProto.FLOAT) == TensorProto.FLOAT]
    return found


def _session(model: onnx.ModelProto, *, folder: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )


def _run(session: Any, names: list[str], feeds: Feeds) -> list[Array]:
    wanted = {value.name for value in session.get_inputs()}
    return session.run(names, {name: value for name, value in feeds.items() if name in wanted})
