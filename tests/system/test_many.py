# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A hundred and fifty VMs of one boot sector each: started, flushed, orphaned by a power cut, started cold. Nothing is lost, nothing runs twice."""
from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping

import pytest
from client01 import verbs
from kazoo.client import KazooClient

from lablib import guests
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import phase, word

pytestmark = pytest.mark.long

COUNT = 150


def homes(lab: Lab) -> dict[str, str]:
    return {f"t{number:03}": lab.names[number % len(lab.names)] for number in range(COUNT)}


@pytest.fixture
def many(lab: Lab) -> Iterator[Mapping[str, str]]:
    """The VMs, defined and ordered to start as fast as ZooKeeper takes it, each speaking; VM → home."""
    found, client = homes(lab), KazooClient(lab.zookeeper)
    client.start(timeout=10)
    try:
        for vm, home in found.items():
            verbs.define(client, guests.tiny_guest(vm).encode(), home)
        began = time.monotonic()
        for vm in found:
            verbs.write(client, guests.guest_uuid(vm), state="start")
        wait_for("all speak", lambda: all(lab.testimony(vm).lives for vm in found), 300, 1)
        print(f"start of {COUNT} VMs: all speak {time.monotonic() - began:.0f} s after the first order")
        yield found
        for vm in found:
            verbs.write(client, guests.guest_uuid(vm), state="stop")
        wait_for("all have stopped", lambda: not any(lab.domains(name) for name in lab.names), 120, 1)
    finally:
        client.stop()
        client.close()
    lab.node("hv1").run("sh", "-c", "for v in $(pvc vm list -f name); do pvc vm undefine -y $v >/dev/null; done", timeout_s=600)


def rows(lab: Lab) -> list[dict[str, str]]:
    return list(json.loads(lab.pvc("vm", "list", "-f", "json").stdout))


def placed(lab: Lab, found: Mapping[str, str]) -> dict[str, list[str]]:
    """VM → nodes whose libvirt shows it."""
    shown = {name: set(lab.domains(name)) for name in lab.names if lab.node(name).pid}
    return {vm: [name for name, here in shown.items() if vm in here] for vm in found}


def settled(lab: Lab, found: Mapping[str, str], away: str = "") -> bool:
    """Each VM is wanted, held and seen once, in the same place, which is not `away`."""
    where, shown = placed(lab, found), rows(lab)
    return len(shown) == COUNT and all(row["state"] == "start" and not row["operation"] and where[row["name"]] == [row["held_by"]]
                                       and row["held_by"] != away for row in shown)


def speak(recorder: Recorder, found: Mapping[str, str], lives: Mapping[str, int], timeout_s: float) -> None:
    """Each has spoken within the last seconds, in its so-manieth life, and never twice at once."""
    def all_do() -> bool:
        now = time.monotonic()
        return all((life := recorder.testimony(vm).life) and life.times[-1] > now - 5 and len(recorder.testimony(vm).lives) == lives[vm] for vm in found)
    wait_for("all speak", all_do, timeout_s, 1)
    assert not [double for vm in found for double in recorder.testimony(vm).doubles]


def test_a_hundred_and_fifty_vms(lab: Lab, recorder: Recorder, many: Mapping[str, str]) -> None:
    lives = dict.fromkeys(many, 1)
    wait_for("all are where they belong", lambda: settled(lab, many), 60, 1)
    speak(recorder, many, lives, 30)

    began = time.monotonic()
    lab.pvc("node", "flush", "hv1", "--wait", "--timeout", "600", timeout_s=620)
    print(f"flush of {COUNT // 3} VMs: {time.monotonic() - began:.0f} s")
    assert lab.domains("hv1") == [] and settled(lab, many, away="hv1")
    speak(recorder, many, lives, 30)
    silences = sorted(recorder.testimony(vm).life.longest_gap_s for vm, home in many.items() if home == "hv1")  # type: ignore[union-attr]
    print(f"their silence: median {silences[len(silences) // 2]:.1f} s, longest {silences[-1]:.1f} s, of counters {guests.TINY_PERIOD_S:g} s apart")
    assert not sum(life.missing for vm in many for life in recorder.testimony(vm).lives)
    began = time.monotonic()
    lab.pvc("node", "ready", "hv1", "--wait", "--timeout", "600", timeout_s=620)
    wait_for("all are home", lambda: settled(lab, many) and len(lab.domains("hv1")) == COUNT // 3, 120, 1)
    print(f"ready, all home: {time.monotonic() - began:.0f} s")
    speak(recorder, many, lives, 30)

    began = time.monotonic()
    lab.kill("hv3")
    for vm, home in many.items():
        lives[vm] += home == "hv3"
    speak(recorder, many, lives, 240)
    print(f"power cut of {COUNT // 3} VMs: all speak elsewhere after {time.monotonic() - began:.0f} s")
    wait_for("all are settled", lambda: settled(lab, many, away="hv3"), 60, 1)
    wait_for("hv3 is back", lambda: word(lab, "hv3", "daemonstate") == "run", 120, 0.5)
    lab.pvc("node", "ready", "hv3", "--wait", "--timeout", "600", timeout_s=620)
    wait_for("all are home", lambda: settled(lab, many) and len(lab.domains("hv3")) == COUNT // 3, 120, 1)
    speak(recorder, many, lives, 30)

    began = time.monotonic()
    for name in lab.names:
        lab.kill(name)
    assert not any(lab.node(name).pid for name in lab.names)
    for name in lab.names:
        lab.node(name).boot()
    lives = {vm: count + 1 for vm, count in lives.items()}
    speak(recorder, many, lives, 400)
    print(f"cold start of {COUNT} VMs: all speak {time.monotonic() - began:.0f} s after the power came back")
    wait_for("all are settled", lambda: settled(lab, many), 60, 1)
    assert {phase(lab, name) for name in lab.names} == {"up"}
