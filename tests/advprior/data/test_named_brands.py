"""named_brands from a small file in the source's layout: tables, time order, and who may use them."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from advprior.cli import main
from advprior.data.named_brands import build
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables, load_time_plan, require_impressions


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    n = 800
    brand = rng.integers(6, size=n)
    day = pd.Timestamp("2021-01-01", tz="UTC") + pd.to_timedelta(rng.integers(500, size=n), unit="D")
    user = rng.integers(60, size=n)
    reviews = pd.DataFrame(
        {
            "user_id": [f"u{i:02d}" for i in user],
            "event_date": day,
            "product_id": [f"P{i}" for i in range(n)],
            "product_name": "Cream",
            "category": "care",
            "subcategory": np.where(brand % 2, "face", None),
            "price_usd": np.float32(9.9),
            "advertiser_id": brand.astype(str),
            "advertiser_name": [f"Brand {i}" for i in brand],
            "skin_type": "dry",
            "skin_tone": None,
            "eye_color": "blue",
            "hair_color": "red",
        }
    )
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


def command(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leave:
        main([*map(str, arguments)])
    text = capsys.readouterr()
    return int(leave.value.code or 0), text.out, text.err


def test_the_source_is_never_replaced(source, tmp_path, capsys):
    before = source.read_bytes()
    code, out, err = command(capsys, "data", "build", "named_brands", "--source", source, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error DAT044: ")
    assert [p.name for p in tmp_path.iterdir()] == ["reviews.parquet"]
    assert source.read_bytes() == before


@pytest.mark.parametrize("cutoff", ["2020-06-01", "2022-05-14", "2030-01-01"])
def test_a_cut_off_that_does_not_divide_the_data(source, tmp_path, capsys, cutoff):
    code, out, err = command(
        capsys, "data", "build", "named_brands", "--source", source, "--out", tmp_path / "tables", "--cutoff", cutoff
    )
    assert (code, out) == (2, "")
    assert err.startswith("error DAT046: ")
    assert cutoff in err
    assert not (tmp_path / "tables").exists()


def test_cutoff_moves_the_time_plan_and_makes_other_tables(source, tmp_path, capsys):
    build_it = ("data", "build", "named_brands", "--source", source, "--out", tmp_path / "tables")
    assert command(capsys, *build_it, "--cutoff", "2021-07-01")[0] == 0
    assert load_time_plan(tmp_path / "tables").finetune_end == datetime(2021, 7, 1, tzinfo=UTC)
    assert "unchanged, reused" in command(capsys, *build_it, "--cutoff", "2021-07-01")[1]
    assert "unchanged" not in command(capsys, *build_it)[1]
    assert load_time_plan(tmp_path / "tables").finetune_end == datetime(2022, 1, 1, tzinfo=UTC)


def test_a_profile_is_as_of_the_cut_off(source, tmp_path):
    """Told before, on the day of, or after the cut-off: only the first counts, but for users seen first after it."""
    told = [
        ("early", "2021-03-01", "dry", None),
        ("early", "2021-05-01", "oily", None),
        ("early", "2021-06-01", None, None),  # not told again, not forgotten
        ("early", "2021-07-01", "normal", "green"),  # the day of the cut-off is after it
        ("early", "2022-02-01", "combination", "brown"),
        ("late", "2021-09-01", "dry", None),  # first seen here
        ("late", "2021-10-01", "oily", "green"),
    ]
    rows = pd.read_parquet(source).iloc[: len(told)].copy()
    rows["user_id"], _, rows["skin_type"], rows["eye_color"] = zip(*told, strict=True)
    rows["event_date"] = pd.to_datetime([day for _, day, *_ in told], utc=True).astype("datetime64[us, UTC]")

    def users(cutoff: datetime) -> dict[str, tuple[object, object]]:
        rows.sample(frac=1, random_state=0).to_parquet(source)
        build(source, tmp_path / "tables", cutoff=cutoff)
        table = load_tables(tmp_path / "tables", "users")["users"].set_index("user_id")
        assert set(table.index) == {"early", "late"}
        return {u: (table.profile_skin_type[u], table.profile_eye_color[u]) for u in table.index}

    july = datetime(2021, 7, 1, tzinfo=UTC)
    as_of_july = {"early": ("oily", None), "late": ("dry", None)}
    assert users(july) == as_of_july
    # whatever is told afterwards changes nothing
    after = (rows["event_date"] >= july) & (rows["event_date"] != pd.Timestamp("2021-09-01", tz="UTC"))
    rows.loc[after, ["skin_type", "eye_color"]] = "otherwise"
    assert users(july) == as_of_july
    # a later cut-off does see it
    assert users(datetime(2021, 12, 1, tzinfo=UTC)) == {
        "early": ("otherwise", "otherwise"),
        "late": ("otherwise", "otherwise"),
    }


@pytest.mark.parametrize("step", ["features", "frame"])
def test_a_ranker_is_refused(source, tmp_path, capsys, step):
    build(source, tmp_path / "tables")
    assert command(capsys, "init", tmp_path / "w")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    arguments = ["rank", step, "--tables", tmp_path / "tables", "--repo", tmp_path / "w" / "feature_repo"]
    if step == "frame":
        arguments += ["--out", tmp_path / "frame"]
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error DAT045: ")
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
