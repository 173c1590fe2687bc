# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What can happen to one VM: its guest, its QEMU, its keys, and orders that come while it moves."""
from __future__ import annotations

import time

import pytest

from lablib import guests
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import Life, claimed_by, heard, info, listening, main_pid, moving, nobody_is_fenced, phase, settles, started, where, word


def test_a_guest_that_powers_itself_off_is_started_again(lab: Lab, recorder: Recorder) -> None:
    started(lab, "selfoff1", "hv1")
    lives = len(lab.testimony("selfoff1").lives)
    listening(recorder, "selfoff1")
    lab.node("hv1").run("virsh", "-q", "shutdown", "selfoff1")
    lab.await_life("selfoff1", lives + 1)
    settles(lab, "selfoff1", "start", "hv1", "")
    assert not recorder.testimony("selfoff1").doubles


def test_a_copy_under_another_name_that_nobody_ordered_goes(lab: Lab, recorder: Recorder) -> None:
    """Its UUID is claimed by another node: pvcd destroys it before anybody could migrate onto it, and the claimed one lives on."""
    started(lab, "same1", "hv1")
    life = Life(lab, recorder, "same1")
    other = guests.kernel_guest("same1").replace("<name>same1</name>", "<name>other1</name>").replace("/srv/shared/serial/same1", "/dev/null")
    lab.node("hv2").run("systemctl", "stop", "pvcd.service", timeout_s=60)  # else it would be gone before it is suspended
    try:
        lab.node("hv2").run("sh", "-c", "cat > /tmp/other.xml && virsh -q create /tmp/other.xml && virsh -q suspend other1", stdin=other)
    finally:
        lab.node("hv2").run("systemctl", "start", "pvcd.service", timeout_s=60)
    wait_for("the copy that nobody ordered is gone", lambda: "other1" not in lab.domains("hv2"), 60, 0.3)
    settles(lab, "same1", "start", "hv1", "")
    life.goes_on()


@pytest.mark.long
def test_one_guest_whose_monitor_hangs(lab: Lab, recorder: Recorder) -> None:
    """Its own orders wait; those for others, statistics and keepalives do not."""
    started(lab, "hang1", "hv1")
    started(lab, "hang2", "hv1")
    lab.node("hv1").run("pkill", "-STOP", "-f", "guest=hang1,")
    try:
        waiting = lab.pvc("vm", "migrate", "hang1", "-t", "hv2", "--wait", "--timeout", "8", check=False)
        assert waiting.returncode in (1, 124), waiting
        for _ in range(3):
            lab.pvc("vm", "stop", "-y", "hang2", "--wait", timeout_s=20)
            lab.pvc("vm", "start", "hang2", "--wait", timeout_s=20)
        before = word(lab, "hv1", "keepalive")
        wait_for("the next keepalive", lambda: word(lab, "hv1", "keepalive") not in ("", before), 10)
        assert phase(lab, "hv1") == "up"
    finally:
        lab.node("hv1").run("pkill", "-CONT", "-f", "guest=hang1,", check=False)
    wait_for("hang1 is in one place", lambda: len(where(lab, "hang1")) == 1 and info(lab, "hang1")["state"] == "start", 90, 0.5)
    assert not recorder.testimony("hang1").doubles


@pytest.mark.long
def test_the_sources_qemu_is_killed_in_the_data_phase(lab: Lab, recorder: Recorder) -> None:
    moving(lab, recorder, "gone1")
    lives = len(lab.testimony("gone1").lives)
    lab.node("hv1").run("pkill", "-9", "-f", "guest=gone1,")
    lab.await_life("gone1", lives + 1, 60)
    heard(recorder, "gone1", lives + 1)
    wait_for("it is in one place", lambda: len(where(lab, "gone1")) == 1 and info(lab, "gone1")["state"] == "start", 60, 0.5)
    assert len(recorder.testimony("gone1").lives) == lives + 1 and not recorder.testimony("gone1").doubles


@pytest.mark.long
def test_the_destinations_libvirtd_hangs_in_the_data_phase(lab: Lab, recorder: Recorder) -> None:
    """Nobody can ask it who has the guest, so nobody starts it; once it answers, the guest runs once, here or there."""
    moving(lab, recorder, "gone2")
    lives = len(lab.testimony("gone2").lives)
    lab.node("hv2").run("pkill", "-STOP", "-x", "libvirtd")
    try:
        time.sleep(45)
        assert len(lab.testimony("gone2").lives) == lives
    finally:
        lab.node("hv2").run("pkill", "-CONT", "-x", "libvirtd")
    wait_for("it runs in one place", lambda: info(lab, "gone2")["state"] == "start" and where(lab, "gone2") == [claimed_by(lab, "gone2")], 60, 0.5)
    wait_for("it speaks", lambda: recorder.testimony("gone2").life.times[-1] > time.monotonic() - 1, 30, 0.2)  # type: ignore[union-attr]
    found = recorder.testimony("gone2")
    assert len(found.lives) <= lives + 1 and not found.doubles


@pytest.mark.long
def test_a_stop_during_a_migration(lab: Lab, recorder: Recorder) -> None:
    moving(lab, recorder, "during1")
    lab.pvc("vm", "stop", "-y", "during1", "--wait", timeout_s=60)
    assert where(lab, "during1") == [] and claimed_by(lab, "during1") == ""
    assert info(lab, "during1")["state"] == "stop" and not recorder.testimony("during1").doubles


@pytest.mark.long
def test_another_migration_during_a_migration(lab: Lab, recorder: Recorder) -> None:
    life = moving(lab, recorder, "during2")
    refused = lab.pvc("vm", "migrate", "during2", "-t", "hv3", check=False)
    assert refused.returncode == 4 and "it is being migrated" in refused.stderr, refused
    settles(lab, "during2", "start", "hv2", "hv1")
    wait_for("it has arrived", lambda: where(lab, "during2") == ["hv2"], 60, 0.5)
    life.goes_on()


@pytest.mark.long
def test_an_undefine_during_a_migration(lab: Lab, recorder: Recorder) -> None:
    moving(lab, recorder, "during3")
    lab.pvc("vm", "undefine", "--yes", "during3", timeout_s=90)
    assert where(lab, "during3") == [] and claimed_by(lab, "during3") == ""
    assert "during3" not in lab.pvc("vm", "list", "-f", "name").stdout.split()


@pytest.mark.long
def test_the_keys_of_a_running_vm_are_deleted(lab: Lab, recorder: Recorder) -> None:
    """It runs on; nobody takes a missing key for an order."""
    started(lab, "lost1", "hv1")
    life = Life(lab, recorder, "lost1")
    lab.keys.delete_tree(f"/domains/{guests.guest_uuid('lost1')}")
    time.sleep(20)
    life.goes_on()
    assert where(lab, "lost1") == ["hv1"]
    shown = lab.pvc("status", check=False).stdout + lab.pvc("verify", check=False).stdout
    assert guests.guest_uuid("lost1")[:8] in shown or "lost1" in shown, shown


@pytest.mark.long
def test_init_on_a_living_cluster(lab: Lab, recorder: Recorder) -> None:
    """Refused; forced, it takes the definitions away, and the nodes' keys come back true: no guest is touched, nobody is fenced."""
    started(lab, "init1", "hv1")
    life, before = Life(lab, recorder, "init1"), [main_pid(lab, name) for name in lab.names]
    refused = lab.pvc("init", "--yes", check=False)
    assert refused.returncode == 4 and "The cluster is alive" in refused.stderr, refused
    assert info(lab, "init1")["state"] == "start"
    lab.pvc("init", "--yes", "--force")
    wait_for("the nodes' keys are back", lambda: all(
        (word(lab, name, "daemonstate"), word(lab, name, "protocol")) == ("run", "1") for name in lab.names), 30, 0.5)
    nobody_is_fenced(lab, 35)
    life.goes_on()
    assert [main_pid(lab, name) for name in lab.names] == before
    lab.define("init2", "hv2")
    lab.pvc("vm", "start", "init2", "--wait", timeout_s=60)
    assert where(lab, "init2") == ["hv2"] and where(lab, "init1") == ["hv1"]
