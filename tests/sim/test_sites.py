# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The whole transaction of each function that moves claims and fences; and no change of it can be dropped unnoticed."""
from __future__ import annotations

import pytest

from .sites import ROWS, SAMPLES, dropped, mutants, public, shown


@pytest.mark.parametrize("name", public())
def test_a_transaction_is_wholly_what_the_table_says(name: str) -> None:
    assert name in SAMPLES, f"{name} has no row in sim/sites.py"
    assert shown(SAMPLES[name]()) == ROWS.get(name), f"{name} has another row in sim/sites.py"


def test_the_table_has_no_row_too_many() -> None:
    assert set(ROWS) == set(SAMPLES) == set(public())


@pytest.mark.parametrize(("name", "number"), mutants(), ids=lambda value: str(value))
def test_no_change_can_be_dropped(name: str, number: int) -> None:
    with dropped(name, number):
        assert shown(SAMPLES[name]()) != ROWS[name]
