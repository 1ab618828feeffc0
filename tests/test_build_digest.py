# SPDX-License-Identifier: Apache-2.0
"""Two builds of one version can be told apart, and one build is the same wherever it is installed."""

import hashlib
import shutil
from pathlib import Path

import pytest

from edgereels.benchmarks.build_digest import ROOMS, build_digest


@pytest.fixture
def rooms(tmp_path: Path) -> list[Path]:
    for name, content in {"runtime/b.py": b"1\r\n", "runtime/inner/a.py": b"2\n", "benchmarks/c.py": b"3\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return [tmp_path / "runtime", tmp_path / "benchmarks"]


def test_a_build_is_the_digest_of_names_and_bytes_in_order(rooms: list[Path]) -> None:
    hashed = b"benchmarks/c.py\x003\n\0runtime/b.py\x001\r\n\0runtime/inner/a.py\x002\n\0"
    assert build_digest(rooms) == hashlib.sha256(hashed).hexdigest()[:12]
    (rooms[0] / "b.pyc").write_bytes(b"compiled")
    assert build_digest(rooms[::-1]) == build_digest(rooms)


@pytest.mark.parametrize("change", ["a byte", "a line's ending", "a name", "a file"])
def test_any_other_file_is_another_build(change: str, rooms: list[Path], tmp_path: Path) -> None:
    before, path = build_digest(rooms), rooms[0] / "b.py"
    match change:
        case "a byte":
            path.write_bytes(b"2\r\n")
        case "a line's ending":
            path.write_bytes(b"1\n")
        case "a name":
            path.rename(rooms[0] / "d.py")
        case _:
            (rooms[1] / "new.py").touch()
    assert build_digest(rooms) != before


def test_what_is_hashed_is_what_runs(tmp_path: Path) -> None:
    assert [room.name for room in ROOMS] == ["runtime", "benchmarks"]
    elsewhere = [Path(shutil.copytree(room, tmp_path / room.name, ignore=_all_but_code)) for room in ROOMS]
    assert build_digest(elsewhere) == build_digest() and len(build_digest()) == 12


def _all_but_code(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_file() and not name.endswith(".py")]
