# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from edgereels.runtime.sound_queue import SoundAheadError, SoundQueue

SOUND = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)


@pytest.mark.parametrize("block", [1, 7, 320, 1000])
def test_any_split_gives_the_same_samples(block: int) -> None:
    queue = SoundQueue(16000)
    assert [queue.put(part, is_last=False) for part in np.split(SOUND, [300, 301])] == [0, 300, 301]
    taken = np.concatenate([queue.take(block) for _ in range(-(-1000 // block))])
    assert np.array_equal(taken[:1000], SOUND)
    assert not taken[1000:].any()


def test_silence_is_counted_within_an_utterance_and_not_behind_it() -> None:
    queue = SoundQueue(16000)
    queue.take(100)
    assert queue.put(SOUND, is_last=False) == 100
    for _ in range(3):
        queue.take(600)
    assert (queue.underruns, queue.dry_samples) == (1, 800)
    assert queue.put(SOUND, is_last=True) == 1900
    queue.take(2000)
    assert (queue.underruns, queue.dry_samples) == (1, 800)


def test_a_later_start_is_silent_until_then() -> None:
    queue = SoundQueue(16000)
    assert queue.put(SOUND, is_last=True, not_before=500) == 500
    assert not queue.take(500).any()
    assert np.array_equal(queue.take(1000), SOUND)


def test_skipping_throws_away_exactly_what_is_before() -> None:
    queue = SoundQueue(16000)
    queue.put(SOUND[:400], is_last=False)
    queue.put(SOUND[400:], is_last=True)
    queue.skip_to(450)
    queue.skip_to(10)
    assert (queue.taken, queue.stop) == (450, 1000)
    assert np.array_equal(queue.take(550), SOUND[450:])
    queue.skip_to(2000)
    assert (queue.taken, queue.stop, queue.underruns) == (2000, 2000, 0)


def test_clearing_leaves_a_ramp_of_five_milliseconds() -> None:
    queue = SoundQueue(16000)
    queue.put(np.full(1000, 0.5, np.float32), is_last=False)
    queue.take(10)
    assert queue.clear() == 90
    after = queue.take(1000)
    assert after[0] == 0.5 and np.all(np.diff(after[:80]) < 0) and not after[79:].any()
    assert queue.underruns == 0


def test_more_than_the_limit_is_refused_and_changes_nothing() -> None:
    queue = SoundQueue(1000, limit_s=1.5)
    queue.put(SOUND, is_last=False)
    with pytest.raises(SoundAheadError, match=r"2\.0 s .* at most 1\.5 s"):
        queue.put(SOUND, is_last=False)
    assert queue.stop == 1000
    queue.take(500)
    queue.put(SOUND, is_last=False)


def test_what_is_no_sound_does_not_reach_the_device() -> None:
    queue = SoundQueue(16000)
    queue.put(np.array([np.nan, np.inf, -np.inf, 3, -3], np.float32), is_last=True)
    assert queue.take(5).tolist() == [0, 0, 0, 1, -1]


def test_the_queue_keeps_its_own_copy() -> None:
    queue, sound = SoundQueue(16000), SOUND.copy()
    queue.put(sound, is_last=True)
    sound[:] = 0
    assert np.array_equal(queue.take(1000), SOUND)
