# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Decides what the flush or the unflush of this node does next, for all its VMs at once. Pure.

The word in `domainstate` changes only when it is true: `flushed` when no claim is held here, no wanted VM is homed here and none is on its
way here; `ready` when every VM that was called home has come or was refused (a node in `unflush` receives them, so nobody waits for the word).
A daemon that dies in between finds the word and goes on.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from . import claims, schema
from .claims import Actor
from .placement import WANTED, Planning, promised
from .records import Change, Check, Claim, ClaimRecord, DomainRecord, View
from .schema import OpPhase, VMState

AT_ONCE = 4
"""Migrations of one flush that are under way at the same time."""
TURN = "waits for its turn"


@dataclass(frozen=True)
class Order:
    """One VM's next order, as changes to be applied in a transaction of their own."""

    uuid: str
    changes: tuple[Change, ...]
    reason: str
    target: str


@dataclass(frozen=True)
class NodePlan:
    """`orders` to give now; `under_way` VMs that leave (the ordered ones too), or are still coming; `blocked` VMs that do not, with the reason."""

    orders: tuple[Order, ...] = ()
    under_way: tuple[str, ...] = ()
    blocked: tuple[tuple[str, str], ...] = ()

    @property
    def done(self) -> bool:
        return not (self.orders or self.under_way or self.blocked)


@dataclass(frozen=True)
class Cluster:
    """Every VM as read in bulk, and the memory of each (None: its definition cannot be read)."""

    view: View
    domains: Mapping[str, DomainRecord]
    claims: Mapping[str, ClaimRecord]
    sizes: Mapping[str, int | None]

    def claim(self, uuid: str) -> ClaimRecord:
        return self.claims.get(uuid, ClaimRecord(None, -1))


def plan_flush(me: Actor, cluster: Cluster, paused: Collection[str] = (), at_once: int = AT_ONCE,
               halted: Mapping[str, str] = MappingProxyType({})) -> NodePlan:
    """What a node in `flush` does next, with at most `at_once` migrations under way.

    `paused`: VMs that were refused elsewhere a moment ago and wait before another try. `halted`: VMs here whose guest does not
    execute, and why: they cannot be migrated, and are not ordered to.
    """
    planning = Planning(cluster.view, promised(cluster.domains, cluster.claims, cluster.sizes))
    orders: list[Order] = []
    under_way: list[str] = []
    arriving: list[str] = []
    blocked: list[tuple[str, str]] = []
    for uuid in sorted(set(cluster.domains) | set(cluster.claims)):
        record, claim = cluster.domains.get(uuid, DomainRecord(uuid)), cluster.claim(uuid)
        source, phase = _arrival(me, claim)
        if source:
            if _acts(cluster, uuid):
                arriving.append(uuid)
            elif phase is OpPhase.RUN:
                blocked.append((uuid, f"arrives from {source}, which does not run: its copy here waits for that"))
            continue
        held = isinstance(claim.value, Claim) and claim.value.node == me.node
        if not held and not (claim.value is None and record.hypervisor == me.node and record.state in WANTED):
            continue
        if held and _is_leaving(me, record, claim):
            under_way.append(uuid)
        elif record.state not in WANTED:
            blocked.append((uuid, f"is here with state {_shown(record)}: nothing says what is wanted"))
        elif held and uuid in halted:
            blocked.append((uuid, f"{halted[uuid]}, and a guest that does not run is not migrated: resume it, or stop it"))
        elif uuid in paused:
            blocked.append((uuid, "was refused elsewhere; tried again soon"))
        elif held and len(under_way) >= at_once:
            blocked.append((uuid, TURN))
        else:
            placed = planning.choose(cluster.sizes.get(uuid) or 0, {me.node})
            if placed.target is None:
                blocked.append((uuid, placed.reason))
                continue
            orders.append(_sent(me, record, claim, placed.target, placed.reason))
            under_way += [uuid] if held else []
    return NodePlan(tuple(orders), (*under_way, *arriving), tuple(blocked))


def _arrival(me: Actor, claim: ClaimRecord) -> tuple[str, OpPhase | None]:
    """From where, and how far: it was agreed to before the flush, and will be held here in a moment. Then the flush sends it on."""
    held = claim.value
    if isinstance(held, Claim) and held.node != me.node and held.op is not None and held.op.dest == me.node:
        return held.node, held.op.phase
    return "", None


_MOVING = (VMState.STOP, VMState.SHUTDOWN, VMState.RESTART, VMState.MIGRATE, VMState.DELETE)


def _is_leaving(me: Actor, record: DomainRecord, claim: ClaimRecord) -> bool:
    """On its way to another node, to a stop, or to a new life: the flush waits for what comes of it."""
    in_flight = isinstance(claim.value, Claim) and claim.value.op is not None
    elsewhere = record.state is VMState.START and record.hypervisor not in (me.node, "", None)
    return in_flight or elsewhere or record.state in _MOVING


def _shown(record: DomainRecord) -> str:
    return record.state.value if isinstance(record.state, VMState) else str(record.state or "missing")


def _sent(me: Actor, record: DomainRecord, claim: ClaimRecord, target: str, reason: str) -> Order:
    """A VM that runs here goes live (`migrate`); one that waits to be started is re-homed."""
    state = VMState.MIGRATE if claim.value else VMState.START
    gate = (Check(schema.claim(record.uuid), claim.version),) if claim.exists else ()
    return Order(record.uuid, (me.mine, *gate, *claims.order(record, state, target, me.node)), f"flush: to {target} ({reason})", target)


def plan_unflush(me: Actor, cluster: Cluster, ordered: Collection[str] = ()) -> NodePlan:
    """What a node in `unflush` does next: VMs that run elsewhere and whose `lasthypervisor` is this node come home.

    `ordered`: VMs that were told to come home since the word was written; one that was refused is not told twice.
    `lasthypervisor` stays until the arrival, so that a refused return does not forget the home. A VM whose holder does not run is told, and
    comes when its holder is back; it is not waited for, or one stopped daemon would keep this node from taking VMs.
    """
    orders, under_way = [], []
    for uuid, record in sorted(cluster.domains.items()):
        if record.lasthypervisor != me.node:
            continue
        if record.hypervisor == me.node:
            # On its way. The order ends by itself: with the arrival, or taken back within 30 s if it cannot come (rows 13 and 31).
            under_way += [uuid] if record.state is VMState.MIGRATE and _acts(cluster, uuid) else []
            continue
        if uuid in ordered:
            continue
        if record.state is VMState.START:
            changes = (me.mine, *claims.order(record, VMState.MIGRATE, me.node))
            orders.append(Order(uuid, changes, f"unflush: home from {record.hypervisor}", me.node))
        elif record.state in (VMState.MIGRATE, VMState.RESTART) and _acts(cluster, uuid):
            under_way.append(uuid)
    return NodePlan(tuple(orders), tuple(under_way))


def _acts(cluster: Cluster, uuid: str) -> bool:
    """Somebody carries out what was ordered: its holder runs, or nobody holds it."""
    held = cluster.claim(uuid).value
    return not isinstance(held, Claim) or cluster.view.is_running(held.node)
