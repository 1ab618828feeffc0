# SPDX-License-Identifier: Apache-2.0
"""PyTorch on the same work: the modules that the graphs were exported from, with the checkpoint's weights.

A variant is how a module is run, `PRECISION[-channels-last][-compiled[-frozen]]`: "f32" is eager float32,
"bf16-channels-last-compiled" what usually is best on a CPU with bfloat16. Inputs are tensors of the variant's precision
and layout before the clock runs, and outputs stay tensors: PyTorch is given the benefit of the doubt.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .peer_shapes import CONVOLUTION, MATRIX, PEAK_RUNS, rate
from .replay import Replay
from .workload import SUBNETWORKS, Array, subnetwork_of

EAGER_VARIANTS = ("f32", "bf16", "bf16-channels-last")
VARIANTS = (
    *EAGER_VARIANTS,
    *(
        "f32-compiled-frozen",
        "bf16-compiled-frozen",
        "bf16-channels-last-compiled",
        "bf16-channels-last-compiled-frozen",
    ),
)
"""Everything that is tried."""


class PlainTorch(Replay):
    """One module a graph, each subnetwork in a variant of its own."""

    def __init__(self, *, checkpoint: str, workload: str, threads: int, variants: Mapping[str, str]) -> None:
        """Load the modules.

        Args:
            checkpoint: the folder that the package was exported from.
            workload: folder that `workload.record` wrote.
            threads: `torch.set_num_threads`.
            variants: subnetwork to variant; others run as "f32".
        """
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._variants = dict.fromkeys(SUBNETWORKS, "f32") | dict(variants)
        self._specs = _modules(Path(checkpoint))
        self._callables: dict[str, Callable[..., Any]] = {}
        super().__init__(workload=workload, threads=threads)

    def prepare(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """Turn arrays into tensors of the variant's precision and layout."""
        variant = self._variants[subnetwork_of(graph)]
        return {name: self._suited(self._torch.from_numpy(value), variant) for name, value in feeds.items()}

    def _suited(self, tensor: Any, variant: str) -> Any:
        torch = self._torch
        if "bf16" in variant and tensor.is_floating_point():
            tensor = tensor.bfloat16()
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        if "channels-last" in variant and tensor.dim() in layouts:
            tensor = tensor.to(memory_format=layouts[tensor.dim()])
        return tensor

    def call(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run one module."""
        spec = self._specs[graph]
        if graph not in self._callables:
            self._callables[graph] = self._made_ready(graph)
        with self._torch.no_grad():
            results = self._callables[graph](*(feeds[name] for name in spec.input_names))
        return dict(zip(spec.output_names, results, strict=True))

    def _made_ready(self, graph: str) -> Callable[..., Any]:
        variant = self._variants[subnetwork_of(graph)]
        module = self._specs[graph].module
        if "bf16" in variant:
            module = module.bfloat16()
        # Fresh tensors, since the compiler refuses parameters whose data was exchanged under it.
        state = {name: self._suited(value, variant).clone() for name, value in module.state_dict().items()}
        module.load_state_dict(state, assign=True)
        if "compiled" in variant:
            import torch._inductor.config

            torch._inductor.config.freezing = "frozen" in variant
            return self._torch.compile(module, dynamic=False)
        return module

    def as_array(self, value: Any) -> Array:
        """Return a tensor as float32 or uint8."""
        value = value.float() if value.is_floating_point() else value
        return value.contiguous().numpy()

    def trial(self, subnetwork: str, rounds: int = 3) -> dict[str, Any]:
        """Return seconds per second of video of each round after the first two, and the fidelity."""
        decibels = self.fidelity_of(subnetwork)
        self.replay(subnetwork)
        spent = [self.replay(subnetwork)[0] / self.workload.media_s for _ in range(rounds)]
        return {"seconds": spent, "sqnr_db": decibels}

    def operations(self) -> dict[str, float]:
        """Return billions of floating-point operations a second of video, by subnetwork, as PyTorch counts them."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        counted: dict[str, float] = {}
        for name in SUBNETWORKS:
            # The counter does not know the fused attention of CPUs; as two products it is counted.
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                self.replay(name)
            counted[name] = counter.get_total_flops() / 1e9 / self.workload.media_s
        return counted

    def versions(self) -> dict[str, str]:
        """Return the library's version."""
        return {"torch": self._torch.__version__}

    def peak(self) -> dict[str, float]:
        """Return billions of operations a second of a large product and a large convolution, by precision."""
        torch = self._torch
        found: dict[str, float] = {}
        for precision, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            left, right = (torch.randn(MATRIX).to(dtype) for _ in range(2))
            found[f"torch {precision} matmul"] = rate("matmul", _median_s(lambda a=left, b=right: a @ b))
            data, kernel = (
                torch.randn(shape).to(dtype).to(memory_format=torch.channels_last_3d) for shape in CONVOLUTION
            )
            seconds = _median_s(lambda x=data, w=kernel: torch.nn.functional.conv3d(x, w, padding=1))
            found[f"torch {precision} conv3d"] = rate("conv3d", seconds)
        left, right = (torch.randint(-127, 128, MATRIX, dtype=torch.int8) for _ in range(2))
        found["torch int8 matmul"] = rate("matmul", _median_s(lambda: torch.ops.aten._int_mm(left, right)))
        return found


def _median_s(run: Callable[[], Any]) -> float:
    """Return the median seconds of a few runs after one that is not counted."""
    import torch

    times: list[float] = []
    with torch.no_grad():
        for _ in range(PEAK_RUNS):
            start_s = time.perf_counter()
            run()
            times.append(time.perf_counter() - start_s)
    return statistics.median(times[1:])


def _modules(checkpoint: Path) -> dict[str, Any]:
    """Return graph name to its `GraphSpec`, weights loaded in float32; the DiT as a whole."""
    import torch

    from ..export.checkpoint import open_checkpoint
    from ..export.dit import Dit, fused_graph
    from ..export.overrides import read_overrides
    from ..export.subnetworks import plan

    specs: dict[str, Any] = {}
    for subnetwork in plan(open_checkpoint(checkpoint), read_overrides(checkpoint)).subnetworks:
        built = subnetwork.build()
        if isinstance(built.model, Dit):
            state = {name: torch.from_numpy(built.read(name)) for name in built.model.state_dict()}
            built.model.load_state_dict(state, assign=True)
            built.model.requires_grad_(False)
            specs["dit"] = fused_graph(built.model)
        else:
            specs |= {spec.name: spec for spec in built.graphs}
    return specs
