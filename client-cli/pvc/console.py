# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`pvc vm console`: virsh's console, on the node where the VM runs."""
from __future__ import annotations

import os

import click

from . import completion, options


@click.command()
@click.argument("domain", shell_complete=completion.vms)
@click.pass_context
def console(context: click.Context, domain: str) -> None:
    """Connect to a VM's serial console, wherever it runs; Ctrl-] leaves it. Example: pvc vm console web1"""
    from pvcd.cluster.errors import Failed, Refusal
    from pvcd.cluster.records import Claim

    from . import objects
    with options.opened(context) as cluster:
        uuid = objects.find_vm(cluster.store, domain)
        claim = cluster.store.claim(uuid).value
    if not isinstance(claim, Claim):
        raise Refusal(f"VM '{domain}' does not run.", "", f"pvc vm start {domain}")
    command = ["virsh", "-c", f"qemu+tcp://{claim.node}/system", "console", uuid]
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        raise Failed(f"virsh is not installed here: install libvirt-clients, or on a node: {' '.join(command)}") from error
