"""Cases made from the service's own OpenAPI, valid and broken, and what must hold of every answer.

A few run with the tests; ``python -m tests.service.contract --cases 2000`` runs as many as one likes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from ranking.service.app import create_app, make_engine
from tests.service.live import TestClient, settings_of
from tests.service.workspaces import NOW, FixedClock, Project, build_project

#: Broken cases can be large; 413, which has a test of its own, is no answer that schemathesis counts as a refusal.
ROOMY = 64 * 1024 * 1024


def check_contract(app: Any, cases: int) -> int:
    """Run up to ``cases`` cases of each operation, half of them broken; how many ran.

    Every answer must be no 5xx, of a status, type and schema that the OpenAPI names, and refuse what is broken.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    ran = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(
                max_examples=max(1, cases // 2),
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                nonlocal ran
                case.call_and_validate()
                ran += 1

            try:
                check()
            except Exception as error:
                if "nsatisf" in type(error).__name__:  # an operation without input has nothing to break
                    continue
                raise
    return ran


def main() -> None:
    """Build a small project, serve it in process, and try it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    with tempfile.TemporaryDirectory() as folder:
        project: Project = build_project(Path(folder) / "project")
        own = settings_of(project, max_body=ROOMY)
        app = create_app(own, make_engine(own, FixedClock(NOW)))
        with TestClient(app):
            print(f"{check_contract(app, parser.parse_args().cases)} cases, all as the OpenAPI says")


if __name__ == "__main__":
    main()
