"""The YAML of own tables: what is refused, and that what is shipped fits."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from advprior.cli import main
from advprior.data.mapping import read_mapping
from advprior.store.contract import TABLES
from advprior.store.tables import load_tables
from tests.advprior.data.own_tables import refused, run, without, write_own
from tests.tiny import PLAN


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        ({"tabels": {}}, "CFG002", "tabels: unknown key; did you mean tables?"),
        ({"label_delay": "9999999999d"}, "CFG002", "label_delay: longer than any time"),
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
        (
            {
                "time_plan": {
                    "finetune_end": PLAN.finetune_end.isoformat(),
                    "train_end": PLAN.train_end.isoformat(),
                    "valid_end": PLAN.valid_end.isoformat(),
                    "snapshot_every": "1m",
                }
            },
            "CFG002",
            "m stands for minutes",
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
    assert code == 0
    # a small shop's tables: how few positives there are is all that is said
    assert all(line.endswith("positives; intervals will be wide") for line in err.splitlines())
    assert {"profile_age", "profile_region"} < set(load_tables(tmp_path / "out", "users")["users"])


@pytest.mark.parametrize("name", ["ads", "impressions"])
def test_one_of_ads_and_impressions_is_not_enough(tmp_path, tables, capsys, name):
    mapping = without(write_own(tmp_path / "own", tables), name)
    refused(capsys, tmp_path, mapping, "CFG002", f"{name} is missing; ads and impressions come together")


def test_a_predictors_tables_need_the_other_three_tables(tmp_path, tables, capsys):
    mapping = without(write_own(tmp_path / "own", tables), "ads", "impressions", "events")
    refused(capsys, tmp_path, mapping, "CFG002", "tables.events: Field required")


def without_time_plan(mapping: Path) -> Path:
    raw = yaml.safe_load(mapping.read_text())
    del raw["time_plan"]
    mapping.write_text(yaml.safe_dump(raw))
    return mapping


def test_without_a_time_plan_one_is_proposed_from_the_span_and_printed(tmp_path, tables, capsys):
    code, out, err = run(capsys, "--mapping", without_time_plan(write_own(tmp_path / "own", tables)))
    assert code == 0, err
    assert "time plan, proposed from the data's span" in out
    first = min(tables[name]["timestamp"].min() for name in ("events", "impressions"))
    assert f"{first:%Y-%m-%d}" in out


def test_too_short_a_span_for_a_proposal_is_a_coded_error(tmp_path, tables, capsys):
    start = tables["events"]["timestamp"].min()
    for name in ("events", "impressions"):
        times = tables[name]["timestamp"]
        tables[name]["timestamp"] = start + (times - start) / 1000
    mapping = without_time_plan(write_own(tmp_path / "own", tables))
    refused(capsys, tmp_path, mapping, "DAT051", "no time plan can be proposed")


def test_the_mapping_that_init_writes_names_all_five_tables(tmp_path):
    with pytest.raises(SystemExit) as leave:
        main(["init", str(tmp_path / "w")])
    assert leave.value.code == 0
    mapping = tmp_path / "w" / "mapping.yaml"
    assert read_mapping(mapping).tables.present() == TABLES
    assert read_mapping(without(mapping, "ads", "impressions")).tables.present() == ("users", "advertisers", "events")


def test_a_project_is_checked_from_inside_and_from_outside(tmp_path, tables, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "w")])
    mapping = write_own(tmp_path / "own", tables)
    raw = yaml.safe_load(mapping.read_text())
    (tmp_path / "w" / "mapping.yaml").write_text(yaml.safe_dump({**raw, "folder": str(tmp_path / "own")}))
    capsys.readouterr()
    code, out, err = run(capsys, tmp_path / "w")
    assert code == 0, err
    assert f"data: wrote {tmp_path / 'w' / 'tables'}" in out
    monkeypatch.chdir(tmp_path / "w")
    code, out, _ = run(capsys)
    assert code == 0
    assert "unchanged, reused tables" in out
    assert "time plan" in out


def test_an_example_s_project_has_nothing_to_check_before_it_is_built(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "w"), "--example", "complete_journey"])
    capsys.readouterr()
    code, _, err = run(capsys, tmp_path / "w")
    assert code == 2
    assert err.startswith("error DAT041")
    assert f"advprior run {tmp_path / 'w'}" in err
