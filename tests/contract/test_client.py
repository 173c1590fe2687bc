# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The client as a process on real ZooKeeper servers: absent, without a quorum, frozen, empty, full of garbage; and interrupted anywhere."""
from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvcd.cluster import schema
from pvcd.cluster.records import Claim, Operation
from pvcd.cluster.schema import OpPhase

from .cluster import CLIENT, PYTHON, UUID, XML, Keys, environment, pvc
from .servers import ZooKeeperServer, free_port

LOOKS = (("node", "list"), ("node", "info", "hv1", "-l"), ("vm", "list"), ("vm", "info", UUID, "-l"), ("status",), ("status", "-f", "json"), ("check",),
         ("check", "-f", "prometheus"), ("verify",), ("history", "hv1"), ("history", UUID), ("vm", "dump", UUID), ("node", "flush", "hv1", "--dry-run"),
         ("node", "list", "-f", "json"), ("vm", "list", "-f", "json"), ("vm", "list", "-f", "name"))
ORDERS = (("vm", "start", UUID), ("vm", "stop", UUID), ("vm", "restart", UUID), ("vm", "shutdown", UUID), ("vm", "migrate", UUID, "-t", "hv2"),
          ("vm", "unmigrate", UUID), ("vm", "move", UUID), ("vm", "migrate", UUID, "--cancel"), ("node", "flush", "hv1"), ("node", "ready", "hv1"),
          ("vm", "undefine", UUID, "--timeout", "1"), ("node", "remove", "hv3", "-y"), ("node", "fence", "hv2", "-y"), ("maintenance", "off"))
GIVES_UP_S = 10.0


def judged(hosts: str, *words: str, codes: set[int], stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run it: the exit code is one of these, there is no traceback, nothing that a terminal would obey, and it does not hang."""
    started = time.monotonic()
    done = pvc(hosts, *words, stdin=stdin, timeout_s=30)
    assert done.returncode in codes, (words, done)
    assert "Traceback" not in done.stderr, (words, done.stderr)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", done.stderr + ("" if "dump" in words else done.stdout)), (words, done)
    assert done.returncode == 0 or done.stderr.strip() or done.stdout.strip(), words
    assert time.monotonic() - started < GIVES_UP_S, words
    return done


def test_exit_codes(server: ZooKeeperServer, keys: Keys) -> None:
    hosts = server.hosts
    for words in LOOKS[:4] + LOOKS[5:8] + LOOKS[9:]:
        judged(hosts, *words, codes={0})
    judged(hosts, "vm", "start", "web1", codes={0})
    assert "already" in judged(hosts, "vm", "start", "web1", codes={0}).stdout
    keys.put(schema.vmmeta(UUID), '{"reason": "no disk"}')
    keys.put(schema.domain_key(UUID, "state"), "failed")
    assert "no disk" in judged(hosts, "vm", "info", "web1", codes={0}).stdout
    judged(hosts, "vm", "strat", "web1", codes={2})
    judged(hosts, "vm", "start", "nobody", codes={3})
    judged(hosts, "node", "info", "hv9", codes={3})
    judged(hosts, "vm", "define", "-t", "hv1", "-", stdin=XML.encode(), codes={4})
    judged(hosts, "init", codes={4})
    judged(hosts, "node", "confirm-off", "hv1", codes={4})
    judged(hosts, "vm", "start", "web1", "--wait", "--timeout", "0.5", codes={124})
    judged(hosts, "vm", "define", "-t", "hv1", "-", stdin=b"<domain", codes={1})


def test_nobody_listens() -> None:
    hosts = f"127.0.0.1:{free_port()}"
    for words in (("vm", "start", "web1"), ("init", "--yes")):
        assert "not reachable" in judged(hosts, *words, codes={5}).stderr
    assert "UNKNOWN" in judged(hosts, "check", codes={3}).stdout


def test_a_frozen_server(tmp_path: Path) -> None:
    found = ZooKeeperServer(tmp_path)
    try:
        found.start()
        found.freeze(True)
        assert "not reachable" in judged(found.hosts, "vm", "list", codes={5}).stderr
        assert "UNKNOWN" in judged(found.hosts, "check", codes={3}).stdout
    finally:
        found.stop()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_server_without_a_quorum_is_no_server(tmp_path: Path, read_only: bool) -> None:
    """Also where ZooKeeper's read-only mode would let it answer: what it says may be old."""
    found = ZooKeeperServer(tmp_path, alone_of_three=True, read_only=read_only)
    try:
        found.start()
        assert "not reachable" in judged(found.hosts, "vm", "start", "web1", codes={5}).stderr
    finally:
        found.stop()


def test_an_empty_server(server: ZooKeeperServer, keys: Keys) -> None:
    for root in ("/nodes", "/domains", "/claims", "/fences", "/locks", "/vmmeta", "/history"):
        keys.client.delete(root, recursive=True)
    for words in (*LOOKS, *ORDERS):
        done = judged(server.hosts, *words, codes={3 if words[0] == "check" else 5})
        assert "pvc init" in done.stderr + done.stdout or "pvc_reachable 0" in done.stdout, words
    judged(server.hosts, "init", "--yes", codes={0})
    judged(server.hosts, "vm", "list", codes={0})
    judged(server.hosts, "check", codes={2})


GARBAGE = {"no UTF-8": b"\xff\xfe\x00\x01", "escape sequences": "\x1b[31mred\x1b[0m\n\x07\ra\u202eb".encode(), "empty": b"", "long": b"x" * 100_000,
           "deep JSON": b"[" * 5000}


@pytest.mark.parametrize("kind", GARBAGE)
def test_keys_full_of_garbage(server: ZooKeeperServer, keys: Keys, kind: str) -> None:
    """Every key of a node, of a VM, its claim, its fence, its history: shown escaped, or refused with a reason."""
    value = GARBAGE[kind]
    for path in sorted(_tree(keys, "/")):
        if not path.startswith("/zookeeper") and path.count("/") >= 2:
            keys.put(path, value)
    keys.put(schema.history(UUID), value)
    keys.put(schema.history("hv1"), value)
    keys.put(schema.vmmeta(UUID), value)
    keys.put("/domains/no-uuid", value)
    for words in LOOKS:
        judged(server.hosts, *words, codes={0, 1, 2} if words[0] in ("check", "verify") else {0})
    for words in ORDERS:
        judged(server.hosts, *words, codes={0, 1, 3, 4, 124})


def _tree(keys: Keys, path: str) -> Iterator[str]:
    for name in keys.client.get_children(path):
        child = f"{path.rstrip('/')}/{name}"
        yield child
        yield from _tree(keys, child)


@pytest.mark.parametrize("prefix", ["/domains", "/claims", "/fences", "/nodes"])
def test_missing_keys(server: ZooKeeperServer, keys: Keys, prefix: str) -> None:
    """Each key of it is away once; nothing is started because of that."""
    leaves = [path for path in _tree(keys, prefix) if not keys.client.get_children(path)]
    for path in sorted(path for path in leaves if prefix != "/nodes" or path.startswith("/nodes/hv1/")):
        kept = keys.client.get(path)[0]
        keys.client.delete(path)
        for words in (("vm", "info", UUID), ("node", "list"), ("verify",)):
            judged(server.hosts, *words, codes={0, 1, 3})
        keys.put(path, kept)


def test_five_mebibytes_of_xml(server: ZooKeeperServer, keys: Keys) -> None:
    big = XML.replace(UUID, UUID.replace("1111", "2222", 1)).replace("web1", "web2").replace("</domain>", f"<!--{'x' * 5 * 2**20}--></domain>").encode()
    assert "KiB" in judged(server.hosts, "vm", "define", "-t", "hv1", "-", stdin=big, codes={1}).stderr
    assert "KiB" in judged(server.hosts, "vm", "modify", "web1", "-", "-y", stdin=big, codes={1}).stderr
    keys.put(schema.domain_key(UUID, "xml"), XML.encode() + b" " * 900_000)
    judged(server.hosts, "vm", "info", "web1", codes={0})
    judged(server.hosts, "vm", "list", codes={0})


# -------------------------------------------------------------------------------------------------------------- Ctrl-C

def interrupted(hosts: str, *words: str, after: str = "", delay_s: float = 0.0) -> tuple[int, str]:
    """Send SIGINT when stderr has said `after`, or after a while; exit code and stderr."""
    process = subprocess.Popen([PYTHON, str(CLIENT), "-z", hosts, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=environment(), text=True)
    assert process.stderr is not None
    said = ""
    while after and after not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=10)
    return process.returncode, said + err


def test_ctrl_c_stops_the_waiting_and_says_what_goes_on(server: ZooKeeperServer, keys: Keys) -> None:
    code, err = interrupted(server.hosts, "vm", "start", "web1", "--wait", after="waits for its node")
    assert code == 130 and "stays ordered" in err and keys.text(schema.domain_key(UUID, "state")) == "start"
    keys.runs("hv1")
    code, err = interrupted(server.hosts, "vm", "migrate", "web1", "-t", "hv2", "--wait", after="migrate on hv1")
    assert code == 130 and "pvc vm migrate web1 --cancel" in err and keys.text(schema.domain_key(UUID, "state")) == "migrate"
    keys.runs("hv1")
    code, err = interrupted(server.hosts, "node", "flush", "hv1", "--wait", after="1 VMs here")
    assert code == 130 and "pvc node ready hv1" in err and keys.text(schema.node_key("hv1", "domainstate")) == "flush"


@pytest.mark.parametrize("tenths", range(10))
def test_ctrl_c_at_any_moment_leaves_all_or_nothing(server: ZooKeeperServer, keys: Keys, tenths: int) -> None:
    before = (keys.text(schema.domain_key(UUID, "state")), keys.text(schema.domain_key(UUID, "hypervisor")))
    code, err = interrupted(server.hosts, "vm", "move", "web1", "-t", "hv2", delay_s=tenths * 0.05)
    after = (keys.text(schema.domain_key(UUID, "state")), keys.text(schema.domain_key(UUID, "hypervisor")))
    if "Traceback" in err:  # Python itself was still loading: none of our files is in it
        assert "client-cli" not in err and "pvcd" not in err and after == before, err
        return
    assert code in (0, 130, -signal.SIGINT), (code, err)
    assert after in (before, ("stop", "hv2")) and (code != 0 or after == ("stop", "hv2"))
    assert judged(server.hosts, "vm", "move", "web1", "-t", "hv3", codes={0}).returncode == 0


def test_a_pipe_gets_a_line_per_change_and_none_per_mebibyte(server: ZooKeeperServer, keys: Keys) -> None:
    keys.runs("hv1")
    process = subprocess.Popen([PYTHON, str(CLIENT), "-z", server.hosts, "vm", "migrate", "web1", "-t", "hv2", "--wait"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True)
    assert process.stderr is not None
    said = [process.stderr.readline()]
    for moved in (128, 256):
        keys.put(schema.vmmeta(UUID), f'{{"op": "op1", "moved_mib": {moved}, "size_mib": 512}}')
        keys.put(schema.claim(UUID), Claim("hv1", "hv1/0", Operation("op1", OpPhase.RUN, "hv2", "hv2/0")).encode())
        said += [process.stderr.readline()] if moved == 128 else []
    keys.runs("hv2")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "".join(said) + err == "web1: migrate on hv1\nweb1: migrating from hv1 to hv2 (run)\nweb1: runs on hv2\n"
