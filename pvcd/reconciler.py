# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Runs each object's visit once at a time, soon after it is nudged, never twice at once.

A keyed, coalescing queue: a key that is added again while it waits is there once; added while it runs, it runs again
afterwards. Any thread may add. Visits run on the reconcile workers; a key whose last visit hung on its own (`mark_slow`)
moves to a lane with one worker, so that hung domains cannot take them all. Whoever hangs before it is known takes a worker with it; when
all workers of a lane hang, `relieve` lets a spare thread do what waits. With `workers=0` nothing runs by itself and `run_due` runs
everything inline: that is how the simulator drives it.
"""
from __future__ import annotations

import heapq
import threading
import traceback
from collections import deque
from collections.abc import Callable, Collection

Key = tuple[str, str]
Visit = Callable[[Key], float | None]

RETRY_FIRST_S, RETRY_MOST_S = 1.0, 60.0
HANGS_S = 5.0
"""A visit that takes longer hangs, or starts a big guest: either way others must not wait for it."""
MOST_SPARES = 8
"""Spare threads at once. Each visit that hangs also takes one of libvirtd's 20 workers."""


class Reconciler:
    """`visit(key)` does one visit and returns after how many seconds to visit again (None: when nudged).

    `report(key, text)` is told of a visit that raised; the visit is repeated with back-off (1 to 60 s).
    """

    def __init__(self, visit: Visit, clock: Callable[[], float], report: Callable[[Key, str], None], workers: int = 4) -> None:
        self._visit, self._clock, self._report = visit, clock, report
        self._changed = threading.Condition()
        self._quick: deque[Key] = deque()
        self._slow: deque[Key] = deque()
        self._waiting: set[Key] = set()
        self._running: dict[Key, tuple[float, bool]] = {}
        """what is being visited: since when, and whether in the slow lane"""
        self._again: set[Key] = set()
        self._slow_keys: set[Key] = set()
        self._delayed: list[tuple[float, Key]] = []
        self._due: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._stopping, self._workers = False, workers
        self._spares: dict[threading.Thread, bool] = {}
        """spare threads, and whether they serve the slow lane"""
        self._only: set[Key] | None = None
        self._held: dict[Key, None] = {}
        """what waits until `first` is over, in order"""
        self.threads = [threading.Thread(target=self._work, args=(self._quick,), name=f"reconcile-{n}", daemon=True)
                        for n in range(workers)]
        if workers:
            self.threads.append(threading.Thread(target=self._work, args=(self._slow,), name="reconcile-slow", daemon=True))

    def start(self) -> None:
        """Start the workers, unless `first` has done so."""
        for thread in self.threads:
            if thread.ident is None:
                thread.start()

    def first(self, keys: Collection[Key], timeout_s: float, ended: Callable[[], bool] = lambda: False) -> set[Key]:
        """Start the workers, visit each of `keys` once and nothing else meanwhile; returns those that were not done within `timeout_s`
        or before `ended()`, which is asked twice a second. What else was added comes after it.
        """
        with self._changed:
            self._only, waiting = set(keys), [*self._quick, *self._slow]
            self._quick.clear()
            self._slow.clear()
            self._waiting.clear()
            for key in [*waiting, *keys]:
                self._enqueue(key)
        self.start()
        deadline = self._clock() + timeout_s
        with self._changed:
            while self._only and self._clock() < deadline and not ended():
                self._changed.wait(min(0.5, deadline - self._clock()))
            late, self._only = self._only, None
            held, self._held = self._held, {}
            for key in held:
                self._enqueue(key)
        return late

    def relieve(self) -> None:
        """Once a second: a lane whose threads all hang while keys wait in it gets a spare thread, until it is empty."""
        if not self._workers:
            return
        with self._changed:
            hanging = [slow for since, slow in self._running.values() if self._clock() - since >= HANGS_S]
            for lane, slow, workers in ((self._quick, False, self._workers), (self._slow, True, 1)):
                threads = workers + list(self._spares.values()).count(slow)
                if lane and hanging.count(slow) >= threads and len(self._spares) < MOST_SPARES and not self._stopping:
                    thread = threading.Thread(target=self._spare, args=(lane,), name="reconcile-spare", daemon=True)
                    self._spares[thread] = slow
                    thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Let running visits end and start no more. True if all ended within `timeout_s`. The threads need not have been started."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        deadline = self._clock() + timeout_s
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - self._clock()))
        return not any(thread.is_alive() for thread in self.threads)

    def add(self, key: Key) -> None:
        """Visit `key` soon. Cheap; called from kazoo's and libvirt's threads."""
        with self._changed:
            self._enqueue(key)

    def add_after(self, key: Key, delay_s: float) -> None:
        """Visit `key` after `delay_s` at the latest; an earlier appointment stands."""
        with self._changed:
            due = self._clock() + delay_s
            if due < self._due.get(key, float("inf")):
                self._due[key] = due
                heapq.heappush(self._delayed, (due, key))
                self._changed.notify_all()

    def forget(self, key: Key) -> None:
        """Cancel appointments of an object that is gone."""
        with self._changed:
            self._due.pop(key, None)
            self._failures.pop(key, None)
            self._slow_keys.discard(key)

    def mark_slow(self, key: Key, slow: bool) -> None:
        """Choose the lane of the next visits of `key`."""
        with self._changed:
            (self._slow_keys.add if slow else self._slow_keys.discard)(key)

    def run_due(self, most: int = 1_000_000) -> int:
        """Run inline, in order, what is due, `most` visits at the most; how many that were. Only with `workers=0`."""
        visits = 0
        while visits < most:
            with self._changed:
                key = self._next(self._quick) or self._next(self._slow)
            if key is None:
                return visits
            visits += 1
            self._do(key)
        return visits

    def next_due_s(self) -> float | None:
        """The clock's reading at which the next delayed visit is due."""
        with self._changed:
            return min(self._due.values(), default=None)

    def _enqueue(self, key: Key) -> None:
        if self._only is not None and key not in self._only:
            self._held[key] = None
        elif key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            (self._slow if key in self._slow_keys else self._quick).append(key)
            self._changed.notify_all()

    def _release_due(self) -> None:
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            due, key = heapq.heappop(self._delayed)
            if self._due.get(key) == due:
                del self._due[key]
                self._enqueue(key)

    def _next(self, lane: deque[Key]) -> Key | None:
        self._release_due()
        if not lane:
            return None
        key = lane.popleft()
        self._waiting.discard(key)
        self._running[key] = (self._clock(), lane is self._slow)
        return key

    def _do(self, key: Key) -> None:
        try:
            again_s = self._visit(key)
            self._failures.pop(key, None)
        except Exception:
            # The one place where an unforeseen error of a visit ends: it is told, and the visit is tried again.
            count = self._failures.get(key, 0)
            self._failures[key] = count + 1
            again_s = min(RETRY_FIRST_S * 2**min(count, 10), RETRY_MOST_S)
            self._report(key, traceback.format_exc())
        with self._changed:
            del self._running[key]
            if self._only is not None:
                self._only.discard(key)
                self._changed.notify_all()
            if key in self._again:
                self._again.discard(key)
                self._enqueue(key)
        if again_s is not None:
            self.add_after(key, again_s)

    def _spare(self, lane: deque[Key]) -> None:
        while True:
            with self._changed:
                key = None if self._stopping else self._next(lane)
                if key is None:
                    del self._spares[threading.current_thread()]
                    return
            self._do(key)

    def _work(self, lane: deque[Key]) -> None:
        while True:
            with self._changed:
                key = self._next(lane)
                while key is None and not self._stopping:
                    wait_s = self._delayed[0][0] - self._clock() if self._delayed else None
                    self._changed.wait(None if wait_s is None else max(0.001, wait_s))
                    key = self._next(lane)
                if self._stopping:
                    return
            assert key is not None
            self._do(key)
