# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Mutants of what a host does: who it is, how it leaves, what it starts; each takes one guard away."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from pvcd import onward, planner, recovery_plan, registration
from pvcd.attempts import AttemptLog
from pvcd.cluster import avoid, fences, records, schema
from pvcd.cluster.records import ANY, Change, Check, Create, Write
from pvcd.marks import Memory
from pvcd.situation import Attempts, Step, Verb

from .mutant_tools import Mutation, filtered, planned, situated


def boot_is_always_a_proof() -> Any:
    """A host that boots does not ask whether another of its name is alive."""
    @contextmanager
    def both() -> Iterator[None]:
        with mock.patch("pvcd.registration.Registration._refuse_a_living_twin", lambda _self: None), late_twin_is_overwritten():
            yield
    return both()


def late_twin_is_overwritten() -> Any:
    """The registration writes over a keepalive that came after the watch."""
    def keep(change: Change) -> Change:
        registers = isinstance(change, Write) and change.path.endswith("/keepalive") and change.data == b"0"
        return replace(change, version=ANY) if registers and isinstance(change, Write) else change
    return filtered(keep)


def no_marks() -> Any:
    """Nobody notices that ZooKeeper has gone back."""
    return mock.patch("pvcd.marks.taken_back", lambda *_arguments: "")


def no_look_first() -> Any:
    """Workers write on a new connection before anybody has looked what is behind it."""
    return mock.patch("sim.fakezk.FakeZooKeeper.admitted", True)


def marks_end_with_the_process() -> Any:
    """What ZooKeeper has acknowledged is forgotten at a restart."""
    return mock.patch("sim.host.Disk._load", lambda _self: Memory())


def nobody_is_warned() -> Any:
    """A node that sees older data keeps it to itself."""
    return mock.patch("pvcd.marks.Marks.warn_others", lambda _self: None)


def no_marks_of_claims() -> Any:
    """Only the keepalive is a mark: what was written after the last one may get lost."""
    return mock.patch("pvcd.marks.Marks.acknowledged", lambda *_arguments: None)


def no_company() -> Any:
    """A node does not notice that another writes its keepalives."""
    return mock.patch("pvcd.standing.Company.seen", lambda _self, _key: False)


def removal_unchecked() -> Any:
    """A node is removed whatever has become of it since the operator looked."""
    original = fences.removed

    def removed(*arguments: Any) -> tuple[Change, ...]:
        return tuple(replace(c, version=ANY) for c in original(*arguments) if not isinstance(c, Check))  # type: ignore[call-arg]
    return mock.patch.object(fences, "removed", removed)


def removed_is_dead() -> Any:
    """A removed node that comes back is another incarnation, in the same boot too."""
    original = registration.decide

    def decide(fence: records.FenceRecord, boot: str) -> Any:
        found = original(fence, boot)
        return replace(found, inc=f"{boot}/9") if found.rule == "R6" and not found.destroy else found
    return mock.patch.object(registration, "decide", decide)


def autostart_is_a_mystery() -> Any:
    """What libvirt started at boot is taken for a boot that is read wrongly, for ever."""
    return mock.patch("sim.fakehypervisor.FakeHypervisor.starts_by_itself", lambda _self, _uuid: False)


def no_homecoming() -> Any:
    """A node that was shut down stays flushed after its boot."""
    return mock.patch("pvcd.leaving.homecoming", lambda _me, _node: ())


def homecoming_after_a_fence() -> Any:
    """A node that was fenced while it left calls its VMs home as if nothing had happened."""
    return mock.patch("pvcd.registration.Registration._no_departure", lambda _self, _fence: ())


def no_recall() -> Any:
    """An order to go elsewhere stands while the host has no time left for it."""
    return mock.patch.object(planner, "_recalled", lambda s: Step(42, "waits", again_s=1.0))


def starts_while_leaving() -> Any:
    """A host that is being shut down claims and starts what is homed there."""
    return situated(lambda s: replace(s, stopping=False))


def closing_is_not_told() -> Any:
    """What is still here when the time is over is left to the end of the host: its claim stays."""
    return situated(lambda s: replace(s, closing=False))


def waits_for_zookeeper() -> Any:
    """A host that is being shut down waits for ZooKeeper without an end."""
    return mock.patch("pvcd.departure.AWAY_S", float("inf"))


def not_alone() -> Any:
    """Without ZooKeeper no guest is asked to power off."""
    return mock.patch("pvcd.VMInstance.plan_alone", lambda _local, _since, _timeout: Step(42, "waits", again_s=1.0))


def no_departure_in_the_flush() -> Any:
    """A flush that can do nothing more is waited for until the timeout."""
    return mock.patch("pvcd.departure.IDLE_S", float("inf"))


def no_guard_of_strangers() -> Any:
    """What libvirt keeps and nobody ordered is adopted, and obeys its `stop`."""
    return situated(lambda s: replace(s, local=replace(s.local, persistent=False)))


def strangers_are_not_asked_about() -> Any:
    """A VM is started at its home although another node has told that it runs there outside PVC."""
    return mock.patch.object(records.View, "runs_outside", lambda _self, _name, _uuid: False)


def _attempts(change: Callable[[Attempts], Attempts]) -> Any:
    original = AttemptLog.now
    return mock.patch.object(AttemptLog, "now", lambda self, now: change(original(self, now)))


def three_refusals_are_final() -> Any:
    """As before: what libvirt refuses three times is given up."""
    return _attempts(lambda found: replace(found, refused_s=601.0) if found.errors >= 3 else found)


def refusals_are_never_final() -> Any:
    """Tried for ever."""
    return _attempts(lambda found: replace(found, refused_s=min(found.refused_s, 599.0)))


def unsupported_is_tried_again() -> Any:
    """What this host can never do is tried for the whole window."""
    return _attempts(lambda found: replace(found, permanent=found.hopeless))


def never_sent_on() -> Any:
    """A VM that its stand-in cannot start stays there."""
    return mock.patch.object(onward, "stands_in", lambda _record, _node: False)


def sent_on_from_its_home() -> Any:
    """A VM leaves its home because a start fails."""
    return mock.patch.object(onward, "stands_in", lambda _record, _node: True)


def nothing_is_avoided() -> Any:
    """Where it could not be started is not kept."""
    return mock.patch.object(avoid, "noted", lambda uuid, avoided, _name, _reason: Create(schema.avoid(uuid)) if avoided.version == ANY
                             else Write(schema.avoid(uuid), b"", avoided.version))


def recovery_avoids_nothing() -> Any:
    """The janitor sends a VM where it could not be started."""
    original = recovery_plan.plan_recovery
    return mock.patch("pvcd.recovery.plan_recovery", lambda *arguments: original(*arguments[:7]))


def never_forgotten() -> Any:
    """A node is avoided for ever."""
    return mock.patch.object(avoid, "forgotten", lambda _uuid, _avoided: ())


def asked_once() -> Any:
    """The guest is asked to power off once."""
    return planned(lambda s, step: replace(step, verb=Verb.NOTHING, changes=(), again_s=1.0)
                    if step.verb is Verb.SHUT_DOWN and s.timers.shutdown_s is not None else step)


def every_end_is_a_crash() -> Any:
    """A guest that powers itself off counts as one that died."""
    return mock.patch.object(AttemptLog, "quit", AttemptLog.death)


def crashed_goes_at_once() -> Any:
    """Dumps are cut off, and what is to be preserved is destroyed."""
    return planned(lambda s, step: replace(step, verb=Verb.DESTROY, changes=s.gate) if step.row == 36 else step)


OF_STARTS: tuple[Mutation, ...] = (
    three_refusals_are_final, refusals_are_never_final, unsupported_is_tried_again, never_sent_on, sent_on_from_its_home, nothing_is_avoided,
    recovery_avoids_nothing, never_forgotten, asked_once, every_end_is_a_crash, crashed_goes_at_once)
"""Those that the stories of `directed_starts` are about: tried on them first."""

OF_HOSTS: tuple[Mutation, ...] = (
    boot_is_always_a_proof, late_twin_is_overwritten, no_marks, no_look_first, marks_end_with_the_process,
    nobody_is_warned, no_marks_of_claims, no_company, removal_unchecked, removed_is_dead, autostart_is_a_mystery,
    no_homecoming, homecoming_after_a_fence, no_recall, starts_while_leaving, closing_is_not_told,
    waits_for_zookeeper, not_alone, no_departure_in_the_flush, no_guard_of_strangers, strangers_are_not_asked_about)
