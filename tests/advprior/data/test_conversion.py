"""A user's own files under canonical names and types: what becomes of ids, times, labels and absent columns."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pandas as pd
import pyarrow.parquet as pq
import yaml

from advprior.store.contract import TABLES
from advprior.store.runs import read_manifest
from advprior.store.tables import load_label_delay, load_tables, load_time_plan
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
        "`timezone: UTC` in the mapping",
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


def test_a_key_that_is_the_index_of_its_file_is_a_column(tmp_path, tables, capsys):
    mapping = write_own(tmp_path / "own", tables)
    for name, key in (("users", "customer"), ("ads", "ad_id")):
        file = tmp_path / "own" / f"{name}.parquet"
        pd.read_parquet(file).set_index(key).to_parquet(file)
    assert run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")[0] == 0
    assert set(load_tables(tmp_path / "tables")["users"]["user_id"]) == set(tables["users"]["user_id"])


def test_a_table_in_parts_is_read_whole_and_a_new_part_is_seen(tmp_path, tables, capsys):
    mapping = write_own(tmp_path / "own", tables)
    file, out = tmp_path / "own" / "events.parquet", tmp_path / "tables"
    events = pd.read_parquet(file)
    file.unlink()
    file.mkdir()
    half = len(events) // 2
    events[:half].to_parquet(file / "part-0.parquet")
    assert run(capsys, "--mapping", mapping, "--out", out)[0] == 0
    assert len(load_tables(out)["events"]) == half
    assert "unchanged" in run(capsys, "--mapping", mapping, "--out", out)[1]
    events[half:].to_parquet(file / "part-1.parquet")
    assert run(capsys, "--mapping", mapping, "--out", out)[0] == 0
    assert len(load_tables(out)["events"]) == len(events)


def test_text_ids_of_impressions_are_numbered(tmp_path, tables, capsys):
    shown = tables["impressions"]
    shown["impression_id"] = [f"{row:032x}" for row in shown["impression_id"]]
    mapping = write_own(tmp_path / "own", tables)
    assert run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")[0] == 0
    assert load_tables(tmp_path / "tables")["impressions"]["impression_id"].tolist() == list(range(len(shown)))
    shown.loc[3, "impression_id"] = shown["impression_id"][0]
    mapping = write_own(tmp_path / "again", tables)
    refused(capsys, tmp_path / "again", mapping, "DAT006", "impressions.impression_id")


def test_decimals_are_numbers_and_whole_ones_ids(tmp_path, tables, capsys):
    shown, events = tables["impressions"], tables["events"]
    numbers = {user: row for row, user in enumerate(tables["users"]["user_id"])}
    for table in (tables["users"], shown, events):
        table["user_id"] = [Decimal(numbers[user]) for user in table["user_id"]]
    events["value"] = [Decimal(round(value * 100)) / 100 for value in events["value"]]
    shown["context_placement"] = [Decimal(row % 7) / 4 for row in range(len(shown))]
    assert run(capsys, "--mapping", write_own(tmp_path / "own", tables), "--out", tmp_path / "tables")[0] == 0
    written = load_tables(tmp_path / "tables")
    assert set(written["users"]["user_id"]) == {str(row) for row in numbers.values()}
    assert written["events"]["value"].tolist() == [float(value) for value in events["value"]]
    assert written["impressions"]["context_placement"].tolist() == [row % 7 / 4 for row in range(len(shown))]


def test_a_profile_field_that_nobody_has_keeps_its_type(tmp_path, tables, capsys):
    tables["users"]["profile_age"] = None
    assert run(capsys, "--mapping", write_own(tmp_path / "own", tables), "--out", tmp_path / "tables")[0] == 0
    assert "string" in str(pq.read_schema(tmp_path / "tables" / "users.parquet").field("profile_age").type)


def test_optional_columns_are_read_and_the_label_delay_is_stated_or_the_default(tmp_path, tables, capsys):
    events, shown = tables["events"], tables["impressions"]
    events["loaded"] = events["timestamp"].dt.tz_localize(None) + pd.Timedelta(hours=1)
    shown["bought_at"] = (shown["timestamp"] + pd.Timedelta(days=9)).where(shown["label"] == 1)
    shown["clicked"] = shown["label"] == 1
    tables["users"]["signed_up"] = None  # in a file, a column without a type
    mapping = write_own(tmp_path / "own", tables)
    raw = yaml.safe_load(mapping.read_text())
    columns = {name: raw["tables"][name]["columns"] for name in ("users", "events", "impressions")}
    columns["users"] = {**columns["users"], "known_from": "signed_up"}
    columns["events"] = {**columns["events"], "arrived": "loaded"}
    columns["impressions"] = {**columns["impressions"], "clicked": "clicked", "label_time": "bought_at"}
    for name, of_table in columns.items():
        raw["tables"][name]["columns"] = of_table
    raw["timezone"] = "UTC"
    mapping.write_text(yaml.safe_dump(raw))
    refused(capsys, tmp_path, mapping, "DAT019", "label delay of 7 days", "label_delay")
    mapping.write_text(yaml.safe_dump(raw | {"label_delay": "10d"}))
    code, out, _ = run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")
    assert code == 0
    assert "labels are complete 10 days after their impression\n" in out
    written = load_tables(tmp_path / "tables")
    assert written["users"]["known_from"].isna().all()
    kinds = [written[name][column].dtype for name, column in (("users", "known_from"), ("events", "arrived"))]
    assert [str(kind) for kind in (*kinds, written["impressions"]["clicked"].dtype)] == [
        *["datetime64[us, UTC]"] * 2,
        "int8",
    ]
    assert load_label_delay(tmp_path / "tables") == timedelta(days=10)
    mapping.write_text(yaml.safe_dump(raw | {"label_delay": "-1d"}))
    refused(capsys, tmp_path, mapping, "CFG002", "label_delay")
    plain = write_own(tmp_path / "plain", tables)
    assert "labels are complete 7 days after their impression (the default" in run(capsys, "--mapping", plain)[1]
