# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Makes debian/man/pvc.1 from the Click tree: python3 tests/man_page.py >debian/man/pvc.1; a unit test compares."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "client-cli")]

import click  # noqa: E402

from pvc.cli import cli  # noqa: E402

HEAD = r""".TH PVC 1 "" "pvc 0.1" "PVC"
.SH NAME
pvc \- manage virtual machines on a PVC cluster
.SH SYNOPSIS
.B pvc
[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGS\fR]...
.SH DESCRIPTION
Writes what is wanted into ZooKeeper; the daemons of the cluster do it. DOMAIN is a name, a UUID, or at least 4 hex digits that begin one UUID
only. NODE defaults to this host.
.SH COMMANDS
"""
TAIL = r""".SH EXIT STATUS
0 done, or already so; 1 failed; 2 wrong usage; 3 no such VM or node; 4 refused; 5 ZooKeeper not reachable, or no cluster; 124 the timeout ran
out; 130 interrupted.
.SH ENVIRONMENT
.TP
.B PVC_ZOOKEEPER
HOST:PORT of ZooKeeper, or several separated by commas, when \fB\-z\fR is not given.
.SH SEE ALSO
.BR pvcd (8),
.BR pvcd.conf (5)
"""


def escaped(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name in sorted(group.commands):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def page() -> str:
    """The whole page in man(7)."""
    lines = [HEAD]
    for path, command in commands(cli, "pvc"):
        arguments = " ".join(p.make_metavar() for p in command.params if isinstance(p, click.Argument)) if not _new_click() else " ".join(
            p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument))  # type: ignore[call-arg]
        lines.append(f".TP\n.B {escaped(f'{path} {arguments}'.strip())}\n{escaped(' '.join((command.help or '').split()))}\n")
        for option in command.params:
            if isinstance(option, click.Option) and option.help:
                lines.append(f".RS\n.TP\n.B {escaped(', '.join(option.opts))}\n{escaped(option.help)}\n.RE\n")
    return "".join([*lines, TAIL])


def _new_click() -> bool:
    """Since 8.2 a metavar needs a context."""
    import inspect
    return "ctx" in inspect.signature(click.Argument.make_metavar).parameters


if __name__ == "__main__":
    sys.stdout.write(page())
