# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Ctrl-C: the process ends at once, at any moment, and says what goes on.

No KeyboardInterrupt is raised: kazoo catches everything where it hands a request to its thread, and would report a request as failed that
is on its way. Every command is one transaction, so there is nothing to take back.
"""
from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

FAREWELL = "Interrupted. What was ordered stays ordered; the cluster goes on with it."
STATUS = 130
_last: list[Callable[[], str]] = []
_held: list[bool] = []


def install() -> None:
    """From here on SIGINT ends the process. Main thread only."""
    signal.signal(signal.SIGINT, _leave)


@contextmanager
def saying(last: Callable[[], str]) -> Iterator[None]:
    """What else is done and said if the process is interrupted in here."""
    _last.append(last)
    try:
        yield
    finally:
        _last.remove(last)


@contextmanager
def ignored() -> Iterator[None]:
    """While another program has the terminal: its Ctrl-C is not ours."""
    _held.append(True)
    try:
        yield
    finally:
        _held.pop()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    if _held:
        return
    try:
        sys.stdout.flush()
    except (RuntimeError, ValueError, OSError):
        pass  # it was being written, or is closed: what is in it stays there
    lines = [last() for last in _last]
    os.write(2, ("\n" * os.isatty(2) + "\n".join([*filter(None, lines), FAREWELL]) + "\n").encode())
    os._exit(STATUS)
