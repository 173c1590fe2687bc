# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Tracks one node: tells what becomes of it, and carries out the flush and unflush of our own. Runs on a reconcile worker."""
from __future__ import annotations

from collections.abc import Mapping

from .cluster import definition, schema
from .cluster.claims import Actor
from .cluster.errors import BadDefinition, Conflict, OutcomeUnknown, Unreachable
from .cluster.flush import TURN, Cluster, NodePlan, Order, plan_flush, plan_unflush
from .cluster.records import Claim, ClaimRecord, DomainRecord, View, Write
from .cluster.schema import DaemonState, DomainState
from .departure import Phase
from .environment import Environment
from .situation import Level
from .view import Condition, condition

LOOK_AGAIN_S = 1.0
REFUSED_PAUSE_S = 30.0


class NodeInstance:
    """One node as this node sees it."""

    def __init__(self, name: str, env: Environment) -> None:
        self.name, self._env = name, env
        self._seen: Condition | None = None
        self._word: tuple[DomainState, int] | None = None
        self._ordered: dict[str, float] = {}
        self._sizes: dict[str, int | None] = {}
        self._told = ""
        self.moving = False
        """the flush has just given an order, or waits for what comes of one; for the departure"""

    @property
    def key(self) -> tuple[str, str]:
        return ("node", self.name)

    def reconcile(self) -> float | None:
        """One visit. Returns when to look again, in seconds."""
        view = self._env.view()
        self._tell_change(view)
        if self.name != self._env.node:
            return None
        node, actor = view.nodes.get(self.name), self._env.actor()
        flushing = node is not None and node.domainstate in (DomainState.FLUSH, DomainState.UNFLUSH)
        ends = self._env.phase is not Phase.FLUSH and (self._env.stopping or self._env.phase is not None)
        ordered = flushing and not ends
        if node is None or actor is None or not ordered:
            self._word, self.moving, self._env.blocked = None, False, {}
            return LOOK_AGAIN_S if ordered else None  # nobody calls again when this node may act again
        assert isinstance(node.domainstate, DomainState)
        word = (node.domainstate, node.version("domainstate"))
        if word != self._word:
            self._word, self._ordered, self._sizes = word, {}, {}
        try:
            return self._carry_out(actor, view, word)
        except (Conflict, Unreachable, OutcomeUnknown):
            return LOOK_AGAIN_S

    def _carry_out(self, actor: Actor, view: View, word: tuple[DomainState, int]) -> float | None:
        """Give the next orders of the flush or unflush; write the final word when there is nothing left to do."""
        store, now = self._env.store, self._env.clock()
        domains, claims = store.domains(), store.claims()
        cluster = Cluster(view, domains, claims, self._memory(domains, claims))
        if word[0] is DomainState.FLUSH:
            recent = {uuid for uuid, at in self._ordered.items() if now - at < REFUSED_PAUSE_S}
            plan, final = plan_flush(actor, cluster, recent, halted=dict(self._env.halted)), DomainState.FLUSHED
        else:
            plan, final = plan_unflush(actor, cluster, self._ordered), DomainState.READY
        self.moving = bool(plan.orders or plan.under_way)
        for order in plan.orders:
            self._give(order, now)
        self._tell_plan(word[0], plan)
        if not plan.done:
            return LOOK_AGAIN_S
        store.apply((actor.mine, Write(schema.node_key(self.name, "domainstate"), final.value.encode(), word[1])))
        self._env.say(Level.INFO, f"{self.name}: {final.value}")
        self._env.note(self.name, final.value, f"{word[0].value} is done")
        return LOOK_AGAIN_S  # the same word may have been written again before anybody read this one: no condition changes then

    def _give(self, order: Order, now: float) -> None:
        try:
            self._env.store.apply(order.changes)
        except Conflict:
            return  # somebody ordered something else meanwhile; the next look plans on what is true then
        self._ordered[order.uuid] = now
        self._env.say(Level.INFO, f"{order.uuid}: {order.reason}")
        self._env.note(order.uuid, "ordered", order.reason)
        self._env.nudge(("domain", order.uuid))

    def _memory(self, domains: Mapping[str, DomainRecord], claims: Mapping[str, ClaimRecord]) -> dict[str, int | None]:
        """Memory of each VM that is not settled on another node; each definition is read once per flush."""
        for uuid, record in domains.items():
            claim = claims[uuid].value if uuid in claims else None
            settled = isinstance(claim, Claim) and claim.op is None and claim.node == record.hypervisor != self.name
            if uuid not in self._sizes and not settled:
                try:
                    self._sizes[uuid] = definition.parse(self._env.store.xml(uuid).data).memory_mib
                except BadDefinition:
                    self._sizes[uuid] = None
        return self._sizes

    def _tell_plan(self, word: DomainState, plan: NodePlan) -> None:
        self._env.blocked = {uuid: why for uuid, why in plan.blocked if why != TURN}
        waiting = [f"{uuid}: {why}" for uuid, why in plan.blocked]
        text = f"{self.name}: {word.value}: cannot go: {'; '.join(waiting)}" if waiting else ""
        if text and text != self._told:
            self._env.say(Level.WARNING, text)
        self._told = text

    def _tell_change(self, view: View) -> None:
        seen = condition(view, self.name)
        if self._seen is not None and seen != self._seen:
            _, phase, daemonstate, domainstate, _ = seen
            level = Level.WARNING if daemonstate is DaemonState.DEAD or phase in ("fencing", "fenced") else Level.INFO
            shown = ", ".join(f"{key} {getattr(value, 'value', value)}" for key, value in
                              (("daemon", daemonstate), ("domains", domainstate), ("fence", phase)))
            self._env.say(level, f"{self.name}: {shown}")
        self._seen = seen
