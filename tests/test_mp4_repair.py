# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from edgereels.runtime.errors import MediaError
from edgereels.runtime.mp4_repair import repair

from .test_recording import media, recording
from .test_sinks import read_frame_count


@pytest.fixture(scope="module")
def fragments(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Three fragments, as they are on the disk in the middle of a recording."""
    folder = tmp_path_factory.mktemp("fragments")
    with recording(folder / "v.mp4") as sink:
        sink.write(media(85))
        return (folder / "v.mp4.partial").read_bytes()


@pytest.mark.parametrize("cut_bytes", [0, 1, 200, 5000])
def test_repair_cuts_behind_the_last_whole_fragment(cut_bytes: int, fragments: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(fragments[: len(fragments) - cut_bytes])
    done = repair(path)
    assert done.fragments == (3 if cut_bytes == 0 else 2)
    assert done.kept_bytes == path.stat().st_size
    assert done.kept_bytes + done.cut_bytes == len(fragments) - cut_bytes
    assert read_frame_count(path) == 25 * done.fragments
    assert repair(path).cut_bytes == 0


def test_repair_cuts_rubbish_behind_a_fragment(fragments: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(fragments + b"\0\0\0\7junk and more junk")
    assert repair(path).kept_bytes == len(fragments)


@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "fragmented"])
def test_repair_leaves_a_closed_file_alone(indexed: bool, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with recording(path, indexed=indexed) as sink:
        sink.write(media(60))
    before = path.read_bytes()
    assert repair(path).cut_bytes == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no film at all, but some text", b"\0\0\0\10moof\0\0\0\10mdat"])
def test_repair_refuses_what_holds_no_fragment_and_leaves_it_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match="no whole fragment"):
        repair(path)
    assert path.read_bytes() == content
