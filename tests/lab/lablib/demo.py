# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A story with times, told by a real cluster: VMs start, one moves live, a node is flushed, and a node dies."""
from __future__ import annotations

import re
import time
from collections.abc import Callable

from .guests import PERIOD_S
from .host import LabError, wait_for
from .lab import Lab
from .witness import Recorder

VMS = {"web1": "hv1", "web2": "hv1", "db1": "hv2", "mail1": "hv3"}


def run(lab: Lab) -> None:
    """The whole story. Raises LabError if something does not become true in time."""
    lab.up()
    if lab.pvc("vm", "list", "-f", "name").stdout.split():
        raise LabError(f"there are VMs in the lab already; the demo wants it empty: pvclab --name {lab.name} down")
    with Recorder(lab.shared / "serial") as recorder:
        _start(lab)
        _move(lab, recorder)
        _flush(lab)
        _death(lab, recorder)
    _show(lab, "node", "list")
    _show(lab, "vm", "list")
    name = "" if lab.name == "pvc" else f" --name {lab.name}"
    print(f"\nThe cluster is up. Try next:\n  tests/lab/pvclab{name} sh hv1      # then: pvc node list, pvc vm info web1, pvc history web1\n"
          f"  tests/lab/pvclab{name} kill hv2    # cut the power of a node, and watch: journalctl -u pvcd.service -f -o cat\n"
          f"  tests/lab/pvclab{name} down        # take everything away")


def _show(lab: Lab, *words: str) -> None:
    print(f"\n$ pvc {' '.join(words)}\n{lab.pvc(*words).stdout}", end="", flush=True)


def _timed(lab: Lab, text: str, call: Callable[[], object]) -> None:
    started = time.monotonic()
    call()
    lab.say(f"{text} ({time.monotonic() - started:.1f} s)")


def _start(lab: Lab) -> None:
    for vm, node in VMS.items():
        lab.define(vm, node)
        lab.pvc("vm", "start", vm)
    _timed(lab, "four VMs are defined and started, and their guests speak", lambda: [lab.await_life(vm) for vm in VMS])


def _move(lab: Lab, recorder: Recorder) -> None:
    _timed(lab, "web1 is migrated live from hv1 to hv2", lambda: lab.pvc("vm", "migrate", "web1", "-t", "hv2", "--wait", timeout_s=90))
    life = recorder.testimony("web1").life
    before = len(life.times) if life else 0
    wait_for("web1 speaks on", lambda: life is not None and len(life.times) >= before + 3, 10)
    assert life is not None
    lab.say(f"the guest has not noticed: the same boot {life.boot}, {life.missing} counts missing, longest silence "
            f"{life.longest_gap_s * 1000:.0f} ms (it speaks every {PERIOD_S * 1000:.0f} ms)")
    lab.pvc("vm", "unmigrate", "web1", "--wait", timeout_s=90)


def _flush(lab: Lab) -> None:
    _timed(lab, "hv1 is flushed: its VMs have gone elsewhere, live", lambda: lab.pvc("node", "flush", "hv1", "--wait", timeout_s=120))
    if lab.domains("hv1"):
        raise LabError("hv1 says that it is flushed, and is not empty")

    def home() -> bool:
        return sorted(lab.domains("hv1")) == ["web1", "web2"]
    lab.pvc("node", "ready", "hv1", "--wait", timeout_s=120)
    _timed(lab, "hv1 is ready again, and its VMs have come home", lambda: wait_for("the VMs of hv1 are home", home, 60, 0.3))


def _death(lab: Lab, recorder: Recorder) -> None:
    """Cut the power of hv1, and tell what became of its VMs, from the journals of those who did it."""
    lives = {vm: len(recorder.testimony(vm).lives) for vm in ("web1", "web2")}
    cut, since = time.monotonic(), time.strftime("%Y-%m-%d %H:%M:%S")
    lab.say("the power of hv1 is cut")
    lab.kill("hv1")
    for vm in lives:
        wait_for(f"{vm} lives again elsewhere", lambda vm=vm: len(recorder.testimony(vm).lives) > lives[vm], 90, 0.1)
        lab.say(f"{vm} lives again, {time.monotonic() - cut:.1f} s after the cut")
    for line in timeline(lab, since, ("hv2", "hv3")):
        print(f"          {line}", flush=True)
    if any(recorder.testimony(vm).doubles for vm in lives):
        raise LabError("a VM ran twice")
    wait_for("hv1 is back in run", lambda: lab.zk("hv2", "/nodes/hv1/daemonstate") == "run", 90, 0.5)
    _timed(lab, "hv1 was switched on again and is made ready; its VMs come home",
           lambda: lab.pvc("node", "ready", "hv1", "--wait", timeout_s=120))
    wait_for("the VMs of hv1 are home", lambda: sorted(lab.domains("hv1")) == ["web1", "web2"], 60, 0.3)


def timeline(lab: Lab, since: str, nodes: tuple[str, ...]) -> list[str]:
    """What the daemons of `nodes` told of a death and the recovery, in order."""
    found = []
    for name in nodes:
        out = lab.node(name).run("journalctl", "-u", "pvcd.service", "--since", since, "-o", "short-precise", "--no-pager").stdout
        for line in out.splitlines():
            text = re.sub(r"\x1b\[[0-9;]*m", "", line)
            if re.search(r"the fence is committed|power off was sent|fenced: seen off|: of hv\d|: started$|power on is sent", text):
                found.append(f"{text.split()[2]} {name}: {text.partition('>>> ')[2]}")
    return sorted(found)
