# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Commands about the cluster as a whole: `pvc init`, `pvc history`."""
from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from .connection import Cluster

WATCH_INTERVALS = 2


def add_to(group: click.Group) -> None:
    for command in (init, history):
        group.add_command(command)


@click.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask for the word.")
@click.option("--force", is_flag=True, help="Also when the cluster is alive.")
@click.pass_context
def init(context: click.Context, yes: bool, force: bool) -> None:
    """Wipe the cluster's keys and create empty ones. Example: pvc init"""
    from pvcd.cluster import schema
    from pvcd.cluster.errors import Refusal
    with options.opened(context, initialised=False) as cluster:
        _confirm_wipe(cluster, yes)
        alive = [] if force else _living(cluster)
        if alive:
            raise Refusal("The cluster is alive:", f"{', '.join(alive)} sends keepalives.", "Stop pvcd on every node first, or use --force.")
        for root in (schema.DOMAINS, schema.NODES):
            for name in cluster.store.children(root):
                cluster.zk.delete_tree(f"{root}/{name}")
        cluster.store.ensure_roots()
        click.echo("The cluster is initialised. Nodes join when pvcd starts on them.")


def _confirm_wipe(cluster: Cluster, yes: bool) -> None:
    from pvcd.cluster import schema
    from pvcd.cluster.errors import Refusal
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refusal("pvc init wipes the cluster's keys,", "and there is no terminal to confirm it on.", "Use --yes.")
    nodes, vms = len(cluster.store.children(schema.NODES)), len(cluster.store.children(schema.DOMAINS))
    typed = click.prompt(f"This wipes {nodes} nodes and {vms} VM definitions in ZooKeeper at {cluster.place.hosts}. Type 'wipe' to go on",
                         default="", show_default=False)
    if typed != "wipe":
        raise Refusal("Nothing was done.")


def _living(cluster: Cluster) -> list[str]:
    """Nodes whose daemon says it runs, and whose keepalive changes within two intervals."""
    import threading
    import time
    view = cluster.store.view()
    suspects = [name for name, node in view.nodes.items() if getattr(node.daemonstate, "value", "") in ("init", "run")]
    if not suspects:
        return []
    before = cluster.store.keepalives(suspects)
    longest = max(view.nodes[name].timing.tick_s for name in suspects)
    deadline, pause = time.monotonic() + WATCH_INTERVALS * longest, threading.Event()
    while time.monotonic() < deadline:
        pause.wait(0.2)
        now = cluster.store.keepalives(suspects)
        changed = sorted(name for name in suspects if now[name] != before[name])
        if changed:
            return changed
    return []


@click.command()
@click.argument("subject", metavar="VM|NODE")
@options.with_format("pretty", "json")
@click.pass_context
def history(context: click.Context, subject: str, form: str) -> None:
    """Show who did what with a VM or node, and why; newest last. Example: pvc history web1"""
    from pvcd.cluster import schema
    from pvcd.cluster.history import entries

    from . import rows
    from .objects import find_vm
    with options.opened(context) as cluster:
        known = subject in cluster.store.children(schema.NODES) or subject in cluster.store.children(schema.HISTORY)
        name = subject if known else find_vm(cluster.store, subject)
        found = entries(cluster.store.raw(schema.history(name)).data)
        shown = [{"at": entry.at, "who": entry.who, "what": entry.what, "why": entry.why} for entry in found]
        options.print_list(context, form, rows.HISTORY_COLUMNS, shown)
