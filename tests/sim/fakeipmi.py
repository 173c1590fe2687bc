# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A model of the nodes' controllers and of ipmitool."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pvcd.ipmi import Bmc, Power, Reading

if TYPE_CHECKING:
    from .cluster import Cluster, Daemon, Host


class FakeIpmi:
    """Controllers as one node sees them: `ok`, `dead`, `ignore` (accepts off, stays on), `lie` (reports off, stays on), `glitch` (after the
    order it reports off once, and is `ignore` then), `wrong` (the next machine's).
    """

    def __init__(self, cluster: Cluster, daemon: Daemon) -> None:
        self._cluster, self._daemon = cluster, daemon

    def _host(self, bmc: Bmc) -> Host | None:
        host = self._cluster.hosts[bmc.host]
        if host.bmc == "wrong":
            names = self._cluster.names
            host = self._cluster.hosts[names[(names.index(host.name) + 1) % len(names)]]
        return host if host.bmc != "dead" and self._daemon.host.zk.connected else None

    def cipher(self, _bmc: Bmc) -> int | None:
        return 3

    def status(self, bmc: Bmc) -> Reading:
        self._daemon.interrupted("ipmi status")
        host = self._host(bmc)
        if host is None:
            return Reading(Power.UNKNOWN, "no answer")
        if host.bmc == "glitched":
            host.bmc = "ignore"
            return Reading(Power.OFF)
        return Reading(Power.OFF if not host.power or host.bmc == "lie" else Power.ON)

    def off(self, bmc: Bmc) -> str:
        self._daemon.interrupted("ipmi off")
        host = self._host(bmc)
        if host is not None and host.bmc == "glitch":
            host.bmc = "glitched"
        if host is not None and host.bmc == "ok" and host.power:
            self._cluster.late_offs.append((self._cluster.now + (0.3, 6.0)[self._cluster.ids % 2], host.name))
        return "Chassis Power Control: Down/Off"

    def on(self, bmc: Bmc) -> str:
        self._daemon.interrupted("ipmi on")
        if self._host(bmc) is not None:
            self._cluster.power_on(bmc.host)
        return "Chassis Power Control: Up/On"

    def guid(self, bmc: Bmc) -> str | None:
        host = self._host(bmc)
        if bmc.host == self._daemon.host.name:
            return "1" * 31 + bmc.host  # asked at the start, before anybody has mixed up the cables
        return None if host is None else "1" * 31 + host.name
