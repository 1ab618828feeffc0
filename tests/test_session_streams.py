# SPDX-License-Identifier: Apache-2.0
"""Sessions as a program uses them: several at once, closed early, for hours; on a package that stands in for one."""

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgereels.runtime import AvatarSession, EdgereelsError, EngineError, OutputError, Trace, UsageError
from edgereels.runtime.engine import Engine
from edgereels.runtime.planner import plan
from edgereels.runtime.sinks import LinesSink

from .stand_in_package import write_stand_in

RATE = 16000
SOUND = (0.3 * np.sin(np.arange(2 * RATE) * 0.1) * (np.arange(2 * RATE) % 4000 > 2000)).astype(np.float32)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("packages") / "stand-in")


def rendered(session: AvatarSession, *, seed: int = 1) -> npt.NDArray[np.uint8]:
    return np.concatenate([chunk.frames for chunk in session.stream(audio=SOUND, seed=seed)])


def test_several_sessions_in_several_threads_give_what_each_gives_alone(package: Path) -> None:
    with AvatarSession.open(package, threads=1) as session:
        alone = [rendered(session, seed=seed) for seed in range(4)]

    def run(seed: int) -> npt.NDArray[np.uint8]:
        with AvatarSession.open(package, threads=1) as own:
            return rendered(own, seed=seed)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(alone, together, strict=True))


def test_two_renders_on_two_threads_agree_to_the_bit(package: Path) -> None:
    with AvatarSession.open(package, threads=2) as session:
        assert np.array_equal(rendered(session), rendered(session))


def test_a_stream_that_is_closed_early_frees_the_session(package: Path) -> None:
    before = threading.active_count()
    with AvatarSession.open(package, threads=1) as session:
        stream = session.stream(audio=SOUND)
        next(stream)
        with pytest.raises(EdgereelsError, match="already running"):
            session.stream(audio=SOUND)
        stream.close()
        assert threading.active_count() == before
        assert len(rendered(session)) == 50


def test_a_stream_that_is_never_asked_for_a_chunk_holds_nothing(package: Path) -> None:
    with AvatarSession.open(package, threads=1) as session:
        session.stream(audio=SOUND)
        assert len(rendered(session)) == 50


def test_of_two_streams_that_were_made_at_once_the_second_to_begin_is_refused(package: Path) -> None:
    with AvatarSession.open(package, threads=1) as session:
        first, second = session.stream(audio=SOUND), session.stream(audio=SOUND)
        next(first)
        with pytest.raises(EdgereelsError, match="already running"):
            next(second)


def test_a_session_that_is_closed_opens_nothing_again(package: Path) -> None:
    with AvatarSession.open(package, threads=1) as session:
        stream = session.stream(audio=SOUND)
        next(stream)
    with pytest.raises(EngineError, match="closed"):
        next(stream)
    with pytest.raises(EngineError, match="closed"):
        session.stream(audio=SOUND)
    assert session.engines == {}


def test_paths_may_be_text(package: Path, tmp_path: Path) -> None:
    with AvatarSession.open(str(package), threads=1) as session:
        report = session.render(audio=SOUND, frames=str(tmp_path / "f.npy"), trace=str(tmp_path / "t.jsonl"))
        assert report.files == (tmp_path / "f.npy",)
        assert np.load(tmp_path / "f.npy").shape == (50, 32, 32, 3)


def test_a_trace_that_can_not_be_closed_leaves_no_file_at_all(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(sink: LinesSink) -> None:
        sink._file.close()
        raise OutputError("the disk is full")

    monkeypatch.setattr(LinesSink, "_close", full)
    with AvatarSession.open(package, threads=1) as session, pytest.raises(OutputError):
        session.render(audio=SOUND, frames=tmp_path / "f.npy", trace=tmp_path / "t.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"size": (40, 32)}, id="size"),
        pytest.param({"steps": 0}, id="steps"),
        pytest.param({"avatar": "anna", "image": "i.png"}, id="avatar and picture"),
        pytest.param({"seed": 1, "noise": "n"}, id="seed and draws"),
    ],
)
def test_arguments_that_make_no_sense_are_usage_errors(arguments: dict[str, object], package: Path) -> None:
    with AvatarSession.open(package, threads=1) as session, pytest.raises(UsageError):
        session.stream(audio=SOUND, **arguments)
    assert issubclass(UsageError, ValueError)


@pytest.mark.parametrize("settings", [(13, 5, 4), (33, 9, 8), (17, 1, 0)], ids=str)
def test_frames_that_are_thrown_away_are_not_decoded(settings: tuple[int, int, int], package: Path) -> None:
    """The decoder makes no frame after the last one that a window keeps, but for the rest of a latent of four."""
    window, motion, drop = settings
    decoded = 0

    def counting(engine: Engine) -> Engine:
        run = engine.run

        def count(feeds: dict[str, Any], **options: Any) -> dict[str, Any]:
            nonlocal decoded
            made = run(feeds, **options)
            decoded += made["frames"].shape[2]
            return made

        engine.run = count  # type: ignore[method-assign]
        return engine

    with AvatarSession.open(package, threads=1) as session:
        for name in ("vae_decoder_first", "vae_decoder_next"):
            counting(session._placement[name])
        list(session.stream(audio=SOUND, window=window, motion=motion, drop=drop))
    kept = [made.kept_frames for made in plan(50, window=window, motion=motion, drop=drop).passes]
    assert decoded == sum(1 + -(-(count - 1) // 4) * 4 for count in kept)


def test_two_streams_of_one_session_each_trace_their_engines(package: Path) -> None:
    with AvatarSession.open(package, threads=1) as session:
        for _ in range(2):
            trace = Trace()
            list(session.stream(audio=SOUND, trace=trace))
            assert {event["graph"] for event in trace.events if event["event"] == "engine"} >= {"dit", "finish"}


def test_importing_the_runtime_needs_no_engine_and_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('onnxruntime', 'openvino', 'torch', 'av', 'soundfile', 'cv2', 'onnx', 'ftfy', 'tokenizers'):\n"
        "    sys.modules[name] = None\n"
        "import edgereels.runtime, edgereels.runtime.cli\n"
        "sys.exit(edgereels.runtime.cli.main(['--version']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_memory_is_flat_with_all_files_being_written(package: Path, tmp_path: Path) -> None:
    """Ten minutes; resident memory grows by less than 20 MB from minute three on, frames written included."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("resident memory is read from /proc")
    readings: dict[int, float] = {}

    def look(written: int, _total: int) -> None:
        minute = written // (25 * 60)
        if minute not in readings:
            gc.collect()
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
            readings[minute] = int(line.split()[1]) / 1024

    files = {"out": tmp_path / "v.mp4", "frames": tmp_path / "f.npy", "trace": tmp_path / "t.jsonl"}
    with AvatarSession.open(package, threads=1) as session:
        session.render(audio=np.tile(SOUND, 300), window=33, size=(64, 64), on_progress=look, **files)
    assert (tmp_path / "f.npy").stat().st_size > 180e6
    assert readings[10] - readings[3] < 20, readings
