# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Daily use on real parts, witnessed by the guests' own counters."""
from __future__ import annotations

import subprocess

import pytest

from lablib.host import CHECKOUT, wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import CROWDED_S, Life, listening, settles, started, where, word, words


def test_the_whole_life_of_a_vm(lab: Lab, recorder: Recorder) -> None:
    lab.define("web1", "hv1")
    assert words(lab, "web1") == ("stop", "hv1", "")
    lab.pvc("vm", "start", "web1", "--wait")
    lab.await_life("web1")
    assert where(lab, "web1") == ["hv1"]
    listening(recorder, "web1")
    lab.pvc("vm", "restart", "web1", "--wait")
    lab.await_life("web1", 2)
    life = Life(lab, recorder, "web1")
    lab.pvc("vm", "migrate", "web1", "-t", "hv2", "--wait")
    assert words(lab, "web1") == ("start", "hv2", "hv1") and where(lab, "web1") == ["hv2"]
    lab.pvc("vm", "unmigrate", "web1", "--wait")
    assert words(lab, "web1") == ("start", "hv1", "") and where(lab, "web1") == ["hv1"]
    lab.pvc("vm", "move", "web1", "-t", "hv3", "--wait")
    assert words(lab, "web1") == ("start", "hv3", "") and where(lab, "web1") == ["hv3"]
    life.goes_on()
    lab.pvc("vm", "stop", "web1", "--wait")
    assert where(lab, "web1") == [] and words(lab, "web1")[0] == "stop"
    lab.pvc("vm", "start", "web1", "--wait")
    lab.await_life("web1", 3)
    listening(recorder, "web1")
    lab.pvc("vm", "shutdown", "web1", "--wait")
    assert where(lab, "web1") == [] and words(lab, "web1")[0] == "stop"
    lab.pvc("vm", "undefine", "web1")
    assert lab.pvc("vm", "info", "web1", check=False).returncode == 3
    assert len(recorder.testimony("web1").lives) == 3 and not recorder.testimony("web1").doubles


def test_a_guest_that_ignores_its_power_button_is_switched_off_at_the_deadline(lab: Lab) -> None:
    started(lab, "deaf1", "hv1", ignore_acpi=True)
    lab.pvc("vm", "shutdown", "deaf1", "--wait", timeout_s=60)
    assert where(lab, "deaf1") == [] and words(lab, "deaf1")[0] == "stop"


def test_a_qemu_that_dies_is_started_again_within_a_tick(lab: Lab, recorder: Recorder) -> None:
    started(lab, "web2", "hv2")
    lab.node("hv2").run("pkill", "-9", "-f", "guest=web2")
    lab.await_life("web2", 2, timeout_s=10)
    assert words(lab, "web2") == ("start", "hv2", "") and not recorder.testimony("web2").doubles


@pytest.mark.long
def test_a_qemu_that_keeps_dying_is_failed_with_the_reason_kept(lab: Lab) -> None:
    started(lab, "sick1", "hv1")
    lives = 1
    while words(lab, "sick1")[0] == "start" and lives < 6:
        lab.node("hv1").run("pkill", "-9", "-f", "guest=sick1", check=False)
        lives += 1
        wait_for("a new life or an end", lambda n=lives: len(lab.testimony("sick1").lives) >= n or words(lab, "sick1")[0] == "failed", 40)
    assert words(lab, "sick1")[0] == "failed" and lives == 5
    assert "QEMU process ended" in lab.pvc("vm", "info", "sick1").stdout
    lab.pvc("vm", "start", "sick1", "--wait")
    lab.await_life("sick1", lives)


def test_a_flush_spreads_four_vms_and_ready_brings_home_what_runs(lab: Lab, recorder: Recorder) -> None:
    for number in range(1, 5):
        lab.define(f"app{number}", "hv1", memory_mib=1024)  # more than what the nodes' free memory differs by: they share a machine
        lab.pvc("vm", "start", f"app{number}")
    lab.define("spare1", "hv1")
    for number in range(1, 5):
        lab.await_life(f"app{number}")
    lives = [Life(lab, recorder, f"app{number}") for number in range(1, 5)]
    lab.pvc("node", "flush", "hv1")
    wait_for("hv1 is flushed", lambda: word(lab, "hv1", "domainstate") == "flushed", 60)
    assert lab.domains("hv1") == []
    assert sorted(where(lab, f"app{number}")[0] for number in range(1, 5)) == ["hv2", "hv2", "hv3", "hv3"]
    assert all(words(lab, f"app{number}")[2] == "hv1" for number in range(1, 5))
    lab.pvc("vm", "stop", "app4", "--wait")
    lab.pvc("node", "ready", "hv1", "--wait")
    for number in range(1, 4):
        settles(lab, f"app{number}", "start", "hv1", "")
    assert words(lab, "app4")[0] == "stop" and words(lab, "spare1")[0] == "stop"
    for life in lives[:3]:
        life.goes_on(CROWDED_S)
    assert sorted(lab.domains("hv1")) == ["app1", "app2", "app3"]


def test_two_nodes_that_send_each_other_vms_both_finish(lab: Lab, recorder: Recorder) -> None:
    homes = {"left1": "hv1", "left2": "hv1", "right1": "hv2", "right2": "hv2"}
    for vm, home in homes.items():
        lab.define(vm, home)
        lab.pvc("vm", "start", vm)
    for vm in homes:
        lab.await_life(vm)
    lives = [Life(lab, recorder, vm) for vm in homes]
    for vm, home in homes.items():
        lab.pvc("vm", "move", vm, "-t", "hv2" if home == "hv1" else "hv1")
    for vm, home in homes.items():
        settles(lab, vm, "start", "hv2" if home == "hv1" else "hv1", "")
    for life in lives:
        life.goes_on(CROWDED_S)


def test_pvclab_runs_a_program_or_a_script_in_a_node(lab: Lab) -> None:
    """And ends with it, also without a terminal."""
    def sh(*words: str, script: str | None = None) -> tuple[int, str]:
        done = subprocess.run([str(CHECKOUT / "tests/lab/pvclab"), "--name", lab.name, "sh", *words], input=script or "", capture_output=True, text=True,
                              timeout=20)
        return done.returncode, done.stdout.strip()
    assert sh("hv2", "--", "sh", "-c", "hostname; exit 7") == (7, "hv2")
    assert sh("hv1", script="hostname\nexit 3\n") == (3, "hv1")


def test_two_flushes_at_once_leave_every_vm_alive(lab: Lab, recorder: Recorder) -> None:
    started(lab, "both1", "hv1")
    started(lab, "both2", "hv2")
    lives = [Life(lab, recorder, "both1"), Life(lab, recorder, "both2")]
    lab.pvc("node", "flush", "hv1")
    lab.pvc("node", "flush", "hv2")
    wait_for("both are flushed", lambda: {word(lab, name, "domainstate") for name in ("hv1", "hv2")} == {"flushed"}, 90)
    assert where(lab, "both1") == where(lab, "both2") == ["hv3"]
    for life in lives:
        life.goes_on(CROWDED_S)
