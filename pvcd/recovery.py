# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Applies the plan of the recovery, every few seconds and right after a proof. Runs on the fence thread, on the janitor only."""
from __future__ import annotations

from collections.abc import Callable

from .cluster import definition
from .cluster.claims import Actor
from .cluster.errors import BadDefinition, Conflict
from .cluster.history import Entry, record
from .cluster.records import Claim, ClaimRecord, DomainRecord, View
from .cluster.schema import FencePhase
from .cluster.store import Store
from .recovery_plan import Recovery, plan_recovery
from .situation import Level

EVERY_S = 5.0


class Recoverer:
    """Each VM's step is a transaction of its own: one that lost a race is planned again at the next look."""

    def __init__(self, store: Store, node: str, say: Callable[[Level, str], None], utc: Callable[[], str]) -> None:
        self._store, self._node, self._say, self._utc = store, node, say, utc
        self._due: float | None = None
        self._told: dict[str, str] = {}
        self._dead_since: dict[str, float] = {}

    def soon(self) -> None:
        """A proof has just been written: look at the next visit."""
        self._due = None

    def visit(self, actor: Actor, now: float) -> None:
        """Recover what can be recovered, if it is time to look. Raises what the store raises."""
        if self._due is not None and now < self._due:
            return
        self._due = now + EVERY_S
        view = self._store.view()
        claimed, domains = self._store.claims(), self._store.domains()
        affected = [uuid for uuid in set(claimed) | set(domains) if _affected(view, domains.get(uuid), claimed.get(uuid))]
        self._dead_since = {uuid: self._dead_since.get(uuid, now) for uuid in affected}
        if not affected:
            self._told = {}
            return
        wanted = [uuid for uuid, found in domains.items() if uuid in affected or not _settled(found, claimed.get(uuid))]
        sizes, broken = self._definitions(wanted)
        dead_s = {uuid: now - since for uuid, since in self._dead_since.items()}
        avoided = {uuid: found.nodes for uuid, found in self._store.avoided(affected).items()}
        for step in plan_recovery(actor, view, domains, claimed, sizes, broken, dead_s, avoided):
            self._apply(step)
        self._due = now + 1.0

    def _definitions(self, uuids: list[str]) -> tuple[dict[str, int | None], dict[str, str]]:
        sizes: dict[str, int | None] = {}
        broken: dict[str, str] = {}
        for uuid in uuids:
            try:
                sizes[uuid] = definition.parse(self._store.xml(uuid).data).memory_mib
            except BadDefinition as error:
                sizes[uuid], broken[uuid] = None, f"bad definition: {error}"
        return sizes, broken

    def _apply(self, step: Recovery) -> None:
        if step.changes:
            try:
                self._store.apply(step.changes)
            except Conflict:
                return
        text = f"{step.uuid}: of {step.node}: {step.reason}"
        if self._told.get(step.uuid) == text:
            return
        self._told[step.uuid] = text
        self._say(Level.WARNING if step.waits or step.failed else Level.INFO, text)
        what = "waits" if step.waits else "recovery"
        record(self._store, step.uuid, Entry(self._utc(), self._node, what, f"{step.node} is dead: {step.reason}"))
        if step.waits or step.failed:
            self._store.write_meta(step.uuid, {"reason": step.failed or step.reason, "at": self._utc()})


def _affected(view: View, found: DomainRecord | None, claim: ClaimRecord | None) -> bool:
    """Held by a dead incarnation, or homed on a fenced node and held by nobody."""
    held = claim.value if claim is not None else None
    if isinstance(held, Claim):
        return view.is_dead(held.node, held.inc)
    home = view.fence(found.hypervisor) if found is not None and isinstance(found.hypervisor, str) and found.hypervisor else None
    return held is None and home is not None and home.phase is FencePhase.FENCED


def _settled(found: DomainRecord, claim: ClaimRecord | None) -> bool:
    return claim is not None and isinstance(claim.value, Claim) and claim.value.node == found.hypervisor
