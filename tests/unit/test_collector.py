# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The collector tells what runs here, and wakes the keepalive as soon as that changes."""
from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from pvcd.cluster.notices import decode_strangers
from pvcd.collector import Collector
from pvcd.instances import Instances
from pvcd.local import Guest, Status

A = "aaaaaaaa-2222-4333-8444-555555555555"
GUEST = Guest(A, "a", Status.RUNNING)


class Run:
    """The collector's thread on looks that are given: each is (VMs known, guests shown, VMs known when libvirt has answered)."""

    def __init__(self, *looks: tuple[set[str], tuple[Guest, ...], set[str]]) -> None:
        self.left: list[dict[str, str]] = []
        self.woken: list[int] = []
        self._looks, self._stop = list(looks), threading.Event()
        self._instances = Instances(None, None, None, lambda _key: None)  # type: ignore[arg-type]
        self._instances.inventory_seen = lambda _guests: None  # type: ignore[method-assign,assignment]
        keepalive = SimpleNamespace(leave=self._leave, wake=lambda: self.woken.append(len(self._told)))
        self._knows(self._looks[0][0])
        Collector(SimpleNamespace(inventory=self._inventory), self._instances, keepalive,  # type: ignore[arg-type]
                  SimpleNamespace(told=lambda _guests: "[]"), 0.0, lambda *_: None).run(self._stop)

    @property
    def _told(self) -> list[dict[str, str]]:
        return [stats for stats in self.left if "strangers" in stats]

    @property
    def strangers(self) -> list[Any]:
        return [decode_strangers(stats["strangers"].encode()) for stats in self._told]

    def _knows(self, known: set[str]) -> None:
        self._instances.domains = {uuid: SimpleNamespace(outside=False) for uuid in known}  # type: ignore[misc]

    def _leave(self, stats: dict[str, str]) -> None:
        self.left.append(stats)
        if "strangers" in stats and self._looks:
            self._knows(self._looks[0][0])

    def _inventory(self) -> tuple[Guest, ...]:
        _, guests, after = self._looks.pop(0)
        self._knows(after)
        if not self._looks:
            self._stop.set()
        return guests


def test_a_vm_that_is_undefined_while_libvirt_is_asked_is_no_stranger() -> None:
    """The next `define` would be refused for what runs no more."""
    assert Run(({A}, (GUEST,), set()), (set(), (), set())).strangers == [{}, {}]


def test_a_vm_that_is_started_while_libvirt_is_asked_is_no_stranger() -> None:
    assert Run((set(), (GUEST,), {A})).strangers == [{}]


def test_a_stranger_that_comes_or_goes_is_told_at_once() -> None:
    run = Run((set(), (), set()), (set(), (GUEST,), set()), (set(), (GUEST,), set()), (set(), (), set()))
    assert run.strangers == [{}, {A: "a"}, {A: "a"}, {}] and run.woken == [1, 2, 4]
