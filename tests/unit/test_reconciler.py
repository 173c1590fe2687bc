# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The queue: coalescing, never twice at once, delays, lanes, and what becomes of a visit that raises."""
from __future__ import annotations

import threading
import time

from pvcd.reconciler import HANGS_S, MOST_SPARES, Key, Reconciler

A, B = ("domain", "a"), ("domain", "b")


class Inline:
    """A reconciler without threads on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.visited: list[Key] = []
        self.answer: dict[Key, float | None] = {}
        self.reports: list[str] = []
        self.queue = Reconciler(self.visit, lambda: self.now, lambda key, text: self.reports.append(text), workers=0)

    def visit(self, key: Key) -> float | None:
        self.visited.append(key)
        return self.answer.get(key)


def test_adds_of_one_key_are_one_visit() -> None:
    t = Inline()
    for _ in range(200):
        t.queue.add(A)
    t.queue.add(B)
    t.queue.run_due()
    assert t.visited == [A, B]


def test_a_key_added_while_it_runs_is_visited_again_afterwards() -> None:
    t = Inline()

    def visit(key: Key) -> None:
        t.visited.append(key)
        if len(t.visited) == 1:
            t.queue.add(A)
            t.queue.add(A)
    queue = t.queue = Reconciler(visit, lambda: 0.0, lambda key, text: None, workers=0)
    queue.add(A)
    queue.run_due()
    assert t.visited == [A, A]


def test_the_earliest_appointment_stands_and_a_visit_may_make_the_next() -> None:
    t = Inline()
    t.answer[A] = 5.0
    t.queue.add_after(A, 3.0)
    t.queue.add_after(A, 9.0)
    t.now = 2.9
    assert t.queue.run_due() == 0
    t.now = 3.0
    assert t.queue.run_due() == 1 and t.queue.next_due_s() == 8.0
    t.now = 9.0
    t.answer[A] = None
    assert t.queue.run_due() == 1 and t.queue.next_due_s() is None


def test_a_forgotten_key_has_no_appointments() -> None:
    t = Inline()
    t.queue.add_after(A, 1.0)
    t.queue.forget(A)
    t.now = 2.0
    assert t.queue.run_due() == 0


def test_a_visit_that_raises_is_reported_and_tried_again_with_back_off() -> None:
    t = Inline()

    def visit(key: Key) -> None:
        t.visited.append(key)
        raise ValueError("a bug")
    t.queue = Reconciler(visit, lambda: t.now, lambda key, text: t.reports.append(text), workers=0)
    t.queue.add(A)
    waits = []
    for _ in range(9):
        t.queue.run_due()
        due = t.queue.next_due_s()
        assert due is not None
        waits.append(due - t.now)
        t.now = due
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert "ValueError: a bug" in t.reports[0]


def test_workers_never_run_one_key_twice_at_once_and_lose_nothing() -> None:
    running: set[Key] = set()
    counts: dict[Key, int] = {}
    lock, wrong = threading.Lock(), []

    def visit(key: Key) -> None:
        with lock:
            if key in running:
                wrong.append(key)
            running.add(key)
            counts[key] = counts.get(key, 0) + 1
        time.sleep(0.001)
        with lock:
            running.discard(key)
    queue = Reconciler(visit, time.monotonic, lambda key, text: wrong.append(key), workers=4)
    queue.start()
    keys = [("domain", str(n)) for n in range(8)]
    for _ in range(50):
        for key in keys:
            queue.add(key)
        time.sleep(0.0005)
    before = dict(counts)
    for key in keys:
        queue.add(key)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(counts.get(key, 0) <= before.get(key, 0) for key in keys):
        time.sleep(0.005)
    assert queue.stop(5.0)
    assert not wrong and all(counts[key] > before.get(key, 0) for key in keys)


def test_hung_keys_in_their_lane_do_not_take_the_workers() -> None:
    release, done = threading.Event(), threading.Event()

    def visit(key: Key) -> None:
        if key == B:
            done.set()
        else:
            release.wait(10)
    queue = Reconciler(visit, time.monotonic, lambda key, text: None, workers=2)
    hung = [("domain", f"hung{n}") for n in range(6)]
    for key in hung:
        queue.mark_slow(key, True)
        queue.add(key)
    queue.start()
    queue.add(B)
    try:
        assert done.wait(5)
    finally:
        release.set()
    assert queue.stop(5.0)


def test_visits_that_hang_before_it_is_known_are_relieved() -> None:
    """Nobody has marked them slow, and they take all workers of the lane."""
    release, done, now = threading.Event(), threading.Event(), [0.0]
    inside = threading.Semaphore(0)

    def visit(key: Key) -> None:
        if key == B:
            done.set()
        else:
            inside.release()
            release.wait(10)
    queue = Reconciler(visit, lambda: now[0], lambda key, text: None, workers=2)
    for number in range(2):
        queue.add(("domain", f"hung{number}"))
    queue.start()
    for _ in range(2):
        assert inside.acquire(timeout=5)
    queue.add(B)
    try:
        queue.relieve()
        assert not done.wait(0.2), "they have only just begun"
        now[0] = HANGS_S
        queue.relieve()
        assert done.wait(5)
    finally:
        release.set()
    assert queue.stop(5.0)


def test_one_that_was_never_started_can_be_stopped() -> None:
    assert Reconciler(lambda key: None, time.monotonic, lambda key, text: None).stop(1.0)


def test_spares_are_bounded_and_end() -> None:
    release, now = threading.Event(), [0.0]
    inside = threading.Semaphore(0)

    def visit(_key: Key) -> None:
        inside.release()
        release.wait(10)
    queue = Reconciler(visit, lambda: now[0], lambda key, text: None, workers=1)
    for number in range(20):
        queue.add(("domain", f"hung{number}"))
    queue.start()
    for _ in range(1 + MOST_SPARES):
        assert inside.acquire(timeout=5)
        now[0] += HANGS_S
        queue.relieve()
    now[0] += HANGS_S
    queue.relieve()
    assert not inside.acquire(timeout=0.2), "no more than that"
    release.set()
    for _ in range(20 - 1 - MOST_SPARES):
        assert inside.acquire(timeout=5)
    spares = [thread for thread in threading.enumerate() if thread.name == "reconcile-spare"]
    for thread in spares:
        thread.join(5)
        assert not thread.is_alive(), "they end when nothing waits"
    assert queue.stop(5.0)


def test_first_visits_these_and_nothing_else_and_leaves_what_hangs() -> None:
    release, visited = threading.Event(), []
    late = ("domain", "late")

    def visit(key: Key) -> None:
        visited.append(key)
        if key == late:
            release.wait(10)
    queue = Reconciler(visit, time.monotonic, lambda key, text: None, workers=2)
    other = ("domain", "other")
    queue.add(other)
    assert queue.first([A, B, late], 0.5) == {late}
    assert sorted(visited[:3]) == sorted([A, B, late]), "others come after it"
    deadline = time.monotonic() + 5
    while other not in visited:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    queue.start()
    release.set()
    assert queue.stop(5.0) and visited.count(late) == 1
