# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The lab's ZooKeeper, from this machine, over one connection: to look must cost the guests no time on two cores."""
from __future__ import annotations

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError

ANSWER_S = 5.0


class Keys:
    """Reads keys as the servers have them; blocks for ANSWER_S at most. Writes and deletes, where our client would refuse it."""

    def __init__(self, hosts: str) -> None:
        self._hosts = hosts
        self._client: KazooClient | None = None

    def text(self, path: str) -> str:
        """The key's text; '' if it has none, is missing, or nobody answers."""
        try:
            data: bytes = self._connected().get_async(path).get(timeout=ANSWER_S)[0]
        except (KazooException, KazooTimeoutError):
            return ""
        return data.decode("utf-8", "replace")

    def version(self, path: str) -> int | None:
        """How often the key has been written; None if it is missing or nobody answers."""
        try:
            return int(self._connected().get_async(path).get(timeout=ANSWER_S)[1].version)
        except (KazooException, KazooTimeoutError):
            return None

    def order(self, folder: str, **words: str) -> None:
        """Set keys of a VM in one transaction, as a client of 0.1 does: unconditionally."""
        transaction = self._connected().transaction()
        for key, value in words.items():
            transaction.set_data(f"{folder}/{key}", value.encode())
        answers = transaction.commit()
        failed = [answer for answer in answers if isinstance(answer, Exception)]
        if failed:
            raise failed[0]

    def create(self, path: str, text: str) -> None:
        """A key that must not exist yet."""
        self._connected().create(path, text.encode())

    def delete_tree(self, path: str) -> None:
        """As `zkCli.sh deleteall` does it."""
        self._connected().delete(path, recursive=True)

    def _connected(self) -> KazooClient:
        """The client; a new one if the cluster that the last one knew has ended its session."""
        if self._client is None or self._client.client_state == "CLOSED":
            self.close()
            # kazoo's own back-off doubles up to an hour: after an outage of 70 s it would look away for longer than a test waits.
            self._client = KazooClient(self._hosts, connection_retry={"max_tries": -1, "max_delay": 1})
            self._client.start(ANSWER_S)
        return self._client

    def close(self) -> None:
        if self._client:
            self._client.stop()
            self._client.close()
        self._client = None
