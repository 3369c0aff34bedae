"""`advprior refresh`, week by week, on a real feature store: idempotent, resumable, alone; nothing published changes.

A project of one control, so that each refresh takes a second or two; rankers and the preflight are in
`tests/docs/test_production.py`.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import warnings
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from advprior.cli import main
from advprior.pipeline import refresh_priors
from advprior.pipeline.project import lay_out
from advprior.pipeline.refresh import RefreshOptions, moving_plan, wait_until_due
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from ranking.frame.build import build_frame
from ranking.frame.join import open_store
from tests.tiny import START, WEEK, tiny_tables

VIEW = "feature_repo/data/prior_neighbours"
SINCE_SNAPSHOT = timedelta(days=2)  # the log has rows after midnight by then, so that the snapshot exists
FIRST = START + 26 * WEEK + SINCE_SNAPSHOT


def write_raw(folder: Path, until: datetime, **changed: pd.DataFrame) -> None:
    """What the log holds at a moment, and its mapping."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (tiny_tables() | changed).items():
        rows = table[table["timestamp"] < until] if "timestamp" in table else table
        rows = rows.assign(text=rows["category"] + " in a box") if name == "events" else rows
        rows.to_parquet(folder / f"{name}.parquet", index=False)
    tables: dict[str, Any] = {name: {"file": f"{name}.parquet"} for name in ("users", "advertisers", "ads", "events")}
    tables["users"]["profile"] = {"age": "profile_age"}
    tables["events"]["columns"] = {"text": "text"}
    tables["impressions"] = {"file": "impressions.parquet", "columns": {"impression_id": "impression_id"}}
    weeks = {"start": 0, "finetune_end": 10, "train_end": 20, "valid_end": 24}
    plan = {name: (START + number * WEEK).isoformat() for name, number in weeks.items()}
    (folder / "mapping.yaml").write_text(yaml.safe_dump({"folder": ".", "tables": tables, "time_plan": plan}))


def advprior(*words: object) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
    return int(str(caught.value.code))


def refresh(project: Path, now: datetime) -> int:
    return advprior("refresh", project, "--now", now.isoformat(), "--threads", 1, "--no-check")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first run, with the rows of 26 weeks."""
    project = tmp_path_factory.mktemp("refresh") / "project"
    lay_out(project)
    write_raw(project / "raw", FIRST)
    config = {"tables": {"mapping": "raw/mapping.yaml"}, "priors": ["neighbours"], "refresh": {"keep_snapshots": 18}}
    config["clusters"] = {"base": "lexical", "number": 3}
    (project / "advprior.yaml").write_text(yaml.safe_dump(config))
    model, tables = project / "models/neighbours", project / "tables"
    for words in (
        ("data", "check", "--mapping", project / "raw/mapping.yaml", "--out", tables),
        ("finetune", "--predictor", "neighbours", "--tables", tables, "--out", model),
        ("export", model),
        ("score", model, "--tables", tables, "--out", project / "priors/neighbours"),
        ("publish", project / "priors/neighbours", "--repo", project / "feature_repo"),
    ):
        assert advprior(*words) == 0
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "project", symlinks=True)
    return tmp_path / "project"


def published(project: Path) -> pd.DataFrame:
    table = pd.read_parquet(project / VIEW / "table.parquet").drop(columns="prior_row")
    return table.sort_values(["snapshot", "user_id"], ignore_index=True)


def ads_with_clusters(project: Path) -> pd.Series:
    return pd.read_parquet(project / "tables_cluster/ads.parquet").set_index("ad_id").cluster


def online(project: Path, user: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = open_store(project / "feature_repo")
        row = store.get_online_features(["prior_neighbours:snapshot"], [{"user_id": user}]).to_dict()
    return row["snapshot"][0]


def test_a_month_of_refreshes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One project through it all, since applying definitions takes seconds: each step has its own function."""
    assert refresh(project, FIRST) == 0  # nothing is new yet, and it goes online
    assert online(project, "u003") == START + 26 * WEEK
    first = published(project)
    a_refresh_that_was_stopped_goes_on(project, monkeypatch)
    late_rows_change_no_published_snapshot(project)
    stayed = published(project)
    both = stayed[stayed.snapshot.isin(first.snapshot)].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, first[first.snapshot >= both.snapshot.min()].reset_index(drop=True))
    assert stayed.snapshot.nunique() == 18  # as long as advprior.yaml says
    assert len(list((project / "refresh/neighbours").glob("2*"))) == 2
    a_frame_has_priors_for_its_train_rows(project)
    another_catalog_is_published_whole(project, capsys)


def a_refresh_that_was_stopped_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between scoring and publishing, and again between publishing and materializing."""
    now = START + 27 * WEEK + SINCE_SNAPSHOT
    write_raw(project / "raw", now)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refresh_priors, "append", stopped)
    assert refresh(project, now) == 130
    monkeypatch.undo()
    assert published(project).snapshot.max() == pd.Timestamp(START + 26 * WEEK)
    monkeypatch.setattr(refresh_priors, "_score", stopped)  # nothing is scored again
    monkeypatch.setattr("advprior.pipeline.refresh.materialize", stopped)
    assert refresh(project, now) == 130
    monkeypatch.undo()
    assert published(project).snapshot.max() == pd.Timestamp(START + 27 * WEEK)
    assert refresh(project, now) == 0
    assert online(project, "u003") == START + 27 * WEEK
    record = json.loads((project / ".advprior/refresh.json").read_text())
    assert record["last_snapshot"] == (START + 27 * WEEK).isoformat()


def late_rows_change_no_published_snapshot(project: Path) -> None:
    """Rows of weeks ago arrive: priors and counts of past snapshots stay, the next one knows them."""
    folder = project / "feature_repo/data/user_history/table.parquet"
    history = pd.read_parquet(folder)
    late = pd.DataFrame(
        {
            "user_id": ["u003"] * 6,
            "timestamp": START + 23 * WEEK + timedelta(hours=5) * np.arange(6),
            "advertiser_id": "a07",
            "category": "Tea",
            "value": 1.0,
        }
    )
    now, events = START + 28 * WEEK + SINCE_SNAPSHOT, tiny_tables()["events"]
    write_raw(project / "raw", now, events=pd.concat([events, late], ignore_index=True).sample(frac=1, random_state=0))
    assert refresh(project, now) == 0
    facts = read_manifest(project / "tables")["facts"]
    assert (facts["late_rows"], facts["late_rows_came"], facts["rows_gone"]) == (6, 6, 0)
    counted = pd.read_parquet(folder)
    assert counted.history_cluster_ids.map(len).sum() > 0
    both = counted.merge(history, on=["snapshot", "user_id"], suffixes=("", "_before"))
    assert len(both) == len(history)
    np.testing.assert_array_equal(both.activity_occasions_all, both.activity_occasions_all_before)
    of_user = counted[counted.user_id == "u003"].set_index("snapshot").activity_occasions_all
    assert of_user[START + 28 * WEEK] - of_user[START + 27 * WEEK] >= 6
    # checked again they are no longer new, and still count from when they came
    write_raw(project / "raw", now, events=pd.concat([late, events], ignore_index=True))
    check = ("data", "check", "--mapping", project / "raw/mapping.yaml", "--out", project / "tables")
    assert advprior(*check) == 0
    facts = read_manifest(project / "tables")["facts"]
    assert (facts["late_rows"], facts["late_rows_came"]) == (6, 0)


def a_frame_has_priors_for_its_train_rows(project: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = build_frame(project / "tables", project / "feature_repo", ["neighbours"])
    begin = published(project).snapshot.min() + timedelta(hours=1)
    frame = result.frame[result.frame.timestamp >= begin]
    assert (frame.split == "train").any()
    assert frame.prior_neighbours_log_prob.notna().mean() > 0.9
    assert result.facts["late_events"] == 6


def another_catalog_is_published_whole(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new advertiser waits for a model that knows it; two catalogs are never in one publication.

    Its ad joins a cluster, and the others stay in theirs, though all advertisers have other names by now.
    """
    tables = tiny_tables()
    grown = pd.concat([tables["advertisers"], pd.DataFrame({"advertiser_id": ["a99"], "name": ["New house"]})])
    owner = tables["events"].advertiser_id
    events = tables["events"].assign(advertiser_id=owner.where(owner.index % 9 > 0, "a99"))
    now = START + 29 * WEEK + SINCE_SNAPSHOT
    more = pd.DataFrame({"ad_id": ["a99/Tea"], "advertiser_id": ["a99"], "category": ["Tea"]})
    grown["name"] = "The grand " + grown["name"]
    before = ads_with_clusters(project)
    new = {"advertisers": grown, "events": events, "ads": pd.concat([tables["ads"], more])}
    write_raw(project / "raw", now, **new)
    assert refresh(project, now) == 0
    after = ads_with_clusters(project)
    pd.testing.assert_series_equal(after[before.index], before)
    assert (after["a99/Tea"] in set(before), before.nunique()) == (True, 3)
    assert published(project).log_probs.map(len).unique().tolist() == [12]
    model = project / "models/neighbours"
    fit = ("finetune", "--predictor", "neighbours", "--tables", project / "tables", "--out", model)
    assert advprior(*fit) == 0
    assert advprior("export", model) == 0
    capsys.readouterr()
    assert refresh(project, now) == 0
    assert "another catalog" in capsys.readouterr().out
    after = published(project)
    assert after.log_probs.map(len).unique().tolist() == [13]
    assert len(set(after.catalog_version)) == 1
    assert after.snapshot.nunique() == 18


def test_one_at_a_time(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / ".advprior/refresh.lock").parent.mkdir(exist_ok=True)
    with (project / ".advprior/refresh.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert refresh(project, FIRST) == 75
    assert "RUN014" in capsys.readouterr().err


def test_an_export_that_fails_changes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((project / "advprior.yaml").read_text())
    config["refresh"]["export"] = "exit 7"
    (project / "advprior.yaml").write_text(yaml.safe_dump(config))
    before = published(project)
    assert refresh(project, FIRST) == 2
    assert "RUN015" in capsys.readouterr().err
    pd.testing.assert_frame_equal(before, published(project))
    assert not (project / ".advprior/refresh.json").exists()
    assert AdvpriorError.exit_code == 2  # that of a busy refresh is its own


def test_what_is_available_later_is_waited_for_or_said() -> None:
    """A refresh that ends before the lag is over would leave yesterday's rows online until tomorrow."""
    slept: list[float] = []
    said: list[str] = []
    lag, today = timedelta(hours=3), RefreshOptions()
    due = today.moment() + timedelta(hours=1)
    assert wait_until_due(due, lag, today, said.append, slept.append) == []
    assert [round(seconds, -2) for seconds in slept] == [3600]
    assert "waits" in said[0]
    past = RefreshOptions(now=FIRST)
    assert "from then on" in wait_until_due(FIRST + timedelta(hours=1), lag, past, said.append, slept.append)[0]
    assert (
        "from then on" in wait_until_due(due + 2 * lag, lag, today, said.append, slept.append)[0]
    )  # data that end later
    assert wait_until_due(FIRST, lag, past, said.append, slept.append) == []
    assert (len(slept), len(said)) == (1, 1)


def test_a_time_plan_that_nobody_states_is_told_as_a_line_that_can_be_pasted(tmp_path: Path) -> None:
    """Under it the same data have the same plan from then on; and a plan that is stated is no note."""
    folder = tmp_path / "files"
    folder.mkdir()
    tables = {}
    for name, table in tiny_tables(users=10).items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        tables[name] = {"file": f"{name}.parquet"}
    mapping: dict[str, Any] = {"folder": ".", "tables": tables}
    plans = []
    for out in (tmp_path / "proposed", tmp_path / "stated"):
        (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["data", "check", "--mapping", str(folder / "mapping.yaml"), "--out", str(out)])
        plans.append(read_manifest(out)["facts"]["time_plan"])
        notes = moving_plan(out)
        assert len(notes) == (out.name == "proposed")
        if notes:
            mapping |= yaml.safe_load(notes[0].split("`")[1])
    assert plans[0] == plans[1]
