# SPDX-License-Identifier: Apache-2.0
"""What a recipe covers in a package, and how much smaller it became."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..runtime.manifest import LIBRARIES
from .layers import StoredTensor
from .plan import Plan
from .stored_weights import Slot


@dataclass(frozen=True)
class Coverage:
    """What a form covers in a subnetwork."""

    subnetwork: str
    """Which."""
    form: str
    """On every engine, or "onnxruntime's / openvino's" where they differ."""
    layers: int
    """How many parameters are stored so."""
    parameters: int
    """Values in them."""
    fp32_bytes: int
    """What they would take as float32."""
    size_bytes: int
    """What they take, scales included."""

    @property
    def ratio(self) -> float:
        """New size over float32 size."""
        return self.size_bytes / self.fp32_bytes


def coverage_of(plan: Plan, slots: Sequence[Slot]) -> tuple[Coverage, ...]:
    """Return what is stored in fewer bits, by subnetwork and form."""
    sizes: dict[StoredTensor, int] = {}
    for slot in slots:
        sizes[slot.stored] = sizes.get(slot.stored, 0) + slot.size_bytes
    rows: dict[tuple[str, str], set[StoredTensor]] = {}
    seen: set[StoredTensor] = set()
    for graph in plan.graphs:
        for choices in zip(*(graph.decided[library] for library in LIBRARIES), strict=True):
            forms = dict.fromkeys(choice.rule.form for choice in choices)
            stored = choices[0].layer.stored
            if stored not in seen and any(form != "keep" for form in forms):
                seen.add(stored)
                rows.setdefault((graph.source.subnetwork, " / ".join(forms)), set()).add(stored)
    return tuple(
        Coverage(
            subnetwork=subnetwork,
            form=form,
            layers=len(tensors),
            parameters=sum(stored.elements for stored in tensors),
            fp32_bytes=4 * sum(stored.elements for stored in tensors),
            size_bytes=sum(sizes[stored] for stored in tensors),
        )
        for (subnetwork, form), tensors in rows.items()
    )
