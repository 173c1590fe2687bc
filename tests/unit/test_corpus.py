# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Definitions of real systems (`virt-install --print-xml` of Debian's virtinst, `virsh dumpxml` of running guests): every byte is kept."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from client import Pvc
from lxml import etree

from pvc import domainxml, validation
from pvcd.cluster import definition, schema

CORPUS = sorted((Path(__file__).parent / "xml").glob("*.xml"))
UNITS = {None: 2**10, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "GB": 10**9}


def test_there_are_enough_of_them() -> None:
    assert len(CORPUS) >= 28
    everything = "".join(path.read_text() for path in CORPUS)
    for kind in ("hostdev", "loader", "cdrom", "floppy", "type=\"block\"", "type=\"network\"", "unit=", "&#x30B5;", "tpm", "hugepages", "redirdev", "seclabel"):
        assert kind in everything, kind


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_define_info_list_modify_and_dump_keep_every_byte(pvc: Pvc, path: Path) -> None:
    raw = path.read_text()
    root = etree.fromstring(raw.encode())
    name, uuid, memory = root.findtext("name"), root.findtext("uuid"), root.find("memory")
    assert memory is not None and memory.text
    code, _, err = pvc("vm", "define", "-t", "hv1", "-", stdin=raw)
    assert code == 0 and "Not checked" not in err, err
    assert pvc("vm", "dump", str(name))[1] == raw
    found = json.loads(pvc("vm", "info", str(name), "-l", "-f", "json")[1])
    assert (found["name"], found["uuid"]) == (name, uuid)
    assert found["memory_mib"] == -(-int(memory.text) * UNITS[memory.get("unit")] // 2**20)
    assert len(found["disks"]) == len(root.findall("devices/disk")) and len(found["interfaces"]) == len(root.findall("devices/interface"))
    assert [disk["device"] for disk in found["disks"]] == [target.get("dev") for target in root.findall("devices/disk/target")]
    code, page, _ = pvc("vm", "info", str(name), "-l")
    assert code == 0 and str(name) in page and str(name) in pvc("vm", "list")[1]
    changed = re.sub(r"<vcpu([^>]*)>\d+<", r"<vcpu\1>3<", raw, count=1)
    assert changed != raw and pvc("vm", "modify", str(name), "-", "-y", stdin=changed)[0] == 0
    assert pvc("vm", "dump", str(name))[1] == changed and pvc.server.text(schema.domain_key(str(uuid), "xml")) == changed


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_without_a_uuid_one_is_inserted_and_nothing_else(path: Path) -> None:
    raw = path.read_bytes()
    bare = re.sub(rb"\s*<uuid>[^<]*</uuid>", b"", raw, count=1)
    new, added = domainxml.with_uuid(bare)
    uuid = definition.parse(new).uuid
    assert added and re.sub(rb"<uuid>[^<]*</uuid>\s*", b"", new, count=1) == bare and uuid not in raw.decode()


@pytest.mark.skipif(not validation.is_available(), reason="libvirt's schema comes with libvirt0")
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_mistake_in_it_is_named(path: Path) -> None:
    """An element that does not exist, in the middle of the devices."""
    bad = path.read_bytes().replace(b"</devices>", b"<dsik/></devices>")
    with pytest.raises(validation.BadDefinition, match="<dsik>"):
        validation.check(bad)
