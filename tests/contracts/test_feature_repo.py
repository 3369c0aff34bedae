"""The feature repository through Feast's own commands: apply and materialize, then an online read."""

from contextlib import chdir
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advprior.runtime.topk import top_k
from advprior.store.contract import (
    BASELINE_SERVICE,
    LLM,
    LOG_PROBS,
    MATRIX_FILE,
    NEIGHBOURS,
    TABLE_FILE,
    TAIL_FILE,
    TAIL_LOG_MASS,
    TOP_INDEX,
    TOP_INDEX_FILE,
    prior_service,
)
from advprior.store.feast_import import light_feast_import
from advprior.store.matrix import open_matrix
from ranking.frame.gather import PriorFiles
from ranking.frame.preflight import check_prior
from ranking.frame.publish import publish_features
from ranking.frame.views import view_folder
from tests.ranking.stores import SHIPPED, apply, copy_repo, publish_priors
from tests.tiny import PLAN, write_tiny

# ibis 12 calls a method that duckdb 2 renamed
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")


def feast(cwd: Path, *arguments: str) -> str:
    """Feast's own command, in this process: starting another one for it costs eight seconds."""
    from feast.cli.cli import cli

    with chdir(cwd):  # Feast moves into the repository, and stays there
        result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_apply_reads_only_definitions() -> None:
    with light_feast_import():
        from feast.repo_operations import get_repo_files

    assert [path.name for path in get_repo_files(SHIPPED)] == ["definitions.py"]


def test_apply_before_anything_is_published(tmp_path: Path) -> None:
    store = apply(copy_repo(tmp_path / "feature_repo"))
    assert store.list_feature_views() == []
    assert store.list_feature_services() == []


def test_apply_materialize_and_read_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = write_tiny(tmp_path / "tables", users=8)
    repo = copy_repo(tmp_path / "feature_repo")
    publish_features(tables, repo)
    folder = publish_priors(repo, tables, LLM)

    output = feast(tmp_path, "-c", "feature_repo", "apply")
    assert "not published" not in output  # a control that nobody published was not asked for
    from feast import FeatureStore

    # Feast's duckdb store must read the tables from any working directory
    monkeypatch.chdir(tmp_path)
    store = FeatureStore(repo_path="feature_repo")
    store.materialize(PLAN.start, PLAN.end)
    assert {s.name for s in store.list_feature_services()} == {BASELINE_SERVICE, prior_service(LLM)}
    offline = pd.read_parquet(folder / "table.parquet").sort_values("event_timestamp").groupby("user_id").last()
    profile = pd.read_parquet(tables / "users.parquet").set_index("user_id")
    history = pd.read_parquet(view_folder(repo, "user_history") / "table.parquet")
    history = history.sort_values("event_timestamp").groupby("user_id").last()
    ad = pd.read_parquet(tables / "ads.parquet").ad_id[0]
    for user in offline.index:
        answer = store.get_online_features(
            features=store.get_feature_service(prior_service(LLM)),
            entity_rows=[{"user_id": user, "ad_id": ad}],
            full_feature_names=True,  # several views have a snapshot
        ).to_dict()
        np.testing.assert_array_equal(np.float32(answer[f"prior_llm__{LOG_PROBS}"][0]), offline.log_probs[user])
        assert answer["prior_llm__prior_row"] == [offline.prior_row[user]]
        assert answer["prior_llm__catalog_version"] == ["v1"]
        assert answer["prior_llm__entropy"][0] == pytest.approx(offline.entropy[user])
        assert answer["user_profile__profile_age"] == [profile.profile_age[user]]
        assert answer["user_history__history_row"] == [history.history_row[user]]
        assert answer["user_history__activity_occasions_all"][0] == history.activity_occasions_all[user]
        assert answer["ad_stats__ad_category"][0] is not None


def test_top_k_priors_are_served_with_their_ids_and_tail(tmp_path: Path) -> None:
    """What a service needs to rebuild a row comes back in one read; a dense prior has none of it."""
    tables = write_tiny(tmp_path / "tables", users=4)
    repo = copy_repo(tmp_path / "feature_repo")
    publish_features(tables, repo)
    dense = publish_priors(repo, tables, NEIGHBOURS)
    log_probs = open_matrix(dense / MATRIX_FILE)[:]
    index, best, tail = top_k(log_probs, 3)
    table = pd.read_parquet(dense / "table.parquet")
    rows = table.prior_row.to_numpy()
    table = table.assign(
        log_probs=list(best[rows]), top_index=list(index[rows].astype(np.int64)), tail_log_mass=tail[rows]
    )
    publish_priors(repo, tables, LLM, **{TABLE_FILE: table, MATRIX_FILE: best, TOP_INDEX_FILE: index, TAIL_FILE: tail})
    check_prior(repo, LLM)
    store = apply(repo)
    fields = {view.name: {f.name for f in view.schema} for view in store.list_feature_views()}
    assert {TOP_INDEX, TAIL_LOG_MASS} <= fields["prior_llm"]
    assert not {TOP_INDEX, TAIL_LOG_MASS} & fields["prior_neighbours"]
    store.materialize(PLAN.start, PLAN.end)
    latest = table.sort_values("event_timestamp").groupby("user_id").last()
    whole = PriorFiles.open(repo / "data/prior_llm")
    for user in latest.index:
        answer = store.get_online_features(
            features=[f"prior_llm:{name}" for name in (LOG_PROBS, TOP_INDEX, TAIL_LOG_MASS)],
            entity_rows=[{"user_id": user}],
        ).to_dict()
        served = np.full(whole.size, answer[TAIL_LOG_MASS][0] - np.log(whole.size - 3))
        served[answer[TOP_INDEX][0]] = answer[LOG_PROBS][0]
        np.testing.assert_allclose(served, whole.row(latest.prior_row[user]), rtol=1e-5)
        row = log_probs[latest.prior_row[user]]
        assert set(answer[TOP_INDEX][0]) == set(np.argsort(row)[-3:])


def test_applying_again_adds_what_was_published_since(tmp_path: Path) -> None:
    tables = write_tiny(tmp_path / "tables", users=4)
    repo = copy_repo(tmp_path / "feature_repo")
    publish_features(tables, repo)
    assert [s.name for s in apply(repo).list_feature_services()] == [BASELINE_SERVICE]
    publish_priors(repo, tables, NEIGHBOURS)
    assert {s.name for s in apply(repo).list_feature_services()} == {BASELINE_SERVICE, prior_service(NEIGHBOURS)}
