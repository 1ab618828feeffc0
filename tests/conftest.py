# SPDX-License-Identifier: Apache-2.0
"""Golden data and the checkpoints it holds, unpacked once outside the repository; a sound server and a screen."""

import getpass
import hashlib
import os
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

with suppress(ImportError):
    import cv2  # noqa: F401  # pyright: ignore[reportUnusedImport]  # before PyAV, see runtime/opencv.py

from .real_devices import Screen, SoundServer

if TYPE_CHECKING:
    from edgereels.quant.trajectory import Recording
    from edgereels.runtime import ModelPackage

CHECKOUT = Path(__file__).parents[1]


def golden_folder() -> Path | None:
    """Return the folder that holds golden/, inputs/ and checkpoints.tar.xz, or None."""
    named = os.environ.get("EDGEREELS_GOLDEN")
    for folder in [Path(named)] if named else [CHECKOUT.parent / "shared" / "golden"]:
        if (folder / "checkpoints.tar.xz").is_file():
            return folder
    return None


@pytest.fixture(scope="session", autouse=True)
def compiled_graphs() -> Path:
    """Folder of graphs that OpenVINO compiled for tests: not the user's own, and the same for every run of the tests.

    Files there are named after everything that went into them, so an old one is never taken for a new one.
    """
    folder = Path(tempfile.gettempdir()) / f"edgereels-test-graphs-{getpass.getuser()}"
    os.environ.setdefault("EDGEREELS_CACHE", str(folder))
    return Path(os.environ["EDGEREELS_CACHE"])


@pytest.fixture(scope="session")
def embedded() -> "ModelPackage":
    """The package that comes with the installation."""
    from edgereels.runtime import ModelPackage

    return ModelPackage.open("default", verify="size")


@pytest.fixture(scope="session")
def embedded_recording(embedded: "ModelPackage", tmp_path_factory: pytest.TempPathFactory) -> "Recording":
    """The embedded avatar at 64 x 64 pixels over two windows: a few seconds."""
    from edgereels.quant.trajectory import record

    from .test_trajectory import speech, write_sound

    folder = tmp_path_factory.mktemp("recording")
    write_sound(folder / "a.wav", speech(2.4))
    return record(embedded, scratch=folder, folder=folder, threads=1, size=(64, 64))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with golden/ and inputs/; skips where there is none."""
    folder = golden_folder()
    if folder is None:
        pytest.skip("golden data not found: set EDGEREELS_GOLDEN, or put it at ../shared/golden beside the checkout")
    return folder


@pytest.fixture(scope="session")
def golden_checkpoints(golden: Path) -> Path:
    """Folder with the tiny checkpoints a2v/, v2v/ and r2v/."""
    archive = golden / "checkpoints.tar.xz"
    stamp = hashlib.sha256(f"{archive.resolve()}:{archive.stat().st_size}:{archive.stat().st_mtime_ns}".encode())
    target = Path(tempfile.gettempdir()) / f"edgereels-golden-{stamp.hexdigest()[:16]}"
    if not target.is_dir():
        unpacking = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name))
        with tarfile.open(archive) as tar:
            tar.extractall(unpacking, filter="data")
        try:
            unpacking.rename(target)
        except OSError:  # another worker was first
            if not target.is_dir():
                raise
    return target


@pytest.fixture(scope="session")
def tiny_package(golden_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden talking-avatar checkpoint, exported by the command line; takes a minute or two."""
    from edgereels.runtime.cli import main

    checkpoint = golden_checkpoints / "a2v"
    target = tmp_path_factory.mktemp("packages") / "tiny.edgereels"
    assert main(["export", str(checkpoint), str(target), "--overrides", str(checkpoint / "tiny.json")]) == 0
    return target


@pytest.fixture(scope="session")
def one_sound_server(tmp_path_factory: pytest.TempPathFactory) -> SoundServer:
    """PulseAudio; it ends with the process."""
    return SoundServer(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def sound_server(one_sound_server: SoundServer, monkeypatch: pytest.MonkeyPatch) -> SoundServer:
    """A loudspeaker and a microphone that hears it."""
    for name, value in one_sound_server.variables.items():
        monkeypatch.setenv(name, value)
    return one_sound_server


@pytest.fixture(scope="session")
def one_screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    """Xvfb; it ends with the process."""
    return Screen(tmp_path_factory.mktemp("screen"))


@pytest.fixture
def screen(one_screen: Screen, monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A screen that nobody sees."""
    for name, value in one_screen.variables.items():
        monkeypatch.setenv(name, value)
    return one_screen
