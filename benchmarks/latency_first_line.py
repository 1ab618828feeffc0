# SPDX-License-Identifier: Apache-2.0
"""The first line of a trace: what was asked of every engine, and what was got."""

from typing import Any

from .latency_recorder import FPS
from .latency_trace import Run


def first_line(scenario: str, *, session: Any, compute: str, **fields: Any) -> Run:
    """Return the first line of a trace of a session whose engines are open.

    Args:
        scenario: what is measured.
        session: whose `engine_reports` say what was asked and what was got.
        compute: precision that was asked for; `auto` asks for none.
        fields: of `Run`.
    """
    return Run(
        scenario,
        fps=FPS,
        engines=[_engine(graph, got, compute) for graph, got in sorted(session.engine_reports.items())],
        package_digest=session.package.digest,
        **fields,
    )


def _engine(graph: str, got: Any, compute: str) -> dict[str, str]:
    """Return one entry of `Run.engines`; precision is asked of the transformer and the VAE alone."""
    chosen = compute != "auto" and got.subnetwork in ("dit", "vae_encoder", "vae_decoder")
    return {
        "graph": graph,
        "provider_asked": _provider_of(got.asked, got.provider),
        "provider": got.provider,
        "precision_asked": compute if chosen else "",
        "precision": got.precision,
    }


def _provider_of(device: str, got: str) -> str:
    """Return what the library of a device calls it; `got` where another would do as well and has the same kind."""
    library, _, place = device.partition(":")
    known = {"openvino": f"OpenVINO {place}", "onnxruntime": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    if library in known:
        return known[library]
    return "" if device == "auto" else got if "CPU" in got else "CPU"
