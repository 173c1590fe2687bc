# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Reads records and applies changes as one checked transaction each. Any thread; every call is bounded by the backend.

What does not exist reads as an empty record. Only Unreachable, OutcomeUnknown, Conflict and TooLarge escape.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from . import avoid, schema
from .avoid import Avoided
from .errors import Conflict
from .records import (
    MISSING,
    NODE_FIELDS,
    Change,
    ClaimRecord,
    Create,
    DomainRecord,
    FenceRecord,
    NodeRecord,
    Value,
    View,
    Write,
    decode_hold,
)

Acknowledged = Callable[[Sequence[Change], Sequence["int | None"]], None]
DOMAIN_FIELDS = ("state", "hypervisor", "lasthypervisor")


class Backend(Protocol):
    """What a store needs of ZooKeeper: `pvcd.cluster.zk` has it, and the simulator's model."""

    def read(self, path: str) -> Value: ...

    def read_many(self, paths: Iterable[str]) -> dict[str, Value]: ...

    def children(self, path: str) -> list[str] | None: ...

    def commit(self, changes: Sequence[Change]) -> list[int | None]: ...

    def watch_value(self, path: str, callback: Callable[[], None]) -> None: ...

    def watch_children(self, path: str, callback: Callable[[], None]) -> None: ...

    def unwatch(self, path: str) -> None: ...


class Store:
    """Records of one cluster, over one backend. `acknowledged(changes, versions)` is told of each transaction that has committed."""

    def __init__(self, backend: Backend, acknowledged: Acknowledged | None = None) -> None:
        self._backend, self._acknowledged = backend, acknowledged

    # ----------------------------------------------------------------------------------------------------------- reads

    def raw(self, path: str) -> Value:
        return self._backend.read(path)

    def raw_many(self, paths: Iterable[str]) -> dict[str, Value]:
        return self._backend.read_many(paths)

    def children(self, path: str) -> list[str]:
        """Names below `path`; none if it does not exist."""
        return self._backend.children(path) or []

    def is_cluster(self) -> bool:
        """The roots that `pvc init` makes are there."""
        values = self._backend.read_many([schema.NODES, schema.DOMAINS])
        return all(value.data is not None for value in values.values())

    def domain(self, uuid: str) -> DomainRecord:
        return self._domains([uuid])[uuid]

    def claim(self, uuid: str) -> ClaimRecord:
        return ClaimRecord.read(self._backend.read(schema.claim(uuid)))

    def domain_and_claim(self, uuid: str) -> tuple[DomainRecord, ClaimRecord]:
        """In one round trip. That all of it is still so is checked by the transaction that is decided on it."""
        paths = {"": schema.domain(uuid), **{key: schema.domain_key(uuid, key) for key in DOMAIN_FIELDS}}
        values = self._backend.read_many([schema.claim(uuid), *paths.values()])
        record = DomainRecord.read(uuid, {key: values[path] for key, path in paths.items()})
        return record, ClaimRecord.read(values[schema.claim(uuid)])

    def xml(self, uuid: str) -> Value:
        return self._backend.read(schema.domain_key(uuid, "xml"))

    def domains(self) -> dict[str, DomainRecord]:
        """Every VM; children of /domains that are no UUIDs are passed over."""
        return self._domains([name for name in self.children(schema.DOMAINS) if schema.is_uuid(name)])

    def _domains(self, uuids: Sequence[str]) -> dict[str, DomainRecord]:
        paths = {(uuid, key): schema.domain_key(uuid, key) if key else schema.domain(uuid)
                 for uuid in uuids for key in ("", *DOMAIN_FIELDS)}
        values = self._backend.read_many(paths.values())
        return {uuid: DomainRecord.read(uuid, {key: values[paths[uuid, key]] for key in ("", *DOMAIN_FIELDS)}) for uuid in uuids}

    def claims(self) -> dict[str, ClaimRecord]:
        paths = {uuid: schema.claim(uuid) for uuid in self.children(schema.CLAIMS) if schema.is_uuid(uuid)}
        values = self._backend.read_many(paths.values())
        return {uuid: ClaimRecord.read(values[path]) for uuid, path in paths.items()}

    def avoided(self, uuids: Iterable[str]) -> dict[str, Avoided]:
        """Where these VMs could not be started."""
        paths = {uuid: schema.avoid(uuid) for uuid in uuids}
        values = self._backend.read_many(paths.values())
        return {uuid: avoid.read(values[path]) for uuid, path in paths.items()}

    def node(self, name: str) -> NodeRecord:
        return self._nodes([name])[name]

    def _nodes(self, names: Sequence[str]) -> dict[str, NodeRecord]:
        paths = {(name, key): schema.node_key(name, key) if key else schema.node(name)
                 for name in names for key in ("", *NODE_FIELDS)}
        values = self._backend.read_many(paths.values())
        return {name: NodeRecord.read(name, {key: values[paths[name, key]] for key in ("", *NODE_FIELDS)}) for name in names}

    def node_key_names(self, name: str) -> set[str]:
        return set(self.children(schema.node(name)))

    def node_values(self, name: str, keys: Sequence[str]) -> dict[str, str]:
        """Plain text of some keys of a node; '' for what is missing or cannot be understood."""
        values = self._backend.read_many([schema.node_key(name, key) for key in keys])
        texts = {key: schema.decode_text(values[schema.node_key(name, key)].data) for key in keys}
        return {key: text if isinstance(text, str) else "" for key, text in texts.items()}

    def fence(self, name: str) -> FenceRecord:
        return FenceRecord.read(self._backend.read(schema.fence(name)))

    def view(self) -> View:
        """All nodes, all fences, and the hold."""
        names = [name for name in self.children(schema.NODES) if schema.is_node_name(name)]
        fenced = [name for name in self.children(schema.FENCES) if schema.is_node_name(name)]
        values = self._backend.read_many([schema.FENCES, *map(schema.fence, fenced)])
        fences = {name: FenceRecord.read(values[schema.fence(name)]) for name in fenced}
        return View(self._nodes(names), fences, decode_hold(values[schema.FENCES]))

    def keepalives(self, names: Iterable[str]) -> dict[str, Value]:
        paths = {name: schema.node_key(name, "keepalive") for name in names}
        values = self._backend.read_many(paths.values())
        return {name: values[path] for name, path in paths.items()}

    # ---------------------------------------------------------------------------------------------------------- writes

    def apply(self, changes: Sequence[Change]) -> list[int | None]:
        """All or nothing. With checks only it is the gate: what was decided on is still so, at the leader.

        Returns the version that each change gave its key; None for a check and a delete.
        """
        made = self._backend.commit(tuple(changes)) if changes else []
        if self._acknowledged is not None:
            self._acknowledged(changes, made)
        return made

    def ensure_roots(self) -> None:
        """Create the roots that are missing."""
        values = self._backend.read_many(schema.ROOTS)
        for root in schema.ROOTS:
            if values[root].data is None:
                self._create(root)

    def ensure_claim(self, uuid: str) -> None:
        """Create an empty claim unless there is one."""
        self._create(schema.claim(uuid))

    def _create(self, path: str) -> None:
        try:
            self.apply((Create(path),))
        except Conflict:
            if self._backend.read(path) == MISSING:
                raise

    def meta(self, uuid: str) -> Mapping[str, Any]:
        """What /vmmeta says about a VM; empty if nothing, or nothing readable."""
        return self.metas([uuid])[uuid]

    def metas(self, uuids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The same for many at once."""
        values = self._backend.read_many([schema.vmmeta(uuid) for uuid in uuids])
        return {uuid: _decoded(values[schema.vmmeta(uuid)].data) for uuid in uuids}

    def write_meta(self, uuid: str, value: Mapping[str, str | int]) -> None:
        """Change these keys of /vmmeta/<uuid>: display only, so the last writer wins."""
        old = self._backend.read(schema.vmmeta(uuid))
        data = _fitting(_decoded(old.data), value)
        change: Change = Create(schema.vmmeta(uuid), data) if old.data is None else Write(schema.vmmeta(uuid), data, old.version)
        try:
            self.apply((change,))
        except Conflict:
            return


def _fitting(old: Mapping[str, Any], new: Mapping[str, str | int]) -> bytes:
    """`new` over `old`, as long as the key may hold it: texts are cut, and what was there before gives way."""
    for base, longest in ((old, 1000), ({}, 1000), ({}, 200), ({}, 20)):
        shown = {key: schema.printable(one)[:longest] if isinstance(one, str) else one for key, one in new.items()}
        data = json.dumps({**base, **shown}, ensure_ascii=False).encode("utf-8", "backslashreplace")
        if len(data) <= schema.VALUE_LIMIT:
            return data
    return b"{}"


def _decoded(raw: bytes | None) -> Mapping[str, Any]:
    try:
        value = json.loads((raw or b"{}").decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
