# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Three times in ten minutes, then `failed`; back-off; and the absence that is not believed at once."""
from pvcd.attempts import AttemptLog


def test_three_errors_in_ten_minutes_exhaust() -> None:
    log = AttemptLog()
    for at in (0, 100, 200):
        assert not log.now(at).exhausted
        log.error(at, "no disk", permanent=False)
    assert log.now(200).exhausted and log.now(200).reason == "no disk"
    assert not log.now(601).exhausted


def test_one_definite_error_is_enough() -> None:
    log = AttemptLog()
    log.error(0, "bad XML", permanent=True)
    assert log.now(0).exhausted
    log.clear()
    assert not log.now(0).exhausted


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
