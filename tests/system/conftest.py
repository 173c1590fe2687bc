# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""One lab for all system tests, witnesses that listen from the first moment, a clean cluster before each test, and no traceback after it.

PVC_LAB=NAME uses a lab that is up already, and leaves it up.
"""
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lablib.host import wait_for
from lablib.journals import TRACEBACK, Journals
from lablib.lab import Lab
from lablib.witness import Recorder


@pytest.fixture(scope="session")
def running_lab() -> Iterator[Lab]:
    kept = os.environ.get("PVC_LAB")
    lab = Lab(kept or "tests", print)
    if not kept:
        lab.down()
    lab.up()
    try:
        yield lab
    finally:
        lab.keys.close()
        if kept:
            mend(lab)
        else:
            lab.down()


@pytest.fixture(scope="session")
def recorder(running_lab: Lab) -> Iterator[Recorder]:
    mend(running_lab)
    for path in (running_lab.shared / "serial").iterdir():
        path.unlink()  # of an earlier run in the same lab
    with Recorder(running_lab.shared / "serial") as recorder:
        yield recorder


@pytest.fixture(scope="session")
def said(running_lab: Lab, recorder: Recorder) -> Iterator[list[str]]:
    """What the daemons have said since the last test: lines of their journals, each begins with the node's name."""
    lines: list[str] = []
    journals = Journals(running_lab, lambda node, line: lines.append(f"{node}: {line}"))
    journals.start()
    wait_for("every journal is read", journals.followed, 60)
    yield lines
    wait_for("every journal is read", journals.followed, 60)
    journals.stop()
    assert not [line for line in lines if TRACEBACK in line], lines


@pytest.fixture(autouse=True)
def no_traceback(request: pytest.FixtureRequest, said: list[str]) -> Iterator[None]:
    """No daemon prints one, whatever a test does to it; one that means to have one is marked `traceback`."""
    yield
    lines = said[:]
    del said[:len(lines)]  # what is heard later is the next test's
    printed = [number for number, line in enumerate(lines) if TRACEBACK in line]
    if not request.node.get_closest_marker("traceback"):
        assert not printed, "\n".join(lines[printed[0]:printed[0] + 60])


@pytest.fixture
def lab(running_lab: Lab, recorder: Recorder) -> Lab:
    mend(running_lab)
    return running_lab


@pytest.fixture
def quick(lab: Lab) -> Iterator[Lab]:
    """The lab with keepalives every second, for this test."""
    interval(lab, 1)
    yield lab
    for name in lab.names:
        lab.node(name).boot()
        lab.heal(name)
    interval(lab, 5)


def interval(lab: Lab, seconds: int) -> None:
    """Restart every pvcd with this keepalive_interval."""
    for name in lab.names:
        lab.await_services(name)
        lab.node(name).run("sed", "-i", f"s/^keepalive_interval = .*/keepalive_interval = {seconds}/", "/etc/pvc/pvcd.conf")
        lab.node(name).run("systemctl", "restart", "pvcd.service", timeout_s=90)


def mend(lab: Lab) -> None:
    """Power, network, services, ready nodes, no VMs: whatever the test before has left."""
    for name in lab.names:
        lab.node(name).boot()
    for name in lab.names:
        lab.heal(name)
        lab.node(name).freeze(False)
        lab.node(name).run("systemctl", "start", "zookeeper.service", "libvirtd-tcp.socket", "libvirtd.service", timeout_s=60)
    for name in lab.names:
        lab.await_services(name)
        lab.node(name).run("systemctl", "start", "pvcd.service", timeout_s=90)
    wait_for("every node is in run", lambda: all(lab.keys.text(f"/nodes/{name}/daemonstate") == "run" for name in lab.names), 90)
    for name in lab.names:  # a fence that was under way is over: now a controller that answers again cuts no power
        if lab.bmc(name).mode != "ok" or lab.bmc(name).pid is None:
            lab.bmc(name).set_mode("ok")
    for vm in lab.pvc("vm", "list", "-f", "name").stdout.split():
        lab.pvc("vm", "undefine", "--yes", vm, timeout_s=90)
    for name in lab.names:
        foreign = lab.domains(name)
        for domain in foreign:
            lab.node(name).run("virsh", "-q", "destroy", domain, check=False)
        lab.pvc("node", "ready", "--no-return", name)
