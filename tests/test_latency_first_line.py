# SPDX-License-Identifier: Apache-2.0
"""What was asked of an engine and what was got are compared by the same words."""

from types import SimpleNamespace

import pytest

from edgereels.benchmarks.latency_first_line import first_line


@pytest.mark.parametrize(
    ("asked", "provider", "is_as_asked"),
    [
        ("openvino:CPU", "OpenVINO CPU", True),
        ("openvino:GPU", "OpenVINO CPU", False),
        ("onnxruntime:CPU", "CPUExecutionProvider", True),
        ("cuda:0", "CPUExecutionProvider", False),
        ("cpu", "OpenVINO CPU", True),
        ("cpu", "CUDAExecutionProvider", False),
        ("auto", "CUDAExecutionProvider", True),
    ],
)
def test_what_was_asked_and_what_was_got_stand_beside_each_other(asked: str, provider: str, is_as_asked: bool) -> None:
    got = SimpleNamespace(asked=asked, provider=provider, precision="f32", subnetwork="dit")
    session = SimpleNamespace(engine_reports={"dit": got}, package=SimpleNamespace(digest="d"))
    (engine,) = first_line("paced", session=session, compute="auto", settings={}, environment={}).engines
    assert (engine["provider_asked"] in ("", engine["provider"])) is is_as_asked
    assert engine["precision_asked"] == ""


def test_precision_is_asked_of_the_transformer_and_the_vae() -> None:
    got = {
        name: SimpleNamespace(asked="cpu", provider="OpenVINO CPU", precision="bf16", subnetwork=name)
        for name in ("dit", "finish")
    }
    session = SimpleNamespace(engine_reports=got, package=SimpleNamespace(digest="d"))
    engines = first_line("paced", session=session, compute="f32", settings={}, environment={}).engines
    assert [engine["precision_asked"] for engine in engines] == ["f32", ""]
