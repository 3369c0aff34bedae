"""Change one key of a commented YAML file and leave every other line as it is: ``advprior init --set KEY=VALUE``."""

from __future__ import annotations

import re
from pathlib import Path

from advprior.store.errors import AdvpriorError


def set_key(text: str, key: str, value: str) -> str:
    """The YAML with ``key`` (dots between levels) set to ``value``, with what stood there gone.

    A key that stands in a comment takes that line's place; one that stands nowhere is added to the end of its level.

    Examples
    --------
    >>> print(set_key("tables:\\n  households: 200  # or all\\n# seed: 0\\n", "tables.households", "all"), end="")
    tables:
      households: all
    # seed: 0
    >>> print(set_key("priors:\\n  - name: llm\\n# seed: 0  # of all\\n", "priors", "full"), end="")
    priors: full
    # seed: 0  # of all
    """
    lines = text.splitlines()
    *levels, last = key.split(".")
    start, end, indent = 0, len(lines), 0
    for level in levels:
        at = _line_of(lines, start, end, indent, level)
        if at is None:
            lines.insert(end, " " * indent + f"{level}:")
            at = end
        elif not re.match(rf"\s*{re.escape(level)}:\s*(#.*)?$", lines[at]):  # a flow mapping, or a scalar: made anew
            lines[at] = " " * indent + f"{level}:"
        start, end, indent = at + 1, _block_end(lines, at), indent + 2
    at = _line_of(lines, start, end, indent, last)
    entry = " " * indent + f"{last}: {value}"
    if at is None:
        comment = next((i for i in range(start, end) if re.match(rf"#\s*{re.escape(last)}:", lines[i].strip())), None)
        if comment is not None and not levels:
            lines[comment] = entry
        else:
            lines.insert(end, entry)
    else:
        lines[at : _block_end(lines, at)] = [entry]
    return "\n".join(lines) + "\n"


def _line_of(lines: list[str], start: int, end: int, indent: int, key: str) -> int | None:
    pattern = re.compile(rf"{' ' * indent}{re.escape(key)}:")
    return next((i for i in range(start, end) if pattern.match(lines[i])), None)


def _block_end(lines: list[str], at: int) -> int:
    """First line after a key's own block: less or equally indented, and neither empty nor a comment inside it."""
    indent = len(lines[at]) - len(lines[at].lstrip())
    end = at + 1
    for i in range(at + 1, len(lines)):
        line = lines[i]
        if line.strip() and not line.lstrip().startswith("#"):
            depth = len(line) - len(line.lstrip())
            if depth <= indent and not (depth == indent and line.lstrip().startswith("- ")):
                break
            end = i + 1
        elif line.lstrip().startswith("#") and len(line) - len(line.lstrip()) > indent:
            end = i + 1
    return end


def set_keys(path: Path, changes: tuple[str, ...]) -> None:
    """Apply ``KEY=VALUE`` changes to a YAML file.

    Raises
    ------
    AdvpriorError
        ``CFG001`` for a change that is no KEY=VALUE.
    """
    text = path.read_text()
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", key.strip()) or not value.strip():
            raise AdvpriorError(
                "CFG001",
                "a change is no KEY=VALUE",
                where="--set",
                actual=change,
                expected="such as tables.households=all or priors=full",
            )
        text = set_key(text, key.strip(), value.strip())
    path.write_text(text)
