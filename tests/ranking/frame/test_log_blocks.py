"""A log counted in blocks of users: what is counted at once, whatever the log has, and after any stop."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from ranking.frame import log_blocks, publish
from ranking.frame.publish import publish_features
from ranking.frame.views import view_folder
from tests.ranking.frame.logs import Tables, assert_equal, log_at, publish_log


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(publish, "BLOCK_USERS", 3)
    monkeypatch.setattr(publish, "ROWS_IN_MEMORY", 0)
    return monkeypatch


def assert_same_facts(left: Path, right: Path) -> None:
    for view in ("user_profile", "user_history", "ad_stats"):
        manifests = [read_manifest(view_folder(repo, view)) for repo in (left, right)]
        assert manifests[0]["facts"] == manifests[1]["facts"]
        assert manifests[0]["key"] == manifests[1]["key"]


@pytest.mark.parametrize("size", [3, 100])
def test_blocks_of_users_make_what_is_counted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A log too long for the memory: the first time, and with snapshots that stand."""
    monkeypatch.setattr(publish, "BLOCK_USERS", size)
    for week in (25, 26):
        publish_log(tmp_path / "tables", tmp_path / "whole", week, log_at(week))
        with monkeypatch.context() as patch:
            patch.setattr(publish, "ROWS_IN_MEMORY", 0)
            publish_log(tmp_path / "tables", tmp_path / "blocks", week, log_at(week))
        assert_equal(tmp_path / "blocks", tmp_path / "whole")
        assert_same_facts(tmp_path / "blocks", tmp_path / "whole")
    assert not (tmp_path / "blocks" / "data" / ".building").exists()


def test_a_block_may_be_given_to_two_workers(tmp_path: Path, in_blocks: pytest.MonkeyPatch) -> None:
    """As Spark does with a task whose worker it has lost sight of."""

    def twice(function: Any, shared: Any, numbers: Any) -> None:
        for number in (*numbers, *numbers):
            function(shared, number)

    in_blocks.setattr(publish, "run_here", twice)
    publish_log(tmp_path / "tables", tmp_path / "twice", 24, log_at(24))
    in_blocks.setattr(publish, "ROWS_IN_MEMORY", 1_000_000)
    publish_log(tmp_path / "tables", tmp_path / "whole", 24, log_at(24))
    assert_equal(tmp_path / "twice", tmp_path / "whole")


COLUMNS = {"impressions": ["clicked"], "events": ["value", "arrived"], "ads": ["cluster"]}


@st.composite
def logs(draw: Any) -> Tables:
    """A log of some columns, names that need quoting, days for times, few rows: users without any, ads never shown."""
    rng, tables = np.random.default_rng(draw(st.integers(0, 2**16))), log_at(26)
    for name, columns in COLUMNS.items():
        tables[name] = tables[name].drop(columns=[column for column in columns if draw(st.booleans())])
    name_of = draw(st.sampled_from(["{}", "10{}", "é'\"{} \n", "日[{}]*"])).format
    for name in ("users", "events", "impressions"):
        tables[name] = tables[name].assign(user_id=tables[name].user_id.map(name_of))
    for name in ("events", "impressions"):
        table = tables[name].sample(draw(st.sampled_from([1, 5, 60])), random_state=int(rng.integers(2**16)))
        tables[name] = table.assign(timestamp=table.timestamp.dt.floor("D")) if draw(st.booleans()) else table
    events = tables["events"]
    tables["events"] = events.assign(advertiser_id=events.advertiser_id.where(rng.random(len(events)) < 0.7, None))
    if draw(st.booleans()):
        tables["ads"] = tables["ads"].assign(department=rng.choice(["food", " home ", None], len(tables["ads"])))
    tables["users"] = tables["users"].sample(frac=1, random_state=1)
    return tables


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=logs(), size=st.integers(1, 9))
def test_any_log_is_counted_alike(tmp_path: Path, in_blocks: pytest.MonkeyPatch, tables: Tables, size: int) -> None:
    in_blocks.setattr(publish, "BLOCK_USERS", size)
    folder = tmp_path / "it's [a] log"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    publish_log(folder / "tables", folder / "blocks", 26, tables)
    in_blocks.setattr(publish, "ROWS_IN_MEMORY", 10**9)
    publish_log(folder / "tables", folder / "whole", 26, tables)
    assert_equal(folder / "blocks", folder / "whole")
    assert_same_facts(folder / "blocks", folder / "whole")


def test_tables_may_be_folders_of_parts(tmp_path: Path, in_blocks: pytest.MonkeyPatch) -> None:
    """As Spark writes them; a column may stand in some parts only."""
    publish_log(tmp_path / "tables", tmp_path / "files", 26, log_at(26))
    for path in (tmp_path / "tables").glob("*.parquet"):
        table = pd.read_parquet(path)
        path.unlink()
        path.mkdir()
        first = table.iloc[:2].drop(columns=["clicked", "arrived"], errors="ignore")
        first.to_parquet(path / "part-0.parquet")
        table.iloc[2:].to_parquet(path / "part-1.parquet")
    for repo, rows in (("blocks", 0), ("whole", 10**9)):
        in_blocks.setattr(publish, "ROWS_IN_MEMORY", rows)
        (tmp_path / repo).mkdir()
        publish_features(tmp_path / "tables", tmp_path / repo)
    assert_equal(tmp_path / "blocks", tmp_path / "whole")
    names = [path.name for path in view_folder(tmp_path / "files", "user_history").glob("*.npy")]
    assert "clicks_ad_keys.npy" in names
    assert set(names) <= {path.name for path in view_folder(tmp_path / "blocks", "user_history").iterdir()}


def stop_at(patch: pytest.MonkeyPatch, folder: Path, block: int) -> list[int]:
    """Publish in blocks until one is to be counted; from then on all go through. Notes those that are counted."""
    counted, count = list[int](), log_blocks.count

    def noted(shared: Any, number: int) -> None:
        if number == block and not stopped:
            stopped.append(number)
            raise KeyboardInterrupt
        count(shared, number)
        counted.append(number)

    stopped = list[int]()
    patch.setattr(log_blocks, "count", noted)
    with pytest.raises(KeyboardInterrupt):
        publish_log(folder / "tables", folder / "blocks", 26, log_at(26))
    assert not view_folder(folder / "blocks", "user_history").exists()
    return counted


def test_counting_goes_on_after_the_last_whole_block(tmp_path: Path, in_blocks: pytest.MonkeyPatch) -> None:
    in_blocks.setattr(publish, "ROWS_IN_MEMORY", 10**9)
    publish_log(tmp_path / "tables", tmp_path / "whole", 26, log_at(26))
    in_blocks.setattr(publish, "ROWS_IN_MEMORY", 0)
    counted = stop_at(in_blocks, tmp_path, 1)
    publish_features(tmp_path / "tables", tmp_path / "blocks")
    assert counted == [0, 1, 2]
    assert_equal(tmp_path / "blocks", tmp_path / "whole")


def test_what_a_stop_has_left_goes_with_the_next_count(tmp_path: Path, in_blocks: pytest.MonkeyPatch) -> None:
    """Of other tables, at once."""
    stop_at(in_blocks, tmp_path, 1)
    in_blocks.setattr(publish, "ROWS_IN_MEMORY", 10**9)
    publish_log(tmp_path / "tables", tmp_path / "blocks", 25, log_at(25))
    assert not (tmp_path / "blocks" / "data" / ".building").exists()


def test_a_torn_block_is_one_error_and_force_counts_it_again(tmp_path: Path, in_blocks: pytest.MonkeyPatch) -> None:
    counted = stop_at(in_blocks, tmp_path, 1)
    left = tmp_path / "blocks" / "data" / ".building" / ".log.partial"
    for torn in ("counted-*/000000/history_ad_keys.npy", "counted-*/000000/rows.arrow", "survey-*/000000.pickle"):
        next(left.glob(f"*/{torn}")).write_bytes(b"")
        with pytest.raises(AdvpriorError, match=r"RUN018(.|\n)*--force"):
            publish_features(tmp_path / "tables", tmp_path / "blocks")
    publish_features(tmp_path / "tables", tmp_path / "blocks", anew=True)
    assert counted == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("rows", [0, 10**9])
def test_two_processes_do_not_count_into_one_repository(
    tmp_path: Path, in_blocks: pytest.MonkeyPatch, rows: int
) -> None:
    """Neither in blocks nor at once, whichever view the other is at."""
    in_blocks.setattr(publish, "ROWS_IN_MEMORY", rows)
    refused, published = list[str](), publish.publish_version

    def meanwhile(folder: Path, link: Path) -> None:
        published(folder, link)
        with pytest.raises(AdvpriorError, match="RUN005") as error:
            publish_features(tmp_path / "tables", tmp_path / "repo")
        refused.append(error.value.code)

    in_blocks.setattr(publish, "publish_version", meanwhile)
    publish_log(tmp_path / "tables", tmp_path / "repo", 25, log_at(25))
    assert refused == ["RUN005"] * 3
