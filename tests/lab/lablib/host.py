# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What the lab needs of this machine: running programs, waiting with a deadline, missing packages."""
from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

STATE = Path("/var/lib/pvclab")
CHECKOUT = Path(__file__).resolve().parents[3]
POLL_S = 0.1

PACKAGES = ("systemd-container", "systemd-sysv", "dbus", "zookeeper", "default-jre-headless", "libvirt-daemon-system", "libvirt-clients",
            "qemu-system-x86", "qemu-utils", "python3-kazoo", "python3-libvirt", "python3-click", "python3-lxml",
            "python3-psutil", "ipmitool", "openipmi", "iproute2", "iptables", "busybox-static", "linux-image-cloud-amd64", "cpio",
            "binutils", "debhelper", "dh-python", "dpkg-dev", "fakeroot", "faketime", "procps", "util-linux", "kmod")

T = TypeVar("T")


class LabError(Exception):
    """Something in the lab did not become true, or cannot be done; the sentence says what."""


def sh(*argv: str, timeout_s: float = 60, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it printed. Raises LabError when it fails (unless `check` is False)."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def wait_for(what: str, condition: Callable[[], T], timeout_s: float, poll_s: float = POLL_S) -> T:
    """Wait until `condition` returns something true, and return it. Raises LabError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise LabError(f"not within {timeout_s:g} s: {what}")
        time.sleep(poll_s)


def missing_packages(wanted: Sequence[str]) -> list[str]:
    shown = sh("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", check=False).stdout
    installed = {line.split()[0] for line in shown.splitlines() if line.split()[1:] == ["ii"]}
    return [name for name in wanted if name not in installed]


@contextmanager
def no_services() -> Iterator[None]:
    """Packages that are installed meanwhile start no service on this machine (Debian's policy-rc.d)."""
    policy, kept = Path("/usr/sbin/policy-rc.d"), Path("/usr/sbin/policy-rc.d.pvclab")
    if policy.exists():
        policy.rename(kept)
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)
        if kept.exists():
            kept.rename(policy)


def install_missing(say: Callable[[str], None], wanted: Sequence[str] = ()) -> None:
    """Install what a fresh Debian machine lacks of `wanted`, or of all that a lab needs. Needs root and apt's mirrors."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root")
    missing = missing_packages(wanted or PACKAGES)
    if not missing:
        return
    say(f"installing {len(missing)} packages: {' '.join(missing)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with no_services():
        sh("apt-get", "update", "-qq", timeout_s=300, env=quiet)
        sh("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, timeout_s=900, env=quiet)


def copy_checkout(target: Path) -> None:
    """The files of the checkout that git tracks or does not ignore, as they are in the work tree."""
    listed = sh("git", "-c", "safe.directory=*", "-C", str(CHECKOUT), "ls-files", "-co", "--exclude-standard", "-z").stdout
    for name in filter(None, listed.split("\0")):
        source = CHECKOUT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def children_of(pid: int) -> list[int]:
    done = sh("pgrep", "-P", str(pid), check=False)
    return [int(line) for line in done.stdout.split()]


def alive(pid: int) -> bool:
    """The process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_detached(argv: Sequence[str], log: Path) -> int:
    """Start a program that outlives this one; its pid."""
    with log.open("ab") as out:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True).pid
