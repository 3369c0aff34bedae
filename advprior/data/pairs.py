"""Tables whose advertisers are advertiser × category: for priors as fine as what an impression's label asks.

A label says whether a user turned to *this category of* an advertiser, where a prior over advertisers can only say
that the advertiser is due. Here each such pair takes an advertiser's place, under an id and a name of its own, so
that every predictor, and the rest of the path to the store, is the very same code. The frame finds an impression's
pair in such a catalog by itself (`ranking.frame.gather.places`).

Pairs are those of the ads, and those bought before ``finetune_end``: a later one is nobody's target, and the catalog
knows nothing of the time it predicts. That holds for what is written of a pair, too: its department, its category and
the products bought most are counted strictly before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprior.store.contract import (
    ADS,
    ADVERTISER_ID,
    ADVERTISERS,
    CATEGORY,
    DEPARTMENT,
    EVENTS,
    KNOWN_FROM,
    NAME,
    TEXT,
    USER_ID,
    USERS,
    pair_id,
)
from advprior.store.errors import AdvpriorError
from advprior.store.existence import load_users_exist_from
from advprior.store.runs import is_current, manifest_digest, new_run, read_manifest, run_key
from advprior.store.tables import TABLES_FIX, load_tables, load_time_plan, write_parquet
from advprior.store.times import counting_times, exact_times, moment_us

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd

STEP = "data"
CODE_VERSION = 3
#: Products of a text, at most: more say little that is new, and an encoder reads a text up to a length.
MOST_PRODUCTS = 8


def pair_ids(table: pd.DataFrame) -> pd.Series[Any]:
    """Pair of each row, missing where it has no advertiser or no category.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"advertiser_id": ["a", None], "category": ["Tea", "Tea"]})
    >>> pair_ids(table).tolist()
    ['a / Tea', None]
    """
    import pandas as pd

    complete = (table[ADVERTISER_ID].notna() & table[CATEGORY].notna()).to_numpy()
    ids = pd.Series([None] * len(table), index=table.index, dtype=object)
    advertisers, categories = (table[column].astype(object)[complete] for column in (ADVERTISER_ID, CATEGORY))
    ids[complete] = [pair_id(a, c) for a, c in zip(advertisers, categories, strict=True)]
    return ids


def pair_tables(tables: dict[str, pd.DataFrame], cutoff: datetime) -> dict[str, pd.DataFrame]:
    """``users``, ``advertisers``, ``ads`` and ``events`` with advertiser × category in the place of advertisers.

    Where tables have departments or words of products, each pair has a ``department`` and a ``text`` too.

    Parameters
    ----------
    tables : dict of str to DataFrame
        Canonical users, advertisers, ads and events.
    cutoff : datetime
        What only events at or after it have is not listed, unless an ad has it; those events lose their advertiser. No
        text and no department tells of them.

    Raises
    ------
    AdvpriorError
        ``DAT050`` when events or ads have no category.
    """
    import pandas as pd

    ads, events = tables[ADS], tables[EVENTS]
    lacking = [name for name, table in ((ADS, ads), (EVENTS, events)) if CATEGORY not in table]
    if lacking:
        raise AdvpriorError(
            "DAT050",
            "there are no pairs of advertiser and category",
            where=", ".join(lacking),
            actual=f"no column `{CATEGORY}`",
            expected="categories of ads and events",
            fix="map a category in mapping.yaml, or stay with priors over advertisers",
        )
    of_ads, of_events = pair_ids(ads), pair_ids(events)
    early = events[counting_times(events) < moment_us(cutoff)]
    source = pd.concat([ads[[ADVERTISER_ID, CATEGORY]], early[[ADVERTISER_ID, CATEGORY]]])
    listed = source.dropna().drop_duplicates()
    names = tables[ADVERTISERS].set_index(ADVERTISER_ID)[NAME]
    listed = listed[listed[ADVERTISER_ID].isin(names.index)]
    catalog = pd.DataFrame(
        {
            ADVERTISER_ID: pair_ids(listed),
            NAME: [f"{c}, by {names[a]}" for a, c in zip(listed[ADVERTISER_ID], listed[CATEGORY], strict=True)],
        }
    ).sort_values(ADVERTISER_ID, ignore_index=True)
    catalog = _described(catalog, tables, early)
    listed_ids = set(catalog[ADVERTISER_ID])
    return {
        USERS: tables[USERS],
        ADVERTISERS: catalog,
        ADS: ads.assign(**{ADVERTISER_ID: of_ads}),
        EVENTS: events.assign(**{ADVERTISER_ID: of_events.where(of_events.isin(listed_ids), None)}),
    }


def _described(catalog: pd.DataFrame, tables: dict[str, pd.DataFrame], early: pd.DataFrame) -> pd.DataFrame:
    """The pairs with their departments and texts, as far as the tables have what these are made of."""
    import pandas as pd

    ads, advertisers = tables[ADS], tables[ADVERTISERS]
    pairs = catalog[ADVERTISER_ID]
    named = pd.concat([pair_ids(early), pair_ids(ads)])
    owner, category = (
        pd.Series(pd.concat([early[column], ads[column]]).to_numpy(), index=named)
        .groupby(level=0)
        .first()
        .reindex(pairs)
        for column in (ADVERTISER_ID, CATEGORY)
    )
    # an ad says what it is itself; only what no ad says is counted
    by_ads, by_events = (_most(table, DEPARTMENT, 1).reindex(pairs) for table in (ads, early))
    department = by_ads.where(by_ads.notna(), by_events)
    products = _most(early, TEXT, MOST_PRODUCTS).reindex(pairs)
    if TEXT in advertisers:
        products = products.where(products.notna(), owner.map(advertisers.set_index(ADVERTISER_ID)[TEXT]))
    texts = [
        pair_text(*(None if pd.isna(part) else str(part) for part in parts))
        for parts in zip(department, category, products, strict=True)
    ]
    columns: dict[str, list[Any]] = {DEPARTMENT: department.tolist(), TEXT: texts}
    described: dict[str, Any] = {
        name: values for name, values in columns.items() if any(not pd.isna(value) for value in values)
    }
    return catalog.assign(**described)


def pair_text(department: str | None, category: str | None, products: str | None) -> str | None:
    """What is written of a pair beside its name; None where nothing but its category could be.

    >>> pair_text("Grocery", "Tea", "Green Tea; Tea Bags"), pair_text(None, "Tea", "Tea Bags")
    ('Grocery, Tea: Green Tea; Tea Bags', 'Tea: Tea Bags')
    """
    if not department and not products:
        return None
    head = ", ".join(part for part in (department, category) if part)
    return f"{head}: {products}" if products else head


def _most(table: pd.DataFrame, column: str, most: int) -> pd.Series[Any]:
    """The most frequent values of a column for each advertiser × category, "; " between, empty without it."""
    import pandas as pd

    if column not in table:
        return pd.Series(dtype=object)
    values = table[column].astype(object).str.strip()
    rows = pd.DataFrame({"pair": pair_ids(table), "value": values.where(values != "", None)}).dropna()
    counts = rows.groupby(["pair", "value"], as_index=False).size()
    counts = counts.sort_values(["pair", "size", "value"], ascending=[True, False, True], kind="stable")
    first = counts.groupby("pair", sort=False).head(most)
    return first.groupby("pair", sort=False)["value"].agg("; ".join)


def build(tables: Path, out: Path, *, force: bool = False) -> bool:
    """Write the tables of advertiser × category as a run folder; False when it was up to date.

    There are no impressions in it: it is for predictors, and the frame is built on the tables that it comes from. So
    ``known_from`` says from when each user exists, by impressions too.
    """
    facts = dict(read_manifest(tables, step=STEP, fix=TABLES_FIX)["facts"])
    config, inputs = {"data_set": "pairs"}, {"tables": manifest_digest(tables)}
    key = run_key(STEP, config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        return False
    plan = load_time_plan(tables)
    with new_run(out, STEP, config=config, inputs=inputs, key=key) as run:
        pairs = pair_tables(load_tables(tables, USERS, ADVERTISERS, ADS, EVENTS), plan.finetune_end)
        users = pairs[USERS]
        exist_from = exact_times(load_users_exist_from(tables, users[USER_ID].tolist()))
        pairs[USERS] = users.assign(**{KNOWN_FROM: exist_from})
        for name, table in pairs.items():
            write_parquet(table, run.path / f"{name}.parquet")
        rows = {name: len(table) for name, table in pairs.items()}
        counted = ("rows", "slates", "positives", "warnings")
        run.facts.update({k: v for k, v in facts.items() if k not in counted}, rows=rows, pairs=True)
    return True
