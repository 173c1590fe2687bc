# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What has to be true before this host joins: its name, libvirt, ZooKeeper and what that holds; then it registers. Main thread, at start.

Nothing is written before the marks were compared, and nothing that runs is touched before the registration.
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from . import identity
from .cluster import schema
from .cluster.errors import HypervisorUnknown, Unreachable
from .cluster.records import Timing, decode_hold
from .cluster.store import Store
from .cluster.zk import ZooKeeper
from .config import Config
from .ensemble import Ensemble
from .hypervisor import LibvirtHypervisor
from .machine import Host, Refused, Remembered, recall, refuse_renamed, remember
from .marks import Marks, TakenBack
from .registration import Registration, Start
from .situation import Level
from .troubles import guests_service

PREFLIGHT_S = 15.0
"""How long libvirt, and then ZooKeeper, may take to answer."""
AFTER_WATCH_S = 100.0
"""What may follow the watch for another host of this name: the wait for a late power-off, the first visits, and calls."""


class Ground:
    """`directory` is where this host keeps what it remembers; `utc()` the wall clock as keys hold it; `extend(seconds)` asks
    systemd for so much more time to start.
    """

    def __init__(self, config: Config, host: Host, hypervisor: LibvirtHypervisor, zk: ZooKeeper, store: Store, marks: Marks, ensemble: Ensemble,
                 directory: Path, say: Callable[[Level, str], None], utc: Callable[[], str], extend: Callable[[float], None]) -> None:
        self._config, self._host, self._hypervisor, self._zk, self._store = config, host, hypervisor, zk, store
        self._marks, self._ensemble, self._directory, self._say, self._extend = marks, ensemble, directory, say, extend
        self._remembered = Remembered()
        self.registration = Registration(store, hypervisor, host, utc(), lambda text: say(Level.CRITICAL, text))

    def find_libvirt(self) -> None:
        """This host is who it was, and libvirt answers. Raises WrongIdentity or Refused."""
        self._say(Level.INFO, f"pvcd on {self._host.node}: {identity.static_data()}")
        self._remembered = recall(self._directory, self._host.machine_id)
        refuse_renamed(self._remembered, self._host.node, self._config.named, self._directory)
        try:
            self._hypervisor.start(PREFLIGHT_S)
        except HypervisorUnknown as error:
            raise Refused(f"libvirt does not answer at {self._hypervisor.uri}: {error}. Enable it: set auth_tcp = \"none\" in "
                          "/etc/libvirt/libvirtd.conf, then systemctl enable --now libvirtd-tcp.socket") from error

    def find_zookeeper(self) -> None:
        """ZooKeeper answers, and holds what it had acknowledged. Raises Refused, TakenBack, or what reading raises."""
        self._ensemble.recall()
        try:
            self._zk.start(PREFLIGHT_S)
        except Unreachable as error:
            raise Refused(f"ZooKeeper does not answer at {self._config.zookeeper}: {error}. Look at it: "
                          "systemctl status zookeeper") from error
        if not self._zk.has_root():
            raise Refused(f"ZooKeeper at {self._config.zookeeper} has no {self._config.zookeeper.chroot}: is the path in pvcd.conf right? If the "
                          f"cluster is new: pvc -z {self._config.zookeeper} init")
        self.compare_marks()

    def compare_marks(self) -> None:
        """Before anything is written. Raises TakenBack."""
        try:
            hold = decode_hold(self._marks.look()[schema.FENCES])
        except TakenBack:
            self._marks.warn_others()
            raise
        if hold.restored:
            raise TakenBack(f"{hold.by or '?'} says that ZooKeeper's data was lost or restored from an older copy. {self._marks.way_out}")

    def register(self) -> tuple[Start, int]:
        """Join under this host's name: what to live as, and the version of the fence. Raises what the registration raises."""
        config, boot = self._config, identity.kernel_boot()
        static = {
            "staticdata": identity.static_data(), "ipmihostname": config.ipmi_hostname, "ipmiusername": config.ipmi_username,
            "ipmipassword": config.ipmi_password, "protocol": "0",
            "timing": Timing(config.keepalive_interval, config.fence_intervals).encode().decode()}
        watched_s = self.registration.look()
        if watched_s:
            self._say(Level.INFO, f"{self._host.node} is registered under another boot: watches for {watched_s:g} s whether another host of this "
                                  "name is alive")
            self._extend(watched_s + AFTER_WATCH_S)  # ticks may be long
            threading.Event().wait(watched_s)  # also when told to stop: only a registered node can write `stop`
        start, version = self.registration.run(static, self._remembered.is_other_boot(boot))
        remember(self._directory, self._host, boot)
        return start, version

    def warn(self) -> None:
        """Of what keeps this node from being safe: no BMC, and what libvirt starts by itself at boot, before anybody has looked who may run
        it. Raises what the store and libvirt raise.
        """
        if not self._config.ipmi_username or not self._config.ipmi_password:
            self._say(Level.WARNING, "no IPMI user and password are configured: this node cannot be fenced, and its VMs are not recovered "
                                     "when it dies until an operator confirms that it is off")
        known = self._store.domains()
        for domain in self._hypervisor.kept():
            if domain.uuid in known:
                what = ("libvirt starts it by itself at boot, when it may run elsewhere already: virsh autostart --disable" if domain.autostart
                        else "libvirt keeps a definition of its own of it: virsh undefine")
                self._say(Level.WARNING, f"{domain.name}: {what} {domain.name}")
        if guests_service():
            self._say(Level.WARNING, "libvirt-guests is enabled: it stops or suspends VMs behind PVC's back when this host goes down. "
                                     "systemctl disable --now libvirt-guests.service")
