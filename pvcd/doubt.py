# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Row M6(b) for a daemon that has just started and does not reach ZooKeeper: it knows no claim, only what libvirt shows.

A source that was paused at the end of a live migration and got no answer cannot know whether the guest runs at the destination.
libvirt wakes it some 30 s after the pause, and then it may run twice. So the paused copy goes before that, whoever restarted
pvcd in between. The claim stays: whoever has the guest says so, or the guest starts again.
"""
from __future__ import annotations

from .cluster.errors import HypervisorError, HypervisorUnknown
from .environment import Say
from .local import Hypervisor, Status
from .planner import Level


class Doubt:
    """Looked at about once a second, on one thread. `patience_s`: how long a copy must have been paused; two ticks."""

    def __init__(self, hypervisor: Hypervisor, patience_s: float, say: Say) -> None:
        self._hypervisor, self._patience_s, self._say = hypervisor, patience_s, say
        self._since: dict[str, float] = {}

    def look(self, now: float) -> None:
        """Destroy what has been in doubt for too long. `now`: boot-time clock, seconds. Never raises."""
        try:
            paused = [guest.uuid for guest in self._hypervisor.inventory() if guest.status is Status.MIGRATING]
            looked = {uuid: self._hypervisor.look(uuid) for uuid in paused}
            doubtful = [uuid for uuid, local in looked.items() if local.status is Status.MIGRATING and not local.incoming]
            self._since = {uuid: self._since.get(uuid, now) for uuid in doubtful}
            for uuid, since in self._since.items():
                if now - since >= self._patience_s:
                    self._say(Level.CRITICAL, f"{uuid}: cut off with a paused copy in doubt: it goes before libvirt wakes it")
                    self._hypervisor.destroy(uuid)
        except (HypervisorError, HypervisorUnknown) as error:
            self._say(Level.WARNING, f"looking for copies in doubt: {error}")
