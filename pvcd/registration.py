# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Brings this node to `up` at start, adopts what runs here, or says why not. Runs on the main thread, before any worker.

R1 no fence yet: create it. R2 another boot: the boot is the proof that the old incarnation is gone. R3 same boot, not fenced:
back to up. R6 same boot, fenced: destroy every local copy, then come back as a new incarnation.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .cluster import fences, schema
from .cluster.errors import PVCError
from .cluster.records import ANY, Change, Claim, Create, Delete, Fence, FenceRecord, Write
from .cluster.schema import DaemonState, DomainState, FencePhase
from .cluster.store import Store
from .local import Guest, Hypervisor, Status

LATE_POWER_OFF_S = 30.0
"""A fence that was under way when the node booted: a power-off that was sent may still land for this long. More than the gate, the call and
what a controller takes to act, together (see `questions`)."""


class Refused(PVCError):
    """This node must not join now; the sentence says why and what to do."""


@dataclass(frozen=True)
class Start:
    """`rule` R1, R2, R3 or R6; `inc` the incarnation to live as; `wait_s` before `run`; `destroy` local copies first."""

    rule: str
    inc: str
    wait_s: float = 0.0
    destroy: bool = False


def decide(fence: FenceRecord, boot: str) -> Start:
    """Which rule applies to what `/fences/<me>` holds; pure. Raises Refused."""
    found = fence.value
    if found is None:
        return Start("R1", f"{boot}/0")
    if not isinstance(found, Fence):
        raise Refused(f"The fence of this node cannot be understood ({found}); look at it with zkCli before anything else.")
    old_boot, _, counter = found.inc.rpartition("/")
    number = int(counter) if counter.isascii() and counter.isdigit() else 0
    if found.phase is FencePhase.REMOVED:
        return Start("R6", f"{boot}/{number + 1}")
    if old_boot != boot:
        return Start("R2", f"{boot}/0", LATE_POWER_OFF_S if found.phase is FencePhase.FENCING else 0.0)
    if found.phase is FencePhase.FENCED:
        return Start("R6", f"{boot}/{number + 1}", destroy=True)
    if found.phase is FencePhase.FENCING and found.forced:
        raise Refused("An operator is fencing this node: it does not start. After the power cycle it starts by itself.")
    return Start("R3", found.inc)


class Registration:
    """Writes what a start needs, each step as a transaction that may be repeated by the next try."""

    def __init__(self, store: Store, hypervisor: Hypervisor, node: str, boot: str, machine_id: str, utc: str) -> None:
        self._store, self._hypervisor, self._node, self._boot = store, hypervisor, node, boot
        self._machine_id, self._utc = machine_id, utc
        self._values: Mapping[str, str] = {}
        self._inc = ""

    def run(self, values: Mapping[str, str]) -> tuple[Start, int]:
        """Register this boot; `values` are the node's static keys. Returns the rule and the version of the fence, `up` now.

        Raises Refused, or what the store and libvirt raise.
        """
        self._values = values
        self._store.ensure_roots()
        self._refuse_another_machine()
        fence = self._store.fence(self._node)
        start = decide(fence, self._boot)
        if start.rule == "R2":
            self._refuse_own_old_guests(start.inc)
        if start.rule != "R3":
            self._destroy_strays()
        if start.destroy:
            self._destroy_all()
        self._inc = start.inc
        self._store.apply(self._restored({**values, "incarnation": start.inc}))
        self._bring_up(start, fence)
        return start, self._store.fence(self._node).version

    def rewrite(self, state: DaemonState, mine: Change) -> None:
        """Keys that somebody deleted while this daemon is in `state` come back as they are true now. `mine`: checks that it may still act.

        Keys that are there stay as they are: meanwhile the main thread may have gone from `init` to `run`, and written so.
        """
        protocol = str(schema.PROTOCOL_VERSION) if state is DaemonState.RUN else "0"
        changes = self._restored({**self._values, "incarnation": self._inc, "daemonstate": state.value, "protocol": protocol})
        self._store.apply((mine, *(change for change in changes if isinstance(change, Create))))

    def _restored(self, values: Mapping[str, str]) -> list[Change]:
        """What creates the node and whichever of its keys are missing, and sets those in `values`."""
        node = self._store.node(self._node)
        defaults = {"daemonstate": DaemonState.STOP.value, "domainstate": DomainState.READY.value, "memfree": "0", "memused": "0",
                    "cpuload": "0.0", "runningdomains": "", "domainscount": "0", "keepalive": "0", "libvirtstate": "",
                    "zookeeper": "", "strangers": "{}", "hugepages": ""}
        wanted = {**defaults, "machineid": self._machine_id, **values}
        changes: list[Change] = [] if node.exists else [Create(schema.node(self._node), schema.NODE_VALUE)]
        present = self._store.node_key_names(self._node)
        for key, value in wanted.items():
            path = schema.node_key(self._node, key)
            if key not in present:
                changes.append(Create(path, value.encode()))
            elif key in values:
                changes.append(Write(path, value.encode(), ANY))
        return changes

    def _bring_up(self, start: Start, fence: FenceRecord) -> None:
        """The fence and a keepalive, in one transaction: a node that is `up` again after a death has been silent for long, and would
        be fenced once more before its first tick.
        """
        alive = Write(schema.node_key(self._node, "keepalive"), b"0", ANY)
        if start.rule in ("R1", "R2"):
            self._store.apply((*fences.registered(self._node, fence, start.inc, self._utc), alive, *self._no_departure(fence)))
        elif start.rule == "R6":
            self._store.apply((*fences.rejoined(self._node, fence, start.inc, self._utc), alive, *self._no_departure(fence)))
        elif isinstance(fence.value, Fence) and fence.value.phase is FencePhase.FENCING:
            word = Write(schema.node_key(self._node, "daemonstate"), DaemonState.INIT.value.encode(), ANY)
            self._store.apply(fences.back_up(self._node, fence, (alive, word)))

    def _no_departure(self, fence: FenceRecord) -> tuple[Change, ...]:
        """A node that was fenced while it left comes back as every fenced node does: `flushed`, until a person has looked at it."""
        fenced = isinstance(fence.value, Fence) and fence.value.phase is FencePhase.FENCED
        path = schema.node_key(self._node, "departure")
        found = self._store.raw(path)
        return (Delete(path, found.version),) if fenced and found.data is not None else ()

    def _refuse_another_machine(self) -> None:
        node = self._store.node(self._node)
        if isinstance(node.machineid, str) and node.machineid not in ("", self._machine_id):
            raise Refused(f"The cluster knows {self._node} as another machine (machine-id {node.machineid}, here {self._machine_id}). "
                          f"If two hosts have this name, rename one. If this host replaces the old one: pvc node remove {self._node}")

    def _refuse_own_old_guests(self, inc: str) -> None:
        """A local QEMU under a claim of an older boot of this node cannot be: then the boot is told wrongly."""
        claims = self._store.claims()
        for guest in self._hypervisor.inventory():
            claim = claims[guest.uuid].value if guest.uuid in claims else None
            if isinstance(claim, Claim) and claim.node == self._node and claim.inc != inc and not self._arrives(claim, guest):
                raise Refused(f"{guest.name} runs here under a claim of an earlier boot of this node ({claim.inc}), which cannot be: "
                              f"this boot's identity ({inc}) is read wrongly. Nothing was touched.")

    def _arrives(self, claim: Claim, guest: Guest) -> bool:
        """It came by a migration to this node, and has not been resumed: the call came late, into a boot that did not agree. The source may
        even have handed the claim to the boot before this one.
        """
        op = claim.op
        return op is not None and op.v == 2 and op.dest == self._node and guest.status in (Status.PAUSED, Status.MIGRATING)

    def _destroy_strays(self) -> None:
        """A guest that another node holds and that is here already was migrated to the boot before this one, or started by hand. It may
        run, so it goes before this node comes up; but not what has arrived paused for this node, and runs only once its claim is here.
        """
        claims = self._store.claims()
        for guest in self._hypervisor.inventory():
            claim = claims[guest.uuid].value if guest.uuid in claims else None
            if isinstance(claim, Claim) and claim.node != self._node and not self._arrives(claim, guest):
                self._hypervisor.destroy(guest.uuid)

    def _destroy_all(self) -> None:
        """Fenced, and alive after all: what runs here was, or will be, started elsewhere."""
        known = set(self._store.domains()) | set(self._store.claims())
        for guest in self._hypervisor.inventory():
            if guest.uuid in known:
                self._hypervisor.destroy(guest.uuid)


def adoptable(store: Store, hypervisor: Hypervisor) -> list[str]:
    """UUIDs that run here and that PVC knows, by their record or their claim."""
    known = set(store.domains()) | set(store.claims())
    return sorted(guest.uuid for guest in hypervisor.inventory() if guest.uuid in known)


