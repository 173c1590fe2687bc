# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Live names for the shell's Tab: at most BUDGET_S, and silent where the cluster does not answer."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from pvcd.cluster.store import Store

BUDGET_S = 1.0


def nodes(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _asked(context, _node_names) if name.startswith(incomplete)]


def vms(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _asked(context, _vm_names) if name.startswith(incomplete)]


def _node_names(store: Store) -> list[str]:
    from pvcd.cluster import schema
    return sorted(store.children(schema.NODES))


def _vm_names(store: Store) -> list[str]:
    from pvcd.cluster import schema

    from .objects import vm_names
    return sorted(name for name in vm_names(store).values() if name and schema.printable(name) == name)


def _asked(context: click.Context, ask: Callable[[Store], list[str]]) -> list[str]:
    """While a line is completed no command's callback has run: `-z` is read from the outermost context."""
    from pvcd.cluster.errors import PVCError
    with contextlib.suppress(PVCError), _store(context.find_root().params.get("zookeeper")) as store:
        return ask(store)
    return []


@contextlib.contextmanager
def _store(option: str | None) -> Iterator[Store]:
    from pvcd.cluster.store import Store
    from pvcd.cluster.zk import ZooKeeper

    from . import connection
    zk = ZooKeeper(connection.place(option).hosts, connection.SESSION_S, BUDGET_S)
    try:
        zk.start(BUDGET_S)
        yield Store(zk)
    finally:
        zk.stop()
