# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The whole lab: network, nodes, BMCs and packages, with a state that outlives the command that made it.

Everything carries the lab's own prefix, and nothing else is touched. `down` leaves nothing behind, also after an `up` that
failed half-way.
"""
from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from . import files, guests, suites, witness
from .bmc import Bmc
from .host import CHECKOUT, STATE, LabError, copy_checkout, install_missing, sh, wait_for
from .machine import Machine

if TYPE_CHECKING:
    from .keys import Keys

SUBNETS = range(200, 250)
RELAY, RELAY_PORT = "lab-relay.service", 2180


@dataclass
class Settings:
    """What a lab was made with; kept in its folder."""

    number: int
    nodes: int
    interval: float
    pvc: bool
    suites: list[str] = field(default_factory=lambda: [suites.THIS_MACHINE])
    """Debian's releases; the nodes take turns."""


class Lab:
    """The lab called `name`. Building the object touches nothing."""

    def __init__(self, name: str = "pvc", say: Callable[[str], None] = lambda text: None) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,7}", name):
            raise LabError("a lab's name has 1 to 8 lower-case letters and digits, and begins with a letter")
        self.name, self.say, self.folder = name, say, STATE / name
        self.shared = self.folder / "shared"

    # --------------------------------------------------------------------------------------------------------- settings

    @property
    def settings(self) -> Settings:
        try:
            return Settings(**json.loads((self.folder / "settings.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise LabError(f"there is no lab '{self.name}': pvclab --name {self.name} up") from error

    @property
    def exists(self) -> bool:
        return (self.folder / "settings.json").exists()

    @property
    def prefix(self) -> str:
        return f"pl{self.settings.number}"

    def address(self, last: int) -> str:
        return f"10.213.{self.settings.number}.{last}"

    @property
    def names(self) -> list[str]:
        return [f"hv{number}" for number in range(1, self.settings.nodes + 1)]

    def node(self, name: str) -> Machine:
        if name not in self.names:
            raise LabError(f"there is no node '{name}'; this lab has {', '.join(self.names)}")
        return Machine(name, f"{self.prefix}-{name}", self.folder / "nodes" / name, self.prefix, self.shared, self._lower(name))

    def _lower(self, name: str) -> Path:
        releases = self.settings.suites
        return suites.lower(releases[self.names.index(name) % len(releases)])

    def clone(self, original: str) -> Machine:
        """A fourth machine on a copy of a node's disk: the same name, machine-id and configuration, another address, no ZooKeeper server. Off."""
        machine = self._clone(original)
        machine.folder.mkdir()
        sh("cp", "-a", str(self.node(original).upper), str(machine.upper))
        units = machine.upper / "etc/systemd/system"
        network = (units / "lab-network.service").read_text()
        (units / "lab-network.service").write_text(network.replace(f"{self.node_address(original)}/", f"{self.address(50 + self.names.index(original))}/"))
        (units / "zookeeper.service").unlink()
        (units / "zookeeper.service").symlink_to("/dev/null")
        return machine

    def _clone(self, original: str) -> Machine:
        number = self.names.index(original) + 1
        return Machine(original, f"{self.prefix}-cl{number}", self.folder / "nodes" / f"cl{number}", self.prefix, self.shared, self._lower(original))

    def node_address(self, name: str) -> str:
        return self.address(10 + self.names.index(name) + 1)

    def bmc(self, name: str) -> Bmc:
        self.node(name)
        return Bmc(self.name, name, self.address(100 + self.names.index(name) + 1), self.folder / "bmc" / name)

    @property
    def zookeeper(self) -> str:
        """Where this machine reaches the lab's ZooKeeper."""
        return ",".join(f"{self.node_address(name)}:2181" for name in self.names)

    @cached_property
    def keys(self) -> Keys:
        """A look at the cluster's keys from this machine."""
        from .keys import Keys  # kazoo is not on a fresh machine before up() has installed it
        return Keys(self.zookeeper)

    # -------------------------------------------------------------------------------------------------------------- up

    def up(self, nodes: int = 3, interval: float = 5.0, pvc: bool = True, releases: Sequence[str] = (suites.THIS_MACHINE,)) -> None:
        """Bring the lab up, or finish what is missing of it."""
        install_missing(self.say)
        if not self.exists:
            self.folder.mkdir(parents=True, exist_ok=True)
            settings = Settings(self._free_number(), nodes, interval, pvc, list(releases))
            (self.folder / "settings.json").write_text(json.dumps(asdict(settings)))
        for release in self.settings.suites:
            if release != suites.THIS_MACHINE:
                suites.prepare(release, self.say)
        self._network()
        guests.prepare(self.shared, STATE / "cache")
        debs = self._packages() if self.settings.pvc else []
        for name in self.names:
            if self.bmc(name).pid is None and self.bmc(name).mode != "dead":
                self.bmc(name).set_mode(self.bmc(name).mode)
            self._prepare_node(name)
            self.node(name).boot()
        for name in self.names:
            self.await_services(name)
        self.say("ZooKeeper and libvirt answer on every node")
        if debs:
            self._install(debs)

    def _free_number(self) -> int:
        used = sh("ip", "-o", "address").stdout
        taken = {json.loads(path.read_text())["number"] for path in STATE.glob("*/settings.json")}
        for number in SUBNETS:
            if number not in taken and f" 10.213.{number}." not in used:
                return number
        raise LabError("no subnet is free")

    def _network(self) -> None:
        if sh("ip", "link", "show", self.prefix, check=False).returncode != 0:
            # An address of its own: a bridge has else the lowest one of its ports, and when that node loses its power, the others look for
            # the controllers, which are on the bridge, under an address that is gone, for up to a minute.
            sh("ip", "link", "add", self.prefix, "address", f"02:d5:{self.settings.number:02x}:00:00:01", "type", "bridge", "forward_delay", "0",
               "stp_state", "0")
        wanted = [self.address(1), *(self.bmc(name).address for name in self.names)]
        for address in wanted:
            sh("ip", "address", "replace", f"{address}/24", "dev", self.prefix)
        sh("ip", "link", "set", self.prefix, "up")

    def _prepare_node(self, name: str) -> None:
        machine = self.node(name)
        if not machine.upper.exists():
            nodes = {known: self.node_address(known) for known in self.names}
            bmcs = {f"{known}-lom": self.bmc(known).address for known in self.names}
            files.write_node(machine.upper, name, self.node_address(name), self.names.index(name) + 1, nodes, bmcs,
                             self.settings.interval)

    def await_services(self, name: str) -> None:
        address = self.node_address(name)
        wait_for(f"ZooKeeper on {name} serves", lambda: "Mode:" in four_letter_word(address, "srvr"), 60)
        wait_for(f"libvirt on {name} listens", lambda: _listens(address, 16509), 60)

    # --------------------------------------------------------------------------------------------------------- packages

    def _packages(self) -> list[Path]:
        """Build the packages from the checkout, in a copy: the checkout and its parent stay as they are."""
        folder = self.folder / "build"
        found = sorted(folder.glob("pvc-*.deb"))
        return found or self.build()

    def build(self) -> list[Path]:
        """Build the packages afresh."""
        folder = self.folder / "build"
        shutil.rmtree(folder, ignore_errors=True)
        copy_checkout(folder / "pvc")
        self.say("building the packages")
        sh(str(folder / "pvc" / "build-deb.sh"), timeout_s=300)
        return sorted(folder.glob("pvc-*.deb"))

    def _install(self, debs: list[Path]) -> None:
        for name in self.names:
            if self.node(name).run("test", "-e", "/usr/bin/pvc", check=False).returncode != 0:
                self.install(name, debs)
        first = self.names[0]
        if self.pvc("node", "list", check=False).returncode == 5:
            self.pvc("init", "--yes")
        for name in self.names:
            self.node(name).run("systemctl", "start", "pvcd.service", timeout_s=90)
        wait_for("every node is in run", lambda: all(
            self.zk(first, f"/nodes/{name}/daemonstate") == "run" for name in self.names), 60, 0.5)
        self.say("pvcd runs on every node")

    def install(self, name: str, debs: list[Path]) -> None:
        """Install the packages in a node with dpkg, as an operator does."""
        folder = self.shared / "debs"
        folder.mkdir(exist_ok=True)
        for deb in debs:
            shutil.copy2(deb, folder / deb.name)
        self.node(name).run("dpkg", "-i", *(f"/srv/shared/debs/{deb.name}" for deb in debs), timeout_s=180)

    # --------------------------------------------------------------------------------------------------------------- use

    def pvc(self, *argv: str, node: str | None = None, check: bool = True, timeout_s: float = 60,
            stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """The client, on the first node that has power unless one is named."""
        machine = self.node(node) if node else next(self.node(name) for name in self.names if self.node(name).pid)
        return machine.run("pvc", *argv, check=check, timeout_s=timeout_s, stdin=stdin)

    def zk(self, node: str, path: str) -> str | None:
        """One key's text as the ZooKeeper server of `node` has it, read with ZooKeeper's own tools."""
        done = self.node(node).run("/usr/bin/python3", "-c", _READ, path, check=False, timeout_s=20)
        return done.stdout if done.returncode == 0 else None

    def define(self, vm: str, node: str, tiny: bool = False, **options: object) -> None:
        """Define a guest homed on `node`: a tiny one, or a kernel guest, with a disk unless `disk` is False."""
        self.pvc("vm", "define", "-t", node, "-", stdin=guests.tiny_guest(vm) if tiny else self.guest(vm, **options))

    def guest(self, vm: str, **options: object) -> str:
        """XML of a kernel guest, whose empty disk is there."""
        with (self.shared / "disks" / vm).open("wb") as file:
            file.truncate(1 << 20)
        return guests.kernel_guest(vm, **{"disk": True, **options})  # type: ignore[arg-type]

    def testimony(self, vm: str) -> witness.Testimony:
        return witness.read(self.shared / "serial" / vm)

    def await_life(self, vm: str, lives: int = 1, timeout_s: float = 40) -> None:
        """Wait until the VM's guest speaks in its `lives`-th life."""
        wait_for(f"{vm} speaks in life {lives}", lambda: len(self.testimony(vm).lives) >= lives, timeout_s)

    def domains(self, node: str) -> list[str]:
        """Names of the domains that libvirt shows on a node."""
        return self.node(node).run("virsh", "-q", "list", "--name", timeout_s=20).stdout.split()

    # ------------------------------------------------------------------------------------------------------------ faults

    def cut(self, node: str) -> None:
        """Pull the network cable of a node."""
        sh("ip", "link", "set", f"vb-{self.node(node).label}", "nomaster")

    def heal(self, node: str) -> None:
        """Plug the network cable in again, and lift what `block` has blocked."""
        sh("ip", "link", "set", f"vb-{self.node(node).label}", "master", self.prefix)
        self.node(node).run("sh", "-c", f"iptables -F; iptables -t nat -F; systemctl stop {RELAY}", check=False)

    def block(self, node: str, ports: int | str) -> None:
        """Drop what the node sends to, and receives for, one TCP port or a range `A:B`, both as client and as server."""
        for chain in ("INPUT", "OUTPUT"):
            for side in ("--dport", "--sport"):
                self.node(node).run("iptables", "-A", chain, "-i" if chain == "INPUT" else "-o", "host0", "-p", "tcp", side, str(ports),
                                    "-j", "DROP")

    def lose(self, node: str, share: float) -> None:
        """Lose this share of the packets that the node receives, and of those that it sends."""
        for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o")):
            self.node(node).run("iptables", "-A", chain, side, "host0", "-m", "statistic", "--mode", "random", "--probability", str(share), "-j", "DROP")

    def delay(self, node: str, seconds: float) -> None:
        """Every byte that the node's ZooKeeper clients send or get from now on, by new connections, is so late."""
        relay = "/run/relay.py"
        self.node(node).run("sh", "-c", f"cat > {relay} && systemd-run -q --unit={RELAY} --uid=nobody /usr/bin/python3 {relay} {RELAY_PORT} {seconds}",
                            stdin=(Path(__file__).parent / "relay.py").read_text())
        self.node(node).run("iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "2181", "-m", "owner", "!", "--uid-owner", "nobody",
                            "-j", "REDIRECT", "--to-ports", str(RELAY_PORT))

    def silence(self, node: str, direction: str) -> None:
        """Drop everything that the node receives (`direction` INPUT), or that it sends (OUTPUT)."""
        self.node(node).run("iptables", "-A", direction, "-i" if direction == "INPUT" else "-o", "host0", "-j", "DROP")

    def kill(self, node: str) -> None:
        """Cut the power of a node."""
        self.node(node).cut_power()

    def down(self) -> None:
        """Take everything away: processes, mounts, interfaces, cgroups and files."""
        if not self.exists:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for name in self.names:
            self.bmc(name).stop()
        for name in self.names:
            self.node(name).remove()
            self._clone(name).remove()
        if sh("ip", "link", "show", self.prefix, check=False).returncode == 0:
            sh("ip", "link", "delete", self.prefix)
        shutil.rmtree(self.folder)
        if not list(STATE.glob("*/settings.json")):
            shutil.rmtree(STATE)  # the last lab takes the guests' cache with it


_READ = """
import sys
from kazoo.client import KazooClient
client = KazooClient("127.0.0.1:2181", timeout=10)
client.start(timeout=10)
try:
    sys.stdout.write(client.get(sys.argv[1])[0].decode())
finally:
    client.stop()
"""


def four_letter_word(address: str, word: str) -> str:
    """What a ZooKeeper server answers to one of its four-letter words; '' if nothing."""
    try:
        with socket.create_connection((address, 2181), timeout=2) as connection:
            connection.sendall(word.encode())
            return connection.makefile().read()
    except OSError:
        return ""


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


__all__ = ["CHECKOUT", "Lab", "Settings", "four_letter_word"]
