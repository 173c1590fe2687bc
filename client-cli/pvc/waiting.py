# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Waits until the cluster has done what was ordered, telling what happens on stderr. Woken by watches, bounded by a timeout."""
from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable

import click

from pvcd.cluster import schema
from pvcd.cluster.errors import Failed, TimedOut
from pvcd.cluster.records import Claim
from pvcd.cluster.schema import DomainState, VMState

from .connection import Cluster

LOOK_S = 1.0


Look = Callable[[], "tuple[bool, str]"]
"""(done, what happens now); raises Failed."""


def wait(cluster: Cluster, look: Look, timeout_s: float, paths: Iterable[str]) -> None:
    """Look again after each change of one of `paths`, and every second. Raises Failed or TimedOut."""
    changed, deadline, told = threading.Event(), time.monotonic() + timeout_s, ""
    line = sys.stderr.isatty()
    for path in paths:
        cluster.zk.watch_value(path, changed.set)
    while True:
        changed.clear()
        done, text = look()
        if text != told and text:
            click.echo(f"\r\033[K{schema.printable(text)}" if line else schema.printable(text), err=True, nl=not line)
        told = text
        if done:
            break
        if time.monotonic() >= deadline:
            raise TimedOut(f"Not done after {timeout_s:g} s ({text}). The cluster goes on with it.")
        changed.wait(min(LOOK_S, max(0.01, deadline - time.monotonic())))
    if line and told:
        click.echo("", err=True)


def domain_paths(uuid: str) -> list[str]:
    return [schema.domain_key(uuid, "state"), schema.domain_key(uuid, "hypervisor"), schema.claim(uuid)]


def for_start(cluster: Cluster, uuid: str, target: str | None = None) -> Look:
    """Until it runs (on `target`, if one is given): claimed by its home, and listed there as running."""
    def look() -> tuple[bool, str]:
        record, claim = cluster.store.domain_and_claim(uuid)
        name, held = record.name, claim.value if isinstance(claim.value, Claim) else None
        if record.state is VMState.FAILED:
            raise Failed(f"VM '{name}' failed: {_reason(cluster, uuid)}")
        if record.state is VMState.START and target is not None and record.hypervisor != target:
            raise Failed(f"VM '{name}' stays on {record.hypervisor}: {_reason(cluster, uuid)}")
        if record.state not in (VMState.START, VMState.MIGRATE, VMState.RESTART, VMState.SHUTDOWN):
            raise Failed(f"VM '{name}' got another order meanwhile: its state is '{record.state}'.")
        settled = record.state is VMState.START and held is not None and held.op is None and held.node == record.hypervisor
        if settled and held is not None:
            running = cluster.store.node(held.node).runningdomains
            if isinstance(running, tuple) and uuid in running:
                return True, f"{name}: runs on {held.node}"
        return False, f"{name}: {_doing(record.state, held)}"
    return look


def _doing(state: object, held: Claim | None) -> str:
    if held is None:
        return "waits for its node"
    if held.op is not None:
        return f"migrating from {held.node} to {held.op.dest} ({held.op.phase.value})"
    return f"{getattr(state, 'value', state)} on {held.node}"


def _reason(cluster: Cluster, uuid: str) -> str:
    reason = cluster.store.meta(uuid).get("reason")
    return schema.printable(reason) if isinstance(reason, str) and reason else "no reason is known"


def for_stop(cluster: Cluster, uuid: str) -> Look:
    """Until nothing of it runs: its claim is free."""
    def look() -> tuple[bool, str]:
        record, claim = cluster.store.domain_and_claim(uuid)
        if record.state not in (VMState.STOP, VMState.SHUTDOWN, VMState.DELETE, VMState.FAILED) and record.exists:
            raise Failed(f"VM '{record.name}' got another order meanwhile: its state is '{getattr(record.state, 'value', record.state)}'.")
        if claim.value is None and record.state is not VMState.SHUTDOWN:
            return True, f"{record.name}: stopped"
        held = claim.value if isinstance(claim.value, Claim) else None
        return False, f"{record.name}: {_doing(record.state, held)}"
    return look


def for_node(cluster: Cluster, name: str, wanted: DomainState) -> Look:
    """Until the node's word is `wanted`; tells how many VMs are still to go."""
    def look() -> tuple[bool, str]:
        node = cluster.store.node(name)
        if node.domainstate is wanted:
            return True, f"{name}: {wanted.value}"
        if node.domainstate not in (DomainState.FLUSH, DomainState.UNFLUSH):
            raise Failed(f"Node {name} got another order meanwhile: its domain state is '{node.domainstate}'.")
        held = [claim for claim in cluster.store.claims().values() if isinstance(claim.value, Claim) and claim.value.node == name]
        return False, f"{name}: {node.domainstate.value}, {len(held)} VMs here"
    return look
