"""A user's own files under canonical names and types: what becomes of ids, times, labels and absent columns."""

from __future__ import annotations

import pandas as pd

from advprior.store.contract import TABLES
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables, load_time_plan
from tests.advprior.data.own_tables import refused, run, without, write_own
from tests.tiny import PLAN, tiny_tables


def test_own_tables_become_canonical_ones(tmp_path, tables, capsys):
    tables["impressions"]["label"] = tables["impressions"]["label"].astype(bool)
    mapping = write_own(tmp_path / "own", tables)
    code, out, err = run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")
    assert (code, err) == (0, "")
    assert f"{len(tables['impressions']):,} impressions" in out
    written = load_tables(tmp_path / "tables")
    expected = tiny_tables(users=8)
    for name in TABLES:
        pd.testing.assert_frame_equal(
            written[name], expected[name][list(written[name])], check_dtype=False, check_like=True
        )
    assert str(written["events"]["timestamp"].dtype) == "datetime64[us, UTC]"
    assert str(written["impressions"]["label"].dtype) == "int8"
    assert {"profile_age", "profile_region"} < set(written["users"])
    assert "context_placement" in written["impressions"]
    plan = load_time_plan(tmp_path / "tables")
    assert (plan.finetune_end, plan.valid_end) == (PLAN.finetune_end, PLAN.valid_end)
    assert (plan.snapshot_every.days, plan.lag.seconds) == (14, 1800)
    times = expected["events"]["timestamp"]
    assert plan.start <= times.min()
    assert times.max() < plan.end


def test_without_out_nothing_is_written(tmp_path, tables, capsys):
    mapping = write_own(tmp_path / "own", tables)
    before = sorted(tmp_path.rglob("*"))
    assert run(capsys, "--mapping", mapping)[0] == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_numeric_ids_text_slates_and_absent_columns_are_made_canonical(tmp_path, tables, capsys):
    number = {a: i + 100 for i, a in enumerate(tables["advertisers"].advertiser_id)}
    for table in tables.values():
        if "advertiser_id" in table:  # missing ones turn the whole numbers of events into floats
            table["advertiser_id"] = table["advertiser_id"].map(number)
    shown = tables["impressions"]
    slates = shown["slate_id"]
    shown["slate_id"] = "page " + slates.astype(str)
    tables["impressions"] = shown.drop(columns=["impression_id", "advertiser_id"])
    tables["events"] = tables["events"].drop(columns="value")
    mapping = write_own(tmp_path / "own", tables)
    # the mapping names a column for the value, so one must be there ...
    refused(capsys, tmp_path, mapping, "DAT003", "events.value", "from column 'spent'")
    # ... and else each event counts 1
    mapping.write_text(mapping.read_text().replace("      value: spent\n", ""))
    assert run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")[0] == 0
    written = load_tables(tmp_path / "tables")
    assert set(written["advertisers"].advertiser_id) == {str(n) for n in number.values()}
    assert written["events"].advertiser_id.isna().sum() == tables["events"].advertiser_id.isna().sum() > 0
    assert set(written["events"].advertiser_id.dropna()) <= set(written["advertisers"].advertiser_id)
    owner = tables["ads"].set_index("ad_id").advertiser_id.astype(str)
    assert (written["impressions"].advertiser_id == written["impressions"].ad_id.map(owner)).all()
    assert written["impressions"].impression_id.is_unique
    pairs = pd.DataFrame({"old": slates, "new": written["impressions"].slate_id}).drop_duplicates()
    assert len(pairs) == slates.nunique() == pairs["new"].nunique()
    assert (written["events"]["value"] == 1).all()


def test_naive_times_need_a_stated_zone(tmp_path, tables, capsys):
    expected = tables["events"]["timestamp"].copy()
    for name in ("events", "impressions"):
        tables[name]["timestamp"] = tables[name]["timestamp"].dt.tz_convert("Asia/Tokyo").dt.tz_localize(None)
    mapping = write_own(tmp_path / "own", tables)
    refused(
        capsys,
        tmp_path,
        mapping,
        "DAT009",
        "2 problems",
        "events.timestamp",
        "impressions.timestamp",
        "from column 'at' of events.parquet",
    )
    mapping = write_own(tmp_path / "own", tables, timezone="Asia/Tokyo")
    assert run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")[0] == 0
    assert (load_tables(tmp_path / "tables", "events")["events"]["timestamp"] == expected).all()


def test_without_ads_and_impressions_the_tables_measure_a_predictor(tmp_path, tables, capsys):
    # the files lie there, but the mapping leaves them out, so they are not read
    mapping = without(write_own(tmp_path / "own", tables), "ads", "impressions")
    (tmp_path / "own" / "impressions.parquet").write_bytes(b"no parquet")
    code, out, err = run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")
    assert code == 0
    assert err == "warning: no ads and no impressions: the tables measure a predictor, `advprior rank` refuses them\n"
    assert "positive" not in out
    facts = read_manifest(tmp_path / "tables", step="data")["facts"]
    assert facts["purpose"] == "predictor"
    assert sorted(facts["rows"]) == ["advertisers", "events", "users"]
    assert sorted(load_tables(tmp_path / "tables")) == ["advertisers", "events", "users"]
    # the span of the time plan is that of the events alone
    times, plan = tables["events"]["timestamp"], load_time_plan(tmp_path / "tables")
    assert plan.start == times.min()
    assert plan.end == times.max() + pd.Timedelta(seconds=1)
    assert run(capsys, tmp_path / "tables")[0] == 0
    assert "unchanged, reused" in run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")[1]


def test_with_all_five_tables_no_purpose_is_told(tmp_path, tables, capsys):
    assert run(capsys, "--mapping", write_own(tmp_path / "own", tables), "--out", tmp_path / "tables")[0] == 0
    assert "purpose" not in read_manifest(tmp_path / "tables")["facts"]
