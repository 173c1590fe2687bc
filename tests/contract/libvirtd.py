# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A libvirtd of our own in session mode, with its sockets and files in one folder, and tiny guests on it by TCG: nobody else's domains are touched."""
from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

USER = "nobody"
UUID = "11111111-2222-4333-8444-{:012d}"
GUEST = """<domain type='qemu'><name>guest{number}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os><features><acpi/></features>
<on_poweroff>destroy</on_poweroff><on_reboot>{on_reboot}</on_reboot><on_crash>destroy</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='virtio'/>{disk}</devices></domain>"""
DISK = "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/><target dev='hda' bus='ide'/></disk>"


def missing() -> str:
    """Why it cannot run here, or ''."""
    for program in ("libvirtd", "qemu-system-x86_64", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return ""


class Libvirtd:
    """One session daemon; as root it runs as USER, because root's libvirtd would be the system's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"qemu+unix:///session?socket={folder}/run/libvirt/libvirt-sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for name in ("run", "config", "cache", "data"):
            (self.folder / name).mkdir(mode=0o700)
        (self.folder / "libvirtd.conf").write_text('listen_tls = 0\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
                                                   f'log_outputs = "3:file:{self.folder}/libvirtd.log"\n')
        command = ["libvirtd", "-f", str(self.folder / "libvirtd.conf"), "-p", str(self.folder / "pid")]
        if os.geteuid() == 0:
            user = pwd.getpwnam(USER)
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
            command = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *command]
        places = {f"XDG_{key}": str(self.folder / name) for key, name in
                  (("RUNTIME_DIR", "run"), ("CONFIG_HOME", "config"), ("CACHE_HOME", "cache"), ("DATA_HOME", "data"))}
        with (self.folder / "out").open("wb") as out:
            self._process = subprocess.Popen(command, env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **places}, stdout=out,
                                             stderr=out, start_new_session=True)
        deadline = time.monotonic() + 30
        while not (self.folder / "run/libvirt/libvirt-sock").exists():
            assert time.monotonic() < deadline and self._process.poll() is None, (self.folder / "out").read_text()
            time.sleep(0.05)

    def qemu(self, number: int) -> int:
        """The process of a guest."""
        return int((self.folder / f"run/libvirt/qemu/run/guest{number}.pid").read_text())

    def xml(self, number: int, on_reboot: str = "restart", boot: bytes = b"") -> str:
        """A guest that runs `boot` (a boot sector's code), or that finds nothing to boot."""
        disk = ""
        if boot:
            path = self.folder / f"disk{number}"
            path.write_bytes(boot.ljust(510, b"\0") + b"\x55\xaa" + bytes(512 * 2047))
            path.chmod(0o666)
            disk = DISK.format(path=path)
        return GUEST.format(number=number, uuid=UUID.format(number), on_reboot=on_reboot, disk=disk)

    def stop(self) -> None:
        """The daemon and every guest of it."""
        for path in (self.folder / "run/libvirt/qemu/run").glob("guest*.pid"):
            try:
                os.kill(int(path.read_text()), signal.SIGKILL)
            except (OSError, ValueError):
                continue
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
