# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The client, in-process, on the model of ZooKeeper: every command of 0.1, exit codes, and values that would hurt a terminal."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from client import OTHER, UUID, XML, Pvc
from sim.fakezk import FakeZooKeeper

from pvc import connection
from pvcd.cluster import schema
from pvcd.cluster.records import Claim, Operation
from pvcd.cluster.schema import OpPhase
from pvcd.cluster.store import Store

ROOT = Path(__file__).resolve().parents[2]


def test_define_keeps_every_byte_and_dump_gives_it_back(pvc: Pvc) -> None:
    pvc.define()
    assert pvc.words() == ("stop", "hv1", "") and pvc.server.text(schema.domain(UUID)) == "web1"
    assert pvc("vm", "dump", "web1")[1] == XML.format(name="web1", uuid=UUID)
    assert sorted(pvc.server.children(schema.domain(UUID))) == ["hypervisor", "lasthypervisor", "state", "xml"]


def test_a_definition_without_uuid_gets_one_and_it_is_said(pvc: Pvc) -> None:
    code, _, err = pvc("vm", "define", "-t", "hv1", "-", stdin=XML.format(name="größe", uuid="").replace("<uuid></uuid>", ""))
    assert code == 0 and "it gets" in err
    assert json.loads(pvc("vm", "list", "-f", "json")[1])[0]["name"] == "größe"


@pytest.mark.parametrize("bad", ["", "<domain", "<node/>", "<domain><name>a b</name></domain>", XML.format(name="x", uuid="nonsense"),
                                 "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>" + XML.format(name="x", uuid=UUID),
                                 "<domain>" + "<a>" * 300 + "</a>" * 300 + "</domain>", XML.format(name="x", uuid=UUID) + " " * 5_000_000])
def test_bad_definitions_are_refused_with_a_reason(pvc: Pvc, bad: str) -> None:
    code, _, err = pvc("vm", "define", "-t", "hv1", "-", stdin=bad)
    assert code == 1 and err.startswith("Error: ") and len(err) < 500
    assert pvc.server.children(schema.DOMAINS) == []


def test_names_and_uuids_are_taken_once(pvc: Pvc) -> None:
    pvc.define()
    for name, uuid in (("web1", OTHER), ("web2", UUID), (UUID, OTHER)):
        assert pvc("vm", "define", "-t", "hv1", "-", stdin=XML.format(name=name, uuid=uuid))[0] == 4
    code, _, err = pvc("vm", "define", "-t", "hv9", "-", stdin=XML.format(name="web2", uuid=OTHER))
    assert code == 3 and "hv1, hv2, hv3" in err


@pytest.mark.parametrize(("command", "words"), [
    (["start"], ("start", "hv1", "")), (["start", "migrate"], ("migrate", "hv2", "hv1")), (["start", "migrate", "-t", "hv3"], ("migrate", "hv3", "hv1")),
    (["migrate"], ("start", "hv2", "hv1")), (["start", "move"], ("migrate", "hv2", "")), (["move"], ("stop", "hv2", "")),
    (["start", "shutdown"], ("shutdown", "hv1", "")), (["start", "restart"], ("restart", "hv1", "")), (["start", "stop"], ("stop", "hv1", "")),
    (["migrate", "unmigrate"], ("migrate", "hv1", "hv1"))])
def test_verbs_write_their_words(pvc: Pvc, command: list[str], words: tuple[str, ...]) -> None:
    pvc.define()
    options: list[str] = []
    for word in command:
        if word.startswith("-") or options:
            options.append(word)
    verbs = command[:len(command) - len(options)]
    for verb in verbs[:-1]:
        assert pvc("vm", verb, "web1")[0] == 0
    code, out, _ = pvc("vm", verbs[-1], "web1", *options)
    assert code == 0 and "web1" in out and pvc.words() == words


def test_already_so_is_no_failure_and_a_transition_is_refused(pvc: Pvc) -> None:
    pvc.define()
    assert "already" in pvc("vm", "stop", "web1")[1]
    for word in ("migrate", "restart", "shutdown", "delete"):
        pvc.put("state", word)
        code, _, err = pvc("vm", "restart", "web1")
        assert code == 4 and "being" in err
    pvc.put("state", "stop")
    assert pvc("vm", "restart", "web1")[0] == 4
    assert pvc("vm", "unmigrate", "web1")[0] == 4


def test_who_is_meant(pvc: Pvc) -> None:
    pvc.define()
    pvc.define("web2", OTHER)
    assert pvc("vm", "info", UUID)[0] == pvc("vm", "info", "1111")[0] == pvc("vm", "info", "web1")[0] == 0
    code, _, err = pvc("vm", "info", "wbe1")
    assert code == 3 and "Did you mean 'web1'?" in err
    assert pvc("vm", "info", "web")[0] == 3 and pvc("vm", "info", "111")[0] == 3
    pvc.server.put(schema.domain(OTHER), "web1")
    code, _, err = pvc("vm", "info", "web1")
    assert code == 4 and UUID in err and OTHER in err
    assert pvc("vm", "info", OTHER)[0] == 0


def test_undefine_waits_for_the_claim_and_takes_exactly_its_keys(pvc: Pvc) -> None:
    pvc.define()
    pvc.server.put(schema.claim(UUID), Claim("hv1", "hv1/0").encode())
    code, _, err = pvc("vm", "undefine", "web1", "--timeout", "0.2")
    assert code == 124 and pvc.words()[0] == "delete" and "goes on" in err
    pvc.server.put(schema.claim(UUID), b"")
    assert pvc("vm", "undefine", "web1")[0] == 0
    assert pvc.server.children(schema.DOMAINS) == [] and schema.claim(UUID) in pvc.server.nodes


@pytest.mark.parametrize(("rival", "code"), [("web1", 4), ("web2", 0)])
def test_two_clients_define_at_the_same_moment(pvc: Pvc, monkeypatch: pytest.MonkeyPatch, rival: str, code: int) -> None:
    """Finding B14: the other one is written after our look at the names, and before our transaction."""
    original, rivals = FakeZooKeeper.commit, iter([(rival, OTHER)])

    def late(self: FakeZooKeeper, changes: Any) -> None:
        for name, uuid in rivals:
            pvc.define(name, uuid)
        original(self, changes)
    monkeypatch.setattr(FakeZooKeeper, "commit", late)
    done, _, err = pvc("vm", "define", "-t", "hv1", "-", stdin=XML.format(name="web1", uuid=UUID))
    assert done == code and ("exists already" in err) == (code == 4)
    assert sorted(pvc.server.text(schema.domain(u)) or "" for u in pvc.server.children(schema.DOMAINS)) == ["web1", "web2"][:2 - bool(code)]


def test_a_rename_takes_its_name_as_a_definition_does(pvc: Pvc, monkeypatch: pytest.MonkeyPatch) -> None:
    pvc.define()
    original, rivals = FakeZooKeeper.commit, iter([("web2", OTHER)])

    def late(self: FakeZooKeeper, changes: Any) -> None:
        for name, uuid in rivals:
            pvc.define(name, uuid)
        original(self, changes)
    with monkeypatch.context() as patched:
        patched.setattr(FakeZooKeeper, "commit", late)
        code, _, err = pvc("vm", "modify", "--no-validate", "web1", "-", stdin=XML.format(name="web2", uuid=UUID))
    assert code == 4 and "another VM called 'web2'" in err and pvc.server.text(schema.domain(UUID)) == "web1"


def test_ready_waits_for_the_way_home_and_names_who_stays(pvc: Pvc) -> None:
    """Finding B17."""
    pvc.define()
    for key, value in (("state", "start"), ("hypervisor", "hv2"), ("lasthypervisor", "hv1")):
        pvc.put(key, value)
    pvc.server.put(schema.vmmeta(UUID), json.dumps({"reason": "cannot come here: too big"}))
    pvc.server.put(schema.node_key("hv1", "domainstate"), "unflush")
    assert pvc("node", "ready", "hv1", "--wait", "--timeout", "0.1")[0] == 124
    pvc.server.put(schema.node_key("hv1", "domainstate"), "ready")
    code, _, err = pvc("node", "ready", "hv1", "--wait")
    assert code == 0 and "web1 stays on hv2: cannot come here: too big" in err
    assert "stays" not in pvc("node", "ready", "hv1", "--wait", "--no-return")[2]


def test_flush_and_ready(pvc: Pvc) -> None:
    assert pvc("node", "flush", "hv1")[0] == 0 and pvc.server.text(schema.node_key("hv1", "domainstate")) == "flush"
    assert "already" in pvc("node", "flush", "hv1")[1]
    assert pvc("node", "ready", "hv1")[0] == 0 and pvc.server.text(schema.node_key("hv1", "domainstate")) == "unflush"
    pvc.server.put(schema.node_key("hv1", "domainstate"), "flushed")
    assert pvc("node", "ready", "--no-return", "hv1")[0] == 0 and pvc.server.text(schema.node_key("hv1", "domainstate")) == "ready"
    assert pvc("node", "flush", "hv9")[0] == 3
    assert pvc("node", "unflush", "hv2")[0] == 0


def test_wait_tells_the_outcome(pvc: Pvc) -> None:
    pvc.define()
    pvc.put("state", "failed")
    pvc.server.put(schema.vmmeta(UUID), json.dumps({"reason": "no disk\x1b[31m"}))
    pvc.server.put(schema.claim(UUID), b"")

    def fail(_client: str, changes: Any) -> None:
        if any(change.path == schema.domain_key(UUID, "state") for change in changes):
            pvc.server.on_commit = None
            pvc.put("state", "failed")
    pvc.server.on_commit = fail
    code, _, err = pvc("vm", "start", "web1", "--wait")
    assert code == 1 and "no disk" in err and "\x1b" not in err


def test_lists_and_pages(pvc: Pvc) -> None:
    pvc.define()
    pvc.server.put(schema.node_key("hv1", "runningdomains"), UUID)
    pvc.server.put(schema.node_key("hv3", "daemonstate"), "dead")
    assert pvc("node", "list")[1].splitlines() == [
        "Name  Daemon  Domains  VMs  CPUs  Total (MiB)  Used (MiB)  Free (MiB)  VMs (MiB)",
        "hv1   run     ready      0     4         1024          24        1000        512",
        "hv2   run     ready      0     4         3024          24        3000          0",
        "hv3   dead    ready      ?     4         2024           ?           ?          ?"]
    assert pvc("vm", "list")[1].splitlines() == [
        "Name  UUID                                  State  RAM (MiB)  vCPUs  Hypervisor  Migrated",
        f"web1  {UUID}  stop         512      2  hv1         no"]
    assert json.loads(pvc("node", "list", "-f", "json")[1])[2]["stale"] is True
    assert pvc("vm", "list", "-f", "name", "-t", "hv1")[1] == "web1\n" and pvc("vm", "list", "-f", "name", "-t", "hv2")[1] == ""
    page = pvc("vm", "info", "web1", "-l")[1]
    assert "Disk 0:" in page and "cdrom  -  sda  sata" in page and "52:54:00:00:00:01" in page
    page = pvc("node", "info", "hv1", "-l")[1]
    assert "Kernel Version:" in page and "6.1.0" in page and "web1" in page


@pytest.mark.parametrize("garbage", [b"\xff\xfe", b"\x1b[31mred", b"two\nlines", b"x" * 100_000, b"", None])
@pytest.mark.parametrize("key", ["state", "hypervisor", "lasthypervisor", "xml", ""])
def test_garbage_in_a_vms_keys_is_shown_and_hurts_nobody(pvc: Pvc, key: str, garbage: bytes | None) -> None:
    pvc.define()
    path = schema.domain_key(UUID, key) if key else schema.domain(UUID)
    if garbage is not None:
        pvc.server.put(path, garbage)
    elif key:
        pvc.server.delete_tree(path)
    for command in (("vm", "list"), ("vm", "info", UUID, "-l"), ("vm", "list", "-f", "json"), ("node", "list"), ("vm", "start", UUID)):
        code, out, err = pvc(*command)
        assert code in (0, 4) and "\x1b" not in out + err and "\xff" not in out


@pytest.mark.parametrize("garbage", [b"\xff", b"\x1b[31m", b"lots", None])
@pytest.mark.parametrize("key", ["daemonstate", "domainstate", "memfree", "staticdata", "runningdomains", "domainscount", "timing"])
def test_garbage_in_a_nodes_keys(pvc: Pvc, key: str, garbage: bytes | None) -> None:
    path = schema.node_key("hv1", key)
    if garbage is None:
        pvc.server.delete_tree(path)
    else:
        pvc.server.put(path, garbage)
    for command in (("node", "list"), ("node", "info", "hv1", "-l"), ("node", "list", "-f", "json")):
        code, out, _ = pvc(*command)
        assert code == 0 and "\x1b" not in out


def test_init_asks_and_refuses_a_living_cluster(pvc: Pvc, monkeypatch: pytest.MonkeyPatch) -> None:
    pvc.define()
    code, _, err = pvc("init")
    assert code == 4 and "--yes" in err and pvc.server.children(schema.DOMAINS) == [UUID]
    reads = iter(range(1000))
    original = FakeZooKeeper.read_many

    def beating(self: FakeZooKeeper, paths: Any) -> Any:
        wanted = list(paths)
        if any(path.endswith("keepalive") for path in wanted):
            pvc.server.put(schema.node_key("hv2", "keepalive"), str(next(reads)))
        return original(self, wanted)
    monkeypatch.setattr(FakeZooKeeper, "read_many", beating)
    code, _, err = pvc("init", "--yes")
    assert code == 4 and "hv2" in err and "--force" in err and pvc.server.children(schema.DOMAINS) == [UUID]
    assert pvc("init", "--yes", "--force")[0] == 0
    assert pvc.server.children(schema.DOMAINS) == [] and pvc.server.children(schema.FENCES) == ["hv1", "hv2", "hv3"]


def test_a_dead_cluster_may_be_initialised(pvc: Pvc) -> None:
    for name in ("hv1", "hv2", "hv3"):
        pvc.server.put(schema.node_key(name, "daemonstate"), "stop")
    assert pvc("init", "--yes")[0] == 0 and pvc.server.children(schema.NODES) == []


def test_no_cluster_and_no_zookeeper(pvc: Pvc, monkeypatch: pytest.MonkeyPatch) -> None:
    pvc.server.delete_tree(schema.NODES)
    code, _, err = pvc("node", "list")
    assert code == 5 and "pvc init" in err
    monkeypatch.setattr(FakeZooKeeper, "start", _refuse)
    code, _, err = pvc("node", "list")
    assert code == 5 and "not reachable at zk:2181 (from -z)" in err


def _refuse(_client: FakeZooKeeper, _timeout_s: float) -> None:
    from pvcd.cluster.errors import Unreachable
    raise Unreachable("no")


def test_a_lost_race_is_told(pvc: Pvc, monkeypatch: pytest.MonkeyPatch) -> None:
    pvc.define()
    original = FakeZooKeeper.commit

    def late(self: FakeZooKeeper, changes: Any) -> None:
        if any(change.path == schema.domain_key(UUID, "state") for change in changes):
            pvc.put("state", "failed")
        original(self, changes)
    monkeypatch.setattr(FakeZooKeeper, "commit", late)
    code, _, err = pvc("vm", "start", "web1")
    assert code == 4 and "changed meanwhile to 'failed'" in err


@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_lost_answer_is_told(pvc: Pvc, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """Nobody knows whether it was written; the same order again is right in both cases."""
    pvc.define()
    original = FakeZooKeeper.commit

    def losing(self: FakeZooKeeper, changes: Any) -> None:
        self.lose = lost
        original(self, changes)
    with monkeypatch.context() as patched:
        patched.setattr(FakeZooKeeper, "commit", losing)
        code, _, err = pvc("vm", "start", "web1")
    assert code == 1 and "answer was lost. Look what became of it" in err
    assert pvc.words()[0] == ("stop" if lost == "before" else "start")
    code, out, _ = pvc("vm", "start", "web1")
    assert code == 0 and ("already" in out) == (lost == "after") and pvc.words()[0] == "start"


def test_usage_and_interruption(pvc: Pvc, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pvc("vm", "start")[0] == 2 and pvc("nonsense")[0] == 2 and pvc("vm", "list", "-f", "yaml")[0] == 2
    monkeypatch.setattr(Store, "domains", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, err = pvc("vm", "list")
    assert code == 130 and "goes on" in err


def test_fences_by_hand(pvc: Pvc) -> None:
    assert pvc("node", "fence", "hv2")[0] == 4  # no terminal, no --yes
    assert pvc("node", "confirm-off", "-y", "hv2")[0] == 4
    assert pvc("node", "fence", "-y", "hv9")[0] == 3
    code, out, _ = pvc("node", "fence", "-y", "hv2")
    assert code == 0 and "being fenced" in out and '"forced":true' in (pvc.server.text(schema.fence("hv2")) or "")
    assert pvc("node", "fence", "-y", "hv2")[0] == 4
    assert pvc("node", "confirm-off", "-y", "hv2")[0] == 0
    fence = pvc.server.text(schema.fence("hv2")) or ""
    assert '"phase":"fenced"' in fence and '"method":"confirm"' in fence and "@" in fence
    assert "fenced" in pvc("node", "info", "hv2")[1] and "not checked yet" in pvc("node", "info", "hv2")[1]


def test_nobody_fences_the_last_node(pvc: Pvc) -> None:
    for name in ("hv1", "hv3"):
        pvc.server.put(schema.node_key(name, "daemonstate"), "stop")
    code, _, err = pvc("node", "fence", "-y", "hv2")
    assert code == 4 and "no other node runs" in err


def test_a_node_is_removed_only_when_nothing_needs_it(pvc: Pvc) -> None:
    pvc.define(node="hv1")
    assert pvc("node", "remove", "-y", "hv2")[0] == 4
    for name in ("hv1", "hv2"):
        pvc.server.put(schema.node_key(name, "daemonstate"), "stop")
    code, _, err = pvc("node", "remove", "-y", "hv1")
    assert code == 4 and UUID in err
    in_flight = Claim("hv1", "hv1/0", Operation("op1", OpPhase.RUN, "hv2", "hv2/0"))
    pvc.server.put(schema.claim(UUID), in_flight.encode())
    assert pvc("node", "remove", "-y", "hv2")[0] == 4  # its pvcd is stopped, and the guest may have arrived there
    pvc.server.put(schema.claim(UUID), b"")
    assert pvc("node", "remove", "-y", "hv2")[0] == 0
    assert "hv2" not in pvc.server.children(schema.NODES) and '"phase":"removed"' in (pvc.server.text(schema.fence("hv2")) or "")


def test_maintenance(pvc: Pvc) -> None:
    assert pvc("maintenance", "on", "--for", "soon")[0] == 2
    assert pvc("maintenance", "on", "--for", "2h")[0] == 0
    held = json.loads(pvc.server.text(schema.FENCES) or "")
    assert held["hold"] is True and held["until"].endswith("Z") and "@" in held["by"]
    assert pvc("maintenance", "off")[0] == 0 and json.loads(pvc.server.text(schema.FENCES) or "")["hold"] is False


def test_history_says_who_and_why(pvc: Pvc) -> None:
    pvc.define()
    pvc("vm", "start", "web1")
    found = json.loads(pvc("history", "web1", "-f", "json")[1])
    assert [entry["what"] for entry in found] == ["ordered", "ordered"] and "starts on hv1" in found[-1]["why"] and "@" in found[-1]["who"]


@pytest.mark.parametrize(("option", "variable", "origin"), [("a:1", "b:2", "from -z"), (None, "b:2", "$PVC_ZOOKEEPER"), (None, None, "this host")])
def test_where_the_cluster_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str | None, variable: str | None, origin: str) -> None:
    monkeypatch.setattr(connection, "NODE_CONFIGURATION", str(tmp_path / "none"))
    monkeypatch.setenv("PVC_ZOOKEEPER", variable or "")
    found = connection.place(option)
    assert origin in found.origin and found.hosts == (option or variable or found.hosts)


def test_a_nodes_own_configuration_names_its_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pvcd.conf").write_text("[default]\nzookeeper = z1:2181,z2:2181\nipmi_password = 100%\n")
    monkeypatch.setattr(connection, "NODE_CONFIGURATION", str(tmp_path / "pvcd.conf"))
    monkeypatch.delenv("PVC_ZOOKEEPER", raising=False)
    assert connection.place(None).hosts == "z1:2181,z2:2181"


def test_help_needs_neither_kazoo_nor_lxml() -> None:
    script = ("import sys; sys.path[:0] = ['client-cli', '.']; from pvc.cli import main; main(['-h']); main(['vm', '-h']); "
              "sys.exit(bool({'kazoo', 'lxml', 'libvirt'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True).returncode == 0
