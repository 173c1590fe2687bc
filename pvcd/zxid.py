# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Remembers the newest ZooKeeper transaction this node has seen, and refuses a ZooKeeper that is older. Main and timer thread.

A ZooKeeper restored from an older snapshot holds stale claims: a VM could be started in one place while it runs in another.
"""
from __future__ import annotations

from pathlib import Path

from .cluster.errors import PVCError

FILE = "zxid"


class Older(PVCError):
    """ZooKeeper's data is older than what this node has seen."""


def refuse_older(directory: Path, last_zxid: int) -> None:
    """Raises Older. A file that is missing or unreadable refuses nothing: losing it loses nothing."""
    path = directory / FILE
    try:
        seen = int(path.read_text())
    except (OSError, ValueError):
        return
    if last_zxid < seen:
        raise Older(f"ZooKeeper is at transaction {last_zxid:#x}, and this node has seen {seen:#x}: its data was lost or restored from "
                    f"an older snapshot. Nothing is touched. When every VM runs where /claims says: rm {path}")


class Newest:
    """The newest transaction that this process has seen. kazoo forgets it with each session that
    ends, and is then let in by an older server."""

    def __init__(self) -> None:
        self.seen = 0

    def went_back(self, last_zxid: int) -> bool:
        """0 (no answer yet on this connection) says nothing."""
        older = 0 < last_zxid < self.seen
        self.seen = max(self.seen, last_zxid)
        return older


def keep(directory: Path, last_zxid: int) -> None:
    """Write it down, whole or not at all. A full disk loses only this check."""
    path = directory / FILE
    try:
        temporary = path.with_suffix(".new")
        temporary.write_text(f"{last_zxid}\n")
        temporary.replace(path)
    except OSError:
        return
