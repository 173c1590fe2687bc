# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A live migration that fails leaves the guest alive at the source, and says why."""
from __future__ import annotations

import time
from pathlib import Path

import pytest

from lablib import guests
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import Life, info, main_pid, moving, settles, started, where, word


def stays(lab: Lab, vm: str, life: Life, reason: str, timeout_s: float = 60) -> None:
    """It is at the source, in the same life; the order is taken back, and people are told why."""
    settles(lab, vm, "start", "hv1", "", timeout_s=timeout_s)
    wait_for(f"{vm} is on hv1 only", lambda: where(lab, vm) == ["hv1"], 30, 0.3)
    life.goes_on()
    assert reason in info(lab, vm)["reason"], info(lab, vm)["reason"]


def test_the_destination_has_a_vm_of_that_name(lab: Lab, recorder: Recorder) -> None:
    started(lab, "fail1", "hv1")
    life = Life(lab, recorder, "fail1")
    other = guests.kernel_guest("fail1").replace(guests.guest_uuid("fail1"), guests.guest_uuid("another fail1"))
    other = other.replace("/srv/shared/serial/fail1", "/dev/null")
    lab.node("hv2").run("sh", "-c", "cat > /tmp/other.xml && virsh -q create /tmp/other.xml", stdin=other)
    lab.pvc("vm", "migrate", "fail1", "-t", "hv2")
    settles(lab, "fail1", "start", "hv1", "")
    life.goes_on()
    assert "another VM of the name fail1" in info(lab, "fail1")["reason"]
    lab.node("hv2").run("virsh", "-q", "destroy", "fail1")


def test_the_destination_lacks_memory(lab: Lab, recorder: Recorder) -> None:
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    started(lab, "fail2", "hv1", memory_mib=total // 1024 - 100)
    life = Life(lab, recorder, "fail2")
    done = lab.pvc("vm", "migrate", "fail2", check=False)
    assert done.returncode == 4 and "MiB free" in done.stderr
    lab.pvc("vm", "migrate", "fail2", "-t", "hv2")
    stays(lab, "fail2", life, "free here")


def test_the_destination_has_no_libvirt(lab: Lab, recorder: Recorder) -> None:
    """Once it is shown, the client refuses; an order from before that is taken back by the daemons."""
    started(lab, "fail3", "hv1")
    life = Life(lab, recorder, "fail3")
    lab.node("hv2").run("systemctl", "stop", "libvirtd.service", "libvirtd-tcp.socket", "libvirtd.socket", "libvirtd-ro.socket",
                        "libvirtd-admin.socket", timeout_s=60)
    wait_for("it is shown", lambda: word(lab, "hv2", "libvirtstate"), 30)
    done = lab.pvc("vm", "migrate", "fail3", "-t", "hv2", check=False)
    assert done.returncode == 4 and "its libvirt gives no answer" in done.stderr, done
    lab.keys.order(f"/domains/{guests.guest_uuid('fail3')}", state="migrate", hypervisor="hv2", lasthypervisor="hv1")
    settles(lab, "fail3", "start", "hv1", "", timeout_s=90)
    lab.node("hv2").run("systemctl", "start", "libvirtd-tcp.socket", "libvirtd.service", timeout_s=60)
    stays(lab, "fail3", life, "hv2 has not answered")


def test_the_destination_dies_in_the_data_phase(lab: Lab, recorder: Recorder) -> None:
    life = moving(lab, recorder, "fail4")
    lab.node("hv2").run("pkill", "-9", "-f", "guest=fail4")
    stays(lab, "fail4", life, "hv2")


@pytest.mark.long
def test_the_destinations_libvirtd_dies_in_the_data_phase(lab: Lab, recorder: Recorder) -> None:
    life = moving(lab, recorder, "fail5")
    lab.node("hv2").run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "libvirtd.service")
    stays(lab, "fail5", life, "hv2")


def test_the_sources_libvirtd_dies_in_the_data_phase(lab: Lab, recorder: Recorder) -> None:
    life = moving(lab, recorder, "fail6")
    lab.node("hv1").run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "libvirtd.service")
    stays(lab, "fail6", life, "hv2")


def test_an_operator_takes_a_migration_back(lab: Lab, recorder: Recorder) -> None:
    life = moving(lab, recorder, "fail7")
    lab.pvc("vm", "migrate", "fail7", "--cancel")
    wait_for("hv2 has no half copy", lambda: where(lab, "fail7") == ["hv1"], 30, 0.3)
    settles(lab, "fail7", "start", "hv1", "")
    life.goes_on()


@pytest.mark.long
def test_the_migration_network_is_down(lab: Lab, recorder: Recorder) -> None:
    started(lab, "fail8", "hv1")
    life = Life(lab, recorder, "fail8")
    lab.block("hv2", 16509)
    lab.pvc("vm", "migrate", "fail8", "-t", "hv2")
    settles(lab, "fail8", "start", "hv1", "", timeout_s=180)
    life.goes_on()


# ------------------------------------------------------------------------------------------------- the moment of the hand-off

def state(lab: Lab, node: str, vm: str) -> str:
    """What libvirt says, with its reason: `paused (user)`."""
    return lab.node(node).run("virsh", "-q", "domstate", vm, "--reason", check=False).stdout.strip()


@pytest.mark.parametrize("how", ["reset", "silence"])
def test_the_reply_to_the_last_step_is_lost(lab: Lab, recorder: Recorder, how: str) -> None:
    """hv2 has the whole guest, and its answers do not reach hv1. libvirt wakes the guest on hv1: at once when the connection breaks (pvcd on hv2
    stands still meanwhile), after half a minute of silence. It runs there and nowhere else (A21).
    """
    life = moving(lab, recorder, f"lost-{how}")
    target, source = lab.node("hv2"), lab.node("hv1")
    drop = ("-p", "tcp", "--sport", "16509", "-d", "hv1", "-j", "DROP")
    pid = main_pid(lab, "hv2")
    if how == "reset":
        target.run("kill", "-STOP", pid)
    try:
        target.run("iptables", "-A", "OUTPUT", *drop)
        source.run("virsh", "-q", "migrate-setspeed", life.vm, "1000")
        wait_for("it has arrived, paused", lambda: state(lab, "hv2", life.vm) == "paused (user)", 30, 0.1)
        if how == "reset":
            source.run("ss", "-K", "dst", "hv2", "dport", "=", "16509")
        wait_for("hv1's libvirt has woken it", lambda: state(lab, "hv1", life.vm).startswith("running"), 10 if how == "reset" else 50, 0.2)
        life.speaks(20)
        assert state(lab, "hv2", life.vm) in ("paused (user)", *([""] if how == "silence" else []))
    finally:
        target.run("iptables", "-D", "OUTPUT", *drop, check=False)
        target.run("kill", "-CONT", pid)
    settles(lab, life.vm, "start", "hv1", "")
    wait_for("nothing is left on hv2", lambda: where(lab, life.vm) == ["hv1"], 30, 0.3)
    life.goes_on(60.0)
    assert len(life.testimony.lives) == 1


@pytest.mark.parametrize("side", ["hv1", "hv2"])
def test_a_daemon_sleeps_in_the_hand_off(lab: Lab, recorder: Recorder, side: str) -> None:
    """The guest has arrived, and is paused until the daemon that must act is back; nobody else resumes it, and its life goes on."""
    life = moving(lab, recorder, f"sleeps-{side}")
    pid = main_pid(lab, side)
    lab.node(side).run("kill", "-STOP", pid)
    try:
        lab.node("hv1").run("virsh", "-q", "migrate-setspeed", life.vm, "1000")
        wait_for("it has left hv1", lambda: where(lab, life.vm) == ["hv2"], 30, 0.1)
        for _ in range(20):
            assert state(lab, "hv2", life.vm) == "paused (user)"
    finally:
        lab.node(side).run("kill", "-CONT", pid)
    settles(lab, life.vm, "start", "hv2")
    wait_for("it runs", lambda: state(lab, "hv2", life.vm).startswith("running"), 10, 0.1)
    life.goes_on(30.0)


def test_guests_that_do_not_run_are_not_migrated(lab: Lab, recorder: Recorder) -> None:
    """The order is taken back, once; a flush names the VM, and goes on when it is resumed (B1)."""
    started(lab, "halted1", "hv1")
    life = Life(lab, recorder, "halted1")
    lab.node("hv1").run("virsh", "-q", "suspend", "halted1")
    lab.keys.order(f"/domains/{guests.guest_uuid('halted1')}", state="migrate", hypervisor="hv2", lasthypervisor="hv1")
    settles(lab, "halted1", "start", "hv1", "")
    assert "does not run is not migrated" in info(lab, "halted1")["reason"]
    history = f"/history/{guests.guest_uuid('halted1')}"
    written = lab.keys.text(history)
    lab.pvc("node", "flush", "hv1")
    until = time.monotonic() + 5
    while time.monotonic() < until:
        assert word(lab, "hv1", "domainstate") == "flush" and info(lab, "halted1")["state"] == "start"
    assert lab.keys.text(history) == written, "nothing was ordered"
    lab.node("hv1").run("virsh", "-q", "resume", "halted1")
    wait_for("hv1 is empty", lambda: word(lab, "hv1", "domainstate") == "flushed", 60)
    assert where(lab, "halted1") != ["hv1"]
    life.goes_on(30.0)
    lab.pvc("node", "ready", "hv1", "--wait")

