# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The last reply of a migration is lost by a connection reset, and the destination's pvcd stands still for a minute."""
from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import Life, claimed_by, main_pid, migrating, phase, settles, slowed, started, where, word
from .judge import stands_still

pytestmark = pytest.mark.long

DROP_IN = "/etc/systemd/system/pvcd.service.d"
STILL_S = 60.0


@contextmanager
def pvcd_stands_still(lab: Lab, node: str) -> Iterator[None]:
    """Its watchdog is off, and an operator's hold keeps the others from fencing it."""
    lab.node(node).run("sh", "-c", f"mkdir -p {DROP_IN} && cat > {DROP_IN}/dog.conf && systemctl daemon-reload && systemctl restart pvcd.service",
                       stdin="[Service]\nWatchdogSec=0\n", timeout_s=90)
    wait_for(f"{node} runs", lambda: word(lab, node, "daemonstate") == "run", 30)
    lab.pvc("maintenance", "on", "--for", "1h")
    try:
        yield
    finally:
        lab.node(node).run("systemctl", "kill", "--kill-whom=main", "-s", "CONT", "pvcd.service", check=False)
        before = word(lab, node, "keepalive")
        wait_for("it sends keepalives", lambda: word(lab, node, "keepalive") not in ("", before), 40)
        lab.pvc("maintenance", "off")
        lab.node(node).run("sh", "-c", f"rm -r {DROP_IN} && systemctl daemon-reload && systemctl restart pvcd.service", timeout_s=90)


def links(lab: Lab) -> list[str]:
    """hv1's connections to libvirt of hv2."""
    return lab.node("hv1").run("ss", "-Htn", "state", "established", "dst", f"{lab.node_address('hv2')}:16509").stdout.splitlines()


def arrived(lab: Lab, vm: str) -> bool:
    """hv2 has the whole copy: it runs, or waits to be told that it may."""
    shown = lab.node("hv2").run("virsh", "-q", "domstate", "--reason", vm, check=False).stdout
    return bool(re.match(r"running|paused \((user|unknown)\)", shown.strip()))


@pytest.mark.parametrize("locked", [False, True], ids=["no lock", "a locked disk"])
def test_the_last_reply_is_lost(lab: Lab, recorder: Recorder, locked: bool) -> None:
    """The guest runs once, in one life: at the source that woke, or at the destination that was told so."""
    vm = "reply2" if locked else "reply1"
    started(lab, vm, "hv1", locked=locked)
    life, lives = Life(lab, recorder, vm), len(lab.testimony(vm).lives)
    with pvcd_stands_still(lab, "hv2"):
        slowed(lab, vm, "hv1", 6)
        lab.pvc("vm", "migrate", vm, "-t", "hv2")
        migrating(lab, vm, "hv1")
        daemon = main_pid(lab, "hv2")
        lab.node("hv2").run("systemctl", "kill", "--kill-whom=main", "-s", "STOP", "pvcd.service")
        stands_still(lab, "hv2", "pvcd.service")
        since = time.monotonic()
        try:
            lab.node("hv2").run("iptables", "-A", "OUTPUT", "-p", "tcp", "--sport", "16509", "-d", lab.node_address("hv1"), "-j", "DROP")
            assert links(lab), "hv1 has no connection that could break"
            slowed(lab, vm, "hv1", 1000)  # now quickly: libvirt's own keepalive takes a silence of 30 s for the end
            wait_for("the copy has arrived", lambda: arrived(lab, vm), 60, 0.02)
            lab.node("hv1").run("ss", "-K", "dst", f"{lab.node_address('hv2')}:16509")
            dropped = lab.node("hv2").run("iptables", "-nvxL", "OUTPUT").stdout
            assert re.search(r"^\s*[1-9]\d* .*DROP", dropped, re.M), dropped
            wait_for("the connection is broken", lambda: not links(lab), 5)
            print("hv1:", lab.node("hv1").run("virsh", "-q", "domstate", "--reason", vm, check=False).stdout.strip(),
                  "hv2:", lab.node("hv2").run("virsh", "-q", "domstate", "--reason", vm, check=False).stdout.strip())
            while time.monotonic() - since < STILL_S:
                doubles = recorder.testimony(vm).doubles
                assert not doubles, doubles[:3]
                time.sleep(0.5)
            stands_still(lab, "hv2", "pvcd.service")
            assert main_pid(lab, "hv2") == daemon
        finally:
            lab.node("hv2").run("iptables", "-F", "OUTPUT")
    wait_for("it is in one place, where its claim is", lambda: where(lab, vm) == [claimed_by(lab, vm)], 90, 0.5)
    settles(lab, vm, "start")
    life.goes_on(STILL_S + 30)
    assert len(recorder.testimony(vm).lives) == lives and phase(lab, "hv2") == "up"
