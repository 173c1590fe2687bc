# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""JSON output is an interface: one golden document per command, and each of its keys is in the README. PVC_GOLDEN=1 writes them anew."""
from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client import OTHER, UUID, XML, Pvc

from pvc import connection, servers
from pvcd.cluster import schema
from pvcd.cluster.records import Claim, Fence, Operation
from pvcd.cluster.schema import FencePhase, OpPhase

GOLDEN = Path(__file__).parent / "golden"
README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
COMMANDS = {
    "node list": ["node", "list"], "node info": ["node", "info", "hv1"], "node flush --dry-run": ["node", "flush", "hv1", "--dry-run"],
    "vm list": ["vm", "list"], "vm info": ["vm", "info", "web1"], "history": ["history", "web1"], "status": ["status"], "verify": ["verify"]}


def name_of(command: str) -> str:
    return command.replace(" --", "-").replace(" ", "-") + ".json"


@pytest.fixture
def cluster(pvc: Pvc, monkeypatch: pytest.MonkeyPatch) -> Pvc:
    """web1 migrates from hv1 to hv2, web2 has failed, hv3 is being fenced."""
    monkeypatch.setattr(connection, "who", lambda: "admin@hv1")
    monkeypatch.setattr(servers, "ask", lambda _hosts: [{"address": "zk:2181", "mode": "standalone", "latency_ms": 1.5}])
    pvc.define()
    pvc.define("web2", OTHER)
    assert pvc("vm", "start", "web1")[0] == 0
    pvc.put("xml", XML.format(name="web1", uuid=UUID).replace("<memory", "<description>a web server</description><memory").replace(
        "<devices>", "<features><acpi/></features><cpu><topology sockets='1' cores='2' threads='1'/></cpu><devices>"
        "<controller type='usb' model='qemu-xhci'/><disk type='file' device='disk'><source file='/srv/web1.img'/><target dev='vda' bus='virtio'/></disk>"))
    pvc.put("state", "migrate")
    pvc.put("hypervisor", "hv2")
    pvc.put("lasthypervisor", "hv1")
    pvc.server.put(schema.claim(UUID), Claim("hv1", "hv1/0", Operation("op1", OpPhase.RUN, "hv2", "hv2/0")).encode())
    pvc.put("state", "failed", OTHER)
    pvc.server.put(schema.vmmeta(OTHER), json.dumps({"reason": "no disk"}))
    for key, value in (("runningdomains", UUID), ("domainscount", "1"), ("keepalive", "4102444800"),
                       ("ipmistate", json.dumps({"by": "hv2", "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "ok": True, "cipher": 3}))):
        pvc.server.put(schema.node_key("hv1", key), value)
    pvc.server.put(schema.node_key("hv2", "keepalive"), "4102444800")
    pvc.server.put(schema.node_key("hv3", "daemonstate"), "dead")
    pvc.server.put(schema.fence("hv3"), Fence("hv3/0", FencePhase.FENCING).encode())
    return pvc


def document(cluster: Pvc, command: str) -> str:
    _, out, _ = cluster(*COMMANDS[command], "-f", "json")
    out = re.sub(r'"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"', '"2026-01-01T00:00:00Z"', out)
    out = re.sub(r"\d+ s ago", "1 s ago", out)
    return re.sub(r"differ by [+-]\d+ s", "differ by -1 s", out)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_shape_is_as_it_was(cluster: Pvc, command: str) -> None:
    found, golden = document(cluster, command), GOLDEN / name_of(command)
    if os.environ.get("PVC_GOLDEN"):
        golden.write_text(found)
        pytest.fail(f"{golden.name} is written: read its difference, and run again without PVC_GOLDEN")
    assert found == golden.read_text()


def keys(value: Any) -> Iterator[str]:
    """Every key of a document; what is keyed by a node's name or a state is not one."""
    if isinstance(value, list):
        for item in value:
            yield from keys(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key not in ("lost", "vms"):
                yield from keys(item)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_is_in_the_readme_and_no_other(command: str) -> None:
    row = re.search(rf"^\| `pvc {re.escape(command)}` \| (.*) \|$", README, re.MULTILINE)
    assert row, f"the README's table of JSON documents lacks pvc {command}"
    assert set(re.findall(r"`([a-z_]+)`", row[1])) == set(keys(json.loads((GOLDEN / name_of(command)).read_text())))
