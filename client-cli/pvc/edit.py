# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`pvc vm modify`: a definition is edited, checked, shown as a difference, confirmed, and written with the version that was read."""
from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, BinaryIO

import click

from pvcd.cluster.errors import PVCError, Refusal

from . import completion, interrupt, options

if TYPE_CHECKING:
    from .connection import Cluster


@click.command()
@click.argument("domain", shell_complete=completion.vms)
@click.argument("config", type=click.File("rb"), required=False)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--no-validate", is_flag=True, help="Do not check against libvirt's schema.")
@click.pass_context
def modify(context: click.Context, domain: str, config: BinaryIO | None, yes: bool, no_validate: bool) -> None:
    """Change a VM's definition in $EDITOR, or to that of a file; it counts from the next start. Example: pvc vm modify web1"""
    from pvcd.cluster import schema

    from . import objects
    with options.opened(context) as cluster:
        uuid = objects.find_vm(cluster.store, domain)
        old = cluster.store.xml(uuid)
        before = old.data or b""
        after = config.read(schema.XML_LIMIT + 1) if config else _edited(before)
        if after == before:
            click.echo("The definition is as it was.")
            return

        def kept() -> str:
            return f"Your text is kept in {_kept(after)}; go on with: pvc vm modify {domain} FILE" if config is None else ""
        try:
            with interrupt.saying(kept):
                _write(cluster, uuid, before, after, old.version, yes, no_validate)
        except (PVCError, click.Abort):
            if config is None:
                click.echo(kept(), err=True)
            raise


def _edited(before: bytes) -> bytes:
    """What the editor leaves. Raises Refusal where there is no terminal, or the text is no UTF-8."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Refusal("There is no terminal to edit on.", "", "Give the new definition as a file, or - for standard input.")
    try:
        with interrupt.ignored():
            text = click.edit(before.decode("utf-8"), extension=".xml", require_save=False)
    except UnicodeDecodeError as error:
        raise Refusal("The definition is not UTF-8:", f"{error}.", "Give the new definition as a file.") from error
    return (text if text is not None else before.decode("utf-8")).encode()


def _kept(text: bytes) -> str:
    import tempfile
    handle, path = tempfile.mkstemp(prefix="pvc-modify-", suffix=".xml")
    with os.fdopen(handle, "wb") as file:
        file.write(text)
    return path


def _write(cluster: Cluster, uuid: str, before: bytes, after: bytes, version: int, yes: bool, no_validate: bool) -> None:
    import difflib

    from pvcd.cluster import definition, requests, schema

    from . import domainxml, objects
    found = definition.parse(after)
    domainxml.details(after)
    if found.uuid != uuid:
        raise Refusal(f"The new definition has the UUID {found.uuid}, not {uuid}:", "that would be another VM.", "pvc vm define defines a new one.")
    if not no_validate:
        validated(after)

    def decide() -> requests.Request:
        names = objects.all_names(cluster.store)
        return requests.modify(cluster.store.domain(uuid), after, version, found.name, names)
    decide()
    texts = [text.decode("utf-8", "replace").splitlines() for text in (before, after)]
    click.echo("\n".join(schema.printable(line) for line in difflib.unified_diff(*texts, "before", "after", lineterm="", n=2)))
    options.confirm("Write it?", yes)
    options.apply_naming(cluster, decide, uuid, schema.domain_key(uuid, "xml"))
    for warning in domainxml.state_not_kept(after):
        click.echo(warning, err=True)


def validated(raw: bytes) -> None:
    """Check against libvirt's schema where there is one, and say where there is none. Raises BadDefinition."""
    from . import validation
    if validation.is_available():
        validation.check(raw)
    else:
        click.echo(f"Not checked: libvirt's schema is not here ({validation.SCHEMA}, from the package libvirt0).", err=True)
