"""What earlier versions wrote is read, to the same numbers; what a later one writes is refused by code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advprior.pipeline.append import append
from advprior.store.errors import AdvpriorError
from advprior.store.runs import FORMAT, MANIFEST, read_manifest
from ranking.candidates.towers import Towers
from ranking.experiment.exposures import read_exposures
from ranking.experiment.shown import to_frame
from ranking.frame.gather import PriorFiles
from ranking.frame.row_blocks import InParquet, parts
from ranking.frame.table import Frame
from ranking.models.ranker import Ranker

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "priors").is_dir())


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def written(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


def test_this_version_has_its_folder() -> None:
    assert [int(json.loads((v / "priors" / MANIFEST).read_text())["format"]) for v in VERSIONS][-1] == FORMAT


def test_a_run_and_a_publication_are_read(written: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(written / "priors/rows.parquet")
    assert read_manifest(written / "priors", step="score")["facts"]["rows"] == len(rows) == 12
    table, files = pd.read_parquet(written / "published/table.parquet"), PriorFiles.open(written / "published")
    assert read_manifest(written / "published", step="publish")["facts"]["predictor"] == "popularity"
    assert len(files.advertisers) == 12
    for pointer, vector in zip(table.prior_row, table.log_probs, strict=True):
        np.testing.assert_array_equal(files.row(pointer), vector)
    # and what this version scores can join it: here nothing is later
    repo = tmp_path / "repo"
    shutil.copytree(written / "published", repo / "data/prior_popularity")
    (repo / "feature_store.yaml").write_text("project: formats\n")
    assert append(written / "priors", repo) is None


def test_a_ranker_says_what_it_said(written: Path) -> None:
    scored = pd.read_parquet(written / "scored.parquet")
    ranker = Ranker.load(written / "ranker")
    np.testing.assert_allclose(ranker.predict(scored), scored.score, rtol=1e-6)
    assert len(set(scored.score.round(6))) > 3


def test_a_frame_of_one_file_is_read() -> None:
    """As today's folder of parts is: whole, and the columns of some rows."""
    written = Path(__file__).parent / "0.1"
    frame, source = Frame.load(written / "frame"), InParquet(written / "frame")
    assert len(frame) == 960
    assert int(frame.rows.label.sum()) == 68
    assert frame.rows.prior_llm_log_prob.astype(float).sum() == pytest.approx(-2552.6353, rel=1e-5)
    assert parts(written / "frame") == [written / "frame/frame.parquet"]
    test = np.flatnonzero(frame.rows["split"] == "test")
    (block,) = source.blocks(["ad_rate_all", "user_id"], test)
    pd.testing.assert_frame_equal(block, frame.rows.iloc[test][["ad_rate_all", "user_id"]].reset_index(drop=True))


def test_exposures_are_read(written: Path) -> None:
    records = list(read_exposures(written / "exposures"))
    assert [record["exposure_id"] for record in records] == ["e1", "e2"]
    shown = to_frame(records, records[0]["ranker"])
    assert shown.context_placement.tolist() == ["front", "back"]
    np.testing.assert_array_equal(shown.ad_rate_4w, [0.5, np.nan])


def test_what_a_later_version_wrote_is_refused(written: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(written, own)
    for path in (own / "priors" / MANIFEST, own / "ranker" / "ranker.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    (log,) = (own / "exposures").glob("*.jsonl")
    log.write_text(json.dumps({"format": 99}) + "\n")
    (own / "towers").mkdir()
    (own / "towers/towers.json").write_text(json.dumps({"format": 99}))
    for code, read in (
        ("RUN006", lambda: read_manifest(own / "priors")),
        ("RNK025", lambda: Ranker.load(own / "ranker")),
        ("SRV022", lambda: list(read_exposures(own / "exposures"))),
        ("RNK030", lambda: Towers.load(own / "towers")),
    ):
        with pytest.raises(AdvpriorError, match=code):
            read()
