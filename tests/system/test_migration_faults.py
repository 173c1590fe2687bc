# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A live migration that fails leaves the guest alive at the source, and says why."""
from __future__ import annotations

from pathlib import Path

import pytest

from lablib import guests
from lablib.host import wait_for
from lablib.lab import Lab
from lablib.witness import Recorder

from .cluster import Life, info, moving, settles, started, where, word


def stays(lab: Lab, vm: str, life: Life, reason: str, timeout_s: float = 60) -> None:
    """It is at the source, in the same life; the order is taken back, and people are told why."""
    settles(lab, vm, "start", "hv1", "", timeout_s=timeout_s)
    wait_for(f"{vm} is on hv1 only", lambda: where(lab, vm) == ["hv1"], 30, 0.3)
    life.goes_on()
    assert reason in info(lab, vm)["reason"], info(lab, vm)["reason"]


def test_the_destination_has_a_vm_of_that_name(lab: Lab, recorder: Recorder) -> None:
    started(lab, "fail1", "hv1")
    life = Life(lab, recorder, "fail1")
    other = guests.kernel_guest("fail1").replace(guests.guest_uuid("fail1"), guests.guest_uuid("another fail1"))
    other = other.replace("/srv/shared/serial/fail1", "/dev/null")
    lab.node("hv2").run("sh", "-c", "cat > /tmp/other.xml && virsh -q create /tmp/other.xml", stdin=other)
    lab.pvc("vm", "migrate", "fail1", "-t", "hv2")
    settles(lab, "fail1", "start", "hv1", "")
    life.goes_on()
    assert "another VM of the name fail1" in info(lab, "fail1")["reason"]
    lab.node("hv2").run("virsh", "-q", "destroy", "fail1")


def test_the_destination_lacks_memory(lab: Lab, recorder: Recorder) -> None:
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    started(lab, "fail2", "hv1", memory_mib=total // 1024 - 100)
    life = Life(lab, recorder, "fail2")
    done = lab.pvc("vm", "migrate", "fail2", check=False)
    assert done.returncode == 4 and "MiB free" in done.stderr
    lab.pvc("vm", "migrate", "fail2", "-t", "hv2")
    stays(lab, "fail2", life, "free here")


def test_the_destination_has_no_libvirt(lab: Lab, recorder: Recorder) -> None:
    """Once it is shown, the client refuses; an order from before that is taken back by the daemons."""
    started(lab, "fail3", "hv1")
    life = Life(lab, recorder, "fail3")
    lab.node("hv2").run("systemctl", "stop", "libvirtd.service", "libvirtd-tcp.socket", "libvirtd.socket", "libvirtd-ro.socket",
                        "libvirtd-admin.socket", timeout_s=60)
    wait_for("it is shown", lambda: word(lab, "hv2", "libvirtstate"), 30)
    done = lab.pvc("vm", "migrate", "fail3", "-t", "hv2", check=False)
    assert done.returncode == 4 and "its libvirt gives no answer" in done.stderr, done
    lab.keys.order(f"/domains/{guests.guest_uuid('fail3')}", state="migrate", hypervisor="hv2", lasthypervisor="hv1")
    settles(lab, "fail3", "start", "hv1", "", timeout_s=90)
    lab.node("hv2").run("systemctl", "start", "libvirtd-tcp.socket", "libvirtd.service", timeout_s=60)
    stays(lab, "fail3", life, "hv2 has not answered")


def test_the_destination_dies_in_the_data_phase(lab: Lab, recorder: Recorder) -> None:
    life = moving(lab, recorder, "fail4")
    lab.node("hv2").run("pkill", "-9", "-f", "guest=fail4")
    stays(lab, "fail4", life, "hv2")


@pytest.mark.long
def test_the_destinations_libvirtd_dies_in_the_data_phase(lab: Lab, recorder: Recorder) -> None:
    life = moving(lab, recorder, "fail5")
    lab.node("hv2").run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "libvirtd.service")
    stays(lab, "fail5", life, "hv2")


def test_the_sources_libvirtd_dies_in_the_data_phase(lab: Lab, recorder: Recorder) -> None:
    life = moving(lab, recorder, "fail6")
    lab.node("hv1").run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "libvirtd.service")
    stays(lab, "fail6", life, "hv2")


def test_an_operator_takes_a_migration_back(lab: Lab, recorder: Recorder) -> None:
    life = moving(lab, recorder, "fail7")
    lab.pvc("vm", "migrate", "fail7", "--cancel")
    wait_for("hv2 has no half copy", lambda: where(lab, "fail7") == ["hv1"], 30, 0.3)
    settles(lab, "fail7", "start", "hv1", "")
    life.goes_on()


@pytest.mark.long
def test_the_migration_network_is_down(lab: Lab, recorder: Recorder) -> None:
    started(lab, "fail8", "hv1")
    life = Life(lab, recorder, "fail8")
    lab.block("hv2", 16509)
    lab.pvc("vm", "migrate", "fail8", "-t", "hv2")
    settles(lab, "fail8", "start", "hv1", "", timeout_s=180)
    life.goes_on()
