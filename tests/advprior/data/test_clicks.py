"""The click log holds what it says was planted, nothing else, and only what could be known at its time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from advprior.data import click_model as model
from advprior.data import clicks
from advprior.data.drawn import START, Size
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables

SIZE = Size(users=700, advertisers=20, weeks=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clicks") / "tables"
    assert clicks.build(out, SIZE)
    return out


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return load_tables(folder)


def estimates(effects: model.Effects, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Maximum-likelihood weights of history, fatigue, position and taste, with standard errors, by Newton steps."""
    rng = np.random.default_rng(seed)
    market = model.draw_market(20, 16, effects, rng)
    users = model.draw_users(600, 16, effects, rng)
    events, shown = model.simulate(users, market, 16, effects, rng)
    advertiser = shown.ad // effects.ads_each
    week = shown.second // model.WEEK_S * model.WEEK_S
    key = (events.user * 20 + events.advertiser, shown.user * 20 + advertiser)
    seen = shown.user * len(market.life) + shown.ad
    n = counts_before(key[0], events.second, key[1], week)
    e = counts_before(seen, shown.second, seen, week)
    taste = (users.taste[shown.user] * market.taste[advertiser]).sum(axis=1) / np.sqrt(effects.tastes)
    columns = [np.log1p(n), np.log1p(e), np.log2(shown.position + 1.0), taste]
    x = np.stack([np.ones(len(n)), *columns, shown.placement == 1, shown.placement == 2], axis=1)
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ weights))
        information = (x * (p * (1 - p))[:, None]).T @ x
        weights += np.linalg.solve(information, x.T @ (shown.click - p))
    return weights[1:5], np.sqrt(np.diag(np.linalg.inv(information)))[1:5]


def counts_before(keys: Any, times: Any, asked_keys: Any, asked_times: Any) -> Any:
    """Rows of the same key strictly before a time: counted a second way, from the finished log."""
    span = 1 + max(times.max(), asked_times.max())
    order = np.sort(keys * span + times)
    return np.searchsorted(order, asked_keys * span + asked_times) - np.searchsorted(order, asked_keys * span)


@pytest.mark.parametrize(
    "effects",
    [model.Effects(), clicks.without(prior=True), clicks.without(fatigue=True)],
    ids=["planted", "no prior", "no fatigue"],
)
def test_a_regression_on_the_true_counts_recovers_every_effect(effects: model.Effects) -> None:
    weights, errors = estimates(effects, seed=1)
    truth = np.array([effects.history, -effects.fatigue, -effects.position, effects.taste_in_clicks])
    assert np.abs((weights - truth) / errors).max() < 4
    assert errors.max() < 0.1  # small enough to tell each effect from none


def test_the_tables_are_canonical_and_inside_their_plan(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    facts = read_manifest(folder)["facts"]
    assert facts["warnings"] == []
    assert facts["rows"] == {name: len(table) for name, table in tables.items()}
    assert facts["positives"] == tables["impressions"]["label"].sum() > 100
    slates = tables["impressions"].groupby("slate_id")
    assert facts["slates"] == slates.ngroups
    assert (slates.size() == model.Effects().slate_size).all()
    assert all(slates[column].nunique().max() == 1 for column in ("user_id", "timestamp"))
    assert (slates["ad_id"].nunique() == model.Effects().slate_size).all()
    assert not clicks.build(folder, SIZE)


def test_labels_follow_clicks_and_take_their_time(tables: dict[str, pd.DataFrame]) -> None:
    shown = tables["impressions"]
    assert (shown["clicked"] >= shown["label"]).all()
    delay = (shown["label_time"] - shown["timestamp"])[shown["label"] == 1]
    assert delay.gt(pd.Timedelta(0)).all()
    assert delay.le(model.LABEL_DELAY).all()
    assert shown["label_time"].isna().equals(shown["label"] == 0)


def test_users_and_ads_come_and_go(tables: dict[str, pd.DataFrame]) -> None:
    shown = tables["impressions"]
    span = pd.Timedelta(weeks=SIZE.weeks)
    for key in ("user_id", "ad_id"):
        first = shown.groupby(key)["timestamp"].min() - pd.Timestamp(START)
        last = shown.groupby(key)["timestamp"].max() - pd.Timestamp(START)
        assert (first > span / 4).mean() > 0.1
        assert (last < span * 3 / 4).mean() > 0.1


def test_users_and_ads_exist_before_they_do_or_are_shown_anything(tables: dict[str, pd.DataFrame]) -> None:
    shown, events = tables["impressions"], tables["events"]
    for name, key, rows in (("users", "user_id", shown), ("users", "user_id", events), ("ads", "ad_id", shown)):
        exists = tables[name].set_index(key)["known_from"]
        assert (rows["timestamp"] >= rows[key].map(exists)).all()
        assert 0.1 < (exists > pd.Timestamp(START)).mean() < 0.5


def test_what_a_log_is_like(tables: dict[str, pd.DataFrame]) -> None:
    users, events = tables["users"], tables["events"]
    bare = users[["profile_interest", "profile_region"]].isna()
    assert 0.1 < bare.all(axis=1).mean() < 0.3
    assert (bare.all(axis=1) == bare.any(axis=1)).all()
    assert 0 < (events["arrived"] > events["timestamp"]).mean() < 0.1
    assert (events["arrived"] >= events["timestamp"]).all()
    assert any(not name.isascii() for name in tables["advertisers"]["name"])
    assert tables["ads"].groupby("advertiser_id")["category"].nunique().eq(model.Effects().ads_each).all()


def test_users_do_not_depend_on_how_many_there_are_in_a_block_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clicks, "CELLS", 40 * 8 * 3)
    clicks.build(tmp_path / "few", Size(60, 8, 9))
    clicks.build(tmp_path / "many", Size(100, 8, 9))
    few, many = load_tables(tmp_path / "few"), load_tables(tmp_path / "many")
    first_block = few["events"]["user_id"] < "u0000040"
    pd.testing.assert_frame_equal(few["events"][first_block], many["events"][many["events"]["user_id"] < "u0000040"])
    assert many["impressions"]["impression_id"].is_unique
    assert many["impressions"].groupby("slate_id")["user_id"].nunique().le(1).all()


@pytest.mark.parametrize(("size", "value"), [("users", 19), ("advertisers", 7), ("weeks", 8)])
def test_impossible_sizes_are_refused(tmp_path: Path, size: str, value: int) -> None:
    with pytest.raises(AdvpriorError, match="DAT042") as caught:
        clicks.build(tmp_path / "tables", replace(clicks.DEFAULT, **{size: value}))
    assert caught.value.where == f"--{size}"
    assert not (tmp_path / "tables").exists()


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdvpriorError, match="CFG002"):
        clicks.build(tmp_path / "tables", replace(clicks.DEFAULT, seed=-1))
