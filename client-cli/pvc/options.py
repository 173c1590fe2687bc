# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What many commands have in common: opening the cluster, output formats, waiting, and applying a request."""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pvcd.cluster.errors import Conflict, Refusal

if TYPE_CHECKING:
    from pvcd.cluster.requests import Request

    from . import connection, formatters
    from .health import Problem

F = TypeVar("F", bound=Callable[..., Any])
TIMEOUT_S = 300.0
NAME_RACES = 20
"""Tries of a definition while others take names. Each lost try means that another client's definition was written."""


def opened(context: click.Context, initialised: bool = True) -> AbstractContextManager[connection.Cluster]:
    from . import connection
    return connection.opened(connection.place(context.obj["zookeeper"]), initialised)


def default_node() -> str:
    import socket
    return socket.gethostname()


def with_format(*kinds: str) -> Callable[[F], F]:
    return click.option("-f", "--format", "form", type=click.Choice(kinds), default="pretty", show_default=True, help="Output format.")


def with_wait(command: F) -> F:
    timed = click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=TIMEOUT_S, show_default=True, metavar="SEC",
                         help="With --wait: give up waiting after so long (exit code 124).")
    return timed(click.option("-w", "--wait", "wait", is_flag=True, help="Wait until the cluster has done it.")(command))


def print_list(context: click.Context, form: str, columns: Sequence[formatters.Column], found: Sequence[Mapping[str, Any]]) -> None:
    from . import formatters
    if form == "json":
        click.echo(formatters.document(list(found)))
    elif form == "name":
        click.echo(formatters.names(found), nl=bool(found))
    else:
        click.echo(formatters.table(columns, found, context.obj["color"]), color=context.obj["color"])


def print_page(context: click.Context, form: str, value: Mapping[str, Any], pairs: Sequence[tuple[str, Any]]) -> None:
    from . import formatters
    if form == "json":
        click.echo(formatters.document(value))
    else:
        click.echo(formatters.page(pairs, context.obj["color"]), color=context.obj["color"])


def apply_naming(cluster: connection.Cluster, decide: Callable[[], Request], subject: str, path: str) -> None:
    """As `apply`, for a request that takes a name: decided again when another client took some name in between."""
    from pvcd.cluster.schema import DOMAINS
    for _ in range(NAME_RACES):
        request = decide()
        try:
            cluster.store.apply(request.changes)
        except Conflict as lost:
            if lost.path != DOMAINS:
                raise _lost(cluster, lost, path) from lost
        else:
            return _done(cluster, request, subject, quiet=False)
    raise Refusal("Nothing was written:", f"{NAME_RACES} times another client defined a VM at the same moment.", "Try again.")


def apply(cluster: connection.Cluster, request: Request, subject: str, path: str | None = None, quiet: bool = False) -> None:
    """Apply a request in one transaction, keep it in the history, and say what it does. A lost race names the new value."""
    try:
        cluster.store.apply(request.changes)
    except Conflict as lost:
        raise _lost(cluster, lost, path or lost.path) from lost
    _done(cluster, request, subject, quiet)


def _lost(cluster: connection.Cluster, lost: Conflict, path: str) -> Refusal:
    from pvcd.cluster.schema import printable
    now = cluster.store.raw(path).data
    became = "gone" if now is None else f"'{printable(now[:80])}'"
    return Refusal(f"{path} changed meanwhile to {became},", "by another client or by the cluster; nothing was written.",
                   "Look at it, and try again.")


def _done(cluster: connection.Cluster, request: Request, subject: str, quiet: bool) -> None:
    import time

    from pvcd.cluster.history import Entry, record

    from . import connection
    if request.changes:
        now_utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record(cluster.store, subject, Entry(now_utc, connection.who(), "ordered", request.says))
    if not quiet:
        click.echo(request.says)


def told(problem: Problem) -> str:
    """A problem in one line: what, about whom, what to do."""
    from pvcd.cluster.schema import printable
    return printable(f"{problem.level.name.lower()}: {problem.subject}: {problem.text}" + (f". {problem.next}" if problem.next else ""))


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal; without one the command acts, as scripts expect. Raises Refusal on anything but yes."""
    if yes or not sys.stdin.isatty():
        return
    if not click.confirm(question):
        raise Refusal("Nothing was done.")
