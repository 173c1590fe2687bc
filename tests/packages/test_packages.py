# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The two Debian packages: built from a copy of the checkout, twice the same, clean, hardened, and complete."""
from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lablib.host import copy_checkout

HARD_ENOUGH = 2.5


def run(*argv: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("build")
    copy_checkout(folder / "pvc")
    out = run(str(folder / "pvc/build-deb.sh")).stdout.split()
    assert [Path(path).name for path in out] == ["pvc-daemon_0.1_all.deb", "pvc-client_0.1_all.deb"]
    yield folder


@pytest.fixture(scope="module")
def tree(built: Path) -> Path:
    """Both packages unpacked."""
    for name in ("pvc-daemon", "pvc-client"):
        run("dpkg-deb", "-x", str(built / f"{name}_0.1_all.deb"), str(built / name))
    return built


def test_a_second_build_elsewhere_is_the_same(built: Path, tmp_path: Path) -> None:
    copy_checkout(tmp_path / "a longer name/pvc")
    run(str(tmp_path / "a longer name/pvc/build-deb.sh"))
    for name in ("pvc-daemon_0.1_all.deb", "pvc-client_0.1_all.deb"):
        first, second = ((folder / name).read_bytes() for folder in (built, tmp_path / "a longer name"))
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest(), name


def test_lintian_has_nothing_to_say(built: Path) -> None:
    changes = next(built.glob("*.changes"))
    out = run("lintian", "--allow-root", "--pedantic", "--fail-on", "error,warning,pedantic", str(changes), check=False)
    assert out.returncode == 0, out.stdout


def test_the_service_is_hardened(tree: Path) -> None:
    unit = next(tree.glob("pvc-daemon/**/pvcd.service"))
    out = run("systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)).stdout
    exposure = float(re.findall(r"Overall exposure level for \S+: ([0-9.]+)", out)[0])
    assert exposure <= HARD_ENOUGH, out


def test_the_unit_is_understood(tree: Path) -> None:
    unit = next(tree.glob("pvc-daemon/**/pvcd.service"))
    out = run("systemd-analyze", "verify", "--man=no", str(unit), check=False)
    complaints = [line for line in (out.stdout + out.stderr).splitlines() if "pvcd.service" in line and "is not executable" not in line]
    assert complaints == []


def test_no_dangling_links_and_no_byte_code(tree: Path) -> None:
    for name in ("pvc-daemon", "pvc-client"):
        for path in (tree / name).rglob("*"):
            assert path.suffix != ".pyc"
            if path.is_symlink():
                target = os.readlink(path)
                assert (tree / name / target.lstrip("/") if target.startswith("/") else path.parent / target).exists(), path


def test_each_package_runs_alone(tree: Path, tmp_path: Path) -> None:
    client = tree / "pvc-client/usr/share/pvc-client/pvc.py"
    assert "Manage virtual machines" in run("/usr/bin/python3", str(client), "-h", PYTHONPATH="").stdout
    refused = run("/usr/bin/python3", str(client), "-z", "127.0.0.1:1", "vm", "list", check=False, PYTHONPATH="")
    assert refused.returncode == 5 and "not reachable" in refused.stderr
    daemon = tree / "pvc-daemon/usr/share/pvc/pvcd.py"
    unset = run("/usr/bin/python3", str(daemon), check=False, PVCD_CONFIG_FILE="")
    assert unset.returncode == 78 and "PVCD_CONFIG_FILE" in unset.stdout
    absent = run("/usr/bin/python3", str(daemon), check=False, PVCD_CONFIG_FILE=str(tmp_path / "pvcd.conf"))
    assert absent.returncode == 78 and "pvcd.conf.sample" in absent.stdout


def test_the_sample_configuration_is_a_configuration(tree: Path) -> None:
    from pvcd import config
    sample = next(tree.glob("pvc-daemon/etc/pvc/pvcd.conf.sample"))
    found = config.load(str(sample), "hv1.example.org")
    assert found.warnings == () and found.keepalive_interval == 5 and found.ipmi_hostname == "hv1-lom.example.org"
    assert set(re.findall(r"^#?(\w+) =", sample.read_text(), re.MULTILINE)) >= set(config.DEFAULTS)
