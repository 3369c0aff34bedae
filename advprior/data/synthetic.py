"""synthetic: a seeded ads log of any size whose click model is known, for what real data cannot tell.

Does a measurement find a signal that is there, and none where there is none? Does a step keep its memory at a
million users? The model, for users u and advertisers a:

- Tastes z_u and x_a are K standard normal numbers each; ``taste(u, a) = z_u · x_a / √K`` is about standard normal.
- *Events*: purchases, at a rate that differs by user, of advertiser a with probability
  ``∝ popularity(a) · exp(1.5 · taste(u, a))``. A history of a few purchases shows the taste in part.
- *Impressions*: a slate is six draws of ads by popularity, of the user's taste nothing; repeats are left out.
- *Labels*: ``logit P(click) = intercept + h · log(1 + n) + p · [front] + t · taste(u, a)``, where n counts the user's
  purchases from a before the last weekly snapshot, which is what a ranker's history features hold. With ``--null``
  t is 0: given the history, a label depends on nothing that a prior could know.

Counting n at the snapshot is what makes the null one: purchases *since* the snapshot follow taste, so a label
that knew them could be guessed by a prior. Clicks are no events, for the same reason.

Words of a user's profile and of an advertiser's name tell the largest of their tastes, not always truly.
Users are made in chunks of bounded size, each from a seed of its own, and written as they are made.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Float, Int
from advprior.store.contract import ADS, ADVERTISERS, EVENTS, IMPRESSIONS, USERS, TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.runs import is_current, new_run, run_key

if TYPE_CHECKING:
    import pandas as pd

CODE_VERSION = 1
NAME = "synthetic"
START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
WEEK_S = 7 * 86_400
#: Slates start this long after a snapshot, when its rows (lag: one hour) are there.
FIRST_SLATE_S = 2 * 3600
LEAST = {"users": 1, "advertisers": 6, "weeks": 6}

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

#: At most this many (user, advertiser) pairs and impressions-to-be are held at once.
PAIRS, SLATES = 4_000_000, 150_000


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


def time_plan(weeks: int) -> TimePlan:
    """A third of the weeks fine-tunes, a third trains the ranker, a sixth each validates and tests.

    >>> [(moment - START) // WEEK for moment in (time_plan(30).finetune_end, time_plan(30).end)]
    [10, 30]
    """
    first, second, third, end = (START + k * WEEK for k in (weeks // 3, weeks * 2 // 3, weeks * 5 // 6, weeks))
    return TimePlan(START, first, second, third, end)


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


def chunk_of_users(world: World, first: int, count: int, weeks: int, seed: int, *, null: bool) -> dict[str, Any]:
    """Users ``first … first + count - 1`` with all that happens to them.

    Returns
    -------
    dict
        ``users``, ``events``, ``impressions`` (ids counted from 0 in this chunk), and ``taste`` float32 [count, K].
    """
    import pandas as pd

    rng = np.random.default_rng([seed, 1, first])
    tastes = int(TRUTH["tastes"])
    taste = rng.standard_normal((count, tastes), dtype=np.float32)
    ids = np.asarray([f"u{i:07d}" for i in range(first, first + count)], object)
    match = taste @ world.taste.T / np.float32(np.sqrt(tastes))

    # purchases
    rate = rng.gamma(2.0, TRUTH["purchases_a_week"] / 2, size=count)
    buyer = np.repeat(np.arange(count), rng.poisson(rate * weeks))
    wish = np.exp(TRUTH["taste_in_purchases"] * match, dtype=np.float32) * world.popularity.astype(np.float32)
    bought = _draw(wish, buyer, rng)
    second = rng.integers(weeks * WEEK_S, size=len(buyer))
    order = np.lexsort((second, buyer))
    buyer, bought, second = buyer[order], bought[order], second[order]
    ad = 2 * bought + rng.integers(2, size=len(buyer))
    events = pd.DataFrame(
        {
            "user_id": ids[buyer],
            "timestamp": _times(second),
            "advertiser_id": world.ads["advertiser_id"].to_numpy()[ad],
            "category": world.ads["category"].to_numpy()[ad],
            "value": np.round(rng.gamma(2.0, 10.0, size=len(buyer)), 2),
        }
    )

    # slates: at most one a user and week, so that a slate is one moment of one user
    seen, week = np.nonzero(rng.random((count, weeks)) < TRUTH["slates_a_week"])
    moment = week * WEEK_S + rng.integers(FIRST_SLATE_S, WEEK_S, size=len(seen))
    size = int(TRUTH["slate_size"])
    # stratified draws from the popularity of ads: as likely as alone, and fewer repeats
    quantile = (np.arange(size) + rng.random((len(seen), size))) / size
    edges = np.cumsum(np.repeat(world.popularity / 2, 2))
    shown = np.minimum(np.searchsorted(edges, quantile), len(edges) - 1)
    fresh = np.ones(shown.shape, bool)
    fresh[:, 1:] = shown[:, 1:] != shown[:, :-1]  # quantiles rise, so repeats stand together
    slate, place = np.nonzero(fresh)
    ad = shown[slate, place]
    who, front = seen[slate], rng.random(len(slate)) < TRUTH["front"]
    n = _purchases_before(buyer, bought, second // WEEK_S, who, ad // 2, week[slate], len(world.popularity), weeks)
    logit = click_logit(n, front, match[who, ad // 2], null=null)
    impressions = pd.DataFrame(
        {
            "impression_id": np.arange(len(slate), dtype=np.int64),
            "slate_id": slate.astype(np.int64),
            "user_id": ids[who],
            "ad_id": world.ads["ad_id"].to_numpy()[ad],
            "advertiser_id": world.ads["advertiser_id"].to_numpy()[ad],
            "timestamp": _times(moment[slate]),
            "label": (rng.random(len(slate)) < 1 / (1 + np.exp(-logit))).astype(np.int8),
            "context_placement": np.where(front, "front", "side").astype(object),
        }
    )

    told = np.where(rng.random(count) < TRUTH["profile_true"], taste.argmax(1), rng.integers(tastes, size=count))
    interest = np.asarray([word.lower() for word in TASTES], object)[told]
    interest[rng.random(count) < TRUTH["profile_missing"]] = None
    region = np.asarray(["north", "south", "east", "west"], object)[rng.integers(4, size=count)]
    users = pd.DataFrame({"user_id": ids, "profile_interest": interest, "profile_region": region})
    return {USERS: users, EVENTS: events, IMPRESSIONS: impressions, "taste": taste}


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


def _purchases_before(
    buyer: Int, bought: Int, bought_week: Int, who: Int, whose: Int, week: Int, size: int, weeks: int
) -> Int:
    """Purchases of ``who`` from ``whose`` in weeks before ``week``: two searches in one sorted key."""
    keys = np.sort((buyer * size + bought) * weeks + bought_week)
    pair = (who * size + whose) * weeks
    count: Int = np.searchsorted(keys, pair + week, side="left") - np.searchsorted(keys, pair, side="left")
    return count


def _times(seconds: Int) -> pd.DatetimeIndex:
    """Seconds since `START` as UTC microseconds."""
    import pandas as pd

    since = np.datetime64(START.replace(tzinfo=None), "us") + seconds.astype("timedelta64[s]")
    return pd.DatetimeIndex(since.astype("datetime64[us]")).tz_localize("UTC")


def build(
    out: Path,
    *,
    users: int = 1000,
    advertisers: int = 50,
    weeks: int = 30,
    seed: int = 0,
    null: bool = False,
    force: bool = False,
) -> bool:
    """Write canonical tables of the click model, and ``truth.parquet`` with the tastes behind them.

    Parameters
    ----------
    out : Path
        Folder to write; replaced as a whole, or not at all.
    users, advertisers, weeks : int
        Size.
    seed : int
        Same seed and size, same tables.
    null : bool
        Labels that depend on history and placement only.
    force : bool
        Build even when ``out`` is up to date.

    Returns
    -------
    bool
        False when ``out`` was up to date and left alone.

    Raises
    ------
    AdvpriorError
        ``DAT042`` for an impossible size.
    """
    sizes = {"users": users, "advertisers": advertisers, "weeks": weeks}
    for option, found in sizes.items():
        if found < LEAST[option]:
            raise AdvpriorError(
                "DAT042",
                f"too few {option}",
                where=f"--{option}",
                actual=str(found),
                expected=f"{LEAST[option]} or more",
                fix=f"advprior data build {NAME} --out DIR --{option} {LEAST[option]}",
            )
    if seed < 0:
        raise AdvpriorError("CFG002", "a seed is not negative", where="--seed", actual=str(seed), expected="0 or more")
    plan = time_plan(weeks)
    config: dict[str, Any] = {"data_set": NAME, **sizes, "seed": seed, "null": null, "truth": TRUTH}
    key = run_key("data", config, {}, CODE_VERSION)
    if not force and is_current(out, key):
        return False

    import pandas as pd
    from tqdm.auto import tqdm

    from advprior.store.schemas import validate_tables
    from advprior.store.tables import write_parquet

    world = make_world(advertisers, seed)
    step = max(1, min(PAIRS // advertisers, SLATES // weeks, users))
    rows = dict.fromkeys((USERS, ADVERTISERS, ADS, EVENTS, IMPRESSIONS), 0)
    slates = positives = 0
    with (
        new_run(out, "data", config=config, inputs={}, key=key) as run,
        _Writers(run.path) as writers,
        tqdm(total=users, desc=NAME, unit="user", disable=None) as progress,
    ):
        write_parquet(world.advertisers, run.path / f"{ADVERTISERS}.parquet")
        write_parquet(world.ads, run.path / f"{ADS}.parquet")
        rows |= {ADVERTISERS: len(world.advertisers), ADS: len(world.ads)}
        truth = pd.DataFrame({"kind": "advertiser", "id": world.advertisers["advertiser_id"]})
        writers.add("truth", _with_taste(truth, world.taste, world.popularity))
        for first in range(0, users, step):
            count = min(step, users - first)
            made = chunk_of_users(world, first, count, weeks, seed, null=null)
            made[IMPRESSIONS]["impression_id"] += rows[IMPRESSIONS]
            made[IMPRESSIONS]["slate_id"] += slates
            tables = {ADVERTISERS: world.advertisers, ADS: world.ads}
            tables |= {name: made[name] for name in (USERS, EVENTS, IMPRESSIONS)}
            # a small chunk may hold no event at all; the whole is judged below
            if len(made[EVENTS]) and len(made[IMPRESSIONS]):
                validate_tables(tables, plan=plan, where=NAME)
            for name in (USERS, EVENTS, IMPRESSIONS):
                writers.add(name, made[name])
                rows[name] += len(made[name])
            truth = pd.DataFrame({"kind": "user", "id": made[USERS]["user_id"]})
            writers.add("truth", _with_taste(truth, made["taste"], np.full(count, np.nan)))
            slates = int(made[IMPRESSIONS]["slate_id"].max()) + 1 if len(made[IMPRESSIONS]) else slates
            positives += int(made[IMPRESSIONS]["label"].sum())
            progress.update(count)
        empty = [name for name, count in rows.items() if not count]
        if empty:
            raise AdvpriorError(
                "DAT042",
                "too few users and weeks for anything to happen",
                where="--users",
                actual=str(users),
                expected="rows in every table",
                fix="more --users, more --weeks or another --seed",
            )
        run.facts.update(
            source=NAME,
            note="Made up: a known click model, "
            + ("labels without any signal beyond history (null)" if null else "labels with a planted signal"),
            seed=seed,
            null=null,
            truth={**TRUTH, "taste_weight": 0.0 if null else TRUTH["taste_weight"]},
            time_plan=plan.to_json(),
            rows=rows,
            slates=slates,
            positives=positives,
        )
    return True


def _with_taste(table: pd.DataFrame, taste: Float, popularity: npt.NDArray[np.float64]) -> pd.DataFrame:
    """Add what only the model knows: ``popularity`` (advertisers only) and ``taste_0 …``."""
    columns = {f"taste_{k}": taste[:, k] for k in range(taste.shape[1])}
    return table.assign(popularity=popularity, **columns)


class _Writers:
    """Parquet files that grow chunk by chunk; an interrupted run's folder is thrown away as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}

    def __enter__(self) -> _Writers:
        return self

    def add(self, name: str, table: pd.DataFrame) -> None:
        """Append rows to ``<name>.parquet``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        # a profile missing throughout one chunk is text all the same
        texts = [pa.field(c, pa.string()) for c in table.columns] if name == USERS else None
        schema = pa.schema(texts) if texts else None
        batch = pa.Table.from_pandas(table, schema=schema, preserve_index=False)
        if name not in self._open:
            self._open[name] = pq.ParquetWriter(self._folder / f"{name}.parquet", batch.schema)
        self._open[name].write_table(batch)

    def __exit__(self, *problem: object) -> None:
        for writer in self._open.values():
            writer.close()
