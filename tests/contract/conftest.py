# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""A real ZooKeeper server for each file of tests, and the keys of a small cluster on it."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from .cluster import Keys
from .servers import ZooKeeperServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    found = ZooKeeperServer(tmp_path_factory.mktemp("zookeeper"))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def keys(server: ZooKeeperServer) -> Iterator[Keys]:
    found = Keys(server.hosts)
    found.populate()
    yield found
    found.close()
