# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`pvc status`, `pvc check`, `pvc verify`: the health of the whole cluster, for a person, for a monitoring system, for a script."""
from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from . import options

if TYPE_CHECKING:
    from .connection import Cluster
    from .health import Facts, Problem

REDRAW_S = 5.0


def add_to(group: click.Group) -> None:
    for command in (status, check, verify):
        group.add_command(command)


def facts(cluster: Cluster) -> Facts:
    """Everything that is judged, read in bulk."""
    from . import rows, servers
    from .health import Facts
    from .node import cards_of, memories, tries_of
    view, domains = cluster.store.view(), cluster.store.domains()
    cards, now = cards_of(cluster, view), time.time()
    bmc = {name: rows.bmc_word(cards, name, now) for name in view.nodes}
    metas = cluster.store.metas(sorted(domains))
    reasons, differs = ({uuid: str(meta.get(key) or "") for uuid, meta in metas.items()} for key in ("reason", "differs"))
    avoided = {uuid: found.nodes for uuid, found in cluster.store.avoided(sorted(domains)).items()}
    return Facts(view, domains, cluster.store.claims(), memories(cluster, sorted(domains)), bmc, reasons, tries_of(cluster, view), differs,
                 avoided, servers.ask(cluster.place.hosts))


def summary(cluster: Cluster, found: Facts) -> dict[str, Any]:
    """What `status -f json` prints; stable keys."""
    from . import health, rows
    told, lost = health.problems(found), health.survives(found)
    states = [rows.word(record.state) or "?" for record in found.domains.values()]
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "zookeeper": list(found.servers),
        "health": max((problem.level for problem in told), default=health.Level.OK).name.lower(),
        "problems": [_problem(problem) for problem in told],
        "survives": {"any": bool(lost) and not any(lost.values()) and len(lost) > 1, "lost": lost},
        "nodes": [rows.node_row(node, found.view, found.sizes, found.bmc[name]) for name, node in sorted(found.view.nodes.items())],
        "vms": {state: states.count(state) for state in sorted(set(states))}}


def _problem(problem: Problem) -> dict[str, str]:
    return {"level": problem.level.name.lower(), "code": problem.code, "subject": problem.subject, "text": problem.text, "next": problem.next}


def screen(value: dict[str, Any], problems: list[Problem], colour: bool) -> str:
    """The same for people, on one screen."""
    from . import formatters, rows
    servers = ", ".join(f"{server['address']} {server['mode'] or 'does not answer'}"
                        + (f" ({server['latency_ms']:.0f} ms)" if server["mode"] else "") for server in value["zookeeper"])
    vms = ", ".join(f"{count} {state}" for state, count in value["vms"].items())
    pairs = [("Health", value["health"]), ("ZooKeeper", servers), ("Survives the loss of any one node", value["survives"]["any"]),
             ("VMs", vms or "none")]
    parts = [formatters.page(pairs, colour), *(["\n".join(map(options.told, problems))] if problems else [])]
    return "\n\n".join([*parts, formatters.table(rows.NODE_COLUMNS, value["nodes"], colour)])


@click.command()
@click.option("--watch", is_flag=True, help="Draw it again whenever something changes; Ctrl-C ends it.")
@options.with_format("pretty", "json")
@click.pass_context
def status(context: click.Context, watch: bool, form: str) -> None:
    """Show the health of the cluster on one screen, with what to do about it. Example: pvc status --watch"""
    from . import formatters, health
    colour = context.obj["color"]
    with options.opened(context) as cluster:
        changes = _Changes(cluster)
        while True:
            if watch:
                changes.listen()
            found = facts(cluster)
            value = summary(cluster, found)
            text = formatters.document(value) if form == "json" else screen(value, health.problems(found), colour)
            click.echo(("\033[H\033[2J" if watch and sys.stdout.isatty() else "") + text, color=colour)
            if not watch:
                return
            changes.wait()


class _Changes:
    """Rings at each change of a node's, a fence's, a VM's or a claim's key. Each key is watched once, however long it is looked at."""

    def __init__(self, cluster: Cluster) -> None:
        import threading
        self._cluster, self._event, self._watched = cluster, threading.Event(), set[str]()

    def listen(self) -> None:
        """Watch what is there now; what changes from here on rings."""
        from pvcd.cluster import schema
        self._event.clear()
        paths = {path for name in self._cluster.store.children(schema.NODES)
                 for path in (schema.node_key(name, "daemonstate"), schema.node_key(name, "domainstate"), schema.fence(name))}
        paths |= {path for uuid in filter(schema.is_uuid, self._cluster.store.children(schema.DOMAINS))
                  for path in (schema.domain_key(uuid, "state"), schema.domain_key(uuid, "hypervisor"), schema.claim(uuid))}
        for path in sorted(paths - self._watched):
            self._cluster.zk.watch_value(path, self._event.set)
        self._watched |= paths

    def wait(self) -> None:
        self._event.wait(REDRAW_S)


@click.command()
@click.option("--node", "only", metavar="NODE", help="Only what concerns this node.")
@click.option("-f", "--format", "form", type=click.Choice(["nagios", "prometheus"]), default="nagios", show_default=True, help="Output format.")
@click.pass_context
def check(context: click.Context, only: str | None, form: str) -> None:
    """One line for a monitoring system; exit code 0, 1, 2 or 3 as plugins have it. Example: pvc check"""
    from pvcd.cluster.errors import NotFound, PVCError

    from . import health, monitoring
    try:
        with options.opened(context) as cluster:
            found = facts(cluster)
            if only is not None and only not in found.view.nodes:
                raise NotFound(f"Node '{only}' does not exist.")
    except PVCError as error:
        click.echo(monitoring.unknown(str(error)) if form == "nagios" else monitoring.prometheus(None, []), nl=form == "nagios")
        context.exit(3)
    told = [problem for problem in health.problems(found) if only is None or problem.subject == only]
    if form == "prometheus":
        click.echo(monitoring.prometheus(found, told), nl=False)
        return
    click.echo(monitoring.nagios(found, told))
    context.exit(int(max((problem.level for problem in told), default=health.Level.OK)))


@click.command()
@options.with_format("pretty", "json")
@click.pass_context
def verify(context: click.Context, form: str) -> None:
    """Check every key, and that the cluster is what its keys say; exit code 1 if not. Example: pvc verify"""
    from . import formatters, health, rows
    with options.opened(context) as cluster:
        found = facts(cluster)
    told = [_problem(problem) for problem in [*health.problems(found), *health.cross_checks(found, time.time())]]
    if form == "json":
        click.echo(formatters.document(told))
    elif told:
        click.echo(formatters.table(rows.PROBLEM_COLUMNS, told, context.obj["color"]), color=context.obj["color"])
    else:
        click.echo(f"{len(found.view.nodes)} nodes and {len(found.domains)} VMs: everything is as it should be.")
    context.exit(1 if told else 0)
