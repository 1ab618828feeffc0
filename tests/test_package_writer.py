# SPDX-License-Identifier: Apache-2.0
"""A package appears whole under its name, or not at all; a killed run is taken up again."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgereels.runtime.errors import PackageError
from edgereels.runtime.model_package import ModelPackage
from edgereels.runtime.package_writer import PackageWriter

from .package_examples import LOCATION, WEIGHTS, add_dit, add_rest, manifest_fields, write_package

CHECKOUT = Path(__file__).parents[1]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write_with_parts(target: Path, *, force: bool = False, key: str = "k1") -> list[str]:
    """Write the example in two parts, as export does; return the parts that had to be made."""
    made: list[str] = []
    with PackageWriter(target, force=force) as writer:
        for part, add in (("dit", add_dit), ("finish", add_rest)):
            if writer.resume(part, key=key) is None:
                made.append(part)
                add(writer)
                writer.complete(part, key=key, record={"made": part})
        writer.finish(manifest_fields())
    return made


def kill_after(target: Path, part: str) -> None:
    """Run the same in another process that kills itself (SIGKILL) after one part and half of the next."""
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(CHECKOUT)!r})
from tests.package_examples import add_dit
from edgereels.runtime.package_writer import PackageWriter

def half():
    yield b"half of the weights"
    os.kill(os.getpid(), signal.SIGKILL)

with PackageWriter(Path({str(target)!r})) as writer:
    if {part!r} == "dit":
        add_dit(writer)
        writer.complete("dit", key="k1", record={{"made": "earlier"}})
    writer.add_file("half.onnx", b"half")
    writer.add_weights(half())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that was killed after its first part; not to be changed."""
    folder = tmp_path_factory.mktemp("killed")
    kill_after(folder / "tiny", "dit")
    assert names(folder) == {"tiny.partial"}
    return folder / "tiny.partial"


@pytest.fixture
def killed(killed_run: Path, tmp_path: Path) -> Path:
    """A target with such a run beside it."""
    shutil.copytree(killed_run, tmp_path / "tiny.partial")
    return tmp_path / "tiny"


def test_a_finished_package_is_all_that_is_left(tmp_path: Path) -> None:
    package = write_package(tmp_path / "tiny.edgereels")
    assert names(tmp_path) == {"tiny.edgereels"}
    assert ModelPackage.open(tmp_path / "tiny.edgereels").digest == package.digest


def test_the_same_content_gives_the_same_digest(tmp_path: Path) -> None:
    assert write_package(tmp_path / "a").digest == write_package(tmp_path / "b").digest


def test_the_same_weights_are_stored_once(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "tiny") as writer:
        first = writer.add_weights([WEIGHTS])
        (writer.scratch / "copy.bin").write_bytes(WEIGHTS.tobytes())
        assert writer.add_weights(writer.scratch / "copy.bin") == first == LOCATION
        assert names(writer.folder / "weights") == {LOCATION.removeprefix("weights/")}
        assert (writer.folder / first).read_bytes() == WEIGHTS.tobytes()


def test_pieces_of_weights_may_be_arrays_of_any_layout(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "tiny") as writer:
        name = writer.add_weights([WEIGHTS.T, np.float16(2.0).reshape(()), memoryview(b"end"), np.zeros((0, 3))])
        assert (writer.folder / name).read_bytes() == WEIGHTS.T.tobytes() + np.float16(2.0).tobytes() + b"end"


# ── Errors and kills ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), PackageWriter(tmp_path / "tiny") as writer:
        add_dit(writer)
        writer.complete("dit", key="k1", record={})
        raise RuntimeError("parity was missed")
    assert names(tmp_path) == set()


def test_a_package_that_would_not_open_is_not_published(tmp_path: Path) -> None:
    fields = manifest_fields()
    fields["graphs"]["finish"]["inputs"][0]["dtype"] = "int64"
    with pytest.raises(PackageError) as caught, PackageWriter(tmp_path / "tiny") as writer:
        add_dit(writer)
        add_rest(writer)
        writer.finish(fields)
    assert caught.value.code == "ends"
    assert str(caught.value).startswith("tiny/finish.onnx: ")
    assert names(tmp_path) == set()


def test_an_interruption_leaves_what_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), PackageWriter(tmp_path / "tiny") as writer:
        add_dit(writer)
        writer.complete("dit", key="k1", record={})
        raise KeyboardInterrupt
    assert names(tmp_path) == {"tiny.partial"}
    assert write_with_parts(tmp_path / "tiny") == ["finish"]


def test_a_killed_run_leaves_no_package_and_the_next_one_completes_it(killed: Path) -> None:
    assert names(killed.parent) == {"tiny.partial"}
    assert write_with_parts(killed) == ["finish"]
    assert names(killed.parent) == {"tiny"}
    assert ModelPackage.open(killed).digest == write_package(killed.parent / "other").digest


def test_a_run_that_was_killed_before_its_first_part_starts_again(tmp_path: Path) -> None:
    kill_after(tmp_path / "tiny", "none")
    assert write_with_parts(tmp_path / "tiny") == ["dit", "finish"]


def test_a_resumed_part_gives_its_record_back(killed: Path) -> None:
    with PackageWriter(killed) as writer:
        assert writer.resume("dit", key="k1") == {"made": "earlier"}
        assert writer.resume("finish", key="k1") is None


def test_a_part_made_from_other_input_is_made_again(killed: Path) -> None:
    assert write_with_parts(killed, key="k2") == ["dit", "finish"]


def test_a_part_that_is_not_asked_for_again_leaves_no_files(killed: Path) -> None:
    fields = manifest_fields()
    fields.update(graphs={"finish": fields["graphs"]["finish"]}, dit=None, tables=None)
    fields["golden"] = {"finish": fields["golden"]["finish"]}
    with PackageWriter(killed) as writer:
        writer.add_weights([WEIGHTS])
        add_rest(writer)
        package = writer.finish(fields)
    assert not any("dit_block" in name for name in package.manifest.files)


def test_a_part_whose_file_was_damaged_is_made_again(killed: Path) -> None:
    (killed.with_name("tiny.partial") / "package" / LOCATION).write_bytes(b"short")
    assert write_with_parts(killed) == ["dit", "finish"]


def test_a_run_killed_while_it_finishes_is_taken_up_again(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: PackageWriter) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PackageWriter, "_publish", interrupt)
        write_with_parts(killed)
    assert names(killed.parent) == {"tiny.partial"}
    assert write_with_parts(killed) == []
    ModelPackage.open(killed)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 9}', '{"version": 1, "parts": {"dit": 3}}'])
def test_progress_that_can_not_be_read_is_ignored(killed: Path, text: str) -> None:
    (killed.with_name("tiny.partial") / "progress.json").write_text(text)
    assert write_with_parts(killed) == ["dit", "finish"]


def test_a_package_taken_away_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    """Killed between the two renames of --force: the old one is aside, the new one not yet in its place."""
    write_package(tmp_path / "tiny")
    (tmp_path / "tiny.partial").mkdir()
    (tmp_path / "tiny").rename(tmp_path / "tiny.partial" / "replaced")
    with pytest.raises(PackageError, match="exists; --force replaces it"), PackageWriter(tmp_path / "tiny"):
        pass
    ModelPackage.open(tmp_path / "tiny")


# ── Targets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_package_that_exists_is_kept_without_force(tmp_path: Path) -> None:
    digest = write_package(tmp_path / "tiny").digest
    with pytest.raises(PackageError, match="exists; --force replaces it"):
        write_with_parts(tmp_path / "tiny")
    assert ModelPackage.open(tmp_path / "tiny").digest == digest


def test_force_replaces_a_package(tmp_path: Path) -> None:
    before = write_package(tmp_path / "tiny").digest
    with PackageWriter(tmp_path / "tiny", force=True) as writer:
        add_dit(writer)
        add_rest(writer)
        writer.finish({**manifest_fields(), "name": "other"})
    assert ModelPackage.open(tmp_path / "tiny").digest != before
    assert names(tmp_path) == {"tiny"}


def test_force_and_an_error_keep_the_package_that_was_there(tmp_path: Path) -> None:
    digest = write_package(tmp_path / "tiny").digest
    with pytest.raises(RuntimeError), PackageWriter(tmp_path / "tiny", force=True):
        raise RuntimeError("parity was missed")
    assert ModelPackage.open(tmp_path / "tiny").digest == digest


def test_force_does_not_remove_a_folder_that_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"mine")
    write_with_parts(tmp_path / "photos", force=True)
    assert (tmp_path / "photos.old" / "holiday.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("place", ["inside", "weights/inside", "link/inside"])
def test_a_package_is_not_written_into_another(place: str, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    write_with_parts(outer)
    (outer / "weights").mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(outer)
    target = (tmp_path if place.startswith("link") else outer) / place
    with pytest.raises(PackageError, match=r"lies in the package .*outer, which holds"), PackageWriter(target):
        pytest.fail("it was opened")


def test_another_kind_of_manifest_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    write_with_parts(tmp_path / "mine")
    assert (tmp_path / "mine" / "manifest.json").is_file()


def make_file(target: Path) -> None:
    target.write_bytes(b"mine")


def make_link(target: Path) -> None:
    (target.parent / "elsewhere").mkdir()
    target.symlink_to(target.parent / "elsewhere")


@pytest.mark.parametrize("make", [make_file, make_link], ids=["file", "link"])
def test_a_target_that_is_no_folder_is_refused_even_with_force(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "tiny")
    before = names(tmp_path)
    with pytest.raises(PackageError, match="is not a folder"), PackageWriter(tmp_path / "tiny", force=True):
        pass
    assert names(tmp_path) == before


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    message = "can not be written: No space left on device"
    with pytest.raises(PackageError, match=message), PackageWriter(tmp_path / "tiny") as writer:
        add_dit(writer)
        monkeypatch.setattr(Path, "write_bytes", full)
        add_rest(writer)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("target", ["", ".", "..", "/"])
def test_a_target_without_a_name_is_refused(target: str) -> None:
    with pytest.raises(PackageError, match="name of its own"):
        PackageWriter(target)


def test_parent_folders_are_not_created(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="does not exist; create it first"):
        write_with_parts(tmp_path / "missing" / "tiny")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["../outside", "/outside", "a b", "con.txt"])
def test_a_name_that_no_package_may_hold_is_refused(tmp_path: Path, name: str) -> None:
    with PackageWriter(tmp_path / "tiny") as writer, pytest.raises(PackageError, match="is not allowed"):
        writer.add_file(name, b"x")


def test_the_manifest_lists_every_file_with_its_digest(tmp_path: Path) -> None:
    write_package(tmp_path / "tiny")
    files = json.loads((tmp_path / "tiny" / "manifest.json").read_bytes())["files"]
    present = {
        path.relative_to(tmp_path / "tiny").as_posix() for path in (tmp_path / "tiny").rglob("*") if path.is_file()
    }
    assert set(files) == present - {"manifest.json"}
    assert files[LOCATION] == {"size_bytes": 64, "sha256": LOCATION.removeprefix("weights/").removesuffix(".bin")}


def test_what_was_made_from_another_input_leaves_no_files(killed: Path) -> None:
    with PackageWriter(killed) as writer:
        assert writer.resume("dit", key="another") is None
        writer.add_weights([b"other weights"])
        writer.complete("dit", key="another", record={})
        assert len(list((writer.folder / "weights").iterdir())) == 1
