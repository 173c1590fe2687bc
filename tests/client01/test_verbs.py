# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""0.1's client on a real ZooKeeper server of its own (skipped where Debian's zookeeper or java is not installed)."""
from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

kazoo_client = pytest.importorskip("kazoo.client")
from kazoo.exceptions import NotEmptyError, RolledBackError, RuntimeInconsistency  # noqa: E402

from tests.client01 import verbs  # noqa: E402

JAR = Path("/usr/share/java/zookeeper.jar")
UUID = "11111111-2222-4333-8444-555555555555"
XML = f"<domain><name>größe</name><uuid>{UUID}</uuid><memory>65536</memory></domain>".encode()
NODES = {"hv1": ("run", "ready", 1000), "hv2": ("run", "ready", 3000), "hv3": ("run", "flushed", 9000), "hv4": ("dead", "ready", 9000),
         "hv5": ("run", "ready", 2000)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not JAR.exists() or not shutil.which("java"):
        pytest.skip("no ZooKeeper server here")
    folder = tmp_path_factory.mktemp("zookeeper")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = folder / "zoo.cfg"
    configuration.write_text(f"tickTime=500\ndataDir={folder}/data\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["java", "-cp", f"/etc/zookeeper/conf:{JAR}", "org.apache.zookeeper.server.quorum.QuorumPeerMain",
                                    str(configuration)], stdout=log, stderr=log, start_new_session=True)
    yield f"127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def zk(server: str) -> Iterator[Any]:
    client = kazoo_client.KazooClient(hosts=server, timeout=10)
    client.start(timeout=30)
    for root in ("/nodes", "/domains"):
        client.delete(root, recursive=True)
        client.create(root)
    for name, (daemon, domains, free) in NODES.items():
        for path, text in (("", "hypervisor"), ("/daemonstate", daemon), ("/domainstate", domains), ("/memfree", str(free))):
            client.create(f"/nodes/{name}{path}", text.encode())
    yield client
    client.stop()
    client.close()


def words(zk: Any) -> tuple[str, ...]:
    return tuple(verbs.read(zk, f"/domains/{UUID}/{key}") for key in verbs.DOMAIN_KEYS[:3])


def test_define_makes_the_name_and_exactly_four_keys(zk: Any) -> None:
    assert verbs.define(zk, XML, "hv1") == UUID
    assert verbs.read(zk, f"/domains/{UUID}") == "größe"
    assert sorted(zk.get_children(f"/domains/{UUID}")) == sorted(verbs.DOMAIN_KEYS)
    assert words(zk) == ("stop", "hv1", "") and zk.get(f"/domains/{UUID}/xml")[0] == XML
    assert verbs.find(zk, "größe") == UUID == verbs.find(zk, UUID)


@pytest.mark.parametrize("state", ["start", "stop", "shutdown", "restart", "migrate", "failed", "delete"])
def test_the_words(zk: Any, state: str) -> None:
    verbs.define(zk, XML, "hv1")
    for verb in (verbs.stop, verbs.shutdown, verbs.restart):
        verbs.write(zk, UUID, state=state)
        if state == "start":
            verb(zk, UUID)
            assert words(zk) == (verb.__name__, "hv1", "")
        else:
            with pytest.raises(verbs.Refused):
                verb(zk, UUID)
            assert words(zk) == (state, "hv1", "")
    verbs.write(zk, UUID, state=state)
    verbs.start(zk, UUID)
    assert words(zk) == ("start", "hv1", "")


@pytest.mark.parametrize("state, moved, migrated", [("start", "migrate", "migrate"), ("stop", "stop", "start"), ("failed", "failed", "start")])
def test_move_migrate_unmigrate(zk: Any, state: str, moved: str, migrated: str) -> None:
    verbs.define(zk, XML, "hv1")
    verbs.write(zk, UUID, state=state)
    assert verbs.migrate(zk, UUID) == "hv2", "neither flushed hv3 nor dead hv4, which have more memory"
    assert words(zk) == (migrated, "hv2", "hv1")
    with pytest.raises(verbs.Refused):
        verbs.migrate(zk, UUID, "hv1")
    verbs.migrate(zk, UUID, "hv3", force=True)
    assert words(zk)[1:] == ("hv3", "hv2")
    verbs.write(zk, UUID, state=state)
    assert verbs.unmigrate(zk, UUID) == "hv2"
    assert words(zk) == (migrated, "hv2", "")
    verbs.write(zk, UUID, state=state, lasthypervisor="hv3")
    verbs.move(zk, UUID, "hv1")
    assert words(zk) == (moved, "hv1", "")
    for target in ("hv1", "nowhere"):
        with pytest.raises(verbs.Refused):
            verbs.move(zk, UUID, target)


def test_the_choice_passes_over_where_it_is(zk: Any) -> None:
    verbs.define(zk, XML, "hv2")
    assert verbs.move(zk, UUID) == "hv5"
    assert verbs.move(zk, UUID) == "hv2"


def test_writes_are_unconditional(zk: Any) -> None:
    """Whatever was written in between is overwritten: that is what our daemons must live with."""
    verbs.define(zk, XML, "hv1")
    for number in range(5):
        zk.set(f"/domains/{UUID}/state", b"start" if number % 2 else b"foo")
    verbs.start(zk, UUID)
    assert words(zk)[0] == "start"


def test_undefine_waits_and_deletes_five_keys(zk: Any) -> None:
    verbs.define(zk, XML, "hv1")
    waited: list[tuple[float, str]] = []
    verbs.undefine(zk, UUID, lambda seconds: waited.append((seconds, words(zk)[0])))
    assert waited == [(1.0, "stop"), (5.0, "delete")]
    assert not zk.exists(f"/domains/{UUID}")


def test_undefine_fails_whole_where_somebody_added_a_child(zk: Any) -> None:
    """Why nothing of ours may live below /domains/<uuid>; 0.1 itself does not even notice."""
    verbs.define(zk, XML, "hv1")
    zk.create(f"/domains/{UUID}/ours", b"")
    results = verbs.undefine(zk, UUID, lambda seconds: None)
    assert isinstance(results[-1], NotEmptyError)
    assert all(isinstance(result, (RolledBackError, RuntimeInconsistency)) for result in results[:-1])
    assert len(zk.get_children(f"/domains/{UUID}")) == 5


def test_flush_and_ready(zk: Any) -> None:
    verbs.flush(zk, "hv1")
    assert verbs.read(zk, "/nodes/hv1/domainstate") == "flush"
    verbs.ready(zk, "hv1")
    assert verbs.read(zk, "/nodes/hv1/domainstate") == "unflush"
