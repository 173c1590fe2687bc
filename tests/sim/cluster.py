# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A cluster of simulated nodes that run the product's own code: one virtual clock, no threads, every wait an appointment.

A visit can be held up right before any of its commits and effects (`interrupt`): what the others do meanwhile comes first, and
the process may die there. So every decision may act on stale knowledge, and every effect may be the last.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pvcd.cluster import schema
from pvcd.cluster.errors import PVCError
from pvcd.cluster.records import ANY, Check, Claim, Timing, View, Write, decode_claim
from pvcd.cluster.schema import DaemonState
from pvcd.cluster.store import Store
from pvcd.doubt import Doubt
from pvcd.environment import Environment
from pvcd.fencing import Fencing
from pvcd.instances import NODES, VIEW, Instances
from pvcd.keepalive import Keepalive
from pvcd.liveness import Liveness
from pvcd.reconciler import Reconciler
from pvcd.registration import Refused, Registration, adoptable
from pvcd.situation import Level
from pvcd.standing import Standing
from pvcd.view import ViewCache

from .fakezk import FakeServer, FakeZooKeeper
from .faulty import FaultyFabric, FaultyHypervisor, FaultyIpmi
from .oracles import TICK_S, Oracles, Violation

BUSY = 300
"""More visits than anybody needs at one moment."""
XML = "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>{memory_mib}</memory></domain>"


class Killed(BaseException):
    """The simulated process ends here. No code of the product may catch it."""


@dataclass
class Host:
    """One machine: power, boot, libvirt, its controller, and the pvcd that runs on it, if one does. `name` is what it calls itself;
    `machine` tells it from another one of that name.
    """

    name: str
    hypervisor: FaultyHypervisor
    zk: FakeZooKeeper
    boot: int = 1
    power: bool = True
    bmc: str = "ok"
    daemon: Daemon | None = None
    down_since: float = 0.0
    last_keepalive: float = 0.0
    machine: str = ""
    wrecked: bool = False
    """no order to switch it on helps"""

    def __post_init__(self) -> None:
        self.machine = self.machine or self.name

    @property
    def identity(self) -> str:
        """Of its present boot."""
        return f"{self.machine}{self.boot}"


@dataclass
class Cluster:
    """`interrupt(daemon, what)` is called before each commit and effect; `log` is what everybody said, newest last."""

    names: tuple[str, ...] = ("a", "b", "c")
    now: float = 1000.0
    log: list[str] = field(default_factory=list)
    interrupt: Callable[[Daemon, str], None] = lambda _daemon, _what: None
    lies_possible: bool = False

    def __post_init__(self) -> None:
        self.oracles = Oracles(self)
        self.server = FakeServer(on_commit=self.oracles.committed)
        self.fabric = FaultyFabric(lambda: self.now, on_event=self._event)
        self.fabric.apart, self.fabric.stalled, self.fabric.locks = set(), set(), {}
        self.fabric.on_end, self.fabric.on_refusal = self.oracles.ended, self._refused
        self.passes: Callable[[Daemon, float, str], None] = lambda _daemon, _seconds, _what: None
        """called when a call of a daemon takes its time; what the others do in there comes first"""
        self.hosts: dict[str, Host] = {}
        self.late_offs: list[tuple[float, str]] = []
        self.no_way: set[tuple[str, str]] = set()
        self.late: dict[str, float] = {}
        self.mute: set[str] = set()
        self.controller: dict[str, str] = {}
        """node → whose controller its configuration names, where that is not its own"""
        self.ids = 0
        for name in self.names:
            self.add_host(Host(name, FaultyHypervisor(self.fabric, name), FakeZooKeeper(self.server, name)))

    def add_host(self, host: Host) -> None:
        self.hosts[host.machine] = host

    def say(self, text: str) -> None:
        self.log.append(f"{self.now:8.2f} {text}")

    def _event(self, host: str, uuid: str) -> None:
        self.say(f"{host}: {uuid[:4]} {self.fabric.events[-1][3]}")
        self.oracles.event(host, uuid)

    def _refused(self, machine: str, uuid: str, why: str) -> None:
        self.oracles.refused.setdefault((machine, uuid), []).append((self.now, why))

    # ----------------------------------------------------------------------------------------------------------- world

    def define(self, uuid: str, node: str, state: str = "start", memory_mib: int = 512, name: str = "") -> None:
        self.server.put(schema.domain(uuid), name or f"vm{uuid[:4]}")
        xml = XML.format(name=name or f"vm{uuid[:4]}", uuid=uuid, memory_mib=memory_mib)
        for key, value in (("hypervisor", node), ("lasthypervisor", ""), ("xml", xml), ("state", state)):
            self.server.put(schema.domain_key(uuid, key), value)

    def word(self, uuid: str, key: str) -> str | None:
        return self.server.text(schema.domain_key(uuid, key))

    def claim(self, uuid: str) -> Claim | None:
        found = self.server.nodes.get(schema.claim(uuid))
        value = decode_claim(found.data) if found else None
        return value if isinstance(value, Claim) else None

    def start_daemon(self, machine: str) -> None:
        """systemd starts pvcd; if it cannot start, it is tried again later."""
        host = self.hosts[machine]
        if not host.power or host.daemon is not None:
            return
        host.daemon = Daemon(self, host)
        host.daemon.turn()

    def stop_daemon(self, machine: str) -> None:
        """The process is gone, at once."""
        host = self.hosts[machine]
        host.daemon = None
        host.hypervisor.forget_process()
        host.zk.forget()
        host.down_since = self.now

    def power_off(self, name: str) -> None:
        host = self.hosts[name]
        self.stop_daemon(name)
        host.power = False
        host.hypervisor.power_off()

    def power_on(self, name: str) -> None:
        host = self.hosts[name]
        if not host.power and not host.wrecked:
            host.power, host.boot = True, host.boot + 1
            host.hypervisor.power_on()
            host.down_since = self.now

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and let everything come about that comes about by itself."""
        self.now += seconds
        self.fabric.sweep()
        for due, name in [late for late in self.late_offs if late[0] <= self.now]:
            self.late_offs.remove((due, name))
            if self.hosts[name].power:
                self.say(f"{name}: its BMC cuts the power")
                self.power_off(name)

    def run(self, seconds: float, step_s: float = 0.25) -> None:
        """Everybody does what is due, in order, without faults; migrations go on."""
        end = self.now + seconds
        while self.now < end:
            self.pass_time(step_s)
            self.server.deliver()
            for job in self.fabric.jobs():
                self.fabric.advance(job)
            for host in list(self.hosts.values()):
                if host.daemon is None and host.power and self.now - host.down_since > 1.0:
                    self.start_daemon(host.machine)
                if host.daemon is not None:
                    host.daemon.turn()


class Daemon:
    """pvcd, wired as `pvcd.daemon` wires it, but turned by hand."""

    def __init__(self, cluster: Cluster, host: Host) -> None:
        self.cluster, self.host = cluster, host
        name = host.name
        self.store = Store(host.zk)
        host.zk.before_commit = lambda changes: self.interrupted("gate" if all(isinstance(c, Check) for c in changes) else "commit")
        host.hypervisor.before_effect = self.interrupted
        host.hypervisor.passes = self.passes
        host.hypervisor.notify = lambda uuid: self.nudge(("domain", uuid)) if uuid else None
        self.standing = Standing(name)
        self.queue = Reconciler(lambda key: self.instances.visit(key), self._clock, self._report, workers=0)
        self.cache = ViewCache(self.store, self._view_changed)
        self.env = Environment(name, self.store, host.hypervisor, self.standing.actor, self.cache.current, self._clock, self._utc,
                               self._say, self.nudge, self.queue.mark_slow, self._new_id, TICK_S)
        self.instances = Instances(self.env, host.zk, self.cache, self.queue.forget)
        self.keepalive = Keepalive(self.store, self.standing, TICK_S, self._clock, self._clock, self._say, self._acknowledged, self._exit,
                                   self._restore, lambda: self.cache.current().nodes.get(name), lambda: None)
        self.liveness = Liveness(name, TICK_S)
        self.fencing = Fencing(self.store, FaultyIpmi(cluster, self), self.liveness, name, self.standing.actor,  # type: ignore[arg-type]
                               self.cache.current, lambda view: view.hold.hold, self._say, self._utc, "reboot", self._new_id())
        self.due = {"doubt": 0.0, "keepalive": 0.0, "timer": 0.0, "fence": 0.0, "resync": cluster.now + 60.0}
        self.runs_from = float("inf")
        self.doubt, self.gives_up, self.failed = Doubt(host.hypervisor, TICK_S, self._say), cluster.now + 3 * TICK_S, False
        self._running = False
        self._busy: set[str] = set()

    # ------------------------------------------------------------------------------------------------------- callbacks

    def interrupted(self, what: str) -> None:
        """Right before a commit or effect. If this process has died meanwhile, it goes no further."""
        self._others(lambda: self.cluster.interrupt(self, what))

    def _others(self, come_first: Callable[[], None]) -> None:
        try:
            come_first()
        except PVCError as error:  # this process would take it for the answer to its own commit, and go on after its death
            raise RuntimeError("what the others did meanwhile has failed") from error
        if self.host.daemon is not self:
            raise Killed

    def passes(self, seconds: float, what: str) -> None:
        """A call takes so long. If this process has died meanwhile, it goes no further."""
        self._others(lambda: self.cluster.passes(self, seconds, what))

    def nudge(self, key: tuple[str, str], delay_s: float = 0.0) -> None:
        if key == VIEW and not delay_s:
            self.due["keepalive"] = 0.0
        if delay_s:
            self.queue.add_after(key, delay_s)
        else:
            self.queue.add(key)

    def _view_changed(self, names: list[str]) -> None:
        self.instances.view_changed(names)
        self.due["fence"] = 0.0

    def _clock(self) -> float:
        return self.cluster.now

    def _utc(self) -> str:
        return f"t{self.cluster.now:.0f}"

    def _new_id(self) -> str:
        self.cluster.ids += 1
        return f"op{self.cluster.ids}"

    def _say(self, level: Level, text: str) -> None:
        self.cluster.say(f"{self.host.name} {level.value}: {text}")

    def _report(self, key: tuple[str, str], text: str) -> None:
        raise Violation(f"{self.host.name} {key}: {text}")

    def _acknowledged(self, now: float) -> None:
        self.acknowledged = now
        self.queue.add(VIEW)

    acknowledged: float | None = None

    def _exit(self, reason: str) -> None:
        self.cluster.say(f"{self.host.name}: pvcd exits: {reason}")
        raise Killed

    def _restore(self) -> None:
        actor = self.standing.actor()
        if actor is not None:
            self.registration.rewrite(self.keepalive.daemonstate, actor.mine)

    # ------------------------------------------------------------------------------------------------------------ life

    def start(self) -> None:
        """As `pvcd.daemon.Daemon.start`, up to `run` or to the wait before it."""
        name, host = self.host.name, self.host
        free = host.hypervisor.free_mib()
        static = {"ipmihostname": self.cluster.controller.get(name, name), "ipmiusername": "u", "ipmipassword": "p", "protocol": "0", "memfree": str(free),
                       "timing": Timing(TICK_S, 6).encode().decode()}
        self.registration = Registration(self.store, host.hypervisor, name, host.identity, f"machine {name}", self._utc())
        start, version = self.registration.run(static)
        self.standing.inc = start.inc
        self.standing.set_up(version)
        self._write_state(DaemonState.INIT)
        self.runs_from = self.cluster.now + start.wait_s

    def _run(self) -> None:
        self.cache.refresh()
        self.instances.start()
        for key in (NODES, VIEW, ("domains", "")):
            self.instances.visit(key)
        for uuid in adoptable(self.store, self.host.hypervisor):
            self.instances.visit(("domain", uuid))
        actor = self.standing.actor()
        if actor is None:
            raise Refused("the fence was moved during the start")
        self.store.apply((actor.mine, Write(schema.node_key(self.host.name, "protocol"), b"1", ANY)))
        self.keepalive.daemonstate = DaemonState.RUN
        self._write_state(DaemonState.RUN)
        self.cache.refresh()
        self._running = True

    def _write_state(self, word: DaemonState) -> None:
        actor = self.standing.actor()
        if actor is None:
            raise Refused("the fence was moved during the start")
        self.store.apply((actor.mine, Write(schema.node_key(self.host.name, "daemonstate"), word.value.encode(), ANY)))

    def view(self) -> View:
        return self.cache.current()

    def turn(self, most: int = BUSY) -> None:
        """Do what is due; a process that dies or has to end is gone afterwards."""
        try:
            self._turn(most) if self.standing.inc else self._preflight()
        except Killed:
            if self.host.daemon is self:
                self.cluster.stop_daemon(self.host.machine)

    def _preflight(self) -> None:
        """As in `pvcd.daemon`: without ZooKeeper it waits for a while, and looks for copies in doubt."""
        if "main" in self._busy:
            return  # its start is interrupted: others come first
        self._watch_doubt()
        if self.failed:
            self._outlast_doubt()
        elif self.host.zk.connected or self.cluster.now >= self.gives_up:
            self._on_main(self.start)

    def _on_main(self, step: Callable[[], None]) -> None:
        """A step of the start. What it raises ends the start, and the process: exit status 1, as soon as no copy is in doubt."""
        if "main" in self._busy:
            return
        self._busy.add("main")
        try:
            step()
        except PVCError as error:
            self.cluster.say(f"{self.host.name}: pvcd does not start: {error}")
            self.failed = True
        finally:
            self._busy.discard("main")

    def _outlast_doubt(self) -> None:
        if not self.doubt.pending:
            raise Killed

    def _watch_doubt(self) -> None:
        if self.cluster.now >= self.due["doubt"]:
            self.due["doubt"] = self.cluster.now + 1.0
            linked = self.host.zk.connected and self.standing.actor() is not None
            self._on_thread("doubt", lambda: self.doubt.look(self.cluster.now, linked, self.acknowledged))

    def _turn(self, most: int) -> None:
        now = self.cluster.now
        self._watch_doubt()
        if now >= self.due["keepalive"]:
            self.due["keepalive"] = now + TICK_S
            self.keepalive.leave({"memfree": str(self.host.hypervisor.free_mib())})
            self._on_thread("keepalive", self._keep_alive)
            if self.host.daemon is not self:
                raise Killed
            if self.host.hypervisor.answers:
                self.instances.inventory_seen(self.host.hypervisor.inventory())
        if self.failed:
            return self._outlast_doubt()
        if not self._running:
            if now >= self.runs_from:
                self._on_main(self._run)
            return None
        if now >= self.due["timer"]:
            self.due["timer"] = now + 1.0
            self._on_thread("timer", self._observe)
        if now >= self.due["resync"]:
            self.due["resync"] = now + 60.0
            self.instances.resync()
        if now >= self.due["fence"]:
            self.due["fence"] = now + 1.0
            self._on_thread("fence", self._fence)
        if self.instances._lock.locked():
            return None  # a visit stands in the middle of it, below us on the stack: the others wait for it
        if self.queue.run_due(most) == BUSY:
            raise Violation(f"{self.host.name}: visits without an end")
        return None

    def _observe(self) -> None:
        if self.acknowledged is not None:
            self.liveness.acknowledged(self.acknowledged)
        try:
            values = self.store.keepalives([name for name in self.instances.nodes if name != self.host.name])
        except PVCError:
            return  # as in `pvcd.daemon`
        self.liveness.observe(self._clock(), {name: value.version for name, value in values.items() if value.data is not None})

    def _fence(self) -> None:
        self.due["fence"] = self.cluster.now + self.fencing.visit(self.cluster.now)

    def _keep_alive(self) -> None:
        try:
            self.keepalive.round()
        except PVCError:
            return  # as in the keepalive's own loop

    def _on_thread(self, name: str, call: Callable[[], None]) -> None:
        """A thread does one thing at a time, also when others come in between. What it does not catch ends it, and then the process."""
        if name in self._busy:
            return
        self._busy.add(name)
        try:
            call()
        except PVCError as error:
            raise Violation(f"{self.host.name}: the thread {name} dies of {type(error).__name__}: {error}") from error
        finally:
            self._busy.discard(name)
