# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Real servers for the contract tests: a ZooKeeper of our own, and an ipmi_sim, both on loopback."""
from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

JAR = "/usr/share/java/zookeeper.jar"


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ZooKeeperServer:
    """A server that can be stopped, frozen and started again on the same data: standalone, or one of three whose others are away.

    `peers`: the lines of an ensemble, as in Debian's zoo.cfg; this server is the one that `number` counts, from 1.
    """

    def __init__(self, folder: Path, alone_of_three: bool = False, read_only: bool = False, address: str = "127.0.0.1", port: int = 0,
                 peers: Sequence[str] = (), number: int = 1) -> None:
        self.port, self._address = port or free_port(), address
        self.hosts = f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "zoo.cfg").write_text(f"tickTime=500\ndataDir={folder}/data\nclientPort={self.port}\nclientPortAddress={address}\n"
                                        "maxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=*\n")
        self._options = ["-Dreadonlymode.enabled=true"] if read_only else []
        self._serves = b"not currently serving" if alone_of_three and not read_only else b"Mode:"
        if alone_of_three:
            peers = [f"server.{each}=127.0.0.1:{free_port()}:{free_port()}" for each in (1, 2, 3)]
        if peers:
            with (folder / "zoo.cfg").open("a") as file:
                file.write("initLimit=5\nsyncLimit=2\n")
                file.writelines(f"{line}\n" for line in peers)
            (folder / "data").mkdir()
            (folder / "data/myid").write_text(f"{number}\n")

    def start(self) -> None:
        """Returns when it answers, with or without a quorum."""
        self.launch()
        self.await_answer()

    def launch(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["java", *self._options, "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"/etc/zookeeper/conf:{JAR}",
                 "org.apache.zookeeper.server.quorum.QuorumPeerMain", str(self._folder / "zoo.cfg")], stdout=log, stderr=log,
                start_new_session=True)

    def await_answer(self) -> None:
        deadline = time.monotonic() + 30
        while self._serves not in self._srvr():
            assert time.monotonic() < deadline, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def _srvr(self) -> bytes:
        return self.word(b"srvr")

    def word(self, letters: bytes) -> bytes:
        """The answer to a four-letter word; empty if there is none."""
        try:
            with socket.create_connection((self._address, self.port), timeout=1) as connection:
                connection.sendall(letters)
                return connection.makefile("rb").read()
        except OSError:
            return b""

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self, frozen: bool) -> None:
        """Returns when every thread of it stands still; the signal alone lets it answer once more."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)
        deadline = time.monotonic() + 10
        while frozen and {path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{self._process.pid}/task").glob("*/stat")} != {"T"}:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def three_servers(folder: Path) -> list[ZooKeeperServer]:
    """An ensemble as three hosts have it, at 127.0.0.1, 127.0.0.2 and 127.0.0.3, all with one client port. Running."""
    port = free_port()
    peers = [f"server.{number}=127.0.0.{number}:{free_port()}:{free_port()}" for number in (1, 2, 3)]
    found = []
    for number in (1, 2, 3):
        (folder / str(number)).mkdir()
        found.append(ZooKeeperServer(folder / str(number), address=f"127.0.0.{number}", port=port, peers=peers, number=number))
    for server in found:
        server.launch()
    for server in found:
        server.await_answer()
    return found


LAN = """name "test"
set_working_mc 0x20
startlan 1
  addr 127.0.0.1 {port}
  guid 00112233445566778899aabbccddeeff
  priv_limit admin
  allowed_auths_callback none md2 md5 straight
  allowed_auths_user none md2 md5 straight
  allowed_auths_operator none md2 md5 straight
  allowed_auths_admin none md2 md5 straight
endlan
chassis_control "{folder}/button"
user 1 true "" "{password}" user 10 none md2 md5 straight
user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""
EMULATION = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""
BUTTON = """#!/bin/sh
if [ "$1" = get ]; then echo "power:$(cat {folder}/power)"; exit 0; fi
[ "$2" = power ] && [ ! -e {folder}/ignores ] && echo "$3" > {folder}/power
exit 0
"""


class IpmiSim:
    """One controller; `folder`/power holds 1 or 0, `folder`/ignores makes it accept commands and do nothing."""

    def __init__(self, folder: Path, user: str, password: str) -> None:
        self.port = free_port(socket.SOCK_DGRAM)
        self._folder = folder
        (folder / "state").mkdir()
        (folder / "lan.conf").write_text(LAN.format(port=self.port, folder=folder, user=user, password=password))
        (folder / "emu").write_text(EMULATION)
        (folder / "button").write_text(BUTTON.format(folder=folder))
        (folder / "button").chmod(0o755)
        self.set_power(True)
        with (folder / "log").open("wb") as log:
            argv = ["ipmi_sim", "-n", "-c", str(folder / "lan.conf"), "-f", str(folder / "emu"), "-s", str(folder / "state")]
            self.process = subprocess.Popen(argv,
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def set_power(self, on: bool) -> None:
        (self._folder / "power").write_text("1\n" if on else "0\n")

    @property
    def power(self) -> bool:
        return (self._folder / "power").read_text().strip() == "1"

    def ignore(self) -> None:
        (self._folder / "ignores").touch()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
