# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Keeps the last read view of all nodes. Refreshed on a reconcile worker; read from any thread.

A decision may be taken on a view that is a moment old: a proof of death stays one (an incarnation does not come back), and
every transaction that rests on one checks the fence at the version seen. What else a stale view can do is a lost race, or an
order taken back that could have stood.
"""
from __future__ import annotations

from collections.abc import Callable

from .cluster.records import View
from .cluster.schema import Unknown
from .cluster.store import Store

Condition = tuple[object, ...]


def condition(view: View, name: str) -> Condition:
    """What others need to know of a node, without what changes at every tick."""
    node, fence = view.nodes.get(name), view.fence(name)
    if node is None:
        return (None, None, None, None, None)
    return (fence and fence.inc, fence and fence.phase.value, _word(node.daemonstate), _word(node.domainstate), node.protocol)


def _word(value: object) -> object:
    return str(value) if isinstance(value, Unknown) else value


class ViewCache:
    """`on_change(names)` is told which nodes are not in the condition they were in at the last refresh."""

    def __init__(self, store: Store, on_change: Callable[[list[str]], None]) -> None:
        self._store, self._on_change = store, on_change
        self._view = View()

    def current(self) -> View:
        return self._view

    def refresh(self) -> View:
        """Read all nodes and fences in bulk. Raises Unreachable; the old view then stays."""
        old, new = self._view, self._store.view()
        self._view = new
        changed = [name for name in sorted(set(old.nodes) | set(new.nodes)) if condition(old, name) != condition(new, name)]
        if changed:
            self._on_change(changed)
        return new
