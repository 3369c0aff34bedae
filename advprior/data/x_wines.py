"""x_wines: ratings of wines whose advertisers are wineries with real names, from a file of the user's own.

X-Wines (de Azambuja, Morais and Filipe, Big Data Cogn. Comput. 2023, 7(1), 20; CC0). Nearly every next winery is new to
its user, so a history's own counts say little and texts (region, grape, style) should say much.

- *User*: a rater; nothing is stated of them.
- *Advertiser*: a winery, by its real name.
- *Event*: one rating, which stands for a purchase; how many stars it gave is left out.

The protocol that figures are compared by: histories end at 2020-01-01, the label is the first winery within 365 days
after it, of users with at least one rating before it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from advprior.data.event_file import EventFile, by_advertiser, with_texts
from advprior.store.contract import ADVERTISERS, EVENTS, USERS

if TYPE_CHECKING:
    import pandas as pd

NAME = "x_wines"
#: The protocol's T.
CUTOFF = datetime(2020, 1, 1, tzinfo=UTC)
COLUMNS = (
    "user_id",
    "timestamp",
    "product_id",
    "product_name",
    "advertiser_id",
    "advertiser_name",
    "category",
    "country",
    "region",
    "grapes",
    "body",
    "acidity",
)
FIX = "give --source the ratings.parquet that this reader is for; advprior data check --mapping reads other layouts"
NOTE = (
    "A rating stands for a purchase; no profile; no ads and no impressions, so it measures a predictor and never a "
    "ranker. A winery's text is of its wines that were rated before the cut-off"
)
RATINGS = EventFile(NAME, COLUMNS, "timestamp", ("timestamp", "user_id", "product_id"), NOTE, FIX, code_version=1)
#: Regions, grapes and wines of a text, at most: a large winery's text stays within what an encoder reads.
SHOWN = 12


def canonical(ratings: pd.DataFrame, cutoff: datetime = CUTOFF) -> dict[str, pd.DataFrame]:
    """Users, advertisers and events from ratings in time order.

    Parameters
    ----------
    ratings : DataFrame
    cutoff : datetime
        No text of a winery is taken from later than this.

    Returns
    -------
    dict of str to DataFrame
    """
    import numpy as np
    import pandas as pd

    time = ratings["timestamp"].dt.tz_convert("UTC").astype("datetime64[us, UTC]")
    texts = catalog_texts(ratings[time < pd.Timestamp(cutoff)])
    words = ratings["product_name"] + ", " + ratings["grapes"] + ", " + ratings["region"] + ", " + ratings["country"]
    return {
        USERS: pd.DataFrame({"user_id": np.sort(ratings["user_id"].unique())}),
        ADVERTISERS: with_texts(by_advertiser(ratings), texts),
        EVENTS: pd.DataFrame(
            {
                "user_id": ratings["user_id"],
                "timestamp": time,
                "advertiser_id": ratings["advertiser_id"],
                "category": ratings["category"],
                "value": np.ones(len(ratings)),
                "text": words,
            }
        ),
    }


def catalog_texts(ratings: pd.DataFrame) -> pd.Series:
    """What each winery makes, in words, from the wines in ``ratings``: where, types, grapes, style, names.

    Words are ordered by the number of wines that have them, never by ratings, so that a text does not tell how popular
    its winery is.

    Parameters
    ----------
    ratings : DataFrame
        Those before the cut-off.

    Returns
    -------
    Series of str
        By advertiser_id.

    Examples
    --------
    >>> import pandas as pd
    >>> row = {"advertiser_id": "7", "product_id": "p", "product_name": "Reserva", "category": "Red"}
    >>> row |= {"country": "Spain", "region": "Rioja", "grapes": "Tempranillo"}
    >>> row |= {"body": "Full-bodied", "acidity": "High"}
    >>> catalog_texts(pd.DataFrame([row])).loc["7"]
    'Rioja, Spain. Red. Tempranillo. Full-bodied, High acidity. 1 wine: Reserva'
    """
    import pandas as pd

    wines = ratings.drop_duplicates(["advertiser_id", "product_id"]).sort_values(["advertiser_id", "product_id"])

    def text(winery: pd.DataFrame) -> str:
        places = _by_count(winery["region"] + ", " + winery["country"])
        styles = _by_count(winery["body"] + ", " + winery["acidity"] + " acidity")
        grapes = _by_count(winery["grapes"].str.split(", ").explode())
        count = f"{len(winery)} wine{'s' * (len(winery) > 1)}"
        parts = ["; ".join(places), ", ".join(_by_count(winery["category"])), ", ".join(grapes), "; ".join(styles)]
        return ". ".join([*parts, f"{count}: {'; '.join(_by_count(winery['product_name']))}"])

    return pd.Series({key: text(winery) for key, winery in wines.groupby("advertiser_id", sort=True)}, dtype=object)


def _by_count(values: pd.Series) -> list[str]:
    """Distinct values, the most frequent first, ties by name; the first `SHOWN` of them."""
    counts = values.value_counts()
    return [str(value) for value, _ in sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))][:SHOWN]


def build(source: Path, out: Path, *, cutoff: datetime = CUTOFF, force: bool = False) -> bool:
    """Write the canonical tables of a ratings file; see `EventFile.build`."""
    return RATINGS.build(source, out, canonical, cutoff=cutoff, force=force)
