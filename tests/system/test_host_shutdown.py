# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A host that is shut down or rebooted in order, without a flush: its guests leave first, or power off cleanly, and are home again after it."""
from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lablib import guests
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import Life, claimed_by, info, main_pid, phase, settles, started, where, word

pytestmark = pytest.mark.long
OFF_S, BACK_S = 150, 120
BOOT_GAP_S = 4.0
"""A whole node boots, with its Java, on the two cores that emulate the guests: they are silent for longer than in a migration alone."""


def goes_down(lab: Lab, node: str, verb: str = "poweroff") -> None:
    """As an operator, or a UPS, does it; the command returns at once."""
    lab.node(node).run("systemctl", verb, "--no-block", timeout_s=20)


def is_off(lab: Lab, node: str, timeout_s: float = OFF_S) -> None:
    """Every unit has ended. The power is cut then: systemd's last program waits 90 s, twice, for what looks into the node from outside."""
    def ended() -> bool:
        init = lab.node(node).init
        try:
            return init is None or b"systemd-shutdown" in Path(f"/proc/{init}/cmdline").read_bytes()
        except OSError:
            return True
    wait_for(f"{node} is off", ended, timeout_s, 0.2)
    lab.kill(node)


def is_back(lab: Lab, node: str) -> None:
    lab.node(node).boot()
    lab.await_services(node)
    wait_for(f"{node} is in run", lambda: word(lab, node, "daemonstate") == "run", BACK_S)


def log_end(lab: Lab, vm: str) -> str:
    """The last lines of QEMU's own log: how its guest ended."""
    return lab.node("hv1").run("tail", "-n", "3", f"/var/log/libvirt/qemu/{vm}.log").stdout


def test_a_reboot_of_three_guests_is_three_lives(lab: Lab, recorder: Recorder) -> None:
    """They go elsewhere live, come home live after the boot, and nobody was fenced."""
    vms = ["leave1", "leave2", "leave3"]
    for vm in vms:
        started(lab, vm, "hv1")
    lives = [Life(lab, recorder, vm) for vm in vms]
    goes_down(lab, "hv1")
    wait_for("it is told", lambda: "leaving" in lab.pvc("status", "-f", "json", node="hv2").stdout
             or "shut-down" in lab.pvc("status", "-f", "json", node="hv2").stdout, 30, 0.2)
    is_off(lab, "hv1")
    assert word(lab, "hv1", "daemonstate") == "stop" and phase(lab, "hv1") == "up"
    assert word(lab, "hv1", "domainstate") == "flushed" and json.loads(word(lab, "hv1", "departure"))["return"] is True
    assert all(where(lab, vm) in (["hv2"], ["hv3"]) for vm in vms)
    is_back(lab, "hv1")
    for vm in vms:
        settles(lab, vm, "start", "hv1", "", timeout_s=90)
    wait_for("hv1 is ready", lambda: word(lab, "hv1", "domainstate") == "ready", 60)
    assert word(lab, "hv1", "departure") == ""
    for life in lives:
        life.goes_on(BOOT_GAP_S)
    assert all(where(lab, vm) == ["hv1"] for vm in vms)


def test_what_fits_nowhere_powers_off_by_itself_and_starts_at_the_boot(lab: Lab, recorder: Recorder) -> None:
    """The other nodes take nothing: the word stays `start`, the claim is freed, and the guest ended by its own hand."""
    for name in ("hv2", "hv3"):
        lab.pvc("node", "flush", name, "--wait", timeout_s=90)
    started(lab, "stay1", "hv1")
    goes_down(lab, "hv1")
    is_off(lab, "hv1")
    assert info_from(lab, "stay1")["state"] == "start" and claimed_by(lab, "stay1") == ""
    told = lab.pvc("status", node="hv2", check=False).stdout
    assert "stay1: waits for hv1, which was shut down" in told and "pvc vm move stay1" in told, told
    assert lab.pvc("check", node="hv2", check=False).returncode == 2
    is_back(lab, "hv1")
    assert "terminating on signal" not in log_end(lab, "stay1").rpartition("shutting down")[0].rpartition("starting up")[2]
    lab.await_life("stay1", 2, 90)
    settles(lab, "stay1", "start", "hv1")
    assert not recorder.testimony("stay1").doubles


def info_from(lab: Lab, vm: str, node: str = "hv2") -> dict[str, object]:
    found: dict[str, object] = json.loads(lab.pvc("vm", "info", vm, "-f", "json", node=node).stdout)
    return found


def test_a_vm_that_waits_for_its_host_is_moved_by_the_command_that_status_names(lab: Lab, recorder: Recorder) -> None:
    for name in ("hv2", "hv3"):
        lab.pvc("node", "flush", name, "--wait", timeout_s=90)
    started(lab, "stay2", "hv1")
    goes_down(lab, "hv1")
    is_off(lab, "hv1")
    lab.pvc("node", "ready", "hv2", "--wait", node="hv2", timeout_s=90)
    lab.pvc("vm", "move", "stay2", node="hv2")
    lab.await_life("stay2", 2, 60)
    is_back(lab, "hv1")
    time.sleep(5)
    assert where(lab, "stay2") == ["hv2"] and not recorder.testimony("stay2").doubles


def test_all_nodes_at_once(lab: Lab, recorder: Recorder) -> None:
    """A UPS: nobody can receive, so nobody waits long; every guest powers off, and starts again after the boot."""
    vms = {f"ups{number}": f"hv{number}" for number in (1, 2, 3)}
    for vm, node in vms.items():
        started(lab, vm, node)
    at = time.monotonic()
    for name in lab.names:
        goes_down(lab, name)
    for name in lab.names:
        is_off(lab, name)
    assert time.monotonic() - at < 120
    for name in lab.names:
        lab.node(name).boot()
    for name in lab.names:
        is_back(lab, name)
    for vm in vms:
        lab.await_life(vm, 2, 120)
        assert not recorder.testimony(vm).doubles and len(lab.testimony(vm).lives) == 2
        assert len(where(lab, vm)) == 1


def journal_until_the_end(lab: Lab, node: str) -> Path:
    """A file of ours with what pvcd says from now on: a unit of the node itself writes it, which no shutdown stops before pvcd has ended."""
    written = lab.shared / f"{node}.journal"
    lab.node(node).run("systemd-run", "-q", "--collect", "-p", "DefaultDependencies=no", "-p", f"StandardOutput=truncate:/srv/shared/{written.name}",
                       "journalctl", "-f", "-n0", "-o", "cat", "-u", "pvcd.service")
    wait_for("the journal is being written", written.exists, 10)
    return written


def test_without_zookeeper_guests_power_off(lab: Lab, recorder: Recorder) -> None:
    """The host waits half a minute for ZooKeeper, no longer; its guests start again, once, wherever."""
    started(lab, "alone1", "hv1")
    journal = journal_until_the_end(lab, "hv1")
    for name in lab.names:
        lab.node(name).run("systemctl", "stop", "zookeeper.service", timeout_s=60)
    try:
        goes_down(lab, "hv1")
        is_off(lab, "hv1")
    finally:
        for name in ("hv2", "hv3"):
            lab.node(name).run("systemctl", "start", "zookeeper.service", timeout_s=60)
    is_back(lab, "hv1")
    own = journal.read_text()
    assert "ZooKeeper has not answered for" in own and "the guest is asked to power off" in own, own
    lab.await_life("alone1", 2, 120)
    wait_for("it runs once", lambda: len(where(lab, "alone1")) == 1, 60)
    assert not recorder.testimony("alone1").doubles


def test_a_plain_stop_touches_nothing(lab: Lab, recorder: Recorder) -> None:
    """`systemctl stop pvcd`, as an upgrade does it: the guest runs on, the node's word is what it was, and `check` says that nobody sees it."""
    started(lab, "plain1", "hv1")
    life = Life(lab, recorder, "plain1")
    lab.node("hv1").run("systemctl", "stop", "pvcd.service", timeout_s=60)
    assert word(lab, "hv1", "daemonstate") == "stop" and word(lab, "hv1", "domainstate") == "ready" and word(lab, "hv1", "departure") == ""
    assert where(lab, "plain1") == ["hv1"] and claimed_by(lab, "plain1") == "hv1"
    checked = lab.pvc("check", node="hv2", check=False)
    assert checked.returncode == 2 and "cannot be seen" in checked.stdout, checked
    lab.node("hv1").run("systemctl", "start", "pvcd.service", timeout_s=90)
    old = main_pid(lab, "hv1")
    lab.node("hv1").run("systemctl", "restart", "pvcd.service", timeout_s=90)
    assert main_pid(lab, "hv1") != old
    life.goes_on()
    assert info(lab, "plain1")["state"] == "start" and where(lab, "plain1") == ["hv1"]


def test_a_guest_of_plain_libvirt_is_never_switched_off(lab: Lab, recorder: Recorder) -> None:
    """It is listed, `define` refuses it and says what to do, and a definition that came by another way leaves it running."""
    node, vm = lab.node("hv1"), "virsh1"
    xml = guests.kernel_guest(vm)
    node.run("sh", "-c", "cat > /tmp/virsh1.xml", stdin=xml)
    try:
        node.run("virsh", "-q", "define", "/tmp/virsh1.xml")
        node.run("virsh", "-q", "start", vm)
        lab.await_life(vm)
        life = Life(lab, recorder, vm)
        wait_for("it is listed", lambda: vm in lab.pvc("node", "info", "hv1", "-l").stdout, 20)
        assert vm in lab.pvc("verify", check=False).stdout
        refused = lab.pvc("vm", "define", "-t", "hv2", "-", stdin=xml, check=False)
        assert refused.returncode == 4 and "outside PVC" in refused.stderr and "virsh" in refused.stderr, refused
        uuid = guests.guest_uuid(vm)
        pairs = {"": vm, "/hypervisor": "hv1", "/lasthypervisor": "", "/xml": xml, "/state": "stop"}
        for key, value in pairs.items():  # as a client of 0.1, or a race, would
            lab.keys.create(f"/domains/{uuid}{key}", value)
        wait_for("it is told", lambda: "runs-outside" in lab.pvc("status", "-f", "json", check=False).stdout, 30)
        time.sleep(5)
        life.goes_on()
        lab.pvc("vm", "start", vm)  # now somebody has ordered it: it is taken over as it runs
        wait_for("it is claimed", lambda: claimed_by(lab, vm) == "hv1", 20)
        life.goes_on()
    finally:
        node.run("virsh", "-q", "undefine", vm, check=False)


def test_a_guest_on_a_snapshot_is_told_and_not_stopped_without_force(lab: Lab, recorder: Recorder) -> None:
    """Finding A20: the next start would go back to the old disk."""
    vm = "snap1"
    (lab.shared / "disks" / f"{vm}.s1").unlink(missing_ok=True)
    started(lab, vm, "hv1", disk=True)
    node = lab.node("hv1")
    life = Life(lab, recorder, vm)
    node.run("virsh", "-q", "snapshot-create-as", vm, "s1", "--disk-only", "--no-metadata", "--diskspec",
             f"vda,file=/srv/shared/disks/{vm}.s1", timeout_s=30)
    wait_for("it is told", lambda: "runs otherwise" in lab.pvc("status", check=False).stdout, 90, 1)
    refused = lab.pvc("vm", "stop", "-y", vm, check=False)
    assert refused.returncode == 4 and f"{vm}.s1" in refused.stderr and "--force" in refused.stderr, refused
    assert f"{vm}.s1" in lab.pvc("vm", "info", vm).stdout
    life.goes_on()
    lab.pvc("vm", "stop", "-y", "--force", vm, "--wait", timeout_s=60)
