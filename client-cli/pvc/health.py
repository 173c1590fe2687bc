# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Records → what is wrong with the cluster, each with a typed code, the reason and what to do next. Pure.

`status`, `check` and `verify` all say what this says.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from pvcd.cluster.notices import Departure, Trouble
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
    `tries`: what came of the tries to fence a node; `avoided`: of VMs, the nodes on which they could not be started, and why.
    """

    view: View
    domains: Mapping[str, DomainRecord]
    claims: Mapping[str, ClaimRecord]
    sizes: Mapping[str, int | None]
    bmc: Mapping[str, str]
    reasons: Mapping[str, str]
    tries: Mapping[str, str] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)
    """by VM: how it runs otherwise than it is defined, as its node has told"""
    avoided: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    servers: Sequence[Mapping[str, Any]] = ()
    """the ZooKeeper servers that this client knows, as `servers.ask` found them"""

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
    found += [*_names(facts), *_outside(facts), *_differing(facts), *_troubles(facts)]
    return sorted(found, key=lambda problem: -problem.level)


def survives(facts: Facts) -> dict[str, list[str]]:
    """Of each node that runs: the VMs that its death would leave without a place, with the reason."""
    return {name: [f"{facts.name(lost.uuid)}: {lost.reason}" for lost in stranded(facts.view, facts.domains, facts.claims, facts.sizes, name)]
            for name in sorted(facts.view.nodes) if facts.view.is_running(name)}


def _cluster(facts: Facts) -> Iterable[Problem]:
    if not facts.view.nodes:
        yield Problem(Level.CRITICAL, "no-nodes", "cluster", "no node has ever joined", "Start pvcd on the nodes: systemctl start pvcd")
    if facts.view.hold.restored:
        yield _restored(facts.view.hold.by or "?")
    elif facts.view.hold.hold:
        yield Problem(Level.WARNING, "maintenance", "cluster", f"nobody is fenced until {facts.view.hold.until or 'somebody ends it'} "
                      f"(by {facts.view.hold.by or '?'}): VMs of a node that dies wait", "pvc maintenance off")
    yield from _servers(facts.servers)
    for name, lost in survives(facts).items():
        if lost:
            yield Problem(Level.WARNING, "not-redundant", name, f"if {name} died, {len(lost)} VMs would fit nowhere: {'; '.join(lost)}",
                          "Add memory or a node, or stop VMs.")


def _restored(by: str) -> Problem:
    return Problem(Level.CRITICAL, "restored", "cluster", f"ZooKeeper's data was lost or restored from an older copy, as {by} has seen: no VM is started, "
                   "stopped, moved or recovered, and what is shown here may be old. VMs run on",
                   "Bring the newer data back if it exists. Else, on every node: virsh list, and stop each VM that does not run where 'pvc vm info' says "
                   "held_by; then go on as the manual says under \"When ZooKeeper's data is older than it was\".")


def _servers(found: Sequence[Mapping[str, Any]]) -> Iterable[Problem]:
    """Of those that this client knows; one that is alone and does not answer is told by whoever needs it."""
    silent = [str(server["address"]) for server in found if not server["mode"]]
    if silent:
        yield Problem(Level.WARNING, "zookeeper", ", ".join(silent), f"{len(silent)} of {len(found)} ZooKeeper servers do not answer: when more than half "
                      "are away, nothing is started, stopped, moved or recovered", "On its host: systemctl status zookeeper; systemctl restart zookeeper")


def _node(facts: Facts, node: NodeRecord) -> Iterable[Problem]:
    name, fence = node.name, facts.view.fence(node.name)
    held = sum(1 for uuid in facts.claims if facts.holder(uuid) == name)
    if fence is None:
        yield Problem(Level.WARNING, "bad-node", name, "its fence is missing or cannot be understood: it can neither run VMs nor be recovered",
                      "Start pvcd on it, and look at its journal.")
    elif fence.phase is FencePhase.FENCING:
        tried = facts.tries.get(name, "")
        yield Problem(Level.CRITICAL, "fencing", name, f"fencing, not confirmed: nothing proves yet that it is off{f' ({tried})' if tried else ''}; "
                      f"{held} VMs wait", f"Repair its BMC, or make sure that it is off and say so: pvc node confirm-off {name}")
    elif fence.phase is FencePhase.FENCED:
        then = "its BMC is asked to switch it on" if fence.asked else f"If it is off: pvc node power-on {name}"
        yield Problem(Level.CRITICAL, "fenced", name, f"it was fenced ({fence.method or '?'}) and is not back", f"pvc history {name}. {then}")
    elif node.daemonstate is DaemonState.DEAD:
        yield Problem(Level.CRITICAL, "dead", name, "it is dead, and not fenced yet", f"pvc history {name}")
    elif node.daemonstate is DaemonState.STOP:
        yield _stopped(facts, node)
    elif isinstance(node.departure, Departure) and facts.view.is_running(name):
        yield Problem(Level.WARNING, "leaving", name, f"its host is shutting down; {max(0, node.departure.vms - held)} of "
                      f"{max(held, node.departure.vms)} VMs are gone", f"pvc history {name}")
    elif isinstance(node.daemonstate, Unknown) or node.daemonstate is None or not isinstance(node.domainstate, DomainState):
        yield Problem(Level.WARNING, "bad-node", name, f"its state cannot be understood: {node.daemonstate}, {node.domainstate}", f"pvc node info {name}")
    elif node.domainstate is not DomainState.READY:
        yield Problem(Level.WARNING, "not-ready", name, f"it takes no VMs: {node.domainstate.value}", f"pvc node ready {name}")
    if facts.view.is_running(name) and node.libvirtstate not in ("", None):
        yield Problem(Level.CRITICAL, "libvirt", name, f"libvirt gives no answer there ({node.libvirtstate}): its {held} VMs run on, and cannot be "
                      "started, stopped or moved", "On it: systemctl restart libvirtd")
    yield from _bmc(facts, name)


def _bmc(facts: Facts, name: str) -> Iterable[Problem]:
    word = facts.bmc.get(name, "")
    repair = f"Check ipmi_* in its pvcd.conf, then on it: systemctl restart pvcd. Until then {name} cannot be fenced"
    if word.startswith("not used"):
        yield Problem(Level.CRITICAL, "bmc-wrong", name, f"its BMC is {word}: nothing is sent to it", repair)
    elif word.startswith("broken"):
        yield Problem(Level.WARNING, "bmc-broken", name, f"its BMC is {word}: it could not be fenced", "Check ipmi_* in its pvcd.conf.")
    elif word.startswith("unknown"):
        yield Problem(Level.WARNING, "bmc-unchecked", name, f"whether its BMC answers is {word}", "Start pvcd on the other nodes: they check it.")


def _stopped(facts: Facts, node: NodeRecord) -> Problem:
    """Nobody recovers the VMs of a node that has said `stop`, and nobody sees them: a person must know."""
    name = node.name
    wanted = sorted(facts.name(uuid) for uuid, record in facts.domains.items() if record.state in WANTED and facts.holder(uuid) == name)
    if wanted:
        return Problem(Level.CRITICAL, "unwatched", name, f"pvcd is stopped there, and its {len(wanted)} VMs cannot be seen ({', '.join(wanted[:5])}"
                       f"{', …' if len(wanted) > 5 else ''}): they run if the host runs, and nobody recovers them if not",
                       f"On it: systemctl start pvcd; if it does not start: journalctl -u pvcd says why. If the host is off: switch it on, "
                       f"or pvc node fence {name} (its VMs start elsewhere)")
    if isinstance(node.departure, Departure):
        return Problem(Level.WARNING, "shut-down", name, f"its host was shut down at {node.departure.at}", "Switch it on: its VMs come home by themselves.")
    return Problem(Level.WARNING, "unwatched", name, "pvcd is stopped there; it holds no VM that is to run", "On it: systemctl start pvcd")


def _vm(facts: Facts, record: DomainRecord) -> Iterable[Problem]:
    name, holder = facts.name(record.uuid), facts.holder(record.uuid)
    reason, op = facts.reasons.get(record.uuid, ""), _handed_over(facts.claims.get(record.uuid))
    if not isinstance(record.state, VMState) or not isinstance(record.hypervisor, str) or not isinstance(record.name, str):
        yield Problem(Level.WARNING, "bad-vm", name, f"its keys cannot be understood, nothing is done with it: state {record.state}, "
                      f"hypervisor {record.hypervisor}", f"pvc vm info {record.uuid}")
    elif record.state is VMState.FAILED:
        yield Problem(Level.CRITICAL, "failed", name, f"failed: {reason or 'no reason is known'}", f"Mend it, then: pvc vm start {name}")
    elif record.state in WANTED and holder is None and _is_stopped(facts, record.hypervisor):
        yield Problem(Level.CRITICAL, "not-running", name, f"waits for {record.hypervisor}, which was shut down",
                      f"Elsewhere now: pvc vm move {name}. Or start {record.hypervisor}: it starts there by itself")
    elif record.state in WANTED and (tried := facts.avoided.get(record.uuid)) and (holder is None or _absent(facts, record, holder)):
        yield Problem(Level.CRITICAL, "start-refused", name, f"could not be started on {'; '.join(f'{node}: {why}' for node, why in sorted(tried.items()))}"
                      f": {record.hypervisor} tries", f"pvc history {name}; then put these nodes right")
    elif holder is not None and _absent(facts, record, holder) and reason.startswith("not started: "):
        yield Problem(Level.CRITICAL, "start-refused", name, f"{reason}: {holder} tries again, for 10 min in all", f"pvc vm info {name}")
    elif record.state in WANTED and holder is None and record.hypervisor:
        yield Problem(Level.CRITICAL, "not-running", name, f"is to run, and nobody has it yet (home {record.hypervisor})"
                      + (f": {reason}" if reason else ""), f"pvc vm info {name}; pvc history {name}")
    elif holder is not None and op is not None and not facts.view.is_running(holder):
        yield Problem(Level.WARNING, "migration-waits", name, f"its migration to {op.dest} is under way, and pvcd does not run on {holder}: "
                      "its guest may be paused until it does", f"On {holder}: systemctl start pvcd. If {holder} is off: pvc node info {holder}")
    elif op is not None and op.phase is OpPhase.GIVEN and reason.startswith("resume: "):
        yield Problem(Level.CRITICAL, "not-resumed", name, f"it has arrived on {holder} and is paused there: {reason}; tried again each 2 s",
                      "Look who else has its disks open; nothing of it runs elsewhere under PVC.")
    elif facts.sizes.get(record.uuid) is None:
        yield Problem(Level.WARNING, "bad-definition", name, "its definition cannot be read: it cannot be started again", f"pvc vm dump {record.uuid}")


def _is_stopped(facts: Facts, name: str) -> bool:
    node = facts.view.nodes.get(name)
    return node is not None and node.daemonstate is DaemonState.STOP and facts.view.is_up(name)


def _outside(facts: Facts) -> Iterable[Problem]:
    """VMs of PVC that are to be stopped, and run as libvirt's own domains."""
    for node, strangers in sorted(strangers_of(facts.view).items()):
        for uuid, called in sorted(strangers.items()):
            record = facts.domains.get(uuid)
            if record is not None and facts.holder(uuid) is None:
                yield Problem(Level.WARNING, "runs-outside", facts.name(uuid), f"runs on {node} outside PVC (libvirt's own domain '{called}'), and "
                              f"its state is {getattr(record.state, 'value', record.state)}: it is left alone",
                              f"On {node}: virsh shutdown {called}; virsh undefine {called}" + (
                                  f". Or PVC takes it over as it runs: pvc vm start {facts.name(uuid)}" if record.hypervisor == node else ""))


def strangers_of(view: View) -> dict[str, Mapping[str, str]]:
    """By node that is up: UUID → name of the guests that run there outside PVC."""
    return {name: node.strangers for name, node in view.nodes.items() if isinstance(node.strangers, Mapping) and view.is_up(name)}


def _differing(facts: Facts) -> Iterable[Problem]:
    for uuid, text in sorted(facts.differs.items()):
        if text and uuid in facts.domains and facts.holder(uuid) is not None:
            yield Problem(Level.WARNING, "differs", facts.name(uuid), f"runs otherwise than it is defined ({text}): its next start goes back to the "
                          "definition", f"Make it so: pvc vm modify {facts.name(uuid)}, or undo what was done with virsh")


def _troubles(facts: Facts) -> Iterable[Problem]:
    """What each node that runs has seen of itself."""
    for name in sorted(facts.view.nodes):
        for trouble in facts.view.nodes[name].troubles if facts.view.is_running(name) else ():
            known = not trouble.uuid or trouble.uuid in facts.domains
            if known and trouble.code in TROUBLES:
                yield _trouble(name, facts.name(trouble.uuid) if trouble.uuid else name, trouble)


TROUBLES = {
    "refuses": (Level.CRITICAL, "it does not act: {detail}", "On it: systemctl status pvcd"),
    "libvirt-guests": (Level.WARNING, "libvirt-guests is enabled there: it stops or suspends VMs behind PVC's back when the host goes down",
                       "On it: systemctl disable --now libvirt-guests.service"),
    "hung": (Level.CRITICAL, "hangs on {node}: {detail}; it cannot be moved or shut down", "On {node}: look at its storage, and at: virsh domcontrol {vm}. "
             "It ends by: pvc vm stop {vm}"),
    "paused": (Level.WARNING, "is paused on {node} by somebody: it does not run, and is not moved", "On {node}: virsh resume {vm}. Or: pvc vm stop {vm}"),
    "io-error": (Level.CRITICAL, "is paused on {node} by an I/O error of its disk: it does not run, and is not moved",
                 "Put its storage right (is it full?), then on {node}: virsh resume {vm}. Or: pvc vm stop {vm}"),
    "not-resumed-here": (Level.CRITICAL, "is paused on {node}: libvirt stopped it for a migration or a snapshot, and could not resume it",
                         "Look who else has its disks open, then on {node}: virsh resume {vm}. Or: pvc vm stop {vm}"),
    "blocked": (Level.WARNING, "does not leave {node}, which is being flushed: {detail}", "pvc vm info {vm}. Take the flush back: pvc node ready {node}"),
    "start-refused-here": (Level.WARNING, "could not be started on {node}: {detail}", "Put {node} right: the next VM that is sent there fails as well."),
    "autostart": (Level.WARNING, "libvirt on {node} starts it by itself at boot (autostart), when it may run elsewhere already",
                  "On {node}: virsh autostart --disable {vm}; virsh undefine {vm} (its guest runs on)"),
    "kept": (Level.WARNING, "libvirt on {node} keeps a definition of its own of it, and PVC does not know of changes there",
             "On {node}: virsh undefine {vm} (its guest runs on)"),
}


def _trouble(node: str, subject: str, trouble: Trouble) -> Problem:
    level, text, then = TROUBLES[trouble.code]
    words = {"node": node, "vm": subject, "detail": trouble.detail}
    return Problem(level, trouble.code, subject, text.format(**words), then.format(**words))


def _absent(facts: Facts, record: DomainRecord, holder: str) -> bool:
    """Wanted, claimed by a node that runs, and not among what that node shows."""
    node = facts.view.nodes.get(holder)
    shown = node.runningdomains if node is not None and facts.view.is_running(holder) else None
    return record.state is VMState.START and record.hypervisor == holder and isinstance(shown, tuple) and record.uuid not in shown


def _handed_over(claim: ClaimRecord | None) -> Operation | None:
    """The migration that has begun, and in which the guest is paused for a moment."""
    held = claim.value if claim is not None and isinstance(claim.value, Claim) else None
    return held.op if held is not None and held.op is not None and held.op.phase is not OpPhase.READY else None


def _names(facts: Facts) -> Iterable[Problem]:
    seen: dict[str, list[str]] = {}
    for uuid in sorted(facts.domains):
        seen.setdefault(facts.name(uuid), []).append(uuid)
    for name, uuids in sorted(seen.items()):
        if len(uuids) > 1:
            yield Problem(Level.WARNING, "duplicate-name", name, f"{len(uuids)} VMs have this name: {', '.join(uuids)}", "Use their UUIDs; rename one.")


def cross_checks(facts: Facts, now: float, skew_s: float = 60.0) -> list[Problem]:
    """What only `verify` looks at: each VM in the `runningdomains` of exactly its holder, clocks, ZooKeeper servers and versions. `now`: unix seconds."""
    found = []
    shown: dict[str, list[str]] = {}
    for name, node in sorted(facts.view.nodes.items()):
        running = node.runningdomains if isinstance(node.runningdomains, tuple) and facts.view.is_running(name) else ()
        for uuid in running:
            shown.setdefault(uuid, []).append(name)
        found += _clock_and_version(facts, node, now, skew_s)
        outside = [called for uuid, called in sorted(strangers_of(facts.view).get(name, {}).items()) if uuid not in facts.domains]
        if outside:
            found.append(Problem(Level.WARNING, "strangers", name, f"{len(outside)} guests run there outside PVC, and are left alone: {', '.join(outside)}",
                                 "PVC neither counts nor recovers them."))
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
    if isinstance(node.zookeeper, str) and node.zookeeper and "," not in node.zookeeper:
        yield Problem(Level.WARNING, "one-zookeeper", node.name, f"it knows one ZooKeeper server only ({node.zookeeper}): when that stops, the node "
                      "has none", "Run three servers, or name them all in its pvcd.conf: zookeeper = hv1:2181,hv2:2181,hv3:2181")
    protocols = {other.protocol for other in facts.view.nodes.values() if isinstance(other.protocol, int)}
    if isinstance(node.protocol, int) and node.protocol < max(protocols):
        yield Problem(Level.WARNING, "version", node.name, f"it speaks protocol {node.protocol}, others {max(protocols)}", "Upgrade pvc-daemon there.")
