# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""pytest plugins of the mutation run: one notes which test executes which line and how long it takes, the other runs chosen tests only."""
from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest


class Recorder:
    """The baseline: a coverage context per test, and `durations.json` in the working directory."""

    def __init__(self, coverage: Any) -> None:
        self._coverage, self._durations = coverage, dict[str, float]()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Without the laws over the planner's whole table: they take minutes under coverage."""
        items[:] = [item for item in items if "table" not in getattr(item, "fixturenames", ())]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        started = time.monotonic()
        yield
        self._durations[item.nodeid] = time.monotonic() - started
        self._coverage.switch_context("")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """What a shared fixture runs, it runs for every test of its file."""
        if fixturedef.scope == "function":
            yield
            return
        self._coverage.switch_context(f"{request.node.nodeid.partition('::')[0]}::*")
        yield
        self._coverage.switch_context(getattr(request, "_pyfuncitem", request.node).nodeid)

    def pytest_sessionfinish(self) -> None:
        Path("durations.json").write_text(json.dumps(self._durations))


class Chosen:
    """Runs the tests `names`, the quickest first; `ran` says how many there were."""

    def __init__(self, names: Collection[str], durations: dict[str, float]) -> None:
        self._names, self._durations, self.ran = set(names), durations, 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self._names), key=lambda item: self._durations.get(item.nodeid, 0.0))
        self.ran = len(items)
