# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""One simulated machine, and what its disk keeps over a restart."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pvcd.marks import Marks, Memory

from .fakezk import FakeZooKeeper
from .faulty import FaultyHypervisor

if TYPE_CHECKING:
    from .cluster import Daemon


@dataclass
class Host:
    """One machine: power, boot, libvirt, its controller, and the pvcd that runs on it, if one does.

    `name` is the node that it says it is; `key` is the machine itself, another one for a copy. `mark` is what its disk remembers.
    """

    name: str
    hypervisor: FaultyHypervisor
    zk: FakeZooKeeper
    boot: int = 1
    power: bool = True
    bmc: str = "ok"
    daemon: Daemon | None = None
    down_since: float = 0.0
    last_keepalive: float = 0.0
    key: str = ""
    machine: str = ""
    mark: Memory = field(default_factory=Memory)
    refused: bool = False
    """pvcd has ended with the status after which systemd does not try again"""
    wrecked: bool = False
    """no order to switch it on helps"""

    def __post_init__(self) -> None:
        self.key = self.key or self.name
        self.machine = self.machine or hashlib.md5(self.name.encode(), usedforsecurity=False).hexdigest()

    @property
    def identity(self) -> str:
        """Of its present boot; copies have boots of their own."""
        return f"{self.name}{self.boot}"


class Disk(Marks):
    """Marks that are kept on a host's disk."""

    def __init__(self, host: Host) -> None:
        self.host = host
        super().__init__(host.zk, host.name, host.machine)

    def keep(self) -> None:
        self.host.mark = self._memory

    def _load(self) -> Memory:
        return self.host.mark
