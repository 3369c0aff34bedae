"""x_wines from a small file in the source's layout: tables, and texts that are as of the cut-off."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from advprior.cli import main
from advprior.data.x_wines import build
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    wine = rng.integers(24, size=600)
    second = rng.integers(700 * 86_400, size=600)
    ratings = pd.DataFrame(
        {
            "user_id": [f"u{i:02d}" for i in rng.integers(50, size=600)],
            "timestamp": pd.Timestamp("2018-06-01", tz="UTC") + pd.to_timedelta(second, unit="s"),
            "product_id": [f"w{i}" for i in wine],
            "product_name": [f"Wine {i}" for i in wine],
            "advertiser_id": [f"v{i % 8}" for i in wine],
            "advertiser_name": [f"Winery {i % 8}" for i in wine],
            "category": np.where(wine % 2, "Red", "White"),
            "country": "Italy",
            "region": np.where(wine % 3, "Barolo", "Soave"),
            "grapes": "Nebbiolo, Barbera",
            "body": "Full-bodied",
            "acidity": "High",
            "rating": np.float32(4.5),
        }
    )
    ratings.to_parquet(tmp_path / "ratings.parquet")
    return tmp_path / "ratings.parquet"


def test_tables_of_a_predictor_whose_chain_runs_without_profiles(source, tmp_path, capsys):
    out = tmp_path / "tables"
    with pytest.raises(SystemExit) as leave:
        main(["data", "build", "x_wines", "--source", str(source), "--out", str(out)])
    assert leave.value.code == 0
    tables = load_tables(out)
    assert {name: len(table) for name, table in tables.items()} == {"users": 50, "advertisers": 8, "events": 600}
    assert list(tables["users"]) == ["user_id"]
    assert tables["events"]["timestamp"].is_monotonic_increasing
    assert read_manifest(out)["facts"]["purpose"] == "predictor"
    with pytest.raises(SystemExit) as leave:
        main(["finetune", "--tables", str(out), "--out", f"{tmp_path}/run", "--predictor", "neighbours"])
    assert leave.value.code == 0
    assert "Recall@5" in capsys.readouterr().out


def test_a_text_knows_no_wine_of_after_the_cut_off(source, tmp_path):
    build(source, tmp_path / "tables")
    texts = load_tables(tmp_path / "tables")["advertisers"].set_index("advertiser_id")["text"]
    ratings = pd.read_parquet(source)
    later = ratings["timestamp"] >= pd.Timestamp("2020-01-01", tz="UTC")
    ratings.loc[later, ["product_name", "region", "grapes"]] = "unheard of"
    only_later = later & ratings["advertiser_id"].eq("v7")
    ratings[later | ratings["advertiser_id"].ne("v7") | only_later].to_parquet(source)
    build(source, tmp_path / "tables")
    after = load_tables(tmp_path / "tables")["advertisers"].set_index("advertiser_id")["text"]
    assert after["v7"] is None
    assert after.drop("v7").equals(texts.drop("v7"))
    assert texts["v7"].startswith("Barolo, Italy; Soave, Italy. Red. Barbera, Nebbiolo. Full-bodied, High acidity. 3 ")
