# SPDX-License-Identifier: Apache-2.0
"""The vocabulary: what the runtime reports is taken over whole, and every field says what it is."""

import ast
from pathlib import Path

import edgereels.benchmarks.latency_trace as vocabulary
from edgereels.benchmarks.latency_trace import KINDS, Event


def test_what_the_runtime_reported_is_taken_over() -> None:
    event = Event.of({"event": "state", "code": "DEGRADED", "at_s": 3.5, "from": "STREAMING"})
    assert event == Event("state", "DEGRADED", 3.5, {"from": "STREAMING"})


def test_every_field_has_its_own_sentence() -> None:
    tree = ast.parse(Path(vocabulary.__file__).read_text(encoding="utf-8"))
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        body = kind.body[1:]
        for field, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{kind.name}.{ast.unparse(field.target)}"


def test_no_kind_has_a_field_named_event_which_is_the_kind_itself() -> None:
    assert not [name for name, kind in KINDS.items() if "event" in kind.__dataclass_fields__]
