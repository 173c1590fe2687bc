# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Decides how this node leaves when its host is shut down or rebooted, and how it comes back. Pure.

ANNOUNCE: the flush and the departure are written. FLUSH: the ordinary flush sends the VMs elsewhere. CLOSE: what is left is asked to
power off, and loses its power after `shutdown_timeout`; words stay, claims are freed. END: the daemon stops as always. Every phase has
an end of its own, so a host that is told to shut down does so, whatever ZooKeeper, libvirt and the guests do.
"""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .cluster import schema
from .cluster.claims import Actor
from .cluster.notices import Departure
from .cluster.records import Change, Create, Delete, NodeRecord, Write
from .cluster.schema import DomainState
from .local import COPY, Local, Status
from .situation import Level, Step, Verb

IDLE_S = 10.0
"""A flush that has ordered nothing, and waits for nothing, for so long has done what it can."""
AWAY_S = 30.0
"""Without ZooKeeper for so long, nothing more is hoped of it."""
AFTERWARDS_S = 60.0
"""What is not gone so long after `shutdown_timeout` does not hold the host up."""


class Phase(str, Enum):
    """In this order, never back."""

    ANNOUNCE = "announce"
    FLUSH = "flush"
    CLOSE = "close"
    END = "end"


@dataclass(frozen=True)
class Limits:
    """`flush`: send VMs elsewhere first; `flush_s`: for at most so long; `shutdown_s`: what a guest gets to power off."""

    flush: bool = True
    flush_s: float = 300.0
    shutdown_s: float = 30.0


@dataclass(frozen=True)
class Facts:
    """`word`: this node's `domainstate`; `announced`: the departure is written, or need not be; `left`: VMs that run here, or that
    this node holds. Seconds since: the departure began, the flush last did anything, ZooKeeper last answered, CLOSE began.
    """

    word: object
    announced: bool
    left: int
    elapsed_s: float
    idle_s: float
    away_s: float
    closing_s: float


def next_phase(phase: Phase, facts: Facts, limits: Limits) -> tuple[Phase, str]:
    """The phase that the departure is in now, and why it has come to that ('' while it stays)."""
    if phase is Phase.CLOSE:
        if facts.left == 0:
            return Phase.END, "nothing of PVC runs here any more"
        if facts.closing_s >= limits.shutdown_s + AFTERWARDS_S:
            return Phase.END, f"{facts.left} VMs could not be ended or given back in {facts.closing_s:.0f} s: the host ends them"
        return phase, ""
    if phase is Phase.END:
        return phase, ""
    if facts.away_s >= AWAY_S:
        return Phase.CLOSE, f"ZooKeeper has not answered for {facts.away_s:.0f} s: guests are shut down here"
    if facts.elapsed_s >= limits.flush_s:
        return Phase.CLOSE, f"host_shutdown_timeout ({limits.flush_s:.0f} s) is over: what is left is shut down here"
    if phase is Phase.ANNOUNCE:
        if not facts.announced:
            return phase, ""
        return (Phase.FLUSH, "VMs are sent elsewhere first") if limits.flush else (Phase.CLOSE, "guests are shut down (host_shutdown)")
    if facts.word is DomainState.FLUSHED:
        return Phase.CLOSE, "flushed"
    if facts.word is not DomainState.FLUSH:
        return Phase.CLOSE, "the flush was taken back: what is here is shut down here"
    if facts.idle_s >= IDLE_S:
        return Phase.CLOSE, f"nothing more can go elsewhere (tried for {facts.idle_s:.0f} s): what is left is shut down here"
    return phase, ""


def announcement(me: Actor, node: NodeRecord, at: str, held: int) -> tuple[Change, ...]:
    """The flush and the departure, in one transaction. Nothing where an operator has flushed the node (it stays so after the boot), or
    where its word cannot be understood (no flush is begun on that; its guests are shut down).
    """
    if node.domainstate not in (DomainState.READY, DomainState.UNFLUSH):
        return ()
    path, told = schema.node_key(node.name, "departure"), Departure(at, True, held).encode()
    key = Write(path, told, node.version("departure")) if "departure" in node.versions else Create(path, told)
    word = Write(schema.node_key(node.name, "domainstate"), DomainState.FLUSH.value.encode(), node.version("domainstate"))
    return (me.mine, word, key)


def homecoming(me: Actor, node: NodeRecord) -> tuple[Change, ...]:
    """At the next start: the departure is over, and what it sent away comes home, as after `node ready`."""
    if "departure" not in node.versions:
        return ()
    over = Delete(schema.node_key(node.name, "departure"), node.version("departure"))
    if not (isinstance(node.departure, Departure) and node.departure.back and node.domainstate in (DomainState.FLUSH, DomainState.FLUSHED)):
        return (me.mine, over)  # the word is another's by now, or the departure cannot be understood: that is no order
    word = Write(schema.node_key(node.name, "domainstate"), DomainState.UNFLUSH.value.encode(), node.version("domainstate"))
    return (me.mine, word, over)


def plan_alone(local: Local, shutdown_s: float | None, timeout_s: float) -> Step:
    """CLOSE without ZooKeeper, one VM: it may be stopped without any claim, because a stop never makes a second copy. The claim is left to
    the next boot. What a migration has paused is left to the end of the host.
    """
    if local.status not in COPY:
        return Step(42, f"this host is shut down, without ZooKeeper: {local.status.value}", level=Level.QUIET,
                    again_s=None if local.status is Status.ABSENT else 1.0)
    if shutdown_s is None:
        return Step(42, "this host is shut down, and ZooKeeper does not answer: the guest is asked to power off", Verb.SHUT_DOWN,
                    level=Level.WARNING, again_s=1.0)
    if shutdown_s >= timeout_s:
        return Step(42, f"has not powered off in {timeout_s:.0f} s: its power goes off", Verb.DESTROY, level=Level.WARNING, again_s=1.0)
    return Step(42, "waits for the guest to power off", level=Level.QUIET, again_s=1.0)
