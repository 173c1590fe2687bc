# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What may never happen, judged at every commit, event and order to a controller. The table of claims is data: `CLAIM_MOVES`.

I1 nobody runs twice, and nobody where its claim is not · I2 nobody gives up for what passes · I3 claims and fences move by the hand that may move
them, operations too · I5 no life ends without a cause · I9 nobody is fenced who was not silent long enough, and nobody is switched off whose fence
does not say so · I14 nobody writes without end.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pvcd.cluster import definition, schema
from pvcd.cluster.errors import BadDefinition
from pvcd.cluster.records import Change, Claim, Create, Fence, Write, decode_claim, decode_fence
from pvcd.cluster.schema import DaemonState, FencePhase, VMState
from pvcd.local import Status

if TYPE_CHECKING:
    from .cluster import Cluster
    from .fakehypervisor import Copy
    from .host import Host

TICK_S = 5.0
ENDING = {word.value for word in (VMState.STOP, VMState.SHUTDOWN, VMState.RESTART, VMState.DELETE)}
ORDER_S = 60.0
"""A word that ends a life may be older than the life by as long as a start may be held up between its gate and its effect."""
GIVEN_UP_S, ENDS = 590.0, 3
"""Nobody gives a VM up before it was refused for so long, or its QEMU has ended by itself more often."""


class Violation(AssertionError):
    """An invariant of the protocol does not hold."""


class Outside(BaseException):
    """The world has left the promises: this seed ends here, and proves nothing more. No code of the product may catch it."""


Who = tuple[str, str, str]
"""before, after, by whom. Before and after: `free`, `held` or the phase of the operation; `given by dest`: held by the operation's destination.
By: `holder`, `dest` (of the operation), `new` (who holds it afterwards), `anybody`; after a `+` what must be so: `holder dead` is proved,
the operation is `old`: of protocol 1. A dead holder's claim may be anybody's; where nothing is said, the holder stays who it is."""
CLAIM_MOVES: tuple[Who, ...] = (
    ("free", "held", "new"), ("held", "free", "holder"), ("held", "free", "anybody + holder dead"),
    ("held", "ready", "dest"), ("ready", "held", "holder"), ("ready", "held", "dest"), ("ready", "free", "holder"), ("ready", "run", "holder"),
    ("run", "held", "holder"),
    ("run", "given by dest", "holder"), ("run", "held by dest", "dest + old"),
    ("given", "held", "holder"), *((phase, "free", "anybody + holder dead") for phase in ("ready", "run", "given")))


def kind(claim: Claim | None) -> str:
    return "free" if claim is None else str(claim.op.phase.value) if claim.op is not None else "held"


class Oracles:
    """Everything that was seen of one world, and what follows from it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._claims: dict[str, Claim | None] = {}
        self._fences: dict[str, Any] = {}
        self._ending: dict[str, float] = {}
        """VM → when it was last told something that ends a life"""
        self._shaken: dict[str, float] = {}
        """node → when a fence, a boot or an operator last declared its incarnation dead"""
        self._born: dict[int, float] = {}
        self.refused: set[tuple[str, str]] = set()
        """machine, VM: since it last ran, a start of it was refused there"""
        self.judged: frozenset[str] = frozenset()
        """the names of `faults.JUDGED` that count here"""
        self.moves = 0
        """writes of daemons to claims, fences and VMs' words"""
        self.lately: list[str] = []
        self._sent: dict[str, tuple[str, str]] = {}
        """VM → who sent it to which node, if a daemon did"""

    def forget(self) -> None:
        """ZooKeeper's past has become another one."""
        nodes = self._cluster.server.nodes
        self._claims = {path: self._claim(node.data) for path, node in nodes.items() if path.startswith(schema.CLAIMS + "/")}
        self._fences = {path: decode_fence(node.data) for path, node in nodes.items() if path.startswith(schema.FENCES + "/")}

    @staticmethod
    def _claim(data: bytes | None) -> Claim | None:
        found = decode_claim(data)
        return found if isinstance(found, Claim) else None

    # ---------------------------------------------------------------------------------------------------------- commits

    def committed(self, client: str, changes: Sequence[Change]) -> None:
        for change in changes:
            if not isinstance(change, (Write, Create)):
                continue
            root, _, rest = change.path[1:].partition("/")
            judge: Callable[[str, str, bytes], None] | None = {
                "claims": self._claim_moved, "fences": self._fence_moved, "domains": self._word_written, "nodes": self._node_written}.get(root)
            if judge is not None and rest:
                judge(client, change.path, change.data)

    def _count(self, client: str, what: str) -> None:
        if client in self._cluster.hosts:
            self.moves += 1
            self.lately = [*self.lately[-7:], f"{self._cluster.now:.2f} {client}: {what}"]

    def _node_written(self, client: str, path: str, _data: bytes) -> None:
        _, _, name, *key = path.split("/")
        if key == ["keepalive"] and name in self._cluster.hosts:
            self._cluster.hosts[name].last_keepalive = self._cluster.now

    def _claim_moved(self, client: str, path: str, data: bytes) -> None:
        """I3: a claim, and the operation in it, moves by the hand that the table names, or after a proof of death."""
        old, new = self._claims.get(path), self._claim(data)
        self._claims[path] = new
        machine = self._cluster.hosts.get(client)
        if machine is None or (old is None and new is None):
            return
        if old is not None and self._cluster.strict:
            self._left_behind(path.rpartition("/")[2], old, new)
        self._count(client, f"claim {path[8:12]} {kind(old)} → {kind(new)}")
        if not any(self._allowed(move, machine.name, old, new) for move in CLAIM_MOVES):
            raise Violation(f"I3: {client} moves the claim {path[8:12]} from {old} to {new}, which is not its to move")
        if new is not None and new.node == machine.name:
            machine.hypervisor.autostarted.discard(path.rpartition("/")[2])

    def _allowed(self, move: Who, me: str, old: Claim | None, new: Claim | None) -> bool:
        before, after, by = move
        who, _, proof = by.partition(" + ")
        after, _, to_dest = after.partition(" by ")
        op = old.op if old is not None and old.op is not None else new.op if new is not None else None
        if (kind(old), kind(new)) != (before, after):
            return False
        stays = old is None or new is None or (old.node, old.inc) == (new.node, new.inc)
        moves = op is not None and new is not None and old is not None and new.node == op.dest != old.node
        if (to_dest and not moves) or (not to_dest and not stays):
            return False
        if kind(new) in ("run", "given") and self._other_operation(old, new):
            return False
        names = {"holder": old and old.node, "dest": op and op.dest, "new": new and new.node, "anybody": me}
        so = {"": True, "holder dead": old is not None and self.is_dead(old.node, old.inc), "old": op is not None and op.v == 1}
        return names[who] == me and so[proof]

    @staticmethod
    def _other_operation(old: Claim | None, new: Claim | None) -> bool:
        a, b = old and old.op, new and new.op
        return a is None or b is None or (a.id, a.dest, a.dinc) != (b.id, b.dest, b.dinc)

    def is_dead(self, name: str, inc: str) -> bool:
        found = self._cluster.server.nodes.get(schema.fence(name))
        fence = decode_fence(found.data) if found else None
        return fence is not None and (getattr(fence, "inc", inc) != inc or getattr(fence, "phase", None) is FencePhase.FENCED)

    def _left_behind(self, uuid: str, old: Claim, new: Claim | None) -> None:
        """I1, by construction: when a claim has left a node, nothing that runs or that libvirt may wake is left there."""
        for machine in self._cluster.fabric.running(uuid):
            if new is not None and not self._excluded(uuid, [machine]):
                self._runs_where_claimed(machine, uuid, new)
        copy = self._cluster.hosts[old.node].hypervisor.copies.get(uuid)
        moved = new is None or (new.node, new.inc) != (old.node, old.inc)
        if moved and copy is not None and not copy.arrived and not copy.ended and not self._excluded(uuid, [old.node]):
            raise Violation(f"I3: the claim of {uuid} has left {old.node}, where a copy is ({copy.status.value})")

    def _runs_where_claimed(self, machine: str, uuid: str, claim: Claim | None) -> None:
        """I1, by construction: a guest runs only where its claim is, under the incarnation that counts there. (Without any claim it may:
        somebody else has started it, and it is adopted.)
        """
        name = self._cluster.hosts[machine].name
        found = self._cluster.server.nodes.get(schema.fence(name))
        inc = getattr(decode_fence(found.data) if found else None, "inc", "")
        if claim is not None and (claim.node, claim.inc) != (name, inc):
            raise Violation(f"I1: {uuid} runs on {machine}, and the claim is {claim}")

    def _word_written(self, client: str, path: str, data: bytes) -> None:
        parts = path.split("/")
        if len(parts) != 4:
            return
        uuid, key, word = parts[2], parts[3], data.decode("utf-8", "replace")
        if key == "state" and word in ENDING:
            self._ending[uuid] = self._cluster.now
        if key in ("state", "hypervisor", "lasthypervisor"):
            self._count(client, f"{uuid[:4]} {key} {word}")
        if key == "hypervisor":
            self._sent.pop(uuid, None)
            if client in self._cluster.hosts and client != word:
                self._sent[uuid] = (client, word)
        if key == "state" and word == VMState.FAILED.value and client in self._cluster.hosts:
            self._given_up(client, uuid)

    def was_refused(self, machine: str, uuid: str, _why: str) -> None:
        self.refused.add((machine, uuid))

    def _given_up(self, machine: str, uuid: str) -> None:
        """I2: a VM is `failed` only after ten minutes of refusals, four ends of its QEMU, or for what no try can change; and not by a node that
        it was only sent to, while another could start it.
        """
        cluster, hypervisor = self._cluster, self._cluster.hosts[machine].hypervisor
        refused_s = cluster.now - hypervisor.refused.get(uuid, cluster.now)
        try:
            readable = definition.parse((cluster.word(uuid, "xml") or "").encode()).uuid == uuid
        except BadDefinition:
            readable = False
        if not readable or hypervisor.ends.get(uuid, 0) > ENDS:
            return
        if refused_s < GIVEN_UP_S:
            raise Violation(f"I2: {machine} gives {uuid} up after {refused_s:.0f} s of refusals")
        if self._sent.get(uuid, ("", ""))[1] == machine and self._another(uuid):
            raise Violation(f"I2: {uuid[:4]} was sent to {machine}, which cannot start it, and is given up although {self._another(uuid)} could")

    def _another(self, uuid: str) -> str:
        """A node that has not tried yet, and could."""
        able = [host.key for host in self._cluster.hosts.values() if (host.key, uuid) not in self.refused and host.daemon is not None
                and host.zk.connected and host.hypervisor.answers and uuid not in host.hypervisor.refuse and not host.hypervisor.refuses_all
                and self._cluster.server.text(schema.node_key(host.name, "domainstate")) == "ready"]
        return next(iter(able), "")

    # ----------------------------------------------------------------------------------------------------------- fences

    def _fence_moved(self, client: str, path: str, data: bytes) -> None:
        name = path.rpartition("/")[2]
        new, old = decode_fence(data), self._fences.get(path, decode_fence(data))
        self._fences[path] = new
        host = self._cluster.hosts.get(name)
        if host is None or not isinstance(new, Fence):
            return
        self._count(client, f"fence {name} {new.phase.value} {new.inc}")
        before, inc_before = getattr(old, "phase", None), getattr(old, "inc", new.inc)
        if new.phase is FencePhase.UP and new.inc != inc_before:
            self._registered(client, host, before is FencePhase.FENCED)
        if new.inc != inc_before or new.phase in (FencePhase.FENCED, FencePhase.REMOVED) or new.forced:
            self._shaken[name] = self._cluster.now
        if new.phase is FencePhase.FENCING and before is not new.phase and not new.forced:
            silent_s = self._cluster.now - host.last_keepalive
            if silent_s < 6 * TICK_S - 0.01:
                raise Violation(f"I9: {client} fences {name}, silent for {silent_s:.1f} s only")
        if new.phase is FencePhase.FENCED and before is not new.phase and new.method == "ipmi-off":
            machine = self._machine(new.inc)
            if machine is not None and machine.power and not self._lying(machine):
                raise Violation(f"I3: {name} is called fenced by {client} while it has power")
        if new.phase is FencePhase.REMOVED and before is not new.phase:
            self._removed(client, host, before)

    def _lying(self, host: Host) -> bool:
        return self._cluster.lies_possible and host.bmc == "lie"

    def _machine(self, inc: str) -> Host | None:
        """The machine whose present boot this incarnation belongs to."""
        return next((host for host in self._cluster.hosts.values() if inc.rpartition("/")[0] == host.identity), None)

    def _registered(self, client: str, host: Host, proved: bool) -> None:
        """I3: a boot is the proof that the last one is over, unless another machine of that name lives. `proved`: it was fenced."""
        now = self._cluster.now
        me = self._cluster.hosts.get(client, host)
        twins = [twin for twin in self._cluster.hosts.values() if twin.name == host.name and twin is not me and twin.power]
        if twins and not proved and now - host.last_keepalive < 2 * TICK_S:
            raise Violation(f"I3: {client} registers as {host.name}, and {twins[0].key} wrote a keepalive {now - host.last_keepalive:.1f} s ago")
        if twins:
            raise Outside(f"{client} takes the place of {twins[0].key}, which nobody has heard of for two ticks")
        if me.key != me.name:
            raise Outside(f"{client} takes the place of {me.name}, which is off: the controller in its configuration is that of the other machine")
        host.last_keepalive = now  # a registration is a sign of life

    def _removed(self, client: str, host: Host, before: object) -> None:
        word = self._cluster.server.text(schema.node_key(host.name, "daemonstate"))
        named = [path for path, claim in self._claims.items() if claim is not None and claim.node == host.name]
        if client != "outside" and before is FencePhase.UP and (word in (DaemonState.RUN.value, DaemonState.INIT.value) or named):
            raise Violation(f"I3: {client} removes {host.name}, which is in {word} and holds {named}")

    # ----------------------------------------------------------------------------------------------------------- orders

    def off_is_sent(self, by: str, hit: Host | None) -> None:
        """I9: power goes off only where a fence is under way at that moment. `hit`: whose controller it is."""
        if hit is None or not hit.power or "fresh power-off" not in self.judged:
            return
        fence = self._fences.get(schema.fence(hit.name))
        if isinstance(fence, Fence) and fence.phase is FencePhase.UP:
            raise Violation(f"I9: {by} sends a power-off to {hit.key}, whose fence says {fence.phase.value} {fence.inc}")

    # ----------------------------------------------------------------------------------------------------------- guests

    def event(self, machine: str, uuid: str) -> None:
        """I1: never on two hosts at once, and only where its claim is."""
        fabric = self._cluster.fabric
        now, _, _, what = fabric.events[-1]
        if what.startswith("starts life"):
            self._born[fabric.lives] = now
            self.refused = {found for found in self.refused if found[1] != uuid}
        running = fabric.running(uuid)
        if self._excluded(uuid, running):
            return
        if len(running) > 1:
            raise Violation(f"I1: {uuid} runs on {running}")
        if self._cluster.strict and running == [machine]:
            self._runs_where_claimed(machine, uuid, self._cluster.claim(uuid))
        if running:
            self._older_than_its_disk(running[0], uuid)

    def _older_than_its_disk(self, running: str, uuid: str) -> None:
        """I4: once a guest has executed anywhere else, a copy that has arrived before is never resumed: its memory is older than the disk.

        Not judged is the residue that `handoff` names: the woken copy has ended, and its own node, in that boot, has given the claim.
        """
        since = self._cluster.hosts[running].hypervisor.copies[uuid].stale
        if since is not None:
            name, boot = since
            source = self._cluster.hosts[name]
            if not (source.power and source.boot == boot):
                raise Violation(f"I4: {uuid} is resumed on {running}, and it has executed elsewhere since this copy was made")
        source = self._cluster.hosts[running]
        for name, host in self._cluster.hosts.items():
            copy = host.hypervisor.copies.get(uuid)
            if name != running and copy is not None and copy.arrived:
                copy.stale = (running, source.boot)

    def _excluded(self, uuid: str, running: list[str]) -> bool:
        """Outside the promises: a controller that reports off for a machine that runs, is silent, and does not hear of it; what libvirt
        started by itself before pvcd could look.
        """
        hosts = [self._cluster.hosts[name] for name in running]
        return any(self._lying(host) or uuid in host.hypervisor.autostarted for host in hosts)

    def ended(self, machine: str, uuid: str, copy: Copy, what: str) -> None:
        """I5: a daemon has ended this copy. A life ends by an order, or with its node; what has arrived and did not run may go without its claim."""
        hosts = self._cluster.hosts
        daemon = hosts[machine].daemon
        leaves = daemon is not None and daemon.env.phase is not None  # the host is being shut down
        if leaves or copy.status in (Status.CRASHED, Status.MIGRATING) or uuid in hosts[machine].hypervisor.autostarted:
            return
        if any(uuid in host.hypervisor.copies and host.hypervisor.copies[uuid].life == copy.life for host in hosts.values()):
            return
        claim = self._claims.get(schema.claim(uuid))
        if copy.arrived and copy.status is Status.PAUSED and (claim is None or claim.node != hosts[machine].name):
            return
        since = self._born.get(copy.life, 0.0)
        ordered = self._ending.get(uuid, -ORDER_S) >= since - ORDER_S or self._cluster.server.text(schema.domain_key(uuid, "state")) in ENDING
        if self._cluster.strict and not ordered and self._shaken.get(hosts[machine].name, -1.0) < since:
            raise Violation(f"I5: {machine}: {uuid[:4]} {what} in its life {copy.life}, and nobody has ordered it")
