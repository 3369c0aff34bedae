"""The click model behind `advprior.data.synthetic`: tastes, purchases that show them, slates, and labels.

For users u and advertisers a:

- Tastes z_u and x_a are K standard normal numbers each; ``taste(u, a) = z_u · x_a / √K`` is about standard normal.
- *Events*: purchases, at a rate that differs by user, of advertiser a with probability
  ``∝ popularity(a) · exp(1.5 · taste(u, a))``. A history of a few purchases shows the taste in part.
- *Impressions*: a slate is six draws of ads by popularity, of the user's taste nothing; repeats are left out.
- *Labels*: ``logit P(click) = intercept + h · log(1 + n) + p · [front] + t · taste(u, a)``, where n counts the user's
  purchases from a before the last weekly snapshot, which is what a ranker's history features hold. Where a null is
  asked for, t is 0: given the history, a label depends on nothing that a prior could know.

Counting n at the snapshot is what makes the null one: purchases *since* the snapshot follow taste, so a label
that depended on them could be guessed by a prior. Clicks are no events, for the same reason.

Words of a user's profile and of an advertiser's name tell the largest of their tastes, not always truly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from advprior.data.drawn import WEEK, times
from advprior.store.arrays import Float, Int
from advprior.store.contract import EVENTS, IMPRESSIONS, USERS

if TYPE_CHECKING:
    import pandas as pd

WEEK_S = int(WEEK.total_seconds())
#: Slates start this long after a snapshot, when its rows (lag: one hour) have arrived.
FIRST_SLATE_S = 2 * 3600

TRUTH = {
    "tastes": 8,
    "taste_in_purchases": 1.5,
    "popularity_exponent": 0.7,
    "purchases_a_week": 0.3,
    "slates_a_week": 0.25,
    "slate_size": 6,
    "front": 0.5,
    "profile_true": 0.7,
    "profile_missing": 0.15,
    "intercept": -3.0,
    "history_weight": 0.7,
    "front_weight": 0.4,
    "taste_weight": 0.8,
}
TASTES = ("Coffee", "Garden", "Outdoor", "Music", "Baby", "Pet", "Beauty", "Sports")
CATEGORIES = ("Food", "Drinks", "Clothing", "Home", "Books", "Toys", "Tools", "Games", "Travel", "Care")
KINDS = ("Company", "House", "Works", "Store", "Brothers", "Market")


class World(NamedTuple):
    """What does not depend on the users.

    Attributes
    ----------
    taste : float32 [M, K]
    popularity : float64 [M]
        Sums to one.
    advertisers, ads : DataFrame
        Canonical tables; ads 2a and 2a + 1 belong to advertiser a.
    """

    taste: Float
    popularity: npt.NDArray[np.float64]
    advertisers: pd.DataFrame
    ads: pd.DataFrame


class Purchases(NamedTuple):
    """Purchases of a chunk of users, by user, then by time.

    Attributes
    ----------
    buyer : int64 [P]
        Position of the user in the chunk.
    advertiser : int64 [P]
    second : int64 [P]
        Since the start of the log.
    """

    buyer: Int
    advertiser: Int
    second: Int


def make_world(advertisers: int, seed: int) -> World:
    """Advertisers with tastes, popularity, names and two ads each."""
    import pandas as pd

    rng = np.random.default_rng([seed, 0])
    tastes = int(TRUTH["tastes"])
    taste = rng.standard_normal((advertisers, tastes), dtype=np.float32)
    popularity = rng.permutation(np.arange(1, advertisers + 1) ** -TRUTH["popularity_exponent"])
    first = rng.integers(len(CATEGORIES), size=advertisers)
    second = (first + rng.integers(1, len(CATEGORIES), size=advertisers)) % len(CATEGORIES)
    width = len(str(advertisers - 1))
    ids = [f"a{i:0{width}d}" for i in range(advertisers)]
    names = [
        f"{TASTES[k]} {CATEGORIES[c]} {KINDS[i % len(KINDS)]} {i}"
        for i, (k, c) in enumerate(zip(taste.argmax(1), first, strict=True))
    ]
    sold = np.stack([first, second], axis=1).ravel()
    owner = np.repeat(ids, 2).astype(object)
    category = np.asarray(CATEGORIES, object)[sold]
    return World(
        taste,
        popularity / popularity.sum(),
        pd.DataFrame({"advertiser_id": ids, "name": names}),
        pd.DataFrame({"ad_id": owner + "/" + category, "advertiser_id": owner, "category": category}),
    )


def chunk_of_users(world: World, users: range, weeks: int, seed: int, *, null: bool) -> dict[str, Any]:
    """Some users with all that happens to them.

    Parameters
    ----------
    world : World
    users : range
        Numbers of the users. Their first fixes the chunk's seed.
    weeks, seed : int
    null : bool
        Labels without taste.

    Returns
    -------
    dict
        ``users``, ``events``, ``impressions`` (ids counted from 0 in this chunk), and ``taste`` float32 [users, K].
    """
    rng = np.random.default_rng([seed, 1, users.start])
    taste = rng.standard_normal((len(users), int(TRUTH["tastes"])), dtype=np.float32)
    ids = np.asarray([f"u{i:07d}" for i in users], object)
    match = taste @ world.taste.T / np.float32(np.sqrt(TRUTH["tastes"]))
    purchases = _draw_purchases(world, match, weeks, rng)
    events = _event_table(world, ids, purchases, rng)
    impressions = _impression_table(world, ids, _draw_slates(world, match, purchases, weeks, rng, null=null), rng)
    return {USERS: _user_table(ids, taste, rng), EVENTS: events, IMPRESSIONS: impressions, "taste": taste}


def _draw_purchases(world: World, match: Float, weeks: int, rng: np.random.Generator) -> Purchases:
    rate = rng.gamma(2.0, TRUTH["purchases_a_week"] / 2, size=len(match))
    buyer = np.repeat(np.arange(len(match)), rng.poisson(rate * weeks))
    wish = np.exp(TRUTH["taste_in_purchases"] * match, dtype=np.float32) * world.popularity.astype(np.float32)
    bought = _draw(wish, buyer, rng)
    second = rng.integers(weeks * WEEK_S, size=len(buyer))
    order = np.lexsort((second, buyer))
    return Purchases(buyer[order], bought[order], second[order])


def _event_table(world: World, ids: Any, purchases: Purchases, rng: np.random.Generator) -> pd.DataFrame:
    import pandas as pd

    ad = 2 * purchases.advertiser + rng.integers(2, size=len(purchases.buyer))
    return pd.DataFrame(
        {
            "user_id": ids[purchases.buyer],
            "timestamp": times(purchases.second),
            "advertiser_id": world.ads["advertiser_id"].to_numpy()[ad],
            "category": world.ads["category"].to_numpy()[ad],
            "value": np.round(rng.gamma(2.0, 10.0, size=len(purchases.buyer)), 2),
        }
    )


class Slates(NamedTuple):
    """Impressions of a chunk of users, slate by slate; every array is [I].

    Attributes
    ----------
    slate, user, ad, second : int64
        Number of the slate, position of the user, ad, and seconds since the start of the log.
    front : bool
    logit : float64
        Log-odds of a click.
    """

    slate: Int
    user: Int
    ad: Int
    second: Int
    front: npt.NDArray[np.bool_]
    logit: npt.NDArray[np.float64]


def _draw_slates(
    world: World, match: Float, purchases: Purchases, weeks: int, rng: np.random.Generator, *, null: bool
) -> Slates:
    """At most one slate a user and week, so that a slate is one moment of one user."""
    viewer, week = np.nonzero(rng.random((len(match), weeks)) < TRUTH["slates_a_week"])
    moment = week * WEEK_S + rng.integers(FIRST_SLATE_S, WEEK_S, size=len(viewer))
    size = int(TRUTH["slate_size"])
    # stratified draws from the popularity of ads: as likely as alone, and fewer repeats
    quantile = (np.arange(size) + rng.random((len(viewer), size))) / size
    edges = np.cumsum(np.repeat(world.popularity / 2, 2))
    shown = np.minimum(np.searchsorted(edges, quantile), len(edges) - 1)
    fresh = np.ones(shown.shape, bool)
    fresh[:, 1:] = shown[:, 1:] != shown[:, :-1]  # quantiles rise, so repeats stand together
    slate, place = np.nonzero(fresh)
    ad, user = shown[slate, place], viewer[slate]
    front = rng.random(len(slate)) < TRUTH["front"]
    n = _purchases_before(purchases, (user, ad // 2, week[slate]), len(world.popularity), weeks)
    logit = click_logit(n, front, match[user, ad // 2], null=null)
    return Slates(slate.astype(np.int64), user, ad, moment[slate], front, logit)


def _impression_table(world: World, ids: Any, slates: Slates, rng: np.random.Generator) -> pd.DataFrame:
    import pandas as pd

    count = len(slates.slate)
    return pd.DataFrame(
        {
            "impression_id": np.arange(count, dtype=np.int64),
            "slate_id": slates.slate,
            "user_id": ids[slates.user],
            "ad_id": world.ads["ad_id"].to_numpy()[slates.ad],
            "advertiser_id": world.ads["advertiser_id"].to_numpy()[slates.ad],
            "timestamp": times(slates.second),
            "label": (rng.random(count) < 1 / (1 + np.exp(-slates.logit))).astype(np.int8),
            "context_placement": np.where(slates.front, "front", "side").astype(object),
        }
    )


def _user_table(ids: Any, taste: Float, rng: np.random.Generator) -> pd.DataFrame:
    import pandas as pd

    count, tastes = taste.shape
    named = np.where(rng.random(count) < TRUTH["profile_true"], taste.argmax(1), rng.integers(tastes, size=count))
    interest = np.asarray([word.lower() for word in TASTES], object)[named]
    interest[rng.random(count) < TRUTH["profile_missing"]] = None
    region = np.asarray(["north", "south", "east", "west"], object)[rng.integers(4, size=count)]
    return pd.DataFrame({"user_id": ids, "profile_interest": interest, "profile_region": region})


def click_logit(n: Int, front: npt.NDArray[np.bool_], taste: Float, *, null: bool) -> npt.NDArray[np.float64]:
    """The truth behind the labels: log-odds of a click.

    Parameters
    ----------
    n : int64 [I]
        Purchases of the impression's user from its advertiser before the last snapshot.
    front : bool [I]
        Whether the ad stood in front.
    taste : float32 [I]
        ``taste(u, a)``.
    null : bool
        Without taste.

    Examples
    --------
    >>> one = np.ones(1)
    >>> click_logit(0 * one, one < 0, 2 * one, null=True), click_logit(0 * one, one < 0, 2 * one, null=False)
    (array([-3.]), array([-1.4]))
    """
    weight = 0.0 if null else TRUTH["taste_weight"]
    seen = TRUTH["history_weight"] * np.log1p(n) + TRUTH["front_weight"] * front
    logit: npt.NDArray[np.float64] = TRUTH["intercept"] + seen + weight * taste.astype(np.float64)
    return logit


def _draw(weight: Float, row: Int, rng: np.random.Generator) -> Int:
    """One column for each entry of ``row`` (ascending), with chances in proportion to ``weight[row]``."""
    size = weight.shape[1]
    share = np.cumsum(weight, axis=1, dtype=np.float64)
    # row r's distribution occupies (r, r + 1] of one rising sequence, so one search answers all draws
    share = (share / share[:, -1:] + np.arange(len(share))[:, None]).ravel()
    drawn = np.searchsorted(share, row + rng.random(len(row)), side="right") - row * size
    columns: Int = np.clip(drawn, 0, size - 1).astype(np.int64)
    return columns


def _purchases_before(purchases: Purchases, queries: tuple[Int, Int, Int], advertisers: int, weeks: int) -> Int:
    """Purchases of each (user, advertiser) in the weeks before a week: two searches in one sorted key."""
    user, advertiser, week = queries
    bought_week = purchases.second // WEEK_S
    keys = np.sort((purchases.buyer * advertisers + purchases.advertiser) * weeks + bought_week)
    first = (user * advertisers + advertiser) * weeks
    count: Int = np.searchsorted(keys, first + week, side="left") - np.searchsorted(keys, first, side="left")
    return count
