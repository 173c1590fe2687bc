# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A guest keeps its life through whatever is done to pvcd on its node: before, during and after a migration."""
from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import Life, in_flight, main_pid, moving, phase, settles, started, where, word, words
from .judge import stands_still


def kill(lab: Lab, node: str) -> None:
    lab.node(node).run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "pvcd.service")


def restart(lab: Lab, node: str) -> None:
    lab.node(node).run("systemctl", "restart", "pvcd.service", timeout_s=90)


def stop_and_start(lab: Lab, node: str) -> None:
    lab.node(node).run("systemctl", "stop", "pvcd.service", timeout_s=60)
    assert word(lab, node, "daemonstate") == "stop"
    lab.node(node).run("systemctl", "start", "pvcd.service", timeout_s=90)


def upgrade(lab: Lab, node: str) -> None:
    """dpkg -i of the packages that are installed already does what an upgrade does."""
    lab.install(node, sorted((lab.folder / "build").glob("pvc-*.deb")))


def ends(lab: Lab, node: str) -> bool:
    """systemd has told it to stop: it waits for its migrations, and no longer than half a minute."""
    return lab.node(node).run("systemctl", "show", "-p", "ActiveState", "--value", "pvcd.service").stdout.strip() == "deactivating"


@pytest.mark.parametrize("fault", [kill, restart, stop_and_start, upgrade])
def test_before_and_after_a_migration(lab: Lab, recorder: Recorder, fault: Callable[[Lab, str], None]) -> None:
    started(lab, "keep1", "hv1")
    life = Life(lab, recorder, "keep1")
    fault(lab, "hv1")
    wait_for("hv1 runs again", lambda: word(lab, "hv1", "daemonstate") == "run", 30)
    lab.pvc("vm", "migrate", "keep1", "-t", "hv2", "--wait")
    fault(lab, "hv2")
    life.goes_on()
    settles(lab, "keep1", "start", "hv2", "hv1")
    assert where(lab, "keep1") == ["hv2"]


@pytest.mark.parametrize("victim", ["hv1", "hv2"])
@pytest.mark.parametrize("fault", [kill, pytest.param(restart, marks=pytest.mark.long), upgrade])
def test_during_a_migration(lab: Lab, recorder: Recorder, fault: Callable[[Lab, str], None], victim: str) -> None:
    life, before = moving(lab, recorder, "keep2", 3), main_pid(lab, victim)
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(fault, lab, victim)
        wait_for("its pvcd ends", lambda: main_pid(lab, victim) != before or ends(lab, victim), 60, 0.05)
        assert in_flight(lab, "keep2", "hv1"), "the migration was over when pvcd was ended"
        done.result()
    wait_for("the migration is over", lambda: len(where(lab, "keep2")) == 1, 60, 0.3)
    wait_for("the words say where it is", lambda: settled(lab, "keep2"), 30, 0.3)
    life.goes_on()


@pytest.mark.long
def test_a_crash_loop_that_leaves_keepalives_gets_nobody_fenced(lab: Lab, recorder: Recorder) -> None:
    """Killed every 4 s for a minute and a half: each start is a sign of life, and the guest is adopted each time."""
    started(lab, "loop1", "hv1")
    life = Life(lab, recorder, "loop1")
    until = time.monotonic() + 90
    while time.monotonic() < until:
        kill(lab, "hv1")
        time.sleep(4)
        assert phase(lab, "hv1") in ("up", "")
    wait_for("hv1 runs again", lambda: word(lab, "hv1", "daemonstate") == "run", 30)
    life.goes_on()
    lab.pvc("vm", "migrate", "loop1", "-t", "hv2", "--wait", timeout_s=60)
    life.goes_on()


def settled(lab: Lab, vm: str) -> bool:
    state, hypervisor, _ = words(lab, vm)
    return state == "start" and where(lab, vm) == [hypervisor]


def test_a_frozen_libvirtd_is_shown_and_pvcd_outlives_it(lab: Lab, recorder: Recorder) -> None:
    """FAULTS 8. Again and again: libvirt's client crashed when its keepalive gave up under two calls at once."""
    started(lab, "froze1", "hv1")
    started(lab, "froze2", "hv2")
    life, before = Life(lab, recorder, "froze1"), main_pid(lab, "hv1")
    for _ in range(2):
        lab.node("hv1").run("pkill", "-STOP", "-x", "libvirtd")
        try:
            stands_still(lab, "hv1", "libvirtd.service")
            wait_for("it is shown", lambda: "libvirt" in trouble(lab, "hv1"), 20, 0.3)
            refused = lab.node("hv2").run("pvc", "vm", "migrate", "froze2", "-t", "hv1", check=False)
            assert refused.returncode != 0 and "libvirt" in refused.stderr
        finally:
            lab.node("hv1").run("pkill", "-CONT", "-x", "libvirtd")
        wait_for("it is over", lambda: "libvirt" not in trouble(lab, "hv1"), 20, 0.3)
    assert main_pid(lab, "hv1") == before and phase(lab, "hv1") == "up"
    life.goes_on()
    lab.pvc("vm", "migrate", "froze1", "-t", "hv2", "--wait", timeout_s=60)
    life.goes_on()


def trouble(lab: Lab, node: str) -> list[str]:
    """The codes of what is wrong with it."""
    return list(json.loads(lab.node("hv2").run("pvc", "node", "info", node, "-f", "json").stdout)["problems"])
