# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""One node: a booted systemd-nspawn container on an overlay of this machine's root, in cgroups of its own."""
from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .host import LabError, alive, children_of, run_detached, sh, wait_for

CGROUPS = Path("/sys/fs/cgroup")
LEGACY = ("SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",)
"""For a node's own PID 1: systemd 257 does not start on cgroups v1, where this machine has them, unless it is told to."""


class Machine:
    """`name` is the node's host name, `label` its unique name on this machine, `folder` where its files are."""

    def __init__(self, name: str, label: str, folder: Path, bridge: str, shared: Path, lower: Path = Path("/")) -> None:
        self.name, self.label, self.folder, self.bridge, self.shared, self.lower = name, label, folder, bridge, shared, lower
        self.upper, self.root = folder / "upper", folder / "root"

    # ------------------------------------------------------------------------------------------------------------ power

    @property
    def pid(self) -> int | None:
        """systemd-nspawn's process, if the node has power."""
        try:
            pid = int((self.folder / "pid").read_text())
        except (OSError, ValueError):
            return None
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        return pid if alive(pid) and self.label.encode() in command else None

    @property
    def init(self) -> int | None:
        """The node's PID 1, as this machine sees it."""
        pid = self.pid
        children = children_of(pid) if pid else []
        return children[0] if children else None

    def boot(self) -> None:
        """Power on; returns when the container's init exists. Does nothing if it has power. A test and a controller may do it at the same time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "boot.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.pid:
                self._boot()

    def _boot(self) -> None:
        self._mount()
        groups = self._cgroups()
        enter = "".join(f"echo $$ > {group}/cgroup.procs\n" for group in groups)
        nspawn = ["systemd-nspawn", "-q", "-D", str(self.root), f"--machine={self.label}", f"--hostname={self.name}", "--register=no",
                  "--keep-unit", f"--network-bridge={self.bridge}", "--capability=all", "--bind=/dev/net/tun",
                  f"--bind={self.shared}:/srv/shared", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
                  "--console=pipe", "-b", "systemd.unit=lab.target", *LEGACY]
        script = self.folder / "boot.sh"
        script.write_text("#!/bin/sh\n" + enter + "exec " + " ".join(nspawn) + "\n")
        script.chmod(0o755)
        pid = run_detached([str(script)], self.folder / "console.log")  # it does not inherit the lock
        (self.folder / "pid").write_text(f"{pid}\n")
        wait_for(f"{self.name} has an init", lambda: self.init, 20)

    def cut_power(self) -> None:
        """Everything in the node dies at once."""
        pid, init = self.pid, self.init
        for victim in (init, pid):
            if victim:
                _kill(victim)
        if pid:
            wait_for(f"{self.name} is off", lambda: not alive(pid), 20)
        (self.folder / "pid").unlink(missing_ok=True)
        for left in Path("/run/systemd/nspawn").glob(f"*/{self.label}"):  # what a killed systemd-nspawn could not clean up; 257 refuses to start with it
            sh("umount", "-l", str(left), check=False)
            shutil.rmtree(left, ignore_errors=True)
        # The kernel takes a dead container's interface away in its own time; the next boot needs the name.
        sh("ip", "link", "delete", f"vb-{self.label}", check=False)

    def remove(self) -> None:
        """Power off, and leave nothing behind: mounts, cgroups, files."""
        self.cut_power()
        if self.root.exists():
            found = self.root.stat()
            Path(f"/run/systemd/nspawn/locks/inode-{found.st_dev}:{found.st_ino}").unlink(missing_ok=True)
        while sh("mountpoint", "-q", str(self.root), check=False).returncode == 0:
            sh("umount", "-l", str(self.root))
        for group in self._cgroup_paths():
            _remove_cgroup(group)
        shutil.rmtree(self.folder, ignore_errors=True)

    def freeze(self, frozen: bool) -> None:
        """Stop every process of the node at once, or let them go on."""
        group = CGROUPS / "freezer" / self.label
        if group.is_dir():
            (group / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
            wanted = "FROZEN" if frozen else "THAWED"
            wait_for(f"{self.name} is {wanted}", lambda: (group / "freezer.state").read_text().strip() == wanted, 20)
        else:
            (CGROUPS / self.label / "cgroup.freeze").write_text("1" if frozen else "0")

    # --------------------------------------------------------------------------------------------------------- programs

    def run(self, *argv: str, timeout_s: float = 60, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program in the node. Raises LabError when it fails (unless `check` is False) or the node is off."""
        init = self.init
        if not init:
            raise LabError(f"{self.name} is off")
        environment = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"]
        command = ["nsenter", "-t", str(init), "-m", "-u", "-i", "-n", "-p", "--", *environment, *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, input=stdin or "")
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def enter(self, words: Sequence[str] = ()) -> int:
        """Run a program in the node on the caller's standard streams; its exit status. No words: a person's shell, or, where standard input
        is no terminal, a shell that reads it as a script and ends with it. (`script` would wait for a terminal's end, which never comes.)
        """
        init = self.init
        if not init:
            raise LabError(f"{self.name} is off")
        shell = ["script", "-qc", "bash -li", "/dev/null"] if sys.stdin.isatty() else ["bash", "-ls"]
        return subprocess.call(["nsenter", "-t", str(init), "-m", "-u", "-i", "-n", "-p", "--", "env", "-i", f"TERM={os.environ.get('TERM', 'dumb')}",
                                "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *(words or shell)])

    def processes(self, pattern: str) -> list[int]:
        """The node's processes whose command line has `pattern`, as this machine numbers them."""
        found = [int(pid) for pid in sh("pgrep", "-f", pattern, check=False).stdout.split()]
        return [pid for pid in found if self.label in Path(f"/proc/{pid}/cgroup").read_text()]

    # ------------------------------------------------------------------------------------------------------------- parts

    def _mount(self) -> None:
        for folder in (self.upper, self.root, self.folder / "work"):
            folder.mkdir(parents=True, exist_ok=True)
        if sh("mountpoint", "-q", str(self.root), check=False).returncode != 0:
            sh("mount", "-t", "overlay", "pvclab", "-o",
               f"lowerdir={self.lower},upperdir={self.upper},workdir={self.folder / 'work'}", str(self.root))

    def _cgroup_paths(self) -> list[Path]:
        hierarchies = [path for path in CGROUPS.iterdir() if path.is_dir() and (path / "cgroup.procs").exists()
                       and (path / "release_agent").exists()]
        return [path / self.label for path in hierarchies] if hierarchies else [CGROUPS / self.label]

    def _cgroups(self) -> list[Path]:
        """The node's own group in each hierarchy, or the nodes' systemds would share one tree and kill each other's services."""
        groups = self._cgroup_paths()
        for group in groups:
            group.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (group / name).exists() and (group.parent.name == "cpuset"):
                    (group / name).write_text((group.parent / name).read_text())
        return groups


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _remove_cgroup(group: Path) -> None:
    """Remove a group and the groups in it; the kernel needs a moment after the last process has gone."""
    def gone() -> bool:
        for folder in sorted(group.rglob("*"), key=lambda path: -len(path.parts)):
            if folder.is_dir():
                _rmdir(folder)
        _rmdir(group)
        return not group.exists()
    if group.exists():
        wait_for(f"cgroup {group} is gone", gone, 20)


def _rmdir(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
