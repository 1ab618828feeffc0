# SPDX-License-Identifier: Apache-2.0
"""Four folders, one import name.

`runtime/` is imported as `edgereels.runtime`, `export/` as `edgereels.export`, and so on. The folders lie side by
side on disk exactly as the packages lie side by side in `edgereels`, so a relative import (`from ..runtime import
errors`) means the same to Python, to an editor and to a type checker, with nothing to configure.

Everything else about the project is in pyproject.toml.
"""

from setuptools import find_packages, setup

ROOMS = ("runtime", "export", "quant", "benchmarks")

setup(
    packages=[
        "edgereels." + name for name in find_packages(include=[p for room in ROOMS for p in (room, room + ".*")])
    ],
    package_dir={"edgereels." + room: room for room in ROOMS},
    package_data={
        **{"edgereels." + room: ["py.typed"] for room in ROOMS},
        "edgereels.runtime": ["py.typed", "embedded/**/*", "embedded/*"],
    },
)
