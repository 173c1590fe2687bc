# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The Click tree and the exit codes. Imports neither kazoo nor lxml: help and completion are quick.

0 done, or already so; 1 failed; 2 wrong usage; 3 no such VM or node; 4 refused; 5 ZooKeeper not reachable or no cluster; 124 timeout;
130 Ctrl-C.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from pvcd.cluster import errors

from . import cluster, fence, interrupt, node, status, vm

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(context_settings=CONTEXT, no_args_is_help=True)
@click.option("-z", "--zookeeper", metavar="HOST:PORT[,…][/PATH]", help="ZooKeeper to talk to; default: $PVC_ZOOKEEPER, this node's own, or this host.")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True, help="Coloured output.")
@click.pass_context
def cli(context: click.Context, zookeeper: str | None, color: str) -> None:
    """Manage virtual machines on a PVC cluster.

    \b
    pvc node list
    pvc vm define web1.xml -t hv1
    pvc vm start web1 --wait
    """
    context.obj = {"zookeeper": zookeeper, "color": _colour(color)}


def _colour(wanted: str) -> bool:
    """Colour on a terminal only; NO_COLOR and a dumb terminal have none."""
    if wanted != "auto":
        return wanted == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


cluster.add_to(cli)
fence.add_to(cli, node.node)
status.add_to(cli)
cli.add_command(node.node)
cli.add_command(vm.vm)

_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.NotFound, 3), (errors.BadDefinition, 1), (errors.Refusal, 4), (errors.Conflict, 4), (errors.Unreachable, 5),
    (errors.NotACluster, 5), (errors.TimedOut, 124), (errors.PVCError, 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Never a traceback for what an operator can do something about."""
    interrupt.install()
    try:
        code = cli.main(args=list(arguments) if arguments is not None else None, prog_name="pvc", standalone_mode=False)
        return code if isinstance(code, int) else 0  # Click hands back the code that a command exits with
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):  # the end of the input at a prompt
        click.echo(interrupt.FAREWELL, err=True)
        return interrupt.STATUS
    except errors.PVCError as error:
        click.echo(f"Error: {_told(error)}", err=True)
        return next(code for kind, code in _CODES if isinstance(error, kind))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _told(error: Exception) -> Any:
    if isinstance(error, errors.Conflict):
        return f"{error} by another client or by the cluster; nothing was written. Look, and try again."
    if isinstance(error, errors.OutcomeUnknown):
        return f"{error}. Look what became of it, and give the order again if need be."
    return error
