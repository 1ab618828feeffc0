# SPDX-License-Identifier: Apache-2.0
"""Runs of an ONNX Runtime session whose values lie on a device at fixed addresses, so that a card can replay them.

A CUDA graph is recorded for shapes and addresses. Inputs are therefore copied into buffers of their own, and outputs
that stay (the VAE's caches) go into two sets of buffers by turns: what one run wrote, the next reads, and it writes the
other set. Each pair of (input addresses, output set) is recorded once: A -> B, B -> A.

ONNX Runtime records a run after two plain ones, all three with the same inputs; nothing is written to what is read, so
repeating them changes nothing. The logic below is tested on the CPU; on a card it is unverified.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from .engine import Array, Value

NOT_RECORDED = "-1"
"""Run option gpu_graph_id that neither records nor replays."""

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Resident:
    """A value on a device. Its buffer is written again by the run after the next of the engine that made it."""

    buffer: Any
    """An `onnxruntime.OrtValue`."""
    shape: Shape
    """Sizes."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Copy it to the CPU, for people who look."""
        return self.buffer.numpy().astype(dtype or None, copy=False)

    @property
    def address(self) -> int:
        """Where it lies."""
        return self.buffer.data_ptr()


class DeviceRuns:
    """Runs one session with its values on a device."""

    def __init__(self, onnxruntime: ModuleType, session: Any, *, device: tuple[str, int], replay: bool) -> None:
        """Allocate nothing yet.

        Args:
            onnxruntime: the library.
            session: an open `InferenceSession`.
            device: ("cuda", number), or ("cpu", 0) in tests.
            replay: whether the session records CUDA graphs.
        """
        self._values = onnxruntime.OrtValue
        self._new_run_options = onnxruntime.RunOptions
        self._session = session
        self._device = device
        self._replay = replay
        self._inputs = tuple(value.name for value in session.get_inputs())
        self._outputs = tuple(value.name for value in session.get_outputs())
        self._buffers: dict[tuple[str, str, Shape], Any] = {}
        self._output_specs: dict[tuple[Shape, ...], dict[str, tuple[Shape, Any]]] = {}
        self._bindings: dict[tuple[int, ...], Any] = {}

    def hold(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Copy arrays into buffers that no run writes to; the same ones at every call."""
        return {name: self._uploaded("held", name, value) for name, value in feeds.items()}

    def run(
        self, feeds: Mapping[str, Value], *, options: Any, keep: Collection[str], is_expected: bool
    ) -> dict[str, Value]:
        """Run once.

        Args:
            feeds: all inputs, in the graph's order.
            options: the run's; gets the number of the recorded graph.
            keep: outputs that stay on the device.
            is_expected: whether these shapes come again, and are worth fixed addresses.
        """
        if not is_expected:
            given = {name: self._temporary(value) for name, value in feeds.items()}
            return self._handed_over(self._plain(given, options=options), keep=keep)
        given = {name: self._uploaded("input", name, value) for name, value in feeds.items()}
        shapes = tuple(value.shape for value in given.values())
        if shapes not in self._output_specs:  # what comes out at these shapes is only known afterwards
            made = self._plain(given, options=self._new_run_options())
            specs = {name: (tuple(buffer.shape()), buffer.element_type()) for name, buffer in made.items()}
            self._output_specs[shapes] = specs
        outputs = self._free_outputs(given, self._output_specs[shapes])
        self._run_fixed(given, outputs, options=options)
        return self._handed_over(outputs, keep=keep)

    def _plain(self, given: Mapping[str, Resident], *, options: Any) -> dict[str, Any]:
        """Run with outputs wherever the library puts them; return their buffers."""
        binding = self._session.io_binding()
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value.buffer)
        for name in self._outputs:
            binding.bind_output(name, *self._device)
        if self._replay:
            options.add_run_config_entry("gpu_graph_id", NOT_RECORDED)
        self._session.run_with_iobinding(binding, options)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))

    def _free_outputs(self, given: Mapping[str, Resident], specs: Mapping[str, tuple[Shape, Any]]) -> dict[str, Any]:
        """Return the set of output buffers of which nothing is read in this run."""
        read = {value.address for value in given.values()}
        for turn in ("A", "B"):
            outputs = {name: self._buffer(turn, name, *spec) for name, spec in specs.items()}
            if read.isdisjoint(buffer.data_ptr() for buffer in outputs.values()):
                return outputs
        raise AssertionError("values of two earlier runs were fed at once")

    def _run_fixed(self, given: Mapping[str, Resident], outputs: Mapping[str, Any], *, options: Any) -> None:
        """Run between addresses that come again."""
        key = (*(value.address for value in given.values()), *(buffer.data_ptr() for buffer in outputs.values()))
        if key not in self._bindings:
            binding = self._bindings[key] = self._session.io_binding()
            for name, value in given.items():
                binding.bind_ortvalue_input(name, value.buffer)
            for name, buffer in outputs.items():
                binding.bind_ortvalue_output(name, buffer)
        if self._replay:
            options.add_run_config_entry("gpu_graph_id", str(1 + list(self._bindings).index(key)))
        self._session.run_with_iobinding(self._bindings[key], options)

    def _handed_over(self, buffers: Mapping[str, Any], *, keep: Collection[str]) -> dict[str, Value]:
        """Return values on the device, and copies that belong to the caller of all others."""
        is_view = self._device[0] == "cpu"
        return {
            name: Resident(buffer, tuple(buffer.shape()))
            if name in keep
            else np.array(buffer.numpy(), copy=is_view or None)
            for name, buffer in buffers.items()
        }

    def _uploaded(self, purpose: str, name: str, value: Value) -> Resident:
        """Copy an array to its buffer; what is on the device already stays where it is."""
        if isinstance(value, Resident):
            return value
        array = np.ascontiguousarray(value)
        buffer = self._buffer(purpose, name, array.shape, array.dtype.type)
        buffer.update_inplace(array)
        return Resident(buffer, array.shape)

    def _buffer(self, purpose: str, name: str, shape: Shape, dtype: Any) -> Any:
        key = (purpose, name, shape)
        if key not in self._buffers:
            self._buffers[key] = self._values.ortvalue_from_shape_and_type(shape, dtype, *self._device)
        return self._buffers[key]

    def _temporary(self, value: Value) -> Resident:
        """Copy an array that comes once."""
        if isinstance(value, Resident):
            return value
        array = np.ascontiguousarray(value)
        return Resident(self._values.ortvalue_from_numpy(array, *self._device), array.shape)
