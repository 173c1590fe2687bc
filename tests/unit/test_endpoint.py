# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""How ZooKeeper's servers are written, what is no such thing, and what ZooKeeper's own list says."""
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc import connection
from pvcd import config
from pvcd.cluster import endpoint, schema
from pvcd.cluster.endpoint import BadEndpoint, Endpoint, Server, learned, parse
from pvcd.cluster.errors import Unreachable


@pytest.mark.parametrize(("text", "servers", "chroot"), [
    ("hv1", [("hv1", 2181)], ""), ("hv1:2182", [("hv1", 2182)], ""), (" hv1 , hv2:7 ", [("hv1", 2181), ("hv2", 7)], ""),
    ("hv1:2181,hv2:2181/pvc", [("hv1", 2181), ("hv2", 2181)], "/pvc"), ("hv1/a/b.c/", [("hv1", 2181)], "/a/b.c"), ("hv1:1/", [("hv1", 1)], ""),
    ("[fd00::1]:2181", [("fd00::1", 2181)], ""), ("[fd00:0::1],[::1]:1/pvc", [("fd00::1", 2181), ("::1", 1)], "/pvc"),
    ("hv_1.example.org,_x", [("hv_1.example.org", 2181), ("_x", 2181)], ""), ("192.0.2.7:1", [("192.0.2.7", 1)], ""), ("hv1.:1", [("hv1.", 1)], ""),
    ("hv1,hv1:2181", [("hv1", 2181)], "")])
def test_what_is_read(text: str, servers: list[tuple[str, int]], chroot: str) -> None:
    found = parse(text)
    assert found == Endpoint(tuple(Server(*each) for each in servers), chroot) and parse(str(found)) == found
    if ":" in text.partition("/")[0]:
        from kazoo.hosts import collect_hosts
        assert collect_hosts(str(found)) == (servers, chroot or None), "kazoo reads the same"


@pytest.mark.parametrize(("text", "hint"), [
    ("", "empty"), ("hv1,,hv2", "empty"), ("hv1,", "empty"), ("hv1 hv2", "no server"), ("hv1:0", "port"), ("hv1:65536", "port"), ("hv1:port", "port"),
    ("hv1:", "port"), ("fd00::1", "[fd00::1]:2181"), ("[fd00::g]:1", "IPv6"), ("[fd00::1", "IPv6"), ("[::1]2181", "IPv6"), ("[fe80::1%eth0]:1", "IPv6"),
    ("hv1:1/pvc,hv2:1/pvc", "once"), ("hv1/../x", "no path"), ("hv1//x", "no path"), ("hv1/zookeeper/x", "no path"), ("hv1/a b", "no path"),
    ("-hv1", "no server"), ("hv..1", "no server"), ("hv\u20281", "no server"), ("zk://hv1", "port"), ("hv1:²", "port"), ("user@hv1", "no server")])
def test_what_is_no_list_of_servers_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, hint: str) -> None:
    """Daemon and client say the same; the client's Tab says nothing."""
    with pytest.raises(BadEndpoint) as wrong:
        parse(text)
    assert hint in str(wrong.value) and str(wrong.value).isprintable()
    (tmp_path / "pvcd.conf").write_text(f"[default]\nzookeeper = {text}\n", encoding="utf-8")
    with pytest.raises(config.ConfigError) as refused:
        config.load(str(tmp_path / "pvcd.conf"), "hv1")
    assert hint in str(refused.value)
    if text:
        with pytest.raises(Unreachable) as told:
            connection.place(text)
        assert hint in str(told.value) and "-z" in str(told.value)


@given(st.text(max_size=60) | st.text("hv1:,/[]_.-%a0 ", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except BadEndpoint:
        return
    assert parse(str(found)) == found and found.servers


STATIC = b"server.1=hv1:2888:3888:participant\nserver.2=hv_2:2888:3888:participant\nserver.3=[fd00:0::3]:2888:3888:observer\nversion=0"
DYNAMIC = (b"server.1=hv1:2888:3888:participant;0.0.0.0:2182\nserver.2=hv2:2888:3888:participant;192.0.2.2:2183\n"
           b"server.3=hv3:2888:3888;2184\nserver.4=[fd00::4]:1:2;[::]:2185\nserver.5=hv5:1:2|hv5b:1:2:participant;2186\nversion=100000000")


@pytest.mark.parametrize(("config_text", "asked", "servers"), [
    (STATIC, "hv1:2200", "hv1:2200,hv_2:2200,[fd00::3]:2200"),
    (DYNAMIC, "hv1:2181", "hv1:2182,192.0.2.2:2183,hv3:2184,[fd00::4]:2185,hv5:2186"),
    (b"server.1=0.0.0.0:2888:3888:participant\nserver.2=hv2:2888:3888\nversion=0", "127.0.0.1:2181", "hv2:2181"),
    (b"server.1=127.0.0.1:1:2\nserver.2=127.0.0.1:3:4;2182", "127.0.0.1:2181", "127.0.0.1:2181,127.0.0.1:2182"),
    (b"server.1=localhost:1:2\nserver.2=hv2:3:4\nserver.3=hv3:3:4;127.0.0.1:2181", "192.0.2.9:2181", "hv2:2181"),
    (b"", "hv1:2181", ""), (b"\xff\xfe\nserver.x=hv1:1:2\nserver.1=\nserver.2=:1:2\nserver.3=hv 3:1:2\nserver.4=hv4:1:2;x\nserver.5=hv5:1:2;0", "a:1", "")])
def test_what_zookeeper_lists(config_text: bytes, asked: str, servers: str) -> None:
    """As ZooKeeper 3.8.0 says it with Debian's zoo.cfg (no client port: that of the server that was asked), and as newer files have it."""
    assert endpoint.shown(learned(config_text, parse(asked).servers[0])) == servers


@given(st.binary(max_size=200) | st.text("server.1=;:|[]0ahv\n", max_size=200).map(str.encode))
def test_any_list_is_read(raw: bytes) -> None:
    assert len(learned(raw, Server("a"))) <= endpoint.MOST
    assert all(parse(str(server)).servers == (server,) for server in learned(raw, Server("127.0.0.1")))


@given(st.text(max_size=200))
def test_any_file_is_read(text: str) -> None:
    endpoint.remembered(text, parse("a"))
    endpoint.remembered(f"a:2181\n{text}", parse("a"))


def test_what_is_remembered_is_for_one_configuration() -> None:
    known = {Server("127.0.0.1"): ("127.0.0.1",), Server("hv2"): ("192.0.2.2", "fd00::2"), Server("fd00::3", 1): ()}
    text = endpoint.to_remember(parse("127.0.0.1"), known)
    assert endpoint.remembered(text, parse("127.0.0.1:2181")) == known
    assert endpoint.remembered(text, parse("127.0.0.1:2182")) == {} == endpoint.remembered("", parse("a"))


def test_the_client_on_a_node_knows_what_its_daemon_has_learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server on this host may be the one that is down."""
    (tmp_path / "pvcd.conf").write_text("[default]\nzookeeper = 127.0.0.1:2181/pvc\n")
    monkeypatch.setattr(connection, "NODE_CONFIGURATION", str(tmp_path / "pvcd.conf"))
    monkeypatch.setattr(connection, "STATE_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("PVC_ZOOKEEPER", raising=False)
    assert connection.place(None).hosts == "127.0.0.1:2181/pvc"
    (tmp_path / endpoint.FILE).write_text(endpoint.to_remember(parse("127.0.0.1/pvc"), {Server("127.0.0.1"): (), Server("hv2"): ()}))
    assert connection.place(None).hosts == "127.0.0.1:2181,hv2:2181/pvc"
    (tmp_path / endpoint.FILE).write_bytes(b"\xff")
    assert connection.place(None).hosts == "127.0.0.1:2181/pvc"


@pytest.mark.parametrize("name", ["hv1", "hv_1", "_hv1", "hv1_", "HV1.example.org", "1", "a" * 253])
def test_names_of_nodes(name: str, tmp_path: Path) -> None:
    """C4: what `hostnamectl` takes."""
    (tmp_path / "pvcd.conf").write_text("[default]\nzookeeper = a:1\n")
    config.load(str(tmp_path / "pvcd.conf"), name)
    assert schema.is_node_name(name) and schema.decode_node_name(name.encode()) == name


@pytest.mark.parametrize("name", ["", "-hv1", "hv1-", "hv..1", ".hv1", "hv1.", "hv 1", "hv/1", "hvé", "hv\n1", "a" * 254])
def test_a_host_whose_name_no_node_could_see_is_refused_at_start(name: str, tmp_path: Path) -> None:
    """C4: it registered, and everybody passed it over."""
    (tmp_path / "pvcd.conf").write_text("[default]\nzookeeper = a:1\n")
    with pytest.raises(config.ConfigError, match="hostnamectl"):
        config.load(str(tmp_path / "pvcd.conf"), name)
