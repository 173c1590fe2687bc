# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The command line of `pvclab`."""
from __future__ import annotations

import argparse
import subprocess
import sys
import time

from . import bmc, demo, suites
from .host import CHECKOUT, LabError
from .lab import Lab, four_letter_word


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="pvclab", description="A real PVC cluster on one machine: nodes with ZooKeeper, libvirt, QEMU and "
                                  "pvcd, and BMCs that really cut the power. Needs root on Debian 12.")
    top.add_argument("--name", default="pvc", help="which lab (default: pvc); two can live side by side")
    commands = top.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the lab up, or finish what is missing of it")
    up.add_argument("nodes", nargs="?", type=int, default=3)
    up.add_argument("--interval", type=float, default=5.0, help="keepalive_interval of the nodes, seconds (default: 5)")
    up.add_argument("--suite", default=suites.THIS_MACHINE, metavar="NAME[,NAME]", help="Debian's release of the nodes, made by mmdebstrap; of several, the "
                    "nodes take turns: machine,trixie (default: machine, this machine's own root)")
    up.add_argument("--no-pvc", action="store_true", help="only ZooKeeper, libvirt and BMCs")
    commands.add_parser("demo", help="a story with times: VMs started, moved live, a node flushed; and a node that dies")
    shell = commands.add_parser("sh", help="a shell in a node, or one program: sh NODE -- PROGRAM ...")
    shell.add_argument("node", nargs="?", default="hv1")
    shell.add_argument("words", nargs="*", metavar="-- PROGRAM", help="run this and end with its exit status; without it, what is not a terminal "
                       "on standard input is a script")
    for name, text in (("cut", "pull a node's network cable"), ("heal", "plug it in again"), ("kill", "cut a node's power"),
                       ("boot", "switch a node on")):
        commands.add_parser(name, help=text).add_argument("node")
    controller = commands.add_parser("bmc", help="change how a node's BMC behaves")
    controller.add_argument("node")
    controller.add_argument("mode", choices=bmc.MODES)
    commands.add_parser("status", help="what has power, what answers")
    commands.add_parser("down", help="take everything away")
    power = commands.add_parser("bmc-power")
    power.add_argument("node")
    power.add_argument("words", nargs="*")
    return top


def main() -> int:
    arguments = parser().parse_args()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)
    try:
        return run(arguments, Lab(arguments.name, say))
    except LabError as error:
        print(f"pvclab: {error}", file=sys.stderr)
        return 1
    except subprocess.TimeoutExpired as error:
        print(f"pvclab: {' '.join(map(str, error.cmd))}: no answer in {error.timeout:g} s", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace, lab: Lab) -> int:
    command = arguments.command
    if command == "up":
        lab.up(arguments.nodes, arguments.interval, not arguments.no_pvc, arguments.suite.split(","))
    elif command == "demo":
        demo.run(lab)
    elif command == "sh":
        return lab.node(arguments.node).enter(arguments.words)
    elif command == "status":
        status(lab)
    elif command == "down":
        lab.down()
    elif command == "bmc-power":
        machine = lab.node(arguments.node)
        button = [str(CHECKOUT / "tests/lab/pvclab"), "--name", lab.name]
        return bmc.answer(lab.bmc(arguments.node), arguments.words, machine.pid is not None, [*button, "kill", arguments.node],
                          [*button, "boot", arguments.node])
    elif command == "bmc":
        lab.bmc(arguments.node).set_mode(arguments.mode)
    elif command == "boot":
        lab.node(arguments.node).boot()
    else:
        getattr(lab, command)(arguments.node)
    return 0


def status(lab: Lab) -> None:
    for name in lab.names:
        machine = lab.node(name)
        power = "on" if machine.pid else "off"
        mode = next((line for line in four_letter_word(lab.node_address(name), "srvr").splitlines() if line.startswith("Mode")), "no answer")
        print(f"{name}  {lab.node_address(name)}  power {power}  ZooKeeper {mode}  BMC {lab.bmc(name).address} {lab.bmc(name).mode}")
