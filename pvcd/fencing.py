# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The fence of a dead node, from the commit to the power-on; resumable at each step, by any node. Runs on the fence thread.

`visit` does one step and says when to come again; it blocks only for ZooKeeper and for one question to a management controller.
Whoever holds `/locks/fence` is the janitor for everybody; what it has come to is in `/fences/<node>`, so that another goes on
where it stops. Every step may be repeated: a second `off` is harmless, and only what was read back counts.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from .bmc_check import BmcCheck
from .cluster import fences, schema
from .cluster.claims import Actor
from .cluster.errors import Conflict, PVCError
from .cluster.history import Entry, record
from .cluster.records import Claim, Create, Delete, Fence, FenceRecord, View
from .cluster.schema import FencePhase
from .cluster.store import Store
from .ipmi import Bmc, Ipmi, Power, stranger
from .liveness import WARNING_TICKS, Judgement, Liveness
from .recovery import Recoverer
from .situation import Level

IDLE_S = 1.0
POLL_S = 1.0
OFF_DEADLINE_S = 40.0
BACK_OFF_S = (10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
NO_BMC_PAUSE_S = 60.0


@dataclass
class _Target:
    """How far this janitor has come with one fence, in this process. Losing it costs one more `off`."""

    since: float
    off_sent: float | None = None
    seen_off: float | None = None
    tries: int = 0
    next_try: float = 0.0
    told: str = ""


class Fencing:
    """`actor()` is None while this node may not act. `hold(view)` says whether automatic fencing is on hold now. `life` names this
    process: the lock of an earlier one outlives it by a session.
    """

    def __init__(self, store: Store, ipmi: Ipmi, liveness: Liveness, node: str, actor: Callable[[], Actor | None], view: Callable[[], View],
                 hold: Callable[[View], bool], say: Callable[[Level, str], None], utc: Callable[[], str], fence_action: str, life: str) -> None:
        self._store, self._ipmi, self._liveness, self._node, self._actor = store, ipmi, liveness, node, actor
        self._view, self._hold, self._say, self._utc, self._fence_action = view, hold, say, utc, fence_action
        self._targets: dict[str, _Target] = {}
        self._alarm = ""
        self._silent: set[str] = set()
        self._life = life
        self._check = BmcCheck(store, ipmi, node, say, utc)
        self._recoverer = Recoverer(store, node, say, utc)

    def visit(self, now: float) -> float:
        """One step; returns after how many seconds to visit again."""
        actor = self._actor()
        if actor is None:
            return IDLE_S
        try:
            committed = self._commit(actor, now)
            if not self._is_janitor(actor):
                self._check.visit(actor, self._view(), now)
                return IDLE_S
            return self._clean(actor, self._store.view() if committed else self._view(), now)
        except Conflict:
            return POLL_S / 10  # somebody moved what this was decided on: look again at once
        except PVCError:
            return IDLE_S

    # -------------------------------------------------------------------------------------------------------- commit

    def _commit(self, actor: Actor, now: float) -> bool:
        """F1: whoever is fresh may commit; the transaction decides which of several does. True if we did."""
        view = self._view()
        found = self._liveness.judge(view, now, self._hold(view))
        self._warn(found, view)
        if found.target is None:
            return False
        view = self._store.view()  # the versions that the transaction checks are read afresh
        found = self._liveness.judge(view, now, self._hold(view))
        if found.target is None:
            return False
        self._store.apply(fences.committed(actor, view, found.target, found.version, found.judged, self._utc()))
        self._tell(found.target, Level.CRITICAL, f"dead: silent for {found.silent_s:.1f} s; the fence is committed")
        return True

    def _warn(self, found: Judgement, view: View) -> None:
        if found.alarm and found.alarm != self._alarm:
            self._say(Level.CRITICAL, found.alarm)
        self._alarm = found.alarm
        for name in sorted(set(found.silent) - self._silent):
            timing = view.nodes[name].timing
            self._say(Level.WARNING, f"{name}: no keepalive for {WARNING_TICKS * timing.tick_s:g} s (it counts as dead after "
                      f"{timing.fence_intervals * timing.tick_s:g} s)")
        self._silent = set(found.silent)

    # ------------------------------------------------------------------------------------------------------- janitor

    def _is_janitor(self, actor: Actor) -> bool:
        """Hold the lock, or take it: from nobody, from an earlier process of ours, or from a node that may not act (a janitor that is
        itself being fenced holds its session, and would hold up its own fence). It is a convenience: what protects is in the fences.
        """
        held = self._store.raw(schema.FENCE_LOCK)
        mine = json.dumps([self._node, actor.inc, self._life]).encode()
        if held.data == mine:
            return True
        holder = _node_of(held.data) if held.data is not None else ""
        if holder and holder != self._node and self._view().is_up(holder):
            return False
        stale = (Delete(schema.FENCE_LOCK, held.version),) if held.data is not None else ()
        try:
            self._store.apply((actor.mine, *stale, Create(schema.FENCE_LOCK, mine, ephemeral=True)))
        except Conflict:
            return False
        return True

    def _clean(self, actor: Actor, view: View, now: float) -> float:
        """What the janitor does in one visit: power first, then recovery, then power on, then the checks of controllers."""
        fencing = [name for name in sorted(view.nodes) if _phase(view, name) is FencePhase.FENCING]
        self._targets = {name: target for name, target in self._targets.items() if name in fencing}
        if fencing:
            view = self._store.view()
        delays = [self._power(actor, view, name, now) for name in fencing if _phase(view, name) is FencePhase.FENCING]
        self._recoverer.visit(actor, now)
        self._power_on(actor, view)
        if not delays:
            self._check.visit(actor, view, now)
        return min(delays, default=IDLE_S)

    def _power(self, actor: Actor, view: View, name: str, now: float) -> float:
        """F5: off, then `off` read twice, at least a second apart and in sessions of their own; only then `fenced`."""
        target = self._targets.setdefault(name, _Target(now))
        if now < target.next_try:
            return min(IDLE_S, target.next_try - now)
        bmc = self._bmc(name)
        if target.off_sent is None:
            problem = bmc.problem or self._stranger(name, bmc)
            if problem:
                return self._no_proof(name, target, problem, now)
            self._tell(name, Level.WARNING, f"power off is sent to {bmc.host}")
            self._ipmi.off(bmc)
            target.off_sent = now
        reading = self._ipmi.status(bmc)
        if reading.power is not Power.OFF:
            target.seen_off = None
            if now - target.off_sent >= OFF_DEADLINE_S:
                said = "it still says on" if reading.power is Power.ON else reading.detail
                return self._no_proof(name, target, f"{bmc.host} was told to switch off: {said}", now)
            return POLL_S
        if target.seen_off is None:
            target.seen_off = now
            return POLL_S
        if now - target.seen_off < POLL_S:
            return POLL_S - (now - target.seen_off)
        return self._proved(actor, view, name, target, now)

    def _proved(self, actor: Actor, view: View, name: str, target: _Target, now: float) -> float:
        try:
            self._store.apply(fences.proved(view, name, self._node, "ipmi-off", self._utc(), actor))
        except Conflict as lost:
            if lost.path == schema.node_key(name, "keepalive"):
                return self._no_proof(name, target, "its BMC says off, and it sends keepalives: the BMC lies", now)
            raise
        self._tell(name, Level.CRITICAL, f"fenced: seen off twice, {now - target.since:.1f} s after the commit")
        self._recoverer.soon()
        return 0.0

    def _no_proof(self, name: str, target: _Target, why: str, now: float) -> float:
        """F8: nothing of it is started elsewhere; tried again with back-off, for ever, and loudly."""
        pause = BACK_OFF_S[min(target.tries, len(BACK_OFF_S) - 1)]
        target.tries += 1
        target.off_sent = target.seen_off = None
        target.next_try = now + pause
        text = f"fencing, not confirmed: {why}; its VMs wait. If it is off for certain: pvc node confirm-off {name}"
        self._say(Level.CRITICAL, f"{name}: {text} (tried again in {pause:g} s)")
        if why != target.told:
            self._note(name, "fencing, not confirmed", why)
        target.told = why
        return IDLE_S

    def _stranger(self, name: str, bmc: Bmc) -> str:
        """A controller that is another machine's must never be told anything."""
        recorded = self._store.node_values(name, ["ipmiguid"])["ipmiguid"]
        return stranger(bmc, recorded, self._ipmi.guid(bmc)) if recorded else ""

    def _bmc(self, name: str) -> Bmc:
        values = self._store.node_values(name, ["ipmihostname", "ipmiusername", "ipmipassword"])
        return Bmc(values["ipmihostname"], values["ipmiusername"], values["ipmipassword"])

    def _power_on(self, actor: Actor, view: View) -> None:
        """F11: once, after the recovery, and only what was proved by its controller."""
        waiting = [name for name in sorted(view.nodes) if _wants_power(view.fences.get(name))]
        if not waiting or self._fence_action != "reboot":
            return
        named = {(claim.value.node, claim.value.inc) for claim in self._store.claims().values() if isinstance(claim.value, Claim)}
        for name in waiting:
            fence = self._store.fence(name)
            if not _wants_power(fence) or not isinstance(fence.value, Fence) or (name, fence.value.inc) in named:
                continue
            said = self._ipmi.on(self._bmc(name))
            self._store.apply(fences.powered_on(actor, name, fence))
            self._tell(name, Level.INFO, f"power on is sent ({said})")

    # ------------------------------------------------------------------------------------------------------- telling

    def _tell(self, name: str, level: Level, text: str) -> None:
        self._say(level, f"{name}: {text}")
        self._note(name, text, f"by {self._node}")

    def _note(self, name: str, what: str, why: str) -> None:
        record(self._store, name, Entry(self._utc(), self._node, what, why))


def _phase(view: View, name: str) -> FencePhase | None:
    fence = view.fence(name)
    return fence.phase if fence else None


def _wants_power(fence: FenceRecord | None) -> bool:
    return (fence is not None and isinstance(fence.value, Fence) and fence.value.phase is FencePhase.FENCED
            and fence.value.method == "ipmi-off" and not fence.value.on)


def _node_of(data: bytes) -> str:
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return ""
    return value[0] if isinstance(value, list) and value and isinstance(value[0], str) else ""
