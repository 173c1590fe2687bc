# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The client, in-process, on the model of ZooKeeper."""
from __future__ import annotations

import sys

import pytest
from sim.fakezk import FakeServer, FakeZooKeeper

from pvc import cli, servers
from pvcd.cluster import schema, zk
from pvcd.cluster.records import Fence, Timing
from pvcd.cluster.schema import FencePhase
from pvcd.cluster.store import Store

UUID = "11111111-2222-4333-8444-555555555555"
OTHER = "21111111-2222-4333-8444-555555555555"
XML = ("<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>512</memory><vcpu>2</vcpu><os><type arch='x86_64' machine='pc'>"
       "hvm</type></os><devices><disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk><interface type='bridge'>"
       "<source bridge='br0'/><mac address='52:54:00:00:00:01'/></interface></devices></domain>")


class Pvc:
    """A cluster of three nodes and the client on it."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = FakeServer()
        self.capsys, self._monkeypatch = capsys, monkeypatch
        monkeypatch.setattr(zk, "ZooKeeper", lambda *_arguments: FakeZooKeeper(self.server, "client"))
        monkeypatch.setattr(servers, "ask", lambda hosts: [{"address": hosts, "mode": "standalone", "latency_ms": 1.0}])
        monkeypatch.delenv("PVC_ZOOKEEPER", raising=False)
        Store(FakeZooKeeper(self.server, "setup")).ensure_roots()
        for name, free in (("hv1", 1000), ("hv2", 3000), ("hv3", 2000)):
            self.node(name, memfree=str(free))

    def node(self, name: str, **words: str) -> None:
        self.server.put(schema.node(name), "hypervisor")
        values = {"daemonstate": "run", "domainstate": "ready", "memfree": "1000", "memused": "24", "cpuload": "0.5", "domainscount": "0",
                  "runningdomains": "", "staticdata": "4 6.1.0 Linux x86_64", "keepalive": "1", "protocol": "1", "timing": Timing(0.5, 6).encode().decode()}
        for key, value in {**values, **words}.items():
            self.server.put(schema.node_key(name, key), value)
        self.server.put(schema.fence(name), Fence(f"{name}/0", FencePhase.UP).encode())

    def __call__(self, *words: str, stdin: str = "") -> tuple[int, str, str]:
        import io
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        code = cli.main(["-z", "zk:2181", *words])
        out = self.capsys.readouterr()
        assert "Traceback" not in out.err
        return code, out.out, out.err

    def define(self, name: str = "web1", uuid: str = UUID, node: str = "hv1") -> None:
        assert self("vm", "define", "-t", node, "-", stdin=XML.format(name=name, uuid=uuid))[0] == 0

    def put(self, key: str, value: str | bytes, uuid: str = UUID) -> None:
        self.server.put(schema.domain_key(uuid, key), value)

    def words(self, uuid: str = UUID) -> tuple[str | None, ...]:
        return tuple(self.server.text(schema.domain_key(uuid, key)) for key in ("state", "hypervisor", "lasthypervisor"))
