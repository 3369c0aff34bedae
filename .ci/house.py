"""What ruff has no rule for: how long files and functions may be, names that say nothing, code that is not formatted.

Prose is held by `tests/docs`. Run by `make lint`. Prints every breach as file:line, and exits with 1 when there is one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES = 400, 60
SOURCES = ("advprior/", "ranking/", "feature_repo/")
#: Names that do not say what they hold.
NAMES = {"found"}

Breach = tuple[int, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tracked_files() -> list[Path]:
    """Python files under version control."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def function_lines(function: Function) -> int:
    """Lines of a function without its decorators and docstring."""
    docstring = function.body[0]
    is_docstring = isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    documented = (docstring.end_lineno or 0) - docstring.lineno + 1 if is_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - documented


def names(node: ast.AST) -> Iterator[str]:
    """Identifiers that a node introduces or uses."""
    fields = {ast.Name: "id", ast.arg: "arg", ast.keyword: "arg", ast.Attribute: "attr", ast.alias: "asname"}
    fields |= {ast.FunctionDef: "name", ast.AsyncFunctionDef: "name", ast.ClassDef: "name"}
    if type(node) in fields:
        yield getattr(node, fields[type(node)]) or ""


def is_table(statement: ast.stmt) -> bool:
    """Whether a statement assigns nothing but constants."""
    value = getattr(statement, "value", None)
    parts = (ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Constant, ast.UnaryOp, ast.unaryop, ast.expr_context)
    return value is not None and all(isinstance(node, parts) for node in ast.walk(value))


def breaches_of(path: Path) -> Iterator[Breach]:
    """What is not as agreed in a file."""
    text = path.read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    if len(lines) > FILE_LINES:
        yield 1, f"{len(lines)} lines, more than {FILE_LINES}"
    is_source = str(path.relative_to(ROOT)).startswith(SOURCES)
    for node in ast.walk(tree):
        if isinstance(node, Function) and function_lines(node) > FUNCTION_LINES:
            yield node.lineno, f"{node.name}: {function_lines(node)} lines, more than {FUNCTION_LINES}"
        for name in names(node) if is_source else ():
            if name in NAMES:
                yield getattr(node, "lineno", 1), f"a name that does not say what it holds: {name}"
    tables = {node.end_lineno for node in ast.walk(tree) if isinstance(node, ast.stmt) and is_table(node)}
    for number, line in enumerate(lines, start=1):
        if line.rstrip().endswith(("# fmt: skip", "# fmt: off")) and number not in tables:
            yield number, "only tables of constants stay as they are: take '# fmt' out"


def main() -> int:
    """Print all breaches; 1 when there is one."""
    breaches = [(path, *breach) for path in tracked_files() for breach in breaches_of(path)]
    for path, line, what in sorted(breaches):
        print(f"{path.relative_to(ROOT)}:{line}: {what}")
    return int(bool(breaches))


if __name__ == "__main__":
    sys.exit(main())
