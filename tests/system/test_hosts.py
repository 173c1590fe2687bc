# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Disks that fill up, networks that lose packets, names that do not resolve, programs that hang: what a host can do to its guests."""
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lablib import guests
from lablib.host import wait_for
from lablib.lab import Lab, four_letter_word
from lablib.machine import CGROUPS
from lablib.witness import Recorder

from .cluster import Life, info, moving, nobody_is_fenced, nodes, settles, started, where, word

pytestmark = pytest.mark.long


@contextmanager
def full_disk(lab: Lab, node: str, folder: str) -> Iterator[None]:
    """A file system of its own over `folder`, without a free byte and without room for one more file."""
    lab.node(node).run("sh", "-c", f"mount -t tmpfs -o size=64k,nr_inodes=2 full {folder} && {{ cat /dev/zero > {folder}/filler; true; }} 2>/dev/null")
    try:
        yield
    finally:
        lab.node(node).run("umount", "-l", folder)


@contextmanager
def file_changed(lab: Lab, node: str, path: str, script: str) -> Iterator[None]:
    """A file with something else in it: `script` is sed's."""
    lab.node(node).run("sh", "-c", f"cp {path} /tmp/kept && sed '{script}' /tmp/kept > {path}")
    try:
        yield
    finally:
        lab.node(node).run("sh", "-c", f"cat /tmp/kept > {path}")


# ---------------------------------------------------------------------------------------------------------------- disks

def test_an_io_error_pauses_the_guest_and_space_resumes_it(lab: Lab, recorder: Recorder) -> None:
    """It stays where it is, and is shown; nobody starts it elsewhere."""
    lab.node("hv1").run("sh", "-c", "mkdir -p /srv/small && mount -t tmpfs -o size=64k small /srv/small && truncate -s 1M /srv/small/disk"
                                    " && { cat /dev/zero > /srv/small/filler; true; } 2>/dev/null")
    try:
        xml = guests.kernel_guest("full1", disk=True).replace("/srv/shared/disks/full1", "/srv/small/disk").replace("cache='none'", "cache='writeback'")
        lab.pvc("vm", "define", "-t", "hv1", "-", stdin=xml)
        lab.pvc("vm", "start", "full1")
        wait_for("the guest is stopped by an I/O error",
                 lambda: "I/O error" in lab.node("hv1").run("virsh", "-q", "domstate", "--reason", "full1", check=False).stdout, 60, 0.5)
        wait_for("people are told", lambda: "I/O error" in lab.pvc("vm", "info", "full1").stdout + lab.pvc("history", "full1").stdout, 60, 0.5)
        assert where(lab, "full1") == ["hv1"] and info(lab, "full1")["state"] == "start"
        life = recorder.testimony("full1").life
        assert life is not None
        lab.node("hv1").run("rm", "/srv/small/filler")
        wait_for("it goes on", lambda: len(recorder.testimony("full1").life.times) > 10, 60)  # type: ignore[union-attr]
        assert len(recorder.testimony("full1").lives) == 1 and where(lab, "full1") == ["hv1"]
        lab.pvc("vm", "stop", "-y", "full1", "--wait")
    finally:
        lab.node("hv1").run("umount", "-l", "/srv/small", check=False)


@pytest.mark.parametrize(("folder", "starts"), [("/var/log/libvirt/qemu", False), ("/var/log/journal", True)])
def test_a_full_disk_stops_no_guest_and_no_keepalive(lab: Lab, recorder: Recorder, folder: str, starts: bool) -> None:
    """A start that cannot be says why; when there is space, it starts."""
    started(lab, "disk1", "hv1")
    life = Life(lab, recorder, "disk1")
    lab.define("disk2", "hv1")
    lab.node("hv1").run("mkdir", "-p", folder)
    with full_disk(lab, "hv1", folder):
        done = lab.pvc("vm", "start", "disk2", "--wait", "--timeout", "40", check=False, timeout_s=60)
        told = info(lab, "disk2")["reason"]
        assert (done.returncode == 0) == starts and (starts or "No space left" in told), (done, told)
        before = word(lab, "hv1", "keepalive")
        wait_for("the next keepalive", lambda: word(lab, "hv1", "keepalive") not in ("", before), 10)
        life.goes_on()
    lab.pvc("vm", "start", "disk2", "--wait")
    assert where(lab, "disk2") == ["hv1"]


def test_zookeepers_disk_is_full(lab: Lab, recorder: Recorder) -> None:
    """The server ends; the other two go on, and so does everything else."""
    started(lab, "disk3", "hv1")
    life, data, node = Life(lab, recorder, "disk3"), "/var/lib/zookeeper/version-2", lab.node("hv1")
    node.run("sh", "-c", f"systemctl stop zookeeper.service; mkdir -p /tmp/kept && cp -a {data}/. /tmp/kept/ && mount -t tmpfs -o size=64m small {data}"
                         f" && cp -a /tmp/kept/. {data}/ && chown --reference=/tmp/kept {data} && systemctl start zookeeper.service", timeout_s=60)
    try:
        lab.await_services("hv1")
        node.run("sh", "-c", f"cat /dev/zero > {data}/filler || true")
        lab.define("disk4", "hv2")
        for _ in range(3):
            lab.pvc("vm", "start", "disk4", "--wait", node="hv2", timeout_s=90)
            lab.pvc("vm", "stop", "-y", "disk4", "--wait", node="hv2", timeout_s=90)
        served = "Mode:" in four_letter_word(lab.node_address("hv1"), "srvr")
        print("the server with the full disk serves" if served else "the server with the full disk has ended")
        nobody_is_fenced(lab, 35)
        life.goes_on()
    finally:
        node.run("sh", "-c", f"systemctl stop zookeeper.service; umount -l {data}; rm -r /tmp/kept; systemctl start zookeeper.service", timeout_s=60)
        lab.await_services("hv1")
    settles(lab, "disk4", "stop")


# -------------------------------------------------------------------------------------------------------------- network

def test_a_third_of_the_packets_is_lost(lab: Lab, recorder: Recorder) -> None:
    started(lab, "lossy1", "hv3")
    life = Life(lab, recorder, "lossy1")
    lab.lose("hv3", 0.3)
    nobody_is_fenced(lab, 60)
    lab.heal("hv3")
    life.goes_on()
    wait_for("hv3 runs", lambda: word(lab, "hv3", "daemonstate") == "run", 30)


def test_no_name_resolution(lab: Lab, recorder: Recorder) -> None:
    """The migration is refused with the reason; by name, libvirt at the source cannot find the destination."""
    started(lab, "name1", "hv1")
    life = Life(lab, recorder, "name1")
    with file_changed(lab, "hv1", "/etc/hosts", "/hv2/d"):
        lab.pvc("vm", "migrate", "name1", "-t", "hv2", node="hv3")
        settles(lab, "name1", "start", "hv1", "")
        reason = info(lab, "name1")["reason"]
    assert "hv2" in reason and ("resolve" in reason or "known" in reason), reason
    life.goes_on()


# ------------------------------------------------------------------------------------------------------------- programs

def test_a_qemu_that_cannot_be_killed(lab: Lab, recorder: Recorder) -> None:
    """Frozen by the kernel, as in the wait for a dead NFS server: the stop says that it waits, the claim stays, nobody else starts it."""
    started(lab, "stuck1", "hv1")
    group = CGROUPS / "freezer" / lab.node("hv1").label / "stuck"
    if not group.parent.is_dir():
        pytest.skip("a QEMU that SIGKILL does not end needs the freezer of cgroup v1")
    group.mkdir(exist_ok=True)
    for pid in lab.node("hv1").processes("guest=stuck1,"):
        (group / "cgroup.procs").write_text(str(pid))
    (group / "freezer.state").write_text("FROZEN")
    try:
        done = lab.pvc("vm", "stop", "-y", "stuck1", "--wait", "--timeout", "40", check=False, timeout_s=60)
        assert done.returncode in (1, 124) and "stuck1" in done.stderr, done
        assert info(lab, "stuck1")["held_by"] == "hv1"
        assert lab.pvc("vm", "move", "stuck1", "-t", "hv2", check=False).returncode in (0, 4)
        time.sleep(5)
        assert "stuck1" not in lab.domains("hv2") + lab.domains("hv3")
    finally:
        (group / "freezer.state").write_text("THAWED")
    wait_for("its claim is free", lambda: not info(lab, "stuck1")["held_by"], 90, 0.5)
    wait_for("the group is empty", lambda: not (group / "cgroup.procs").read_text(), 20)
    group.rmdir()


INCOMPATIBLE = """#!/bin/sh
case "$*" in *-incoming*) echo "qemu-system-x86_64: this CPU does not have what the guest was started with" >&2; exit 1;; esac
exec /usr/bin/qemu-kept "$@"
"""


def test_another_qemu_at_the_destination(lab: Lab, recorder: Recorder) -> None:
    """It does not take the guest: the guest stays, and libvirt's words are the reason."""
    started(lab, "cpu1", "hv1")
    life, node = Life(lab, recorder, "cpu1"), lab.node("hv2")
    node.run("sh", "-c", "mv /usr/bin/qemu-system-x86_64 /usr/bin/qemu-kept && cat > /usr/bin/qemu-system-x86_64 && chmod 755 /usr/bin/qemu-system-x86_64",
             stdin=INCOMPATIBLE)
    try:
        lab.pvc("vm", "migrate", "cpu1", "-t", "hv2")
        settles(lab, "cpu1", "start", "hv1", "")
        life.goes_on()
        assert "does not have what the guest was started with" in info(lab, "cpu1")["reason"], info(lab, "cpu1")["reason"]
    finally:
        node.run("mv", "/usr/bin/qemu-kept", "/usr/bin/qemu-system-x86_64")


@pytest.mark.parametrize("hung", [False, True], ids=["down", "frozen"])
def test_a_minute_without_libvirt(lab: Lab, recorder: Recorder, hung: bool) -> None:
    """No guest is touched, nobody is fenced, the keepalives go out; afterwards every command works."""
    started(lab, "mute1", "hv1")
    life, node = Life(lab, recorder, "mute1"), lab.node("hv1")
    units = ("libvirtd.service", "libvirtd-tcp.socket", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
    away = ("kill", "--kill-whom=main", "-s", "STOP", "libvirtd.service") if hung else ("stop", *units)
    back = ("kill", "--kill-whom=main", "-s", "CONT", "libvirtd.service") if hung else ("start", "libvirtd-tcp.socket", "libvirtd.service")
    node.run("systemctl", *away, timeout_s=60)
    try:
        nobody_is_fenced(lab, 60)
        assert nodes(lab)["hv1"]["daemonstate"] == "run"
    finally:
        node.run("systemctl", *back, timeout_s=60)
    life.goes_on()
    lab.pvc("vm", "migrate", "mute1", "-t", "hv2", "--wait", timeout_s=90)
    life.goes_on()


SERVER_CLOCK = """[Service]
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 FAKETIME=+1h FAKETIME_DONT_FAKE_MONOTONIC=1
"""


def test_a_zookeeper_server_of_another_hour(lab: Lab, recorder: Recorder) -> None:
    """Sessions are timed on the servers' monotonic clocks: when one server's wall clock jumps, nothing happens."""
    started(lab, "hour1", "hv1")
    life, folder = Life(lab, recorder, "hour1"), "/etc/systemd/system/zookeeper.service.d"
    lab.node("hv1").run("sh", "-c", f"mkdir -p {folder} && cat > {folder}/clock.conf && systemctl daemon-reload && systemctl restart zookeeper.service",
                        stdin=SERVER_CLOCK, timeout_s=60)
    try:
        lab.await_services("hv1")
        nobody_is_fenced(lab, 45)
        life.goes_on()
    finally:
        lab.node("hv1").run("sh", "-c", f"rm {folder}/clock.conf && systemctl daemon-reload && systemctl restart zookeeper.service", timeout_s=60)
        lab.await_services("hv1")


def test_a_busy_host(lab: Lab) -> None:
    """Sixteen programs that want the processors beside pvcd: its keepalives go out."""
    lab.node("hv1").run("sh", "-c", "for n in $(seq 16); do timeout 45 sh -c 'while :; do :; done' >/dev/null 2>&1 & done")
    nobody_is_fenced(lab, 50)
    assert all(row["daemonstate"] == "run" for row in nodes(lab).values())


def test_the_link_breaks_in_the_middle_of_a_migration(lab: Lab, recorder: Recorder) -> None:
    """libvirt's connection dies, and QEMU's: the guest runs on at the source, and the half copy goes."""
    life = moving(lab, recorder, "link1")
    for ports in ("16509", "49152:49215"):
        lab.block("hv2", ports)
    settles(lab, "link1", "start", "hv1", "", timeout_s=120)
    lab.heal("hv2")
    wait_for("the half copy is gone", lambda: where(lab, "link1") == ["hv1"], 60, 0.5)
    life.goes_on()
