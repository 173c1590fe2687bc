# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Domain XML → details for people, and a UUID where one is missing. Pure; the only room that imports lxml.

Nothing outside the bytes is read: no entities, no DTD, no network.
"""
from __future__ import annotations

import re
import uuid as uuidlib
from dataclasses import dataclass

from lxml import etree

from pvcd.cluster import definition, schema
from pvcd.cluster.errors import BadDefinition


@dataclass(frozen=True)
class Disk:
    """`type` is disk, cdrom, floppy or lun; `source` a path or a volume, '' for an empty CD-ROM."""

    type: str
    source: str
    device: str
    bus: str


@dataclass(frozen=True)
class Interface:
    """`source`: the bridge, network or device."""

    type: str
    source: str
    mac: str
    model: str


@dataclass(frozen=True)
class Controller:
    type: str
    model: str


@dataclass(frozen=True)
class Details:
    """What `vm info` shows. Texts are '' where the definition says nothing."""

    name: str
    uuid: str
    memory_mib: int
    vcpus: int | None
    topology: str
    description: str = ""
    kind: str = ""
    emulator: str = ""
    arch: str = ""
    machine: str = ""
    features: tuple[str, ...] = ()
    disks: tuple[Disk, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    controllers: tuple[Controller, ...] = ()


def _parsed(raw: bytes) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False)
    try:
        return etree.fromstring(raw, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise BadDefinition(f"The definition is not well-formed XML: {error}.") from error


def with_uuid(raw: bytes) -> tuple[bytes, bool]:
    """The definition with a UUID: as it was if it has one, else with a new one right behind its name, all other bytes kept."""
    try:
        definition.parse(raw)
        return raw, False
    except BadDefinition:
        if len(raw) > schema.XML_LIMIT:
            raise
        root = _parsed(raw)
        if root.tag != "domain" or root.findtext("uuid") is not None:
            raise
    element = f"<uuid>{uuidlib.uuid4()}</uuid>".encode()
    new, count = re.subn(rb"(</name>)(\s*)", lambda match: match[1] + match[2] + element + match[2], raw, count=1)
    if not count:
        raise BadDefinition("The definition has no <name>.")
    return new, True


def details(raw: bytes) -> Details:
    """Everything that is shown of a definition. Raises BadDefinition."""
    identity = definition.parse(raw)
    root = _parsed(raw)
    vcpu = (root.findtext("vcpu") or "").strip()
    found = root.find("os/type")
    topology = root.find("cpu/topology")
    return Details(
        identity.name, identity.uuid, identity.memory_mib, int(vcpu) if vcpu.isdigit() else (None if vcpu else 1),
        "/".join(topology.get(key, "1") for key in ("sockets", "cores", "threads")) if topology is not None else "",
        (root.findtext("description") or "").strip(), root.get("type", ""), (root.findtext("devices/emulator") or "").strip(),
        found.get("arch", "") if found is not None else "", found.get("machine", "") if found is not None else "",
        tuple(str(child.tag) for child in root.find("features")) if root.find("features") is not None else (),
        tuple(_disk(disk) for disk in root.iterfind("devices/disk")),
        tuple(_interface(interface) for interface in root.iterfind("devices/interface")),
        tuple(Controller(c.get("type", ""), c.get("model", "")) for c in root.iterfind("devices/controller")))


def state_not_kept(raw: bytes) -> list[str]:
    """What the VM writes beside its disks and loses, as warnings. PVC's domains are transient, and their files belong to one node."""
    root, found = _parsed(raw), []
    for backend in root.iterfind("devices/tpm/backend[@type='emulator']"):
        kept = backend.get("persistent_state") == "yes"
        what = "is kept on each node for itself" if kept else "is deleted at every stop, restart and recovery"
        found.append(f"Warning: virtual TPM: its state {what}: keys that the guest seals in it (BitLocker, LUKS) are lost"
                     + (" when the VM starts on another node. Put /var/lib/libvirt/swtpm on storage that all nodes share." if kept else
                        ". Set persistent_state='yes' in <backend>, and put /var/lib/libvirt/swtpm on storage that all nodes share."))
    firmware = root.find("os/nvram") is not None or (root.find("os") is not None and root.find("os").get("firmware") == "efi")
    if firmware and not (root.findtext("os/nvram") or root.find("os/nvram/source") is not None):
        found.append("Warning: UEFI variables: libvirt keeps them in a file of the node (/var/lib/libvirt/qemu/nvram): on another node the VM "
                     "starts with new ones. Name a file on storage that all nodes share in <nvram>.")
    return found


def _disk(disk: etree._Element) -> Disk:
    """A CD-ROM without a medium has no source."""
    source, target = disk.find("source"), disk.find("target")
    names = ("file", "dev", "name", "volume", "dir")
    where = next((source.get(name, "") for name in names if source.get(name)), "") if source is not None else ""
    return Disk(disk.get("device", "disk"), where, target.get("dev", "") if target is not None else "",
                target.get("bus", "") if target is not None else "")


def _interface(interface: etree._Element) -> Interface:
    source, mac, model = interface.find("source"), interface.find("mac"), interface.find("model")
    names = ("bridge", "network", "dev", "path")
    where = next((source.get(name, "") for name in names if source.get(name)), "") if source is not None else ""
    return Interface(interface.get("type", ""), where, mac.get("address", "") if mac is not None else "",
                     model.get("type", "") if model is not None else "")


def size(raw: bytes | None) -> tuple[int | None, int | None]:
    """Memory in MiB and number of vCPUs; None where the definition cannot be read."""
    try:
        found = details(raw or b"")
    except BadDefinition:
        return None, None
    return found.memory_mib, found.vcpus
