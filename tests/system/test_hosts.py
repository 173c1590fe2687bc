# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Disks that fill up, networks that lose packets, names that do not resolve, programs that hang: what a host can do to its guests."""
from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from lablib import guests
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.machine import CGROUPS
from lablib.witness import Recorder

from .cluster import Life, claimed_by, info, moving, nobody_is_fenced, nodes, settles, started, timed, where, word
from .judge import main_process

pytestmark = pytest.mark.long


@contextmanager
def full_disk(lab: Lab, node: str, folder: str) -> Iterator[None]:
    """A file system of its own over `folder`, without a free byte and without room for one more file."""
    lab.node(node).run("sh", "-c", f"mount -t tmpfs -o size=64k,nr_inodes=2 full {folder} && {{ cat /dev/zero > {folder}/filler; true; }} 2>/dev/null")
    try:
        tried = lab.node(node).run("sh", "-c", f"echo one more > {folder}/try", check=False)
        assert tried.returncode and "No space left" in tried.stderr, tried
        yield
    finally:
        lab.node(node).run("umount", "-l", folder)


@contextmanager
def file_changed(lab: Lab, node: str, path: str, script: str) -> Iterator[None]:
    """A file with something else in it: `script` is sed's."""
    lab.node(node).run("sh", "-c", f"cp {path} {path}.kept && sed '{script}' {path}.kept > {path}")
    try:
        yield
    finally:
        lab.node(node).boot()
        lab.node(node).run("sh", "-c", f"cat {path}.kept > {path} && rm {path}.kept")


# ---------------------------------------------------------------------------------------------------------------- disks

def test_an_io_error_pauses_the_guest_and_space_resumes_it(lab: Lab, recorder: Recorder) -> None:
    """It stays where it is, and is shown; nobody starts it elsewhere."""
    lab.node("hv1").run("sh", "-c", "mkdir -p /srv/small && mount -t tmpfs -o size=64k small /srv/small && truncate -s 1M /srv/small/disk"
                                    " && { cat /dev/zero > /srv/small/filler; true; } 2>/dev/null")
    try:
        xml = guests.kernel_guest("full1", locked=True).replace("/srv/shared/disks/full1", "/srv/small/disk").replace("cache='none'", "cache='writeback'")
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
        server = main_process(lab, "hv1", "zookeeper.service")[0]
        node.run("sh", "-c", f"cat /dev/zero > {data}/filler || true")
        lab.define("disk4", "hv2")
        for order in (("start",), ("stop", "-y")) * 3:
            done = lab.pvc("vm", *order, "disk4", "--wait", node="hv2", check=False, timeout_s=90)
            if done.returncode:  # it was connected to the server that ended, and says so; the next one is not
                assert "may have been written" in done.stderr, done
                lab.pvc("vm", *order, "disk4", "--wait", node="hv2", timeout_s=90)
        wait_for("the server with the full disk has ended", lambda: main_process(lab, "hv1", "zookeeper.service")[0] != server, 60, 0.5)
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
    lost = re.findall(r"^\s*(\d+) .*DROP", lab.node("hv3").run("iptables", "-nvxL").stdout, re.M)
    assert len(lost) == 2 and min(map(int, lost)) > 100, lost
    lab.heal("hv3")
    life.goes_on()
    wait_for("hv3 runs", lambda: word(lab, "hv3", "daemonstate") == "run", 30)


def test_half_a_second_to_zookeeper_and_half_a_second_back(lab: Lab, recorder: Recorder) -> None:
    """All is slower, and nothing else happens: pvcd starts, is not fenced, and migrates a guest away and back."""
    started(lab, "slow1", "hv3")
    life = Life(lab, recorder, "slow1")
    lab.delay("hv3", 0.5)
    assert timed(lambda: lab.pvc("vm", "list", node="hv3")) > 2, "nothing is late"
    lab.node("hv3").run("systemctl", "restart", "pvcd.service", timeout_s=90)
    nobody_is_fenced(lab, 60)
    lab.pvc("vm", "migrate", "slow1", "-t", "hv1", "--wait", timeout_s=90)
    lab.pvc("vm", "unmigrate", "slow1", "--wait", timeout_s=90)
    life.goes_on()


def test_only_migrations_need_names(quick: Lab, recorder: Recorder) -> None:
    """ZooKeeper and the controllers are configured by address, and no name resolves anywhere: a migration is refused with its reason, the guest
    stays; a node that dies is fenced, and its guest lives elsewhere."""
    started(quick, "name2", "hv3")
    life = Life(quick, recorder, "name2")
    with ExitStack() as changed:
        for name in quick.names:
            addresses = "; ".join([f"s/{other}:2181/{quick.node_address(other)}:2181/" for other in quick.names]
                                  + [f"s/^ipmi_hostname = .*/ipmi_hostname = {quick.bmc(name).address}/"])
            changed.enter_context(file_changed(quick, name, "/etc/pvc/pvcd.conf", addresses))
            changed.enter_context(file_changed(quick, name, "/etc/hosts", "2,$d"))
            quick.node(name).run("systemctl", "restart", "pvcd.service", timeout_s=90)
        quick.pvc("vm", "migrate", "name2", "-t", "hv1")
        settles(quick, "name2", "start", "hv3", "")
        reason = info(quick, "name2")["reason"]
        assert "hv1" in reason and ("resolve" in reason or "known" in reason), reason
        life.goes_on()
        lives = len(recorder.testimony("name2").lives)
        quick.kill("hv3")
        quick.await_life("name2", lives + 1, 60)
        assert not recorder.testimony("name2").doubles
        wait_for("hv3 is back", lambda: word(quick, "hv3", "daemonstate") == "run", 60)


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

@contextmanager
def stuck(lab: Lab, node: str, vm: str) -> Iterator[None]:
    """The VM's QEMU is frozen by the kernel, as in the wait for a dead NFS server: SIGKILL does not end it."""
    pids = lab.node(node).processes(f"guest={vm},")
    assert pids, f"no QEMU of {vm} runs on {node}"
    with old_freezer() as root:
        line = next(line for line in Path(f"/proc/{pids[0]}/cgroup").read_text().splitlines() if ":freezer:" in line)
        before, group = root / line.rpartition(":")[2].lstrip("/"), root / f"{lab.node(node).label}-stuck"
        group.mkdir(exist_ok=True)
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        try:
            wait_for("QEMU is frozen", lambda: (group / "freezer.state").read_text().strip() == "FROZEN", 20)
            yield
        finally:
            (group / "freezer.state").write_text("THAWED")
            for pid in (group / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    (before / "cgroup.procs").write_text(pid)
            wait_for("the group is empty", lambda: not (group / "cgroup.procs").read_text(), 20)
            group.rmdir()


@contextmanager
def old_freezer() -> Iterator[Path]:
    """The freezer of cgroup v1, whose frozen processes SIGKILL does not end (that of v2 lets them die). Where the machine uses cgroup v2
    only, as a stock Debian 12 does, it is mounted for as long as it takes.
    """
    if (CGROUPS / "freezer").is_dir():
        yield CGROUPS / "freezer"
        return
    with tempfile.TemporaryDirectory(prefix="pvc-freezer-") as folder:
        subprocess.run(["mount", "-t", "cgroup", "-o", "freezer", "none", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def test_a_qemu_that_cannot_be_killed(lab: Lab, recorder: Recorder) -> None:
    """The stop says that it waits, the claim stays, nobody else starts it."""
    started(lab, "stuck1", "hv1")
    with stuck(lab, "hv1", "stuck1"):
        done = lab.pvc("vm", "stop", "-y", "stuck1", "--wait", "--timeout", "40", check=False, timeout_s=60)
        assert done.returncode in (1, 124) and "stuck1" in done.stderr, done
        assert info(lab, "stuck1")["held_by"] == "hv1"
        assert lab.pvc("vm", "move", "stuck1", "-t", "hv2", check=False).returncode in (0, 4)
        time.sleep(5)
        assert "stuck1" not in lab.domains("hv2") + lab.domains("hv3")
    wait_for("its claim is free", lambda: not info(lab, "stuck1")["held_by"], 90, 0.5)


def test_a_qemu_that_does_not_let_itself_be_flushed(lab: Lab, recorder: Recorder) -> None:
    """The flush says that a VM is still here, the claim stays, nobody else starts it; when QEMU goes on, it runs once, and the flush is done."""
    started(lab, "stuck2", "hv1")
    life = Life(lab, recorder, "stuck2")
    with stuck(lab, "hv1", "stuck2"):
        done = lab.pvc("node", "flush", "hv1", "--wait", "--timeout", "30", check=False, timeout_s=60)
        assert done.returncode == 124 and "1 VMs here" in done.stderr, done
        assert claimed_by(lab, "stuck2") == "hv1" and word(lab, "hv1", "domainstate") == "flush"
        nobody_is_fenced(lab, 30)
    wait_for("it runs elsewhere", lambda: where(lab, "stuck2") in (["hv2"], ["hv3"]), 120, 0.5)
    wait_for("hv1 is flushed", lambda: word(lab, "hv1", "domainstate") == "flushed", 30)
    life.goes_on(120)


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
    answers = ("timeout", "5", "virsh", "-q", "list")
    try:
        assert node.run(*answers, check=False).returncode, "libvirt answers"
        nobody_is_fenced(lab, 60)
        assert node.run(*answers, check=False).returncode, "libvirt answers"
        assert nodes(lab)["hv1"]["daemonstate"] == "run"
    finally:
        node.run("systemctl", *back, timeout_s=60)
    life.goes_on()
    lab.pvc("vm", "migrate", "mute1", "-t", "hv2", "--wait", timeout_s=90)
    life.goes_on()


def test_a_busy_host(lab: Lab) -> None:
    """Sixteen programs that want the processors beside pvcd: its keepalives go out."""
    lab.node("hv1").run("sh", "-c", "for n in $(seq 16); do timeout 60 sh -c 'while :; do :; done' >/dev/null 2>&1 & done")
    nobody_is_fenced(lab, 45)
    used = lab.node("hv1").run("sh", "-c", "ps -eo cputimes=,args= | grep '[w]hile :; do :; done' | grep -v timeout").stdout.splitlines()
    assert len(used) == 16 and sum(int(line.split()[0]) for line in used) > 20, used
    lab.node("hv1").run("pkill", "-f", "while :; do :; done")
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
