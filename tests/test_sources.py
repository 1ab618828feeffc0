# SPDX-License-Identifier: Apache-2.0
"""Files paced as if live and bytes from standard input: all of it, in order, and never before its time."""

import io
import os
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from edgereels.runtime.clock import MonotonicClock
from edgereels.runtime.errors import MediaError, UsageError
from edgereels.runtime.sources import SoundBlock, Source, StdinSource, ThreadedSource, WavSource, in_blocks

from .virtual_clock import VirtualClock

RATE = 8_000


def ramp(frames: int) -> npt.NDArray[np.float32]:
    return np.arange(frames, dtype=np.float32) / 65_536


class Heard:
    """Takes what a source gives."""

    def __init__(self) -> None:
        self.blocks: list[SoundBlock] = []
        self.ended = threading.Event()
        self.error: Exception | None = None

    def on_end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()

    def start(self, source: Source) -> None:
        source.start(self.blocks.append, self.on_end)

    @property
    def frames(self) -> int:
        return sum(len(block.samples) for block in self.blocks)

    @property
    def sound(self) -> npt.NDArray[np.float32]:
        return np.concatenate([block.samples for block in self.blocks])


def wav(folder: Path, frames: int, *, name: str = "a.wav", subtype: str = "FLOAT") -> Path:
    soundfile.write(folder / name, ramp(frames), RATE, subtype=subtype)
    return folder / name


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize("pace", [1.0, 5.0], ids="pace-{}".format)
def test_a_file_is_given_out_as_its_time_comes_and_never_before(tmp_path: Path, name: str, pace: float) -> None:
    clock, heard = VirtualClock(100.0, patience_s=5), Heard()
    path = wav(tmp_path, 3210, name=name, subtype="FLOAT" if name == "a.wav" else "PCM_24")
    with WavSource(path, clock, pace=pace) as source:
        heard.start(source)
        clock.until_waiting(1)
        for step in range(1, 42):
            clock.advance(0.005 / pace + 1e-9)
            assert heard.frames == step // 4 * 160
            if heard.frames < 3200:
                clock.until_waiting(1)
        clock.until_waiting(1)
        clock.advance(1)
        assert heard.ended.wait(5)
    np.testing.assert_allclose(heard.sound[:, 0], ramp(3210), atol=2**-23)  # 24 bits
    intended_s = [block.intended_s for block in heard.blocks]
    np.testing.assert_allclose(intended_s, 100 + np.minimum(np.arange(1, 22) * 160, 3210) / RATE / pace)
    assert all(0 <= block.arrived_s - block.intended_s < 1e-6 for block in heard.blocks[:-1])


def test_no_block_leads_to_the_sound_behind_it(tmp_path: Path) -> None:
    heard = Heard()
    with WavSource(wav(tmp_path, 1600), MonotonicClock(), pace=1000) as source:
        heard.start(source)
        assert heard.ended.wait(5)
    assert len(heard.blocks) == 10
    assert all(block.samples.base is None for block in heard.blocks)


def test_a_consumer_that_stalls_gets_late_blocks_whose_due_time_stays(tmp_path: Path) -> None:
    clock, heard = VirtualClock(patience_s=5), Heard()

    def slow(block: SoundBlock) -> None:
        heard.blocks.append(block)
        if len(heard.blocks) == 3:
            clock.wait_until(clock.now_s() + 2.0)

    with WavSource(wav(tmp_path, 1600), clock) as source:
        source.start(slow, heard.on_end)
        clock.until_waiting(1)
        clock.advance(10)
        assert heard.ended.wait(5)
    late_s = [block.arrived_s - block.intended_s for block in heard.blocks]
    np.testing.assert_allclose(late_s, [0, 0, 0, *(2 - 0.02 * np.arange(1, 8))], atol=1e-9)


@pytest.mark.parametrize(("block_s", "pace"), [(0, 1), (0.02, 0), (0.02, -1), (float("nan"), 1)], ids=str)
def test_a_schedule_that_makes_no_sense_is_refused(tmp_path: Path, block_s: float, pace: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        WavSource(wav(tmp_path, 100), VirtualClock(), block_s=block_s, pace=pace)


@pytest.mark.parametrize("rate", [1, 4_000, 200_000], ids="{}-Hz".format)
def test_a_file_of_an_odd_rate_is_refused_before_it_starts(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "odd.wav", ramp(100), rate)
    with pytest.raises(MediaError, match=r"odd\.wav is sampled at"):
        WavSource(tmp_path / "odd.wav", VirtualClock())


def test_a_missing_file_is_refused_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="doesn't exist"):
        WavSource(tmp_path / "none.wav", VirtualClock())


def test_what_goes_wrong_in_a_callback_ends_the_source_and_is_handed_over(tmp_path: Path) -> None:
    heard = Heard()

    def fail(block: SoundBlock) -> None:
        raise MediaError("no")

    with WavSource(wav(tmp_path, 1600), MonotonicClock(), pace=100) as source:
        source.start(fail, heard.on_end)
        assert heard.ended.wait(5)
    assert isinstance(heard.error, MediaError)


def test_a_stopped_source_calls_back_no_more(tmp_path: Path) -> None:
    heard, before = Heard(), threading.active_count()
    source = WavSource(wav(tmp_path, RATE * 60), MonotonicClock())
    heard.start(source)
    assert threading.active_count() == before + 1
    source.stop()
    source.stop()
    assert threading.active_count() == before
    assert not heard.ended.is_set() and heard.frames < RATE * 60
    with pytest.raises(UsageError, match="new one"):
        heard.start(source)


def test_a_callback_may_stop_its_own_source(tmp_path: Path) -> None:
    heard = Heard()
    source = WavSource(wav(tmp_path, 1600), MonotonicClock(), pace=100)

    def stop(block: SoundBlock) -> None:
        heard.blocks.append(block)
        source.stop()

    source.start(stop, heard.on_end)
    assert source._thread is not None
    source._thread.join(5)
    assert len(heard.blocks) == 1 and not heard.ended.is_set()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("extra", [b"", b"\x01"], ids=["whole", "odd-byte"])
def test_bytes_become_samples_up_to_the_last_whole_one(
    channels: int, extra: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (1001, channels)).astype("<i2")
    heard = Heard()
    stream = io.BufferedReader(io.BytesIO(samples.tobytes() + extra), buffer_size=333)  # type: ignore[arg-type]
    with StdinSource(RATE, VirtualClock(7.0), channels=channels, stream=stream) as source:
        heard.start(source)
        assert heard.ended.wait(5)
    np.testing.assert_array_equal(heard.sound, samples)
    assert heard.error is None and {block.arrived_s for block in heard.blocks} == {7.0}
    assert bool(extra) == ("left out" in caplog.text)


def test_what_a_program_has_written_is_heard_while_it_still_speaks() -> None:
    reading, writing = os.pipe()
    heard, came = Heard(), threading.Event()

    def take(block: SoundBlock) -> None:
        heard.blocks.append(block)
        came.set()

    with os.fdopen(reading, "rb") as stream, StdinSource(RATE, VirtualClock(), stream=stream) as source:
        source.start(take, heard.on_end)
        os.write(writing, b"\x01\x00\x02\x00")
        assert came.wait(5) and not heard.ended.is_set()
        np.testing.assert_array_equal(heard.sound[:, 0], [1, 2])
        os.close(writing)
        assert heard.ended.wait(5)


def test_standard_input_of_an_odd_rate_is_refused() -> None:
    with pytest.raises(MediaError, match="standard input is sampled"):
        StdinSource(1, VirtualClock())


@pytest.mark.parametrize("sizes", [[0, 3, 7], [10], [1] * 10, [4, 0, 4, 2], []], ids=str)
def test_blocks_are_of_equal_length_whatever_comes(sizes: list[int]) -> None:
    whole = ramp(sum(sizes)).reshape(-1, 1)
    blocks = list(in_blocks(iter(np.split(whole, np.cumsum(sizes)[:-1]) if sizes else []), 4))
    assert [len(block) for block in blocks] == ([4, 4, 2] if sizes else [])
    if sizes:
        np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_a_source_is_a_source(tmp_path: Path) -> None:
    def check(source: Source) -> None:
        assert isinstance(source, ThreadedSource)

    check(WavSource(wav(tmp_path, 100), VirtualClock()))
    check(StdinSource(RATE, VirtualClock()))
