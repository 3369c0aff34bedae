"""named_brands from a small file in the source's layout: tables, time order, and who may use them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from advprior.cli import main
from advprior.data.named_brands import build
from feature_repo.errors import AdvpriorError
from feature_repo.runs import read_manifest
from feature_repo.tables import load_tables, require_impressions


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    n = 800
    brand = rng.integers(6, size=n)
    day = pd.Timestamp("2021-01-01", tz="UTC") + pd.to_timedelta(rng.integers(500, size=n), unit="D")
    user = rng.integers(60, size=n)
    reviews = pd.DataFrame({
        "user_id": [f"u{i:02d}" for i in user], "event_date": day, "product_id": [f"P{i}" for i in range(n)],
        "product_name": "Cream", "category": "care", "subcategory": np.where(brand % 2, "face", None),
        "price_usd": np.float32(9.9), "advertiser_id": brand.astype(str),
        "advertiser_name": [f"Brand {i}" for i in brand],
        "skin_type": "dry", "skin_tone": None, "eye_color": "blue", "hair_color": "red",
    })  # fmt: skip
    reviews.loc[day >= pd.Timestamp("2022-01-01", tz="UTC"), "skin_type"] = "later"
    reviews.to_parquet(tmp_path / "reviews.parquet")
    return tmp_path / "reviews.parquet"


def test_tables_of_a_predictor_and_no_profile_from_after_the_cut_off(source, tmp_path):
    out = tmp_path / "tables"
    assert build(source, out)
    assert not build(source, out)
    tables = load_tables(out)
    assert sorted(tables) == ["advertisers", "events", "users"]
    assert len(tables["events"]) == 800
    assert set(tables["events"]["category"]) == {"care", "care/face"}
    assert set(tables["events"]["value"]) == {9.9}
    assert set(tables["users"]["profile_skin_type"]) == {"dry"}
    assert read_manifest(out)["facts"]["purpose"] == "predictor"
    with pytest.raises(AdvpriorError, match="DAT045"):
        require_impressions(out)


@pytest.mark.parametrize("predictor", ["popularity", "neighbours"])
def test_the_chain_fits_on_it(source, tmp_path, predictor, capsys):
    build(source, tmp_path / "tables")
    with pytest.raises(SystemExit) as leave:
        main(["finetune", "--tables", f"{tmp_path}/tables", "--out", f"{tmp_path}/run", "--predictor", predictor])
    assert leave.value.code == 0
    assert "Recall@5" in capsys.readouterr().out


def test_a_missing_file_and_a_missing_column_are_told(source, tmp_path):
    with pytest.raises(AdvpriorError, match="DAT001"):
        build(tmp_path / "none.parquet", tmp_path / "tables")
    pd.read_parquet(source).drop(columns="price_usd").to_parquet(source)
    with pytest.raises(AdvpriorError, match=r"DAT003.*price_usd"):
        build(source, tmp_path / "tables")
