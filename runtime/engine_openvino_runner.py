# SPDX-License-Identifier: Apache-2.0
"""One compiled graph of OpenVINO and its memory: arrays in, arrays out, without copies where shapes are fixed."""

import ctypes
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .engine import Array, endable
from .engine_openvino_library import import_openvino
from .errors import EngineError

POLL_MS = 50  # how long Ctrl-C waits; polling costs 20 wake-ups a second and nothing else
GRACE_MS = 500  # what is waited for a run that nobody wants any more
SPARE_ARRAYS = 3  # of one output: the last run's, the one before, and the one that is being written
UNSHARED = 2  # references to an array that only its pool knows: the pool's, and the one that is counted with


class RunEndedError(Exception):
    """The run was ended from outside while OpenVINO was at work; the runner is lost."""


class Runner:
    """A compiled graph with one request. Not for several threads at once."""

    def __init__(self, compiled: Any, *, inputs: Sequence[str], outputs: Sequence[str], backing: object) -> None:
        """Make it ready.

        Args:
            compiled: an `openvino.CompiledModel`.
            inputs: names of the graph's inputs; those that no operator uses are not in `compiled`.
            outputs: names of its outputs.
            backing: memory that `compiled` was imported from and goes on using.
        """
        self._tensor = import_openvino().Tensor
        self._compiled = compiled
        self._backing = backing
        self._request = compiled.create_infer_request()
        self._inputs = _places(compiled.inputs, inputs)
        self._dtypes = {name: compiled.inputs[at].get_element_type().to_dtype() for name, at in self._inputs.items()}
        self._outputs = _places(compiled.outputs, outputs)
        self._pools = {
            name: _ArrayPool(tuple(port.shape), port.get_element_type().to_dtype())
            for name, at in self._outputs.items()
            if not (port := compiled.outputs[at]).partial_shape.is_dynamic
        }

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; `feeds` are contiguous, writeable and of the graph's types, and stay untouched.

        Raises:
            RunEndedError: see there.
            RuntimeError: whatever OpenVINO says.
            MemoryError: there is no room for the outputs.
        """
        made = {name: pool.take() for name, pool in self._pools.items()}
        for name, at in self._inputs.items():
            self._request.set_input_tensor(at, self._tensor(feeds[name], shared_memory=True))
        for name, array in made.items():
            self._request.set_output_tensor(self._outputs[name], self._tensor(array, shared_memory=True))
        self._request.start_async()
        self._wait(holding=(feeds, made))
        return {name: made[name] if name in made else self._copied(at) for name, at in self._outputs.items()}

    def _wait(self, *, holding: object) -> None:
        """Wait in pieces: between them Python answers Ctrl-C."""
        is_ended = threading.Event()
        with endable(is_ended.set):
            try:
                while not self._request.wait_for(POLL_MS):
                    if is_ended.is_set():
                        raise RunEndedError
            except BaseException:
                self._leave(holding)
                raise
        self._request.wait()  # raises what went wrong

    def _leave(self, holding: object) -> None:
        """Let go of a run in progress: whatever it reads and writes must outlive it, and nobody may wait for it.

        Freeing a request waits for its run, at the latest when the process ends. So it is never freed.
        """
        if not self._request.wait_for(GRACE_MS):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object((self._request, self._compiled, self._backing, holding)))

    def _copied(self, at: int) -> Array:
        return np.array(self._request.get_output_tensor(at).data)


class _ArrayPool:
    """Arrays for one output: the same few again and again, each as soon as nobody refers to it any more."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._shape = shape
        self._dtype = dtype
        self._arrays: list[Array] = []

    def take(self) -> Array:
        """Return an array that nobody else refers to, not even through a view."""
        for at in range(len(self._arrays)):
            if sys.getrefcount(self._arrays[at]) == UNSHARED:
                return self._arrays[at]
        array: Array = np.empty(self._shape, self._dtype)
        self._arrays = [*self._arrays[-SPARE_ARRAYS + 1 :], array]
        return array


def _places(ports: Sequence[Any], names: Sequence[str]) -> dict[str, int]:
    """Return where each of the graph's names is among OpenVINO's inputs or outputs.

    Raises:
        EngineError: OpenVINO has one that the graph doesn't have.
    """
    found = {name: at for at, port in enumerate(ports) for name in port.get_names() if name in names}
    if len(set(found.values())) != len(ports):
        raise EngineError(f"OpenVINO has {len(ports)} inputs or outputs where the graph has {', '.join(names)}")
    return {name: found[name] for name in names if name in found}
