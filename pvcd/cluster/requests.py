# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Turns every operator verb into a list of changes, or refuses with a reason. Pure.

Each request is one transaction that carries the versions it was decided on: it is applied whole, or the loser of a race is
told. `state`, `hypervisor` and `lasthypervisor` are always written or checked together.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from . import schema
from .claims import as_read, order
from .errors import NotFound, Refusal
from .placement import Placement, Planning, unfit
from .records import (
    ANY,
    FREE,
    Change,
    Check,
    Claim,
    ClaimRecord,
    Create,
    Delete,
    DomainRecord,
    NodeRecord,
    Value,
    View,
    Write,
)
from .schema import DomainState, VMState

IN_TRANSITION = {VMState.MIGRATE: "it is being migrated", VMState.RESTART: "it is being restarted",
                 VMState.SHUTDOWN: "it is being shut down", VMState.DELETE: "it is being deleted"}
STOPPABLE = (VMState.START, VMState.MIGRATE, VMState.RESTART, VMState.SHUTDOWN, VMState.FAILED)
_DONE = {VMState.START: "started", VMState.STOP: "stopped"}


@dataclass(frozen=True)
class Request:
    """`changes` to apply in one transaction; `says` what they will do, for people; empty changes: it is so already."""

    changes: tuple[Change, ...]
    says: str


def known(record: DomainRecord) -> str:
    """How the VM is called in messages. Raises Refusal for a record that is incomplete: nothing can be decided on it."""
    if not record.exists:
        raise NotFound(f"VM '{record.uuid}' does not exist.", "", "pvc vm list shows the VMs.")
    name = record.name if isinstance(record.name, str) and record.name else record.uuid
    if not isinstance(record.state, VMState) or not isinstance(record.hypervisor, str) or not isinstance(record.lasthypervisor, str):
        wrong = [f"{key} is {_shown(value)}" for key, value in
                 (("state", record.state), ("hypervisor", record.hypervisor), ("lasthypervisor", record.lasthypervisor))
                 if not isinstance(value, str)]
        raise Refusal(f"VM '{name}' has keys that cannot be understood: {', '.join(wrong)}.", "",
                      "Write them with zkCli, or undefine the VM.")
    return name


def _shown(value: object) -> str:
    return "missing" if value is None else f"'{value}'"


def _settled(record: DomainRecord, name: str, verb: str) -> None:
    if record.state in IN_TRANSITION:
        assert isinstance(record.state, VMState)
        raise Refusal(f"VM '{name}' cannot be {verb} now:", f"{IN_TRANSITION[record.state]}.", "Wait until that is over; pvc vm info shows it.")


# ------------------------------------------------------------------------------------------------------------------- VMs

@dataclass(frozen=True)
class Names:
    """The name of every VM by its UUID, and the key `/domains` as it was read *before* them.

    Every request that takes a name writes that key at this version, so of two that take a name at the same time one loses and reads the
    names again. (A key per name would be one more place that 0.1's client does not know of.)
    """

    root: Value
    by_uuid: Mapping[str, str]

    def taken(self) -> Write:
        return Write(schema.DOMAINS, self.root.data or b"", self.root.version)


def define(uuid: str, name: str, xml: bytes, node: str, view: View, known: Names, claim: ClaimRecord) -> Request:
    """A new VM, homed on `node`, stopped; or, if `node` holds its claim although its keys are gone, running there as it does.

    Raises Refusal for a UUID or a name that is taken.
    """
    names = known.by_uuid
    _require_node(view, node)
    _refuse_strangers(uuid, name, view)
    if uuid in names:
        raise Refusal(f"VM {uuid} exists already,", f"as '{names[uuid]}'.", "pvc vm undefine it first, or give the new one another UUID.")
    if name in names.values():
        raise Refusal(f"A VM named '{name}' exists already.", "", "Choose another name.")
    if name in names:
        raise Refusal(f"The name '{name}' is the UUID of another VM.", "", "Choose another name.")
    word = VMState.STOP if claim.value is None else _orphans_word(uuid, node, view, claim)
    held = (Check(schema.claim(uuid), claim.version),) if claim.exists else (Create(schema.claim(uuid), FREE),)
    keys = {"state": word.value.encode(), "hypervisor": node.encode(), "lasthypervisor": b"", "xml": xml}
    changes = (Check(schema.node(node), ANY), known.taken(), *held, Create(schema.domain(uuid), name.encode()),
               *(Create(schema.domain_key(uuid, key), data) for key, data in keys.items()))
    if word is VMState.START:
        return Request(changes, f"VM '{name}' ({uuid}) is defined again on {node}, where it runs; it runs on.")
    return Request(changes, f"VM '{name}' ({uuid}) is defined on {node}.")


def _orphans_word(uuid: str, node: str, view: View, claim: ClaimRecord) -> VMState:
    """The state of a VM whose keys are gone and whose claim is held: `start`, so that its holder leaves it running. Raises Refusal."""
    if not isinstance(claim.value, Claim):
        raise Refusal(f"VM {uuid} cannot be defined:", f"its claim cannot be understood ({claim.value}).", f"pvc history {uuid}")
    holder = claim.value.node
    if claim.value.op is not None:
        raise Refusal(f"VM {uuid} cannot be defined now:", f"it is being migrated from {holder} to {claim.value.op.dest}.",
                      "Wait until that is over.")
    if view.is_dead(holder, claim.value.inc) or not view.is_running(holder):
        raise Refusal(f"VM {uuid} cannot be defined now:", f"{holder} holds its claim and does not run.",
                      f"Bring {holder} back, or fence it: pvc node info {holder}")
    if holder != node:
        raise Refusal(f"VM {uuid} cannot be defined on {node}:", f"it runs on {holder}.", f"Define it there: -t {holder}")
    return VMState.START


def _refuse_strangers(uuid: str, name: str, view: View) -> None:
    """A guest of this UUID or name runs outside PVC: its node would have to obey the word `stop`, or could not start the new one."""
    for node in sorted(view.nodes):
        found = view.nodes[node].strangers
        for other, called in found.items() if isinstance(found, Mapping) and view.is_up(node) else ():
            if other == uuid or called == name:
                same = "It" if other == uuid else f"Another VM of that name ({other})"
                raise Refusal(f"VM '{name}' ({uuid}) is not defined:", f"{same} runs on {node} outside PVC.",
                              f"On {node}: virsh shutdown {called}; when it is off: virsh undefine {called}; then define it again.")


def mark_deleted(record: DomainRecord) -> Request:
    """The first half of undefine: its holder destroys it and frees the claim."""
    if not record.exists:
        known(record)
    name = record.name if isinstance(record.name, str) else record.uuid
    if record.state is VMState.DELETE:
        return Request((), f"VM '{name}' is being deleted already.")
    return Request(tuple(order(record, VMState.DELETE)), f"VM '{name}' is being stopped for good.")


def undefine(record: DomainRecord, claim: ClaimRecord, xml_version: int, extra: Mapping[str, int]) -> Request:
    """The second half: the claim is free, so nothing of it runs; the keys go in one transaction. `extra`: other children."""
    name = record.name if isinstance(record.name, str) else record.uuid
    if record.state is not VMState.DELETE:
        raise Refusal(f"VM '{name}' is not undefined:", f"its state became '{_word(record.state)}' meanwhile.", "Try again.")
    if claim.value is not None:
        raise Refusal(f"VM '{name}' still runs or is being stopped.", "", "Try again in a moment.")
    versions = {key: version for key, version in record.versions.items() if key}
    if xml_version != ANY:
        versions["xml"] = xml_version
    deletes = [Delete(schema.domain_key(record.uuid, key), version) for key, version in {**extra, **versions}.items()]
    held = (Check(schema.claim(record.uuid), claim.version),) if claim.exists else ()
    return Request((*held, *deletes, Delete(schema.domain(record.uuid), record.version(""))), f"VM '{name}' is gone.")


def _word(value: object) -> str:
    return value.value if isinstance(value, VMState) else str(value)


def start(record: DomainRecord, view: View) -> Request:
    """From any state but `delete`. A home that an operator has emptied is not filled again by the way."""
    name = known(record)
    if record.state is VMState.START:
        return Request((), f"VM '{name}' is started already.")
    if record.state is VMState.DELETE:
        _settled(record, name, "started")
    if not record.hypervisor:
        raise Refusal(f"VM '{name}' has no home.", "", f"pvc vm move {name} -t NODE gives it one.")
    home = view.nodes.get(str(record.hypervisor))
    if home is not None and home.domainstate is DomainState.FLUSHED:
        raise Refusal(f"VM '{name}' cannot be started:", f"its home {home.name} is flushed.",
                      f"pvc node ready {home.name} makes it take VMs again; pvc vm move {name} gives the VM another home.")
    return Request(tuple(_written(record, VMState.START)), f"VM '{name}' starts on {record.hypervisor}.")


def stop(record: DomainRecord) -> Request:
    """Power off at once."""
    name = known(record)
    if record.state is VMState.STOP:
        return Request((), f"VM '{name}' is stopped already.")
    if record.state not in STOPPABLE:
        _settled(record, name, "stopped")
    return Request(tuple(_written(record, VMState.STOP)), f"VM '{name}' is being stopped (power off).")


def shutdown(record: DomainRecord) -> Request:
    """Ask the guest to power off."""
    name = known(record)
    if record.state is VMState.STOP:
        return Request((), f"VM '{name}' is stopped already.")
    _running(record, name, "shut down")
    return Request(tuple(_written(record, VMState.SHUTDOWN)), f"VM '{name}' is being shut down.")


def restart(record: DomainRecord) -> Request:
    """Shut down, then start again."""
    name = known(record)
    _running(record, name, "restarted")
    return Request(tuple(_written(record, VMState.RESTART)), f"VM '{name}' is being restarted.")


def _running(record: DomainRecord, name: str, verb: str) -> None:
    _settled(record, name, verb)
    if record.state is not VMState.START:
        raise Refusal(f"VM '{name}' cannot be {verb}:", f"its state is '{_word(record.state)}'.", f"pvc vm start {name}")


def _written(record: DomainRecord, state: VMState | None, hypervisor: str | None = None, last: str | None = None) -> list[Change]:
    """The three words, each written or checked."""
    changes = order(record, state, hypervisor, last)
    return changes + (as_read(record, "lasthypervisor") if last is None else [])


def place(record: DomainRecord, view: View, memory_mib: int, reserved: Mapping[str, Iterable[int]]) -> Placement:
    """The node that move and migrate choose without `-t`."""
    return Planning(view, reserved).choose(memory_mib, {str(record.hypervisor)})


def _target(record: DomainRecord, name: str, view: View, placement: Placement | str) -> str:
    if isinstance(placement, Placement):
        if placement.target is None:
            raise Refusal(f"No node can take VM '{name}':", f"{placement.reason}.", "pvc node list shows the nodes.")
        return placement.target
    _require_node(view, placement)
    if placement == record.hypervisor:
        raise Refusal(f"VM '{name}' is on {placement} already.")
    why = unfit(view, placement)
    if why is not None:
        raise Refusal(f"{placement} cannot take VM '{name}':", f"{why}.", "Choose another node: pvc node list")
    return placement


def move(record: DomainRecord, view: View, placement: Placement | str) -> Request:
    """A new permanent home; live if it runs."""
    name = known(record)
    _settled(record, name, "moved")
    target = _target(record, name, view, placement)
    running = record.state is VMState.START
    changes = _written(record, VMState.MIGRATE if running else None, target, "")
    return Request((Check(schema.node(target), ANY), *changes),
                   f"VM '{name}' moves to {target}" + (" live." if running else "; it is not running."))


def migrate(record: DomainRecord, view: View, placement: Placement | str, force: bool) -> Request:
    """A temporary home; `lasthypervisor` remembers where it was. A VM that does not run is started there."""
    name = known(record)
    _settled(record, name, "migrated")
    if record.lasthypervisor and not force:
        raise Refusal(f"VM '{name}' is migrated already,", f"from {record.lasthypervisor}.",
                      f"pvc vm unmigrate {name} sends it back; --force migrates it further.")
    target = _target(record, name, view, placement)
    running = record.state is VMState.START
    changes = _written(record, VMState.MIGRATE if running else VMState.START, target, str(record.hypervisor))
    return Request((Check(schema.node(target), ANY), *changes),
                   f"VM '{name}' migrates to {target}" + (" live." if running else ": it is started there."))


def unmigrate(record: DomainRecord, view: View) -> Request:
    """Back to `lasthypervisor`."""
    name = known(record)
    _settled(record, name, "migrated")
    home = str(record.lasthypervisor)
    if not home:
        raise Refusal(f"VM '{name}' is not migrated;", f"{record.hypervisor} is its home.")
    target = _target(record, name, view, home)
    running = record.state is VMState.START
    # A running VM keeps its `lasthypervisor` until it has arrived: a refused return must not forget the home.
    changes = _written(record, VMState.MIGRATE, target) if running else _written(record, VMState.START, target, "")
    return Request((Check(schema.node(target), ANY), *changes),
                   f"VM '{name}' goes back to {target}" + (" live." if running else ": it is started there."))


def cancel_migration(record: DomainRecord, holder: str | None) -> Request:
    """Take the order back: the VM stays with the node that holds its claim."""
    name = known(record)
    if record.state is not VMState.MIGRATE or holder is None:
        raise Refusal(f"VM '{name}' is not being migrated.")
    last = "" if record.lasthypervisor == holder else None
    return Request(tuple(_written(record, VMState.START, holder, last)), f"VM '{name}' stays on {holder}.")


def modify(record: DomainRecord, xml: bytes, xml_version: int, new_name: str, names: Names) -> Request:
    """A new definition, at the version that was edited; it counts from the next start. Raises Refusal for a name that is taken."""
    name = known(record)
    others = {uuid: other for uuid, other in names.by_uuid.items() if uuid != record.uuid}
    if new_name in others.values():
        raise Refusal(f"There is another VM called '{new_name}'.")
    if new_name in others:
        raise Refusal(f"The name '{new_name}' is the UUID of another VM.", "", "Choose another name.")
    renamed = Write(schema.domain(record.uuid), new_name.encode(), record.version(""))
    named = () if new_name == record.name else (names.taken(), renamed)
    return Request((*as_read(record, "state"), *named, Write(schema.domain_key(record.uuid, "xml"), xml, xml_version)),
                   f"VM '{name}' has its new definition; it counts from the next start.")


# ----------------------------------------------------------------------------------------------------------------- nodes

def _require_node(view: View, name: str) -> NodeRecord:
    node = view.nodes.get(name)
    if node is None or not node.exists:
        raise NotFound(f"Node '{schema.printable(name)}' does not exist.", "", "The nodes are: " + (", ".join(sorted(view.nodes)) or "none") + ".")
    return node


def flush(view: View, name: str) -> Request:
    """Send every VM of a node elsewhere."""
    return _domainstate(view, name, DomainState.FLUSH, {DomainState.FLUSH, DomainState.FLUSHED}, "is flushed: its VMs go elsewhere.")


def ready(view: View, name: str, bring_back: bool = True) -> Request:
    """Make a node ready again; its VMs come home unless `bring_back` is False."""
    word = DomainState.UNFLUSH if bring_back else DomainState.READY
    return _domainstate(view, name, word, {DomainState.READY, DomainState.UNFLUSH},
                        "is made ready: its VMs come home." if bring_back else "is made ready; VMs stay where they are.")


def _domainstate(view: View, name: str, word: DomainState, already: set[DomainState], says: str) -> Request:
    node = _require_node(view, name)
    path = schema.node_key(name, "domainstate")
    # An operator's word counts: the node does not take it back when its host has started again.
    over = (Delete(schema.node_key(name, "departure"), node.version("departure")),) if "departure" in node.versions else ()
    if node.domainstate in already:
        assert isinstance(node.domainstate, DomainState)
        kept = (Check(path, node.version("domainstate")), *over) if over else ()
        return Request(kept, f"Node {name} is in '{node.domainstate.value}' already" + (", and stays so after its boot." if over else "."))
    if "domainstate" not in node.versions:
        return Request((Create(path, word.value.encode()), *over), f"Node {name} {says}")
    return Request((Write(path, word.value.encode(), node.version("domainstate")), *over), f"Node {name} {says}")
