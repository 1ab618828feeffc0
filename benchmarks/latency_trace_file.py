# SPDX-License-Identifier: Apache-2.0
"""trace.jsonl: written line by line while a stream runs, read back strictly.

A line of unknown kind, a missing or unknown field, a value of the wrong type, NaN, a count or a digest that doesn't
fit: each is refused, for a figure that can't be recomputed is no figure.
"""

import hashlib
import json
import os
import threading
from collections import Counter
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import TracebackType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from ..runtime import VerificationError
from .latency_trace import (
    FORMAT,
    KINDS,
    Chunk,
    Contention,
    End,
    Energy,
    Event,
    Frame,
    Line,
    Memory,
    Run,
    SoundBlock,
    SoundOut,
    Turn,
)

DECIMALS = 7
"""Of seconds in the file: a tenth of a microsecond."""
NAMES = {kind: name for name, kind in KINDS.items()}
ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
T = TypeVar("T")


@dataclass
class Recorded:
    """A whole trace; lists are in the order of the file."""

    run: Run
    """What was asked."""
    sha256: str = ""
    """Of all bytes before the last line."""
    lines: dict[type[Any], list[Any]] = field(default_factory=dict[type[Any], list[Any]])
    """By kind; `of` reads it."""

    def of(self, kind: type[T]) -> list[T]:
        """Return the lines of a kind."""
        return self.lines.get(kind, [])

    @property
    def sound_blocks(self) -> list[SoundBlock]:
        """Sound that came in."""
        return self.of(SoundBlock)

    @property
    def chunks(self) -> list[Chunk]:
        """Chunks that were made, warm-up included."""
        return self.of(Chunk)

    @property
    def frames(self) -> list[Frame]:
        """Frames that were due."""
        return self.of(Frame)

    @property
    def sound_out(self) -> list[SoundOut]:
        """Sound that was heard."""
        return self.of(SoundOut)

    @property
    def turns(self) -> list[Turn]:
        """First frames."""
        return self.of(Turn)

    @property
    def memory(self) -> list[Memory]:
        """Samples of memory."""
        return self.of(Memory)

    @property
    def contention(self) -> list[Contention]:
        """Samples of what else ran."""
        return self.of(Contention)

    @property
    def energy(self) -> list[Energy]:
        """What it took."""
        return self.of(Energy)

    @property
    def events(self) -> list[Event]:
        """What the runtime reported."""
        return self.of(Event)


class TraceWriter:
    """A trace that is being written, from any thread; `NAME.partial` until the block ends without an error."""

    def __init__(self, path: Path, run: Run) -> None:
        self._path, self._aside = path, path.with_name(path.name + ".partial")
        self._file = self._aside.open("wb")
        self._digest = hashlib.sha256()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.write(run)

    def write(self, line: Line) -> None:
        """Append a line."""
        with self._lock:
            encoded = encode(line)
            self._file.write(encoded)
            self._digest.update(encoded)
            self._counts[NAMES[type(line)]] += 1

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Seal and rename; after an error what there is stays under `NAME.partial`, unsealed."""
        with self._lock, self._file as file:
            if kind is not None:
                return
            file.write(encode(End(dict(self._counts), self._digest.hexdigest())))
            file.flush()
            os.fsync(file.fileno())
        self._aside.replace(self._path)


def encode(line: Line | End) -> bytes:
    """Return a line as it stands in the file.

    Raises:
        ValueError: A number isn't finite.
    """
    content = {"event": NAMES[type(line)], **_rounded(vars(line))}
    return ENCODER.encode(content).encode() + b"\n"


def _rounded(value: Any) -> Any:
    if type(value) is float:
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_trace(path: Path) -> Recorded:
    """Read a trace.

    Raises:
        VerificationError: Not a whole, unchanged trace; the message names the line.
    """
    raw = path.read_bytes().splitlines(keepends=True)
    if not raw:
        raise VerificationError(f"{path} is empty; a trace begins with a line of kind run")
    lines = [_decode(line, path, number) for number, line in enumerate(raw, start=1)]
    end = lines.pop()
    if not isinstance(end, End):
        raise VerificationError(f"{path} has no last line of kind end: it is still written, or was cut off")
    counts = Counter(NAMES[type(line)] for line in lines)
    if counts != Counter(end.counts):
        raise VerificationError(f"{path} holds {dict(counts)}; its last line counts {end.counts}")
    if (sha256 := hashlib.sha256(b"".join(raw[:-1])).hexdigest()) != end.sha256:
        raise VerificationError(f"{path} was changed: its SHA-256 is {sha256}, its last line says {end.sha256}")
    return _recorded(lines, path, sha256=end.sha256)


def _recorded(lines: list[Any], path: Path, *, sha256: str) -> Recorded:
    run = lines[0] if lines else None
    if not isinstance(run, Run) or run.format != FORMAT:
        raise VerificationError(f"{path} doesn't begin with a line of kind run in the format {FORMAT}")
    recorded = Recorded(run, sha256)
    for line in lines[1:]:
        recorded.lines.setdefault(type(line), []).append(line)
    if recorded.of(Run) or recorded.of(End):
        raise VerificationError(f"{path} holds more than one line of kind run or end; a trace is one run")
    return recorded


def _decode(raw: bytes, path: Path, number: int) -> Any:
    where = f"{path}, line {number}"
    try:
        content = DECODER.decode(raw.decode())
    except ValueError as error:
        raise VerificationError(f"{where}: {error}; a line is one JSON object") from error
    kind = KINDS.get(content.pop("event", "")) if isinstance(content, dict) else None
    if kind is None:
        raise VerificationError(f"{where}: not one of the kinds {', '.join(KINDS)}")
    wanted = _types(kind)
    if content.keys() != wanted.keys():
        odd = ", ".join(sorted(content.keys() ^ wanted.keys()))
        raise VerificationError(f"{where}: missing or unknown fields of {NAMES[kind]}: {odd}")
    for name, value in content.items():
        if type(value) is not wanted[name] and not _fits(value, wanted[name]):
            raise VerificationError(f"{where}: {name} is {value!r}, which is no {wanted[name]}")
    return kind(**content)


@cache
def _types(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is float or wanted is int:
        return type(value) is int or type(value) is wanted
    if isinstance(wanted, UnionType):
        return any(_fits(value, one) for one in get_args(wanted))
    if isinstance(value, dict | list) and get_origin(wanted) is type(value):
        held = value.values() if isinstance(value, dict) else value
        return all(_fits(one, get_args(wanted)[-1]) for one in held)
    return wanted is Any or (isinstance(wanted, type) and isinstance(value, wanted))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


DECODER = json.JSONDecoder(parse_constant=_no_constant)
