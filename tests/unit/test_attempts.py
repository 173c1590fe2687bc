# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Refusals for ten minutes, or four ends of QEMU, then `failed`; back-off; and the absence that is not believed at once."""
from pvcd.attempts import AttemptLog
from pvcd.situation import Attempts


def retried(until_s: float) -> tuple[AttemptLog, list[float]]:
    """Refused at each try until then, on a clock of one second; the moments of the tries."""
    log, tries = AttemptLog(), []
    for at in range(int(until_s) + 1):
        if log.now(at).wait_s <= 0:
            log.error(at, "no disk", permanent=False)
            tries.append(float(at))
    return log, tries


def test_refusals_are_tried_again_for_the_whole_window() -> None:
    log, tries = retried(599)
    assert not log.now(599).exhausted and log.now(600).exhausted and log.now(600).reason == "no disk"
    assert tries[:6] == [0, 1, 6, 21, 51, 111] and 10 <= len(tries) <= 16


def test_a_stand_in_lets_another_try_after_a_minute() -> None:
    log, _ = retried(59)
    assert not log.now(59).try_elsewhere and log.now(60).try_elsewhere and not log.now(60).exhausted
    assert log.now(55).decides_s == 5, "it looks again when the minute is over, not when the next try is due"


def test_a_clock_that_passed_without_tries_decides_nothing() -> None:
    log = AttemptLog()
    log.error(0, "no disk", permanent=False)
    log.error(1, "no disk", permanent=False)
    assert not log.now(1000).exhausted and not log.now(1000).try_elsewhere, "the node was cut off meanwhile"


def test_a_start_that_succeeds_ends_the_count_of_refusals() -> None:
    log, _ = retried(500)
    log.seen(True, 501)
    assert log.now(700) == Attempts(reason="no disk")


def test_what_this_host_can_never_do_and_what_no_host_can() -> None:
    log = AttemptLog()
    log.error(0, "no KVM", permanent=True)
    assert log.now(0).exhausted and log.now(0).try_elsewhere
    log.clear()
    assert not log.now(0).exhausted
    log.error(0, "bad XML", permanent=False, hopeless=True)
    assert log.now(0).exhausted and not log.now(0).try_elsewhere


def test_a_guest_that_ends_itself_waits_and_is_never_given_up() -> None:
    log, waits = AttemptLog(), []
    for at in range(0, 500, 50):
        log.quit(at)
        waits.append(log.now(at).wait_s)
    assert waits[:4] == [0, 5, 15, 30] and set(waits[4:]) == {30} and not log.now(500).exhausted


def test_a_qemu_that_dies_is_started_three_times_again() -> None:
    log = AttemptLog()
    for count in range(1, 5):
        log.death(count * 50)
        assert log.now(count * 50).exhausted is (count == 4)
    assert "4 times" in log.now(200).reason


def test_the_first_restart_is_at_once_and_the_next_ones_wait() -> None:
    log = AttemptLog()
    waits = []
    for at in (0, 60, 120):
        log.death(at)
        waits.append(log.now(at).wait_s)
    assert waits == [0, 5, 15]
    assert log.now(130).wait_s == 5


def test_absence_after_an_unanswered_create_is_believed_after_two_looks_ten_seconds_apart() -> None:
    log = AttemptLog()
    assert not log.now(0).doubt
    log.unanswered(0)
    log.seen(False, 1)
    log.seen(False, 10.9)
    assert log.now(10.9).doubt
    log.seen(False, 11)
    assert not log.now(11).doubt
    log.unanswered(20)
    log.seen(True, 21)
    assert not log.now(21).doubt
