# SPDX-License-Identifier: Apache-2.0
"""Which wheels bring the engines' libraries here, and what is wrong with them. Nothing is imported."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

# Wheels that install the module `onnxruntime`: two of them in one environment overwrite each other's files.
ONNXRUNTIME_WHEELS = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-training"),
    *("onnxruntime-qnn", "onnxruntime-rocm", "onnxruntime-migraphx", "ort-nightly", "ort-nightly-gpu"),
)
CUDA_WHEELS = ("onnxruntime-gpu", "ort-nightly-gpu")
OPENVINO_WHEELS = ("openvino", "openvino-nightly")
WHEELS = {"onnxruntime": ONNXRUNTIME_WHEELS, "openvino": OPENVINO_WHEELS}
"""Library to the wheels that bring it."""
EXTRAS = {"onnxruntime": "cpu", "openvino": "openvino"}
"""Library to the extra of ours that installs it."""

FindVersion = Callable[[str], str | None]


@dataclass(frozen=True)
class Finding:
    """Something that somebody should know or do."""

    level: str
    """"error": nothing runs; "warning": something is broken or slower than it has to be; "advice": could be better."""
    text: str
    """What was found, one line."""
    command: str = ""
    """What to type; empty where there is nothing to type."""


def installed_version(wheel: str) -> str | None:
    """Return the version of an installed wheel, or None."""
    try:
        return version(wheel)
    except PackageNotFoundError:
        return None


def installed_wheels(library: str, *, find_version: FindVersion = installed_version) -> dict[str, str]:
    """Return wheel to version of everything installed that brings a library."""
    found = {wheel: find_version(wheel) for wheel in WHEELS[library]}
    return {wheel: number for wheel, number in found.items() if number is not None}


def module_is_there(module: str) -> bool:
    """Tell whether Python would find a module, which need not be importable."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a broken parent, or a module that replaced itself
        return False


def wheel_findings(
    wheels: Mapping[str, Mapping[str, str]],
    *,
    is_there: Callable[[str], bool] = module_is_there,
    has_card: bool = False,
) -> Iterator[Finding]:
    """Yield what can be told from the wheels alone.

    Args:
        wheels: library to wheel to version, from `installed_wheels`.
        is_there: tells whether a library's module is found, with or without a wheel.
        has_card: whether there is an NVIDIA card, which decides what to install.
    """
    if not any(wheels.values()) and not any(is_there(library) for library in wheels):
        yield Finding("error", "no engine is installed", install_line("cuda" if has_card else "cpu"))
    yield from _conflict(wheels["onnxruntime"], has_card=has_card)
    for library, found in wheels.items():
        if not found and is_there(library):
            yield Finding(
                "warning",
                f"a module {library} is there that belongs to no wheel (what is left after one of two was removed, "
                "or a folder of that name)",
                f"pip install --force-reinstall '{next(iter(WHEELS[library]))}'",
            )
    yield from _too_old(wheels)


def media_findings(*, is_there: Callable[[str], bool] = module_is_there) -> Iterator[Finding]:
    """Yield what a render lacks besides an engine."""
    if not is_there("av"):
        yield Finding("advice", "PyAV is not installed: frames can be had, mp4 files can't", install_line("video"))


def install_line(extra: str) -> str:
    """Return the line that installs an extra."""
    return f"pip install 'edgereels[{extra}]'"


def _conflict(found: Mapping[str, str], *, has_card: bool) -> Iterator[Finding]:
    if len(found) < 2:
        return
    listed = " and ".join(f"{wheel} {number}" for wheel, number in found.items())
    extra = "cuda" if has_card and any(wheel in CUDA_WHEELS for wheel in found) else "cpu"
    yield Finding(
        "warning",
        f"{listed} are both installed; they overwrite each other's files, and which one runs is chance",
        f"pip uninstall -y {' '.join(found)} && {install_line(extra)}",
    )


def _too_old(wheels: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    for wheel, least in _least_versions(_own_requirements()).items():
        for found in wheels.values():
            if wheel in found and _numbers(found[wheel]) < _numbers(least):
                yield Finding(
                    "warning",
                    f"{wheel} {found[wheel]} is older than edgereels asks for ({least})",
                    f"pip install -U '{wheel}>={least}'",
                )


def _own_requirements() -> Iterable[str]:
    try:
        return requires("edgereels") or ()
    except PackageNotFoundError:  # run from a folder that was never installed
        return ()


def _least_versions(requirements: Iterable[str]) -> dict[str, str]:
    """Read `name>=version; ...`, the only form in which our own metadata states an engine."""
    matches = (re.match(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)", line) for line in requirements)
    return {match.group(1): match.group(2) for match in matches if match}


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])
