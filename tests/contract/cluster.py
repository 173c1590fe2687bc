# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Keys of a small cluster on a real ZooKeeper, without daemons: a test plays them. And the client as a process."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kazoo.client import KazooClient

from pvcd.cluster import schema
from pvcd.cluster.records import Claim, Fence, Timing
from pvcd.cluster.schema import FencePhase

CLIENT = Path(__file__).resolve().parents[2] / "client-cli/pvc.py"
PYTHON = "/usr/bin/python3"
UUID = "11111111-2222-4333-8444-555555555555"
XML = (f"<domain type='kvm'><name>web1</name><uuid>{UUID}</uuid><memory unit='MiB'>512</memory><vcpu>2</vcpu>"
       "<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>")


class Keys:
    """Writes keys as anybody could, over a connection of its own."""

    def __init__(self, hosts: str) -> None:
        self.client = KazooClient(hosts, timeout=10)
        self.client.start(10)

    def put(self, path: str, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        if not self.client.exists(path):
            self.client.create(path, data, makepath=True)
        else:
            self.client.set(path, data)

    def text(self, path: str) -> str:
        return str(self.client.get(path)[0].decode("utf-8", "replace"))

    def populate(self) -> None:
        """hv1, hv2 and hv3 run and are ready; web1 is defined on hv1 and stopped."""
        for root in ("/nodes", "/domains", "/claims", "/fences", "/locks", "/vmmeta", "/history"):
            if self.client.exists(root):
                self.client.delete(root, recursive=True)
        for root in ("/claims", "/locks", "/vmmeta", "/history"):
            self.put(root, b"")
        self.put("/fences", b"")
        for name in ("hv1", "hv2", "hv3"):
            self.put(schema.node(name), "hypervisor")
            values = {"daemonstate": "run", "domainstate": "ready", "memfree": "3000", "memused": "24", "cpuload": "0.5", "domainscount": "0",
                      "runningdomains": "", "staticdata": "4 6.1.0 Linux x86_64", "keepalive": "1", "protocol": "1",
                      "timing": Timing(5.0, 6).encode()}
            for key, value in values.items():
                self.put(schema.node_key(name, key), value)
            self.put(schema.fence(name), Fence(f"{name}/0", FencePhase.UP).encode())
        self.put(schema.domain(UUID), "web1")
        for key, word in (("state", "stop"), ("hypervisor", "hv1"), ("lasthypervisor", ""), ("xml", XML)):
            self.put(schema.domain_key(UUID, key), word)
        self.put(schema.claim(UUID), b"")

    def runs(self, node: str) -> None:
        """What the daemon of `node` would write once web1 runs there."""
        for name in ("hv1", "hv2", "hv3"):
            self.put(schema.node_key(name, "runningdomains"), UUID if name == node else "")
        transaction = self.client.transaction()
        for path, value in ((schema.claim(UUID), Claim(node, f"{node}/0").encode()), (schema.domain_key(UUID, "hypervisor"), node.encode()),
                            (schema.domain_key(UUID, "state"), b"start")):
            transaction.set_data(path, value)
        transaction.commit()

    def close(self) -> None:
        self.client.stop()
        self.client.close()


def environment() -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if not key.startswith("PVC_")}, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}


def pvc(hosts: str, *words: str, stdin: bytes = b"", timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own, without a terminal."""
    done = subprocess.run([PYTHON, str(CLIENT), "-z", hosts, *words], input=stdin, capture_output=True, timeout=timeout_s, env=environment())
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode())
