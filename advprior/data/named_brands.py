"""named_brands: skin-care reviews whose advertisers are brands with real names, from a file of the user's own.

The only data here with names *and* profiles, so it answers whether a language model's knowledge of the world pays.
The file is not ours to ship: it is read from a path that its user gives, and nothing of it but tables is written.

- *User*: an author of reviews, with what they state of skin and looks.
- *Advertiser*: a brand, by its real name.
- *Event*: one review, which stands for a purchase; what the author thought of the product is left out.

There are **no ads and no impressions**: the tables measure a predictor (the next advertiser), never a ranker.

Times: the source knows the day only, so an event lies at 00:00 UTC of its day and all of a user's day are one
occasion. The cut-off (``finetune_end``) is a day too: that day's events are after it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from advprior.store.contract import ADVERTISERS, EVENTS, PREDICTOR_ONLY, USERS, TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.runs import is_current, new_run, run_key, sha256_file

if TYPE_CHECKING:
    import pandas as pd

CODE_VERSION = 2
NAME = "named_brands"
#: The protocol's T: histories end here, labels start.
CUTOFF = datetime(2022, 1, 1, tzinfo=UTC)
#: An author reviews twice in 14 years on average, so weekly priors would hardly differ and cost four times as much;
#: popularity moves within months, which four weeks still follow.
SNAPSHOT_EVERY = timedelta(days=28)
DAY = timedelta(days=1)

PROFILE = ("skin_type", "skin_tone", "eye_color", "hair_color")
COLUMNS = (
    "user_id",
    "event_date",
    "product_id",
    "product_name",
    "category",
    "subcategory",
    "price_usd",
    "advertiser_id",
    "advertiser_name",
    *PROFILE,
)
FIX = "give --source the reviews.parquet that this reader is for; advprior data check --mapping reads other layouts"

NOTE = (
    "A review stands for a purchase; days, no times of day; no ads and no impressions, so it measures a predictor and "
    "never a ranker. A user's profile is what they last stated before the cut-off; of users first seen later, what "
    "they stated on their first day"
)


def read_reviews(source: Path) -> pd.DataFrame:
    """Read the columns that are needed, in an order that does not depend on the file's.

    Raises
    ------
    AdvpriorError
        ``DAT001`` no such file, ``DAT002`` no Parquet file, ``DAT003`` missing columns, ``DAT004`` dates that are no
        times with a zone, ``DAT007`` no rows.
    """
    import pandas as pd

    from advprior.store.tables import read_parquet

    _require_file(source)
    raw = read_parquet(source, fix=FIX)
    missing = [column for column in COLUMNS if column not in raw.columns]
    if missing:
        raise AdvpriorError(
            "DAT003",
            f"missing column: {', '.join(missing)}",
            where=str(source),
            actual=", ".join(map(str, raw.columns)) or "no columns",
            expected=", ".join(COLUMNS),
            fix=FIX,
        )
    if not isinstance(raw["event_date"].dtype, pd.DatetimeTZDtype):
        raise AdvpriorError(
            "DAT004",
            "wrong type: the days are no times with a zone",
            where=f"{source}: event_date",
            actual=str(raw["event_date"].dtype),
            expected="datetime64[us, UTC]",
            fix=FIX,
        )
    if not len(raw):
        raise AdvpriorError("DAT007", "empty table", where=str(source), actual="0 rows", expected="reviews", fix=FIX)
    reviews = raw[list(COLUMNS)].sort_values(["event_date", "user_id", "product_id"], kind="stable")
    return reviews.reset_index(drop=True)


def _require_file(source: Path) -> None:
    if not Path(source).is_file():
        problem = "a folder" if Path(source).is_dir() else "no such file"
        raise AdvpriorError(
            "DAT001", "a file is missing", where=str(source), actual=problem, expected="a Parquet file", fix=FIX
        )


def time_plan(first: datetime, last: datetime, cutoff: datetime = CUTOFF) -> TimePlan:
    """The time plan around a cut-off: all before it fits, all from it on is to be predicted.

    Nothing is ranked here, so the later splits only have to be in order: half and three quarters of what is left.

    Parameters
    ----------
    first, last : datetime
        Day of the first and of the last event.
    cutoff : datetime
        Becomes ``finetune_end``.

    Raises
    ------
    AdvpriorError
        ``DAT046`` when fewer than four days of events follow the cut-off, or none precedes it.

    Examples
    --------
    >>> plan = time_plan(datetime(2020, 1, 1, tzinfo=UTC), datetime(2023, 1, 5, tzinfo=UTC))
    >>> plan.train_end.date().isoformat(), plan.valid_end.date().isoformat(), plan.end.date().isoformat()
    ('2022-07-05', '2022-10-05', '2023-01-06')
    """
    end = last + DAY
    left = (end - cutoff) // DAY
    if not first < cutoff or left < 4:
        raise AdvpriorError(
            "DAT046",
            "the cut-off does not divide the data",
            where="--cutoff",
            actual=f"{cutoff:%Y-%m-%d}",
            expected=f"after {first:%Y-%m-%d} and at most {end - 4 * DAY:%Y-%m-%d}",
            fix="choose another --cutoff",
        )
    return TimePlan(
        first, cutoff, cutoff + left // 2 * DAY, cutoff + left * 3 // 4 * DAY, end, SNAPSHOT_EVERY, timedelta(hours=1)
    )


def canonical(reviews: pd.DataFrame, cutoff: datetime = CUTOFF) -> dict[str, pd.DataFrame]:
    """Users, advertisers and events from what `read_reviews` gave.

    Parameters
    ----------
    reviews : DataFrame
        In time order.
    cutoff : datetime
        No profile is taken from later than this, unless its user is first seen later.

    Returns
    -------
    dict of str to DataFrame
    """
    import numpy as np
    import pandas as pd

    time = reviews["event_date"].dt.tz_convert("UTC").astype("datetime64[us, UTC]").dt.floor("D")
    profile = [f"profile_{field}" for field in PROFILE]
    stated = reviews[["user_id", *PROFILE]].set_axis(["user_id", *profile], axis=1)
    first_day = time == time.groupby(reviews["user_id"]).transform("min")
    before = time < pd.Timestamp(cutoff)
    # `last` takes the last value that is not missing: a field stated once is not lost when left out later
    users = stated[before | first_day].groupby("user_id", sort=True, as_index=False)[profile].last()
    has_subcategory = reviews["subcategory"].notna() & reviews["subcategory"].astype(str).str.strip().ne("")
    category = reviews["category"].astype(object)
    category = category.where(~has_subcategory, category + "/" + reviews["subcategory"].astype(object).fillna(""))
    advertisers = (
        reviews[["advertiser_id", "advertiser_name"]]
        .drop_duplicates("advertiser_id")
        .sort_values("advertiser_id")
        .set_axis(["advertiser_id", "name"], axis=1)
        .reset_index(drop=True)
    )
    texts = catalog_texts(reviews[before])
    advertisers["text"] = advertisers["advertiser_id"].map(texts).astype(object)
    advertisers = advertisers.astype(object).where(advertisers.notna(), None)
    return {
        USERS: users.astype(object).where(users.notna(), None),
        ADVERTISERS: advertisers,
        EVENTS: pd.DataFrame(
            {
                "user_id": reviews["user_id"],
                "timestamp": time,
                "advertiser_id": reviews["advertiser_id"],
                "category": category,
                # the source holds single precision, whose cents are no cents in double
                "value": np.round(reviews["price_usd"].astype("float64"), 2),
                "text": reviews["product_name"],
            }
        ),
    }


def catalog_texts(reviews: pd.DataFrame) -> pd.Series:
    """What each brand sells, in words, from the products in ``reviews``: kinds, prices, names.

    It is what a shop's catalog says; how often a product was reviewed does not enter, so that a brand's text does not
    tell how popular it is.

    Parameters
    ----------
    reviews : DataFrame
        Those before the cut-off, as `read_reviews` gives them.

    Returns
    -------
    Series of str
        By advertiser_id.

    Examples
    --------
    >>> import pandas as pd
    >>> row = {"advertiser_id": "7", "product_id": "p", "product_name": "Clay Mask", "category": "Masks"}
    >>> catalog_texts(pd.DataFrame([{**row, "subcategory": None, "price_usd": 30.0}])).loc["7"]
    'Masks. 1 product, about 30 dollars: Clay Mask'
    """
    import pandas as pd

    products = reviews.drop_duplicates(["advertiser_id", "product_id"]).sort_values(["advertiser_id", "product_id"])

    def text(brand: pd.DataFrame) -> str:
        kinds = brand["subcategory"].fillna(brand["category"]).astype(str)
        sold = ", ".join(sorted(kinds.unique(), key=lambda kind: (-int((kinds == kind).sum()), kind)))
        count = f"{len(brand)} product{'s' * (len(brand) > 1)}"
        names = "; ".join(brand["product_name"].astype(str).str.strip())
        return f"{sold}. {count}, about {brand['price_usd'].median():.0f} dollars: {names}"

    return pd.Series({key: text(brand) for key, brand in products.groupby("advertiser_id", sort=True)}, dtype=object)


def build(source: Path, out: Path, *, cutoff: datetime = CUTOFF, force: bool = False) -> bool:
    """Write the canonical tables of a reviews file as a finished run folder.

    Parameters
    ----------
    source : Path
        ``reviews.parquet``; read, never copied.
    out : Path
        Folder to write; replaced as a whole, or not at all.
    cutoff : datetime
        ``finetune_end`` of the time plan: move it to tune on earlier labels.
    force : bool
        Build even when ``out`` is up to date.

    Returns
    -------
    bool
        False when ``out`` was up to date and left alone.

    Raises
    ------
    AdvpriorError
        What `read_reviews`, `time_plan` and `advprior.store.schemas.validate_tables` raise; ``DAT044`` when ``out``
        holds the source.
    """
    source, out = Path(source), Path(out)
    _require_file(source)
    if out.resolve() in source.resolve().parents:
        raise AdvpriorError(
            "DAT044",
            "--out would replace your own file",
            where=str(out),
            actual=f"{source} lies there",
            expected="another folder",
            fix="choose another --out",
        )
    config = {"data_set": NAME, "cutoff": cutoff.isoformat()}
    inputs = {"source": sha256_file(source)}
    key = run_key("data", config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        return False

    from advprior.store.schemas import validate_tables
    from advprior.store.tables import write_parquet

    reviews = read_reviews(source)
    tables = canonical(reviews, cutoff)
    times = tables[EVENTS]["timestamp"]
    plan = time_plan(times.iloc[0].to_pydatetime(), times.iloc[-1].to_pydatetime(), cutoff)
    warnings = validate_tables(tables, plan=plan, where=str(source), fix=FIX)
    with new_run(out, "data", config=config, inputs=inputs, key=key) as run:
        for name, table in tables.items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts.update(
            source=NAME,
            purpose=PREDICTOR_ONLY,
            note=NOTE,
            time_plan=plan.to_json(),
            rows={name: len(table) for name, table in tables.items()},
            warnings=warnings,
        )
    return True
