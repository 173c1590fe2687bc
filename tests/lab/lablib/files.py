# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The files that make a node of a plain Debian tree: addresses, ZooKeeper, libvirt, and what of systemd it starts."""
from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

BMC_USER, BMC_PASSWORD = "admin", "lab%secret"

TARGET = """[Unit]
Description=A node of the lab
Requires=basic.target
Wants=lab-network.service zookeeper.service virtlogd.socket libvirtd-tcp.socket libvirtd.service pvcd.service
After=basic.target
AllowIsolate=yes
"""
NETWORK = """[Unit]
Description=The address of this node
DefaultDependencies=no
Before=network.target network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/ip link set lo up
ExecStart=/usr/sbin/ip address replace {address}/24 dev host0
ExecStart=/usr/sbin/ip link set host0 up
"""
ZOOKEEPER = """[Unit]
Description=ZooKeeper
After=lab-network.service
Wants=lab-network.service

[Service]
ExecStart=/usr/bin/java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dzookeeper.cnxTimeout=1000 -cp /etc/zookeeper/conf:/usr/share/java/zookeeper.jar \
org.apache.zookeeper.server.quorum.QuorumPeerMain /etc/zookeeper/lab/zoo.cfg
Restart=always
RestartSec=1
"""
ZOO_CFG = """tickTime=500
initLimit=20
syncLimit=6
dataDir=/var/lib/zookeeper
clientPort=2181
maxClientCnxns=0
admin.enableServer=false
4lw.commands.whitelist=*
autopurge.purgeInterval=1
{servers}
"""
LOG4J = """log4j.rootLogger=WARN, CONSOLE
log4j.appender.CONSOLE=org.apache.log4j.ConsoleAppender
log4j.appender.CONSOLE.layout=org.apache.log4j.PatternLayout
log4j.appender.CONSOLE.layout.ConversionPattern=%d{ISO8601} %p %m%n
"""
QEMU_CONF = """user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
stdio_handler = "file"
"""
PVCD_CONF = """[default]
zookeeper = {zookeeper}
keepalive_interval = {interval}
ipmi_hostname = {{bmc}}
ipmi_username = {user}
ipmi_password = {password}
migrate_unsafe = yes
shutdown_timeout = 10
"""
MASKED = ("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
          "systemd-resolved.service", "systemd-timesyncd.service", "systemd-networkd.service", "systemd-networkd.socket",
          "console-getty.service", "getty.target", "timers.target", "docker.socket", "systemd-firstboot.service",
          "libvirt-guests.service", "ssh.socket", "systemd-journal-flush.service")


def write_node(upper: Path, name: str, address: str, number: int, nodes: Mapping[str, str], bmcs: Mapping[str, str],
               interval: float) -> None:
    """Write into the overlay of node `name` (the `number`th of `nodes`, name → address)."""
    def put(path: str, text: str, mode: int = 0o644) -> None:
        target = upper / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    units = "etc/systemd/system"
    put(f"{units}/lab.target", TARGET)
    put(f"{units}/lab-network.service", NETWORK.format(address=address))
    put(f"{units}/zookeeper.service", ZOOKEEPER)
    for unit in MASKED:
        link = upper / units / unit
        if not link.is_symlink():
            link.symlink_to("/dev/null")
    servers = "\n".join(f"server.{n}={host}:2888:3888" for n, host in enumerate(nodes.values(), 1))
    put("etc/zookeeper/lab/zoo.cfg", ZOO_CFG.format(servers=servers if len(nodes) > 1 else ""))
    put("etc/zookeeper/conf/log4j.properties", LOG4J)
    put("var/lib/zookeeper/myid", f"{number}\n")
    put("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 0\n", 0o755)  # a container's says no: packages would restart nothing
    put("etc/hostname", name + "\n")
    hosts = "".join(f"{host} {known}\n" for known, host in [*nodes.items(), *bmcs.items()])
    put("etc/hosts", "127.0.0.1 localhost\n" + hosts)
    machine_id = uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{address}").hex
    put("etc/machine-id", machine_id + "\n")
    put("etc/libvirt/libvirtd.conf", f'auth_tcp = "none"\nhost_uuid = "{uuid.UUID(machine_id)}"\n')
    put("etc/libvirt/qemu.conf", QEMU_CONF, 0o600)
    put("etc/default/libvirtd", 'LIBVIRTD_ARGS=""\n')
    put("etc/systemd/journald.conf.d/lab.conf", "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRateLimitIntervalSec=0\n")
    (upper / "var/log/journal").mkdir(parents=True, exist_ok=True)
    zookeeper = ",".join(f"{known}:2181" for known in nodes)
    conf = PVCD_CONF.format(zookeeper=zookeeper, interval=f"{interval:g}", user=BMC_USER, password=BMC_PASSWORD)
    put("etc/pvc/pvcd.conf", conf.format(bmc=f"{name}-lom"), 0o600)
