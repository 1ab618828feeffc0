# SPDX-License-Identifier: Apache-2.0
"""Compiled graphs on disk: what was damaged, cut off or put there by somebody else is never handed on."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgereels.runtime import engine_openvino_cache as compile_cache
from edgereels.runtime.engine_openvino_cache import (
    HEADER_BYTES,
    CompileCache,
    cache_folder,
    compile_key,
    make_private,
    open_cache,
)

KEY, OTHER_KEY = "a" * 64, "b" * 64
BLOB = bytes(range(256)) * 16

posix_only = pytest.mark.skipif(os.name != "posix", reason="owners and rights as on Unix")


class Events(list[dict[str, Any]]):
    """Keeps what it is told."""

    def __call__(self, code: str, /, **fields: Any) -> None:
        self.append({"code": code, **fields})


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    """A cache that holds one graph."""
    make_private(tmp_path / "graphs")
    cache = CompileCache(tmp_path / "graphs")
    assert cache.store(KEY, BLOB)
    return cache


def file_of(cache: CompileCache, key: str = KEY) -> Path:
    return cache.folder / f"{key}.graph"


def test_what_was_stored_comes_back(cache: CompileCache, events: Events) -> None:
    loaded = cache.load(KEY, on_event=events)
    assert loaded is not None
    assert loaded.tobytes() == BLOB
    assert loaded.ctypes.data % 64 == 0, "kernels read it where it lies"
    assert cache.load(OTHER_KEY, on_event=events) is None
    assert not events


def flipped(data: bytes) -> bytes:
    middle = HEADER_BYTES + len(BLOB) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:HEADER_BYTES],
        lambda data: data[: HEADER_BYTES // 2],
        lambda data: b"",
        lambda data: data.replace(b"graph 1", b"graph 2", 1),
        lambda data: data.replace(KEY.encode(), OTHER_KEY.encode(), 1),
    ],
    ids=["flipped bit", "cut", "longer", "header only", "half a header", "empty", "another format", "another graph"],
)
def test_what_was_damaged_is_discarded_and_said(damage: Any, cache: CompileCache, events: Events) -> None:
    file_of(cache).write_bytes(damage(file_of(cache).read_bytes()))
    assert cache.load(KEY, on_event=events) is None
    assert [event["code"] for event in events] == ["cache_rejected"]
    assert not cache.has(KEY), "the next compilation takes its place"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the files whose digest was compared."""
    keys: list[str] = []
    compare = compile_cache._fault

    def counted(mapped: compile_cache.Bytes, key: str) -> str:
        keys.append(key)
        return compare(mapped, key)

    monkeypatch.setattr(compile_cache, "_fault", counted)
    return keys


def test_a_file_is_hashed_once_in_a_process(cache: CompileCache, events: Events, hashed: list[str]) -> None:
    for _again in range(3):
        loaded = CompileCache(cache.folder).load(KEY, on_event=events)  # every engine opens the cache anew
        assert loaded is not None and loaded.tobytes() == BLOB
    assert hashed == [KEY]


@pytest.mark.parametrize("how", ["written to", "replaced", "touched"])
def test_a_file_that_was_written_to_is_hashed_again(
    how: str, cache: CompileCache, events: Events, hashed: list[str]
) -> None:
    """Negative control: what was verified a moment ago is not trusted for its name and size."""
    assert cache.load(KEY, on_event=events) is not None
    file = file_of(cache)
    if how == "touched":
        file.touch()
    else:
        place = file if how == "written to" else file.with_suffix(".new")
        place.write_bytes(flipped(file.read_bytes()))
        place.chmod(0o600)
        place.replace(file)
    assert (cache.load(KEY, on_event=events) is None) == (how != "touched")
    assert hashed == [KEY, KEY]


@posix_only
def test_a_file_of_another_user_is_discarded(
    cache: CompileCache, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert cache.load(KEY, on_event=events) is None
    assert "belongs to the user" in events[0]["reason"]


@posix_only
def test_a_file_that_others_may_write_is_discarded(cache: CompileCache, events: Events) -> None:
    file_of(cache).chmod(0o666)
    assert cache.load(KEY, on_event=events) is None
    assert "others may write" in events[0]["reason"]


@posix_only
def test_a_link_is_not_followed(cache: CompileCache, events: Events) -> None:
    file_of(cache).rename(cache.folder / "elsewhere")
    file_of(cache).symlink_to(cache.folder / "elsewhere")
    assert cache.load(KEY, on_event=events) is None
    assert [event["code"] for event in events] == ["cache_rejected"]
    assert (cache.folder / "elsewhere").exists()


@posix_only
def test_the_folder_is_private(tmp_path: Path, events: Events) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    for name in ("open", "new"):
        opened = open_cache(tmp_path / name, on_event=events)
        assert opened.folder == tmp_path / name
        assert opened.folder.stat().st_mode & 0o777 == 0o700
    assert not events


@posix_only
def test_a_folder_of_another_user_is_not_used(tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    opened = open_cache(tmp_path / "theirs", on_event=events)
    assert opened.folder != tmp_path / "theirs"
    assert "belongs to the user" in events[0]["reason"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_where_no_folder_can_be_made_another_serves_this_process(
    place: str, tmp_path: Path, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    """Every engine says so in an event, and one line is for people."""
    (tmp_path / "file").write_bytes(b"")
    opened = [open_cache(tmp_path / place, on_event=events) for _ in range(3)]
    assert [event["code"] for event in events] == ["cache_unusable"] * 3
    assert len(caplog.records) == 1
    assert len({each.folder for each in opened}) == 1
    assert opened[0].folder.stat().st_mode & 0o777 == 0o700 or os.name != "posix"
    assert opened[0].store(KEY, BLOB)


def test_what_serves_one_process_is_gone_after_it(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from edgereels.runtime.engine_openvino_cache import open_cache; "
        f"print(open_cache(Path({str(tmp_path / 'file')!r}), on_event=lambda code, **fields: None).folder)"
    )
    (tmp_path / "file").write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edgereels-" in done.stdout
    assert not Path(done.stdout.strip()).exists()


def test_a_full_disk_keeps_nothing_and_leaves_nothing(cache: CompileCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not cache.store(OTHER_KEY, BLOB)
    assert [path.name for path in cache.folder.iterdir()] == [file_of(cache).name]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, events: Events) -> None:
    make_private(tmp_path / "graphs")
    room_for_three = CompileCache(tmp_path / "graphs", limit_bytes=3 * (len(BLOB) + HEADER_BYTES))
    long_ago_s = time.time() - 1000
    for age, key in enumerate(("1", "2", "3")):
        assert room_for_three.store(key, BLOB)
        os.utime(file_of(room_for_three, key), (long_ago_s + age, long_ago_s + age))
    room_for_three.load("1", on_event=events)  # used: now the youngest
    assert room_for_three.store("4", BLOB)
    assert {key for key in "1234" if room_for_three.has(key)} == {"1", "3", "4"}


def test_a_graph_that_would_fill_the_cache_is_not_kept(cache: CompileCache) -> None:
    small = CompileCache(cache.folder, limit_bytes=len(BLOB))
    assert not small.store(OTHER_KEY, BLOB)
    assert small.has(KEY)


def test_what_a_killed_process_left_is_swept_later(cache: CompileCache) -> None:
    for name, age_s in (("old.partial", 7200), ("new.partial", 0)):
        (cache.folder / name).write_bytes(b"half")
        os.utime(cache.folder / name, (time.time() - age_s,) * 2)
    cache.store(OTHER_KEY, BLOB)
    assert {path.name for path in cache.folder.glob("*.partial")} == {"new.partial"}


def _store_again_and_again(folder: Path) -> None:
    for _ in range(50):
        assert CompileCache(folder).store(KEY, BLOB)


def test_processes_that_store_the_same_graph_never_show_half_of_it(cache: CompileCache, events: Events) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_store_again_and_again, args=(cache.folder,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        loaded = cache.load(KEY, on_event=events)
        assert loaded is not None
        assert loaded.tobytes() == BLOB
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert not events


def test_a_crash_is_remembered_until_its_file_is_deleted(cache: CompileCache) -> None:
    assert cache.crash(OTHER_KEY) is None
    made = cache.remember_crash(OTHER_KEY, graph="dit.onnx", signal="SIGSEGV")
    assert cache.crash(OTHER_KEY) == made
    made.path.unlink()
    assert cache.crash(OTHER_KEY) is None


def test_a_crash_file_that_cannot_be_read_is_no_crash(cache: CompileCache) -> None:
    for junk in (b"", b"[]", b'{"graph": "x"}', b"\xff"):
        (cache.folder / f"{OTHER_KEY}.crash").write_bytes(junk)
        assert cache.crash(OTHER_KEY) is None


@pytest.mark.parametrize(
    "changed",
    [{"graph": "y"}, {"shapes": [["x", [2, 3]]]}, {"threads": 2}, {"precision": "bf16"}, {"device": {"openvino": "2"}}],
    ids=lambda changed: next(iter(changed)),
)
def test_everything_that_goes_in_changes_the_name(changed: dict[str, Any]) -> None:
    parts = {"graph": "x", "shapes": [["x", [1, 3]]], "threads": 1, "precision": "f32", "device": {"openvino": "1"}}
    assert compile_key(parts) == compile_key(dict(reversed(parts.items())))
    assert compile_key(parts) != compile_key({**parts, **changed})


@pytest.mark.parametrize(
    ("environment", "platform", "folder"),
    [
        ({}, "linux", "HOME/.cache/edgereels/openvino"),
        ({"XDG_CACHE_HOME": "ROOT/caches"}, "linux", "ROOT/caches/edgereels/openvino"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", "HOME/.cache/edgereels/openvino"),
        ({"LOCALAPPDATA": "ROOT/local"}, "win32", "ROOT/local/edgereels/openvino"),
        ({"XDG_CACHE_HOME": "ROOT/caches"}, "darwin", "HOME/Library/Caches/edgereels/openvino"),
        ({"EDGEREELS_CACHE": "ROOT/mine", "XDG_CACHE_HOME": "ROOT/caches"}, "linux", "ROOT/mine"),
    ],
    ids=["home", "xdg", "relative xdg is ignored", "windows", "macos", "ours first"],
)
def test_the_folder_is_where_the_system_keeps_caches(
    environment: dict[str, str], platform: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    filled = {name: value.replace("ROOT", str(tmp_path)) for name, value in environment.items()}
    expected = folder.replace("ROOT", str(tmp_path)).replace("HOME", str(tmp_path / "home"))
    assert str(cache_folder(filled, platform=platform)) == expected


def test_without_a_home_there_is_a_temporary_cache(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compile_cache, "cache_folder", homeless)
    assert open_cache(None, on_event=events).folder.is_dir()
    assert "home" in events[0]["reason"]
