"""A refresh and a rollback under traffic: no outage, and each answer of one publication."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advprior.store.contract import CATALOG_FILE, LLM, MATRIX_FILE, TABLE_FILE, prior_view
from advprior.store.errors import AdvpriorError
from ranking.cli.service import rollback as rollback_command
from ranking.service.rollback import roll_back
from tests.ranking.stores import apply, publish
from tests.service.live import live, traffic, until
from tests.service.test_faults import BODIES
from tests.service.workspaces import NOW, SNAPSHOT, Project, copy_project, knowing_priors, materialize, on_redis
from tests.tiny import PLAN


def publish_other_catalog(project: Project) -> None:
    """The same users under another catalog: advertisers in the opposite order, another version."""
    files = knowing_priors(project.tables, seed=5)
    matrix = np.ascontiguousarray(files[MATRIX_FILE][:, ::-1])
    table: pd.DataFrame = files[TABLE_FILE].assign(catalog_version="v2")
    table["log_probs"] = list(matrix[table.prior_row])
    # available an hour later than the rows that are online: Redis takes no row of an equal time
    for name in ("event_timestamp", "created_timestamp"):
        table[name] += timedelta(hours=1)
    catalog = {"version": "v2", "advertisers": files[CATALOG_FILE]["advertisers"][::-1]}
    publish(project.repo, prior_view(LLM), {TABLE_FILE: table, MATRIX_FILE: matrix, CATALOG_FILE: catalog})


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_a_refresh_and_a_rollback_are_no_outage(
    store: str, project: Project, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A new catalog is published and materialized under traffic, then taken back: old answers or new, no third kind."""
    copied = copy_project(project, tmp_path / "copied")
    if store == "redis":
        server = request.getfixturevalue("redis")
        on_redis(copied, server.port)
    else:
        apply(copied.repo)
        materialize(copied.repo, SNAPSHOT + PLAN.lag)

    def key(answer: dict[str, Any]) -> tuple[Any, ...]:
        return answer["prior"]["catalog_version"], tuple((s["ad_id"], s["score"]) for s in answer["slots"])

    with live(copied) as service, traffic(service.port, BODIES) as found:
        found.await_answers(60)
        publish_other_catalog(copied)
        found.await_answers(10)
        materialize(copied.repo, NOW, ["prior_llm"])
        found.await_answers(60)
        until(lambda: {a["prior"]["catalog_version"] for a in found.answers[found.await_answers(20) :]} == {"v2"})
        middle = len(found.answers)
        result = CliRunner().invoke(
            rollback_command, ["--repo", str(copied.repo), "--view", "prior_llm", "--now", NOW.isoformat()]
        )
        assert result.exit_code == 0, result.output
        assert "serves 120 rows" in result.output
        until(lambda: {a["prior"]["catalog_version"] for a in found.answers[found.await_answers(20) :]} == {"v1"})
    assert not found.failures
    # for a moment a new catalog may be known to the store and not yet to the service: said, never mixed
    assert found.reasons() <= {"prior_catalog_unknown"}
    versions: dict[str, set[Any]] = {}
    for answer in found.answers:
        if not answer["degraded"]:
            versions.setdefault(answer["user_id"], set()).add(key(answer))
    assert all({version for version, _ in seen} == {"v1", "v2"} for seen in versions.values())
    assert all(len(seen) == 2 for seen in versions.values())  # one answer per catalog, whatever the moment
    assert middle > 0


def test_profiles_go_back_as_a_whole(project: Project, tmp_path: Path) -> None:
    """They have no snapshots: users came into being at many times, and each has one row."""
    copied = copy_project(project, tmp_path / "copied")
    apply(copied.repo)
    first = pd.read_parquet(copied.repo / "data" / "user_profile" / TABLE_FILE)
    assert first.event_timestamp.min() < first.event_timestamp.max()
    publish(copied.repo, "user_profile", {TABLE_FILE: first.assign(profile_age="none of them")})
    back = roll_back(copied.repo, "user_profile", NOW)
    assert (back.rows, back.swapped) == ((first.event_timestamp <= NOW).sum(), True)


def test_there_must_be_something_to_go_back_to(project: Project) -> None:
    with pytest.raises(AdvpriorError, match="SRV007"):
        roll_back(project.repo, "user_profile", NOW)
    with pytest.raises(AdvpriorError, match="SRV007"):
        roll_back(project.repo, "prior_llm", NOW, NOW)
    with pytest.raises(AdvpriorError, match="STO003"):
        roll_back(project.repo, "prior_popularity", NOW)
