# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""ZooKeeper servers that go away: no guest is touched, no node is marked, and afterwards every command works again."""
from __future__ import annotations

import time

from lablib.host import wait_for
from lablib.lab import Lab, four_letter_word
from lablib.witness import Recorder

from .cluster import Life, fence_versions, phase, started, word, words
from .judge import main_process, serves, transaction

AWAY_S = 70.0


def unmarked(lab: Lab) -> None:
    wait_for("all nodes run", lambda: {word(lab, name, "daemonstate") for name in lab.names} == {"run"}, 30)
    assert {phase(lab, name) for name in lab.names} == {"up"}


def every_command(lab: Lab, vm: str) -> None:
    for verb in (("migrate", "-t", "hv2"), ("unmigrate",), ("move", "-t", "hv3"), ("restart",), ("stop",), ("start",)):
        lab.pvc("vm", verb[0], vm, *verb[1:], "--wait", timeout_s=90)
    assert words(lab, vm) == ("start", "hv3", "")


def test_all_servers_away(lab: Lab, recorder: Recorder) -> None:
    started(lab, "calm1", "hv1")
    life, fences = Life(lab, recorder, "calm1"), fence_versions(lab)
    for name in lab.names:
        lab.node(name).run("systemctl", "stop", "zookeeper.service")
    gone = time.monotonic()
    assert not any(serves(lab, name) for name in lab.names)
    done = lab.pvc("vm", "list", check=False, timeout_s=20)
    assert done.returncode == 5 and "not reachable" in done.stderr and time.monotonic() - gone < 10
    wait_for("the outage has lasted long enough", lambda: time.monotonic() - gone > AWAY_S, AWAY_S + 5, 1)
    for name in lab.names:
        lab.node(name).run("systemctl", "start", "zookeeper.service")
    for name in lab.names:
        lab.await_services(name)
    life.goes_on()
    unmarked(lab)
    time.sleep(10)
    unmarked(lab)
    assert fence_versions(lab) == fences
    every_command(lab, "calm1")


def test_one_server_and_the_leader_away(lab: Lab, recorder: Recorder) -> None:
    started(lab, "calm2", "hv1")
    life = Life(lab, recorder, "calm2")
    leader = next(name for name in lab.names if "leader" in four_letter_word(lab.node_address(name), "srvr"))
    follower = next(name for name in lab.names if name != leader)
    for name in (follower, leader):
        before, epoch = main_process(lab, name, "zookeeper.service")[0], transaction(lab)[0]
        lab.node(name).run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "zookeeper.service")
        wait_for(f"another server runs on {name}", lambda: main_process(lab, name, "zookeeper.service")[0] not in ("0", before), 20)  # noqa: B023
        lab.await_services(name)
        assert (transaction(lab)[0] > epoch) == (name == leader), "a new leader is elected when the leader dies, and only then"
        unmarked(lab)
    lab.node(follower).run("systemctl", "stop", "zookeeper.service")
    assert not serves(lab, follower)
    life.goes_on()
    every_command(lab, "calm2")
