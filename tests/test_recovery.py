# SPDX-License-Identifier: Apache-2.0
from edgereels.runtime.recovery import Recovery, Remedy


def test_a_chunk_of_nan_costs_a_chunk_and_the_third_in_a_minute_the_engine() -> None:
    recovery = Recovery()
    remedies = [recovery.after(is_contained=True, now_s=now_s)[0] for now_s in (0.0, 10.0, 20.0, 30.0, 31.0)]
    assert remedies == [Remedy.DISCARD, Remedy.DISCARD, Remedy.REOPEN, Remedy.DISCARD, Remedy.DISCARD]


def test_a_chunk_of_nan_now_and_then_never_costs_the_engine() -> None:
    recovery = Recovery()
    assert {recovery.after(is_contained=True, now_s=31.0 * count)[0] for count in range(1000)} == {Remedy.DISCARD}


def test_the_engine_is_opened_anew_after_ever_longer_waits_and_then_no_more() -> None:
    recovery = Recovery()
    remedies = [recovery.after(is_contained=False, now_s=10.0 * count) for count in range(6)]
    assert remedies[:5] == [(Remedy.REOPEN, wait_s) for wait_s in (0.5, 1.0, 2.0, 5.0, 5.0)]
    assert remedies[5] == (Remedy.GIVE_UP, 0.0)


def test_faults_far_apart_are_forgiven() -> None:
    recovery = Recovery()
    remedies = {recovery.after(is_contained=False, now_s=700.0 * count) for count in range(1000)}
    assert remedies == {(Remedy.REOPEN, 0.5)}
