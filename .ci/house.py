"""What ruff has no rule for: how long a file, a function and a line of prose may be, and words that are not used here.

Run by `make lint`. Prints every breach as file:line, and exits with 1 when there is one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES, PROSE_WIDTH = 400, 60, 120
SOURCES = ("advprior/", "ranking/", "feature_repo/")
#: Names that do not say what they hold.
NAMES = {"found"}
#: Words with a plainer one in their place.
WORDS = {
    r"mend(s|ed|ing)?": "fix",
    r"twins?": "random-weight control",
    r"by lot": "at random",
    r"what came of": "result of",
}

Breach = tuple[int, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tracked(suffix: str) -> list[Path]:
    """Files under version control whose names end so."""
    listed = subprocess.run(["git", "ls-files", f"*{suffix}"], cwd=ROOT, capture_output=True, text=True, check=True)
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


def python_breaches(path: Path, text: str) -> Iterator[Breach]:
    """What is not as agreed in a Python file."""
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
        if isinstance(node, ast.stmt) and lines[(node.end_lineno or 1) - 1].endswith("# fmt: skip"):
            compound = hasattr(node, "body")
            if not compound and not is_table(node):
                yield node.lineno, "'# fmt: skip' is for tables of constants"
    if is_source:
        yield from word_breaches(lines)


def prose_breaches(lines: list[str]) -> Iterator[Breach]:
    """Lines of a Markdown page that are too long to show a change; tables, code, links and pictures may be longer."""
    in_code = False
    for number, line in enumerate(lines, start=1):
        in_code ^= line.lstrip().startswith("```")
        if len(line) > PROSE_WIDTH and not in_code and not re.match(r"\s*(\||!?\[|<|#)", line):
            yield number, f"{len(line)} characters, more than {PROSE_WIDTH}"


def word_breaches(lines: list[str]) -> Iterator[Breach]:
    """Words that have a plainer one."""
    for number, line in enumerate(lines, start=1):
        for word, plain in WORDS.items():
            if match := re.search(rf"\b{word}\b", line, re.IGNORECASE):
                yield number, f"{match[0]!r}: write {plain!r}"


def main() -> int:
    """Print all breaches; 1 when there is one."""
    breaches = []
    for path in tracked(".py"):
        breaches += [(path, *breach) for breach in python_breaches(path, path.read_text())]
    for path in tracked(".md"):
        lines = path.read_text().splitlines()
        breaches += [(path, *breach) for breach in prose_breaches(lines)]
    for path, line, what in sorted(breaches):
        print(f"{path.relative_to(ROOT)}:{line}: {what}")
    return int(bool(breaches))


if __name__ == "__main__":
    sys.exit(main())
