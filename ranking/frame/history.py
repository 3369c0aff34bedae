"""History and popularity tables as of every snapshot: the honest baseline that a prior must beat.

Everything is computed strictly before a snapshot and available a stated lag later. A user's own counts
(per advertiser, category and ad) are sparse and large, so they stay out of the point-in-time join: the table
carries a pointer (``history_row``), and the counts lie beside it as sorted arrays that training maps into
memory and searches (`ranking.frame.gather`). For serving the same counts stand in the user's row as lists, which the
join leaves out and materializing takes along (`ranking.service.features`).

An *occasion* is one (user, time): the rows of one basket count once. "Ad" in a history means the ad's
advertiser × category, which is what an event can be matched to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.store.contract import (
    AD_ID,
    ADVERTISER_ID,
    CATALOG_VERSION,
    CATEGORY,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    HISTORY_ROW,
    LABEL,
    PROFILE_PREFIX,
    SNAPSHOT,
    TABLE_FILE,
    TIMESTAMP,
    USER_HISTORY_VIEW,
    USER_ID,
    USER_PROFILE_VIEW,
    VALUE,
    TimePlan,
)
from advprior.store.runs import digest, manifest_digest, new_run, publish_version, write_json
from advprior.store.tables import load_tables, load_time_plan, write_parquet
from ranking.frame.counts import DAY_US, CountsBefore, Ints, compact, micros, moment_us
from ranking.frame.fading import fading
from ranking.frame.preflight import BASELINE_VIEWS, features_run_key, view_folder

WINDOWS = {"1w": 7, "4w": 28, "12w": 84}  # days; "all" is the fourth
LEVELS = ("advertiser", "category", "ad")
_PLURAL = {"advertiser": "advertisers", "category": "categories", "ad": "ads"}
HISTORY_IDS = "history_ids.json"
_SMOOTHING = 20.0  # impressions' worth of the overall rate mixed into each rate

Frame = pd.DataFrame


def history_files(level: str) -> tuple[str, str]:
    """Names of a level's sorted keys (int64) and values (float32 [n, 5]: counts 1w, 4w, 12w, all; recency in days)."""
    return f"history_{level}_keys.npy", f"history_{level}_values.npy"


def online_columns(level: str) -> tuple[str, str]:
    """List columns of a level in a user's row: ids (int32 [n], ascending), values (float32 [5n], id by id)."""
    return f"history_{level}_ids", f"history_{level}_values"


def token_column(level: str) -> str:
    """List column of a level in a user's row: what the towers read of each id, float32 [2n], see `frame.fading`."""
    return f"history_{level}_tokens"


def snapshots_to_keep(plan: TimePlan) -> list[datetime]:
    """Snapshots the frame can reach: from the last before ``finetune_end`` on (rows become available with a lag)."""
    oldest = plan.finetune_end - plan.snapshot_every - plan.lag
    return [moment for moment in plan.feature_snapshots() if moment >= oldest]


def _stamps(snapshots: Sequence[datetime], lag: timedelta, rows: int) -> dict[str, pd.Series[pd.Timestamp]]:
    """Time columns of a snapshot-major table. A backfilled row counts as created when it became available."""
    cut = pd.Series(pd.DatetimeIndex(list(snapshots)).as_unit("us").repeat(rows))
    return {EVENT_TIMESTAMP: cut + lag, CREATED_TIMESTAMP: cut + lag, SNAPSHOT: cut}


def _codes(values: pd.Series[Any], catalog: Sequence[Any] | pd.Series[Any]) -> Ints:
    """Position of each value in a catalog, −1 where it is not there."""
    found: Ints = pd.Index(catalog).get_indexer(pd.Index(values)).astype(np.int64)
    return found


def profile_table(users: Frame, plan: TimePlan) -> Frame:
    """One row per user, known from the start of the data: the tables give profiles no time."""
    start = pd.Series(pd.DatetimeIndex([plan.start]).as_unit("us").repeat(len(users)))
    profile = users[[c for c in users.columns if c.startswith(PROFILE_PREFIX)]].reset_index(drop=True)
    keys = {USER_ID: users[USER_ID].reset_index(drop=True), EVENT_TIMESTAMP: start, CREATED_TIMESTAMP: start}
    return pd.concat([pd.DataFrame(keys), profile], axis=1)


class HistoryIds:
    """The catalogs behind history keys, and the ids of each ad.

    Attributes
    ----------
    sizes : dict[str, int]
        Number of ids per level; a key is ``history_row · size + id``.
    ads : pandas.DataFrame
        Indexed by ad_id; columns advertiser, category, ad: ids (−1: the ad has no such thing).
    """

    def __init__(self, advertisers: Sequence[str], ads: Frame) -> None:
        self.advertisers = list(advertisers)
        self.categories = sorted(ads[CATEGORY].dropna().unique().tolist())
        a, c = _codes(ads[ADVERTISER_ID], self.advertisers), _codes(ads[CATEGORY], self.categories)
        pairs = np.unique((a * (len(self.categories) + 1) + c)[(a >= 0) & (c >= 0)])
        self._pairs = pairs
        self.sizes = {"advertiser": len(self.advertisers), "category": len(self.categories), "ad": len(pairs)}
        self.ads = pd.DataFrame(
            {"advertiser": a, "category": c, "ad": self.pair_codes(a, c)}, index=pd.Index(ads[AD_ID], name=AD_ID)
        )

    def pair_codes(self, advertiser: Ints, category: Ints) -> Ints:
        """Ids of advertiser × category, −1 where no ad has it."""
        wanted = advertiser * (len(self.categories) + 1) + category
        found: Ints = pd.Index(self._pairs).get_indexer(pd.Index(wanted)).astype(np.int64)
        return np.where((advertiser >= 0) & (category >= 0), found, -1)

    def event_codes(self, events: Frame) -> dict[str, Ints]:
        """Ids of each event per level, −1 where it has none."""
        a, c = _codes(events[ADVERTISER_ID], self.advertisers), _codes(events[CATEGORY], self.categories)
        return {"advertiser": a, "category": c, "ad": self.pair_codes(a, c)}

    def to_json(self) -> dict[str, Any]:
        """What lies beside the arrays, so that a reader needs nothing else; ``version`` is the digest of the rest."""
        about = {
            "sizes": self.sizes,
            "advertisers": self.advertisers,
            "categories": self.categories,
            "ads": {AD_ID: self.ads.index.tolist(), **{level: self.ads[level].tolist() for level in LEVELS}},
            "values": [*WINDOWS, "all", "recency_days"],
        }
        return {"version": digest(about), **about}


def windowed(counts: CountsBefore, moment: int) -> dict[str, Ints]:
    """Rows per group in the last 1, 4, 12 weeks and ever, strictly before ``moment``."""
    total = counts.before(moment)
    recent = {name: total - counts.before(moment - days * DAY_US) for name, days in WINDOWS.items()}
    return {**recent, "all": total}


def user_level_counts(
    users: Ints, times: Ints, codes: Ints, n_users: int, size: int, moments: Sequence[int]
) -> Iterator[tuple[Ints, npt.NDArray[np.float32], Ints, Ints]]:
    """Per snapshot: sorted keys (user · size + id), values [n, 5], and distinct ids per user ever and in 4 weeks."""
    known = codes >= 0
    groups, rows = compact((users[known], n_users), (codes[known], size))
    counts = CountsBefore(rows, times[known], len(groups), distinct=True)
    owner = groups // size
    for moment in moments:
        found = windowed(counts, moment)
        seen = found["all"] > 0
        recency = (moment - counts.last_before(moment)) / DAY_US
        values = np.stack([*(found[name] for name in (*WINDOWS, "all")), recency], axis=1)[seen].astype(np.float32)
        ever = np.bincount(owner[seen], minlength=n_users)
        recent = np.bincount(owner[found["4w"] > 0], minlength=n_users)
        yield groups[seen], values, ever, recent


def list_column(parts: Sequence[tuple[Ints, npt.NDArray[Any]]], kind: Any) -> pd.Series[Any]:
    """A column of lists from (length of each row's list, all their values) parts.

    Examples
    --------
    >>> import pyarrow as pa
    >>> column = list_column([(np.array([2, 0]), np.array([5, 7])), (np.array([1]), np.array([9]))], pa.int32())
    >>> pa.array(column).to_pylist()
    [[5, 7], [], [9]]
    """
    import pyarrow as pa

    lengths = np.concatenate([length for length, _ in parts])
    values = np.concatenate([value for _, value in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)  # int32 ends at 2 billion counts
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values, kind))
    return pd.Series(lists, dtype=pd.ArrowDtype(lists.type))


def own_rates(
    users: Frame,
    ids: HistoryIds,
    events: Frame,
    impressions: Frame,
    snapshots: Sequence[datetime],
    delay: timedelta,
) -> dict[str, npt.NDArray[np.float32]]:
    """How often each user took what was shown, as of each snapshot (snapshot-major): smoothed rates.

    Without them a column that tells users apart, a placebo's entropy for one, earns a lift by standing for
    the user's own rate.
    """
    n = len(users)
    shown = CountsBefore(_codes(impressions[USER_ID], users[USER_ID]), micros(impressions[TIMESTAMP]), n)
    positives = impressions.loc[impressions[LABEL] == 1, [USER_ID, AD_ID, TIMESTAMP]]
    known = known_from(positives, events, ids, users, delay)
    won = CountsBefore(_codes(positives[USER_ID], users[USER_ID]), known, n)
    columns: dict[str, list[npt.NDArray[np.float32]]] = {}
    for moment in map(moment_us, snapshots):
        overall = won.before(moment).sum() / max(shown.before(moment).sum(), 1)
        for window, weeks in (("12w", WINDOWS["12w"]), ("all", None)):
            seen, taken = shown.before(moment), won.before(moment)
            if weeks is not None:
                since = moment - weeks * DAY_US
                seen, taken = seen - shown.before(since), taken - won.before(since)
            rate = (taken + _SMOOTHING * overall) / (seen + _SMOOTHING)
            columns.setdefault(f"activity_impressions_{window}", []).append(seen.astype(np.float32))
            columns.setdefault(f"activity_rate_{window}", []).append(rate.astype(np.float32))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def user_history(
    users: Frame, ids: HistoryIds, events: Frame, snapshots: Sequence[datetime], lag: timedelta, folder: Path
) -> Frame:
    """Write each level's keys and values into ``folder`` and return the table of scalars, pointers and lists.

    Rows are snapshot-major: ``history_row`` = snapshot index · users + user index.
    """
    import pyarrow as pa

    n = len(users)
    moments = [moment_us(s) for s in snapshots]
    owner, times = _codes(events[USER_ID], users[USER_ID]), micros(events[TIMESTAMP])
    scalars: dict[str, list[npt.NDArray[Any]]] = {}
    lists: dict[str, pd.Series[Any]] = {}

    def add(name: str, values: npt.NDArray[Any]) -> None:
        scalars.setdefault(name, []).append(values.astype(np.float32))

    occasions = CountsBefore(owner, times, n, distinct=True)
    spent = np.nan_to_num(events[VALUE].to_numpy(np.float64)) if VALUE in events else np.zeros(len(events))
    for moment in moments:
        for name, counted in windowed(occasions, moment).items():
            add(f"activity_occasions_{name}", counted)
        last, first = occasions.last_before(moment), occasions.first()
        add("activity_days_since_last", np.where(last >= 0, (moment - last) / DAY_US, np.nan))
        add("activity_days_since_first", np.where(last >= 0, (moment - first) / DAY_US, np.nan))
        before = times < moment
        for name, since in (("4w", moment - WINDOWS["4w"] * DAY_US), ("all", np.iinfo(np.int64).min)):
            inside = before & (times >= since)
            add(f"activity_value_{name}", np.bincount(owner[inside], weights=spent[inside], minlength=n))
    for level, codes in ids.event_codes(events).items():
        size = ids.sizes[level]
        keys, values_of = [], []
        own_ids: list[tuple[Ints, npt.NDArray[Any]]] = []
        own_values: list[tuple[Ints, npt.NDArray[Any]]] = []
        own_tokens: list[tuple[Ints, npt.NDArray[Any]]] = []
        known = codes >= 0
        groups, place = compact((owner[known], n), (codes[known], size))
        walk = user_level_counts(owner, times, codes, n, size, moments)
        for index, (key, values, ever, recent) in enumerate(walk):
            keys.append(key + index * n * size)
            values_of.append(values)
            lengths = np.bincount(key // size, minlength=n)
            own_ids.append((lengths, key % size))
            own_values.append((lengths * values.shape[1], values.ravel()))
            tokens = fading((moments[index] - times[known]) / DAY_US, place, len(groups))
            tokens = tokens[np.searchsorted(groups, key)]
            own_tokens.append((lengths * tokens.shape[1], tokens.ravel()))
            add(f"activity_distinct_{_PLURAL[level]}_all", ever)
            add(f"activity_distinct_{_PLURAL[level]}_4w", recent)
        keys_file, values_file = history_files(level)
        np.save(folder / keys_file, np.concatenate(keys))
        np.save(folder / values_file, np.concatenate(values_of))
        ids_column, values_column = online_columns(level)
        lists[ids_column] = list_column(own_ids, pa.int32())
        lists[values_column] = list_column(own_values, pa.float32())
        lists[token_column(level)] = list_column(own_tokens, pa.float32())
        del keys, values_of, own_ids, own_values, own_tokens
    catalog = ids.to_json()
    write_json(folder / HISTORY_IDS, catalog)
    return pd.DataFrame(
        {
            USER_ID: np.tile(users[USER_ID].to_numpy(), len(snapshots)),
            **_stamps(snapshots, lag, n),
            HISTORY_ROW: np.arange(n * len(snapshots), dtype=np.int64),
            CATALOG_VERSION: catalog["version"],
            **{name: np.concatenate(parts) for name, parts in scalars.items()},
            **lists,
        }
    )


def known_from(impressions: Frame, events: Frame, ids: HistoryIds, users: Frame, delay: timedelta) -> Ints:
    """When each positive label was known, microseconds: an aggregate may count it only after.

    A label is an outcome *after* the impression, so counting it from the impression's time would leak. It is
    known with the first event of that user with that advertiser and category at or after the impression; an
    outcome that no event shows is taken as known after ``delay``.

    Returns
    -------
    int array [positives]
        In the order of ``impressions`` (which holds positives only).
    """
    n = len(users)
    size = ids.sizes["ad"]
    codes = ids.event_codes(events)["ad"]
    matched = codes >= 0
    group = (_codes(events[USER_ID], users[USER_ID]) * size + codes)[matched]
    times = micros(events[TIMESTAMP])
    moments, stride_of = np.unique(times[matched], return_inverse=True)
    stride = len(moments) + 1
    keys = np.unique(group * stride + stride_of)
    shown = micros(impressions[TIMESTAMP])
    pair = ids.ads["ad"].reindex(impressions[AD_ID]).to_numpy(np.int64)
    mine = _codes(impressions[USER_ID], users[USER_ID]) * size + pair
    assert n * size < np.iinfo(np.int64).max // stride, "too many users × ads for one 64-bit key"
    at = np.searchsorted(keys, mine * stride + np.searchsorted(moments, shown))
    hit = np.minimum(at, max(len(keys) - 1, 0))
    fallback = shown + delay // timedelta(microseconds=1)
    if not len(keys):
        return fallback
    same = (at < len(keys)) & (keys[hit] // stride == mine) & (pair >= 0)
    return np.where(same, np.maximum(moments[np.minimum(keys[hit] % stride, len(moments) - 1)], shown), fallback)


def ad_stats(
    users: Frame,
    ads: Frame,
    ids: HistoryIds,
    events: Frame,
    impressions: Frame,
    snapshots: Sequence[datetime],
    lag: timedelta,
    delay: timedelta,
) -> Frame:
    """Popularity of each ad, its advertiser and its category, as of each snapshot (snapshot-major)."""
    n = len(ads)
    ad_of = _codes(impressions[AD_ID], ads[AD_ID])
    shown = micros(impressions[TIMESTAMP])
    positives = impressions.loc[impressions[LABEL] == 1, [USER_ID, AD_ID, TIMESTAMP]]
    known = known_from(positives, events, ids, users, delay)
    ad_positive = ad_of[(impressions[LABEL] == 1).to_numpy()]
    level_of = {level: ids.ads[level].to_numpy() for level in LEVELS}
    n_advertisers = ids.sizes["advertiser"]

    impressions_by = {
        "": CountsBefore(ad_of, shown, n),
        "advertiser_": CountsBefore(level_of["advertiser"][ad_of], shown, n_advertisers),
    }
    positives_by = {
        "": CountsBefore(ad_positive, known, n),
        "advertiser_": CountsBefore(level_of["advertiser"][ad_positive], known, n_advertisers),
    }
    first_shown = impressions_by[""].first()
    event_times, event_user = micros(events[TIMESTAMP]), _codes(events[USER_ID], users[USER_ID])
    occasions = {}
    for level, codes in ids.event_codes(events).items():
        bought = codes >= 0
        # one (user, time, id) is one purchase, however many rows the basket has
        baskets = pd.DataFrame({"u": event_user[bought], "t": event_times[bought], "c": codes[bought]})
        baskets = baskets.drop_duplicates()
        occasions[level] = CountsBefore(baskets["c"].to_numpy(), baskets["t"].to_numpy(), ids.sizes[level])

    columns: dict[str, list[npt.NDArray[Any]]] = {}

    def add(name: str, values: npt.NDArray[Any]) -> None:
        columns.setdefault(name, []).append(values.astype(np.float32))

    for moment in map(moment_us, snapshots):
        since = moment - WINDOWS["4w"] * DAY_US
        overall = positives_by[""].before(moment).sum() / max(impressions_by[""].before(moment).sum(), 1)
        for group, index in (("", np.arange(n)), ("advertiser_", level_of["advertiser"])):
            for window in ("4w", "all"):
                seen, won = impressions_by[group].before(moment), positives_by[group].before(moment)
                if window == "4w":
                    seen, won = seen - impressions_by[group].before(since), won - positives_by[group].before(since)
                seen, won = seen[index], won[index]
                add(f"ad_{group}impressions_{window}", seen)
                add(f"ad_{group}positives_{window}", won)
                add(f"ad_{group}rate_{window}", (won + _SMOOTHING * overall) / (seen + _SMOOTHING))
        for level in LEVELS:
            total = occasions[level].before(moment)
            recent = total - occasions[level].before(since)
            name = "" if level == "ad" else f"{level}_"
            absent = level_of[level] < 0
            for window, counted in (("4w", recent), ("all", total)):
                # counts grow with the data; a log-share does not, and is what a popularity prior says too
                share = np.log((counted + 0.5) / (counted.sum() + 0.5 * len(counted)))
                add(f"ad_{name}purchases_{window}", np.where(absent, np.nan, counted[level_of[level]]))
                add(f"ad_{name}log_share_{window}", np.where(absent, np.nan, share[level_of[level]]))
        shown_before = (first_shown >= 0) & (first_shown < moment)
        add("ad_days_since_first_shown", np.where(shown_before, (moment - first_shown) / DAY_US, np.nan))
    return pd.DataFrame(
        {
            AD_ID: np.tile(ads[AD_ID].to_numpy(), len(snapshots)),
            **_stamps(snapshots, lag, n),
            "ad_category": np.tile(ads[CATEGORY].to_numpy(dtype=object), len(snapshots)),
            **{name: np.concatenate(parts) for name, parts in columns.items()},
        }
    )


def publish_features(tables: Path, repo: Path) -> dict[str, int]:
    """Build and publish ``user_profile``, ``user_history`` and ``ad_stats``; returns rows per view.

    Each view is written whole beside the old one and then swapped in by one rename.
    """
    from tqdm.auto import tqdm

    plan = load_time_plan(tables)
    loaded = load_tables(tables, "users", "advertisers", "ads", "events", "impressions")
    users, ads, events = (loaded[name].reset_index(drop=True) for name in ("users", "ads", "events"))
    snapshots = snapshots_to_keep(plan)
    ids = HistoryIds(loaded["advertisers"][ADVERTISER_ID].tolist(), ads)
    inputs = {"tables": manifest_digest(tables)}
    delay = plan.snapshot_every  # without a time on labels, an outcome no event shows is known one snapshot later
    rows = {}
    for view in tqdm(BASELINE_VIEWS, desc="features", unit="view", disable=None):
        link = view_folder(repo, view)
        building = link.parent / ".building" / view
        key = features_run_key(tables, view)
        with new_run(building, f"rank features {view}", config={}, inputs=inputs, key=key) as run:
            if view == USER_PROFILE_VIEW:
                table = profile_table(users, plan)
            elif view == USER_HISTORY_VIEW:
                table = user_history(users, ids, events, snapshots, plan.lag, run.path)
                table = table.assign(**own_rates(users, ids, events, loaded["impressions"], snapshots, delay))
            else:
                table = ad_stats(users, ads, ids, events, loaded["impressions"], snapshots, plan.lag, delay)
            write_parquet(table, run.path / TABLE_FILE)
            run.facts.update(
                rows=len(table), snapshots=[s.isoformat() for s in snapshots], lag_s=plan.lag.total_seconds()
            )
            rows[view] = len(table)
        publish_version(building, link)
        with suppress(OSError):  # an interrupted run may have left something there
            building.parent.rmdir()
    return rows


def load_history_ids(folder: Path) -> dict[str, Any]:
    """The catalogs beside a published history."""
    found: dict[str, Any] = json.loads((Path(folder) / HISTORY_IDS).read_text())
    return found
