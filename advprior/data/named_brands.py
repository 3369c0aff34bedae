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

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from advprior.data.event_file import EventFile, by_advertiser, with_texts
from advprior.store.contract import ADVERTISERS, EVENTS, USERS

if TYPE_CHECKING:
    import pandas as pd

NAME = "named_brands"
#: The protocol's T: histories end here, labels start.
CUTOFF = datetime(2022, 1, 1, tzinfo=UTC)

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


REVIEWS = EventFile(NAME, COLUMNS, "event_date", ("event_date", "user_id", "product_id"), NOTE, FIX, code_version=2)


def canonical(reviews: pd.DataFrame, cutoff: datetime = CUTOFF) -> dict[str, pd.DataFrame]:
    """Users, advertisers and events from reviews in time order.

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
    advertisers = with_texts(by_advertiser(reviews), catalog_texts(reviews[before]))
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
        Those before the cut-off.

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
    """Write the canonical tables of a reviews file; see `EventFile.build`."""
    return REVIEWS.build(source, out, canonical, cutoff=cutoff, force=force)
