# SPDX-License-Identifier: Apache-2.0
"""NVIDIA cards, asked from the driver's own libraries: no CUDA toolkit, no engine, no context on the card."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

OpenLibrary = Callable[[str], Any]

# cuda.h: CUdevice_attribute.
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
NO_DEVICE = 100
"""cuda.h: CUDA_ERROR_NO_DEVICE: a driver without a card."""


@dataclass(frozen=True)
class Card:
    """One NVIDIA card."""

    index: int
    """N of `cuda:N`."""
    name: str
    """As the driver calls it."""
    total_bytes: int
    """Memory of the card."""
    free_bytes: int | None
    """Of that, what no process holds now; None where the driver's management library doesn't tell."""
    compute_capability: tuple[int, int]
    """(major, minor): bf16 from 8.0 on."""


@dataclass(frozen=True)
class CudaDriver:
    """What NVIDIA's driver says of this machine."""

    is_installed: bool
    """Whether its library was found."""
    version: str | None
    """Of the driver, "580.65.06"; None where it doesn't tell."""
    cuda_version: str | None
    """Newest CUDA that it runs, "13.0"."""
    cards: tuple[Card, ...]
    """In the order of `cuda:N`."""
    fault: str = ""
    """Why a driver that is installed shows no card; empty where it simply has none."""


class _MemoryInfo(ctypes.Structure):
    """nvml.h: nvmlMemory_t, bytes."""

    _fields_ = (("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64))


def find_cards(*, open_library: OpenLibrary = ctypes.CDLL) -> CudaDriver:
    """Ask the driver for its cards; never raises.

    Args:
        open_library: opens a shared library by name and raises OSError where there is none; another one in tests.
    """
    windows = sys.platform == "win32"
    cuda = _opened(open_library, "nvcuda.dll" if windows else "libcuda.so.1")
    if cuda is None:
        return CudaDriver(False, None, None, ())
    nvml = _opened(open_library, "nvml.dll" if windows else "libnvidia-ml.so.1")
    if nvml is not None and (not hasattr(nvml, "nvmlInit_v2") or nvml.nvmlInit_v2() != 0):
        nvml = None
    try:
        return _ask(cuda, nvml)
    except AttributeError as error:  # a library under that name which lacks a function
        return CudaDriver(True, None, None, (), f"NVIDIA's driver library lacks {error}")
    finally:
        if nvml is not None:
            nvml.nvmlShutdown()


def _opened(open_library: OpenLibrary, name: str) -> Any:
    try:
        return open_library(name)
    except OSError:
        return None


def _ask(cuda: Any, nvml: Any) -> CudaDriver:
    version, cuda_version = _driver_version(nvml), _cuda_version(cuda)
    status = cuda.cuInit(0)
    count = ctypes.c_int(0)
    status = status or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, NO_DEVICE):
        return CudaDriver(True, version, cuda_version, (), f"NVIDIA's driver answers with the error {status}")
    return CudaDriver(True, version, cuda_version, tuple(_cards(cuda, nvml, count=count.value)))


def _cards(cuda: Any, nvml: Any, *, count: int) -> Iterator[Card]:
    for index in range(count):
        device = ctypes.c_int(0)
        if cuda.cuDeviceGet(ctypes.byref(device), index) != 0:
            continue
        name, bus_id = ctypes.create_string_buffer(128), ctypes.create_string_buffer(32)
        total = ctypes.c_size_t(0)
        major, minor = ctypes.c_int(0), ctypes.c_int(0)
        cuda.cuDeviceGetName(name, 128, device)
        cuda.cuDeviceGetPCIBusId(bus_id, 32, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
        yield Card(
            index=index,
            name=name.value.decode("utf-8", "replace"),
            total_bytes=total.value,
            free_bytes=_free_bytes(nvml, bus_id),
            compute_capability=(major.value, minor.value),
        )


def _free_bytes(nvml: Any, bus_id: Any) -> int | None:
    """Ask the management library, by the card's place on the bus: it counts cards in another order than CUDA does."""
    if nvml is None:
        return None
    handle, memory = ctypes.c_void_p(), _MemoryInfo()
    if nvml.nvmlDeviceGetHandleByPciBusId_v2(bus_id, ctypes.byref(handle)) != 0:
        return None
    return memory.free if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0 else None


def _driver_version(nvml: Any) -> str | None:
    text = ctypes.create_string_buffer(80)
    if nvml is None or nvml.nvmlSystemGetDriverVersion(text, 80) != 0:
        return None
    return text.value.decode("ascii", "replace") or None


def _cuda_version(cuda: Any) -> str | None:
    number = ctypes.c_int(0)  # 13000: CUDA 13.0
    if cuda.cuDriverGetVersion(ctypes.byref(number)) != 0 or not number.value:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"
