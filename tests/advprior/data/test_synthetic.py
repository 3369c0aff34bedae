"""synthetic: seeded, sound, and labels that follow taste only where a signal is planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from advprior.data.synthetic import build, time_plan
from feature_repo.errors import AdvpriorError
from feature_repo.schemas import validate_tables
from feature_repo.tables import load_tables


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
        build(tmp_path / str(null), users=1000, null=null)
        assert validate_tables(load_tables(tmp_path / str(null)), plan=time_plan(30)) == []
    assert lift_of_taste(tmp_path / "False") > 0.3
    assert abs(lift_of_taste(tmp_path / "True")) < 0.1


def test_same_seed_same_tables(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(tmp_path / name, users=50, seed=seed)
    a, b, c = (pd.read_parquet(tmp_path / name / "impressions.parquet") for name in "abc")
    pd.testing.assert_frame_equal(a, b)
    assert not a.equals(c)


def test_impossible_size(tmp_path):
    with pytest.raises(AdvpriorError, match="DAT042"):
        build(tmp_path / "t", users=0)
