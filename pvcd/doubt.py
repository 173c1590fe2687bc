# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Row M6(b): the source of a migration gives its paused copy up when it can no longer ask who has the guest.

A source that was paused at the end of a live migration and got no answer cannot know whether the guest runs at the destination.
libvirt wakes it some 30 s after the pause, and then the guest may run twice. A node that is up and linked asks (`planner`). One
that is not (cut off from ZooKeeper, or being fenced, or just restarted and without either) has only what libvirt shows, which is
enough: the copy goes before libvirt wakes it. The claim stays: whoever has the guest says so, or it starts again.

A copy that is there at the first look was paused under an earlier process, nobody knows for how long: two ticks of that one, its
restart and two ticks of ours may be more than libvirt waits. It gets one tick, linked or not.
"""
from __future__ import annotations

from .cluster.errors import HypervisorError, HypervisorUnknown
from .environment import Say
from .local import Hypervisor
from .situation import Level


class Doubt:
    """Looked at once a second, on one thread, from the first answer of libvirt to the end of the process."""

    def __init__(self, hypervisor: Hypervisor, tick_s: float, say: Say) -> None:
        self._hypervisor, self._tick_s, self._say = hypervisor, tick_s, say
        self._since: dict[str, float] = {}
        self._inherited: set[str] | None = None

    @property
    def pending(self) -> bool:
        """There is such a copy: a process that ends now would lose count of how long it has been paused."""
        return bool(self._since)

    def look(self, now: float, linked: bool, acknowledged: float | None) -> None:
        """Destroy what has been in doubt for two ticks, unless this node is `linked` and its keepalives are `acknowledged`: then it can
        ask, and the planner sees to it. What an earlier process left goes after one tick in any case. Times are of the boot-time clock,
        seconds. Never raises.
        """
        try:
            self._since = {uuid: self._since.get(uuid, now) for uuid in self._hypervisor.in_doubt()}
            self._inherited = set(self._since) if self._inherited is None else self._inherited & set(self._since)
            asks = linked and acknowledged is not None and now - acknowledged < 2 * self._tick_s
            for uuid, since in self._since.items():
                inherited = uuid in self._inherited
                if now - since >= (1 if inherited else 2) * self._tick_s and (inherited or not asks):
                    why = "an earlier daemon left it" if inherited else "this node cannot ask who has it"
                    # Said each second while libvirt does not do it: somebody may have to.
                    self._say(Level.CRITICAL, f"{uuid}: a paused copy is in doubt, and {why}: it is destroyed before libvirt wakes it. "
                              "The guest goes on where it has arrived, or is started again")
                    self._hypervisor.destroy(uuid)
        except (HypervisorError, HypervisorUnknown):
            return  # a libvirt that does not answer is told of by whoever collects the statistics; nothing can be done here
