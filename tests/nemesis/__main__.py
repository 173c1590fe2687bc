# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`python3 -m nemesis --lab NAME --seed S --minutes M`, in `tests/`: exit status 0 if nothing happened that must not."""
from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

from lablib.host import LabError
from lablib.journals import TRACEBACK, Journals
from lablib.lab import Lab
from lablib.witness import Recorder

from . import checker
from .history import History, Sampler
from .run import DEADLY, HARMLESS, VMS, Nemesis

STOPPERS = (LabError, subprocess.TimeoutExpired, OSError)
"""What ends a run early: the lab did not do what it was told, or did not become what it must."""
ALL = {fault.__name__: fault for fault in HARMLESS + DEADLY}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nemesis", description="Real faults in random order on a lab that is up.",
                                     epilog=f"Faults: {', '.join(ALL)}.")
    parser.add_argument("--lab", default="pvc")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--history", type=Path, default=Path("nemesis.jsonl"), help="where to write it; the journals go beside it")
    parser.add_argument("--only", metavar="FAULT[,FAULT]", help="each of these faults once, in this order, instead of random ones for some minutes")
    parser.add_argument("--node", help="do it to this node, not to random ones")
    parser.add_argument("--no-orders", action="store_true", help="no operator orders anything")
    found = parser.parse_args()
    unknown = [name for name in (found.only or "").split(",") if found.only and name not in ALL]
    if unknown:
        parser.error(f"no fault is called {', '.join(unknown)}")
    return found


def main() -> int:
    arguments = options()
    logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # the sampler's connection is meant to be lost
    lab, history, started = Lab(arguments.lab), History(arguments.history), time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)
    for vm in VMS:
        (lab.shared / "serial" / vm).unlink(missing_ok=True)
    with Recorder(lab.shared / "serial") as recorder, arguments.history.with_suffix(".journals").open("w", encoding="utf-8") as kept:
        def heard(node: str, line: str) -> None:
            print(f"{history.now:9.3f} {node} {line}", file=kept, flush=True)
            if TRACEBACK in line:
                history.add("traceback", what=f"{node}: {line}")
        sampler, journals = Sampler(lab.zookeeper, lab.names, history), Journals(lab, heard)
        journals.start()
        sampler.start()
        nemesis = Nemesis(lab, recorder, history, journals, arguments.seed, say)
        nemesis.prepare()
        rounds = run(arguments, nemesis, history, started)
        sampler.stop()
        journals.stop()
    history.add("ended", rounds=rounds, asked_s=0 if arguments.only else 60 * arguments.minutes, used_s=time.monotonic() - started)
    status = report(history, rounds, 6 * lab.settings.interval)
    if status:
        print("The VMs are left as they are, to be looked at.")
        return status
    for vm in VMS:
        lab.pvc("vm", "undefine", "-y", vm, check=False)
    return status


def run(arguments: argparse.Namespace, nemesis: Nemesis, history: History, started: float) -> int:
    """Rounds until the time is over, or something cannot go on: that is written down, and is a failure."""
    rounds = 0
    only = [ALL[name] for name in arguments.only.split(",")] if arguments.only else []
    try:
        while rounds < len(only) if only else time.monotonic() - started < 60 * arguments.minutes:
            nemesis.round(only[rounds] if only else None, arguments.node, not arguments.no_orders)
            rounds += 1
    except STOPPERS as error:
        history.add("stopped", what=str(error))
    return rounds


def report(history: History, rounds: int, silence_s: float) -> int:
    for name, count in sorted(checker.summary(history.events).items()):
        print(f"{count:5}  {name}")
    wrong = checker.violations(history.events, silence_s)
    print("\n".join([*checker.uses(history.events), *wrong]))
    print(f"{rounds} rounds, {len(wrong)} violations")
    return 1 if wrong or not rounds else 0


if __name__ == "__main__":
    sys.exit(main())
