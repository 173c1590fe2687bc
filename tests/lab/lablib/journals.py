# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Follows the daemons' journals while they are written: a node of the lab loses its journal with its power, and what a daemon said
before it would never be read.
"""
from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from .lab import Lab
from .machine import Machine

FOLLOW = ("journalctl", "--follow", "--lines=all", "--unit=pvcd.service", "--output=cat", "--no-pager")
TRACEBACK = "Traceback (most recent call last)"


class Journals:
    """One thread per node, which begins anew with each boot of it. `heard(node, line)` is called for one line at a time, in these threads."""

    def __init__(self, lab: Lab, heard: Callable[[str, str], None]) -> None:
        self._lab, self._heard, self._since = lab, heard, int(time.time())
        self._lock, self._stopping = threading.Lock(), False
        self._followed: dict[str, subprocess.Popen[str]] = {}
        self._threads = [threading.Thread(target=self._run, args=(lab.node(name),), daemon=True) for name in lab.names]
        self._threads.append(threading.Thread(target=self._wake, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """What a daemon says at this moment is still read. Blocks for some 2 s."""
        threading.Event().wait(1)
        self._stopping = True
        for follower in list(self._followed.values()):
            if follower.poll() is None:
                os.killpg(follower.pid, signal.SIGKILL)  # nsenter, and the journalctl that it has started
        for thread in self._threads:
            thread.join(5)

    def followed(self) -> bool:
        """Every node's journal is being read."""
        return all(name in self._followed and self._followed[name].poll() is None for name in self._lab.names)

    def _wake(self) -> None:
        """A node that shuts down stops all its processes for a moment. nsenter, outside of it, then stops itself too and would never go on."""
        while not self._stopping:
            for follower in list(self._followed.values()):
                if follower.poll() is None:
                    os.killpg(follower.pid, signal.SIGCONT)
            threading.Event().wait(1)

    def _run(self, machine: Machine) -> None:
        while not self._stopping:
            init = machine.init
            if init:
                self._follow(machine.name, init)
            threading.Event().wait(0.5)

    def _follow(self, name: str, init: int) -> None:
        """Until the node dies, and its journalctl with it."""
        argv = ["nsenter", "-t", str(init), "-m", "-u", "-i", "-n", "-p", "--", *FOLLOW, f"--since=@{self._since}"]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
                              start_new_session=True) as follower:
            self._followed[name] = follower
            assert follower.stdout is not None
            for line in follower.stdout:
                with self._lock:
                    self._heard(name, line.rstrip("\n"))
