"""The budgets that keep the house legible, checked: file <= 300 lines, function <= 40, <= 5 parameters, no `global`,
broad `except` in two named places. Run by `make check`; prints every breach and exits 1 if there is one.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE, FUNCTION, PARAMETERS = 300, 40, 5
BROAD = {("gateway/serving/relay.py", "run"), ("gateway/log/writer.py", "_forever")}


def breaches(path: Path) -> list[str]:
    """What is over budget in one file."""
    name = path.relative_to(ROOT).as_posix()
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    found = []
    lines = source.count("\n")
    if lines > FILE:
        found.append(f"{name}: {lines} lines, at most {FILE}")
    if ast.get_docstring(tree) is None and path.name != "__init__.py":
        found.append(f"{name}: no docstring that says what the module knows")
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            found.append(f"{name}:{node.lineno}: global")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "/migrations/" not in name:
            found += _function(name, node)
    return found


def _function(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    found = []
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    body = node.body[1:] if documented and len(node.body) > 1 else node.body
    length = (node.end_lineno or 0) - body[0].lineno + 1
    if length > FUNCTION:
        found.append(f"{name}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION}")
    positional = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
    if len(positional) > PARAMETERS:
        found.append(f"{name}:{node.lineno}: {node.name} takes {len(positional)} parameters, at most {PARAMETERS}")
    for handler in (n for n in ast.walk(node) if isinstance(n, ast.ExceptHandler)):
        broad = handler.type is None or (
            isinstance(handler.type, ast.Name) and handler.type.id in ("Exception", "BaseException")
        )
        if broad and (name, node.name) not in BROAD:
            found.append(f"{name}:{handler.lineno}: broad except in {node.name}")
    return found


def main() -> int:
    files = [path for room in ("gateway", "ui") for path in sorted((ROOT / room).rglob("*.py"))]
    found = [breach for path in files for breach in breaches(path)]
    print("\n".join(found) or f"{len(files)} files within the budgets.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
