# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Controllers that die with their hosts or lie, janitors that sleep, daemons that freeze, and the day when every host loses its power."""
from __future__ import annotations

import time

import pytest

from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import Life, claimed_by, heard, janitor, main_pid, nobody_is_fenced, phase, settles, started, where, word
from .judge import stands_still

pytestmark = pytest.mark.long

COMMITTED_S = 60.0
RECOVERED_S = 60.0
DROP_IN = "/etc/systemd/system/pvcd.service.d"


def signal(lab: Lab, node: str, name: str) -> None:
    lab.node(node).run("systemctl", "kill", "--kill-whom=main", "-s", name, "pvcd.service")


def no_controller(lab: Lab, node: str) -> None:
    """Nothing about one in its configuration: no name, no user, no password."""
    lab.node(node).run("sh", "-c", "sed -i.kept '/^ipmi_/d' /etc/pvc/pvcd.conf && systemctl restart pvcd.service", timeout_s=90)
    wait_for(f"{node} runs", lambda: word(lab, node, "daemonstate") == "run" and not word(lab, node, "ipmiusername"), 60, 0.5)


@pytest.mark.parametrize("controller", ["dead", "none"])
def test_power_and_controller_die_together(quick: Lab, recorder: Recorder, controller: str) -> None:
    """Nobody can prove it: its VM waits, people see why and what to do, and an operator's word is the proof."""
    started(quick, "both1", "hv3")
    lives = len(quick.testimony("both1").lives)
    try:
        if controller == "none":
            no_controller(quick, "hv3")
        else:
            quick.bmc("hv3").set_mode("dead")
        quick.kill("hv3")
        wait_for("a fence is committed", lambda: phase(quick, "hv3") == "fencing", COMMITTED_S)
        time.sleep(15)
        assert phase(quick, "hv3") == "fencing" and claimed_by(quick, "both1") == "hv3" and where(quick, "both1") == []
        shown = quick.pvc("status", check=False).stdout
        assert "1 VM waits" in shown or "1 VMs wait" in shown, shown
        assert "pvc node confirm-off hv3" in shown, shown
        known = quick.pvc("history", "hv3").stdout.splitlines()
        quick.pvc("node", "confirm-off", "-y", "hv3")
        quick.await_life("both1", lives + 1, RECOVERED_S)
        heard(recorder, "both1", lives + 1)
        assert any("confirm" in line for line in quick.pvc("history", "hv3").stdout.splitlines() if line not in known)
    finally:
        quick.node("hv3").boot()
        quick.await_services("hv3")
        if controller == "none":
            quick.node("hv3").run("sh", "-c", "mv /etc/pvc/pvcd.conf.kept /etc/pvc/pvcd.conf && systemctl restart pvcd.service", timeout_s=90)
    wait_for("hv3 is back", lambda: word(quick, "hv3", "daemonstate") == "run", 60)
    assert word(quick, "hv3", "domainstate") == "flushed" and "both1" not in quick.domains("hv3")
    found = recorder.testimony("both1")
    assert len(found.lives) == lives + 1 and not found.doubles


def test_a_controller_lies_and_the_node_is_linked(quick: Lab, recorder: Recorder) -> None:
    """It says off for a host that runs, whose daemon slept until the commit: it objects, and the guest stays."""
    started(quick, "liar1", "hv3")
    life = Life(quick, recorder, "liar1")
    quick.bmc("hv3").set_mode("lie-off")
    signal(quick, "hv3", "STOP")
    try:
        wait_for("a fence is committed", lambda: phase(quick, "hv3") == "fencing", COMMITTED_S, 0.01)
    finally:
        signal(quick, "hv3", "CONT")
    wait_for("hv3 objects", lambda: phase(quick, "hv3") == "up", 20, 0.05)
    nobody_is_fenced(quick, 10)
    assert claimed_by(quick, "liar1") == "hv3" and where(quick, "liar1") == ["hv3"]
    life.goes_on()


def test_a_controller_lies_and_the_node_is_cut_off(quick: Lab, recorder: Recorder) -> None:
    """Outside what PVC can promise: for a while two copies run. When the node is back it destroys its own at once, and does not take part."""
    started(quick, "liar2", "hv3")
    lives = len(quick.testimony("liar2").lives)
    quick.bmc("hv3").set_mode("lie-off")
    quick.cut("hv3")
    quick.await_life("liar2", lives + 1, COMMITTED_S + RECOVERED_S)
    assert quick.node("hv3").pid, "it still has power"
    quick.heal("hv3")
    wait_for("one copy is left", lambda: len(where(quick, "liar2")) == 1 and where(quick, "liar2") != ["hv3"], 40, 0.3)
    wait_for("hv3 is back", lambda: word(quick, "hv3", "daemonstate") == "run", 60)
    assert word(quick, "hv3", "domainstate") == "flushed" and phase(quick, "hv3") == "up"
    assert where(quick, "liar2") == [claimed_by(quick, "liar2")]


def test_the_janitor_sleeps_in_the_middle(lab: Lab, recorder: Recorder) -> None:
    """Its session ends, another goes on; when it wakes, nothing of what it still holds does harm, and nobody fences it."""
    for vm in ("sleep1", "sleep2"):
        started(lab, vm, "hv3")
    lives = {vm: len(lab.testimony(vm).lives) for vm in ("sleep1", "sleep2")}
    lab.bmc("hv3").set_mode("slow")
    lab.cut("hv3")
    wait_for("a fence is committed", lambda: phase(lab, "hv3") == "fencing", COMMITTED_S, 0.05)
    sleeper = janitor(lab)
    signal(lab, sleeper, "STOP")
    try:
        stands_still(lab, sleeper, "pvcd.service")
        assert janitor(lab, sleeper) != sleeper  # its session has ended, another goes on
        stands_still(lab, sleeper, "pvcd.service")
    finally:
        signal(lab, sleeper, "CONT")
    for vm, before in lives.items():
        lab.await_life(vm, before + 1, 90)
        heard(recorder, vm, before + 1)
    time.sleep(10)
    for vm, before in lives.items():
        assert len(recorder.testimony(vm).lives) == before + 1 and not recorder.testimony(vm).doubles
    assert phase(lab, sleeper) == "up"


def test_the_watchdog_ends_a_frozen_daemon(lab: Lab, recorder: Recorder) -> None:
    """systemd starts another within 30 s: nobody is fenced, and the guest is adopted."""
    started(lab, "dog1", "hv3")
    life, before = Life(lab, recorder, "dog1"), main_pid(lab, "hv3")
    signal(lab, "hv3", "STOP")
    stands_still(lab, "hv3", "pvcd.service")
    wait_for("another daemon is there", lambda: main_pid(lab, "hv3") not in ("0", before), 30, 0.5)
    wait_for("it runs", lambda: word(lab, "hv3", "daemonstate") == "run", 30)
    assert phase(lab, "hv3") == "up"
    lab.pvc("vm", "migrate", "dog1", "-t", "hv2", "--wait", timeout_s=60)
    life.goes_on()


def test_a_frozen_daemon_without_a_watchdog_is_fenced(quick: Lab, recorder: Recorder) -> None:
    started(quick, "dog2", "hv3")
    lives = len(quick.testimony("dog2").lives)
    quick.node("hv3").run("sh", "-c", f"mkdir -p {DROP_IN} && cat > {DROP_IN}/dog.conf && systemctl daemon-reload && systemctl restart pvcd.service",
                          stdin="[Service]\nWatchdogSec=0\n", timeout_s=90)
    try:
        wait_for("hv3 runs", lambda: word(quick, "hv3", "daemonstate") == "run", 30)
        signal(quick, "hv3", "STOP")
        quick.await_life("dog2", lives + 1, COMMITTED_S + RECOVERED_S)
        heard(recorder, "dog2", lives + 1)
        assert not recorder.testimony("dog2").doubles
    finally:
        quick.node("hv3").boot()
        quick.node("hv3").run("sh", "-c", f"rm -r {DROP_IN} && systemctl daemon-reload", timeout_s=60)


def test_a_daemon_that_was_stopped_is_never_fenced(quick: Lab, recorder: Recorder) -> None:
    started(quick, "quiet1", "hv3")
    life = Life(quick, recorder, "quiet1")
    quick.node("hv3").run("systemctl", "stop", "pvcd.service", timeout_s=60)
    nobody_is_fenced(quick, 45)
    assert word(quick, "hv3", "daemonstate") == "stop"
    assert "1 VMs are unwatched" in quick.pvc("status", check=False).stdout
    quick.node("hv3").run("systemctl", "start", "pvcd.service", timeout_s=60)
    life.goes_on()


def test_every_host_loses_its_power(lab: Lab, recorder: Recorder) -> None:
    """Six VMs: each runs once again, where it was, and nobody is fenced."""
    homes = {f"all{number}": lab.names[number % 3] for number in range(6)}
    for vm, home in homes.items():
        started(lab, vm, home)
    lives = {vm: len(lab.testimony(vm).lives) for vm in homes}
    for name in lab.names:
        lab.kill(name)
    for name in lab.names:
        lab.node(name).boot()
    for vm, home in homes.items():
        lab.await_life(vm, lives[vm] + 1, 120)
        heard(recorder, vm, lives[vm] + 1)
    for vm, home in homes.items():
        settles(lab, vm, "start", home, "")
        assert where(lab, vm) == [home]
        assert len(recorder.testimony(vm).lives) == lives[vm] + 1 and not recorder.testimony(vm).doubles
    assert all(phase(lab, name) == "up" for name in lab.names)
