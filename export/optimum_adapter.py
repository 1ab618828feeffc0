# SPDX-License-Identifier: Apache-2.0
"""The subnetworks in Optimum's grammar: one `ExporterConfig` per graph, registered with its `TasksManager`.

`edgereels export` itself does not come by here: Optimum's core has no exporter of its own, and its ONNX backend does
not go with current transformers. Who writes or runs tooling on Optimum finds our graphs as it finds any model's::

    from optimum.exporters.tasks import TasksManager
    from edgereels.export.optimum_adapter import BACKEND, register

    register()
    make = TasksManager.get_exporter_config_constructor(
        BACKEND, model_type="skyreels-v3-vae-decoder-next", task="feature-extraction", library_name="diffusers"
    )
    config = make(VaeConfig())            # our configuration of the network
    config.inputs                         # {"latents": {2: "k", 3: "h", 4: "w"}, "cache_00": ...}
    config.generate_dummy_inputs()        # seeded tensors, in the order of the module's arguments
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..runtime.errors import MissingExtraError
from .audio_encoder import AudioEncoder
from .audio_encoder import graphs as audio_graphs
from .dit import Dit
from .dit import graphs as dit_graphs
from .finish import graphs as finish_graphs
from .graph_spec import Axes, GraphSpec
from .image_encoder import ImageEncoder
from .image_encoder import graphs as image_graphs
from .lazy_weights import parameters_on_meta
from .text_encoder import TextEncoder
from .text_encoder import graphs as text_graphs
from .vae import VideoVae
from .vae import graphs as vae_graphs

try:
    from optimum.exporters.base import ExporterConfig
    from optimum.exporters.tasks import TasksManager
    from optimum.utils.input_generators import DummyInputGenerator
except ModuleNotFoundError as error:
    raise MissingExtraError(str(error.name), extra="export", purpose="the adapter to Optimum") from error

BACKEND = "edgereels"
"""Name under which the configurations are registered; "onnx" belongs to Optimum's own backend."""

TASK = "feature-extraction"
"""The one task of Optimum's list that is not wrong for a graph that maps tensors to tensors."""

# Graph -> model type is the graph's name behind this; DiT blocks are one type.
_PREFIX = "skyreels-v3-"


@dataclass(frozen=True)
class _Network:
    """How a network's graphs are found for a configuration of ours."""

    graphs: tuple[str, ...]
    """Names of the graphs."""
    library: str
    """Optimum's name for the family: transformers or diffusers."""
    specs: Callable[[Any], Sequence[GraphSpec]]
    """Makes the graphs; gets the network's configuration."""


def _without_values(network: Callable[[Any], nn.Module], graphs: Callable[[Any], list[GraphSpec]]) -> Any:
    def specs(config: Any) -> list[GraphSpec]:
        with parameters_on_meta():
            module = network(config).eval()
        return graphs(module)

    return specs


_NETWORKS = (
    _Network(("audio_encoder",), "transformers", _without_values(AudioEncoder, audio_graphs)),
    _Network(("text_encoder",), "transformers", _without_values(TextEncoder, text_graphs)),
    _Network(("image_encoder",), "transformers", _without_values(ImageEncoder, image_graphs)),
    _Network(
        ("vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next"),
        "diffusers",
        # With values: the caches among its examples are outputs of the network.
        lambda config: vae_graphs(VideoVae(config).eval()),
    ),
    _Network(
        ("dit_prologue", "dit_block_00", "dit_epilogue", "dit_time"), "diffusers", _without_values(Dit, dit_graphs)
    ),
    _Network(("finish",), "diffusers", lambda _: finish_graphs()),
)


class GraphInputs(DummyInputGenerator):
    """The example inputs of a graph; sizes that Optimum proposes are not ours and are passed over."""

    def __init__(self, task: str, normalized_config: "_Graph", *, example: int = 0, **_: Any) -> None:
        """Take the inputs of a graph.

        Args:
            task: unused.
            normalized_config: the graph.
            example: 0 or 1, the smaller and the larger set of inputs.
        """
        spec = normalized_config.spec
        self._inputs: dict[str, Tensor] = dict(zip(spec.input_names, spec.examples[example], strict=True))

    def supports_input(self, input_name: str) -> bool:
        """Tell whether the graph has this input."""
        return input_name in self._inputs

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> Any:
        """Return one input, as a tensor ("pt") or an array ("np"); its type is the graph's."""
        if (framework, int_dtype, float_dtype) not in (("pt", "int64", "fp32"), ("np", "int64", "fp32")):
            raise ValueError(
                f"{framework} {int_dtype} {float_dtype}: expected pt or np, int64 and fp32, as the graphs are"
            )
        value = self._inputs[input_name]
        return value if framework == "pt" else value.numpy()


@dataclass(frozen=True)
class _Graph:
    """What stands in for Optimum's normalized configuration: the graph itself."""

    spec: GraphSpec
    """The graph."""


class GraphExporterConfig(ExporterConfig):
    """One graph of ours as Optimum describes a model to export; `register` makes a subclass per graph."""

    DUMMY_INPUT_GENERATOR_CLASSES = (GraphInputs,)
    ATOL_FOR_VALIDATION = 1e-4
    GRAPH: ClassVar[str] = ""
    """Name of the graph."""
    NETWORK: ClassVar[_Network]
    """The network that it belongs to."""

    def __init__(self, config: Any, task: str = TASK, int_dtype: str = "int64", float_dtype: str = "fp32") -> None:
        """Describe the graph of a network with this configuration (VaeConfig, DitConfig, ...)."""
        self.spec = next(spec for spec in self.NETWORK.specs(config) if spec.name == self.GRAPH)
        super().__init__(config, task, int_dtype=int_dtype, float_dtype=float_dtype)

    def NORMALIZED_CONFIG_CLASS(self, _: Any) -> _Graph:  # noqa: N802 - the name that Optimum calls
        """Return the graph, from which `GraphInputs` takes its tensors."""
        return _Graph(self.spec)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Return the dynamic axes of every input, in the order of the module's arguments."""
        return _dynamic(self.spec.input_names, self.spec.shape_names)

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Return the dynamic axes of every output, in order."""
        return _dynamic(self.spec.output_names, self.spec.shape_names)


def _dynamic(names: Sequence[str], shapes: Mapping[str, Axes]) -> dict[str, dict[int, str]]:
    return {name: {index: axis for index, axis in enumerate(shapes[name]) if isinstance(axis, str)} for name in names}


def model_type(graph: str) -> str:
    """Return the model type under which a graph is registered."""
    return _PREFIX + graph.removesuffix("_00").replace("_", "-")


def register() -> dict[str, type[GraphExporterConfig]]:
    """Register every graph with Optimum's `TasksManager`; returns model type -> configuration class."""
    registered: dict[str, type[GraphExporterConfig]] = {}
    add: Callable[..., Any] = TasksManager.create_register(
        BACKEND, overwrite_existing=True
    )  # its stub names no keywords
    for network in _NETWORKS:
        for graph in network.graphs:
            name = model_type(graph)
            config_class = type(f"{graph}_config", (GraphExporterConfig,), {"GRAPH": graph, "NETWORK": network})
            registered[name] = add(name, TASK, library_name=network.library)(config_class)
    return registered
