# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A cluster of simulated nodes that run the product's own code: one virtual clock, no threads, every wait an appointment.

A visit can be held up right before any of its commits and effects (`interrupt`): what the others do meanwhile comes first, and
the process may die there. So every decision may act on stale knowledge, and every effect may be the last.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pvcd.cluster import schema
from pvcd.cluster.errors import PVCError
from pvcd.cluster.notices import encode_strangers
from pvcd.cluster.records import ANY, Check, Claim, Timing, Value, View, Write, decode_claim, decode_hold
from pvcd.cluster.schema import DaemonState
from pvcd.cluster.store import Store
from pvcd.departure import Limits
from pvcd.environment import Environment
from pvcd.fencing import Fencing
from pvcd.instances import NODES, VIEW, Instances
from pvcd.keepalive import Keepalive
from pvcd.leaving import Leaving, come_home
from pvcd.liveness import Liveness
from pvcd.machine import Host as Machine
from pvcd.machine import Refused, WrongIdentity
from pvcd.marks import TakenBack
from pvcd.questions import Questions
from pvcd.reconciler import Reconciler
from pvcd.registration import Registration, adoptable
from pvcd.situation import Level
from pvcd.standing import Standing
from pvcd.view import ViewCache

from .fakeipmi import Bmcs, FakeIpmi, FakeWorkers
from .fakezk import FakeServer, FakeZooKeeper
from .faulty import FaultyFabric, FaultyHypervisor
from .host import Disk, Host
from .oracles import TICK_S, Oracles, Violation

BUSY = 300
"""More visits than anybody needs at one moment."""
XML = "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>{memory_mib}</memory></domain>"


class Killed(BaseException):
    """The simulated process ends here. No code of the product may catch it."""


@dataclass
class Cluster:
    """`interrupt(daemon, what)` is called before each commit and effect; `log` is what everybody said, newest last."""

    names: tuple[str, ...] = ("a", "b", "c")
    now: float = 1000.0
    log: list[str] = field(default_factory=list)
    interrupt: Callable[[Daemon, str], None] = lambda _daemon, _what: None
    lies_possible: bool = False
    strict: bool = True
    """the stricter invariants; a schedule in which an operator confirms what is not so goes without"""

    def __post_init__(self) -> None:
        self.oracles = Oracles(self)
        self.server = FakeServer(on_commit=self.oracles.committed)
        self.fabric = FaultyFabric(lambda: self.now, on_event=self._event, on_end=self.oracles.ended, on_refusal=self.oracles.was_refused)
        self.passes: Callable[[Daemon, float, str], None] = lambda _daemon, _seconds, _what: None
        """called when a call of a daemon takes its time; what the others do in there comes first"""
        self.hosts: dict[str, Host] = {}
        self.late_offs: list[tuple[float, str]] = []
        self.bmcs = Bmcs()
        self.ids = self.copied = 0
        for name in self.names:
            self.hosts[name] = Host(name, FaultyHypervisor(self.fabric, name), FakeZooKeeper(self.server, name, guarded=True))

    def copy_of(self, name: str) -> Host:
        """A copy of a host is switched on: its name, machine-id and disk, in a machine of its own."""
        key, old = f"{name}2", self.hosts[name]
        made = Host(name, FaultyHypervisor(self.fabric, key), FakeZooKeeper(self.server, key, guarded=True), 77 + self.copied, key=key,
                    mark=old.mark, down_since=self.now)
        self.hosts[key], self.copied = made, self.copied + 1
        return made

    def scrap(self, key: str) -> None:
        """A copy is switched off and goes."""
        self.power_off(key)
        del self.hosts[key], self.fabric.hosts[key], self.server.clients[key]

    def say(self, text: str) -> None:
        self.log.append(f"{self.now:8.2f} {text}")

    def _event(self, host: str, uuid: str) -> None:
        self.say(f"{host}: {uuid[:4]} {self.fabric.events[-1][3]}")
        self.oracles.event(host, uuid)

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

    def start_daemon(self, name: str) -> None:
        """systemd starts pvcd; if it cannot start, it is tried again later."""
        host = self.hosts[name]
        if not host.power or host.daemon is not None or host.refused:
            return
        host.daemon = Daemon(self, host)
        host.daemon.turn()

    def stop_daemon(self, name: str) -> None:
        """The process is gone, at once."""
        host = self.hosts[name]
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

    def shut_down_host(self, name: str) -> None:
        """`systemctl poweroff`: pvcd is told first, and the host goes off when it has ended."""
        daemon = self.hosts[name].daemon
        assert daemon is not None and daemon.env.phase is None
        daemon.leaving.begin()

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
                    self.start_daemon(host.key)
                if host.daemon is not None:
                    host.daemon.turn()


class Daemon:
    """pvcd, wired as `pvcd.daemon` wires it, but turned by hand."""

    def __init__(self, cluster: Cluster, host: Host) -> None:
        self.cluster, self.host = cluster, host
        name = host.name
        self.marks = Disk(host)
        self.store = Store(host.zk, self.marks.acknowledged)
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
        self.keepalive = Keepalive(self.store, self.standing, self.marks, TICK_S, self._clock, self._clock, self._say, self._acknowledged, self._exit,
                                   self._restore, lambda: self.cache.current().nodes.get(name), lambda: None, lambda _reason: None)
        self.liveness = Liveness(name, TICK_S)
        self.questions = Questions(FakeIpmi(cluster, self), self.store, self._clock, lambda: self.due.update(fence=0.0), lambda _name: None, workers=0)
        self.workers = FakeWorkers(self, self.questions)
        self.fencing = Fencing(self.store, self.questions, self.liveness, name, self.standing.actor,
                               self.cache.current, lambda view: view.hold.hold, self._say, self._utc, "reboot", self._new_id())
        self.due = {"leave": 0.0, "keepalive": 0.0, "timer": 0.0, "fence": 0.0, "resync": cluster.now + 60.0}
        self.runs_from = float("inf")
        self.gives_up = cluster.now + 3 * TICK_S
        self.leaving = Leaving(self.env, self.instances, Limits(), lambda: host.zk.connected)
        self._running = False
        self.busy: set[str] = set()

    # ------------------------------------------------------------------------------------------------------- callbacks

    def interrupted(self, what: str) -> None:
        """Right before a commit or effect. If this process has died meanwhile, it goes no further."""
        self._others(lambda: self.cluster.interrupt(self, what))

    def passes(self, seconds: float, what: str) -> None:
        """A call takes so long. If this process has died meanwhile, it goes no further."""
        self._others(lambda: self.cluster.passes(self, seconds, what))

    def _others(self, come_first: Callable[[], None]) -> None:
        try:
            come_first()
        except PVCError as error:  # this process would take it for the answer to its own commit, and go on after its death
            raise RuntimeError("what the others did meanwhile has failed") from error
        if self.host.daemon is not self:
            raise Killed

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
        self.cluster.say(f"{self.host.key} {level.value}: {text}")

    def _report(self, key: tuple[str, str], text: str) -> None:
        raise Violation(f"{self.host.name} {key}: {text}")

    def _acknowledged(self, now: float) -> None:
        self.acknowledged = now
        self.queue.add(VIEW)

    acknowledged: float | None = None
    starts_from: float | None = None

    def _exit(self, reason: str) -> None:
        self.cluster.say(f"{self.host.key}: pvcd exits: {reason}")
        raise Killed

    def _restore(self) -> None:
        actor = self.standing.actor()
        if actor is not None:
            self.registration.rewrite(self.keepalive.daemonstate, actor.mine)

    # ------------------------------------------------------------------------------------------------------------ life

    def look(self) -> None:
        """As `pvcd.daemon.Daemon.start`, up to the watch for another host of this name."""
        name, host = self.host.name, self.host
        hold = decode_hold(self.look_back()[schema.FENCES])
        if hold.restored:
            raise TakenBack(f"{hold.by} says so")
        self.registration = Registration(self.store, host.hypervisor, Machine(name, host.identity, host.machine), self._utc(),
                                         lambda text: self._say(Level.CRITICAL, text))
        self.starts_from = self.cluster.now + self.registration.look()

    def look_back(self) -> Mapping[str, Value]:
        try:
            return self.marks.look()
        except TakenBack:
            self.marks.warn_others()
            raise

    def start(self) -> None:
        """The rest of it, up to `run` or to the wait before it."""
        name, host = self.host.name, self.host
        free = host.hypervisor.free_mib()
        static = {"ipmihostname": self.cluster.bmcs.configured.get(name, name), "ipmiusername": "u", "ipmipassword": "p", "protocol": "0", "memfree": str(free),
                       "timing": Timing(TICK_S, 6).encode().decode()}
        start, version = self.registration.run(static, boot_was_other=True)
        self.standing.inc = start.inc
        self.standing.set_up(version)
        self._write_state(DaemonState.INIT)
        self.runs_from = self.cluster.now + start.wait_s

    def _run(self) -> None:
        come_home(self.env)
        self.cache.refresh()
        self.instances.start()
        for key in (NODES, VIEW, ("domains", "")):
            self.instances.visit(key)
        for uuid in adoptable(self.store, self.host.hypervisor):
            self.instances.visit(("domain", uuid))
        actor = self.standing.actor()
        if actor is None:
            raise Refused("the fence was moved during the start")
        self.store.apply((actor.mine, Write(schema.node_key(self.host.name, "protocol"), str(schema.PROTOCOL_VERSION).encode(), ANY)))
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
                self.cluster.stop_daemon(self.host.key)
            if self.env.phase is not None:
                self.cluster.power_off(self.host.key)  # nothing holds the shutdown of the host up any more

    def _preflight(self) -> None:
        """As in `pvcd.daemon`: without ZooKeeper it waits for a while."""
        if not self.host.zk.connected and self.cluster.now < self.gives_up:
            return
        if self.starts_from is None:
            self._on_main(self.look)
        if self.starts_from is not None and self.cluster.now >= self.starts_from:
            self._on_main(self.start)

    def _on_main(self, step: Callable[[], None]) -> None:
        """A step of the start. What it raises ends the start, and the process: exit status 1."""
        if "main" in self.busy:
            return  # its start is interrupted: others come first
        self.busy.add("main")
        try:
            step()
        except PVCError as error:
            self.cluster.say(f"{self.host.key}: pvcd does not start: {error}")
            self.host.refused = isinstance(error, (WrongIdentity, TakenBack))
            raise Killed from error
        finally:
            self.busy.discard("main")

    def _turn(self, most: int) -> None:
        now = self.cluster.now
        if now >= self.due["keepalive"]:
            self.due["keepalive"] = now + TICK_S
            self.keepalive.leave({"memfree": str(self.host.hypervisor.free_mib())})
            if self.host.hypervisor.answers:
                self.keepalive.leave({"strangers": encode_strangers(self.instances.strangers(self.host.hypervisor.inventory()))})
            self.on_thread("keepalive", self._keep_alive)
            if self.host.daemon is not self:
                raise Killed
            if self.host.hypervisor.answers:
                self.instances.inventory_seen(self.host.hypervisor.inventory())
        if not self._running:
            if now >= self.runs_from:
                self._on_main(self._run)
            return
        if now >= self.due["timer"]:
            self.due["timer"] = now + 1.0
            self.marks.keep()
            self.on_thread("timer", self._observe)
        if now >= self.due["resync"]:
            self.due["resync"] = now + 60.0
            self.instances.resync()
        self.workers.turn(now)
        if self.env.phase is not None and now >= self.due["leave"]:
            self.due["leave"] = now + 1.0
            self.on_thread("main", self._leave)
        self.on_thread("migration", self.host.hypervisor.work)
        if self.instances._lock.locked():
            return  # a visit stands in the middle of it, below us on the stack: the others wait for it
        if self.queue.run_due(most) == BUSY:
            raise Violation(f"{self.host.name}: visits without an end")

    def _leave(self) -> None:
        """As `pvcd.daemon` after the signal: `stop` is the last word, and then the host goes off."""
        if self.host.hypervisor.answers:
            self.instances.inventory_seen(self.host.hypervisor.inventory())
        if self.leaving.turn():
            try:
                self._write_state(DaemonState.STOP)
            except (PVCError, Refused) as error:
                self.cluster.say(f"{self.host.name}: stop is not written: {error}")
            raise Killed

    def _observe(self) -> None:
        if self.acknowledged is not None:
            self.liveness.acknowledged(self.acknowledged)
        try:
            values = self.store.keepalives([name for name in self.instances.nodes if name != self.host.name])
        except PVCError:
            return  # as in `pvcd.daemon`
        self.liveness.observe(self._clock(), {name: value.version for name, value in values.items() if value.data is not None})

    def fence(self) -> None:
        self.due["fence"] = self.cluster.now + 1.0
        self.due["fence"] = self.cluster.now + self.fencing.visit(self.cluster.now)

    def _keep_alive(self) -> None:
        try:
            self.keepalive.round()
        except PVCError:
            return  # as in the keepalive's own loop

    def on_thread(self, name: str, call: Callable[[], None]) -> None:
        """A thread does one thing at a time, also when others come in between. What it does not catch ends it, and then the process."""
        if name in self.busy:
            return
        self.busy.add(name)
        try:
            call()
        except PVCError as error:
            raise Violation(f"{self.host.name}: the thread {name} dies of {type(error).__name__}: {error}") from error
        finally:
            self.busy.discard(name)
