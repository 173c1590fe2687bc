# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Plans what becomes of the VMs of dead nodes, all at once, with memory counted down. Pure; the janitor applies it.

Recovery follows claims and `hypervisor`, never a list of what was seen running. Every transaction checks the fence that proves
the death of the holder. Whatever has arrived at the destination of a migration does not run before that holds the claim, so its fence
is not asked for; row J1: a destination that is up gets 30 s to take the claim of a whole copy, for the sake of that life.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from .cluster import claims
from .cluster.claims import Actor
from .cluster.placement import WANTED, Placement, Planning, biggest_first, promised
from .cluster.records import Change, Claim, ClaimRecord, DomainRecord, NodeRecord, View
from .cluster.schema import DomainState, FencePhase, OpPhase, VMState
from .planner import recovered_word


@dataclass(frozen=True)
class Recovery:
    """One VM of a dead node. Without `changes` it waits, for the reason given. `failed`: the reason to keep with `failed`."""

    uuid: str
    node: str
    changes: tuple[Change, ...]
    reason: str
    target: str | None = None
    waits: bool = False
    failed: str = ""


def plan_recovery(me: Actor, view: View, domains: Mapping[str, DomainRecord], claimed: Mapping[str, ClaimRecord],
                  sizes: Mapping[str, int | None], broken: Mapping[str, str], dead_s: Mapping[str, float],
                  avoided: Mapping[str, Collection[str]] = MappingProxyType({})) -> list[Recovery]:
    """The next step for every VM of a dead node. `sizes`: MiB of each VM; `broken`: why its definition cannot be used; `dead_s`: for how
    long its holder has been known dead; `avoided`: the nodes on which it could not be started, taken only if there is no other.
    """
    planning = Planning(_welcoming(view), promised(domains, claimed, sizes))
    found = []
    for uuid in biggest_first(set(domains) | set(claimed), sizes):
        record, claim = domains.get(uuid, DomainRecord(uuid)), claimed.get(uuid, ClaimRecord(None, -1))
        if claim.exists:
            need = _Need(planning, sizes.get(uuid) or 0, frozenset(avoided.get(uuid, ())), broken.get(uuid, ""))
            step = _step(me, view, record, claim, need, dead_s.get(uuid, 0.0))
            found += [step] if step else []
    return found


def _welcoming(view: View) -> View:
    """Placement takes a node whose VMs are coming home for one that is ready: the homecoming may take as long as their memory, and what it has
    called is counted as promised. Nobody is to wait for that while there is room.
    """
    def shown(node: NodeRecord) -> NodeRecord:
        return replace(node, domainstate=DomainState.READY) if node.domainstate is DomainState.UNFLUSH else node
    return replace(view, nodes={name: shown(node) for name, node in view.nodes.items()})


@dataclass(frozen=True)
class _Need:
    """What one VM needs of its next node."""

    planning: Planning
    memory_mib: int
    avoided: frozenset[str]
    broken: str

    def placed(self, dead: str) -> Placement:
        found = self.planning.choose(self.memory_mib, {dead, *self.avoided})
        return found if found.target is not None or not self.avoided else self.planning.choose(self.memory_mib, {dead})


def _step(me: Actor, view: View, record: DomainRecord, claim: ClaimRecord, need: _Need, dead_s: float) -> Recovery | None:
    held = claim.value
    if held is None:
        home = record.hypervisor
        fence = view.fence(home) if isinstance(home, str) and home else None
        if fence is None or fence.phase is not FencePhase.FENCED or record.state not in WANTED:
            return None
        assert isinstance(home, str)
        return _recover(me, view, record, claim, need, home, claims.proof(home, view.fences[home]))
    if not isinstance(held, Claim) or not view.is_dead(held.node, held.inc):
        return None
    op, proved = held.op, claims.proof(held.node, view.fences[held.node])
    why = view.may_be_at(op, dead_s)
    if why is not None:
        return Recovery(record.uuid, held.node, (), f"it was on its way, and {why}", waits=True)
    if op is not None and op.v == 1 and op.phase is OpPhase.RUN and op.dest != held.node:
        proved += claims.proof(op.dest, view.fences[op.dest])
    return _recover(me, view, record, claim, need, held.node, proved)


def _recover(me: Actor, view: View, record: DomainRecord, claim: ClaimRecord, need: _Need, dead: str, proved: tuple[Change, ...]) -> Recovery | None:
    def step(words: list[Change], reason: str, target: str | None = None, waits: bool = False, failed: str = "") -> Recovery:
        changes = claims.recover(me, record, claim, proved, words)
        return Recovery(record.uuid, dead, changes, reason, target, waits, failed)

    if not record.exists:
        return step([], "its keys are gone: its claim is freed")
    if not isinstance(record.state, VMState) or not isinstance(record.hypervisor, str):
        return Recovery(record.uuid, dead, (), "its words are not understood: it is left as it is", waits=True)
    if record.state not in WANTED:
        return step(claims.order(record, recovered_word(record.state)), f"{record.state.value}: its claim is freed")
    if view.is_ready(record.hypervisor):
        if claim.value is None or record.hypervisor == dead:
            return None  # its home is back, and takes it itself
        return step(claims.order(record, VMState.START), f"goes on to {record.hypervisor}", record.hypervisor)
    if need.broken:
        return step(claims.order(record, VMState.FAILED), f"failed: {need.broken}", failed=need.broken)
    placed = need.placed(dead)
    if placed.target is None:
        # Freed all the same: the dead node may be switched on again, and takes its VM back if nobody else could.
        if claim.value is None:
            return Recovery(record.uuid, dead, (), f"fits nowhere: {placed.reason}", waits=True)
        return step(claims.order(record), f"fits nowhere: {placed.reason}", waits=True)
    words = claims.order(record, VMState.START, placed.target, _last(record, dead, placed.target))
    return step(words, f"to {placed.target} ({placed.reason})", placed.target)


def _last(record: DomainRecord, dead: str, target: str) -> str | None:
    """`lasthypervisor` after the recovery: the dead node if it was the home, nothing if the VM comes home, else as it is."""
    if record.lasthypervisor == target:
        return ""
    return dead if record.hypervisor == dead and not record.lasthypervisor else None
