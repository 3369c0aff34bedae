"""Tables of products and categories in a user's mapping: what they fill, what is refused, how much is covered."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from advprior.cli import main
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from tests.advprior.data.own_tables import refused, run, write_own
from tests.tiny import CATEGORIES, PLAN

DEPARTMENTS = {"Tea": "Drinks", "Coffee": "Drinks", "Bread": "Food", "Pasta": "Food", "Cheese": "Food"}


def with_lookups(folder: Path, tables: dict[str, pd.DataFrame], **products: object) -> Path:
    """A log of product numbers, with a table of products and one of categories beside it."""
    events = tables["events"]
    number = {category: i for i, category in enumerate(CATEGORIES)}
    sold = events.category.map(number)  # produce is no product
    tables = {**tables, "events": events.assign(sku=sold.astype("Int64")).drop(columns="category")}
    mapping = write_own(folder, tables)
    shelf = {"sku": range(6), "title": [f"Fine {c}" for c in CATEGORIES], "shelf": CATEGORIES}
    pd.DataFrame(shelf | products).set_index("sku").to_parquet(folder / "shelf.parquet")
    pd.DataFrame({"c": list(DEPARTMENTS), "d": list(DEPARTMENTS.values())}).to_parquet(folder / "groups.parquet")
    raw = yaml.safe_load(mapping.read_text())
    raw["tables"]["events"]["columns"]["product_id"] = "sku"
    of_products = {"product_id": "sku", "text": "title", "category": "shelf"}
    raw["tables"]["products"] = {"file": "shelf.parquet", "columns": of_products}
    raw["tables"]["categories"] = {"file": "groups.parquet", "columns": {"category": "c", "department": "d"}}
    mapping.write_text(yaml.safe_dump(raw))
    return mapping


def test_products_and_categories_fill_what_events_and_ads_lack(tmp_path, tables, capsys):
    mapping = with_lookups(tmp_path / "own", tables)
    code, out, err = run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")
    assert (code, err) == (0, "")
    assert "texts and departments: events.text 100 %" in out
    assert "ads.department 83 % of rows" in out  # soap belongs to nothing
    made = load_tables(tmp_path / "tables")
    events, before = made["events"], tables["events"]
    sold = before.category != "Produce"
    assert "product_id" not in events
    assert events.category[sold].tolist() == before.category[sold].tolist()
    assert events.category[~sold].isna().all()
    assert events.text[sold].tolist() == ("Fine " + before.category[sold]).tolist()
    assert events.department.fillna("").tolist() == before.category.map(DEPARTMENTS).fillna("").tolist()
    assert made["ads"].department.fillna("").tolist() == made["ads"].category.map(DEPARTMENTS).fillna("").tolist()
    assert read_manifest(tmp_path / "tables")["facts"]["coverage"]["events.text"] == 1.0
    # a folder that is canonical already says the same, and the texts of advertiser × category come of it
    assert "events.text 100 %" in run(capsys, tmp_path / "tables")[1]
    with pytest.raises(SystemExit):
        main(["data", "pairs", "--tables", str(tmp_path / "tables"), "--out", str(tmp_path / "pairs")])
    texts = load_tables(tmp_path / "pairs", "advertisers")["advertisers"].text.dropna()
    early = before[before.timestamp < PLAN.finetune_end]
    assert len(early)
    assert texts.str.fullmatch(r"(Drinks|Food), \w+(: Fine \w+)?|Soap: Fine Soap").all()


def test_what_a_table_says_itself_stands(tmp_path, tables, capsys):
    own = {**tables, "ads": tables["ads"].assign(department="Own")}
    mapping = with_lookups(tmp_path / "own", own)
    raw = yaml.safe_load(mapping.read_text())
    raw["tables"]["ads"]["columns"]["department"] = "department"
    mapping.write_text(yaml.safe_dump(raw))
    assert run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")[0] == 0
    assert set(load_tables(tmp_path / "tables", "ads")["ads"].department) == {"Own"}


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        ({"sku": [0, 1, 2, 3, 4, 4]}, "DAT006", "products.product_id: the same key again"),
        ({"sku": pd.array([0, 1, 2, 3, 4, None], dtype="Int64")}, "DAT005", "products.product_id: a value is missing"),
        ({"title": [None] * 6, "other": 1}, None, ""),
    ],
)
def test_keys_are_unique(tmp_path, tables, capsys, change, code, part):
    mapping = with_lookups(tmp_path / "own", tables, **change)
    if code is None:
        assert run(capsys, "--mapping", mapping, "--out", tmp_path / "tables")[0] == 0
    else:
        refused(capsys, tmp_path, mapping, code, part)


def test_a_column_that_is_not_there_and_products_without_a_number(tmp_path, tables, capsys):
    mapping = with_lookups(tmp_path / "own", tables)
    raw = yaml.safe_load(mapping.read_text())
    raw["tables"]["products"]["columns"]["text"] = "name"
    mapping.write_text(yaml.safe_dump(raw))
    refused(capsys, tmp_path, mapping, "DAT003", "products.text: no such column")
    del raw["tables"]["events"]["columns"]["product_id"]
    mapping.write_text(yaml.safe_dump(raw))
    refused(capsys, tmp_path, mapping, "CFG002", "products are joined by product_id")


def test_departments_of_events_alone_are_a_warning(tmp_path, tables, capsys):
    events = tables["events"].assign(department="Food")
    mapping = write_own(tmp_path / "own", {**tables, "events": events})
    raw = yaml.safe_load(mapping.read_text())
    raw["tables"]["events"]["columns"]["department"] = "department"
    mapping.write_text(yaml.safe_dump(raw))
    _, out, err = run(capsys, "--mapping", mapping)
    assert "events have departments and ads have none" in err
    assert "events.department 100 % of rows" in out


def test_without_texts_and_departments_nothing_is_said(tmp_path, tables, capsys):
    assert "texts and departments" not in run(capsys, "--mapping", write_own(tmp_path / "own", tables))[1]
