# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The faults beside the protocol that random schedules do, each under a name: what people do to hosts, slow and failing parts, stale data.

Each seed has a random subset of them (swarm testing), drawn with dice of their own, so that a seed without them is the schedule that it was
before they existed. `KNOWN`: those that the product of today does not survive; they are left out unless they are asked for.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from pvcd.cluster import fences, schema
from pvcd.cluster.errors import PVCError
from pvcd.cluster.records import Claim
from pvcd.cluster.schema import DaemonState, DomainState, FencePhase
from pvcd.local import Status

from .cluster import Cluster, Daemon, Killed
from .fakezk import Node
from .faulty import FaultyHypervisor
from .host import Host

if TYPE_CHECKING:
    from .schedule import Schedule

KNOWN: dict[str, str] = {}
"""name → why it is left out today, in one line. A fix that makes the product survive a fault deletes its line."""
CHANCE = 0.3
"""So likely is each fault in a seed."""


class Faults:
    """One seed's faults, and its dice for them."""

    def __init__(self, seed: int, schedule: Schedule, vms: tuple[str, ...], without: Collection[str]) -> None:
        self.dice = random.Random(f"faults {seed}")
        self._schedule, self._vms = schedule, vms
        drawn = [name for name in FAULTS if self.dice.random() < CHANCE]
        self.names = frozenset(name for name in drawn if name not in without)
        schedule.world.oracles.judged = JUDGED - set(without)
        self.rate, self._peek = self.dice.choice((0.01, 0.03, 0.08)), self.dice.choice((0.002, 0.01))
        self._acts = [FAULTS[name] for name in sorted(self.names) if FAULTS[name] is not None]
        self.gone: set[str] = set()
        """machines that stay off until the rest has come to rest without them"""
        self._backup: dict[str, Node] | None = None
        self._backup_in = self.dice.randrange(50, 500)
        self._broken: set[tuple[str, str]] = set()
        """machine, VM: they do not go together"""
        self._twin_until = self._stalled_until = 0.0
        self.live = False
        """from the first step on"""

    @property
    def world(self) -> Cluster:
        return self._schedule.world

    def prepare(self) -> None:
        """Before the first daemon starts."""
        dice, world = self.dice, self.world
        names = dice.sample(world.names, 2)
        if "miswired" in self.names:
            world.bmcs.configured[names[0]] = names[1]
        if "slow reads" in self.names:
            for host in world.hosts.values():
                host.zk.unanswered = lambda host=host: host.daemon.passes(4.0, "read") if host.daemon is not None else None
        if "reads" in self.names:
            for host in world.hosts.values():
                host.zk.before_read = lambda host=host: self._between_reads(host.daemon)

    def _between_reads(self, daemon: Daemon | None) -> None:
        if daemon is not None and self.dice.random() < self._peek:
            daemon.passes(0.0, "read")

    def step(self) -> None:
        """Perhaps one of them, now."""
        if not self.names or not self.live:
            return
        self._backup_in -= 1
        if not self._backup_in and "restored" in self.names:
            self._backup = self.world.server.copy()
        if self.world.now >= self._twin_until:
            self._twin_goes()
        if self.world.fabric.stalled:
            self._link_breaks()
        if self._acts and self.dice.random() < self.rate:
            act = self.dice.choice(self._acts)
            self._schedule.count[act.__name__] += 1
            act(self)

    # ------------------------------------------------------------------------------------------------- libvirt and QEMU

    def _machine(self) -> Host:
        return self.world.hosts[self.dice.choice(self.world.names)]

    def _hypervisor(self) -> FaultyHypervisor:
        return self._machine().hypervisor

    def _vm(self) -> str:
        return self.dice.choice(self._vms)

    def slow_destroy(self) -> None:
        slow = self._hypervisor().slow
        if slow:
            slow.clear()
        else:
            slow[self._vm()] = self.dice.choice((1.0, 4.0, 9.0, 15.0))

    def paused(self) -> None:
        """By a person, by the guest itself (a suspend to memory), or by its disk."""
        uuid = self._vm()
        for host in self.world.hosts.values():
            copy = host.hypervisor.copies.get(uuid)
            if copy is not None and copy.status is Status.RUNNING and uuid not in host.hypervisor.jobs:
                copy.status = self.dice.choice((Status.PAUSED, Status.IO_ERROR))
                host.hypervisor.sick[uuid] = copy.life
                self.world.fabric.say(host.key, uuid, copy.status.value)
            elif host.hypervisor.ails(uuid) and self.dice.random() < 0.7:
                self._goes_on(host, uuid)

    def _goes_on(self, host: Host, uuid: str) -> None:
        host.hypervisor.sick.pop(uuid)
        host.hypervisor.copies[uuid].status = Status.RUNNING
        self.world.fabric.say(host.key, uuid, "resumed by somebody")

    def image_locks(self) -> None:
        """A host loses its power, and the storage keeps its locks for a lease."""
        host = self._machine()
        for uuid in host.hypervisor.copies if host.power else ():
            self.world.fabric.locked[uuid] = self.world.now + self.dice.choice((30.0, 60.0, 90.0, 120.0))
        if host.power and self.dice.random() < 0.5:
            self.world.say(f"{host.key}: loses power, its image locks stay")
            self.world.power_off(host.key)

    def broken_node(self) -> None:
        """One host cannot start one VM, and does not learn it."""
        if not self._broken:
            self._broken = {(self._machine().key, self._vm())}
        self._stays_broken()

    def _stays_broken(self) -> None:
        for key, uuid in self._broken:
            self.world.hosts[key].hypervisor.refuse[uuid] = "Cannot get interface MTU on 'br7': No such device"

    def autostart(self) -> None:
        """A VM came from plain libvirt, which starts it at each boot of its host."""
        host, uuid = self._machine(), self._vm()
        copy = host.hypervisor.copies.get(uuid)
        if copy is not None and not any(other.hypervisor.autostarts for other in self.world.hosts.values()):
            host.hypervisor.autostarts[uuid] = (copy.name, copy.memory_mib)
            copy.persistent = copy.autostart = True

    def cut_in_doubt(self) -> None:
        """A host is flushed, over a slow network; as soon as all its guests are on their way, `_link_breaks`."""
        host = max(self.world.hosts.values(), key=lambda host: len(host.hypervisor.copies))
        if host.hypervisor.copies and not self.world.fabric.stalled:
            self.world.fabric.stalled.add(host.key)
            self._stalled_until = self.world.now + 25.0
            self._schedule.flush(host.name)

    def _link_breaks(self) -> None:
        """The last replies of a host's migrations are lost as it loses its link, and one of the copies hangs."""
        fabric = self.world.fabric
        source = min(fabric.stalled)
        jobs = [job for job in fabric.jobs() if job.source == source]
        if len(jobs) < 2 and self.world.now < self._stalled_until:
            return
        fabric.stalled.clear()
        if len(jobs) < 2:
            return
        for job in jobs:
            for _ in range(4):
                if job.phase in ("prepare", "perform"):
                    fabric.advance(job)
            if job.phase == "finish":
                fabric.advance(job, lost=True, resumed=True)
        self.world.say(f"{source}: the link breaks under {len(jobs)} migrations")
        self.world.hosts[source].zk.cut()
        self.world.hosts[source].bmc = "dead"
        self.world.hosts[source].hypervisor.hung.add(min(job.uuid for job in jobs))

    # ------------------------------------------------------------------------------------------- controllers and paths

    def slow_controller(self) -> None:
        name, slow = self._machine().name, self.world.bmcs.takes_s
        if slow.pop(name, None) is None:
            slow[name] = self.dice.choice((2.0, 8.0, 15.0, 19.0))

    def mute_controller(self) -> None:
        self.world.bmcs.mute.add(self._machine().name)

    def no_way(self) -> None:
        """No route from one node to one controller, or to any of the others'."""
        self.world.bmcs.cut.symmetric_difference_update({(self._machine().name, self._machine().name)})

    def apart(self) -> None:
        """Two nodes do not reach each other; both reach ZooKeeper."""
        self.world.fabric.apart.symmetric_difference_update({frozenset(self.dice.sample(self.world.names, 2))})

    # --------------------------------------------------------------------------------------------------- hosts, people

    def clone(self) -> None:
        """A host is cloned with name, machine-id and configuration, and the clone boots while the original lives."""
        host = self._machine()
        if host.daemon is None or not host.zk.connected or not self.world.hosts.keys() <= set(self.world.names):
            return
        twin = self.world.copy_of(host.name)
        self._twin_until = self.world.now + self.dice.choice((5.0, 30.0, 60.0))
        self.world.say(f"{twin.key} boots")
        self.world.start_daemon(twin.key)

    def _twin_goes(self) -> None:
        for key in self.world.hosts.keys() - set(self.world.names):
            if not self._busy(self.world.hosts[key]):
                self.world.scrap(key)

    def _busy(self, host: Host) -> bool:
        """A call of its daemon stands in the middle, below us on the stack."""
        return host.daemon is not None and bool(host.daemon.busy or host.daemon.queue._running)

    def stop(self) -> None:
        """systemctl stop pvcd; it stays away for a while."""
        host = self._machine()
        daemon = host.daemon
        if daemon is None or not daemon._running or self._busy(host) or daemon.instances.in_flight():
            return
        try:
            daemon._write_state(DaemonState.STOP)
        except PVCError as error:
            self.world.say(f"{host.key}: `stop` could not be written: {error}")
        except Killed:
            return
        self.world.say(f"{host.key}: pvcd is stopped")
        self.world.stop_daemon(host.key)
        host.down_since = self.world.now + self.dice.choice((0.0, 10.0, 60.0))

    def remove(self) -> None:
        """`pvc node remove` as the client does it: looks, asks, and writes when the operator has typed the name."""
        name, store = self._machine().name, self._schedule.store
        view = store.view()
        node, fence = view.nodes.get(name), view.fence(name)
        off = fence is not None and fence.phase in (FencePhase.FENCED, FencePhase.REMOVED)
        if node is None or fence is None or (node.daemonstate is not DaemonState.STOP and not off):
            return
        if any(isinstance(claim.value, Claim) and claim.value.node == name for claim in store.claims().values()):
            return
        changes = fences.removed(node, store.node_key_names(name), view.fences[name], "operator", "now")
        for _ in range(self.dice.choice((0, 10, 40))):
            self._schedule.step()
        try:
            store.apply(changes)
        except PVCError:
            return
        self.world.say(f"operator: removes {name}")

    # -------------------------------------------------------------------------------------------------------- the end

    def heal(self) -> None:
        """Everything but what is asked for afterwards: paused guests, a host that is off for good, and its controller's routes."""
        world = self.world
        self._broken: set[tuple[str, str]] = set()
        """machine, VM: they do not go together"""
        self._twin_until = 0.0
        self._twin_goes()
        bmcs = world.bmcs
        bmcs.takes_s.clear()
        bmcs.mute.clear()
        bmcs.cut.clear()
        world.fabric.apart.clear()
        world.fabric.stalled.clear()
        for name in list(bmcs.configured):
            del bmcs.configured[name]
            world.stop_daemon(name)
            self._confirmed(name)
        for host in world.hosts.values():
            host.hypervisor.slow.clear()
            host.hypervisor.autostarts.clear()
            host.zk.before_read = host.zk.unanswered = None
        self._stays_broken()

    def _confirmed(self, name: str) -> None:
        """A node that an operator fences, and whose configuration names no controller that can prove it: somebody goes there and looks."""
        view = self._schedule.store.view()
        fence = view.fence(name)
        if fence is not None and fence.phase is FencePhase.FENCING and fence.forced:
            self.world.say(f"operator: switches {name} off, and confirms it")
            self.world.power_off(name)
            self._schedule.store.apply(fences.proved(view, name, "operator", "confirm", "now"))

    def one_goes_for_good(self) -> bool:
        """A node in `run` loses its power for good, and another one does not reach its controller. False: not in this seed."""
        world, bmcs = self.world, self.world.bmcs
        if "one stays off" in self.names:
            off, blind = self.dice.sample(world.names, 2)
            world.say(f"{off} loses power for good, and {blind} does not reach its controller")
            world.power_off(off)
            bmcs.cut.add((blind, off))
            self.gone, world.hosts[off].wrecked = {off}, True
            for name in set(world.names) - self.gone:
                if schema.node_key(name, "domainstate") in world.server.nodes:
                    world.server.put(schema.node_key(name, "domainstate"), DomainState.READY.value)
        return bool(self.gone)

    def comes_back(self) -> None:
        """Somebody has repaired it, and the route."""
        for name in self.gone:
            self.world.hosts[name].wrecked = False
        self.gone.clear()
        self.world.bmcs.cut.clear()

    def _ailing(self) -> list[tuple[Host, str]]:
        return [(host, uuid) for host in self.world.hosts.values() for uuid in host.hypervisor.copies if host.hypervisor.ails(uuid)]

    def guests_go_on(self) -> None:
        """Somebody resumes what is paused, and ends what libvirt has started outside PVC, as the messages ask for it."""
        for host, uuid in self._ailing():
            self._goes_on(host, uuid)
        for host in self.world.hosts.values():
            for uuid in sorted(host.hypervisor.autostarted):
                host.hypervisor._remove(uuid, "destroyed by somebody")

    def paused_somewhere(self) -> bool:
        return bool(self._ailing())

    def restore(self) -> bool:
        """All of ZooKeeper's servers go back to a copy from before, with the daemons running or stopped meanwhile. False: nothing was lost."""
        server = self.world.server
        if self._backup is None:
            return False
        now = server.copy()
        lost = [path for path in now if path.startswith((schema.CLAIMS + "/", schema.FENCES + "/"))
                and (path not in self._backup or self._backup[path].data != now[path].data)]
        if not lost:
            return False
        self.world.say(f"ZooKeeper is restored; lost: {lost}")
        stopped = self.dice.random() < 0.5
        for host in self.world.hosts.values() if stopped else ():
            self.world.stop_daemon(host.key)
        server.restore(self._backup)
        self.world.oracles.forget()
        return True


FAULTS: dict[str, Callable[[Faults], None] | None] = {
    "slow destroy": Faults.slow_destroy, "paused guest": Faults.paused, "image locks": Faults.image_locks,
    "broken node": Faults.broken_node, "autostart": Faults.autostart, "cut in doubt": Faults.cut_in_doubt,
    "slow controller": Faults.slow_controller, "mute controller": Faults.mute_controller, "no way": Faults.no_way, "apart": Faults.apart,
    "clone": Faults.clone, "stop": Faults.stop, "remove": Faults.remove,
    "miswired": None, "reads": None, "slow reads": None, "one stays off": None, "restored": None}
"""name → what it does when its turn comes; None: it is there from the beginning, or comes at the end."""
JUDGED = frozenset(("flushes end", "fresh power-off"))
"""Not faults: what is judged in every seed, with a name because the product may not live up to it yet. That a flush ends when nothing is left
to do; that power goes off only while a fence is under way."""
EVERY = frozenset(FAULTS) | JUDGED
