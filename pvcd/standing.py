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
from .cluster.records import Fence, FenceRecord, Value
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


class Company:
    """Is another host writing this node's keepalive? Used by the keepalive thread alone.

    The key moves by this process's own writes only. A write of an earlier process may come late, and somebody may try the key by hand: so one
    foreign move means nothing, and three within ten rounds do. When the other is gone, ten quiet rounds end it.
    """

    MOVES, ROUNDS = 3, 10

    def __init__(self) -> None:
        self._created = self._most = 0
        self._moves: list[int] = []
        self._round, self._company = 0, False

    def seen(self, key: Value) -> bool:
        """A look at the key, before a write at the version seen; True while there is company."""
        self._round += 1
        if key.czxid == self._created and key.version > self._most:
            self._moves.append(self._round)
        self._moves = [at for at in self._moves if self._round - at < self.ROUNDS]
        self._most = key.version + 1 if key.czxid != self._created else max(self._most, key.version + 1)
        self._created = key.czxid
        self._company = len(self._moves) >= (1 if self._company else self.MOVES)
        return self._company


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
