# SPDX-License-Identifier: Apache-2.0
"""A trace is read back as it was written, or not at all."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edgereels.benchmarks.latency_trace import Frame, Memory
from edgereels.benchmarks.latency_trace_file import TraceWriter, encode, read_trace
from edgereels.runtime import VerificationError

from .latency_traces import RUN, lines_of, write

LINES = lines_of([0.3] * 4)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "trace.jsonl", LINES)


def test_what_was_written_is_read_back(trace: Path) -> None:
    found = read_trace(trace)
    assert found.run == RUN
    assert sum(len(lines) for lines in found.lines.values()) == len(LINES)
    assert found.memory == [line for line in LINES if isinstance(line, Memory)]
    assert len(found.frames) == 80
    assert not trace.with_name("trace.jsonl.partial").exists()


def test_times_keep_a_tenth_of_a_microsecond() -> None:
    assert json.loads(encode(Frame(1 / 3, 0.0, None, "held")))["media_s"] == 0.3333333


def without(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: lines[:number] + lines[number + 1 :]


def replaced(old: str, new: str) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        changed = b"".join(lines).decode().replace(old, new, 1)
        assert changed.encode() != b"".join(lines)
        return changed.encode().splitlines(keepends=True)

    return change


DAMAGE = {
    "one line removed": (without(5), "its last line counts"),
    "the last line removed": (lambda lines: lines[:-1], "no last line of kind end"),
    "the first line removed": (without(0), "its last line counts"),
    "two lines swapped": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "was changed"),
    "one figure changed": (replaced('"arrived_s":0.04,', '"arrived_s":0.05,'), "was changed"),
    "an unknown kind": (replaced('"event":"memory"', '"event":"memories"'), "not one of the kinds"),
    "a missing field": (replaced('"samples":320,', ""), "missing or unknown fields of sound_block: samples"),
    "an unknown field": (replaced('"samples":320,', '"samples":320,"more":1,'), "more"),
    "a text for a number": (replaced('"samples":320', '"samples":"320"'), "which is no"),
    "a truth for a number": (replaced('"samples":320', '"samples":true'), "which is no"),
    "NaN": (replaced('"arrived_s":0.04,', '"arrived_s":NaN,'), "NaN is no number"),
    "half a line": (lambda lines: [*lines[:-1], lines[-1][:20]], "one JSON object"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_trace_is_refused(name: str, trace: Path) -> None:
    damage, message = DAMAGE[name]
    trace.write_bytes(b"".join(damage(trace.read_bytes().splitlines(keepends=True))))
    with pytest.raises(VerificationError, match=re.escape(message)):
        read_trace(trace)


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").touch()
    with pytest.raises(VerificationError, match="is empty"):
        read_trace(tmp_path / "t")


def test_a_run_that_fails_leaves_its_trace_aside(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with pytest.raises(RuntimeError, match="the stream broke"), TraceWriter(path, RUN) as writer:
        writer.write(LINES[0])
        raise RuntimeError("the stream broke")
    assert not path.exists()
    assert len(path.with_name("trace.jsonl.partial").read_bytes().splitlines()) == 2


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(Memory(float("nan"), 1))
