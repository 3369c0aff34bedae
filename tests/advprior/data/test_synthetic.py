"""synthetic: seeded, sound, and labels that follow taste only where a signal is planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from advprior.data import synthetic
from advprior.data.drawn import START, Size, time_plan
from advprior.data.synthetic import build
from advprior.data.taste_model import TRUTH
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.schemas import validate_tables
from advprior.store.tables import load_tables


def lift_of_taste(folder) -> float:
    """Mean taste for the ad among clicks minus among the rest, impressions without any purchase history."""
    tables, truth = load_tables(folder), pd.read_parquet(folder / "truth.parquet").set_index("id")
    shown, events = tables["impressions"], tables["events"]
    known = pd.MultiIndex.from_frame(events[["user_id", "advertiser_id"]])
    shown = shown[~pd.MultiIndex.from_frame(shown[["user_id", "advertiser_id"]]).isin(known)]
    z = truth.filter(like="taste_")
    taste = (z.loc[shown["user_id"]].to_numpy() * z.loc[shown["advertiser_id"]].to_numpy()).sum(1) / np.sqrt(z.shape[1])
    clicked = shown["label"].to_numpy() == 1
    return float(taste[clicked].mean() - taste[~clicked].mean())


def test_signal_and_null(tmp_path):
    for null in (False, True):
        build(tmp_path / str(null), null=null)
        assert validate_tables(load_tables(tmp_path / str(null)), plan=time_plan(30)) == []
    assert lift_of_taste(tmp_path / "False") > 0.3
    assert abs(lift_of_taste(tmp_path / "True")) < 0.1


def test_same_seed_same_tables(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(tmp_path / name, Size(50, 50, 30, seed))
    a, b, c = (pd.read_parquet(tmp_path / name / "impressions.parquet") for name in "abc")
    pd.testing.assert_frame_equal(a, b)
    assert not a.equals(c)


def test_impossible_size(tmp_path):
    with pytest.raises(AdvpriorError, match="DAT042"):
        build(tmp_path / "t", Size(0, 50, 30))


def test_many_chunks_make_one_data_set(tmp_path, monkeypatch):
    weeks, users = 12, 205
    # 20 users a chunk: ten full ones and a last of five
    monkeypatch.setattr(synthetic, "SLATES", 20 * weeks)
    firsts = []
    chunk_of_users = synthetic.chunk_of_users

    def noted(world, chunk, *rest, **options):
        firsts.append(chunk.start)
        return chunk_of_users(world, chunk, *rest, **options)

    monkeypatch.setattr(synthetic, "chunk_of_users", noted)
    build(tmp_path / "t", Size(users, 50, weeks, seed=3))
    assert firsts == list(range(0, users, 20))

    tables, truth = load_tables(tmp_path / "t"), pd.read_parquet(tmp_path / "t" / "truth.parquet")
    assert validate_tables(tables, plan=time_plan(weeks)) == []
    shown, events = tables["impressions"], tables["events"]
    assert tables["users"]["user_id"].tolist() == [f"u{i:07d}" for i in range(users)]
    assert shown["impression_id"].tolist() == list(range(len(shown)))
    slates = shown.groupby("slate_id")
    assert slates["user_id"].nunique().eq(1).all()
    assert slates["timestamp"].nunique().eq(1).all()
    assert not shown.duplicated(["slate_id", "ad_id"]).any()
    assert slates.size().between(1, 6).all()
    assert sorted(slates.groups) == list(range(slates.ngroups))
    # a slate is whole: its rows stand together, so it lies in one chunk
    assert shown["slate_id"].is_monotonic_increasing
    for table in (events, shown):
        assert table["user_id"].is_monotonic_increasing
        assert table.groupby("user_id")["timestamp"].is_monotonic_increasing.all()
    assert truth.loc[truth["kind"] == "user", "id"].tolist() == tables["users"]["user_id"].tolist()
    facts = read_manifest(tmp_path / "t")["facts"]
    assert facts["rows"] == {name: len(table) for name, table in tables.items()}
    assert (facts["slates"], facts["positives"]) == (slates.ngroups, int(shown["label"].sum()))
    # chunks have seeds of their own: no two of them are copies
    firsts_of = [tuple(events.loc[events["user_id"] == f"u{i:07d}", "value"]) for i in firsts]
    assert len(set(firsts_of)) > 1


def slope_of_taste(folder) -> tuple[float, float]:
    """Weight of taste, and its standard error, in a logistic regression of the labels beside history and placement.

    History is counted here from the tables alone: purchases from the advertiser before the last weekly snapshot.
    """
    tables, truth = load_tables(folder), pd.read_parquet(folder / "truth.parquet").set_index("id")
    shown = tables["impressions"]
    week = (shown["timestamp"] - START).dt.days // 7
    bought = tables["events"]
    bought = bought.assign(week=(bought["timestamp"] - START).dt.days // 7)
    pairs = shown.assign(now=week)[["impression_id", "user_id", "advertiser_id", "now"]].merge(
        bought[["user_id", "advertiser_id", "week"]], on=["user_id", "advertiser_id"]
    )
    n = pairs[pairs["week"] < pairs["now"]].groupby("impression_id").size().reindex(shown["impression_id"]).fillna(0)
    z = truth.filter(like="taste_")
    taste = (z.loc[shown["user_id"]].to_numpy() * z.loc[shown["advertiser_id"]].to_numpy()).sum(1) / np.sqrt(z.shape[1])
    x = np.column_stack([np.ones(len(shown)), np.log1p(n), shown["context_placement"] == "front", taste]).astype(float)
    y, weight = shown["label"].to_numpy(float), np.zeros(4)
    for _ in range(25):  # Newton's steps
        p = 1 / (1 + np.exp(-x @ weight))
        information = x.T @ (x * (p * (1 - p))[:, None])
        step = np.linalg.solve(information, x.T @ (y - p))
        weight += step
    assert np.abs(step).max() < 1e-8
    return float(weight[3]), float(np.sqrt(np.linalg.inv(information)[3, 3]))


def test_taste_tells_labels_beyond_history_only_where_it_is_planted(tmp_path):
    for null in (False, True):
        build(tmp_path / str(null), null=null)
    planted, error = slope_of_taste(tmp_path / "False")
    assert error < 0.03
    assert planted == pytest.approx(TRUTH["taste_weight"], abs=0.15)
    nothing, error = slope_of_taste(tmp_path / "True")
    assert error < 0.05
    assert abs(nothing) < 0.15
