# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A model of the nodes' controllers and of ipmitool."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pvcd.bmc import Answer, Bmc, Power, Question, Reading
from pvcd.questions import Questions

if TYPE_CHECKING:
    from .cluster import Cluster, Daemon, Host


STEPS = 300
"""More steps than any fence needs at one moment."""


@dataclass
class Bmcs:
    """The controllers of a cluster, beside each host's own way to behave (`Host.bmc`)."""

    cut: set[tuple[str, str]] = field(default_factory=set)
    """pairs (node, host): no way from the node to the host's controller"""
    takes_s: dict[str, float] = field(default_factory=dict)
    """host → how long its controller takes to answer; what was asked happens at once"""
    alias: dict[str, str] = field(default_factory=dict)
    """name → the host whose controller it leads to"""
    configured: dict[str, str] = field(default_factory=dict)
    """node → the `ipmi_hostname` in its pvcd.conf, where it is not its own name"""
    mute: set[str] = field(default_factory=set)
    """hosts whose controller answers the next question with something else"""
    inside: bool = False
    """hosts see their own controllers from inside"""
    offs: list[tuple[str, str, float]] = field(default_factory=list)
    """orders that a controller accepted: by whom, for whom, when"""

    def host(self, name: str) -> str:
        return self.alias.get(name, name)


class FakeWorkers:
    """The threads of a daemon's `Questions`, and the fence thread that they wake: until nobody has anything to do at
    this moment.
    """

    def __init__(self, daemon: Daemon, questions: Questions) -> None:
        self._daemon, self._questions = daemon, questions
        self._late: list[tuple[float, Answer]] = []
        """questions under way: when their answers come"""

    def turn(self, now: float) -> None:
        daemon = self._daemon
        for _ in range(STEPS):
            for late in [late for late in self._late if late[0] <= now]:
                self._late.remove(late)
                self._questions.finish(late[1])
            question = None if "bmc" in daemon.busy else self._questions.take()
            if question is not None:
                daemon.on_thread("bmc", lambda question=question: self._ask(question))  # type: ignore[misc]
            elif now >= daemon.due["fence"] and "fence" not in daemon.busy:
                daemon.on_thread("fence", daemon.fence)
            else:
                return
        raise AssertionError(f"{daemon.host.name}: fences without an end")

    def _ask(self, question: Question) -> None:
        """A worker's turn: what it does, it does now; what it is told comes when the controller has taken its time."""
        cluster = self._daemon.cluster
        answer = self._questions.answer(question)
        later = cluster.now + cluster.bmcs.takes_s.get(cluster.bmcs.host(question.bmc.host), 0.0)
        self._late.append((later, replace(answer, answered=later)))


def guid_of(name: str) -> str:
    """The GUID of a host's controller."""
    return name.encode().hex().rjust(32, "1")[-32:]


class FakeIpmi:
    """Controllers as one node sees them: `ok`, `dead`, `ignore` (accepts off, stays on), `lie` (reports off, stays on),
    `glitch` (after the order it reports off once, and is `ignore` then), `wrong` (the next machine's), `busy` accepts
    power on, and stays off.
    """

    def __init__(self, cluster: Cluster, daemon: Daemon) -> None:
        self._cluster, self._daemon = cluster, daemon
        self._answered: set[str] = set()

    def _host(self, bmc: Bmc) -> Host | None:
        host = self._cluster.hosts[self._cluster.bmcs.host(bmc.host)]
        if host.bmc == "wrong":
            names = self._cluster.names
            host = self._cluster.hosts[names[(names.index(host.name) + 1) % len(names)]]
        cut = (self._daemon.host.name, host.name) in self._cluster.bmcs.cut
        return host if host.bmc != "dead" and self._daemon.host.zk.connected and not cut else None

    def _muddled(self, bmc: Bmc) -> bool:
        """The answer to this question is of no use."""
        name = self._cluster.bmcs.host(bmc.host)
        muddled = name in self._cluster.bmcs.mute
        self._cluster.bmcs.mute.discard(name)
        return muddled

    def cipher(self, bmc: Bmc) -> int | None:
        return 3 if bmc.host in self._answered else None

    def addresses(self, bmc: Bmc) -> tuple[str, ...]:
        return (self._cluster.bmcs.host(bmc.host),)

    def status(self, bmc: Bmc) -> Reading:
        self._daemon.interrupted("ipmi status")
        host = self._host(bmc)
        if host is None:
            self._answered.discard(bmc.host)
            return Reading(Power.UNKNOWN, "no answer")
        self._answered.add(bmc.host)
        if self._muddled(bmc):
            return Reading(Power.UNKNOWN, "Error: Unable to establish IPMI v2 / RMCP+ session")
        if host.bmc == "glitched":
            host.bmc = "ignore"
            return Reading(Power.OFF)
        return Reading(Power.OFF if not host.power or host.bmc == "lie" else Power.ON)

    def off(self, bmc: Bmc, _deadline_s: float) -> str:
        self._cluster.oracles.off_is_sent(self._daemon.host.key, self._host(bmc))
        self._daemon.interrupted("ipmi off")
        host = self._host(bmc)
        if self._muddled(bmc):
            return "Set Chassis Power Control to Down/Off failed: Node busy"
        if host is not None and host.bmc == "glitch":
            host.bmc = "glitched"
        if host is not None and host.bmc == "ok" and host.power:
            self._cluster.bmcs.offs.append((self._daemon.host.name, host.name, self._cluster.now))
            self._cluster.late_offs.append((self._cluster.now + (0.3, 6.0)[self._cluster.ids % 2], host.name))
        return "Chassis Power Control: Down/Off"

    def on(self, bmc: Bmc) -> str:
        self._daemon.interrupted("ipmi on")
        host = self._host(bmc)
        if self._muddled(bmc):
            return "Set Chassis Power Control to Up/On failed: Node busy"
        if host is not None and host.bmc != "busy":
            self._cluster.power_on(host.name)
        return "Chassis Power Control: Up/On"

    def guid(self, bmc: Bmc) -> str | None:
        host = self._host(bmc)
        if self._muddled(bmc):
            return None
        if self._cluster.bmcs.host(bmc.host) == self._daemon.host.name:
            return guid_of(self._daemon.host.name)  # asked at the start, before anybody has mixed up the cables
        return None if host is None else guid_of(host.name)

    def local_guid(self) -> str | None:
        return guid_of(self._daemon.host.name) if self._cluster.bmcs.inside else None

    def product_uuid(self) -> str:
        return ""
