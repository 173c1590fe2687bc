# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`pvc node fence`, `confirm-off`, `power-on`, `remove`, and `pvc maintenance`: what an operator says about the life of nodes."""
from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING

import click

from . import completion, options

if TYPE_CHECKING:
    from pvcd.cluster.records import Fence, NodeRecord, View

    from .connection import Cluster

_UNITS = {"m": 60, "h": 3600, "d": 86400}


def add_to(group: click.Group, node: click.Group) -> None:
    group.add_command(maintenance)
    for command in (fence, confirm_off, power_on, remove):
        node.add_command(command)


def _utc(after_s: float = 0.0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + after_s))


def _known(view: View, name: str) -> Fence:
    """The node's fence. Raises NotFound, or Refusal where it cannot be understood."""
    from pvcd.cluster.errors import Refusal

    from .objects import find_node
    find_node(view, name)
    found = view.fence(name)
    if found is None:
        raise Refusal(f"Node {name} has no fence that can be understood:", "pvcd has never run on it.")
    return found


def _confirmed(name: str, meaning: str, yes: bool) -> None:
    """The node's name, typed; without a terminal only --yes counts. Raises Refusal."""
    from pvcd.cluster.errors import Refusal
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refusal(meaning, "There is no terminal to confirm it on.", "Use --yes.")
    click.echo(meaning, err=True)
    if click.prompt(f"Type '{name}' to go on", default="", show_default=False) != name:
        raise Refusal("Nothing was done.")


@click.command()
@click.argument("name", metavar="NODE", shell_complete=completion.nodes)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def fence(context: click.Context, name: str, yes: bool) -> None:
    """Switch a node off through its BMC and recover its VMs. Example: pvc node fence hv2"""
    from pvcd.cluster import fences, requests, schema
    from pvcd.cluster.errors import Refusal

    from .connection import who
    with options.opened(context) as cluster:
        view = cluster.store.view()
        phase = _known(view, name).phase
        if phase is not schema.FencePhase.UP:
            raise Refusal(f"Node {name} is '{phase.value}' already.")
        if not any(view.is_running(other) for other in view.nodes if other != name):
            raise Refusal(f"Nobody is there to fence {name}:", "no other node runs.", "pvc node list")
        _confirmed(name, f"{name} is switched off, whatever it is doing; its VMs start again elsewhere.", yes)
        version = cluster.store.keepalives([name])[name].version
        changes = fences.forced(view, name, who(), version, _utc())
        options.apply(cluster, requests.Request(changes, f"Node {name} is being fenced."), name, schema.fence(name))


@click.command("confirm-off")
@click.argument("name", metavar="NODE", shell_complete=completion.nodes)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def confirm_off(context: click.Context, name: str, yes: bool) -> None:
    """Say that a node which is being fenced is off for certain. Example: pvc node confirm-off hv2"""
    from pvcd.cluster import fences, requests, schema
    from pvcd.cluster.errors import Refusal

    from .connection import who
    with options.opened(context) as cluster:
        view = cluster.store.view()
        phase = _known(view, name).phase
        if phase is not schema.FencePhase.FENCING:
            raise Refusal(f"Node {name} is '{phase.value}', not being fenced:", "there is nothing to confirm.", f"pvc node fence {name}")
        _confirmed(name, f"You say that {name} is off, or will never touch its VMs' disks again. If it is not so, VMs run twice.", yes)
        changes = fences.proved(view, name, who(), "confirm", _utc())
        options.apply(cluster, requests.Request(changes, f"Node {name} counts as off; its VMs are recovered."), name, schema.fence(name))


@click.command("power-on")
@click.argument("name", metavar="NODE", shell_complete=completion.nodes)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def power_on(context: click.Context, name: str, yes: bool) -> None:
    """Switch a fenced node on through its BMC. Example: pvc node power-on hv2"""
    from pvcd.cluster import fences, requests, schema
    from pvcd.cluster.errors import Refusal
    with options.opened(context) as cluster:
        view = cluster.store.view()
        phase = _known(view, name).phase
        if phase is not schema.FencePhase.FENCED:
            raise Refusal(f"Node {name} is '{phase.value}', not fenced:", "it is not switched on by PVC.", f"pvc node info {name}")
        if not any(view.is_running(other) for other in view.nodes if other != name):
            raise Refusal(f"Nobody is there to switch {name} on:", "no other node runs.", "pvc node list")
        _confirmed(name, f"{name} is switched on. Make sure that nobody works on it.", yes)
        changes = fences.power_asked(name, view.fences[name])
        options.apply(cluster, requests.Request(changes, f"Node {name} is being switched on: pvc history {name}"), name, schema.fence(name))


@click.command()
@click.argument("name", metavar="NODE", shell_complete=completion.nodes)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def remove(context: click.Context, name: str, yes: bool) -> None:
    """Forget a node that is stopped and holds no VM. Example: pvc node remove hv4"""
    from pvcd.cluster import fences, requests, schema
    from pvcd.cluster.records import ANY, FenceRecord

    from .connection import who
    with options.opened(context) as cluster:
        before = _removable(cluster, name)
        _confirmed(name, f"{name} is forgotten; if pvcd starts there again, it joins as a new node.", yes)
        now = _removable(cluster, name)  # a prompt may stay open for long
        _refuse_living(before.nodes[name], now.nodes[name])
        fence = now.fences.get(name, FenceRecord(None, ANY))
        changes = fences.removed(now.nodes[name], cluster.store.node_key_names(name), fence, who(), _utc())
        options.apply(cluster, requests.Request(changes, f"Node {name} is removed."), name, schema.fence(name))


def _removable(cluster: Cluster, name: str) -> View:
    """The cluster as it is now. Raises NotFound, or Refusal where it is not stopped or still used."""
    from pvcd.cluster import schema
    from pvcd.cluster.errors import Refusal

    from .objects import find_node
    view = cluster.store.view()
    find_node(view, name)
    fence = view.fences.get(name)
    if fence is not None and isinstance(fence.value, schema.Unknown):
        raise Refusal(f"The fence of node {name} cannot be understood:", f"{fence.value}.", f"Look at {schema.fence(name)} with zkCli.")
    _refuse_used(cluster, view, name, view.fence(name))
    return view


def _refuse_living(before: NodeRecord, now: NodeRecord) -> None:
    """Words can be wrong; a keepalive that moves is not."""
    from pvcd.cluster.errors import Refusal
    if before.version("keepalive") != now.version("keepalive"):
        raise Refusal(f"Node {now.name} is alive:", "its keepalive has changed meanwhile. Nothing was removed.", "On it: systemctl stop pvcd")


def _refuse_used(cluster: Cluster, view: View, name: str, found: Fence | None) -> None:
    from pvcd.cluster import schema
    from pvcd.cluster.errors import Refusal
    from pvcd.cluster.records import Claim
    node = view.nodes[name]
    off = found is not None and found.phase in (schema.FencePhase.FENCED, schema.FencePhase.REMOVED)
    if node.daemonstate is not schema.DaemonState.STOP and not off:
        raise Refusal(f"Node {name} is not stopped:", f"its daemon is '{getattr(node.daemonstate, 'value', node.daemonstate)}'.",
                      f"On it: systemctl stop pvcd. If it is dead: pvc node fence {name}")
    claims = {uuid: claim.value for uuid, claim in cluster.store.claims().items() if isinstance(claim.value, Claim)}
    held = sorted(uuid for uuid, claim in claims.items() if claim.node == name or (claim.op is not None and claim.op.dest == name and not off))
    homed = sorted(uuid for uuid, record in cluster.store.domains().items() if record.hypervisor == name)
    if held or homed:
        raise Refusal(f"Node {name} still has VMs:", ", ".join(sorted({*held, *homed})) + ".", "Move them first: pvc vm move")


@click.group(no_args_is_help=True)
def maintenance() -> None:
    """Hold automatic fencing, for work on the network or on ZooKeeper."""


@maintenance.command()
@click.option("--for", "duration", metavar="TIME", help="End by itself after so long: 30m, 2h, 1d. Without it: until `off`.")
@click.pass_context
def on(context: click.Context, duration: str | None) -> None:
    """Fence nobody meanwhile. Example: pvc maintenance on --for 2h"""
    until = None
    if duration is not None:
        found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", duration)
        if found is None:
            raise click.BadParameter("must be like 30m, 2h or 1d", param_hint="--for")
        until = _utc(int(found[1]) * _UNITS[found[2]])
    _hold(context, True, until, f"Nobody is fenced until {until or 'pvc maintenance off'}.")


@maintenance.command()
@click.pass_context
def off(context: click.Context) -> None:
    """Fence dead nodes again. Example: pvc maintenance off"""
    _hold(context, False, None, "Dead nodes are fenced again.")


def _hold(context: click.Context, held: bool, until: str | None, says: str) -> None:
    from pvcd.cluster import fences, requests, schema

    from .connection import who
    with options.opened(context) as cluster:
        changes = fences.held(cluster.store.view().hold, held, until, who())
        options.apply(cluster, requests.Request(changes, says), "maintenance", schema.FENCES)
