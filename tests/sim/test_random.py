# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Random schedules with faults: no promise is broken, and afterwards everything comes to rest. PVC_SEEDS=N runs N of them."""
from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

from .faults import EVERY, KNOWN
from .schedule import violation

SEEDS = int(os.environ.get("PVC_SEEDS", "600"))
CHUNK = 50
CORPUS = (1, 3, 23, 42, 76, 84, 106, 172, 185, 186, 235, 1549, 1983, 52377, 52589)
"""Seeds that found something once, in the product or in the models, before there were faults with names."""
FOUND = {"miswired": (2, 24, 30, 35), "clone": (2, 4, 13, 23), "restored": (3, 7), "cut in doubt": (16, 27), "fresh power-off": (214,),
         "autostart": (130,), "paused guest": (151,), "image locks": (5, 10), "broken node": (108, 114), "one stays off": (16, 17, 20, 58),
         "flushes end": (162, 307)}
"""Seeds that found something with this fault alone, of those that the product survives by now. (Each new fault moves the dice: of the older
ones only the mix of faults is what it was.)"""


def broken(first: int) -> list[str]:
    return [f"seed {seed}: {found}" for seed in range(first, first + CHUNK) if (found := violation(seed)[0])]


def test_what_was_found_once() -> None:
    assert [f"seed {seed}: {found}" for seed in CORPUS if (found := violation(seed, without=EVERY)[0])] == []


def test_what_was_found_once_with_one_fault_alone() -> None:
    survived = {name: seeds for name, seeds in FOUND.items() if name not in KNOWN}
    assert [f"seed {seed} --only '{name}': {found}" for name, seeds in survived.items() for seed in seeds
            if (found := violation(seed, without=EVERY - {name})[0])] == []


def test_what_is_left_out_has_a_reason() -> None:
    assert set(KNOWN) <= EVERY and all(KNOWN.values())


def test_random_schedules() -> None:
    assert SEEDS >= CHUNK, f"PVC_SEEDS={SEEDS} tries nothing"
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = [line for lines in pool.map(broken, range(10_000, 10_000 + SEEDS, CHUNK)) for line in lines]
    assert found == []


def test_with_a_controller_that_lies() -> None:
    assert [f"seed {seed}: {found}" for seed in range(100) if (found := violation(seed, lie=True)[0])] == []
