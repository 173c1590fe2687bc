# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Dry runs, `modify`, schema checks, `console` and completion, in-process."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from client import OTHER, UUID, XML, Pvc

from pvc import completion, console, validation
from pvcd.cluster import schema, zk
from pvcd.cluster.errors import BadDefinition
from pvcd.cluster.records import Claim

ROOT = Path(__file__).resolve().parents[2]
NEW = XML.format(name="web1", uuid=UUID).replace("<vcpu>2</vcpu>", "<vcpu>4</vcpu>")


def runs_on(pvc: Pvc, node: str, uuid: str = UUID) -> None:
    pvc.put("state", "start", uuid)
    pvc.server.put(schema.claim(uuid), Claim(node, f"{node}/0").encode())


def test_a_dry_flush_says_where_each_vm_would_go_and_writes_nothing(pvc: Pvc) -> None:
    pvc.define()
    pvc.define("web2", OTHER)
    runs_on(pvc, "hv1")
    runs_on(pvc, "hv1", OTHER)
    pvc.put("xml", XML.format(name="web2", uuid=OTHER).replace("512", "9000"), OTHER)
    code, out, _ = pvc("node", "flush", "hv1", "--dry-run", "-f", "json")
    found = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and found["web1"]["to"] == "hv2" and "2488 MiB left" in found["web1"]["why"]
    assert found["web2"]["to"] == "" and "blocked: hv2: needs 9000 MiB" in found["web2"]["why"]
    assert pvc.server.text(schema.node_key("hv1", "domainstate")) == "ready" and pvc.words() == ("start", "hv1", "")


def test_a_dry_migration_says_why(pvc: Pvc) -> None:
    pvc.define()
    runs_on(pvc, "hv1")
    code, out, _ = pvc("vm", "migrate", "web1", "--dry-run")
    assert code == 0 and "to hv2" in out and "most free memory" in out and "Nothing was done" in out and pvc.words() == ("start", "hv1", "")


def test_modify_writes_what_was_edited_at_the_version_that_was_read(pvc: Pvc) -> None:
    pvc.define()
    code, out, _ = pvc("vm", "modify", "web1", "-", stdin=NEW)
    assert code == 0 and "+" in out and "<vcpu>4</vcpu>" in out and pvc("vm", "dump", "web1")[1] == NEW
    assert pvc("vm", "modify", "web1", "-", stdin=NEW)[1] == "The definition is as it was.\n"
    renamed = NEW.replace("<name>web1</name>", "<name>web9</name>")
    assert pvc("vm", "modify", "web1", "-", stdin=renamed)[0] == 0 and pvc.server.text(schema.domain(UUID)) == "web9"


def test_modify_makes_no_other_vm_and_takes_no_name_twice(pvc: Pvc) -> None:
    pvc.define()
    pvc.define("web2", OTHER)
    for text, code in ((NEW.replace(UUID, "31111111-2222-4333-8444-555555555555"), 4), (NEW.replace("web1", "web2"), 4), ("<domain", 1)):
        assert pvc("vm", "modify", "web1", "-", stdin=text)[0] == code
    assert pvc("vm", "modify", "web1")[0] == 4  # no terminal
    assert pvc("vm", "dump", "web1")[1] == XML.format(name="web1", uuid=UUID)


def test_the_second_of_two_editors_is_told_and_keeps_the_text(pvc: Pvc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pvc import edit
    pvc.define()

    def edited(_before: bytes) -> bytes:
        pvc.put("xml", NEW.replace("<vcpu>4", "<vcpu>8"))  # somebody else is quicker
        return NEW.encode()
    monkeypatch.setattr(edit, "_edited", edited)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, _, err = pvc("vm", "modify", "web1", "-y")
    assert code == 4 and "changed meanwhile" in err and "Your text is kept in" in err
    assert [path.read_text() for path in tmp_path.iterdir()] == [NEW] and "<vcpu>8" in pvc("vm", "dump", "web1")[1]


@pytest.mark.skipif(not validation.is_available(), reason="libvirt's schema comes with libvirt0")
@pytest.mark.parametrize(("old", "new", "said"), [
    ("<vcpu>2</vcpu>", "<vcpu>two</vcpu>", "<vcpu>"), ("<os>", "\n\n<oops/><os>", "Line 3: <oops>"),
    ("dev='sda' bus='sata'", "dev='sda' bos='sata'", "attribute bos='sata' of <target>"),
    ("<source bridge='br0'/>", "<source bridge='br0'><x/></source>", "<x>"), ("type='bridge'", "type='brigde'", "Line 1")])
def test_the_schema_names_the_element_and_the_line(pvc: Pvc, old: str, new: str, said: str) -> None:
    bad = XML.format(name="web1", uuid=UUID).replace(old, new)
    with pytest.raises(BadDefinition) as refused:
        validation.check(bad.encode())
    assert said in str(refused.value)
    code, _, err = pvc("vm", "define", "-t", "hv1", "-", stdin=bad)
    assert code == 1 and "--no-validate" in err and pvc.server.children(schema.DOMAINS) == []
    assert pvc("vm", "define", "--no-validate", "-t", "hv1", "-", stdin=bad)[0] == 0


def test_without_libvirts_schema_it_is_said_that_nothing_was_checked(pvc: Pvc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(validation, "SCHEMA", tmp_path / "domain.rng")
    code, _, err = pvc("vm", "define", "-t", "hv1", "-", stdin=XML.format(name="web1", uuid=UUID))
    assert code == 0 and "Not checked" in err and "libvirt0" in err


def test_the_console_is_that_of_the_node_where_it_runs(pvc: Pvc, monkeypatch: pytest.MonkeyPatch) -> None:
    pvc.define()
    assert pvc("vm", "console", "web1")[0] == 4
    runs_on(pvc, "hv2")
    called: list[list[str]] = []
    monkeypatch.setattr(console.os, "execvp", lambda _file, command: called.append(command))
    assert pvc("vm", "console", "web1")[0] == 0 and called == [["virsh", "-c", "qemu+tcp://hv2/system", "console", UUID]]

    def missing(_file: str, _command: list[str]) -> None:
        raise FileNotFoundError
    monkeypatch.setattr(console.os, "execvp", missing)
    code, _, err = pvc("vm", "console", "web1")
    assert code == 1 and "libvirt-clients" in err


def test_tab_completes_live_names(pvc: Pvc, monkeypatch: pytest.MonkeyPatch) -> None:
    pvc.define()
    pvc.define("web2", OTHER)
    from pvc.cli import cli
    context = cli.make_context("pvc", ["vm", "list"])
    option = cli.params[0]
    assert [item.value for item in completion.vms(context, option, "web")] == ["web1", "web2"]
    assert [item.value for item in completion.nodes(context, option, "hv")] == ["hv1", "hv2", "hv3"]

    class Silent:
        def __init__(self, *_arguments: object) -> None:
            raise zk.Unreachable("down")
    monkeypatch.setattr(zk, "ZooKeeper", Silent)
    assert completion.vms(context, option, "") == []


def test_tab_completes_commands_without_a_cluster() -> None:
    done = subprocess.run([sys.executable, "client-cli/pvc.py"], cwd=ROOT, capture_output=True, text=True, timeout=20,
                          env={**os.environ, "_PVC_COMPLETE": "bash_complete", "COMP_WORDS": "pvc node fl", "COMP_CWORD": "2"})
    assert done.stdout.split() == ["plain,flush"], done
