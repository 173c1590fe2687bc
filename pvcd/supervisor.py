# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Notices a thread that has died or hangs, so that the process ends: a daemon that only sends keepalives would keep everybody
from helping its VMs. (The keepalive thread itself is under systemd's watchdog.)
"""
from __future__ import annotations

from collections.abc import Iterable
from threading import Thread

PATIENCE = 600
"""Looks without a beat. The longest bounded turn is a worker's of `questions`: a name that is not resolved, and five calls at 20 s. The fence
thread's is bounded by ZooKeeper alone."""


class Supervisor:
    """Looked at once a second by the main thread. Looks are counted and not seconds: a process that was frozen has no hung threads."""

    def __init__(self) -> None:
        self._threads: list[Thread] = []
        self._beats: dict[str, int] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def watch(self, threads: Iterable[Thread]) -> None:
        """These may not end while the daemon serves."""
        self._threads += threads

    def beat(self, name: str) -> None:
        """The thread `name` begins another turn. Only threads whose turns are bounded may beat."""
        self._beats[name] = self._beats.get(name, 0) + 1

    def look(self) -> str:
        """What is wrong, or ''."""
        dead = [thread.name for thread in self._threads if not thread.is_alive()]
        if dead:
            return f"thread {', '.join(dead)} has died"
        for name, beat in list(self._beats.items()):
            last, looks = self._seen.get(name, (beat, 0))
            self._seen[name] = (beat, looks + 1 if beat == last else 0)
        hung = [name for name, (_, looks) in self._seen.items() if looks > PATIENCE]
        return f"thread {', '.join(hung)} hangs" if hung else ""
