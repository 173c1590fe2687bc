# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Carries out a departure (`pvcd.departure` decides it). Runs on the main thread, which has nothing else to do by then.

It writes one transaction and sets the phase; the reconcile workers do the rest, VM by VM. libvirt is never asked here.
"""
from __future__ import annotations

from collections.abc import Callable

from .cluster.errors import Conflict, PVCError
from .cluster.records import Claim
from .cluster.schema import DomainState
from .departure import Facts, Limits, Phase, announcement, homecoming, next_phase
from .environment import Environment
from .instances import Instances
from .situation import Level

TRIES = 5


class Leaving:
    """`connected()`: there is a session with ZooKeeper now."""

    def __init__(self, env: Environment, instances: Instances, limits: Limits, connected: Callable[[], bool]) -> None:
        self._env, self._instances, self._limits, self._connected = env, instances, limits, connected
        self._announced = False
        self._began = self._busy_at = self._linked_at = self._closed_at = 0.0

    def begin(self) -> None:
        """Nothing is received, claimed or started any more."""
        self._began = self._busy_at = self._linked_at = self._closed_at = self._env.clock()
        self._env.stopping = True
        self._env.phase = Phase.ANNOUNCE
        self._env.say(Level.WARNING, f"{self._env.node}: its host is being shut down: its VMs leave")
        for vm in self._instances.in_flight():  # what was offered a place here, and has not left yet, is told
            self._env.nudge(("domain", vm))

    def turn(self) -> bool:
        """One step, bounded by a few calls to ZooKeeper; to be called about once a second. True when the daemon may stop."""
        env, now = self._env, self._env.clock()
        if self._connected():
            self._linked_at = now
        if env.phase is Phase.ANNOUNCE and not self._announced:
            self._announced = self._announce()
        here = self._instances.nodes.get(env.node)
        if here is None or here.moving:
            self._busy_at = now
        phase, why = next_phase(env.phase or Phase.ANNOUNCE, self._facts(env.clock()), self._limits)
        if phase is not env.phase:
            self._enter(phase, why)
        env.alone = env.phase is Phase.CLOSE and not self._connected()
        if env.phase is Phase.CLOSE:
            for vm in self._instances.remaining():
                env.nudge(("domain", vm))
        return env.phase is Phase.END

    def _facts(self, now: float) -> Facts:
        node = self._env.view().nodes.get(self._env.node)
        return Facts(node.domainstate if node else None, self._announced, len(self._instances.remaining()), now - self._began,
                     now - self._busy_at, now - self._linked_at, now - self._closed_at)

    def _enter(self, phase: Phase, why: str) -> None:
        env = self._env
        self._busy_at = self._closed_at = env.clock()
        env.phase = phase
        env.say(Level.INFO, f"{env.node}: its host is being shut down: {phase.value}: {why}")
        if phase is Phase.FLUSH:
            env.nudge(("node", env.node))

    def _announce(self) -> bool:
        """True when it is written, or need not be."""
        env, actor = self._env, self._env.actor()
        if actor is None:
            return False
        try:
            held = sum(1 for claim in env.store.claims().values() if isinstance(claim.value, Claim) and actor.holds(claim.value))
            node = env.store.node(env.node)
            changes = announcement(actor, node, env.utc(), held)
            if changes:
                env.store.apply(changes)
                env.note(env.node, DomainState.FLUSH.value, "its host is being shut down")
        except PVCError:
            return False  # lost to another's word, or no answer: read again, and written again, at the next turn
        env.nudge(("view", ""))
        shown = env.view().nodes.get(env.node)
        # The phase is judged by the view: it must not show the word from before.
        return not changes and shown is not None and shown.domainstate == node.domainstate


def come_home(env: Environment) -> None:
    """At a start, before `run`: end a departure, if there was one. Raises Unreachable, OutcomeUnknown."""
    for _ in range(TRIES):
        actor = env.actor()
        if actor is None:
            return
        changes = homecoming(actor, env.store.node(env.node))
        if not changes:
            return
        try:
            env.store.apply(changes)
        except Conflict:
            continue  # an operator's word came in between: look at what it says
        back = len(changes) > 2
        text = "back after its host was shut down: its VMs come home" if back else "back after its host was shut down; VMs stay where they are"
        env.say(Level.INFO, f"{env.node}: {text}")
        env.note(env.node, "unflush" if back else "back", text)
        return
