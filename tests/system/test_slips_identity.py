# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Hosts, controllers and data that are not what they say: nothing is destroyed, nobody loses power, and people are told."""
from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lablib import guests
from lablib.files import BMC_PASSWORD, BMC_USER
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.machine import Machine
from lablib.witness import Recorder

from .cluster import Life, claimed_by, started, where, word
from .judge import Untouched, configured, configured_back, restarted, said, serves, told

pytestmark = pytest.mark.long


# ------------------------------------------------------------------------------------------------- one controller for two

def _guid(lab: Lab, asking: str, controller: str) -> str:
    """What a controller says that it is, asked from a node."""
    return lab.node(asking).run("env", f"IPMI_PASSWORD={BMC_PASSWORD}", "ipmitool", "-I", "lanplus", "-C", "3", "-E", "-H", controller, "-U", BMC_USER,
                                "mc", "guid", timeout_s=30).stdout


def test_two_nodes_with_one_controller_and_the_second_is_cut_off(quick: Lab, recorder: Recorder) -> None:
    """hv3 names the controller of hv2. The power of hv2 is no proof of the death of hv3, and nobody may touch it."""
    started(quick, "wire2", "hv2")
    started(quick, "wire3", "hv3")
    judge = Untouched(quick, recorder, "wire2", fences=False)
    third = Life(quick, recorder, "wire3")
    try:
        configured(quick, "hv3", "s/^ipmi_hostname = .*/ipmi_hostname = hv2-lom/")
        assert _guid(quick, "hv3", "hv2-lom") == _guid(quick, "hv2", "hv2-lom") != _guid(quick, "hv2", "hv3-lom"), "the wiring is right"
        quick.cut("hv3")
        until = time.monotonic() + 45
        while time.monotonic() < until:
            judge.hosts()
            assert claimed_by(quick, "wire3") in ("hv3", "") and "wire3" not in {*quick.domains("hv1"), *quick.domains("hv2")}
            time.sleep(0.5)
        assert claimed_by(quick, "wire3") == "hv3"
        told(quick, "bmc-wrong", "hv3", "hv2-lom", "ipmi_", node="hv1")
        quick.heal("hv3")
        third.goes_on(60)
    finally:
        quick.heal("hv3")
        configured_back(quick, ["hv3"])
    wait_for("hv3 runs", lambda: word(quick, "hv3", "daemonstate") == "run", 60)
    judge.now()
    third.goes_on()
    assert where(quick, "wire3") == ["hv3"]


# ---------------------------------------------------------------------------------------------------------- another name

@pytest.fixture
def strange_name(lab: Lab) -> Iterator[str]:
    yield "hv9"
    lab.node("hv2").run("sh", "-c", "systemctl stop pvcd.service; hostname hv2; echo hv2 > /etc/hostname", timeout_s=90)
    for room in ("nodes", "fences"):
        if lab.keys.version(f"/{room}/hv9") is not None:
            lab.keys.delete_tree(f"/{room}/hv9")
    restarted(lab, "hv2")


def test_a_host_is_renamed_and_pvcd_restarted(lab: Lab, recorder: Recorder, strange_name: str) -> None:
    """It does not join under the new name, names both, and touches nothing; under its old name it goes on."""
    started(lab, "name1", "hv2")
    judge, since = Untouched(lab, recorder, "name1", fences=False), time.time()
    lab.node("hv2").run("sh", "-c", f"hostname {strange_name}; echo {strange_name} > /etc/hostname")
    assert lab.node("hv2").run("/usr/bin/python3", "-c", "import socket; print(socket.gethostname())").stdout.strip() == strange_name
    restarted(lab, "hv2")
    judge.holds(20)
    assert where(lab, "name1") == ["hv2"] and claimed_by(lab, "name1") == "hv2"
    assert lab.keys.version(f"/nodes/{strange_name}") is None, "it has joined"
    said(lab, "hv2", strange_name, "hv2", since=since)
    told(lab, "unwatched", "hv2", "name1", "journalctl", node="hv1")
    lab.node("hv2").run("sh", "-c", "hostname hv2; echo hv2 > /etc/hostname")
    restarted(lab, "hv2")
    wait_for("hv2 runs", lambda: word(lab, "hv2", "daemonstate") == "run", 60)
    judge.holds(10)
    assert where(lab, "name1") == ["hv2"]


# ---------------------------------------------------------------------------------------------------------------- a clone

@pytest.fixture
def clone(quick: Lab) -> Iterator[Machine]:
    """hv3 a second time: its disk, its name, its machine-id, its configuration; another boot, another address."""
    machine = quick.clone("hv3")
    yield machine
    machine.remove()
    restarted(quick, "hv3")


def _identity(machine: Machine) -> list[str]:
    return machine.run("sh", "-c", "hostname; cat /etc/machine-id; md5sum < /etc/pvc/pvcd.conf; cat /proc/sys/kernel/random/boot_id").stdout.split()


def _journal(machine: Machine, since: float) -> str:
    """What pvcd has said there since then; '' while the machine is booting."""
    return machine.run("journalctl", "-u", "pvcd.service", "-o", "cat", f"--since=@{since:.0f}", check=False).stdout.replace("-- No entries --", "").strip()


def test_a_clone_boots_beside_its_original(quick: Lab, recorder: Recorder, clone: Machine) -> None:
    """The clone refuses: another host of this name is alive. The original and its guest do not notice."""
    started(quick, "twin1", "hv3")
    judge, since = Untouched(quick, recorder, "twin1"), time.time()
    clone.boot()
    wait_for("its pvcd has tried", lambda: _journal(clone, since), 60, 0.5)
    first, second = _identity(quick.node("hv3")), _identity(clone)
    assert first[:-1] == second[:-1] and first[-1] != second[-1], "it is no clone"
    judge.holds(30)
    assert clone.run("virsh", "-q", "list", "--name").stdout.split() == [] and where(quick, "twin1") == ["hv3"]
    out = _journal(clone, since)
    assert "hv3" in out and "another host" in out, out
    assert word(quick, "hv3", "daemonstate") == "run"


# ------------------------------------------------------------------------------------------------------- an older ZooKeeper

DATA = "/var/lib/zookeeper/version-2"


@pytest.fixture
def afterwards_anew(lab: Lab) -> Iterator[Lab]:
    """Whatever the daemons have come to believe, the next test begins with an empty cluster."""
    yield lab
    anew(lab)


def anew(lab: Lab) -> None:
    """No VMs, empty ZooKeeper servers, daemons without memories, and the cluster made again."""
    for name in lab.names:
        lab.node(name).run("sh", "-c", "systemctl stop pvcd.service zookeeper.service; for d in $(virsh -q list --name); do virsh -q destroy $d; done; "
                           f"rm -rf {DATA} /tmp/older /var/lib/pvc/*; systemctl reset-failed pvcd.service; true", timeout_s=120)
    for name in lab.names:
        lab.node(name).run("systemctl", "start", "zookeeper.service")
    for name in lab.names:
        lab.await_services(name)
    lab.keys.close()
    lab.pvc("init", "--yes")
    for name in lab.names:
        lab.node(name).run("systemctl", "start", "pvcd.service", timeout_s=90)


def _restore(lab: Lab) -> None:
    """All servers stop, and begin again with the copies that were made while they ran."""
    for name in lab.names:
        lab.node(name).run("systemctl", "stop", "zookeeper.service", timeout_s=60)
    assert not any(serves(lab, name) for name in lab.names), "a server still answers"
    for name in lab.names:
        lab.node(name).run("sh", "-c", f"rm -rf {DATA} && cp -a /tmp/older {DATA} && systemctl start zookeeper.service")
    for name in lab.names:
        lab.await_services(name)


@pytest.mark.parametrize("running", [True, False], ids=["pvcd runs", "pvcd is stopped meanwhile"])
def test_zookeeper_is_restored_to_before_a_move(afterwards_anew: Lab, recorder: Recorder, running: bool) -> None:
    """The copy says hv1, the guest lives on hv2: it stays there, nobody starts it on hv1, and the way out is told."""
    lab, vm = afterwards_anew, "back1" if running else "back2"
    started(lab, vm, "hv1")
    for name in lab.names:
        lab.node(name).run("sh", "-c", f"rm -rf /tmp/older; cp -a {DATA} /tmp/older")
    lab.pvc("vm", "move", vm, "-t", "hv2", "--wait", timeout_s=90)
    assert where(lab, vm) == ["hv2"]
    judge = Untouched(lab, recorder, vm, fences=False)
    since = time.time()
    if not running:
        for name in lab.names:
            lab.node(name).run("systemctl", "stop", "pvcd.service", timeout_s=90)
    _restore(lab)
    assert lab.keys.text(f"/domains/{guests.guest_uuid(vm)}/hypervisor") == "hv1", "ZooKeeper knows of the move"
    if not running:
        for name in lab.names:
            restarted(lab, name)
    until = time.monotonic() + 40
    while time.monotonic() < until:
        judge.hosts()
        assert where(lab, vm) == ["hv2"]
        time.sleep(1)
    life = recorder.testimony(vm)
    assert not life.doubles and len(life.lives) == len(lab.testimony(vm).lives)
    for name in ("hv1", "hv2"):
        said(lab, name, "ZooKeeper", since=since)
    told(lab, "restored", "older copy", "virsh list", "held_by")
