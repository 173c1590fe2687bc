# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Leaves this host's numbers ready for the keepalive, every tick and soon after each lifecycle event.

Runs on the collector thread: when libvirt hangs, only this thread waits.
"""
from __future__ import annotations

import threading
from collections.abc import Callable

from .cluster import schema
from .cluster.errors import PVCError
from .cluster.notices import encode_strangers
from .instances import Instances
from .keepalive import Keepalive, measure
from .local import Hypervisor
from .situation import Level
from .troubles import Troubles

PAUSE_S = 0.2


class Collector:
    """`tick_s`: the keepalive's interval."""

    def __init__(self, hypervisor: Hypervisor, instances: Instances, keepalive: Keepalive, troubles: Troubles, tick_s: float,
                 say: Callable[[Level, str], None]) -> None:
        self._hypervisor, self._instances, self._keepalive, self._troubles = hypervisor, instances, keepalive, troubles
        self._tick_s, self._say = tick_s, say
        self._wake = threading.Event()
        self._trouble = ""

    def wake(self) -> None:
        """Something has started or ended here. Any thread."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """The thread."""
        seen: tuple[set[str], str] = (set(), "")
        while not stop.is_set():
            self._wake.clear()
            self._keepalive.leave(measure(None))
            before = self._instances.known()
            try:
                guests = self._hypervisor.inventory()
            except PVCError as error:
                self._say(Level.WARNING, f"libvirt gives no inventory: {error}")
                self._libvirt_answers(schema.printable(str(error))[:200])
                stop.wait(self._tick_s)
                continue
            self._libvirt_answers("")
            known = set(self._instances.domains)
            running = {guest.uuid for guest in guests if guest.uuid in known}
            outside = encode_strangers(self._instances.strangers(guests, before))
            self._keepalive.leave({**measure(sorted(running), len(guests)), "strangers": outside, "troubles": self._troubles.told(guests)})
            self._instances.inventory_seen(guests)
            if (running, outside) != seen:
                self._keepalive.wake()  # people wait for these lists to change; the next tick may be seconds away
            seen = running, outside
            stop.wait(PAUSE_S)
            self._wake.wait(self._tick_s)

    def _libvirt_answers(self, trouble: str) -> None:
        """Peers send no VM to a host whose libvirt gives no answer."""
        changed, self._trouble = trouble != self._trouble, trouble
        self._keepalive.leave({"libvirtstate": trouble})
        if changed:
            self._keepalive.wake()
