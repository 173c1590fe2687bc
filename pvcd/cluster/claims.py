# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Says who may move `/claims/<uuid>`, as changes: one function per row of the table of claims. Pure.

A claim is the right to run a VM. It passes on by its holder's own transaction, or after proof that the holder is dead, and
claim and migration operation share one key, so that one version arbitrates everything. Every transaction of an acting
node checks its own fence (`mine`): as soon as anybody has moved `/fences/<me>`, none of them commits.

| from | to | by | checks, beside `mine` and the claim's version |
|---|---|---|---|
| '' | {n} | n acquires | state start, hypervisor n |
| '' | {n} | n adopts: it is here, whatever the record says | |
| {S} | ready(D) | D offers | state migrate, hypervisor D, S's protocol 2 |
| ready | null | D or S; S may take the order back with it | (state, hypervisor where it does) |
| ready | run | S, and then it calls libvirt | state, hypervisor, D's daemonstate `run` |
| run | {D in its present life}, given | S: its copy is gone | /fences/D as read, `up` |
| run | {D}, given | D: the whole copy is there, S is proved dead | /fences/S |
| run | null, the order taken back | S: the guest is there, or gone and D cannot have it | state, hypervisor |
| given | null | D: it has been resumed, or nothing of it is there | |
| {n}, no operation, or ready | '' | n: nothing is there, not wanted there | (state when it is written) |
| a dead holder's, any operation | '' | its home, or the janitor | /fences/holder, state, hypervisor; never /fences/D |

/fences/D is never asked for, because a copy at D does not run before D holds the claim. (An operation of protocol 1 is the exception, until
no daemon of it is left: there D runs what has arrived, and takes the claim; a dead holder's is freed only by D or with D off.)
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from . import schema
from .records import FREE, Change, Check, Claim, ClaimRecord, Create, DomainRecord, FenceRecord, Operation, Write
from .schema import OpPhase, VMState


@dataclass(frozen=True)
class Actor:
    """The node that acts: its name, its incarnation, and the version of its fence when it last was `up`."""

    node: str
    inc: str
    fence_version: int

    @property
    def mine(self) -> Check:
        return Check(schema.fence(self.node), self.fence_version)

    def holds(self, claim: Claim) -> bool:
        return claim.node == self.node and claim.inc == self.inc


def as_read(record: DomainRecord, *keys: str) -> list[Change]:
    """Checks that `keys` (state and hypervisor by default) still hold what was read; a key that was absent is left out."""
    return [Check(schema.domain_key(record.uuid, key), record.version(key))
            for key in keys or ("state", "hypervisor") if key in record.versions]


def order(record: DomainRecord, state: VMState | None = None, hypervisor: str | None = None,
          lasthypervisor: str | None = None) -> list[Change]:
    """Writes the given keys at the versions read, and checks `state` and `hypervisor` where they are not written."""
    new = {"state": state and state.value, "hypervisor": hypervisor, "lasthypervisor": lasthypervisor}
    changes: list[Change] = []
    for key, value in new.items():
        path = schema.domain_key(record.uuid, key)
        if value is None:
            changes += as_read(record, key) if key != "lasthypervisor" else []
        elif key in record.versions:
            changes.append(Write(path, value.encode(), record.version(key)))
        else:
            changes.append(Create(path, value.encode()))
    return changes


def holding(me: Actor, uuid: str, claim: ClaimRecord, record: DomainRecord) -> tuple[Change, ...]:
    """The gate: nothing is written; it commits only if everything that was decided on is still so, at the leader."""
    return (me.mine, Check(schema.claim(uuid), claim.version), *as_read(record))


def _set(uuid: str, claim: ClaimRecord, new: Claim | None) -> Change:
    return Write(schema.claim(uuid), new.encode() if new else FREE, claim.version)


def _held(claim: ClaimRecord) -> Claim:
    assert isinstance(claim.value, Claim), "decided on a claim that nobody holds"
    return claim.value


def _phase(claim: ClaimRecord, phase: OpPhase) -> Claim:
    held = _held(claim)
    assert held.op is not None, "decided on an operation that is not there"
    return replace(held, op=replace(held.op, phase=phase))


def acquire(me: Actor, record: DomainRecord, claim: ClaimRecord) -> tuple[Change, ...]:
    """'' → {me}: wanted here; checks state and hypervisor."""
    return (me.mine, *as_read(record), _set(record.uuid, claim, Claim(me.node, me.inc)))


def adopt(me: Actor, uuid: str, claim: ClaimRecord) -> tuple[Change, ...]:
    """'' → {me}: it runs here, whatever the record says."""
    return (me.mine, _set(uuid, claim, Claim(me.node, me.inc)))


def offer(me: Actor, record: DomainRecord, claim: ClaimRecord, op_id: str, speaks: tuple[Change, ...]) -> tuple[Change, ...]:
    """{S} → ready(me): this node has looked and can take the VM. `speaks` checks the protocol that S was seen to speak."""
    op = Operation(op_id, OpPhase.READY, me.node, me.inc)
    return (me.mine, *speaks, *as_read(record), _set(record.uuid, claim, replace(_held(claim), op=op)))


def withdraw(me: Actor, uuid: str, claim: ClaimRecord) -> tuple[Change, ...]:
    """ready → null, by either side."""
    return (me.mine, _set(uuid, claim, replace(_held(claim), op=None)))


def begin(me: Actor, record: DomainRecord, claim: ClaimRecord, runs: tuple[Change, ...]) -> tuple[Change, ...]:
    """ready → run: the start mark; the source calls libvirt after it. `runs` checks that the destination's daemon was not stopped meanwhile."""
    return (me.mine, *runs, *as_read(record), _set(record.uuid, claim, _phase(claim, OpPhase.RUN)))


def hand_over(me: Actor, uuid: str, claim: ClaimRecord, dest_inc: str, alive: tuple[Change, ...]) -> tuple[Change, ...]:
    """run → {dest in its present life, given}: the source's own copy is gone. `alive` checks the destination's fence as it was read, `up`."""
    given = _phase(claim, OpPhase.GIVEN)
    assert given.op is not None
    op = replace(given.op, v=2)
    return (me.mine, *alive, _set(uuid, claim, Claim(op.dest, dest_inc, op)))


def take_running(me: Actor, uuid: str, claim: ClaimRecord) -> tuple[Change, ...]:
    """run of protocol 1 → {me}: the destination runs the guest."""
    return (me.mine, _set(uuid, claim, Claim(me.node, me.inc)))


def landed(me: Actor, uuid: str, claim: ClaimRecord) -> tuple[Change, ...]:
    """given → null: it has been resumed, or nothing of it is here."""
    return (me.mine, _set(uuid, claim, replace(_held(claim), op=None)))


def close(me: Actor, record: DomainRecord, claim: ClaimRecord) -> tuple[Change, ...]:
    """ready, run → null: the guest stays with the source. Takes the order back, or the same migration is tried for ever."""
    held = _held(claim)
    assert held.op is not None
    changes = (me.mine, _set(record.uuid, claim, replace(held, op=None)))
    if record.hypervisor != held.op.dest or record.state not in (VMState.START, VMState.MIGRATE):
        return changes
    return changes + rolled_back(me, record)


def take_back(me: Actor, record: DomainRecord, claim: ClaimRecord) -> tuple[Change, ...]:
    """run → run, with the source as its own destination: nobody else is to have a copy any more, and the order is taken back."""
    held = _held(claim)
    assert held.op is not None
    ordered = record.hypervisor == held.op.dest and record.state in (VMState.START, VMState.MIGRATE)
    return (me.mine, _set(record.uuid, claim, replace(held, op=replace(held.op, dest=me.node, dinc=me.inc))),
            *(rolled_back(me, record) if ordered else ()))


def rolled_back(me: Actor, record: DomainRecord) -> tuple[Change, ...]:
    """The order to go elsewhere is taken back: the VM stays with `me`, its holder."""
    last = "" if record.lasthypervisor == me.node else None
    return tuple(order(record, VMState.START, me.node, last))


def refuse(me: Actor, record: DomainRecord, claim: ClaimRecord) -> tuple[Change, ...]:
    """The destination cannot take the VM: the order is taken back in the holder's favour, without touching the claim."""
    holder = _held(claim).node
    last = "" if record.lasthypervisor == holder else None
    return (me.mine, Check(schema.claim(record.uuid), claim.version), *order(record, VMState.START, holder, last))


def free(me: Actor, record: DomainRecord, claim: ClaimRecord, state: VMState | None = None) -> tuple[Change, ...]:
    """{me} → '': nothing of it is here. With `state` (stop, failed) the word is written in the same transaction."""
    words = order(record, state) if state else as_read(record)
    return (me.mine, *words, _set(record.uuid, claim, None))


def send_on(me: Actor, record: DomainRecord, claim: ClaimRecord, target: str, note: Change) -> tuple[Change, ...]:
    """{me} → '': it could not be started here, and `target` is to try. `note` keeps that in the same transaction (`avoid.noted`)."""
    last = "" if record.lasthypervisor == target else None
    return (me.mine, *order(record, hypervisor=target, lasthypervisor=last), note, _set(record.uuid, claim, None))


def proof(name: str, fence: FenceRecord) -> tuple[Change, ...]:
    """The check of one fence that was read as a proof of death."""
    return (Check(schema.fence(name), fence.version),)


def recover(me: Actor, record: DomainRecord, claim: ClaimRecord, proved: tuple[Change, ...],
            words: list[Change]) -> tuple[Change, ...]:
    """A dead holder's claim → '', with the order that sends the VM to its next home. `proved` checks the fences."""
    path = schema.claim(record.uuid)
    freed = _set(record.uuid, claim, None) if claim.value else Check(path, claim.version)
    return (me.mine, *(check for check in proved if check.path != me.mine.path), *words, freed)
