# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`python3 -m nemesis --lab NAME --seed S --minutes M`, in `tests/`: exit status 0 if nothing happened that must not."""
from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

from lablib.host import LabError
from lablib.lab import Lab
from lablib.witness import Recorder

from . import checker
from .history import History, Sampler
from .run import VMS, Nemesis


def main() -> int:
    parser = argparse.ArgumentParser(prog="nemesis", description="Real faults in random order on a lab that is up.")
    parser.add_argument("--lab", default="pvc")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--history", type=Path, default=Path("nemesis.jsonl"))
    arguments = parser.parse_args()
    logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # the sampler's connection is meant to be lost
    lab, history, started = Lab(arguments.lab), History(arguments.history), time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)
    for vm in VMS:
        (lab.shared / "serial" / vm).unlink(missing_ok=True)
    sampler = Sampler(lab.zookeeper, lab.names, history)
    with Recorder(lab.shared / "serial") as recorder:
        nemesis = Nemesis(lab, recorder, history, arguments.seed, say)
        nemesis.prepare()
        sampler.start()
        rounds = 0
        try:
            while time.monotonic() - started < 60 * arguments.minutes:
                nemesis.round()
                rounds += 1
        except LabError as error:
            say(f"stopped: {error}")
        nemesis.tracebacks()
        sampler.stop()
    status = report(history, rounds, 6 * lab.settings.interval)
    if status:
        print("The VMs are left as they are, to be looked at.")
        return status
    for vm in VMS:
        lab.pvc("vm", "undefine", "-y", vm, check=False)
    return status


def report(history: History, rounds: int, silence_s: float) -> int:
    for name, count in sorted(checker.summary(history.events).items()):
        print(f"{count:5}  {name}")
    wrong = checker.violations(history.events, silence_s)
    print("\n".join(wrong))
    print(f"{rounds} rounds, {len(wrong)} violations")
    return 1 if wrong or not rounds else 0


if __name__ == "__main__":
    sys.exit(main())
