# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Every mutant is killed, by a directed schedule or by random ones."""
from __future__ import annotations

import pytest

from . import directed_starts
from .mutants import MUTANTS, OF_STARTS, Mutation
from .schedule import violation
from .test_directed import SCHEDULES

SEEDS = 60


def killer(mutant: Mutation) -> str:
    """What kills the mutant, or ''."""
    with mutant():
        for schedule in (*directed_starts.SCHEDULES, *SCHEDULES) if mutant in OF_STARTS else SCHEDULES:
            try:
                schedule()
            except AssertionError as error:
                return f"{schedule.__name__}: {error}"
        for seed in range(SEEDS):
            found, _ = violation(seed)
            if found:
                return f"seed {seed}: {found}"
    return ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_killed(mutant: Mutation) -> None:
    found = killer(mutant)
    print(f"{mutant.__name__} is killed by {found}")
    assert found
