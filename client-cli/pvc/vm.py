# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`pvc vm …`"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import click

from . import completion, console, edit, options
from .node import memories

if TYPE_CHECKING:
    from pvcd.cluster.requests import Request

    from .connection import Cluster

UNDEFINE_TIMEOUT_S = 60.0


@click.group(no_args_is_help=True)
def vm() -> None:
    """Manage virtual machines. DOMAIN is a name, a UUID, or at least 4 hex digits that begin one UUID only."""


@vm.command()
@click.argument("config", type=click.File("rb"))
@click.option("-t", "--hypervisor", metavar="NODE", shell_complete=completion.nodes, help="The VM's home; default: this host.")
@click.option("--no-validate", is_flag=True, help="Do not check against libvirt's schema.")
@click.pass_context
def define(context: click.Context, config: BinaryIO, hypervisor: str | None, no_validate: bool) -> None:
    """Define a VM from a libvirt XML file, or - for standard input. Example: pvc vm define web1.xml -t hv1"""
    from pvcd.cluster import definition, requests, schema

    from . import domainxml, objects
    raw, added = domainxml.with_uuid(config.read(schema.XML_LIMIT + 1))
    found = definition.parse(raw)
    domainxml.details(raw)
    if not no_validate:
        edit.validated(raw)
    with options.opened(context) as cluster:
        if added:
            click.echo(f"The definition has no UUID; it gets {found.uuid}.", err=True)

        def decide() -> Request:
            names, claim = objects.all_names(cluster.store), cluster.store.claim(found.uuid)
            return requests.define(found.uuid, found.name, raw, hypervisor or options.default_node(), cluster.store.view(), names, claim)
        options.apply_naming(cluster, decide, found.uuid, schema.domain(found.uuid))
    for warning in domainxml.state_not_kept(raw):
        click.echo(warning, err=True)


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=UNDEFINE_TIMEOUT_S, show_default=True, metavar="SEC",
              help="Give up waiting for the VM to stop after so long.")
@click.pass_context
def undefine(context: click.Context, domain: str, yes: bool, timeout: float) -> None:
    """Stop a VM and delete its definition. Example: pvc vm undefine web1"""
    from pvcd.cluster import requests, schema

    from . import objects, waiting
    with options.opened(context) as cluster:
        uuid = objects.find_vm(cluster.store, domain)
        record = cluster.store.domain(uuid)
        options.confirm(f"Stop VM '{schema.printable(str(record.name))}' and delete its definition?", yes)
        options.apply(cluster, requests.mark_deleted(record), uuid, schema.domain_key(uuid, "state"), quiet=True)
        waiting.wait(cluster, waiting.for_stop(cluster, uuid), timeout, waiting.domain_paths(uuid))
        record, claim = cluster.store.domain_and_claim(uuid)
        known = {"state", "hypervisor", "lasthypervisor", "xml"}
        others = [name for name in cluster.store.children(schema.domain(uuid)) if name not in known]
        extra = {name: cluster.store.raw(schema.domain_key(uuid, name)).version for name in others}
        request = requests.undefine(record, claim, cluster.store.xml(uuid).version, extra)
        options.apply(cluster, request, uuid, schema.domain_key(uuid, "state"))


def _apply(cluster: Cluster, uuid: str, request: Request) -> None:
    from pvcd.cluster import schema
    options.apply(cluster, request, uuid, schema.domain_key(uuid, "state"))


def _order(context: click.Context, domain: str, verb: str, wait: bool, timeout: float, force: bool = True) -> None:
    from pvcd.cluster import requests

    from . import objects, waiting
    with options.opened(context) as cluster:
        uuid = objects.find_vm(cluster.store, domain)
        record = cluster.store.domain(uuid)
        if not force:
            _refuse_other_disks(cluster, uuid, domain)
        _apply(cluster, uuid, requests.start(record, cluster.store.view()) if verb == "start" else getattr(requests, verb)(record))
        if wait:
            look = waiting.for_stop if verb in ("stop", "shutdown") else waiting.for_start
            waiting.wait(cluster, look(cluster, uuid), timeout, waiting.domain_paths(uuid))


def _refuse_other_disks(cluster: Cluster, uuid: str, domain: str) -> None:
    """A disk that runs on another source than it is defined on would be left behind with all that was written to it. Raises Refusal."""
    from pvcd.cluster.errors import Refusal
    from pvcd.cluster.records import Claim
    told = str(cluster.store.meta(uuid).get("differs_disks") or "")
    if told and isinstance(cluster.store.claim(uuid).value, Claim):
        raise Refusal(f"VM '{domain}' runs on other disks than it is defined with:", f"{told}. Its next start would go back to old data.",
                      f"Bring its definition in line (pvc vm modify {domain}), or undo the snapshot (virsh blockcommit). --force does it anyway.")


with_force = click.option("--force", is_flag=True, help="Also while a disk runs on another source than it is defined with.")


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@options.with_wait
@click.pass_context
def start(context: click.Context, domain: str, wait: bool, timeout: float) -> None:
    """Start a VM at its home. Example: pvc vm start web1 --wait"""
    _order(context, domain, "start", wait, timeout)


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@with_force
@options.with_wait
@click.pass_context
def restart(context: click.Context, domain: str, force: bool, wait: bool, timeout: float) -> None:
    """Shut a VM down and start it again. Example: pvc vm restart web1"""
    _order(context, domain, "restart", wait, timeout, force)


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@with_force
@options.with_wait
@click.pass_context
def shutdown(context: click.Context, domain: str, force: bool, wait: bool, timeout: float) -> None:
    """Ask a VM's guest to power off. Example: pvc vm shutdown web1 --wait"""
    _order(context, domain, "shutdown", wait, timeout, force)


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@with_force
@options.with_wait
@click.pass_context
def stop(context: click.Context, domain: str, yes: bool, force: bool, wait: bool, timeout: float) -> None:
    """Switch a VM off, at once. Example: pvc vm stop web1"""
    options.confirm(f"Switch VM '{domain}' off without asking its guest?", yes)
    _order(context, domain, "stop", wait, timeout, force)


def _transfer(context: click.Context, domain: str, verb: str, hypervisor: str | None, wait: bool, timeout: float, dry_run: bool = False,
              **arguments: Any) -> None:
    """move, migrate and unmigrate."""
    from pvcd.cluster import requests

    from . import objects, waiting
    with options.opened(context) as cluster:
        uuid = objects.find_vm(cluster.store, domain)
        record, view = cluster.store.domain(uuid), cluster.store.view()
        where: Any = hypervisor
        if verb == "unmigrate":
            request = requests.unmigrate(record, view)
        else:
            where = hypervisor or requests.place(record, view, memories(cluster, [uuid])[uuid] or 0, {})
            request = getattr(requests, verb)(record, view, where, **arguments)
        if dry_run:
            click.echo(f"{request.says} Why there: {getattr(where, 'reason', 'you say so')}. Nothing was done.")
            return
        _apply(cluster, uuid, request)
        if wait and not (verb == "move" and record.state is not requests.VMState.START):
            target = cluster.store.domain(uuid).hypervisor
            waiting.wait(cluster, waiting.for_start(cluster, uuid, str(target)), timeout, waiting.domain_paths(uuid),
                         f"pvc vm migrate {domain} --cancel")


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@click.option("-t", "--hypervisor", metavar="NODE", shell_complete=completion.nodes, help="The new home; default: the ready node with the most free memory.")
@options.with_wait
@click.pass_context
def move(context: click.Context, domain: str, hypervisor: str | None, wait: bool, timeout: float) -> None:
    """Give a VM a new permanent home, live if it runs. Example: pvc vm move web1 -t hv2"""
    _transfer(context, domain, "move", hypervisor, wait, timeout)


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@click.option("-t", "--hypervisor", metavar="NODE", shell_complete=completion.nodes, help="Where to; default: the ready node with the most free memory.")
@click.option("-f", "--force", is_flag=True, help="Also a VM that is migrated already.")
@click.option("--cancel", is_flag=True, help="Take a migration back that is under way.")
@click.option("--dry-run", is_flag=True, help="Only say where it would go, and why.")
@options.with_wait
@click.pass_context
def migrate(context: click.Context, domain: str, hypervisor: str | None, force: bool, cancel: bool, dry_run: bool, wait: bool,
            timeout: float) -> None:
    """Send a VM to another node for a while. Example: pvc vm migrate web1 -t hv2 --wait"""
    if cancel:
        _cancel(context, domain)
    else:
        _transfer(context, domain, "migrate", hypervisor, wait, timeout, dry_run, force=force)


def _cancel(context: click.Context, domain: str) -> None:
    from pvcd.cluster import requests
    from pvcd.cluster.records import Claim

    from . import objects
    with options.opened(context) as cluster:
        uuid = objects.find_vm(cluster.store, domain)
        record, claim = cluster.store.domain_and_claim(uuid)
        _apply(cluster, uuid, requests.cancel_migration(record, claim.value.node if isinstance(claim.value, Claim) else None))


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@options.with_wait
@click.pass_context
def unmigrate(context: click.Context, domain: str, wait: bool, timeout: float) -> None:
    """Send a migrated VM back to where it was. Example: pvc vm unmigrate web1"""
    _transfer(context, domain, "unmigrate", None, wait, timeout)


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@click.option("-l", "--long", is_flag=True, help="Also emulator, type, features, disks, interfaces and controllers.")
@options.with_format("pretty", "json")
@click.pass_context
def info(context: click.Context, domain: str, long: bool, form: str) -> None:
    """Show one VM. Example: pvc vm info web1 -l"""
    from dataclasses import asdict

    from pvcd.cluster.errors import BadDefinition

    from . import domainxml, objects, rows
    with options.opened(context) as cluster:
        uuid = objects.find_vm(cluster.store, domain)
        record, claim = cluster.store.domain_and_claim(uuid)
        details: dict[str, Any] = {}
        meta = cluster.store.meta(uuid)
        reason, at = (str(meta.get(key) or "") for key in ("reason", "at"))
        try:
            details = asdict(domainxml.details(cluster.store.xml(uuid).data or b""))
        except BadDefinition as error:
            reason = reason or str(error)
        row = rows.vm_row(record, claim, details.get("memory_mib"), details.get("vcpus"), reason, at)
        row["differs"] = str(meta.get("differs") or "") if row["held_by"] else ""
        options.print_page(context, form, {**details, **row}, rows.vm_page(row, details, long))


@vm.command("list")
@click.option("-t", "--hypervisor", metavar="NODE", shell_complete=completion.nodes, help="Only VMs of this node.")
@options.with_format("pretty", "json", "name")
@click.pass_context
def list_(context: click.Context, hypervisor: str | None, form: str) -> None:
    """List all VMs. Example: pvc vm list -t hv1"""
    from pvcd.cluster import schema
    from pvcd.cluster.records import ClaimRecord

    from . import domainxml, objects, rows
    with options.opened(context) as cluster:
        if hypervisor:
            objects.find_node(cluster.store.view(), hypervisor)
        domains, claims = cluster.store.domains(), cluster.store.claims()
        chosen = [record for record in domains.values() if not hypervisor or record.hypervisor == hypervisor]
        values = cluster.store.raw_many([schema.domain_key(record.uuid, "xml") for record in chosen])
        metas = cluster.store.metas([record.uuid for record in chosen if record.state is schema.VMState.FAILED])
        found = []
        for record in chosen:
            memory, vcpus = domainxml.size(values[schema.domain_key(record.uuid, "xml")].data)
            found.append(rows.vm_row(record, claims.get(record.uuid, ClaimRecord(None, -1)), memory, vcpus,
                                     *(str(metas.get(record.uuid, {}).get(key) or "") for key in ("reason", "at"))))
        options.print_list(context, form, rows.VM_COLUMNS, sorted(found, key=lambda row: (row["name"], row["uuid"])))


@vm.command()
@click.argument("domain", shell_complete=completion.vms)
@click.pass_context
def dump(context: click.Context, domain: str) -> None:
    """Print a VM's definition, byte for byte. Example: pvc vm dump web1 > web1.xml"""
    from . import objects
    with options.opened(context) as cluster:
        uuid = objects.find_vm(cluster.store, domain)
        click.get_binary_stream("stdout").write(cluster.store.xml(uuid).data or b"")


vm.add_command(edit.modify)
vm.add_command(console.console)
