# SPDX-License-Identifier: Apache-2.0
"""One table says what hardware was seen; doctor marks by it and docs/hardware.md shows it."""

from pathlib import Path

import pytest

from edgereels.runtime.seen_hardware import EPYC, seen_on, table

DOCUMENT = Path(__file__).parents[1] / "docs" / "hardware.md"


def test_the_document_shows_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    shown = text.split("<!-- seen:", 1)[1].split("-->\n", 1)[1].split("<!-- /seen -->", 1)[0]
    assert shown.strip() == "\n".join(table())


@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "OpenVINO CPU"])
def test_the_machine_that_was_seen_is_seen(provider: str) -> None:
    assert seen_on(provider=provider, system="Linux", processor="avx512") == EPYC


@pytest.mark.parametrize(
    ("provider", "system", "processor"),
    [
        ("CUDAExecutionProvider", "Linux", "avx512"),
        ("OpenVINO GPU", "Linux", "avx512"),
        ("OpenVINO NPU", "Linux", "avx512"),
        ("CPUExecutionProvider", "Windows", "avx512"),
        ("CPUExecutionProvider", "Darwin", "arm"),
        ("OpenVINO CPU", "Linux", "avx2"),
        ("CPUExecutionProvider", "Linux", "arm"),
        ("SomethingNew", "Plan9", "mips"),
    ],
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_everything_else_is_unverified(provider: str, system: str, processor: str) -> None:
    assert seen_on(provider=provider, system=system, processor=processor) == ""
