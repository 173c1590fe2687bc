# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Guests that bear witness: each writes `boot=<random id> n=<counter>` to its serial port again and again.

A kernel guest is Debian's cloud kernel and a busybox initramfs, 96 MiB, with the devices that users' guests have; it powers off on ACPI, or
ignores it. A tiny guest is one boot sector, 4 MiB and next to no processor time: hundreds of them run on the lab.
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
"""So often a kernel guest speaks. A silence is measured to this; more often, and four of them fill a core with their own counting."""
TINY_PERIOD_S = 1.0
TINY_MIB = 4

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
    [ -b /dev/vda ] && [ $((n % 5)) = 0 ] && echo "boot=$boot n=$n        " | dd of=/dev/vda bs=512 count=1 conv=sync 2>/dev/null
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
  <on_crash>{on_crash}</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{devices}    <serial type='file'>
      <source path='/srv/shared/serial/{name}' append='on'/>
      <target port='0'/>
    </serial>
    <controller type='usb' model='none'/>
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
{sharing}    </disk>
"""
UNLOCKED = "      <shareable/>\n"
AS_USERS_HAVE_THEM = """    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <memballoon model='virtio'>
      <stats period='5'/>
    </memballoon>
    <panic model='isa'/>
"""
TINY = """    <disk type='file' device='floppy'>
      <driver name='qemu' type='raw'/>
      <source file='/srv/shared/guest/tiny.img'/>
      <target dev='fda' bus='fdc'/>
      <readonly/>
    </disk>
    <memballoon model='none'/>
"""


def guest_uuid(name: str) -> str:
    """The same UUID for the same name in every lab."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.guest.lab"))


def kernel_guest(name: str, memory_mib: int = 96, ignore_acpi: bool = False, disk: bool = False, locked: bool = False, on_crash: str = "destroy") -> str:
    """XML of a guest with Debian's kernel; `disk`: once a second it also writes its line to /srv/shared/disks/NAME.

    `locked`: QEMU locks the image, as it does for most users. A lock hides a second copy from the witness, since it cannot start; so the
    others have none, like guests on Ceph, LVM or iSCSI.
    """
    boot = KERNEL.format(arguments="ignore-acpi" if ignore_acpi else "")
    image = DISK.format(path=f"/srv/shared/disks/{name}", sharing="" if locked else UNLOCKED) if disk or locked else ""
    return XML.format(name=name, uuid=guest_uuid(name), memory_mib=memory_mib, boot=boot, devices=image + AS_USERS_HAVE_THEM, on_crash=on_crash)


def tiny_guest(name: str) -> str:
    """XML of a guest of one boot sector, which all of them read. It speaks every TINY_PERIOD_S and powers off on ACPI."""
    return XML.format(name=name, uuid=guest_uuid(name), memory_mib=TINY_MIB, boot="    <boot dev='fd'/>\n", devices=TINY, on_crash="destroy")


def prepare(shared: Path, cache: Path) -> None:
    """Put kernel, initramfs and boot sector where the nodes find them."""
    guest = shared / "guest"
    for folder in (guest, shared / "serial", shared / "disks"):
        folder.mkdir(parents=True, exist_ok=True)
    kernel = _kernel()
    shutil.copyfile(kernel, guest / "vmlinuz")
    shutil.copyfile(_initramfs(cache, kernel.name.removeprefix("vmlinuz-")), guest / "initrd")
    _boot_sector(guest / "tiny.img")


def _boot_sector(image: Path) -> None:
    """Assemble tiny.s. A QEMU that runs goes on with the file that it has opened."""
    source, made = Path(__file__).parent / "tiny.s", image.with_suffix(".new")
    sh("as", "--32", "-o", f"{made}.o", str(source))
    sh("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "-e", "_start", "--oformat", "binary", "-o", str(made), f"{made}.o")
    Path(f"{made}.o").unlink()
    os.replace(made, image)


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
                                   "drivers/virtio/virtio_pci", "drivers/virtio/virtio_balloon", "drivers/block/virtio_blk")):
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
