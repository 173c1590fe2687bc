# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Prints one coloured, dated, prefixed line. Any thread; a line is one write.

Under journald (JOURNAL_STREAM) the date is the journal's, and the line begins with sd-daemon's `<N>` priority, so that
`journalctl -p warning` works; `-o cat` shows the coloured prefix.

Nobody waits for the reader: `echo` only queues, and one thread writes. A full pipe (a stopped journald, a pager that somebody left open)
holds up this thread alone; when the queue is full, lines are dropped and counted.
"""
from __future__ import annotations

import os
import queue
import sys
import threading
from datetime import datetime
from enum import Enum
from io import UnsupportedOperation

from .cluster.schema import printable

QUEUED = 2000
"""Messages that wait for the reader at the most: some 300 KiB."""


class Level(Enum):
    """Priority for the journal, and the colour of the prefix."""

    QUIET = (7, "\033[90m")
    INFO = (6, "\033[92m")
    WARNING = (4, "\033[93m")
    CRITICAL = (2, "\033[91m")


class _Writer:
    """The queue and its one thread, which starts with the first line."""

    def __init__(self) -> None:
        self._queue: queue.Queue[str] = queue.Queue(QUEUED)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._dropped = self._pending = 0
        self._thread: threading.Thread | None = None

    def put(self, text: str) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stdout", daemon=True)
                self._thread.start()
            try:
                self._queue.put_nowait(text)
                self._pending += 1
            except queue.Full:
                self._dropped += 1

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written; False if the reader did not take it in time."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._pending, timeout_s)

    def _run(self) -> None:
        while True:
            text = self._queue.get()
            with self._lock:
                dropped, self._dropped = self._dropped, 0
            _write(text)
            if dropped:
                _write(_lines(f"standard output was not read: {dropped} messages before this one are lost", "", Level.WARNING))
            with self._idle:
                self._pending -= 1
                self._idle.notify_all()


def _write(text: str) -> None:
    try:
        try:
            number = sys.stdout.fileno()
        except UnsupportedOperation:  # no file: a test that collects what is printed
            sys.stdout.write(text)
            return
        data = text.encode("utf-8", "backslashreplace")
        while data:  # without Python's buffer, whose lock a blocked write would hold at the end of the process
            data = data[os.write(number, data):]
    except (OSError, ValueError):
        return  # nobody reads, or the disk is full: the daemon goes on


_writer = _Writer()


def echo(message: str, prefix: str = "", level: Level = Level.INFO) -> None:
    """Print `message`; several lines become several lines with the same prefix. Never waits: a stdout that is gone or full loses the line."""
    _writer.put(_lines(message, prefix, level))


def flush(timeout_s: float) -> bool:
    """Before the process ends: what was said is written, if somebody reads it within `timeout_s`."""
    return _writer.flush(timeout_s)


def _lines(message: str, prefix: str, level: Level) -> str:
    number, colour = level.value
    journal = "JOURNAL_STREAM" in os.environ
    coloured = journal or sys.stdout.isatty()
    mark = f"{colour}>>>\033[0m " if coloured else ">>> "
    head = f"<{number}>" if journal else ""
    date = "" if journal else datetime.now().strftime("%Y/%m/%d %H:%M:%S.%f")[:-3] + " "
    return "".join(f"{head}{mark}{date}{prefix + ' - ' if prefix else ''}{printable(line)}\n" for line in message.split("\n"))
