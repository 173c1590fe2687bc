# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Tests management controllers before they are needed. Runs on the fence thread, when no fence is in progress.

Each node asks its own controller once, at start, which machine it belongs to; and it asks the controller of the next node by
name every five minutes for status and identity, and publishes the answer in that node's `ipmistate`.
"""
from __future__ import annotations

import json
from collections.abc import Callable

from .cluster import schema
from .cluster.claims import Actor
from .cluster.records import ANY, Change, Create, View, Write
from .cluster.store import Store
from .ipmi import Bmc, Ipmi, Power, stranger
from .situation import Level

EVERY_S = 300.0
FIRST_S = 15.0
KEYS = ("ipmihostname", "ipmiusername", "ipmipassword", "ipmiguid", "ipmistate")


class BmcCheck:
    """One question per visit."""

    def __init__(self, store: Store, ipmi: Ipmi, node: str, say: Callable[[Level, str], None], utc: Callable[[], str]) -> None:
        self._store, self._ipmi, self._node, self._say, self._utc = store, ipmi, node, say, utc
        self._identified = False
        self._due: float | None = None
        self._told: dict[str, str] = {}

    def visit(self, actor: Actor, view: View, now: float) -> None:
        """Ask what is due, if anything is."""
        if self._due is None:
            self._due = now + FIRST_S
        if not self._identified:
            self._identify(actor)
        elif now >= self._due:
            self._due = now + EVERY_S
            others = sorted(view.nodes)
            if self._node in others and len(others) > 1:
                self._check(actor, others[(others.index(self._node) + 1) % len(others)])

    def _bmc(self, name: str) -> tuple[Bmc, dict[str, str]]:
        values = self._store.node_values(name, KEYS)
        return Bmc(values["ipmihostname"], values["ipmiusername"], values["ipmipassword"]), values

    def _identify(self, actor: Actor) -> None:
        """A controller that does not answer leaves what was recorded."""
        self._identified = True
        bmc, _ = self._bmc(self._node)
        found = None if bmc.problem else self._ipmi.guid(bmc)
        if found is not None:
            self._put(actor, self._node, "ipmiguid", found)

    def _check(self, actor: Actor, name: str) -> None:
        bmc, values = self._bmc(name)
        problem = bmc.problem
        if not problem:
            reading = self._ipmi.status(bmc)
            problem = reading.detail if reading.power is Power.UNKNOWN else ""
        if not problem and values["ipmiguid"]:
            problem = stranger(bmc, values["ipmiguid"], self._ipmi.guid(bmc))
        if problem != self._told.get(name, ""):
            text = f"{name}: its BMC is broken: {problem}; it could not be fenced" if problem else f"{name}: its BMC answers again"
            self._say(Level.CRITICAL if problem else Level.INFO, text)
        self._told[name] = problem
        state = {"by": self._node, "at": self._utc(), "ok": not problem, "cipher": self._ipmi.cipher(bmc), "detail": problem}
        self._put(actor, name, "ipmistate", json.dumps(state))

    def _put(self, actor: Actor, name: str, key: str, value: str) -> None:
        path = schema.node_key(name, key)
        exists = key in self._store.node_key_names(name)
        change: Change = Write(path, value.encode(), ANY) if exists else Create(path, value.encode())
        self._store.apply((actor.mine, change))
