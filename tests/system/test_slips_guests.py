# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What people and hosts do to guests: suspend them, hang them, define what runs already; nodes that can start nothing, janitors without a route."""
from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lablib import guests
from lablib.files import BMC_PASSWORD, BMC_USER
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import Life, claimed_by, heard, info, janitor, main_pid, phase, settles, started, where, word
from .judge import Untouched, restarted, told, transaction

pytestmark = pytest.mark.long


def domstate(lab: Lab, node: str, vm: str) -> str:
    return lab.node(node).run("virsh", "-q", "domstate", "--reason", vm, check=False).stdout.strip()


# ---------------------------------------------------------------------------------------------- paused and in I/O error

@contextmanager
def small_disk(lab: Lab, node: str) -> Iterator[str]:
    """A disk on a file system that is full."""
    lab.node(node).run("sh", "-c", "mkdir -p /srv/small && mount -t tmpfs -o size=64k small /srv/small && truncate -s 1M /srv/small/disk"
                                   " && { cat /dev/zero > /srv/small/filler; true; } 2>/dev/null")
    try:
        yield "/srv/small/disk"
    finally:
        lab.node(node).run("umount", "-l", "/srv/small", check=False)


WRITES = 10.0
"""So many transactions a second are an idle cluster's keepalives and looks many times over; two rows that alternate write a hundred."""


def test_a_flush_of_a_node_with_a_paused_and_an_io_error_vm(lab: Lab, recorder: Recorder) -> None:
    """What runs goes; what cannot go stays as it is and is named, and nobody writes without end. Resumed, it goes too."""
    with small_disk(lab, "hv1") as disk:
        xml = guests.kernel_guest("full2", locked=True).replace("/srv/shared/disks/full2", disk).replace("cache='none'", "cache='writeback'")
        lab.pvc("vm", "define", "-t", "hv1", "-", stdin=xml)
        lab.pvc("vm", "start", "full2")
        for vm in ("calm5", "still1"):
            started(lab, vm, "hv1")
        wait_for("the I/O error", lambda: "I/O error" in domstate(lab, "hv1", "full2"), 60, 0.5)
        lab.node("hv1").run("virsh", "-q", "suspend", "still1")
        assert domstate(lab, "hv1", "still1") == "paused (user)"
        healthy, lives = Life(lab, recorder, "calm5"), {vm: len(lab.testimony(vm).lives) for vm in ("full2", "still1")}
        lab.pvc("node", "flush", "hv1")
        wait_for("calm5 has gone", lambda: where(lab, "calm5") in (["hv2"], ["hv3"]), 60, 0.5)
        before, began = transaction(lab)[1], time.monotonic()
        time.sleep(20)
        rate = (transaction(lab)[1] - before) / (time.monotonic() - began)
        print(f"{rate:.1f} transactions a second")
        assert rate < WRITES, f"{rate:.0f} transactions a second, and nothing comes of them"
        healthy.goes_on()
        assert where(lab, "full2") == ["hv1"] and "I/O error" in domstate(lab, "hv1", "full2")
        here = where(lab, "still1")
        assert len(here) == 1 and domstate(lab, here[0], "still1").startswith("paused")
        told(lab, "paused", "still1", f"On {here[0]}: virsh resume still1", level="warning")
        told(lab, "io-error", "full2", "on hv1: virsh resume full2")
        told(lab, "blocked", "full2", "hv1", "I/O error", level="warning")
        lab.node(here[0]).run("virsh", "-q", "resume", "still1")
        wait_for("still1 has gone", lambda: where(lab, "still1") in (["hv2"], ["hv3"]), 90, 0.5)
        for vm in ("full2", "still1"):
            assert len(lab.testimony(vm).lives) == lives[vm] and not recorder.testimony(vm).doubles
        lab.pvc("vm", "stop", "-y", "full2", "--wait")


# ---------------------------------------------------------------------------------------------------------- the recovery

def _reaches(lab: Lab, node: str, controller: str) -> bool:
    return lab.node(node).run("env", f"IPMI_PASSWORD={BMC_PASSWORD}", "ipmitool", "-I", "lanplus", "-C", "3", "-N", "1", "-R", "1", "-E", "-H", controller,
                              "-U", BMC_USER, "chassis", "power", "status", check=False, timeout_s=30).returncode == 0


def test_the_janitor_has_no_route_to_the_controller(quick: Lab, recorder: Recorder) -> None:
    """The one that took the lock cannot reach it, the other can: the other proves the death, and the VM lives again."""
    started(quick, "route1", "hv3")
    lives = len(quick.testimony("route1").lives)
    address, rule = quick.bmc("hv3").address, ("OUTPUT", "-p", "udp", "--dport", "623", "-j", "DROP", "-d")
    for name in ("hv1", "hv2"):
        quick.node(name).run("iptables", "-A", *rule, address)
    assert not _reaches(quick, "hv1", "hv3-lom") and not _reaches(quick, "hv2", "hv3-lom")
    quick.cut("hv3")
    wait_for("a fence is committed", lambda: phase(quick, "hv3") == "fencing", 40)
    holder = janitor(quick, "hv3")
    other = "hv2" if holder == "hv1" else "hv1"
    quick.node(other).run("iptables", "-D", *rule, address)
    assert _reaches(quick, other, "hv3-lom") and not _reaches(quick, holder, "hv3-lom")
    quick.await_life("route1", lives + 1, 75)
    heard(recorder, "route1", lives + 1)
    assert not recorder.testimony("route1").doubles and len(recorder.testimony("route1").lives) == lives + 1
    assert any("set power 0" in order for order in quick.bmc("hv3").orders())


@contextmanager
def broken_qemu(lab: Lab, node: str) -> Iterator[None]:
    """QEMU of this node tells what it is and starts nothing, as with a bridge, a mount or a library that is missing."""
    program = "/usr/bin/qemu-system-x86_64"
    script = f"""#!/bin/sh
case "$*" in *guest=*) echo "qemu-system-x86_64: nothing starts on this node" >&2; exit 1;; esac
exec {program}.kept "$@"
"""
    lab.node(node).run("sh", "-c", f"mv {program} {program}.kept && cat > {program} && chmod 755 {program}", stdin=script)
    try:
        done = lab.node(node).run("sh", "-c", "cat > /tmp/try.xml; virsh -q create /tmp/try.xml", stdin=guests.tiny_guest("try1"), check=False)
        assert done.returncode and "nothing starts" in done.stderr, done
        yield
    finally:
        lab.node(node).boot()
        lab.node(node).run("mv", f"{program}.kept", program)


def test_a_node_that_can_start_nothing(quick: Lab, recorder: Recorder) -> None:
    """hv1 has the most free memory and starts nothing: the VMs of a dead node come up on hv2, and status names what is wrong."""
    quick.define("big1", "hv2", memory_mib=3000)
    quick.pvc("vm", "start", "big1", "--wait")
    vms = ("broke1", "broke2")
    for vm in vms:
        started(quick, vm, "hv3")
    lives = {vm: len(quick.testimony(vm).lives) for vm in vms}
    with broken_qemu(quick, "hv1"):
        quick.kill("hv3")
        for vm in vms:
            quick.await_life(vm, lives[vm] + 1, 90)
            heard(recorder, vm, lives[vm] + 1)
        assert all(where(quick, vm) in (["hv2"], ["hv3"]) for vm in vms)
        tried = quick.node("hv1").run("sh", "-c", "grep -l 'nothing starts' /var/log/libvirt/qemu/broke*.log", check=False).stdout
        assert tried, "hv1 has not been tried: nothing was seen"
        told(quick, "start-refused-here", "hv1", "nothing starts", level="warning")
    for vm in vms:
        assert len(recorder.testimony(vm).lives) == lives[vm] + 1 and not recorder.testimony(vm).doubles


# -------------------------------------------------------------------------------------------------------- plain libvirt

LATE = "/etc/systemd/system/pvcd.service.d"
BEHIND_LIBVIRT = """[Service]
ExecStartPre=+/bin/sh -c "until virsh -q list --name | grep -qx auto1; do sleep 0.2; done"
"""
"""pvcd does not start before libvirt has started the guest: then it was libvirt that did, as on a host whose pvcd comes late."""


def test_autostart_and_a_quick_reboot(lab: Lab, recorder: Recorder) -> None:
    """libvirt starts the guest at the boot, before pvcd: it ends up running once, on a node that is in run, and its cause is named."""
    started(lab, "auto1", "hv1")
    node, lives, before = lab.node("hv1"), len(lab.testimony("auto1").lives), word(lab, "hv1", "incarnation")
    try:
        node.run("sh", "-c", "virsh -q dumpxml --inactive --security-info auto1 > /tmp/auto1.xml && virsh -q define /tmp/auto1.xml && virsh -q autostart auto1")
        assert re.search(r"Autostart:\s+enable", node.run("virsh", "dominfo", "auto1").stdout)
        node.run("sh", "-c", f"mkdir -p {LATE} && cat > {LATE}/late.conf", stdin=BEHIND_LIBVIRT)
        lab.kill("hv1")
        node.boot()
        lab.await_services("hv1")
        lab.await_life("auto1", lives + 1)
        wait_for("hv1 is in run in this boot", lambda: word(lab, "hv1", "daemonstate") == "run" and word(lab, "hv1", "incarnation") not in ("", before), 60)
        wait_for("it runs once, where its claim is", lambda: where(lab, "auto1") == [claimed_by(lab, "auto1")], 60, 0.5)
        settles(lab, "auto1", "start", "hv1", "")
        lab.await_life("auto1", lives + 2, 60)  # pvcd has ended libvirt's, and started its own
        heard(recorder, "auto1", lives + 2)
        assert not recorder.testimony("auto1").doubles
        Life(lab, recorder, "auto1").goes_on()
        told(lab, "autostart", "auto1", "virsh autostart --disable auto1", level="warning")
    finally:
        node.boot()
        lab.await_services("hv1")
        node.run("sh", "-c", f"rm -rf {LATE}; systemctl daemon-reload; virsh -q autostart --disable auto1; virsh -q destroy auto1; virsh -q undefine auto1",
                 check=False)
        restarted(lab, "hv1")


def test_define_of_a_running_guest(lab: Lab, recorder: Recorder) -> None:
    """It runs under plain libvirt and is defined in PVC as stopped: nobody switches it off."""
    node = lab.node("hv1")
    node.run("sh", "-c", "cat > /tmp/plain1.xml && virsh -q define /tmp/plain1.xml && virsh -q start plain1", stdin=lab.guest("plain1"))
    try:
        lab.await_life("plain1")
        judge = Untouched(lab, recorder, "plain1")
        assert re.search(r"Persistent:\s+yes", node.run("virsh", "dominfo", "plain1").stdout)
        dumped = node.run("virsh", "dumpxml", "--inactive", "plain1").stdout
        done = lab.pvc("vm", "define", "-t", "hv1", "-", stdin=dumped, check=False)
        judge.holds(20)
        if done.returncode == 0:
            told(lab, "runs-outside", "plain1", level="warning")
            lab.pvc("vm", "undefine", "-y", "plain1", check=False, timeout_s=60)
            judge.holds(10)
        else:
            assert done.returncode == 4 and "plain1" in done.stderr, done
    finally:
        node.run("sh", "-c", "virsh -q destroy plain1; virsh -q undefine plain1", check=False)


# ---------------------------------------------------------------------------------------------------------- hung guests

def test_three_hung_guests_and_pvcd_killed(lab: Lab, recorder: Recorder) -> None:
    """Three QEMUs with a balloon stand still; the new pvcd asks them nothing before its keepalives run: a healthy host is not fenced."""
    vms = ("hung1", "hung2", "hung3")
    for vm in (*vms, "well1"):
        started(lab, vm, "hv3")
    judge, lives = Untouched(lab, recorder, "well1"), {vm: len(lab.testimony(vm).lives) for vm in vms}
    node = lab.node("hv3")
    try:
        for vm in vms:
            node.run("pkill", "-STOP", "-f", f"guest={vm},")
        stopped = node.run("ps", "-eo", "stat=,args=").stdout
        assert sum(line.startswith("T") and "guest=hung" in line for line in stopped.splitlines()) == 3, stopped
        before = main_pid(lab, "hv3")
        node.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "pvcd.service")
        wait_for("another pvcd is there", lambda: main_pid(lab, "hv3") not in ("0", before), 20)
        seen, since = word(lab, "hv3", "keepalive"), time.monotonic()
        wait_for("it sends a keepalive", lambda: word(lab, "hv3", "keepalive") not in ("", seen), 25)
        print(f"the first keepalive after {time.monotonic() - since:.1f} s")
        judge.holds(60)
        assert word(lab, "hv3", "daemonstate") == "run"
        for vm in vms:
            told(lab, "hung", vm, "hv3", f"pvc vm stop {vm}")
        lab.pvc("vm", "stop", "-y", "well1", "--wait", timeout_s=40)
    finally:
        node.boot()
        node.run("pkill", "-CONT", "-f", "guest=hung", check=False)
    for vm in vms:
        wait_for(f"{vm} speaks again", lambda vm=vm: recorder.testimony(vm).life.times[-1] > time.monotonic() - 1, 30, 0.2)  # type: ignore[misc,union-attr]
        assert len(recorder.testimony(vm).lives) == lives[vm] and not recorder.testimony(vm).doubles
        assert info(lab, vm)["held_by"] == "hv3"
