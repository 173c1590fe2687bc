# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Records → what is wrong with the cluster, each with a typed code, the reason and what to do next. Pure.

`status`, `check` and `verify` all say what this says.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from pvcd.cluster.placement import WANTED
from pvcd.cluster.records import Claim, ClaimRecord, DomainRecord, NodeRecord, Operation, View
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase, OpPhase, Unknown, VMState
from pvcd.cluster.survival import stranded


class Level(IntEnum):
    """As monitoring plugins number them."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True)
class Problem:
    """`code` is stable and for scripts; `subject` a node, a VM's name or the cluster."""

    level: Level
    code: str
    subject: str
    text: str
    next: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything that is judged, as read. `sizes`: MiB; `bmc`: what the last check of each node's controller found; `reasons`: of VMs;
    `avoided`: of VMs, the nodes on which they could not be started, and why.
    """

    view: View
    domains: Mapping[str, DomainRecord]
    claims: Mapping[str, ClaimRecord]
    sizes: Mapping[str, int | None]
    bmc: Mapping[str, str]
    reasons: Mapping[str, str]
    avoided: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def name(self, uuid: str) -> str:
        found = self.domains.get(uuid)
        return found.name if found is not None and isinstance(found.name, str) and found.name else uuid

    def holder(self, uuid: str) -> str | None:
        claim = self.claims.get(uuid)
        return claim.value.node if claim is not None and isinstance(claim.value, Claim) else None


def problems(facts: Facts) -> list[Problem]:
    """The worst first."""
    found = [*_cluster(facts)]
    for name in sorted(facts.view.nodes):
        found += _node(facts, facts.view.nodes[name])
    for uuid, record in sorted(facts.domains.items()):
        found += _vm(facts, record)
    found += _names(facts)
    return sorted(found, key=lambda problem: -problem.level)


def survives(facts: Facts) -> dict[str, list[str]]:
    """Of each node that runs: the VMs that its death would leave without a place, with the reason."""
    return {name: [f"{facts.name(lost.uuid)}: {lost.reason}" for lost in stranded(facts.view, facts.domains, facts.claims, facts.sizes, name)]
            for name in sorted(facts.view.nodes) if facts.view.is_running(name)}


def _cluster(facts: Facts) -> Iterable[Problem]:
    if not facts.view.nodes:
        yield Problem(Level.CRITICAL, "no-nodes", "cluster", "no node has ever joined", "Start pvcd on the nodes: systemctl start pvcd")
    if facts.view.hold.hold:
        yield Problem(Level.WARNING, "maintenance", "cluster", f"nobody is fenced until {facts.view.hold.until or 'somebody ends it'} "
                      f"(by {facts.view.hold.by or '?'}): VMs of a node that dies wait", "pvc maintenance off")
    for name, lost in survives(facts).items():
        if lost:
            yield Problem(Level.WARNING, "not-redundant", name, f"if {name} died, {len(lost)} VMs would fit nowhere: {'; '.join(lost)}",
                          "Add memory or a node, or stop VMs.")


def _node(facts: Facts, node: NodeRecord) -> Iterable[Problem]:
    name, fence = node.name, facts.view.fence(node.name)
    held = sum(1 for uuid in facts.claims if facts.holder(uuid) == name)
    if fence is None:
        yield Problem(Level.WARNING, "bad-node", name, "its fence is missing or cannot be understood: it can neither run VMs nor be recovered",
                      "Start pvcd on it, and look at its journal.")
    elif fence.phase is FencePhase.FENCING:
        yield Problem(Level.CRITICAL, "fencing", name, f"fencing, not confirmed: nothing proves yet that it is off; {held} VMs wait",
                      f"Mend its BMC, or make sure that it is off and say so: pvc node confirm-off {name}")
    elif fence.phase is FencePhase.FENCED:
        yield Problem(Level.CRITICAL, "fenced", name, f"it was fenced ({fence.method or '?'}) and is not back", f"pvc history {name}")
    elif node.daemonstate is DaemonState.DEAD:
        yield Problem(Level.CRITICAL, "dead", name, "it is dead, and not fenced yet", f"pvc history {name}")
    elif node.daemonstate is DaemonState.STOP:
        yield Problem(Level.WARNING, "unwatched", name, f"pvcd is stopped there: {held} VMs are unwatched", "On it: systemctl start pvcd")
    elif isinstance(node.daemonstate, Unknown) or node.daemonstate is None or not isinstance(node.domainstate, DomainState):
        yield Problem(Level.WARNING, "bad-node", name, f"its state cannot be understood: {node.daemonstate}, {node.domainstate}", f"pvc node info {name}")
    elif node.domainstate is not DomainState.READY:
        yield Problem(Level.WARNING, "not-ready", name, f"it takes no VMs: {node.domainstate.value}", f"pvc node ready {name}")
    if facts.view.is_running(name) and node.libvirtstate not in ("", None):
        yield Problem(Level.CRITICAL, "libvirt", name, f"libvirt gives no answer there ({node.libvirtstate}): its {held} VMs run on, and cannot be "
                      "started, stopped or moved", "On it: systemctl restart libvirtd")
    if facts.bmc.get(name, "").startswith("broken"):
        yield Problem(Level.WARNING, "bmc-broken", name, f"its BMC is {facts.bmc[name]}: it could not be fenced", "Check ipmi_* in its pvcd.conf.")


def _vm(facts: Facts, record: DomainRecord) -> Iterable[Problem]:
    name, holder = facts.name(record.uuid), facts.holder(record.uuid)
    reason = facts.reasons.get(record.uuid, "")
    if not isinstance(record.state, VMState) or not isinstance(record.hypervisor, str) or not isinstance(record.name, str):
        yield Problem(Level.WARNING, "bad-vm", name, f"its keys cannot be understood, nothing is done with it: state {record.state}, "
                      f"hypervisor {record.hypervisor}", f"pvc vm info {record.uuid}")
    elif record.state is VMState.FAILED:
        yield Problem(Level.CRITICAL, "failed", name, f"failed: {reason or 'no reason is known'}", f"Mend it, then: pvc vm start {name}")
    elif record.state in WANTED and (tried := facts.avoided.get(record.uuid)) and (holder is None or _absent(facts, record, holder)):
        yield Problem(Level.CRITICAL, "start-refused", name, f"could not be started on {'; '.join(f'{node}: {why}' for node, why in sorted(tried.items()))}"
                      f": {record.hypervisor} tries", f"pvc history {name}; then put these nodes right")
    elif holder is not None and _absent(facts, record, holder) and reason.startswith("not started: "):
        yield Problem(Level.CRITICAL, "start-refused", name, f"{reason}: {holder} tries again, for 10 min in all", f"pvc vm info {name}")
    elif record.state in WANTED and holder is None and record.hypervisor:
        yield Problem(Level.CRITICAL, "not-running", name, f"is to run, and nobody has it yet (home {record.hypervisor})"
                      + (f": {reason}" if reason else ""), f"pvc vm info {name}; pvc history {name}")
    elif (op := _doubtful(facts.claims.get(record.uuid))) is not None:
        yield Problem(Level.WARNING, "in-doubt", name, f"a migration from {holder} to {op.dest} ended without a word, and {op.dest} is asked who has it",
                      f"If it stays so: bring {op.dest} back; it answers when its pvcd runs.")
    elif facts.sizes.get(record.uuid) is None:
        yield Problem(Level.WARNING, "bad-definition", name, "its definition cannot be read: it cannot be started again", f"pvc vm dump {record.uuid}")


def _absent(facts: Facts, record: DomainRecord, holder: str) -> bool:
    """Wanted, claimed by a node that runs, and not among what that node shows."""
    node = facts.view.nodes.get(holder)
    shown = node.runningdomains if node is not None and facts.view.is_running(holder) else None
    return record.state is VMState.START and record.hypervisor == holder and isinstance(shown, tuple) and record.uuid not in shown


def _doubtful(claim: ClaimRecord | None) -> Operation | None:
    held = claim.value if claim is not None and isinstance(claim.value, Claim) else None
    return held.op if held is not None and held.op is not None and held.op.phase is OpPhase.QUERY else None


def _names(facts: Facts) -> Iterable[Problem]:
    seen: dict[str, list[str]] = {}
    for uuid in sorted(facts.domains):
        seen.setdefault(facts.name(uuid), []).append(uuid)
    for name, uuids in sorted(seen.items()):
        if len(uuids) > 1:
            yield Problem(Level.WARNING, "duplicate-name", name, f"{len(uuids)} VMs have this name: {', '.join(uuids)}", "Use their UUIDs; rename one.")


def cross_checks(facts: Facts, now: float, skew_s: float = 60.0) -> list[Problem]:
    """What only `verify` looks at: each VM in the `runningdomains` of exactly its holder, clocks, and versions. `now`: unix seconds."""
    found = []
    shown: dict[str, list[str]] = {}
    for name, node in sorted(facts.view.nodes.items()):
        running = node.runningdomains if isinstance(node.runningdomains, tuple) and facts.view.is_running(name) else ()
        for uuid in running:
            shown.setdefault(uuid, []).append(name)
        found += _clock_and_version(facts, node, now, skew_s)
    for uuid in sorted({*shown, *(uuid for uuid in facts.claims if facts.holder(uuid))}):
        claim, holder, here = facts.claims.get(uuid), facts.holder(uuid), shown.get(uuid, [])
        moving = claim is not None and isinstance(claim.value, Claim) and claim.value.op is not None
        if uuid not in facts.domains:
            found.append(Problem(Level.WARNING, "orphan", uuid, f"runs on {', '.join(here) or holder}, and is not defined",
                                 "Define it, or stop it there: virsh destroy"))
        elif not moving and here != [holder] and (holder is None or facts.view.is_running(holder)):
            level = Level.CRITICAL if len(here) > 1 else Level.WARNING
            text = f"is claimed by {holder or 'nobody'}, and shown by {', '.join(here) or 'nobody'}"
            found.append(Problem(level, "not-where-claimed", facts.name(uuid), text,
                                 "If it stays so: look at the journals of these nodes."))
    return sorted(found, key=lambda problem: -problem.level)


def _clock_and_version(facts: Facts, node: NodeRecord, now: float, skew_s: float) -> Iterable[Problem]:
    if not facts.view.is_running(node.name):
        return
    if isinstance(node.keepalive, int) and abs(now - node.keepalive) > skew_s:
        yield Problem(Level.WARNING, "clock", node.name, f"its clock and this one differ by {now - node.keepalive:+.0f} s (the times in logs and "
                      "histories are wrong; nothing else depends on it)", "Check the time service on both.")
    protocols = {other.protocol for other in facts.view.nodes.values() if isinstance(other.protocol, int)}
    if isinstance(node.protocol, int) and node.protocol < max(protocols):
        yield Problem(Level.WARNING, "version", node.name, f"it speaks protocol {node.protocol}, others {max(protocols)}", "Upgrade pvc-daemon there.")
