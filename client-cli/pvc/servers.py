# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Asks each ZooKeeper server of a connection string who it is, with the four-letter word `srvr`. At most ANSWER_S for all together."""
from __future__ import annotations

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pvcd.cluster.endpoint import Server, parse

ANSWER_S = 2.0


def ask(hosts: str) -> list[dict[str, Any]]:
    """`address`, `mode` (`leader`, `follower`, `standalone`; `hidden`: it may not say so; None: no answer) and `latency_ms` of each server.

    Raises BadEndpoint.
    """
    servers = parse(hosts).servers
    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(_ask, servers))


def _ask(server: Server) -> dict[str, Any]:
    asked = time.monotonic()
    try:
        with socket.create_connection((server.host, server.port), timeout=ANSWER_S) as connection:
            connection.settimeout(ANSWER_S)
            connection.sendall(b"srvr")
            text = connection.makefile(encoding="utf-8", errors="replace").read(4096)
    except OSError:
        text = ""
    mode = re.search(r"^Mode: (\w+)$", text, re.MULTILINE)
    told = mode[1] if mode else "hidden" if "whitelist" in text else None
    return {"address": str(server), "mode": told, "latency_ms": round(1000 * (time.monotonic() - asked), 1) if told else None}
