# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Says who may move `/fences/<node>`, as changes: one function per row of the table of fences. Pure.

`inc` is the incarnation that counts; any other is dead. `fencing` is a suspicion that was committed, `fenced` a proof that the
incarnation executes nothing any more. A fence is never deleted: after delete and create its version would be 0 again, and a
stale check would pass.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from . import schema
from .claims import Actor
from .records import ANY, Change, Check, Create, Delete, Fence, FenceRecord, Hold, NodeRecord, View, Write
from .schema import DaemonState, DomainState, FencePhase


def _known(fence: FenceRecord) -> Fence:
    assert isinstance(fence.value, Fence), "decided on a fence that is not known"
    return fence.value


def _set(name: str, fence: FenceRecord, new: Fence) -> Change:
    return Write(schema.fence(name), new.encode(), fence.version)


def _word(node: NodeRecord, key: str, value: str) -> Change:
    """Writes a word of the node at the version read; creates it where the key is missing."""
    path = schema.node_key(node.name, key)
    if key in node.versions:
        return Write(path, value.encode(), node.version(key))
    return Create(path, value.encode())


def registered(name: str, fence: FenceRecord, inc: str, since: str) -> tuple[Change, ...]:
    """absent → up at the first start; up, fencing, fenced → up with a new boot (the boot itself is the proof)."""
    new = Fence(inc, FencePhase.UP, name, "boot", since=since)
    if fence.value is None:
        return (Create(schema.fence(name), new.encode()),)
    return (_set(name, fence, new),)


def back_up(name: str, fence: FenceRecord, alive: Iterable[Change] = ()) -> tuple[Change, ...]:
    """fencing, not forced → up: the node objects. `alive` carries its keepalive: the objection *is* the keepalive."""
    new = replace(_known(fence), phase=FencePhase.UP, by=name, method="", ka=None)
    return (_set(name, fence, new), *alive)


def committed(me: Actor, view: View, target: str, keepalive_version: int, judged: Iterable[str], since: str) -> tuple[Change, ...]:
    """up → fencing (F1). Checks the very keepalive version that was silent, the hold, and every fence that the brake counted.

    The checks run at ZooKeeper's leader: a stale follower cannot make us fence a node that still writes, and two observers
    cannot pass the brake with different victims.
    """
    fence, node = view.fences[target], view.nodes[target]
    new = replace(_known(fence), phase=FencePhase.FENCING, by=me.node, method="", ka=keepalive_version, forced=False,
                  on=False, asked=False, since=since)
    others = [Check(schema.fence(name), view.fences[name].version) for name in sorted(set(judged) - {target, me.node})]
    return (me.mine, Check(schema.node_key(target, "keepalive"), keepalive_version),
            Check(schema.FENCES, view.hold.version), *others, _set(target, fence, new),
            _word(node, "daemonstate", DaemonState.DEAD.value))


def forced(view: View, target: str, by: str, keepalive_version: int, since: str) -> tuple[Change, ...]:
    """up → fencing, forced: an operator's order; the node may not object. Checks the keepalive version that the proof will check:
    the node writes none any more once its fence has moved.
    """
    fence, node = view.fences[target], view.nodes[target]
    new = replace(_known(fence), phase=FencePhase.FENCING, by=by, method="", ka=keepalive_version, forced=True, on=False,
                  asked=False, since=since)
    return (Check(schema.node_key(target, "keepalive"), keepalive_version), _set(target, fence, new),
            _word(node, "daemonstate", DaemonState.DEAD.value))


def proved(view: View, target: str, by: str, method: str, since: str, me: Actor | None = None) -> tuple[Change, ...]:
    """fencing → fenced: seen off twice (ipmi-off, by the janitor `me`), or an operator's word (confirm).

    Checks the keepalive version of the commit, unless the fence was forced: a node that writes is not off.
    """
    fence, node = view.fences[target], view.nodes[target]
    old = _known(fence)
    new = replace(old, phase=FencePhase.FENCED, by=by, method=method, on=False, asked=False, since=since)
    silent = () if old.ka is None else (Check(schema.node_key(target, "keepalive"), old.ka),)
    return (*((me.mine,) if me else ()), *silent, _set(target, fence, new),
            _word(node, "domainstate", DomainState.FLUSHED.value), _word(node, "daemonstate", DaemonState.DEAD.value))


def rejoined(name: str, fence: FenceRecord, inc: str, since: str) -> tuple[Change, ...]:
    """fenced or removed → up: the same boot. After a fence the counter is increased, and every local copy was destroyed."""
    return (_set(name, fence, Fence(inc, FencePhase.UP, name, "rejoin", since=since)),)


def powered_on(me: Actor, target: str, fence: FenceRecord) -> tuple[Change, ...]:
    """fenced → fenced, on: its controller said on after the recovery."""
    return (me.mine, _set(target, fence, replace(_known(fence), on=True, asked=False)))


def power_asked(target: str, fence: FenceRecord) -> tuple[Change, ...]:
    """fenced → fenced, asked: an operator wants it switched on; the janitor does it."""
    return (_set(target, fence, replace(_known(fence), on=False, asked=True)),)


def wants_power(fence: FenceRecord | None, fence_action: str) -> bool:
    """Fenced, not seen on since, and either proved by its controller under `fence_action = reboot`, or asked for by an operator."""
    found = fence.value if fence is not None else None
    if not isinstance(found, Fence) or found.phase is not FencePhase.FENCED or found.on:
        return False
    return found.asked or (found.method == "ipmi-off" and fence_action == "reboot")


REMOVED, REMOVED_FENCED = "remove", "remove-fenced"
"""Methods of `removed`: what was it before? A node that had been proved dead comes back without its guests."""


def removed(node: NodeRecord, keys: Iterable[str], fence: FenceRecord, by: str, since: str) -> tuple[Change, ...]:
    """any → removed, and the node's keys are deleted. The caller has seen that no claim names it, that it is stopped, and that its
    keepalive stands still: both are checked, so that a node that comes back meanwhile keeps everything.
    """
    checks = tuple(Check(schema.node_key(node.name, key), node.version(key)) for key in ("daemonstate", "keepalive") if key in node.versions)
    deletes = tuple(Delete(schema.node_key(node.name, key), node.versions.get(key, ANY)) for key in sorted(keys))
    old = fence.value if isinstance(fence.value, Fence) else Fence("", FencePhase.REMOVED)
    method = REMOVED_FENCED if old.phase is FencePhase.FENCED or old.method == REMOVED_FENCED else REMOVED
    new = replace(old, phase=FencePhase.REMOVED, by=by, method=method, since=since)
    moved = Create(schema.fence(node.name), new.encode()) if fence.value is None else _set(node.name, fence, new)
    return (*checks, moved, *deletes, *((Delete(schema.node(node.name), ANY),) if node.exists else ()))


def held(hold: Hold, on: bool, until: str | None, by: str) -> tuple[Change, ...]:
    """The cluster-wide hold of automatic fencing, set or lifted."""
    return (Write(schema.FENCES, Hold(on, until if on else None, by).encode(), hold.version),)


def restored(hold: Hold, by: str) -> tuple[Change, ...]:
    """A node says that ZooKeeper's data was taken back: nobody is fenced, and no node acts, until an operator ends it."""
    return (Write(schema.FENCES, Hold(True, None, by, restored=True).encode(), hold.version),)
