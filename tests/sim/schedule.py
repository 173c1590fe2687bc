# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Random schedules with faults: a seed is a schedule, and the same seed is the same schedule.

Every seed has its own mix of faults (swarm testing: with everything broken all the time the deep paths are never reached). At any
commit or effect others may come first, or the process may die. Then everything heals, and every VM must be where it belongs. The faults
of `faults.FAULTS` have names: --only leaves all others of them out, --without some, and those of `faults.KNOWN` need --known or --only.

python3 -m sim.schedule --seeds 2000 · --first N · --replay SEED · --lie · --only NAME… · --without NAME… · --known
(with the checkout and its tests/ on PYTHONPATH)
"""
from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection

from pvcd.cluster import fences, requests, schema
from pvcd.cluster.errors import PVCError
from pvcd.cluster.schema import DomainState, FencePhase, VMState
from pvcd.cluster.store import Store
from pvcd.local import Status

from .cluster import Cluster, Daemon
from .fakezk import FakeZooKeeper
from .faults import EVERY, KNOWN, Faults
from .oracles import Outside, Violation

VMS = ("aaaa0000-0000-4000-8000-000000000001", "bbbb0000-0000-4000-8000-000000000002")
STEPS = 700
HEAL_S = 900.0
QUIET_S, QUIET_MOVES, QUIET_TIMES = 30.0, 10, 4
"""At rest, and with a guest that somebody has paused, no more writes than this come in such a time."""
RESTORED_S = 120.0
SHOWN = 60
RESTART_S = 5.0


class Schedule:
    """One seed's world and its dice."""

    def __init__(self, seed: int, lie: bool = False, without: Collection[str] = KNOWN) -> None:
        self.dice = random.Random(seed)
        self.world = Cluster(lies_possible=lie)
        self.world.interrupt, self.world.passes = self._interrupt, self._passes
        self.operator = FakeZooKeeper(self.world.server, "operator")
        self.store = Store(self.operator)
        self.ordered: dict[str, VMState] = {}
        self.count: Counter[str] = Counter()
        self._depth = 0
        self._calm = False
        dice = self.dice
        faults = (self._kill_daemon, self._crash, self._boot, self._link, self._bmc, self._qemu, self._libvirt, self._libvirtd, self._workers,
                  self._lose, self._lag, self._refuse, self._hang, self._session, self._flush, self._command, self._command, self._old_command,
                  self._operator_fences, self._shut_down)
        self.weights = {fault: dice.choice((0, 0.3, 1, 2)) for fault in faults}
        self.weights[self._boot] = 1.5
        self.weights[self._command] += 0.5
        self.rate = dice.choice((0.02, 0.05, 0.1))
        self.stale, self.death = dice.choice((0, 0.02, 0.1, 0.3)), dice.choice((0, 0, 0.002, 0.01))
        self.loss = dice.choice((0.0, 0.05, 0.2, 0.5))
        self.world.fabric.lease_s = dice.choice((0.0, 0.0, 90.0, 300.0))
        self.finish_loss = dice.choice((0.0, 0.0, 0.5))
        self.faults = Faults(seed, self, VMS, without)
        self.faults.prepare()
        for name in self.world.names:
            self.world.start_daemon(name)
        self.world.run(2.0)
        self.store.ensure_roots()  # the dice may have let each daemon die in its registration; then the operator comes first
        for uuid in VMS:
            self.world.define(uuid, dice.choice(self.world.names), memory_mib=dice.choice((512, 5000)))
            self.ordered[uuid] = VMState.START

    # ------------------------------------------------------------------------------------------------------------ steps

    def run(self) -> None:
        self.faults.live = True
        for _ in range(STEPS):
            self.step()
        self.heal()
        self.restored()

    def step(self) -> None:
        self.faults.step()
        dice, world = self.dice, self.world
        roll = dice.random()
        if roll < self.rate:
            chosen = dice.choices(list(self.weights), list(self.weights.values()))[0]
            self.count[chosen.__name__] += 1
            chosen()
        elif roll < 0.45:
            world.pass_time(dice.choice((0.01, 0.1, 0.3, 1.0, 2.0)))
            self._restarts()
            for host in list(world.hosts.values()):
                if host.daemon is not None and dice.random() < 0.8:
                    host.daemon.turn(dice.choice((1, 2, 5)))
        elif roll < 0.6:
            for job in world.fabric.jobs():
                if dice.random() < 0.6:
                    job.broken, job.wakes = job.broken or dice.random() < 0.3, dice.choice((Status.RUNNING, Status.RUNNING, Status.RUNNING, Status.STUCK))
                    lost = dice.random() < (max(self.loss, self.finish_loss) if job.phase == "finish" else self.loss)
                    if job.phase == "confirm" and dice.random() < 0.6:
                        world.fabric.ends(job)
                    else:
                        world.fabric.advance(job, lost, dice.random() < 0.5)
        elif roll < 0.75:
            world.server.deliver(lambda _watch: dice.random() < 0.7)
        else:
            host = world.hosts[dice.choice(world.names)]
            if host.daemon is not None:
                host.daemon.turn(1)

    def _interrupt(self, daemon: Daemon, what: str) -> None:
        """Others come first, or the process dies right here."""
        if self._calm or self._depth >= 3:
            return
        if self.dice.random() < self.death:
            self.world.say(f"{daemon.host.name}: dies before {what}")
            self.count["dies before " + what] += 1
            self.world.stop_daemon(daemon.host.key)
        elif self.dice.random() < self.stale:
            self._others(self.dice.choice((1, 3, 10)), float("inf"))

    def _passes(self, _daemon: Daemon, seconds: float, _what: str) -> None:
        """A call of this daemon takes so long; 0: something comes in between, no more."""
        if self._calm or self._depth >= 3:
            return
        steps = 100 if seconds else self.faults.dice.choice((1, 3, 10))
        self._others(steps, self.world.now + (seconds or float("inf")))

    def _others(self, steps: int, until: float) -> None:
        self._depth += 1
        try:
            for _ in range(steps):
                if self.world.now < until:
                    self.step()
        finally:
            self._depth -= 1

    def _restarts(self) -> None:
        """systemd starts pvcd again; some hosts come back by themselves."""
        for host in list(self.world.hosts.values()):
            down_s = self.world.now - host.down_since
            if host.power and host.daemon is None and down_s > 1.0 and (self.dice.random() < 0.5 or down_s > RESTART_S):
                self.world.start_daemon(host.key)

    # ----------------------------------------------------------------------------------------------------------- faults

    def _host(self) -> str:
        return self.dice.choice(self.world.names)

    def _kill_daemon(self) -> None:
        self.world.stop_daemon(self._host())

    def _crash(self) -> None:
        if self.dice.random() < 0.5:
            name = self._host()
            self.world.say(f"{name}: loses power")
            self.world.power_off(name)

    def _shut_down(self) -> None:
        """In order: pvcd is told first."""
        name = self._host()
        daemon = self.world.hosts[name].daemon
        if daemon is not None and daemon._running and daemon.env.phase is None:
            self.world.say(f"{name}: is shut down")
            self.world.shut_down_host(name)

    def _boot(self) -> None:
        name = self._host()
        if not self.world.hosts[name].power:
            self.world.say(f"{name}: boots")
        self.world.power_on(name)

    def _link(self) -> None:
        zk = self.world.hosts[self._host()].zk
        self.world.say(f"{zk.name}: link {'cut' if zk.connected else 'healed'}")
        (zk.cut if zk.connected else zk.heal)()

    def _way(self) -> None:
        """One node does not reach one controller any more, or a controller takes its time, or both are over."""
        bmcs, name = self.world.bmcs, self._host()
        if bmcs.cut or bmcs.takes_s:
            bmcs.cut.clear()
            bmcs.takes_s.clear()
        elif self.dice.random() < 0.5:
            bmcs.cut.add((self._host(), name))
        else:
            bmcs.takes_s[name] = self.dice.choice((1.0, 6.0, 19.0))

    def _bmc(self) -> None:
        if self.dice.random() < 0.3:
            self._way()
            return
        modes = ("ok", "ok", "dead", "ignore", "wrong", *(("lie",) if self.world.lies_possible else ()))
        name, mode = self._host(), self.dice.choice(modes)
        fence = self.store.view().fence(name)
        # Nobody re-plugs cables in the seconds of a fence; and whose controller it is can only be told once it was recorded.
        known = self.world.server.text(schema.node_key(name, "ipmiguid")) is not None and fence is not None and fence.phase is FencePhase.UP
        if mode != "wrong" or known:
            self.world.hosts[name].bmc = mode

    def _qemu(self) -> None:
        self.world.hosts[self._host()].hypervisor.qemu_dies(self.dice.choice(VMS))

    def _libvirt(self) -> None:
        hypervisor = self.world.hosts[self._host()].hypervisor
        hypervisor.answers = not hypervisor.answers
        hypervisor.late_create = self.dice.random() < 0.3

    def _libvirtd(self) -> None:
        self.world.hosts[self._host()].hypervisor.libvirtd_dies()

    def _workers(self) -> None:
        """All migration workers of a host are busy, or one is free again."""
        hypervisor = self.world.hosts[self._host()].hypervisor
        hypervisor.busy = not hypervisor.busy

    def _lose(self) -> None:
        self.world.hosts[self._host()].zk.lose = self.dice.choice(("before", "after"))

    def _lag(self) -> None:
        self.world.hosts[self._host()].zk.lag(True)

    def _refuse(self) -> None:
        hypervisor = self.world.hosts[self._host()].hypervisor
        hypervisor.unsupported = self.dice.random() < 0.2
        if hypervisor.refuse or hypervisor.refuses_all:
            hypervisor.refuse.clear()
            hypervisor.refuses_all = ""
        elif self.dice.random() < 0.5:
            hypervisor.refuse[self.dice.choice(VMS)] = "no disk"
        else:
            hypervisor.refuses_all = "no bridge"

    def _hang(self) -> None:
        hung, uuid = self.world.hosts[self._host()].hypervisor.hung, self.dice.choice(VMS)
        (hung.discard if uuid in hung else hung.add)(uuid)

    def _session(self) -> None:
        self.world.server.expire(self._host())

    # -------------------------------------------------------------------------------------------------------- operators

    def _flush(self) -> None:
        path = schema.node_key(self._host(), "domainstate")
        if path in self.world.server.nodes:
            self.world.server.put(path, self.dice.choice(("flush", "unflush", "unflush")))

    def flush(self, name: str) -> None:
        if schema.node_key(name, "domainstate") in self.world.server.nodes:
            self.world.server.put(schema.node_key(name, "domainstate"), DomainState.FLUSH.value)

    def _command(self) -> None:
        """Our client: decided on what it reads, applied after the cluster has gone on."""
        uuid, verb = self.dice.choice(VMS), self.dice.choice(("start", "start", "stop", "shutdown", "restart", "move", "migrate", "unmigrate"))
        try:
            record, view = self.store.domain(uuid), self.store.view()
            if verb == "move":
                request = requests.move(record, view, self._host())
            elif verb == "migrate":
                request = requests.migrate(record, view, self._host(), force=True)
            elif verb == "unmigrate":
                request = requests.unmigrate(record, view)
            else:
                request = requests.start(record, view) if verb == "start" else getattr(requests, verb)(record)
            for _ in range(self.dice.choice((0, 0, 5))):
                self.step()
            self.store.apply(request.changes)
        except PVCError:
            return
        self.world.say(f"operator: {request.says}")
        if request.changes:
            words = {"stop": VMState.STOP, "shutdown": VMState.STOP}
            self.ordered[uuid] = words.get(verb, VMState.START if verb != "move" or record.state is VMState.START else self.ordered[uuid])

    def _old_command(self) -> None:
        """0.1's client: unconditional, in one transaction."""
        uuid, target = self.dice.choice(VMS), self._host()
        record = self.store.domain(uuid)
        word = self.dice.choice(("start", "stop", "move", "migrate"))
        self.world.say(f"old client: {word} {uuid[:4]} {target}")
        if not record.exists:
            return  # not defined yet: the client says so
        if word in ("start", "stop"):
            self.world.server.put(schema.domain_key(uuid, "state"), word)
            self.ordered[uuid] = VMState(word)
            return
        running = record.state is VMState.START
        self.world.server.put(schema.domain_key(uuid, "lasthypervisor"), "" if word == "move" else str(record.hypervisor))
        self.world.server.put(schema.domain_key(uuid, "hypervisor"), target)
        if running or word == "migrate":
            self.world.server.put(schema.domain_key(uuid, "state"), "migrate" if running else "start")
            self.ordered[uuid] = VMState.START

    def _operator_fences(self) -> None:
        """A fence by hand, or the operator's word for a machine that is off."""
        name = self._host()
        view = self.store.view()
        fence = view.fence(name)
        if fence is None or self.dice.random() < 0.5:
            return
        host = self.world.hosts[name]
        try:
            if fence.phase is FencePhase.UP and any(view.is_running(other) for other in view.nodes if other != name):
                version = self.store.keepalives([name])[name].version
                self.store.apply(fences.forced(view, name, "operator", version, "now"))
                self.world.say(f"operator: fences {name}")
            elif fence.phase is FencePhase.FENCING and not host.power:
                self.store.apply(fences.proved(view, name, "operator", "confirm", "now"))
                self.world.say(f"operator: confirms that {name} is off")
        except PVCError:
            return

    # ------------------------------------------------------------------------------------------------------------- end

    def heal(self) -> None:
        """No more faults: everything must come to rest where it belongs, and be quiet then."""
        self._calm = True
        world = self.world
        world.say("everything heals")
        world.bmcs.cut.clear()
        world.bmcs.takes_s.clear()
        for host in world.hosts.values():
            host.bmc = "ok"
            host.hypervisor.answers, host.hypervisor.late_create = True, False
            host.hypervisor.refuse.clear()
            host.hypervisor.hung.clear()
            host.hypervisor.refuses_all, host.hypervisor.unsupported = "", False
            host.hypervisor.busy = False
            host.zk.lose = None
            if not host.zk.connected:
                host.zk.heal()
            host.zk.lag(False)
            host.down_since = min(host.down_since, world.now)
            world.power_on(host.name)
        self.faults.heal()
        if self.faults.paused_somewhere():
            world.run(2 * QUIET_S, 0.5)
            self._quiet(QUIET_MOVES)
            self.faults.guests_go_on()
        self._settles()
        if self.faults.one_goes_for_good():
            self._settles()
            self.faults.comes_back()
            self._settles()
        self._quiet(QUIET_MOVES)

    def _settles(self) -> None:
        world = self.world
        deadline = world.now + HEAL_S
        while world.now < deadline:
            world.run(5.0, 0.5)
            self.faults.guests_go_on()
            for host in world.hosts.values():
                world.power_on(host.name)
            wrong = self.unsettled()
            if not wrong:
                return
        raise Violation(f"I2: not at rest {HEAL_S:.0f} s after everything had healed: {wrong}")

    def _quiet(self, most: int) -> None:
        """I14: no two rows, or nodes, undo each other's work without end."""
        for _ in range(QUIET_TIMES):  # work that was still to be done may take one or two of them
            before = self.world.oracles.moves
            self.world.run(QUIET_S, 1.0)
            moves = self.world.oracles.moves - before
            if moves <= most:
                return
        raise Violation(f"I14: {moves} writes in {QUIET_S:.0f} s, and nothing comes of them: {'; '.join(self.world.oracles.lately)}")

    def restored(self) -> None:
        """I15: data that is older than what has happened since is no order: nothing that runs is touched, nothing is started."""
        if not self.faults.restore():
            return
        before = len(self.world.fabric.events)
        self.world.run(RESTORED_S, 0.5)
        events = self.world.fabric.events[before:]
        if events:
            raise Violation(f"I15: ZooKeeper was restored, and then: {events[0][1]}: {events[0][2][:4]} {events[0][3]}")

    def unsettled(self) -> str:
        """What is not as it must be at the end, or ''."""
        return next(filter(None, map(self._vm_unsettled, VMS)), "") or next(filter(None, map(self._node_unsettled, self.world.names)), "")

    def _vm_unsettled(self, uuid: str) -> str:
        state, home, last = (self.world.word(uuid, key) for key in ("state", "hypervisor", "lasthypervisor"))
        running, claim = self.world.fabric.running(uuid), self.world.claim(uuid)
        shown = f"{uuid[:4]} state {state} hypervisor {home} lasthypervisor {last} runs on {running} claim {claim}"
        if state == "start":
            if running != [home] or claim is None or claim.node != home or claim.op is not None:
                return shown
        elif state not in ("stop", "failed") or running or claim is not None:
            return shown
        if last and (last not in self.world.names):
            return shown
        if state != "failed" and state != self.ordered[uuid].value:
            return f"I11: {uuid[:4]} was ordered to {self.ordered[uuid].value} last, and its state is {state}"
        return ""

    def _node_unsettled(self, name: str) -> str:
        """In `run`, its fence up with the incarnation that lives, no flush under way; one that is gone for good: proved dead, and empty."""
        fence, host = self.store.view().fence(name), self.world.hosts[name]
        word, domains = (self.world.server.text(schema.node_key(name, key)) for key in ("daemonstate", "domainstate"))
        if name in self.faults.gone:
            held = [uuid[:4] for uuid in VMS if (claim := self.world.claim(uuid)) is not None and claim.node == name]
            return f"{name} is off for good: {fence}, holds {held}" if held or (fence is not None and fence.phase is FencePhase.UP) else ""
        alive = fence is not None and fence.phase is FencePhase.UP and host.daemon is not None and fence.inc == host.daemon.standing.inc
        bound = any(name in (self.world.word(uuid, "hypervisor"), self.world.word(uuid, "lasthypervisor")) for uuid in VMS)
        bound = bound or "flushes end" not in self.world.oracles.judged
        if word != "run" or not alive or (domains in (DomainState.FLUSH.value, DomainState.UNFLUSH.value) and not bound):
            return f"{name}: daemon {word}, domains {domains}, {fence}"
        return ""


def violation(seed: int, lie: bool = False, prepare: Callable[[Schedule], None] | None = None,
              without: Collection[str] = KNOWN) -> tuple[str, Schedule]:
    """Run one seed; the violated invariant, or ''."""
    schedule = Schedule(seed, lie, without)
    if prepare is not None:
        prepare(schedule)
    try:
        schedule.run()
    except Violation as found:
        return str(found), schedule
    except Outside as end:
        schedule.world.say(f"outside the promises: {end}")
        schedule.count["outside"] += 1
    return "", schedule


def left_out(arguments: argparse.Namespace) -> Collection[str]:
    """Which of the named faults the seeds do without."""
    if arguments.only is not None:
        return EVERY - set(arguments.only)
    return set(arguments.without) | (set() if arguments.known else set(KNOWN))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--replay", type=int)
    parser.add_argument("--lie", action="store_true")
    parser.add_argument("--only", nargs="*", choices=sorted(EVERY))
    parser.add_argument("--without", nargs="*", choices=sorted(EVERY), default=[])
    parser.add_argument("--known", action="store_true", help="with the faults that the product does not survive yet")
    arguments = parser.parse_args()
    without = left_out(arguments)
    if arguments.replay is not None:
        found, schedule = violation(arguments.replay, arguments.lie, without=without)
        print("\n".join(schedule.world.log[-SHOWN:]))
        print(f"seed {arguments.replay}: {found or 'no violation'}; {sorted(schedule.faults.names)} {dict(schedule.count)}")
        return 1 if found else 0
    started, bad, total = time.monotonic(), 0, Counter[str]()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        found, schedule = violation(seed, arguments.lie, without=without)
        total += schedule.count
        if found:
            bad += 1
            print(f"seed {seed}: {found}", flush=True)
    print(f"{arguments.seeds} seeds from {arguments.first}, {bad} violations, {time.monotonic() - started:.0f} s; {dict(total)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
