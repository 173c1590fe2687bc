# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (C) 2026 The PVC developers
"""Makes the mutants of one source file, from its syntax alone. Pure.

`TRANSACTION` kinds are the ones of which none may live: a check or write that a transaction lacks, a version that is not checked, an
effect without its gate. The other kinds are the usual ones: comparisons, conditions, constants, statements, enum members, keywords.
Messages are not mutated: not their text, not their level, not the statements that only say something.
"""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

TRANSACTION = ("change dropped", "any version", "no gate")
ENUMS = ("VMState", "Status", "FencePhase", "DaemonState", "DomainState", "OpPhase", "Power", "CallState", "Verb", "Answer", "Phase", "Ending",
         "Act", "Kind", "Purpose", "Verdict")
_CHANGE = {"Check", "Write", "Create", "Delete", "_set", "mine", "as_read", "rolled_back", "proof", "alive", "silent", "gate", "claim_gate",
           "taken", "renamed", "stale", "freed", "back_up", "registered", "rejoined", "powered_on"}
_CHANGES = re.compile(r"\b(Change|Check|Write)\b")
_TAKES_CHANGES = ("apply", "commit", "Request")
_TELLS = ("say", "_say", "_tell", "tell", "note", "_note", "record", "echo", "_report")
_COMPARISONS = {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
                ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}


@dataclass(frozen=True)
class Mutant:
    """One change of one file. `lines`: the first and last line that it touches; `text`: the whole file with it."""

    file: str
    function: str
    lines: tuple[int, int]
    kind: str
    was: str
    becomes: str
    text: str

    @property
    def name(self) -> str:
        """The same as long as the code is: it does not hold a line number."""
        return f"{self.file}:{self.function}: {self.kind}: {self.was} → {self.becomes}"


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines; each compiles."""
    tree = ast.parse(source)
    changes = _changes(tree)
    return [made for node, function in _walk(tree, "") for kind, where, new in _of(node, changes)
            if (made := _made(file, source, function, kind, where, new))]


def _changes(tree: ast.AST) -> set[ast.AST]:
    """What stands in a transaction whatever it is called: in a tuple that is applied, or that a function returns as changes."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _TAKES_CHANGES and node.args \
                and isinstance(node.args[0], ast.Tuple):
            found |= set(node.args[0].elts)
        if isinstance(node, ast.FunctionDef) and node.returns is not None and _CHANGES.search(ast.unparse(node.returns)):
            returned = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)]
            returned += [part for value in returned if isinstance(value, ast.IfExp) for part in (value.body, value.orelse)]
            found |= {element for value in returned if isinstance(value, ast.Tuple) for element in value.elts}
    return found


def _walk(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    """Every node that is executed, with the name of its function; no annotations, no `raise`, no statement that only tells."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_params", "bases", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Assert)) or _tells(child):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            inner = ".".join(filter(None, (function, child.name))) if named else function  # type: ignore[attr-defined]
            yield child, inner
            yield from _walk(child, inner)


def _tells(node: ast.AST) -> bool:
    if not isinstance(node, ast.Expr):
        return False
    call = node.value
    if isinstance(call, ast.Constant):
        return True  # a docstring
    return isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in _TELLS


Change = tuple[str, ast.AST, str]
"""kind, the node whose text is replaced, the new text"""


def _of(node: ast.AST, changes: set[ast.AST]) -> Iterator[Change]:
    yield from _transactions(node, changes)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        new = ast.Compare(node.left, [_COMPARISONS[type(node.ops[0])]()], node.comparators)
        yield "comparison", node, f"({ast.unparse(new)})"
    elif isinstance(node, ast.BoolOp):
        other = ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        yield "and/or", node, f"({ast.unparse(other)})"
        for index in range(len(node.values)):
            kept = [value for place, value in enumerate(node.values) if place != index]
            yield "condition dropped", node, f"({ast.unparse(kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept))})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", node, f"({ast.unparse(node.operand)})"
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield "guard never taken", node.test, "(False)"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", node, str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "constant", node, repr(node.value + 1)
    elif isinstance(node, ast.Expr) or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)):
        yield "statement deleted", node, "pass"
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ENUMS and node.attr.isupper():
        yield "enum member", node, f"{node.value.id}.__members__[next(n for n in {node.value.id}.__members__ if n != {node.attr!r})]"
    elif isinstance(node, ast.Call):
        yield from _keywords(node)


def _keywords(node: ast.Call) -> Iterator[Change]:
    for keyword in node.keywords:
        if keyword.arg and keyword.arg not in ("level", "failed", "daemon", "name", "encoding", "errors", "key"):
            yield "keyword dropped", node, ast.unparse(ast.Call(node.func, node.args, [k for k in node.keywords if k is not keyword]))


def _transactions(node: ast.AST, changes: set[ast.AST]) -> Iterator[Change]:
    if isinstance(node, (ast.Tuple, ast.List)) and isinstance(node.ctx, ast.Load):
        for element in node.elts:
            if element in changes or _is_change(element):
                yield "change dropped", element, "*()"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Check", "Write", "Delete"):
        version = node.args[2 if node.func.id == "Write" else 1] if len(node.args) > (2 if node.func.id == "Write" else 1) else None
        if version is not None and ast.unparse(version) != "ANY":
            yield "any version", version, "-1"
    if isinstance(node, ast.Call):
        for argument in node.args:
            if isinstance(argument, ast.Attribute) and argument.attr in ("gate", "claim_gate"):
                yield "no gate", argument, "()"


def _is_change(node: ast.expr) -> bool:
    """By what it is called, where neither a transaction nor what a function returns shows it."""
    if isinstance(node, (ast.Name, ast.Attribute)):
        called = node.id if isinstance(node, ast.Name) else node.attr
        return called in _CHANGE and not called[0].isupper()
    inner = {part.id if isinstance(part, ast.Name) else part.attr for part in ast.walk(node) if isinstance(part, (ast.Name, ast.Attribute))}
    return isinstance(node, (ast.Starred, ast.Call)) and bool(inner & _CHANGE)


def _made(file: str, source: str, function: str, kind: str, node: ast.AST, new: str) -> Mutant | None:
    """The file with the text of `node` replaced; None if that is no Python or changes nothing."""
    assert isinstance(node, (ast.expr, ast.stmt)) and node.end_lineno is not None and node.end_col_offset is not None
    lines = source.encode().splitlines(keepends=True)
    first, last = node.lineno - 1, node.end_lineno - 1
    begin = sum(map(len, lines[:first])) + node.col_offset
    end = sum(map(len, lines[:last])) + node.end_col_offset
    raw = source.encode()
    was = " ".join(raw[begin:end].decode().split())
    text = (raw[:begin] + new.encode() + raw[end:]).decode()
    try:
        ast.parse(text)
    except SyntaxError:
        return None
    return None if text == source else Mutant(file, function, (node.lineno, node.end_lineno), kind, was, new, text)
