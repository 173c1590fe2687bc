# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""The laws of the house: which room may import what, where time, threads and broad excepts may be, and how long things get."""
from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DAEMON = sorted((ROOT / "pvcd").rglob("*.py"))
CLIENT = sorted((ROOT / "client-cli").rglob("*.py"))
PRODUCT = [ROOT / "pvcd.py", *DAEMON, *CLIENT]
TESTS = sorted((ROOT / "tests").rglob("*.py"))

ONLY_IN = {"kazoo": {"pvcd/cluster/zk.py", "pvcd/cluster/multiread.py", "pvcd/cluster/kazooclient.py"},
           "libvirt": {"pvcd/hypervisor.py", "pvcd/connections.py"},
           "psutil": {"pvcd/keepalive.py"},
           "subprocess": {"pvcd/ipmi.py", "pvcd/hostjobs.py"}, "lxml": {"client-cli/pvc/domainxml.py", "client-cli/pvc/validation.py"}}
PURE = ["pvcd/cluster/schema.py", "pvcd/cluster/endpoint.py",
        "pvcd/cluster/records.py", "pvcd/cluster/claims.py", "pvcd/cluster/fences.py", "pvcd/cluster/placement.py",
        "pvcd/cluster/requests.py", "pvcd/cluster/definition.py", "pvcd/planner.py", "pvcd/handoff.py", "pvcd/situation.py", "pvcd/cluster/flush.py",
        "pvcd/cluster/survival.py", "pvcd/cluster/notices.py", "pvcd/departure.py", "pvcd/drift.py", "pvcd/cluster/avoid.py",
        "pvcd/attempts.py", "pvcd/local.py", "client-cli/pvc/health.py", "client-cli/pvc/monitoring.py",
        "pvcd/liveness.py", "pvcd/bmc.py", "pvcd/fence_plan.py", "pvcd/cluster/controllers.py", "pvcd/cluster/tries.py",
        "pvcd/recovery_plan.py", "client-cli/pvc/formatters.py", "client-cli/pvc/rows.py", "client-cli/pvc/domainxml.py"]
IMPURE = {"time", "os", "threading", "socket", "subprocess", "kazoo", "libvirt", "psutil"}
BROAD = ("pvcd/reconciler.py", "pvcd/keepalive.py", "pvcd/cluster/kazooclient.py")
MAX_FILE, MAX_FUNCTION = 480, 55


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports; relative ones resolved for pvcd."""
    found: set[str] = set()
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[:len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module or "")))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    return {found.partition(".")[0] for found in imports(path)}


@pytest.mark.parametrize("package", ONLY_IN)
def test_each_outside_package_has_one_room(package: str) -> None:
    assert {name(path) for path in PRODUCT if package in roots(path)} <= ONLY_IN[package]


@pytest.mark.parametrize("path", PURE)
def test_pure_rooms_import_nothing_of_the_world(path: str) -> None:
    assert not roots(ROOT / path) & IMPURE


def test_the_contract_stands_alone() -> None:
    for path in (ROOT / "pvcd/cluster").glob("*.py"):
        assert not {found for found in imports(path) if re.match(r"pvcd\.(?!cluster)", found)}, name(path)


def test_the_client_knows_only_the_contract() -> None:
    for path in CLIENT:
        assert not {found for found in imports(path) if re.match(r"pvcd(\.(?!cluster)|$)", found)}, name(path)


def test_the_planner_reaches_no_store() -> None:
    for path in ("pvcd/planner.py", "pvcd/handoff.py", "pvcd/situation.py", "pvcd/cluster/flush.py",
        "pvcd/cluster/survival.py", "pvcd/departure.py", "pvcd/liveness.py", "pvcd/fence_plan.py", "pvcd/recovery_plan.py"):
        assert not {found for found in imports(ROOT / path) if re.search(r"cluster\.(store|zk)", found)}, path


def test_nothing_sleeps_and_broad_excepts_are_where_loops_end() -> None:
    for path in PRODUCT:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr == "sleep":
                pytest.fail(f"{name(path)}:{node.lineno} sleeps")
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{name(path)}:{node.lineno}: bare except"
                broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                assert not broad or name(path) in BROAD, f"{name(path)}:{node.lineno}: too broad"


def test_paths_of_keys_are_spelled_in_the_schema_only() -> None:
    for path in PRODUCT:
        if name(path) == "pvcd/cluster/schema.py":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"/(nodes|domains)(/\{|$|/$)", node.value), f"{name(path)}:{node.lineno}"


@pytest.mark.parametrize("path", PRODUCT + TESTS, ids=name)
def test_files_and_functions_stay_readable(path: Path) -> None:
    lines = path.read_text().splitlines()
    if not lines:
        return
    start = 1 if lines[0].startswith("#!") else 0
    assert lines[start:start + 2] == ["# SPDX-License-Identifier: GPL-3.0-or-later", "# Copyright (C) 2026 The PVC developers"]
    assert ast.get_docstring(tree(path)), "a module opens with what it is for"
    assert len(lines) <= MAX_FILE
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or node.lineno) - node.lineno < MAX_FUNCTION, node.name


def test_the_project_speaks_of_itself_alone() -> None:
    tracked = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True,
                             text=True, check=True).stdout.splitlines()
    for path in tracked:
        if path.endswith((".xml", ".svg")) or path == "LICENSE" or not (ROOT / path).is_file():
            continue
        text = (ROOT / path).read_text(errors="replace")
        assert not re.search(r"(?<![\w.{}])/(wo" + r"rk|fa" + r"rm|ro" + r"ot)/", text), path
