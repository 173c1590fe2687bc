# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Keeps one instance per node and per VM in step with ZooKeeper, arms their watches, and sends each visit to its instance.

Watches and events only nudge a key. Visits run on the reconcile workers, which are the only writers of the tables here.
"""
from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

from .cluster import schema
from .cluster.errors import Unreachable
from .cluster.records import Claim
from .cluster.schema import OpPhase
from .cluster.store import Backend
from .environment import Environment
from .local import Guest, Status
from .NodeInstance import NodeInstance
from .situation import Level
from .view import ViewCache
from .VMInstance import VMInstance

DOMAINS, NODES, VIEW = ("domains", ""), ("nodes", ""), ("view", "")
RETRY_S = 1.0

Key = tuple[str, str]


class Instances:
    """`backend` arms the watches; `forget(key)` cancels the appointments of an object that is gone."""

    def __init__(self, env: Environment, backend: Backend, cache: ViewCache, forget: Callable[[Key], None]) -> None:
        self._env, self._backend, self._cache, self._forget = env, backend, cache, forget
        self.nodes: dict[str, NodeInstance] = {}
        self.domains: dict[str, VMInstance] = {}
        self._warned: set[str] = set()
        self._here: set[str] = set()
        """UUIDs of the last inventory"""
        self._lock = threading.Lock()

    def start(self) -> None:
        """Watch the two lists. Raises Unreachable."""
        self._backend.watch_children(schema.DOMAINS, lambda: self._env.nudge(DOMAINS))
        self._backend.watch_children(schema.NODES, lambda: self._env.nudge(NODES))
        self.resync()

    def resync(self) -> None:
        """Look at everything: what a lost watch or event has hidden shows here."""
        tracked = (*[node.key for node in list(self.nodes.values())], *[vm.key for vm in list(self.domains.values())])
        for key in (NODES, VIEW, DOMAINS, *tracked):
            self._env.nudge(key)

    def visit(self, key: Key) -> float | None:
        """One visit of the object that `key` names."""
        kind, name = key
        try:
            if key == VIEW:
                self._cache.refresh()
                return None
            if key in (DOMAINS, NODES):
                sync = self._sync_domains if key == DOMAINS else self._sync_nodes
                sync()
                return None
        except Unreachable:
            return RETRY_S
        found = self.domains.get(name) if kind == "domain" else self.nodes.get(name)
        return found.reconcile() if found is not None else None

    def view_changed(self, names: Iterable[str]) -> None:
        """Some nodes' condition has changed: what was decided on it is decided again."""
        for name in names:
            if name in self.nodes:
                self._env.nudge(("node", name))
        for vm in list(self.domains.values()):
            self._env.nudge(vm.key)

    def inventory_seen(self, guests: Iterable[Guest]) -> None:
        """Every tick: nudge the VMs that libvirt shows otherwise than their last visit did (a lost event, a QEMU that died)."""
        present = {guest.uuid: guest for guest in guests}
        self._here = set(present)
        for uuid, vm in list(self.domains.items()):
            guest = present.get(uuid)
            if (guest.status if guest else Status.ABSENT) is not vm.local.status or (guest is not None) != vm.held_here:
                self._env.nudge(vm.key)
        if any(uuid not in self.domains for uuid in present):
            self._env.nudge(DOMAINS)

    def in_flight(self) -> list[str]:
        """VMs that come here, or may at any moment, and are not resumed yet, or leave and are not handed over yet: they would be paused until
        pvcd is back.
        """
        actor, found = self._env.actor(), []
        for uuid, vm in list(self.domains.items()):
            op = vm.claim.value.op if isinstance(vm.claim.value, Claim) else None
            offered = actor is not None and op is not None and (op.phase, op.dest, op.dinc) == (OpPhase.READY, actor.node, actor.inc)
            if offered or (op is not None and op.phase is not OpPhase.READY and (vm.held_here or op.dest == self._env.node)):
                found.append(uuid)
        return found

    def stay(self, why: str) -> None:
        """Abort what still leaves: it would be paused at its destination until pvcd is back here."""
        for vm in list(self.domains.values()):
            vm.stay(why)

    def remaining(self) -> list[str]:
        """VMs of PVC that the last inventory showed here, or that this node holds as last read."""
        return [uuid for uuid, vm in list(self.domains.items()) if (uuid in self._here and not vm.outside) or vm.held_here]

    def running_here(self) -> list[str]:
        """VMs that this node holds and that ran here at their last visit."""
        return [uuid for uuid, vm in list(self.domains.items()) if vm.held_here and vm.local.status is Status.RUNNING]

    def known(self) -> set[str]:
        """UUIDs of PVC's own VMs. One that is undefined, or defined, while libvirt is asked, belongs to it before or after that."""
        return {uuid for uuid, vm in list(self.domains.items()) if not vm.outside}

    def strangers(self, guests: Iterable[Guest], before: Collection[str] = ()) -> dict[str, str]:
        """UUID → name of the guests that run here outside PVC: with keys and libvirt's own, or without keys. Those with keys come first: the
        others must not start such a VM, and a long list is cut. `before`: what was `known` when libvirt was asked for `guests`.
        """
        vms, known = dict(self.domains), self.known() | set(before)
        found = sorted((guest for guest in guests if guest.uuid not in known),
                       key=lambda guest: (guest.uuid not in vms or not vms[guest.uuid].known, guest.uuid))
        return {guest.uuid: guest.name for guest in found}

    def _sync_domains(self) -> None:
        """An instance for each VM with keys, and for each that runs here or is held here although its keys are gone."""
        children = self._backend.children(schema.DOMAINS)
        if children is None:
            return  # the root is gone: absence of data is never an order
        listed = {name for name in children if schema.is_uuid(name)}
        for stray in sorted(set(children) - listed - self._warned):
            self._warned.add(stray)
            self._env.say(Level.WARNING, f"{schema.DOMAINS}/{schema.printable(stray)} is not a VM (no UUID): ignored")
        with self._lock:
            for uuid in sorted((listed | self._claimed_or_here()) - set(self.domains)):
                self._add(uuid)
            for uuid in [u for u, vm in self.domains.items() if u not in listed and self._is_over(vm)]:
                self._drop(uuid)

    def _claimed_or_here(self) -> set[str]:
        claims = self._env.store.claims()
        held = {uuid for uuid, claim in claims.items() if isinstance(claim.value, Claim) and claim.value.node == self._env.node}
        return held | (self._here & set(claims))

    def _is_over(self, vm: VMInstance) -> bool:
        return not vm.known and not vm.held_here and vm.local.status is Status.ABSENT

    def _add(self, uuid: str) -> None:
        self.domains[uuid] = vm = VMInstance(uuid, self._env)
        for path in self._domain_paths(uuid):
            self._backend.watch_value(path, lambda: self._env.nudge(vm.key))
        self._env.nudge(vm.key)

    def _drop(self, uuid: str) -> None:
        vm = self.domains.pop(uuid)
        for path in self._domain_paths(uuid):
            self._backend.unwatch(path)
        self._forget(vm.key)

    @staticmethod
    def _domain_paths(uuid: str) -> tuple[str, ...]:
        return (schema.domain_key(uuid, "state"), schema.domain_key(uuid, "hypervisor"), schema.claim(uuid))

    def _sync_nodes(self) -> None:
        children = self._backend.children(schema.NODES) or []
        with self._lock:
            for name in sorted(set(filter(schema.is_node_name, children)) - set(self.nodes)):
                self.nodes[name] = NodeInstance(name, self._env)
                for path in self._node_paths(name):
                    self._backend.watch_value(path, lambda: self._env.nudge(VIEW))
            for name in set(self.nodes) - set(children):
                del self.nodes[name]
                for path in self._node_paths(name):
                    self._backend.unwatch(path)
                self._env.say(Level.WARNING, f"{name} is not a node of the cluster any more")
        self._env.nudge(VIEW)

    @staticmethod
    def _node_paths(name: str) -> tuple[str, ...]:
        return (*(schema.node_key(name, key) for key in ("daemonstate", "domainstate", "protocol")), schema.fence(name))
