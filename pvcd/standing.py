# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Knows whether this node may act: its incarnation, and the version of its fence while it is `up`.

Written by the registration and the keepalive thread, read by every worker. All transactions of this node check that version
(`mine`), so a standing that is a moment old stops a worker at ZooKeeper instead of letting it act.
"""
from __future__ import annotations

import threading
from enum import Enum

from .cluster.claims import Actor
from .cluster.records import Fence, FenceRecord
from .cluster.schema import FencePhase


class Answer(str, Enum):
    """What the keepalive thread does about its own fence."""

    PUBLISH = "publish"
    OBJECT = "object"
    SILENT = "silent"
    EXIT = "exit"


def answer(fence: FenceRecord, inc: str) -> Answer:
    """The rule: in `fencing` the objection comes before any plain keepalive; forced, the power-off is coming; fenced or another
    incarnation, this process must not go on. A fence that is missing or cannot be understood is no order: nothing is written.
    """
    found = fence.value
    if not isinstance(found, Fence):
        return Answer.SILENT
    if found.inc != inc or found.phase in (FencePhase.FENCED, FencePhase.REMOVED):
        return Answer.EXIT
    if found.phase is FencePhase.UP:
        return Answer.PUBLISH
    return Answer.SILENT if found.forced else Answer.OBJECT


class Standing:
    """`actor()` is this node as it may act now, or None."""

    def __init__(self, node: str) -> None:
        self.node, self.inc = node, ""
        """`inc` is set by the registration, before anything else uses it"""
        self._lock = threading.Lock()
        self._version: int | None = None

    def set_up(self, fence_version: int) -> None:
        with self._lock:
            self._version = fence_version

    def set_down(self) -> None:
        with self._lock:
            self._version = None

    def actor(self) -> Actor | None:
        with self._lock:
            return None if self._version is None else Actor(self.node, self.inc, self._version)
