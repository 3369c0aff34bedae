"""Preflight: refused before any join, with the command that fixes it."""

import json
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.pipeline.plan import make_plan
from advprior.pipeline.settings import read_project
from advprior.store.contract import CATALOG_FILE, LLM, MATRIX_FILE, PLACEBO, TABLE_FILE, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.offline import STORE_FILE, store_config
from advprior.store.project_files import counted_tables
from benchmarks.scale.spark import spark_lines
from ranking.frame.preflight import check_store, preflight, publish_command
from ranking.frame.publish import publish_features
from ranking.frame.views import view_folder
from tests.ranking.stores import copy_repo, definitions, publish_priors
from tests.spark import CONF, needs_spark, use_spark
from tests.tiny import PLAN, write_tiny


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("preflight") / "tables", users=4)


@pytest.fixture(scope="module")
def whole(tables: Path) -> Path:
    folder = copy_repo(tables.parent / "feature_repo")
    publish_features(tables, folder)
    publish_priors(folder, tables, LLM)
    return folder


@pytest.fixture
def repo(tmp_path: Path, whole: Path) -> Path:
    """A copy for each test: they break it."""
    return Path(shutil.copytree(whole, tmp_path / "feature_repo", symlinks=True))


def refused(code: str, repo: Path, predictors: list[str], **options: object) -> AdvpriorError:
    with pytest.raises(AdvpriorError, match=code) as caught:
        preflight(repo, predictors, **options)  # type: ignore[arg-type]
    return caught.value


def test_a_whole_store_passes(repo: Path) -> None:
    preflight(repo, [LLM], end=PLAN.end)


@pytest.mark.parametrize(
    "store", ["offline_store:\n  type: file", "offline_store: file", "offline_store:\n  type: dask", ""]
)
def test_file_store_is_refused(repo: Path, store: str) -> None:
    """Also when nothing is said: `file` is Feast's own default."""
    path = repo / "feature_store.yaml"
    head = path.read_text().split("offline_store:")[0]
    path.write_text(f"{head}{store}\nentity_key_serialization_version: 3\n")
    error = refused("STO002", repo, [])
    assert "duckdb" in str(error.fix)


@pytest.mark.parametrize("content", [None, "", "a: [b"])
def test_no_feature_repository(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "feature_store.yaml").write_text(content)
    with pytest.raises(AdvpriorError, match="STO001"):
        check_store(tmp_path)


def test_missing_views_come_with_their_commands(repo: Path) -> None:
    view_folder(repo, "ad_stats").unlink()
    error = refused("STO003", repo, [LLM, PLACEBO])
    assert error.actual == "no ad_stats, prior_placebo"
    assert "advprior rank features --tables" in str(error.fix)
    assert f"advprior publish PRIORS/{LLM} --repo {repo} --as {PLACEBO}" in str(error.fix)
    assert f"feast -c {repo} apply" in str(error.fix)
    assert publish_command(prior_view(LLM)) == "advprior publish PRIORS/llm --repo REPO"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("tables: {mapping: mapping.yaml}", "tables"),
        ("tables: {folder: canonical}", "canonical"),
        ("tables: {folder: canonical}\nclusters: true", "tables_cluster"),
        ("tables: {example: clicks}\nclusters: {base: lexical}", "tables_cluster"),
        ("tables: {example: clicks}\nclusters: false", "tables"),
        ("tables: [", "tables"),
    ],
)
def test_features_come_of_the_tables_that_the_project_counts(tmp_path: Path, said: str, read: str) -> None:
    """Of tables without the column, say, an arm of clusters would find nothing."""
    for name in ("tables", "canonical", "tables_cluster", "cutoff_1/tables", "cutoff_1/tables_cluster"):
        (tmp_path / name).mkdir(parents=True)
    command = publish_command("user_history", tmp_path / "feature_repo")
    assert f" --tables {tmp_path / 'tables'} --repo" in command  # no project
    (tmp_path / "advprior.yaml").write_text(said)
    command = publish_command("user_history", tmp_path / "feature_repo")
    assert f" --tables {tmp_path / read} --repo" in command
    of_cutoff = publish_command("user_history", tmp_path / "cutoff_1/feature_repo")
    assert f"cutoff_1/{'tables_cluster' if read == 'tables_cluster' else 'tables'} --repo" in of_cutoff
    (tmp_path / read).rmdir()  # not made yet
    assert publish_command("ad_stats", tmp_path / "feature_repo") == f"advprior run {tmp_path} --until 'rank features'"


def test_the_project_reads_those_tables(tmp_path: Path) -> None:
    for clusters in (False, {"base": "lexical"}):
        (tmp_path / "advprior.yaml").write_text(f"tables: {{folder: own}}\nclusters: {json.dumps(clusters)}")
        (features,) = (step for step in make_plan(read_project(tmp_path)).steps if step.name == "rank features")
        assert tmp_path / features.command[features.command.index("--tables") + 1] == counted_tables(tmp_path)


def test_another_catalog_is_refused(repo: Path, tables: Path) -> None:
    publish_priors(
        repo, tables, LLM, **{CATALOG_FILE: {"version": "v2", "advertisers": [{"advertiser_id": "a00", "name": "x"}]}}
    )
    error = refused("STO004", repo, [LLM])
    assert "v1" in str(error.actual)
    assert "v2" in str(error.expected)


def test_a_shorter_catalog_is_refused(repo: Path, tables: Path) -> None:
    publish_priors(
        repo, tables, LLM, **{CATALOG_FILE: {"version": "v1", "advertisers": [{"advertiser_id": "a00", "name": "x"}]}}
    )
    assert "shape" in str(refused("STO004", repo, [LLM]).actual)


def test_a_broken_catalog_is_refused(repo: Path, tables: Path) -> None:
    publish_priors(repo, tables, LLM, **{CATALOG_FILE: {"names": []}})
    refused("STO004", repo, [LLM])


def test_a_truncated_matrix_is_refused(repo: Path, tables: Path) -> None:
    matrix = np.load(view_folder(repo, prior_view(LLM)) / MATRIX_FILE)
    publish_priors(repo, tables, LLM, **{MATRIX_FILE: matrix[:-1]})
    refused("STO004", repo, [LLM])


def test_doubled_pointers_are_refused(repo: Path, tables: Path) -> None:
    table = pd.read_parquet(view_folder(repo, prior_view(LLM)) / TABLE_FILE)
    publish_priors(repo, tables, LLM, **{TABLE_FILE: table.assign(prior_row=0)})
    assert "prior_row" in str(refused("STO004", repo, [LLM]).actual)


def test_a_backfill_stamped_with_the_wall_clock_is_refused(repo: Path, tables: Path) -> None:
    table = pd.read_parquet(view_folder(repo, prior_view(LLM)) / TABLE_FILE)
    table["created_timestamp"] = table.created_timestamp + timedelta(days=3650)
    publish_priors(repo, tables, LLM, **{TABLE_FILE: table})
    preflight(repo, [LLM])
    refused("STO007", repo, [LLM], end=PLAN.end)


def test_preflight_is_cheap_to_import() -> None:
    code = (
        "import sys, ranking.cli.measure, ranking.frame.preflight; "
        "print({'feast', 'pandas', 'duckdb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_spark_in_another_time_zone_is_refused(repo: Path) -> None:
    use_spark(repo, {**CONF, "spark.sql.session.timeZone": "Europe/Berlin"})
    assert "Berlin" in str(refused("STO021", repo, []).actual)


def test_spark_without_java_is_refused(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    error = refused("STO020", use_spark(repo), [])
    assert "Java" in str(error.actual)
    assert "advprior[spark]" in str(error.fix)


@needs_spark
def test_the_shipped_settings_of_spark_are_taken(repo: Path) -> None:
    """The commented lines, in place of duckdb: those that `benchmarks.scale.spark` measures, and that end."""
    path = repo / STORE_FILE
    text = spark_lines(path.read_text())
    path.write_text(text)
    check_store(repo)
    store = store_config(repo)["offline_store"]
    assert store["type"] == "spark"
    assert all(name.startswith("spark.") and isinstance(value, str) for name, value in store["spark_conf"].items())


def test_definitions_refuse_what_the_preflight_refuses(repo: Path) -> None:
    """`feast apply` runs no preflight, and what it lets pass would be materialized hours off."""
    with pytest.raises(AdvpriorError, match="STO021"):
        definitions(use_spark(repo, {"spark.master": "local[2]"}))
