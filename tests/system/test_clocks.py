# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Wall clocks that are wrong, that jump, that drift: they only stamp what people read."""
from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime

import pytest

from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import Life, nobody_is_fenced, nodes, phase, started, word

pytestmark = pytest.mark.long

SHIFT = "/etc/clock/shift"
SHIFTED = f"""import time
real, begun = time.time, time.monotonic()
def shifted():
    ahead, gains = open("{SHIFT}").read().split()
    return real() + float(ahead) + float(gains) * (time.monotonic() - begun)
time.time = shifted
"""
"""A sitecustomize module, for pvcd and kazoo read only time.time. libfaketime 0.9.10, with FAKETIME_DONT_FAKE_MONOTONIC, lets every
time.sleep of Python 3.11 fail with EINVAL."""


@contextmanager
def environment(lab: Lab, node: str, unit: str, line: str) -> Iterator[None]:
    """The unit's programs, started anew, have this in their environment."""
    conf, restart = f"/etc/systemd/system/{unit}.d/clock.conf", f"systemctl daemon-reload && systemctl restart {unit}"
    lab.node(node).run("sh", "-c", f"mkdir -p $(dirname {conf}) && cat > {conf} && {restart}", stdin=f"[Service]\nEnvironment={line}\n", timeout_s=90)
    try:
        lab.await_services(node)
        yield
    finally:
        lab.node(node).boot()
        lab.await_services(node)
        lab.node(node).run("sh", "-c", f"rm {conf} && {restart}", timeout_s=90)
        lab.await_services(node)


def shift(lab: Lab, ahead_s: float, gains: float, *names: str) -> None:
    """From now on pvcd of these nodes reads a clock that is `ahead_s` ahead and gains `gains` seconds in each second."""
    for name in names:
        lab.node(name).run("sh", "-c", f"mkdir -p $(dirname {SHIFT}) && echo {ahead_s} {gains} > {SHIFT}.new && mv {SHIFT}.new {SHIFT}")


@contextmanager
def shifted(lab: Lab, *names: str) -> Iterator[None]:
    """pvcd of these nodes reads another wall clock, which is right until `shift`."""
    with ExitStack() as changed:
        for name in names:
            shift(lab, 0, 0, name)
            lab.node(name).run("sh", "-c", f"cat > $(dirname {SHIFT})/sitecustomize.py", stdin=SHIFTED)
            changed.enter_context(environment(lab, name, "pvcd.service", "PYTHONPATH=/etc/clock"))
        yield


def ahead(lab: Lab, node: str) -> float:
    """By how many seconds the node's last keepalive is stamped ahead of this machine's clock."""
    return int(word(lab, node, "keepalive") or 0) - time.time()


def shows(lab: Lab, node: str, ahead_s: float) -> None:
    wait_for(f"{node} is {ahead_s} s ahead", lambda: abs(ahead(lab, node) - ahead_s) < 60, 20)


def test_a_wrong_wall_clock_fences_nobody(lab: Lab, recorder: Recorder) -> None:
    """pvcd of hv2 lives an hour ago: its keepalive says so, it counts all the same, and it fences nobody either."""
    started(lab, "clock1", "hv2")
    life = Life(lab, recorder, "clock1")
    with shifted(lab, "hv2"):
        shift(lab, -3600, 0, "hv2")
        shows(lab, "hv2", -3600)
        nobody_is_fenced(lab, 45)
        assert all(row["daemonstate"] == "run" for row in nodes(lab).values())
        life.goes_on()
        told = lab.pvc("verify", check=False).stdout
        assert "its clock and this one differ" in told, told


def test_wall_clocks_jump_and_drift(quick: Lab, recorder: Recorder) -> None:
    """Jumps of hours, of one node and of all, and clocks that run faster and slower: nobody is fenced. A node that dies while the
    others' clocks jump back is fenced as soon as ever, and no sooner."""
    started(quick, "clock2", "hv3")
    with shifted(quick, *quick.names):
        life = Life(quick, recorder, "clock2")
        for hours, names in (1, ["hv1"]), (1, quick.names), (-1, ["hv2"]), (-1, quick.names):
            shift(quick, 3600 * hours, 0, *names)
            for name in names:
                shows(quick, name, 3600 * hours)
            nobody_is_fenced(quick, 8)
        shift(quick, 0, 0.5, "hv1")
        shift(quick, 0, -0.5, "hv2")
        nobody_is_fenced(quick, 12)
        life.goes_on()
        lives = len(recorder.testimony("clock2").lives)
        last = time.monotonic()
        quick.kill("hv3")
        for hours in (-2, -3, -4):
            shift(quick, 3600 * hours, 0, "hv1", "hv2")
            for name in ("hv1", "hv2"):
                shows(quick, name, 3600 * hours)
        wait_for("a fence is committed", lambda: phase(quick, "hv3") in ("fencing", "fenced"), 20, 0.05)
        silent_s = time.monotonic() - last
        assert 5 <= silent_s <= 15, silent_s
        quick.await_life("clock2", lives + 1, 60)
        assert not recorder.testimony("clock2").doubles
        wait_for("hv3 is back", lambda: word(quick, "hv3", "daemonstate") == "run", 60)


def ahead_of_its_journal(lab: Lab, node: str) -> float:
    """By how many seconds the time that the node's ZooKeeper server prints (Java does, over a thread dump) is ahead of the moment of printing it."""
    lab.node(node).run("systemctl", "kill", "--kill-whom=main", "-s", "QUIT", "zookeeper.service")

    def printed() -> list[tuple[str, str]]:
        out = lab.node(node).run("journalctl", "-u", "zookeeper.service", "-o", "short-unix", "--no-pager", "-n", "2000").stdout
        return re.findall(r"^(\d+)\.\d+ \S+ java\S*: (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)$", out, re.M)
    heard, stamp = wait_for("the server dumps its threads", printed, 20, 0.5)[-1]
    return datetime.fromisoformat(f"{stamp}+00:00").timestamp() - int(heard)


def test_a_zookeeper_server_of_another_hour(lab: Lab, recorder: Recorder) -> None:
    """Sessions are timed on the servers' monotonic clocks: when one server's wall clock jumps, nothing happens."""
    library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
    started(lab, "hour1", "hv1")
    assert abs(ahead_of_its_journal(lab, "hv1")) < 60
    life = Life(lab, recorder, "hour1")
    with environment(lab, "hv1", "zookeeper.service", f"LD_PRELOAD={library} FAKETIME=+1h FAKETIME_DONT_FAKE_MONOTONIC=1"):
        assert 3500 < ahead_of_its_journal(lab, "hv1") < 3700
        nobody_is_fenced(lab, 45)
        life.goes_on()
