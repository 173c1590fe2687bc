# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`pvc node …`"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from . import completion, options

if TYPE_CHECKING:
    from pvcd.cluster.controllers import Card
    from pvcd.cluster.records import View

    from .connection import Cluster
    from .health import Problem
    from .rows import Row


@click.group(no_args_is_help=True)
def node() -> None:
    """Manage the nodes of the cluster."""


def memories(cluster: Cluster, uuids: list[str]) -> dict[str, int | None]:
    """Memory in MiB of each VM; None where the definition cannot be read."""
    from pvcd.cluster import definition, schema
    from pvcd.cluster.errors import BadDefinition
    values = cluster.store.raw_many([schema.domain_key(uuid, "xml") for uuid in uuids])
    found: dict[str, int | None] = {}
    for uuid in uuids:
        try:
            found[uuid] = definition.parse(values[schema.domain_key(uuid, "xml")].data).memory_mib
        except BadDefinition:
            found[uuid] = None
    return found


def _rows(cluster: Cluster, only: str | None = None) -> list[Row]:
    import time

    from . import objects, rows
    view = cluster.store.view()
    chosen = [objects.find_node(view, only)] if only else [view.nodes[name] for name in sorted(view.nodes)]
    running = {uuid for record in chosen if isinstance(record.runningdomains, tuple) for uuid in record.runningdomains}
    memory = memories(cluster, sorted(running))
    cards, now = cards_of(cluster, view), time.time()
    return [rows.node_row(record, view, memory, rows.bmc_word(cards, record.name, now)) for record in chosen]


def cards_of(cluster: Cluster, view: View) -> dict[str, Card]:
    """What is recorded of every node's BMC."""
    from pvcd.cluster import controllers, schema
    paths = {(name, key): schema.node_key(name, key) for name in view.nodes for key in controllers.KEYS}
    values = cluster.store.raw_many(paths.values())
    return {name: controllers.card({key: values[paths[name, key]].data for key in controllers.KEYS}) for name in view.nodes}


def tries_of(cluster: Cluster, view: View) -> dict[str, str]:
    """For each node that is being fenced without a proof: who tried, and what came of it."""
    from pvcd.cluster import schema, tries

    from . import rows
    found = {name: fence for name in view.nodes if (fence := view.fence(name)) is not None and fence.phase is schema.FencePhase.FENCING}
    values = cluster.store.raw_many([schema.node_key(name, tries.KEY) for name in found])
    return {name: rows.tries_word(tries.decode(values[schema.node_key(name, tries.KEY)], fence)) for name, fence in found.items()}


@node.command("list")
@options.with_format("pretty", "json", "name")
@click.pass_context
def list_(context: click.Context, form: str) -> None:
    """List all nodes. Example: pvc node list"""
    from . import rows
    with options.opened(context) as cluster:
        options.print_list(context, form, rows.NODE_COLUMNS, _rows(cluster))
        if form == "pretty":
            for problem in _problems(cluster):
                click.echo(options.told(problem), err=True)


def _problems(cluster: Cluster, only: str | None = None) -> list[Problem]:
    """What is wrong with the nodes (or one of them), in the words of `pvc status`."""
    from . import health, status
    facts = status.facts(cluster)
    return [problem for problem in health.problems(facts) if problem.subject in ([only] if only else facts.view.nodes)]


@node.command()
@click.argument("name", metavar="[NODE]", required=False, shell_complete=completion.nodes)
@click.option("-l", "--long", is_flag=True, help="Also architecture, operating system, kernel and VMs.")
@options.with_format("pretty", "json")
@click.pass_context
def info(context: click.Context, name: str | None, long: bool, form: str) -> None:
    """Show one node (default: this host). Example: pvc node info hv1 -l"""
    from . import objects, rows
    with options.opened(context) as cluster:
        row = _rows(cluster, name or options.default_node())[0]
        names = objects.vm_names(cluster.store)
        vms = sorted(names.get(uuid) or uuid for uuid in row["running"])
        problems = _problems(cluster, row["name"])
        told = [("", ""), *(("Problem", options.told(problem)) for problem in problems)] if problems else []
        options.print_page(context, form, {**row, "running_names": vms, "problems": [problem.code for problem in problems]},
                           [*rows.node_page(row, long, vms), *told])


def _order(context: click.Context, name: str | None, verb: str, wait: bool, timeout: float, **arguments: Any) -> None:
    from pvcd.cluster import requests, schema

    from . import objects, waiting
    target = name or options.default_node()
    wanted = schema.DomainState.FLUSHED if verb == "flush" else schema.DomainState.READY
    with options.opened(context) as cluster:
        view = cluster.store.view()
        objects.find_node(view, target)
        request = getattr(requests, verb)(view, target, **arguments)
        options.apply(cluster, request, target, schema.node_key(target, "domainstate"))
        if wait:
            waiting.wait(cluster, waiting.for_node(cluster, target, wanted, arguments.get("bring_back", True)), timeout,
                         [schema.node_key(target, "domainstate")], f"pvc node {'ready' if verb == 'flush' else 'flush'} {target}")


@node.command()
@click.argument("name", metavar="[NODE]", required=False, shell_complete=completion.nodes)
@click.option("--dry-run", is_flag=True, help="Only show where its VMs would go, and what is blocked.")
@options.with_format("pretty", "json")
@options.with_wait
@click.pass_context
def flush(context: click.Context, name: str | None, dry_run: bool, form: str, wait: bool, timeout: float) -> None:
    """Send every VM of a node elsewhere, live. Example: pvc node flush hv1 --wait"""
    if dry_run:
        _plan(context, name or options.default_node(), form)
    else:
        _order(context, name, "flush", wait, timeout)


def _plan(context: click.Context, name: str, form: str) -> None:
    """What the node's daemon would order now, by its own planner."""
    from pvcd.cluster.claims import Actor
    from pvcd.cluster.flush import Cluster, plan_flush

    from . import objects, rows
    with options.opened(context) as cluster:
        view, domains = cluster.store.view(), cluster.store.domains()
        objects.find_node(view, name)
        sizes = memories(cluster, sorted(domains))
        plan = plan_flush(Actor(name, "", 0), Cluster(view, domains, cluster.store.claims(), sizes), at_once=len(domains) + 1)
    steps = [(order.uuid, order.target, order.reason) for order in plan.orders]
    steps += [(uuid, "", f"blocked: {reason}") for uuid, reason in plan.blocked]
    steps += [(uuid, "", "on its way already") for uuid in plan.under_way if all(uuid != step[0] for step in steps)]
    found = [{"name": str(domains[uuid].name) if uuid in domains else uuid, "uuid": uuid, "from": name, "to": target,
              "memory_mib": sizes.get(uuid), "why": why} for uuid, target, why in steps]
    options.print_list(context, form, rows.PLAN_COLUMNS, sorted(found, key=lambda row: str(row["name"])))


@node.command()
@click.argument("name", metavar="[NODE]", required=False, shell_complete=completion.nodes)
@click.option("--no-return", is_flag=True, help="VMs stay where they are.")
@options.with_wait
@click.pass_context
def ready(context: click.Context, name: str | None, no_return: bool, wait: bool, timeout: float) -> None:
    """Make a node ready for VMs again; its own come home. Example: pvc node ready hv1 --wait"""
    _order(context, name, "ready", wait, timeout, bring_back=not no_return)


node.add_command(ready, "unflush")
