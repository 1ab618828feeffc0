# SPDX-License-Identifier: Apache-2.0
"""Which engines' libraries work here, what they offer, and what to do where one doesn't or a device lies idle."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .cuda_driver import CudaDriver
from .doctor_trial_process import Ask, ask_trial
from .engine_wheels import (
    CUDA_WHEELS,
    EXTRAS,
    WHEELS,
    Finding,
    install_line,
    installed_wheels,
    module_is_there,
    wheel_findings,
)
from .machine import Processor

LIBRARY_TIMEOUT_S = 60.0
"""For importing one library; 0.3 s is usual, antivirus software and cold disks take tens of seconds."""


@dataclass(frozen=True)
class Library:
    """An engine's library as it is here."""

    name: str
    """"onnxruntime" or "openvino"."""
    wheels: Mapping[str, str]
    """Wheel to version of what brings it; empty: not installed, or no wheel."""
    version: str | None = None
    """As it says itself once imported."""
    providers: tuple[str, ...] = ()
    """ONNX Runtime: its execution providers."""
    devices: tuple[Mapping[str, Any], ...] = ()
    """OpenVINO: its devices and what each can do."""
    fault: str = ""
    """Why it can't be imported; empty where it can, or is not there."""

    @property
    def works(self) -> bool:
        """Whether it could be imported."""
        return self.version is not None


def find_libraries(*, ask: Ask = ask_trial) -> dict[str, Library]:
    """Import each engine's library that is here, each in a process of its own, at the same time."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _library(name, ask=ask), WHEELS)
        return {library.name: library for library in found}


def _library(name: str, *, ask: Ask) -> Library:
    wheels = installed_wheels(name)
    if not wheels and not module_is_there(name):
        return Library(name, {})
    answer = ask({"job": "library", "library": name}, timeout_s=LIBRARY_TIMEOUT_S)
    facts = answer.first("library")
    if facts is None:
        return Library(name, wheels, fault=answer.fault or "it said nothing")
    return Library(
        name,
        wheels,
        version=str(facts["version"]),
        providers=tuple(facts.get("providers", ())),
        devices=tuple(facts.get("devices", ())),
    )


def library_findings(
    libraries: Mapping[str, Library], *, cuda: CudaDriver, has_intel_graphics: bool | None
) -> Iterator[Finding]:
    """Yield what is wrong with engines here, and which would serve devices that lie idle."""
    wheels = {name: library.wheels for name, library in libraries.items()}
    tried = {name for name, library in libraries.items() if library.works or library.fault}
    yield from wheel_findings(wheels, is_there=tried.__contains__, has_card=bool(cuda.cards))
    for name, library in libraries.items():
        if library.fault:
            named = " ".join((name, *library.wheels.values()))
            again = " ".join(f"'{wheel}=={number}'" for wheel, number in library.wheels.items())
            yield Finding(
                "warning",
                f"{named} is installed and can't be imported: {library.fault}",
                f"pip install --force-reinstall --no-deps {again or install_line(EXTRAS[name])}",
            )
    yield from _cuda_findings(libraries["onnxruntime"], cuda=cuda)
    yield from _intel_findings(libraries["openvino"], has_intel_graphics=has_intel_graphics)


def _cuda_findings(library: Library, *, cuda: CudaDriver) -> Iterator[Finding]:
    if cuda.fault:
        yield Finding("warning", f"{cuda.fault}: no card can be used; reinstall the driver or restart the machine")
    has_wheel = any(wheel in library.wheels for wheel in CUDA_WHEELS)
    offers_cuda = "CUDAExecutionProvider" in library.providers
    if has_wheel and not cuda.cards:
        why = "NVIDIA's driver finds no card" if cuda.is_installed else "there is no NVIDIA driver"
        yield Finding(
            "advice",
            f"onnxruntime-gpu is installed and {why}; it computes on the CPU as onnxruntime does, which is smaller",
            f"pip uninstall -y onnxruntime-gpu && {install_line('cpu')}",
        )
    elif cuda.cards and has_wheel and library.works and not offers_cuda:
        yield Finding(
            "warning",
            "onnxruntime-gpu is installed and offers no CUDAExecutionProvider: another wheel overwrote it",
            f"pip uninstall -y {' '.join(library.wheels)} && {install_line('cuda')}",
        )
    elif cuda.cards and not has_wheel:
        removal = f"pip uninstall -y {' '.join(library.wheels)} && " if library.wheels else ""
        yield Finding(
            "advice",
            f"{cuda.cards[0].name} lies idle: the engine for it is not installed (unverified there)",
            f"{removal}{install_line('cuda')}",
        )


def _intel_findings(library: Library, *, has_intel_graphics: bool | None) -> Iterator[Finding]:
    names = [str(device.get("name", "")) for device in library.devices]
    if not library.wheels and not library.works:
        what = "it can use this machine's Intel graphics (unverified there), and" if has_intel_graphics else "it"
        yield Finding(
            "advice", f"OpenVINO is not installed; {what} may run a package faster on CPUs", install_line("openvino")
        )
    elif library.works and has_intel_graphics and not any(name.startswith("GPU") for name in names):
        yield Finding(
            "advice",
            "this machine has Intel graphics that OpenVINO does not list: its compute driver is missing "
            "(Debian, Ubuntu: intel-opencl-icd; Windows: Intel's graphics driver)",
        )


def machine_findings(processor: Processor) -> Iterator[Finding]:
    """Yield what in the machine's settings slows engines down."""
    if processor.isa_cap:
        yield Finding(
            "advice",
            f"ONEDNN_MAX_CPU_ISA={processor.isa_cap} is set: OpenVINO uses no newer instructions than that, "
            "ONNX Runtime ignores it",
        )
