# SPDX-License-Identifier: Apache-2.0
import doctest
import importlib
import types

import pytest

import edgereels.runtime


def test_all_lists_every_public_name() -> None:
    public = {
        name
        for name, value in vars(edgereels.runtime).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert {*public, "__version__"} == set(edgereels.runtime.__all__)


@pytest.mark.parametrize("module", ["audio", "image", "planner", "schedulers", "shapes", "tables", "vae_stream"])
def test_examples_in_docstrings(module: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"edgereels.runtime.{module}"))
    assert attempted and not failed
