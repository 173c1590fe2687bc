# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The shipped default, one local ZooKeeper server, when that server is away; and outages that last longer than anybody's patience."""
from __future__ import annotations

import time

import pytest

from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import claimed_by, main_pid, started, where, word
from .judge import Untouched, configured, configured_back, problems, serves, stands_still, told
from .test_zookeeper_away import every_command, unmarked

pytestmark = pytest.mark.long

LOCAL_AWAY_S = 75.0


@pytest.mark.parametrize("frozen", [False, True], ids=["stopped", "frozen"])
def test_the_local_server_is_away_with_the_default_configuration(lab: Lab, recorder: Recorder, frozen: bool) -> None:
    """hv3 names 127.0.0.1:2181 only. Its server goes; the node keeps its guest, sends keepalives through another server, and is not fenced."""
    vm = "local2" if frozen else "local1"
    started(lab, vm, "hv3")
    node = lab.node("hv3")
    try:
        configured(lab, "hv3", "s/^zookeeper = .*/zookeeper = 127.0.0.1:2181/")
        wait_for("hv3 runs", lambda: word(lab, "hv3", "daemonstate") == "run", 60)
        judge = Untouched(lab, recorder, vm)
        if frozen:
            node.run("systemctl", "kill", "--kill-whom=main", "-s", "STOP", "zookeeper.service")
            stands_still(lab, "hv3", "zookeeper.service")
        else:
            node.run("systemctl", "stop", "zookeeper.service", timeout_s=60)
        since = time.monotonic()
        assert not serves(lab, "hv3"), "the server of hv3 answers"
        told(lab, "zookeeper", "hv3", "systemctl status zookeeper", level="warning", node="hv1", timeout_s=60)
        judge.holds(LOCAL_AWAY_S - (time.monotonic() - since))
        assert not serves(lab, "hv3"), "the server of hv3 answers"
        before = word(lab, "hv3", "keepalive")
        wait_for("a keepalive", lambda: word(lab, "hv3", "keepalive") not in ("", before), 12)
        assert where(lab, vm) == ["hv3"] and claimed_by(lab, vm) == "hv3"
    finally:
        lab.node("hv3").boot()
        lab.node("hv3").run("systemctl", "kill", "--kill-whom=main", "-s", "CONT", "zookeeper.service", check=False)
        lab.node("hv3").run("systemctl", "start", "zookeeper.service", timeout_s=60)
        configured_back(lab, ["hv3"])


@pytest.mark.parametrize("minutes", [6, 30])
def test_zookeeper_is_away_for_long(lab: Lab, recorder: Recorder, minutes: int) -> None:
    """No daemon dies or is killed by its watchdog, no guest is touched; afterwards every command works, and a stop is a clean stop."""
    vm = f"calm{minutes}"
    started(lab, vm, "hv1")
    judge = Untouched(lab, recorder, vm)
    daemons = {name: main_pid(lab, name) for name in lab.names}
    for name in lab.names:
        lab.node(name).run("systemctl", "stop", "zookeeper.service", timeout_s=60)
    until = time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < until:
            time.sleep(5)
            judge.hosts()
            assert not any(serves(lab, name) for name in lab.names), "a server answers"
            assert {name: main_pid(lab, name) for name in lab.names} == daemons, "a daemon has been started again"
    finally:
        for name in lab.names:
            lab.node(name).run("systemctl", "start", "zookeeper.service", timeout_s=60)
        for name in lab.names:
            lab.await_services(name)
    wait_for("every node runs", lambda: {word(lab, name, "daemonstate") for name in lab.names} == {"run"}, 60)
    time.sleep(10)
    judge.now()
    unmarked(lab)
    every_command(lab, vm)
    wait_for("status has nothing to say", lambda: not problems(lab), 60, 2)
    began = time.monotonic()
    lab.node("hv1").run("systemctl", "stop", "pvcd.service", timeout_s=60)
    assert time.monotonic() - began < 30 and word(lab, "hv1", "daemonstate") == "stop"


def test_a_stop_of_pvcd_without_zookeeper(lab: Lab, recorder: Recorder) -> None:
    """After four minutes without ZooKeeper `systemctl stop pvcd` ends soon, and nothing is touched."""
    started(lab, "calm4", "hv1")
    judge = Untouched(lab, recorder, "calm4", fences=False)
    for name in lab.names:
        lab.node(name).run("systemctl", "stop", "zookeeper.service", timeout_s=60)
    try:
        time.sleep(240)
        assert not any(serves(lab, name) for name in lab.names), "a server answers"
        began = time.monotonic()
        lab.node("hv1").run("systemctl", "stop", "pvcd.service", timeout_s=120)
        took = time.monotonic() - began
        result = lab.node("hv1").run("systemctl", "show", "-p", "Result", "--value", "pvcd.service").stdout.strip()
        assert took < 40 and result == "success", (took, result)
    finally:
        for name in lab.names:
            lab.node(name).run("systemctl", "start", "zookeeper.service", timeout_s=60)
        for name in lab.names:
            lab.await_services(name)
            lab.node(name).run("systemctl", "start", "pvcd.service", timeout_s=90)
    wait_for("every node runs", lambda: {word(lab, name, "daemonstate") for name in lab.names} == {"run"}, 60)
    judge.now()
