# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Prints one coloured, dated, prefixed line. Any thread; a line is one write.

Under journald (JOURNAL_STREAM) the date is the journal's, and the line begins with sd-daemon's `<N>` priority, so that
`journalctl -p warning` works; `-o cat` shows the coloured prefix.
"""
from __future__ import annotations

import os
import sys
from datetime import datetime
from enum import Enum

from .cluster.schema import printable


class Level(Enum):
    """Priority for the journal, and the colour of the prefix."""

    QUIET = (7, "\033[90m")
    INFO = (6, "\033[92m")
    WARNING = (4, "\033[93m")
    CRITICAL = (2, "\033[91m")


def echo(message: str, prefix: str = "", level: Level = Level.INFO) -> None:
    """Print `message`; several lines become several lines with the same prefix. A stdout that is gone or full loses the line."""
    number, colour = level.value
    journal = "JOURNAL_STREAM" in os.environ
    coloured = journal or sys.stdout.isatty()
    mark = f"{colour}>>>\033[0m " if coloured else ">>> "
    head = f"<{number}>" if journal else ""
    date = "" if journal else datetime.now().strftime("%Y/%m/%d %H:%M:%S.%f")[:-3] + " "
    lines = [f"{head}{mark}{date}{prefix + ' - ' if prefix else ''}{printable(line)}\n" for line in message.split("\n")]
    try:
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
    except (OSError, ValueError):
        return  # nobody reads, or the disk is full: the daemon goes on
