# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What the client reads out of a definition: real ones of `virt-install --print-xml`, odd ones, hostile ones."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "client-cli"))
from pvc import domainxml
from pvc.domainxml import Disk, Interface
from pvcd.cluster import definition
from pvcd.cluster.errors import BadDefinition

CORPUS = Path(__file__).parent / "xml"
UUID = "11111111-2222-4333-8444-555555555555"


def xml(inside: str = "", name: str = "web1", memory: str = "<memory>65536</memory>", uuid: str = f"<uuid>{UUID}</uuid>") -> bytes:
    return f"<domain type='kvm'><name>{name}</name>{uuid}{memory}{inside}</domain>".encode()


@pytest.mark.parametrize("name, memory, vcpus, topology, disks, interfaces", [
    ("plain", 512, 2, "1/2/1", 0, 0), ("disks", 2048, 4, "", 3, 2), ("headless", 256, 1, "", 0, 0)])
def test_real_definitions(name: str, memory: int, vcpus: int, topology: str, disks: int, interfaces: int) -> None:
    found = domainxml.details((CORPUS / f"{name}.xml").read_bytes())
    assert (found.memory_mib, found.vcpus, found.topology) == (memory, vcpus, topology)
    assert (len(found.disks), len(found.interfaces)) == (disks, interfaces)


def test_disks_and_interfaces_one_by_one() -> None:
    found = domainxml.details((CORPUS / "disks.xml").read_bytes())
    assert found.disks == (Disk("disk", "/var/lib/libvirt/images/d1.qcow2", "vda", "virtio"),
                           Disk("disk", "/var/lib/libvirt/images/d2.raw", "sda", "scsi"), Disk("cdrom", "", "sdb", "sata"))
    assert found.interfaces[0] == Interface("network", "default", "52:54:00:00:00:01", "virtio")


@pytest.mark.parametrize("memory, mib", [
    ("<memory>1048576</memory>", 1024), ("<memory unit='KiB'>1025</memory>", 2), ("<memory unit='GiB'>2</memory>", 2048),
    ("<memory unit='MB'>1</memory>", 1), ("<memory unit='b'>1</memory>", 1)])
def test_memory_units(memory: str, mib: int) -> None:
    assert domainxml.details(xml(memory=memory)).memory_mib == mib


@pytest.mark.parametrize("inside", ["", "<devices/>", "<devices><disk/><interface/><controller/></devices>", "<cpu/>", "<vcpu/>", "<os/>",
                                    "<devices><disk device='cdrom'><target dev='hda'/></disk></devices>", "<vcpu>x</vcpu>"])
def test_what_is_missing_is_shown_as_missing(inside: str) -> None:
    assert domainxml.details(xml(inside)).name == "web1"


def test_names_are_unicode() -> None:
    assert domainxml.details(xml(name="größe-サーバ")).name == "größe-サーバ"


@pytest.mark.parametrize("raw", [
    b"", b"a", b"<domain>", b"<network><name>x</name></network>", xml(name=""), xml(name="a b"), xml(name="../x"), xml(name="a\u202eb"),
    xml(memory=""), xml(memory="<memory unit='x'>1</memory>"), xml(memory="<memory>-1</memory>"), xml(uuid="<uuid>x</uuid>"),
    xml(uuid="<uuid>{11111111-2222-4333-8444-555555555555}</uuid>"), xml(uuid=f"<uuid>urn:uuid:{UUID}</uuid>"),
    b"<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>" + xml(), b"<!DOCTYPE domain>" + xml(), xml().decode().encode("utf-16"),
    xml() + b"\x00", xml("\xff".encode("latin-1").decode("latin-1")).replace("\xff".encode(), b"\xff"),
    xml("<x>" * 300 + "</x>" * 300),
    xml("<x>" * 100 + "</x>" * 100), xml().replace(b"domain", b"network"), xml("<!--" + "x" * 5 * 2**20 + "-->")], ids=range(23))
def test_what_cannot_be_used_is_refused_in_words(raw: bytes) -> None:
    with pytest.raises(BadDefinition) as caught:
        domainxml.details(raw)
    assert 0 < len(str(caught.value)) < 1000 and "\u202e" not in str(caught.value)


def test_a_definition_with_a_uuid_is_kept_byte_for_byte() -> None:
    raw = (CORPUS / "disks.xml").read_bytes()
    assert domainxml.with_uuid(raw) == (raw, False)


@pytest.mark.parametrize("uuid", ["", "<uuid/>", "<uuid> </uuid>"])
def test_a_definition_without_a_uuid_is_not_a_definition(uuid: str) -> None:
    with pytest.raises(BadDefinition):
        definition.parse(xml(uuid=uuid))


def test_a_missing_uuid_is_inserted_and_nothing_else_changes() -> None:
    raw = xml(uuid="")
    new, added = domainxml.with_uuid(raw)
    uuid = definition.parse(new).uuid
    assert added and new.replace(f"<uuid>{uuid}</uuid>".encode(), b"") == raw


@pytest.mark.parametrize(("part", "told"), [
    ("<devices><tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm></devices>", "persistent_state='yes'"),
    ("<devices><tpm><backend type='emulator' persistent_state='yes'/></tpm></devices>", "on another node"),
    ("<os firmware='efi'><type>hvm</type></os>", "UEFI variables"),
    ("<os><type>hvm</type><nvram template='/t.fd'/></os>", "UEFI variables"),
    ("<os><type>hvm</type><nvram>/shared/web1.fd</nvram></os>", ""),
    ("<devices><tpm><backend type='passthrough'/></tpm></devices>", ""), ("<os><type>hvm</type></os>", ""), ("", "")])
def test_state_that_a_stop_or_another_node_loses_is_told(part: str, told: str) -> None:
    """Finding A19."""
    found = domainxml.state_not_kept(f"<domain><name>a</name>{part}</domain>".encode())
    assert (len(found), told in "".join(found)) == (1 if told else 0, True)
