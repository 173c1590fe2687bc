# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Everything that this node's objects need of the outside, in one value: the seam of the daemon.

The daemon fills it with the real parts, the simulator with models on a virtual clock. No thread of its own; every
member may be used from any worker.
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .cluster.claims import Actor
from .cluster.history import Entry, record
from .cluster.placement import pages_of
from .cluster.records import View
from .cluster.store import Store
from .departure import Phase
from .local import Hypervisor
from .situation import Level

Say = Callable[[Level, str], None]


class Nudge(Protocol):
    """Looks at a key again, now or after `delay_s`."""

    def __call__(self, key: tuple[str, str], delay_s: float = 0.0) -> None: ...


class Arrivals:
    """Memory promised to VMs that are on their way to this node; one promise at a time is made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._promised: dict[str, int] = {}

    def promise(self, uuid: str, memory_mib: int, free_mib: int) -> bool:
        """Set `memory_mib` aside for `uuid` if it fits into what is free and not promised yet."""
        with self._lock:
            others = sum(size for key, size in self._promised.items() if key != uuid and pages_of(size) == pages_of(memory_mib))
            if memory_mib > free_mib - others:
                return False
            self._promised[uuid] = memory_mib
            return True

    def release(self, uuid: str) -> None:
        with self._lock:
            self._promised.pop(uuid, None)


@dataclass
class Environment:
    """`actor()` is who acts, or None while this node may not act; `view()` the cluster as last read; times are seconds."""

    node: str
    store: Store
    hypervisor: Hypervisor
    actor: Callable[[], Actor | None]
    view: Callable[[], View]
    clock: Callable[[], float]
    utc: Callable[[], str]
    say: Say
    nudge: Nudge
    mark_slow: Callable[[tuple[str, str], bool], None]
    new_id: Callable[[], str]
    tick_s: float = 5.0
    shutdown_timeout_s: float = 30.0
    arrivals: Arrivals = field(default_factory=Arrivals)
    halted: dict[str, str] = field(default_factory=dict)
    """VMs held here whose guest does not execute, and why: they cannot be migrated. Each visit of a VM sets or removes its own entry"""
    blocked: dict[str, str] = field(default_factory=dict)
    """VMs that the flush of this node cannot move, and why. Replaced as a whole at each look of the flush"""
    refused_starts: dict[str, tuple[str, float]] = field(default_factory=dict)
    """VMs that libvirt could not start here: its words and when (`clock`). The VM's visits set and remove its entry"""
    refuses: str = ""
    """why this node does not act although it is alive; the keepalive thread sets it"""
    stopping: bool = False
    """the daemon is about to stop: nothing new is received, claimed or started"""
    phase: Phase | None = None
    """of the departure, while this host is being shut down"""
    alone: bool = False
    """this host is being shut down and ZooKeeper is away: guests are ended without asking it"""

    def note(self, subject: str, what: str, why: str) -> None:
        """Keep in the history of a node or VM what was done and why. A history that cannot be written stops nothing."""
        record(self.store, subject, Entry(self.utc(), self.node, what, why))
