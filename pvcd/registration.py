# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Brings this node to `up` at start, adopts what runs here, or says why not. Runs on the main thread, before any worker.

R1 no fence yet: create it. R2 another boot: the boot is the proof that the old incarnation is gone, unless another host of this name is
alive. R3 same boot, not fenced: back to up. R6 same boot, fenced: destroy every local copy, then come back as a new incarnation; same
boot, removed: come back as the same one.

A node is a machine: its machine-id belongs to one name, and its name to one machine-id.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .cluster import fences, schema
from .cluster.placement import WANTED
from .cluster.records import ANY, Change, Check, Claim, ClaimRecord, Create, Delete, Fence, FenceRecord, Value, Write
from .cluster.schema import DaemonState, DomainState, FencePhase
from .cluster.store import Store
from .local import Guest, Hypervisor, Status
from .machine import Host, Refused, WrongIdentity, refuse_strangers

LATE_POWER_OFF_S = 30.0
"""A fence that was under way when the node booted: a power-off that was sent may still land for this long. More than the gate, the call and
what a controller takes to act, together (see `questions`)."""
WATCHED_TICKS = 2.0
"""A host of this name that lives writes its keepalive at least once in so many of its ticks."""


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
        fenced = found.method == fences.REMOVED_FENCED
        # Nobody takes `removed` for the death of an incarnation: what this boot holds by its claims is still its own.
        return Start("R6", f"{boot}/{number + 1}" if fenced or old_boot != boot else found.inc, destroy=fenced and old_boot == boot)
    if old_boot != boot:
        return Start("R2", f"{boot}/0", LATE_POWER_OFF_S if found.phase is FencePhase.FENCING else 0.0)
    if found.phase is FencePhase.FENCED:
        return Start("R6", f"{boot}/{number + 1}", destroy=True)
    if found.phase is FencePhase.FENCING and found.forced:
        raise Refused("An operator is fencing this node: it does not start. After the power cycle it starts by itself.")
    return Start("R3", found.inc)


class Registration:
    """Writes what a start needs, each step as a transaction that may be repeated by the next try."""

    def __init__(self, store: Store, hypervisor: Hypervisor, host: Host, utc: str, say: Callable[[str], None] = lambda _text: None) -> None:
        self._store, self._hypervisor, self._host, self._utc, self._say = store, hypervisor, host, utc, say
        self._node, self._boot, self._machine_id = host.node, host.boot, host.machine_id
        self._values: Mapping[str, str] = {}
        self._inc = ""
        self._seen: Value | None = None

    def look(self) -> float:
        """How long to watch before `run`, in seconds: a host that boots under a name that is `up` may be a copy of one that lives.

        Raises Refused, or what the store raises.
        """
        refuse_strangers(self._store, self._host)
        self._seen = self._keepalive()
        return WATCHED_TICKS * self._store.node(self._node).timing.tick_s if self._is_watched() else 0.0

    def run(self, values: Mapping[str, str], boot_was_other: bool = False) -> tuple[Start, int]:
        """Register this boot; `values` are the node's static keys. Returns the rule and the version of the fence, `up` now.
        `boot_was_other`: this host itself remembers that it has booted since its last start.

        Raises Refused, or what the store and libvirt raise.
        """
        self._values = values
        self._refuse_a_living_twin()
        self._store.ensure_roots()
        fence = self._store.fence(self._node)
        start = decide(fence, self._boot)
        if start.rule in ("R2", "R6") and not start.destroy:
            self._end_own_old_guests(start.inc, fence, boot_was_other)
        if start.rule != "R3":
            self._destroy_strays(fence)
        if start.destroy:
            self._destroy_all(fence)
        self._inc = start.inc
        self._store.apply(self._restored({**values, "incarnation": start.inc}))
        refuse_strangers(self._store, self._host)  # two that start at the same time: each has written before it looks
        self._bring_up(start, fence)
        return start, self._store.fence(self._node).version

    def _keepalive(self) -> Value:
        return self._store.keepalives([self._node])[self._node]

    def _is_watched(self) -> bool:
        fence = self._store.fence(self._node)
        living = isinstance(fence.value, Fence) and fence.value.phase in (FencePhase.UP, FencePhase.FENCING)
        return living and decide(fence, self._boot).rule == "R2"

    def _refuse_a_living_twin(self) -> None:
        now = self._keepalive()
        if not self._is_watched():
            return
        if self._seen is None or (now.version, now.czxid) != (self._seen.version, self._seen.czxid):
            raise WrongIdentity(
                f"{self._node}: another host of this name is alive: its keepalive changes. This host is a copy of it, or was given its name: it "
                "does not join, and nothing that runs is touched. Give this host a name and a machine-id of its own (hostnamectl set-hostname; "
                "rm /etc/machine-id; systemd-machine-id-setup), or switch the other off for good; then: systemctl start pvcd")

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
                    "zookeeper": "", "strangers": "{}", "hugepages": "", "troubles": "[]"}
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
        version = ANY if self._seen is None else self._seen.version  # another host of this name may awake in this very moment
        alive = Write(schema.node_key(self._node, "keepalive"), b"0", version)
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

    def _end_own_old_guests(self, inc: str, fence: FenceRecord, boot_was_other: bool) -> None:
        """A local QEMU under a claim of an older boot of this node cannot be: then the boot is told wrongly, and nothing is touched. Unless
        libvirt itself started it at boot (autostart), and this host remembers that it was another boot: then no claim allows it.
        """
        claims = self._store.claims()
        old = [(guest, claims[guest.uuid]) for guest in self._hypervisor.inventory()
               if guest.uuid in claims and self._is_older(claims[guest.uuid].value, inc) and not self._arrives(claims[guest.uuid].value, guest)]
        by_itself = [guest for guest, _ in old if self._hypervisor.starts_by_itself(guest.uuid)]
        for guest, claim in old:
            named = f"{guest.name} runs here under a claim of an earlier boot of this node ({_inc(claim)})"
            if not boot_was_other or len(by_itself) < len(old):
                cause = (f"libvirt starts it by itself at boot: virsh autostart --disable {guest.name}" if guest in by_itself
                         else f"libvirt-guests or somebody started it, or this boot's identity ({inc}) is read wrongly")
                raise Refused(f"{named}: {cause}. Nothing was touched. If the host has booted since: virsh destroy {guest.name}")
            self._say(f"{named}, because libvirt starts it by itself at boot: it is destroyed here, and started again where it belongs. Keep "
                      f"libvirt from it: virsh autostart --disable {guest.name}")
            self._destroy(guest.uuid, claim, fence)

    def _is_older(self, claim: object, inc: str) -> bool:
        return isinstance(claim, Claim) and claim.node == self._node and claim.inc != inc

    def _arrives(self, claim: object, guest: Guest) -> bool:
        """It came by a migration to this node, and has not been resumed: the call came late, into a boot that did not agree. The source may
        even have handed the claim to the boot before this one.
        """
        op = claim.op if isinstance(claim, Claim) else None
        return op is not None and op.v == 2 and op.dest == self._node and guest.status in (Status.PAUSED, Status.MIGRATING)

    def _destroy_strays(self, fence: FenceRecord) -> None:
        """A guest that another node holds and that is here already was migrated to the boot before this one, or started by hand. It may
        run, so it is destroyed before this node comes up; but not what has arrived paused for this node, and runs only once its claim is here.
        """
        claims = self._store.claims()
        for guest in self._hypervisor.inventory():
            claim = claims.get(guest.uuid)
            if claim is None or not isinstance(claim.value, Claim) or claim.value.node == self._node:
                continue
            if not self._arrives(claim.value, guest):
                self._destroy(guest.uuid, claim, fence)

    def _destroy_all(self, fence: FenceRecord) -> None:
        """Fenced, and alive after all: what runs here was, or will be, started elsewhere. But not what runs outside PVC (row 44)."""
        domains, claims = self._store.domains(), self._store.claims()
        kept = {domain.uuid for domain in self._hypervisor.kept()}
        for guest in self._hypervisor.inventory():
            record, claim = domains.get(guest.uuid), claims.get(guest.uuid)
            outside = guest.uuid in kept and (claim is None or claim.value is None) and (record is None or record.state not in WANTED)
            if not outside and (record is not None or claim is not None):
                self._destroy(guest.uuid, None, fence)

    def _destroy(self, uuid: str, claim: ClaimRecord | None, fence: FenceRecord) -> None:
        """The one before may have taken its time to die: what this was decided on is looked at again. Raises Conflict."""
        checks = () if claim is None else (Check(schema.claim(uuid), claim.version),)
        self._store.apply((*((Check(schema.fence(self._node), fence.version),) if fence.value is not None else ()), *checks))
        self._hypervisor.destroy(uuid)


def _inc(claim: ClaimRecord) -> str:
    return claim.value.inc if isinstance(claim.value, Claim) else ""


def adoptable(store: Store, hypervisor: Hypervisor) -> list[str]:
    """UUIDs that run here and that PVC knows, by their record or their claim."""
    known = set(store.domains()) | set(store.claims())
    return sorted(guest.uuid for guest in hypervisor.inventory() if guest.uuid in known)


