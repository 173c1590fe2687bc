# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Guests that bear witness: each writes `boot=<random id> n=<counter>` to its serial port every PERIOD_S.

Debian's cloud kernel and a busybox initramfs, 96 MiB; it powers off on ACPI, or ignores it.
"""
from __future__ import annotations

import hashlib
import os
import platform
import shutil
import uuid
from pathlib import Path

from .host import LabError, sh

PERIOD_S = 0.2
"""So often a guest speaks. A silence is measured to this; more often, and four of them fill a core with their own counting."""

INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /bin /proc /sys /dev /run
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
if ! grep -q ignore-acpi /proc/cmdline; then
    insmod /button.ko; insmod /evdev.ko
    acpid -c /etc/acpi -l /dev/null
fi
for again in 1 2 3; do  # which of them needs which differs between kernels
    for module in /virtio*.ko; do insmod "$module" 2>/dev/null; done
done
read -r boot </proc/sys/kernel/random/uuid
boot=${{boot%%-*}}
n=0
exec >/dev/ttyS0
while :; do
    echo "boot=$boot n=$n"
    [ -b /dev/vda ] && echo "boot=$boot n=$n        " | dd of=/dev/vda bs=512 count=1 conv=sync 2>/dev/null
    n=$((n + 1))
    sleep {PERIOD_S}
done
"""
POWER = "#!/bin/busybox sh\n/bin/busybox poweroff -f\n"

XML = """<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
{boot}  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{disks}    <serial type='file'>
      <source path='/srv/shared/serial/{name}' append='on'/>
      <target port='0'/>
    </serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
KERNEL = """    <kernel>/srv/shared/guest/vmlinuz</kernel>
    <initrd>/srv/shared/guest/initrd</initrd>
    <cmdline>quiet panic=1 {arguments}</cmdline>
"""
DISK = """    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{path}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
"""


def guest_uuid(name: str) -> str:
    """The same UUID for the same name in every lab."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.guest.lab"))


def kernel_guest(name: str, memory_mib: int = 96, ignore_acpi: bool = False, disk: bool = False) -> str:
    """XML of a guest with Debian's kernel; `disk`: it also writes each line to /srv/shared/disks/NAME."""
    boot = KERNEL.format(arguments="ignore-acpi" if ignore_acpi else "")
    disks = DISK.format(path=f"/srv/shared/disks/{name}") if disk else ""
    return XML.format(name=name, uuid=guest_uuid(name), memory_mib=memory_mib, boot=boot, disks=disks)


def prepare(shared: Path, cache: Path) -> None:
    """Put kernel and initramfs where the nodes find them."""
    guest = shared / "guest"
    for folder in (guest, shared / "serial", shared / "disks"):
        folder.mkdir(parents=True, exist_ok=True)
    kernel = _kernel()
    shutil.copyfile(kernel, guest / "vmlinuz")
    shutil.copyfile(_initramfs(cache, kernel.name.removeprefix("vmlinuz-")), guest / "initrd")


def _kernel() -> Path:
    kernels = sorted(Path("/boot").glob("vmlinuz-*-cloud-*"))
    if not kernels:
        raise LabError(f"there is no cloud kernel in /boot for {platform.machine()}; install linux-image-cloud-amd64")
    return kernels[-1]


def _initramfs(cache: Path, release: str) -> Path:
    key = hashlib.sha256((INIT + POWER + release).encode()).hexdigest()[:12]
    target = cache / f"initrd-{key}"
    if target.exists():
        return target
    tree = cache / f"tree-{key}"
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("bin", "etc/acpi/PWRF", "dev"):
        (tree / folder).mkdir(parents=True)
    shutil.copy2("/bin/busybox", tree / "bin/busybox")
    for path, text in (("init", INIT), ("etc/acpi/PWRF/00000080", POWER)):
        (tree / path).write_text(text)
        (tree / path).chmod(0o755)
    modules = Path("/lib/modules") / release / "kernel"
    for number, name in enumerate(("drivers/acpi/button", "drivers/input/evdev", "drivers/virtio/virtio", "drivers/virtio/virtio_ring",
                                   "drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci_modern_dev",
                                   "drivers/virtio/virtio_pci", "drivers/block/virtio_blk")):
        _copy_module(modules / f"{name}.ko", tree, number)
    sh("sh", "-c", f"cd {tree} && find . | cpio -o -H newc --quiet | gzip -1 > {target}.new", timeout_s=60)
    os.replace(f"{target}.new", target)
    shutil.rmtree(tree)
    return target


def _copy_module(source: Path, tree: Path, number: int) -> None:
    """Modules load in the order of their names: virtio's carry their place in it."""
    name = source.name if not source.name.startswith("virtio") else f"virtio{number}.ko"
    if source.exists():
        shutil.copyfile(source, tree / name)
    elif source.with_suffix(".ko.xz").exists():
        sh("sh", "-c", f"xz -dc {source}.xz > {tree / name}")
