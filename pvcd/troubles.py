# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Collects what is wrong on this host and only a person can put right, for `pvc status`. Display: nothing here decides anything.

Runs on the collector thread, once a tick; asks libvirt for states only, and no guest's monitor.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from .cluster.errors import PVCError
from .cluster.notices import Trouble, encode_troubles
from .environment import Environment
from .instances import Instances
from .local import Guest, Kept, Status

UNITS = Path("/etc/systemd/system")
QEMU_PIDS, PROC = Path("/run/libvirt/qemu"), Path("/proc")
KEPT_IN_MIND_S = 1800.0
"""A start that was refused here is told for so long: the VM runs elsewhere by then, and the next one would come here again."""
HALTED_CODES = {Status.PAUSED: "paused", Status.IO_ERROR: "io-error", Status.STUCK: "not-resumed-here"}


def guests_service(units: Path = UNITS) -> bool:
    """libvirt-guests is enabled on this host, and not masked."""
    unit = "libvirt-guests.service"
    return (units / "multi-user.target.wants" / unit).is_symlink() and (units / unit).resolve() != Path("/dev/null")


def stands_still(name: str, pids: Path = QEMU_PIDS, proc: Path = PROC) -> bool:
    """The guest's QEMU is stopped by a signal, as its process says; libvirt goes on to show it as running."""
    try:
        pid = (pids / f"{name}.pid").read_text().strip()
        stat = (proc / pid / "stat").read_text() if pid.isdigit() else ""
    except (OSError, UnicodeDecodeError):
        return False
    return stat.rpartition(")")[2].split()[:1] in (["T"], ["t"])


class Troubles:
    """`kept()` are the domains that libvirt itself keeps; `still(name)` says that a guest's QEMU is stopped."""

    def __init__(self, env: Environment, instances: Instances, kept: Callable[[], Sequence[Kept]],
                 still: Callable[[str], bool] = stands_still, units: Path = UNITS) -> None:
        self._env, self._instances, self._kept, self._still, self._units = env, instances, kept, still, units

    def told(self, guests: Collection[Guest]) -> str:
        """For the key `troubles`; `guests`: what libvirt has just shown. What it does not answer is left out."""
        return encode_troubles([*self._of_node(), *self._of_guests(guests), *self._of_vms(), *self._of_libvirt()])

    def _of_node(self) -> Iterator[Trouble]:
        if self._env.refuses:
            yield Trouble("refuses", "", self._env.refuses)
        if guests_service(self._units):
            yield Trouble("libvirt-guests")

    def _of_guests(self, guests: Collection[Guest]) -> Iterator[Trouble]:
        held = {uuid: vm for uuid, vm in list(self._instances.domains.items()) if vm.settled_here}
        for guest in guests:
            vm = held.get(guest.uuid)
            if vm is None:
                continue
            if self._still(guest.name):
                yield Trouble("hung", guest.uuid, "its QEMU was stopped by a signal")
            elif vm.slow:
                yield Trouble("hung", guest.uuid, "its QEMU does not answer libvirt")
            elif guest.status in HALTED_CODES and guest.status is vm.local.status:
                yield Trouble(HALTED_CODES[guest.status], guest.uuid)

    def _of_vms(self) -> Iterator[Trouble]:
        now, elsewhere = self._env.clock(), {uuid for uuid, vm in list(self._instances.domains.items()) if not vm.held_here}
        for uuid, why in sorted(self._env.blocked.items()):
            yield Trouble("blocked", uuid, why)
        for uuid, (why, at) in sorted(dict(self._env.refused_starts).items()):
            if uuid in elsewhere and now - at < KEPT_IN_MIND_S:
                yield Trouble("start-refused-here", uuid, why)

    def _of_libvirt(self) -> Iterator[Trouble]:
        try:
            kept = self._kept()
        except PVCError:
            return
        vms = {uuid: vm for uuid, vm in list(self._instances.domains.items()) if vm.known}
        for domain in kept:
            if domain.uuid in vms and (domain.autostart or not vms[domain.uuid].outside):
                yield Trouble("autostart" if domain.autostart else "kept", domain.uuid)
