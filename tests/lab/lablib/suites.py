# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Nodes of another Debian release: a tree made by mmdebstrap, kept in a cache, which lies below a node's overlay instead of this machine's root."""
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from .host import LabError, install_missing, sh

CACHE = Path("/var/cache/pvclab")
THIS_MACHINE = "machine"
"""The suite of a node that lies on this machine's own root."""
MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "zookeeper", "default-jre-headless", "libvirt-daemon-system", "libvirt-clients", "qemu-system-x86",
            "qemu-utils", "python3-kazoo", "python3-libvirt", "python3-click", "python3-lxml", "python3-psutil", "ipmitool", "iproute2", "iptables",
            "procps", "util-linux", "kmod", "faketime", "bsdutils")


def lower(suite: str) -> Path:
    """What lies below the overlay of a node of this suite."""
    return Path("/") if suite == THIS_MACHINE else CACHE / suite


def prepare(suite: str, say: Callable[[str], None]) -> None:
    """Make the suite's tree, unless it is there: some minutes, and 1.5 GB. It is not needed for a lab of this machine's own release."""
    if not re.fullmatch(r"[a-z]{1,20}", suite):
        raise LabError(f"'{suite}' is no suite of Debian")
    tree = lower(suite)
    if tree.exists():
        return
    install_missing(say, ("mmdebstrap",))
    say(f"making a tree of Debian {suite} in {tree}")
    made = CACHE / f"{suite}.new"
    shutil.rmtree(made, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    sh("mmdebstrap", "--quiet", "--variant=minbase", "--aptopt=APT::Install-Recommends \"false\"", f"--include={','.join(PACKAGES)}", suite, str(made),
       MIRROR, timeout_s=1800)
    os.replace(made, tree)
