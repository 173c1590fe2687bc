# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""`PVCD_CONFIG_FILE` → `Config`, naming the key that is missing or wrong. Main thread, at start.

The section named like the node wins, `[default]` fills the gaps. A node is named like its host, or as `node_name` says.
"""
from __future__ import annotations

import configparser
import re
import stat
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from .cluster import schema
from .cluster.endpoint import BadEndpoint, Endpoint, parse

DEFAULTS: Mapping[str, str] = {
    "zookeeper": "127.0.0.1:2181", "keepalive_interval": "5", "ipmi_hostname": "", "ipmi_username": "", "ipmi_password": "",
    "fence_intervals": "6", "fence_action": "reboot", "migration_workers": "4", "shutdown_timeout": "30", "migrate_unsafe": "no",
    "host_shutdown": "flush", "host_shutdown_timeout": "300", "node_name": ""}

ELECTION_S = 5.0
"""What an election of a ZooKeeper leader may take; part of the silence that must not get anybody fenced."""


HOST_SHUTDOWN_S = 1200.0
"""The longest flush of a host that is being shut down: systemd itself forces a power-off or reboot after 30 minutes."""


class ConfigError(Exception):
    """The configuration cannot be used; the sentence names file, section and key, what is wrong, and the remedy."""


@dataclass(frozen=True)
class Config:
    """The daemon's configuration. Times in seconds. `node`: the name it joins under; `named`: the file itself says so."""

    zookeeper: Endpoint
    keepalive_interval: float
    ipmi_hostname: str
    ipmi_username: str
    ipmi_password: str = field(repr=False)
    fence_intervals: int
    fence_action: str
    migration_workers: int
    shutdown_timeout: float
    migrate_unsafe: bool
    host_shutdown: str
    host_shutdown_timeout: float
    node: str = ""
    named: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def call_timeout_s(self) -> float:
        """One ZooKeeper call: less than a tick, so that a keepalive is never late because of the one before."""
        return min(4.0, 0.8 * self.keepalive_interval)

    @property
    def session_timeout_s(self) -> float:
        """The ZooKeeper session: 10 s, less at short ticks; the server's floor is twice its tickTime."""
        return max(4.0, min(10.0, 4.0 * self.keepalive_interval))


def load(path: str, hostname: str) -> Config:
    """Read the file. Raises ConfigError."""
    parser = configparser.ConfigParser(interpolation=None, default_section="", strict=True)
    try:
        text = Path(path).read_text(encoding="utf-8")
        parser.read_string(text, source=path)
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Copy /etc/pvc/pvcd.conf.sample to {path} and edit it.") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a configuration file: {str(error).splitlines()[0]}") from error
    common = dict(parser["default"]) if parser.has_section("default") else {}
    own = dict(parser[hostname]) if parser.has_section(hostname) else {}
    node = own.get("node_name") or common.get("node_name") or hostname
    if not schema.is_node_name(node):
        raise ConfigError(f"{path}: '{schema.printable(node)}' cannot be the name of a node: letters, digits, '-', '_' and '.' only, or no other node "
                          "could see this one. Give the host such a name (hostnamectl set-hostname NAME), or set node_name, and let the other nodes "
                          "resolve it")
    if node != hostname and parser.has_section(node):
        own = {**own, **parser[node]}
    if not own and not common:
        raise ConfigError(f"{path}: has neither a section [{hostname}] nor [default]. Copy /etc/pvc/pvcd.conf.sample and edit it.")
    _refuse_common_bmc(path, {hostname, node}, own, common, parser.sections())
    values = {**DEFAULTS, **common, **own}
    if values["ipmi_password"] and mode & stat.S_IROTH:
        raise ConfigError(f"{path}: holds a password and everybody can read it. chmod 0640 {path}")
    warnings = tuple(f"{path}: unknown key '{key}' is ignored" for key in sorted(set(values) - set(DEFAULTS)))
    return _checked(path, values, node, warnings)


def _refuse_common_bmc(path: str, names: Set[str], own: Mapping[str, str], common: Mapping[str, str], sections: Sequence[str]) -> None:
    """One controller in `[default]` of a file for several hosts would switch off one machine as the proof that another is off. In a file that
    has `[default]` alone it may be right (a file for one host); two nodes that say the same are found at run time, and neither is fenced.
    `names`: of this host and its node.
    """
    others = sorted(set(sections) - {"default", *names})
    if common.get("ipmi_hostname") and not own.get("ipmi_hostname") and others:
        raise ConfigError(f"{path}: [default] ipmi_hostname = '{common['ipmi_hostname']}': the file is for several hosts ([{'], ['.join(others)}]), and each "
                          f"has a BMC of its own. Write it into the section of each host, here [{']/['.join(sorted(names))}].")


def _checked(path: str, values: Mapping[str, str], node: str, warnings: tuple[str, ...]) -> Config:
    def wrong(key: str, expected: str) -> ConfigError:
        shown = "(not shown)" if key == "ipmi_password" else f"'{values[key]}'"
        return ConfigError(f"{path}: {key} = {shown}: {expected}")

    def number(key: str, low: float, high: float) -> float:
        try:
            found = float(values[key])
        except ValueError:
            raise wrong(key, "must be a number") from None
        if not low <= found <= high:
            raise wrong(key, f"must be between {low:g} and {high:g}")
        return found

    def whole(key: str, low: int, high: int) -> int:
        found = number(key, low, high)
        if found != int(found):
            raise wrong(key, "must be a whole number")
        return int(found)

    try:
        zookeeper = parse(values["zookeeper"])
    except BadEndpoint as error:
        raise wrong("zookeeper", str(error)) from None
    if values["node_name"] not in ("", node):
        raise wrong("node_name", f"another section names this node '{node}'")
    if values["fence_action"] not in ("reboot", "off"):
        raise wrong("fence_action", "must be 'reboot' or 'off'")
    if values["host_shutdown"] not in ("flush", "shutdown"):
        raise wrong("host_shutdown", "must be 'flush' or 'shutdown'")
    if values["migrate_unsafe"].lower() not in ("yes", "no", "true", "false", "1", "0"):
        raise wrong("migrate_unsafe", "must be 'yes' or 'no'")
    if values["ipmi_hostname"] and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,252}", values["ipmi_hostname"]):
        raise wrong("ipmi_hostname", "must be a host name or an address")
    if values["ipmi_username"] and not re.fullmatch(r"[\x21-\x2c\x2e-\x7e][\x21-\x7e]{0,15}", values["ipmi_username"]):
        raise wrong("ipmi_username", "must have 1 to 16 printable characters and not begin with '-'")
    if not re.fullmatch(r"[\x20-\x7e]{0,20}", values["ipmi_password"]):
        raise wrong("ipmi_password", "must have at most 20 printable ASCII characters (IPMI 2.0 takes no more)")
    config = Config(
        zookeeper, number("keepalive_interval", 1, 60), values["ipmi_hostname"] or _bmc_name(node),
        values["ipmi_username"], values["ipmi_password"], whole("fence_intervals", 3, 100), values["fence_action"],
        whole("migration_workers", 1, 32), number("shutdown_timeout", 1, 3600),
        values["migrate_unsafe"].lower() in ("yes", "true", "1"), values["host_shutdown"],
        number("host_shutdown_timeout", 0, HOST_SHUTDOWN_S), node, bool(values["node_name"]), warnings)
    _refuse_hasty(path, config)
    return config


def _refuse_hasty(path: str, config: Config) -> None:
    """The silence that gets a node fenced must outlast what a healthy one can be silent for."""
    silence = config.fence_intervals * config.keepalive_interval
    election = min(ELECTION_S, config.keepalive_interval)
    needed = config.session_timeout_s * 2 / 3 + election + 2 * config.keepalive_interval
    if silence < needed:
        raise ConfigError(f"{path}: fence_intervals = {config.fence_intervals}: {silence:g} s of silence are less than a lost ZooKeeper "
                          f"server may cost a healthy node ({needed:.1f} s). Leave it at 6.")


def _bmc_name(hostname: str) -> str:
    short, _, domain = hostname.partition(".")
    return f"{short}-lom.{domain}" if domain else f"{short}-lom"
