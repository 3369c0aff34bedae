"""The predictors and their evaluation take any log: no word of a grocer's stands in their code, prompts or figures."""

from __future__ import annotations

import re
from pathlib import Path

from advprior.predictors.llm.prompts import TITLE

PACKAGE = Path(__file__).resolve().parents[3] / "advprior"
GROCER = re.compile(r"purchas|bought|\bbuys?\b|buyer|basket|household|grocer", re.IGNORECASE)
#: What runs that were fitted earlier say of themselves.
HISTORIC = 'title: str = "Purchases, oldest first:"'


def test_general_code_speaks_of_events() -> None:
    lines = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for room in ("predictors", "evaluation", "history", "runtime", "frames", "spark")
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for line in path.read_text().splitlines()
        if GROCER.search(line.replace(HISTORIC, ""))
    ]
    assert lines == []
    assert not GROCER.search(TITLE)
