# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Publishes, for each VM that runs here, how it differs from its stored definition (`pvcd.drift`). Display, and what the client asks before
a stop: nothing here decides anything.

Runs on a thread of its own that nobody waits for: an answer of libvirt about a guest that hangs may take as long as that guest.
"""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from .cluster.errors import PVCError
from .cluster.store import Store
from .drift import Drift, compare
from .situation import Level

EVERY_S, LOOK_S = 60.0, 5.0


class DriftWatch:
    """`live(uuid)`: the definition as it runs, None if it does not; `clock()` in seconds."""

    def __init__(self, store: Store, live: Callable[[str], str | None], clock: Callable[[], float], say: Callable[[Level, str], None]) -> None:
        self._store, self._live, self._clock, self._say = store, live, clock, say
        self._looked: dict[str, float] = {}
        self._told: dict[str, Drift | None] = {}
        """None: what `/vmmeta` says of an earlier life is not known yet"""

    def run(self, stop: threading.Event, running: Callable[[], Iterable[str]]) -> None:
        """The thread's own loop."""
        while not stop.wait(LOOK_S):
            self.look(running())

    def look(self, running: Iterable[str]) -> None:
        """Compare what is new, and everything once a minute. Blocks on libvirt and ZooKeeper; never raises what they raise."""
        now, here = self._clock(), set(running)
        for uuid in set(self._looked) - here:
            del self._looked[uuid]
        for uuid in sorted(here):
            if now - self._looked.get(uuid, -EVERY_S) >= EVERY_S:
                try:
                    self._compare(uuid)
                except (PVCError, ValueError):
                    continue  # no answer, or no definition that can be read (which others tell): tried again at the next look
                self._looked[uuid] = now

    def _compare(self, uuid: str) -> None:
        live, stored = self._live(uuid), self._store.xml(uuid).data
        if live is None or stored is None:
            return
        found = compare(live.encode(), stored)
        if found == self._told.get(uuid):
            return
        old = self._store.metas([uuid])[uuid]
        told = {"differs": "; ".join((*found.disks, *found.others)), "differs_disks": "; ".join(found.disks)}
        if any(str(old.get(key) or "") != value for key, value in told.items()):
            self._store.write_meta(uuid, told)
        if found != Drift():
            self._say(Level.WARNING, f"{uuid}: runs otherwise than it is defined: {told['differs']}: the next start goes back to the definition")
        self._told[uuid] = found
