# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""What the mutants of the simulator are made of."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from pvcd import planner
from pvcd.cluster.records import Change
from pvcd.cluster.store import Store
from pvcd.situation import Situation, Step

Mutation = Callable[[], Any]


def filtered(keep: Callable[[Change], Change | None]) -> Any:
    """Every transaction of every node goes through `keep`: a change is dropped, or another takes its place."""
    original = Store.apply

    def apply(self: Store, changes: Sequence[Change]) -> list[int | None]:
        kept = [keep(change) for change in changes]
        made = iter(original(self, tuple(change for change in kept if change is not None)))
        return [None if change is None else next(made) for change in kept]
    return mock.patch.object(Store, "apply", apply)


def planned(change: Callable[[Situation, Step], Step]) -> Any:
    original = planner.plan_domain
    return mock.patch("pvcd.VMInstance.plan_domain", lambda s: change(s, original(s)))


def situated(change: Callable[[Situation], Situation]) -> Any:
    original = planner.plan_domain
    return mock.patch("pvcd.VMInstance.plan_domain", lambda s: original(change(s)))
