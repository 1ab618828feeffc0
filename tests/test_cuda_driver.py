# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's driver is asked through its own libraries; here these are stand-ins that answer as it would."""

from types import SimpleNamespace
from typing import Any

import pytest

from edgereels.runtime.cuda_driver import Card, CudaDriver, find_cards


def fill(buffer: Any, value: bytes) -> int:
    buffer.value = value
    return 0


def put(pointer: Any, value: int) -> int:
    pointer._obj.value = value  # what ctypes.byref was given
    return 0


def memory(_handle: Any, pointer: Any) -> int:
    pointer._obj.total, pointer._obj.free = 24 << 30, 20 << 30
    return 0


def driver(**changes: Any) -> SimpleNamespace:
    functions = {
        "cuInit": lambda _flags: 0,
        "cuDeviceGetCount": lambda count: put(count, 1),
        "cuDeviceGet": put,
        "cuDeviceGetName": lambda buffer, _size, _device: fill(buffer, b"NVIDIA Stand-in"),
        "cuDeviceGetPCIBusId": lambda buffer, _size, _device: fill(buffer, b"0000:01:00.0"),
        "cuDeviceTotalMem_v2": lambda total, _device: put(total, 24 << 30),
        "cuDeviceGetAttribute": lambda value, attribute, _device: put(value, {75: 8, 76: 9}[attribute]),
        "cuDriverGetVersion": lambda version: put(version, 13010),
    }
    return SimpleNamespace(**functions | changes)


def management(**changes: Any) -> SimpleNamespace:
    functions = {
        "nvmlInit_v2": lambda: 0,
        "nvmlShutdown": lambda: 0,
        "nvmlSystemGetDriverVersion": lambda buffer, _size: fill(buffer, b"580.65.06"),
        "nvmlDeviceGetHandleByPciBusId_v2": lambda _bus, handle: put(handle, 1),
        "nvmlDeviceGetMemoryInfo": memory,
    }
    return SimpleNamespace(**functions | changes)


def opener(cuda: Any = None, nvml: Any = None) -> Any:
    def open_library(name: str) -> Any:
        found = cuda if "cuda" in name else nvml
        if found is None:
            raise OSError(name)
        return found

    return open_library


def test_a_card_is_described_whole() -> None:
    found = find_cards(open_library=opener(driver(), management()))
    assert found.cards == (Card(0, "NVIDIA Stand-in", 24 << 30, 20 << 30, (8, 9)),)
    assert (found.version, found.cuda_version, found.fault) == ("580.65.06", "13.1", "")


def test_no_driver_is_no_fault() -> None:
    found = find_cards(open_library=opener())
    assert (found.is_installed, found.cards, found.fault) == (False, (), "")


@pytest.mark.parametrize(
    "nvml", [None, management(nvmlInit_v2=lambda: 9), SimpleNamespace()], ids=["absent", "broken", "strange"]
)
def test_without_the_management_library_free_memory_is_unknown(nvml: Any) -> None:
    found = find_cards(open_library=opener(driver(), nvml))
    assert [card.free_bytes for card in found.cards] == [None]
    assert found.version is None


def test_a_driver_without_a_card_has_none_and_no_fault() -> None:
    found = find_cards(open_library=opener(driver(cuInit=lambda _flags: 100), management()))
    assert (found.is_installed, found.cards, found.fault) == (True, (), "")


def test_a_driver_that_fails_says_with_which_error() -> None:
    """803: the kernel's module and the library are of different versions."""
    found = find_cards(open_library=opener(driver(cuInit=lambda _flags: 803), management()))
    assert found.cards == () and "803" in found.fault


def test_a_library_that_only_has_the_name_does_not_raise() -> None:
    found = find_cards(open_library=opener(SimpleNamespace(), None))
    assert found.cards == () and found.fault


def test_this_machine_can_be_asked() -> None:
    found = find_cards()
    assert found.is_installed or found == CudaDriver(False, None, None, ())


@pytest.mark.gpu
def test_the_card_of_this_machine_is_described() -> None:
    found = find_cards()
    assert found.version and found.cuda_version and not found.fault
    for card in found.cards:
        assert card.name.startswith("NVIDIA") and card.compute_capability >= (5, 0)
        assert card.free_bytes is not None and 0 < card.free_bytes <= card.total_bytes
    assert found.cards
