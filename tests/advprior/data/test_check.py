"""`advprior data check` as a user meets it: exit code, one clear error, nothing half-written; and what it writes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest
import yaml

from advprior.cli import main
from advprior.store.contract import TABLES
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables, load_time_plan
from tests.tiny import PLAN, tiny_tables

RENAMED = {"users": {"user_id": "customer"}, "events": {"user_id": "customer", "timestamp": "at", "value": "spent"}}


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    return tiny_tables(users=8)


def write_own(folder: Path, tables: dict[str, pd.DataFrame], **changes: object) -> Path:
    """A user's own folder: renamed columns, no canonical types, and a mapping that says so."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if name == "users":
            table = table.rename(columns={"profile_age": "age_band", "profile_region": "where"})
        if name == "impressions":
            table = table.rename(columns={"context_placement": "slot"})
        table.rename(columns=RENAMED.get(name, {})).to_parquet(folder / f"{name}.parquet")
    mapping = {
        "tables": {name: {"file": f"{name}.parquet", "columns": RENAMED.get(name, {})} for name in TABLES},
        "time_plan": {
            "finetune_end": PLAN.finetune_end.isoformat(),
            "train_end": PLAN.train_end.isoformat(),
            "valid_end": PLAN.valid_end.isoformat(),
            "snapshot_every": "14d",
            "lag": "30m",
        },
    }
    mapping["tables"]["users"]["profile"] = {"age": "age_band", "region": "where"}
    mapping["tables"]["impressions"]["context"] = {"placement": "slot"}
    mapping |= changes
    path = folder / "mapping.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["data", "check", *map(str, arguments)])
    except SystemExit as leave:
        code = int(leave.code or 0)
    text = capsys.readouterr()
    return code, text.out, text.err


def refused(capsys, tmp_path, mapping: Path, code: str, *parts: str) -> str:
    """Check that the mapping is refused with ``code`` and ``parts``, and that nothing is written."""
    before = sorted(p for p in tmp_path.rglob("*"))
    exit_code, out, err = run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")
    assert exit_code == 2
    assert err.startswith(f"error {code}: ")
    for part in parts:
        assert part in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(p for p in tmp_path.rglob("*")) == before
    return err


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


def test_the_written_folder_passes_its_own_check_and_is_reused(tmp_path, tables, capsys):
    mapping = write_own(tmp_path / "own", tables)
    run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")
    finished = read_manifest(tmp_path / "tables", step="data")["finished"]
    code, out, err = run(capsys, tmp_path / "tables")
    assert (code, err) == (0, "")
    assert "is sound" in out
    assert "unchanged, reused" in run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")[1]
    assert read_manifest(tmp_path / "tables")["finished"] == finished
    # one purchase less: made anew
    tables["events"].iloc[:-1].rename(columns=RENAMED["events"]).to_parquet(tmp_path / "own" / "events.parquet")
    assert "unchanged" not in run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")[1]
    assert len(load_tables(tmp_path / "tables", "events")["events"]) == len(tables["events"]) - 1


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


def edit(tmp_path: Path, tables: dict[str, pd.DataFrame], name: str, table: pd.DataFrame) -> Path:
    """A user's own folder in which one table is another."""
    return write_own(tmp_path / "own", {**tables, name: table})


def test_missing_column(tmp_path, tables, capsys):
    mapping = edit(tmp_path, tables, "events", tables["events"].drop(columns="timestamp"))
    refused(capsys, tmp_path, mapping, "DAT003", "events.timestamp", "from column 'at'", "there are customer,")


def test_missing_profile_and_context_columns_are_told_with_the_rest(tmp_path, tables, capsys):
    tables["users"] = tables["users"].drop(columns="profile_age")
    tables["impressions"] = tables["impressions"].drop(columns=["context_placement", "label"])
    mapping = write_own(tmp_path / "own", tables)
    refused(
        capsys,
        tmp_path,
        mapping,
        "DAT003",
        "3 problems",
        "users.profile_age",
        "impressions.context_placement",
        "impressions.label",
    )


def test_wrong_type(tmp_path, tables, capsys):
    mapping = edit(tmp_path, tables, "events", tables["events"].assign(value="much"))
    refused(capsys, tmp_path, mapping, "DAT004", "events.value", "expected a number", "from column 'spent'")


def test_duplicate_key(tmp_path, tables, capsys):
    mapping = edit(tmp_path, tables, "users", pd.concat([tables["users"], tables["users"].iloc[:1]]))
    refused(capsys, tmp_path, mapping, "DAT006", "users.user_id", "'u000'", "[1 row: 8]")


def test_unknown_advertiser_in_impressions(tmp_path, tables, capsys):
    tables["advertisers"] = tables["advertisers"].iloc[1:]
    tables["ads"] = tables["ads"][tables["ads"].advertiser_id != "a00"]
    tables["events"] = tables["events"][tables["events"].advertiser_id != "a00"]
    mapping = write_own(tmp_path / "own", tables)
    refused(capsys, tmp_path, mapping, "DAT011", "impressions.advertiser_id: not in advertisers: 'a00'")


def test_empty_table(tmp_path, tables, capsys):
    mapping = edit(tmp_path, tables, "impressions", tables["impressions"].iloc[:0])
    refused(capsys, tmp_path, mapping, "DAT007", "impressions: no rows")


def test_advertiser_without_a_name(tmp_path, tables, capsys):
    tables["advertisers"].loc[[4], "name"] = None
    mapping = write_own(tmp_path / "own", tables)
    refused(capsys, tmp_path, mapping, "DAT008", "advertisers.name", "[1 row: 4]")


def test_truncated_parquet(tmp_path, tables, capsys):
    mapping = write_own(tmp_path / "own", tables)
    file = tmp_path / "own" / "ads.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    refused(capsys, tmp_path, mapping, "DAT002", "ads.parquet", "truncated")


def test_missing_file(tmp_path, tables, capsys):
    mapping = write_own(tmp_path / "own", tables)
    (tmp_path / "own" / "ads.parquet").unlink()
    refused(capsys, tmp_path, mapping, "DAT001", "ads.parquet", "correct `folder` or `file`")


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        ({"tabels": {}}, "CFG002", "tabels: Extra inputs"),
        ({"timezone": "Mars/Olympus"}, "CFG002", "no such time zone"),
        ({"time_plan": {"finetune_end": "2024-03-01T00:00:00Z"}}, "CFG002", "time_plan.train_end: Field required"),
        (
            {"time_plan": {"finetune_end": "2024-03-01", "train_end": "2024-04-01", "valid_end": "2024-05-01"}},
            "DAT009",
            "time_plan.finetune_end",
        ),
        (
            {
                "time_plan": {
                    "finetune_end": PLAN.train_end.isoformat(),
                    "train_end": PLAN.finetune_end.isoformat(),
                    "valid_end": PLAN.valid_end.isoformat(),
                }
            },
            "CFG002",
            "start < finetune_end < train_end",
        ),
    ],
)
def test_a_mapping_that_does_not_fit(tmp_path, tables, capsys, change, code, part):
    refused(capsys, tmp_path, write_own(tmp_path / "own", tables, **change), code, part)


def test_an_unknown_column_name_in_the_mapping(tmp_path, tables, capsys):
    mapping = write_own(tmp_path / "own", tables)
    raw = yaml.safe_load(mapping.read_text())
    raw["tables"]["ads"]["columns"] = {"campaign": "campaign_name"}
    mapping.write_text(yaml.safe_dump(raw))
    refused(capsys, tmp_path, mapping, "CFG002", "ads.columns: unknown campaign", "known are ad_id")


@pytest.mark.parametrize("text", ["tables: [", "just words", ""])
def test_a_mapping_that_is_no_mapping(tmp_path, capsys, text):
    (tmp_path / "mapping.yaml").write_text(text)
    refused(capsys, tmp_path, tmp_path / "mapping.yaml", "CFG001", "mapping.yaml")


def test_the_users_own_files_are_never_replaced(tmp_path, tables, capsys):
    own = tmp_path / "own"
    mapping = write_own(own, tables)
    before = sorted(p.name for p in own.iterdir())
    code, _, err = run(capsys, "--mapping", mapping, "--out", own)
    assert code == 2
    assert err.startswith("error DAT044")
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"meow")
    code, _, err = run(capsys, "--mapping", mapping, "--out", other)
    assert code == 2
    assert err.startswith("error RUN004")
    assert sorted(p.name for p in own.iterdir()) == before
    assert [p.name for p in other.iterdir()] == ["cat.jpg"]


def test_a_failed_check_leaves_the_earlier_tables(tmp_path, tables, capsys):
    mapping = write_own(tmp_path / "own", tables)
    run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")
    write_own(tmp_path / "own", {**tables, "ads": tables["ads"].iloc[:0]})
    refused(capsys, tmp_path, mapping, "DAT007", "ads: no rows")
    assert len(load_tables(tmp_path / "tables")["ads"]) == len(tables["ads"])


def test_a_canonical_folder_is_checked_as_it_is(tmp_path, tables, capsys):
    from advprior.store.tables import write_parquet

    for name, table in tables.items():
        write_parquet(table, tmp_path / f"{name}.parquet")
    code, _, err = run(capsys, tmp_path)
    assert code == 0
    assert "no manifest.json" in err
    tables["users"].assign(user_id=range(8)).to_parquet(tmp_path / "users.parquet")
    code, out, err = run(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error DAT004: wrong type: users.user_id")
    code, _, err = run(capsys, tmp_path / "nowhere")
    assert code == 2
    assert err.startswith("error DAT001")


@pytest.mark.parametrize("arguments", [[], ["tables", "--mapping", "m.yaml"], ["tables", "--out", "x"]])
def test_usage_errors(capsys, arguments):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "Usage" in err


def test_the_shipped_template_is_a_mapping_of_canonical_names(tmp_path, tables, capsys):
    template = files("advprior").joinpath("templates/mapping.yaml").read_text()
    tables["users"] = tables["users"].rename(columns={"profile_age": "age", "profile_region": "region"})
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    # its dates lie inside the tiny year but for the last, so only that is moved
    (tmp_path / "mapping.yaml").write_text(
        template.replace("2024-08-01", "2024-06-15").replace("2024-09-01", "2024-07-01")
    )
    code, _, err = run(capsys, "--mapping", tmp_path / "mapping.yaml", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert {"profile_age", "profile_region"} < set(load_tables(tmp_path / "out", "users")["users"])


def without(mapping: Path, *names: str) -> Path:
    """The mapping less the blocks of these tables."""
    raw = yaml.safe_load(mapping.read_text())
    raw["tables"] = {name: block for name, block in raw["tables"].items() if name not in names}
    mapping.write_text(yaml.safe_dump(raw))
    return mapping


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


@pytest.mark.parametrize("name", ["ads", "impressions"])
def test_one_of_ads_and_impressions_is_not_enough(tmp_path, tables, capsys, name):
    mapping = without(write_own(tmp_path / "own", tables), name)
    refused(capsys, tmp_path, mapping, "CFG002", f"{name} is missing; ads and impressions come together")


def test_a_predictors_tables_need_a_time_plan_and_the_other_three_tables(tmp_path, tables, capsys):
    mapping = without(write_own(tmp_path / "own", tables), "ads", "impressions", "events")
    refused(capsys, tmp_path, mapping, "CFG002", "tables.events: Field required")
    raw = yaml.safe_load(without(write_own(tmp_path / "own", tables), "ads", "impressions").read_text())
    del raw["time_plan"]
    mapping.write_text(yaml.safe_dump(raw))
    refused(capsys, tmp_path, mapping, "CFG002", "time_plan: Field required")


@pytest.mark.parametrize("name", ["ads", "impressions"])
def test_a_canonical_folder_with_one_of_the_two_is_refused(tmp_path, tables, capsys, name):
    from advprior.store.tables import write_parquet

    for other, table in tables.items():
        if other != name:
            write_parquet(table, tmp_path / f"{other}.parquet")
    code, out, err = run(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error DAT001")
    assert f"{name}.parquet" in err


def test_an_empty_impressions_file_in_a_canonical_folder_is_no_missing_one(tmp_path, tables, capsys):
    from advprior.store.tables import write_parquet

    tables["impressions"] = tables["impressions"].iloc[:0]
    for name, table in tables.items():
        write_parquet(table, tmp_path / f"{name}.parquet")
    code, out, err = run(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error DAT007: empty table: impressions: no rows")


def test_the_mapping_that_init_writes_names_all_five_tables(tmp_path):
    from advprior.data.mapping import read_mapping

    with pytest.raises(SystemExit) as leave:
        main(["init", str(tmp_path / "w")])
    assert leave.value.code == 0
    mapping = tmp_path / "w" / "configs" / "mapping.yaml"
    assert read_mapping(mapping).tables.present() == TABLES
    assert read_mapping(without(mapping, "ads", "impressions")).tables.present() == ("users", "advertisers", "events")
