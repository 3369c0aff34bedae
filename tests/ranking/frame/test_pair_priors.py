"""A prior over advertiser × category reaches the impressions of that very pair, in training and in serving."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.contract import CATALOG_FILE, MATRIX_FILE, TABLE_FILE, pair_id, prior_view
from ranking.frame.columns import PriorColumns, Shown
from ranking.service.ads import AdTable

SHARES = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32)
PAIRS = [pair_id("a", "Soap"), pair_id("a", "Tea"), pair_id("b", "Tea")]


def write_prior(repo: Path, ids: list[str]) -> None:
    folder = repo / "data" / prior_view("text_pair")
    folder.mkdir(parents=True)
    np.save(folder / MATRIX_FILE, np.log(SHARES))
    listed = [{"advertiser_id": i, "name": i} for i in ids]
    (folder / CATALOG_FILE).write_text(json.dumps({"version": "v", "advertisers": listed}))
    at = pd.to_datetime(["2024-01-01"] * 2, utc=True).as_unit("us")
    table = pd.DataFrame({"prior_row": [0, 1], "snapshot": at, "event_timestamp": at + pd.Timedelta(hours=1)})
    table.to_parquet(folder / TABLE_FILE)


def columns_of(repo: Path, rows: list[int], advertisers: list[str], categories: list[str]) -> dict[str, np.ndarray]:
    when = np.full(len(rows), np.datetime64("2024-01-02", "us"))
    snapshot = np.full(len(rows), np.datetime64("2024-01-01", "us"))
    shown = Shown(pd.Series(advertisers), pd.Series(categories), when)
    found, _ = PriorColumns.open(repo, "text_pair").of(np.array(rows), snapshot, shown)
    return found


def test_each_impression_gets_its_pair_and_an_unlisted_pair_is_missing(tmp_path):
    write_prior(tmp_path, PAIRS)
    found = columns_of(tmp_path, [0, 0, 1, 1], ["a", "a", "b", "b"], ["Soap", "Tea", "Tea", "Soap"])
    np.testing.assert_allclose(np.exp(found["prior_text_pair_log_prob"][:3]), [0.5, 0.3, 0.7], rtol=1e-6)
    assert found["prior_text_pair_rank"][:3].tolist() == [1, 2, 1]
    assert found["prior_text_pair_missing"].tolist() == [0, 0, 0, 1]
    # the mean of both users' shares of (b, Tea) is .45
    np.testing.assert_allclose(found["prior_text_pair_log_ratio"][2], np.log(0.7 / 0.45), rtol=1e-5)


def test_a_catalog_of_advertisers_is_read_by_advertiser_whatever_the_category(tmp_path):
    write_prior(tmp_path, ["a", "b", "c"])
    found = columns_of(tmp_path, [0, 1], ["b", "b"], ["Tea", "Soap"])
    np.testing.assert_allclose(np.exp(found["prior_text_pair_log_prob"]), [0.3, 0.2], rtol=1e-6)


def test_the_service_places_ads_as_the_frame_does():
    table = AdTable(["1", "2", "3"], ["b", "a", None], ["Tea", "Soap", "Tea"], {}, {}, {}, {}, -1)
    assert table.advertiser_index("pairs", PAIRS).tolist() == [2, 0, -1, -1]
    assert table.advertiser_index("advertisers", ["a", "b"]).tolist() == [1, 0, -1, -1]
