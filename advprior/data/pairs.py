"""Tables whose advertisers are advertiser × category: for priors as fine as what an impression's label asks.

A label says whether a user turned to *this category of* an advertiser, where a prior over advertisers can only say
that the advertiser is due. Here each such pair takes an advertiser's place, under an id and a name of its own, so
that every predictor, and the rest of the path to the store, is the very same code. The frame finds an impression's
pair in such a catalog by itself (`ranking.frame.gather.places`).

Pairs are those of the ads, and those bought before ``finetune_end``: a later one is nobody's target, and the catalog
knows nothing of the time it predicts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprior.store.contract import (
    ADS,
    ADVERTISER_ID,
    ADVERTISERS,
    CATEGORY,
    EVENTS,
    KNOWN_FROM,
    NAME,
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
CODE_VERSION = 2


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

    Parameters
    ----------
    tables : dict of str to DataFrame
        Canonical users, advertisers, ads and events.
    cutoff : datetime
        What only events at or after it have is not listed, unless an ad has it; those events lose their advertiser.

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
    listed_ids = set(catalog[ADVERTISER_ID])
    return {
        USERS: tables[USERS],
        ADVERTISERS: catalog,
        ADS: ads.assign(**{ADVERTISER_ID: of_ads}),
        EVENTS: events.assign(**{ADVERTISER_ID: of_events.where(of_events.isin(listed_ids), None)}),
    }


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
