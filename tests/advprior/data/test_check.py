"""`advprior data check` as a user meets it: exit code, one clear error, nothing half-written; and what it writes."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables, write_parquet
from tests.advprior.data.own_tables import RENAMED, refused, run, write_own


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


@pytest.mark.parametrize("name", ["ads", "impressions"])
def test_a_canonical_folder_with_one_of_the_two_is_refused(tmp_path, tables, capsys, name):
    for other, table in tables.items():
        if other != name:
            write_parquet(table, tmp_path / f"{other}.parquet")
    code, out, err = run(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error DAT001")
    assert f"{name}.parquet" in err


def test_an_empty_impressions_file_in_a_canonical_folder_is_no_missing_one(tmp_path, tables, capsys):
    tables["impressions"] = tables["impressions"].iloc[:0]
    for name, table in tables.items():
        write_parquet(table, tmp_path / f"{name}.parquet")
    code, out, err = run(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error DAT007: empty table: impressions: no rows")


def test_a_folder_that_nobody_may_write_to_is_one_coded_error(tmp_path, tables, capsys):
    code, out, err = run(capsys, "--mapping", write_own(tmp_path / "own", tables), "--out", "/sys/tables")
    assert (code, out) == (2, "")
    assert err.startswith("error RUN013: ")
    assert "/sys/.tables.partial" in err


@pytest.mark.parametrize("special", ["/proc/self/mem", "/dev/null", "pipe"])
def test_what_is_no_regular_file_is_refused_by_a_code(tmp_path, tables, capsys, special):
    """With ``--out`` its digest is taken first; a pipe would be waited for."""
    mapping = write_own(tmp_path / "own", tables)
    file = tmp_path / "own" / "ads.parquet"
    file.unlink()
    if special == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(special)
    refused(capsys, tmp_path, mapping, "DAT002", "ads.parquet")
    assert run(capsys, "--mapping", mapping)[0] == 2
