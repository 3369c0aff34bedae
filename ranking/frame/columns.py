"""The feature columns of a frame: joined scalars as the ranker takes them, and what is gathered by pointer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.contract import (
    AD_ID,
    EVENT_TIMESTAMP,
    HISTORY_ROW,
    PRIOR_ROW,
    SNAPSHOT,
    TABLE_FILE,
    USER_HISTORY_VIEW,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from advprior.store.tables import read_parquet
from advprior.store.times import DAY_US, as_datetimes, micros
from ranking.frame import checks
from ranking.frame.counts import codes_of
from ranking.frame.gather import (
    TOP,
    PriorFiles,
    gather_history,
    gather_interests,
    gather_priors,
    mean_probability,
    places,
)
from ranking.frame.join import times
from ranking.frame.numbering import ids_of_ads, load_history_ids
from ranking.frame.streams import EVENTS, STREAMS, group_of
from ranking.frame.tallies import NEWER, UNLISTED, Tallies
from ranking.frame.views import view_folder

if TYPE_CHECKING:
    import pandas as pd

    from advprior.store.arrays import Int

NAT = np.datetime64("NaT", "us")
FLOAT32_MAX = float(np.finfo(np.float32).max)
Findings = list[checks.Finding | None]


def finite(values: Any) -> Any:
    """Numbers as float32; what it cannot hold is missing, offline as online.

    >>> finite([1.5, 1e300, float("-inf")]).tolist()
    [1.5, nan, nan]
    """
    wide = np.asarray(values, dtype=np.float64)
    return np.where(np.abs(wide) <= FLOAT32_MAX, wide, np.nan).astype(np.float32)


def joined_column(name: str, column: Any, impression: Any) -> tuple[Any, int]:
    """A joined Arrow column as the ranker takes it: float32, or category for text; a time becomes days of age.

    Parameters
    ----------
    name : str
        For messages.
    column : pyarrow.ChunkedArray [impressions]
    impression : datetime64[us] array [impressions]

    Returns
    -------
    (array or Series, int)
        The column; how many numbers are missing because float32 cannot hold them.

    Raises
    ------
    AdvpriorError
        ``RNK046`` for a type that is no feature.
    """
    import pyarrow as pa

    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us", tz="UTC"))
    if pa.types.is_timestamp(column.type):
        age = (impression - times(column)).astype("timedelta64[us]")
        days = age.astype(np.float64) / DAY_US
        days[np.isnat(age)] = np.nan
        return days.astype(np.float32), 0
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        return values.to_pandas().cat.remove_unused_categories(), 0
    try:
        # whole numbers beyond 2^53 are rounded, as any number is: a checked cast would refuse them
        wide = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise AdvpriorError(
            "RNK046",
            "a feature has a type that no ranker takes",
            where=name,
            actual=str(column.type),
            expected="a number, a flag, text or a time",
            fix="publish it as one of these, or take it out of the feature service",
        ) from error
    narrow = finite(wide)
    return narrow, int((np.isnan(narrow) & ~np.isnan(wide)).sum())


def clock_columns(impression: Any) -> dict[str, Any]:
    """When in the week and in the day (UTC) the impression was, as the baseline's own features.

    A prior's age says the same where snapshots are weekly: without these columns every prior, a placebo
    too, would be credited with what is only the day of the week. No column of a user's is named ``clock_…``: a
    ``context_hour`` of their own stays theirs.
    """
    days = impression.astype("datetime64[us]").astype(np.int64) / DAY_US
    week = (days + 3.0) % 7.0  # the epoch was a Thursday; Monday 00:00 is 0
    return {
        "clock_days_into_week": week.astype(np.float32),
        "clock_hour": (days % 1.0 * 24.0).astype(np.float32),
    }


def request_column(values: pd.Series[Any]) -> Any:
    """A context column of the impressions as the ranker takes it: float32, or category for text.

    >>> import pandas as pd
    >>> from decimal import Decimal
    >>> request_column(pd.Series([Decimal("0.50"), None])).tolist(), request_column(pd.Series(["a"])).dtype.name
    ([0.5, nan], 'category')
    """
    import pandas as pd

    # warehouses unload numbers as decimals, which pandas holds as objects
    number = pd.api.types.is_numeric_dtype(values) or pd.api.types.infer_dtype(values, skipna=True) == "decimal"
    return values.astype(np.float32 if number else "category")


def _take_times(moments: Any, rows: Int) -> Any:
    """``moments[rows]``, NaT where the pointer is −1."""
    return np.where(rows >= 0, moments[rows] if len(moments) else NAT, NAT)


@dataclass(frozen=True, eq=False)
class HistoryColumns:
    """Features of each published stream, gathered for any impressions.

    Attributes
    ----------
    folder : Path
        Published ``user_history``.
    ids : dict
        The catalogs beside it.
    snapshots : datetime64[us] array [history rows]
        NaT where a user did not exist yet and has no row.
    """

    folder: Path
    ids: dict[str, Any]
    snapshots: Any

    @classmethod
    def open(cls, repo: Path) -> HistoryColumns:
        """Of a repository."""
        folder = view_folder(repo, USER_HISTORY_VIEW)
        table = read_parquet(folder / TABLE_FILE, columns=[HISTORY_ROW, SNAPSHOT])
        pointers = table[HISTORY_ROW].to_numpy(np.int64)
        snapshots = np.full(pointers.max(initial=-1) + 1, NAT)
        snapshots[pointers] = as_datetimes(micros(table[SNAPSHOT]))
        return cls(folder, load_history_ids(folder), snapshots)

    def of(self, rows: Int, ads: pd.Series[Any], impression: Any) -> dict[str, dict[str, Any]]:
        """Columns by the group of their features; recency counts to the impression, not to the snapshot.

        Parameters
        ----------
        rows : int array [impressions]
            ``history_row``, −1 where there is no history.
        ads : Series of str [impressions]
        impression : datetime64[us] array [impressions]
        """
        ids = self.ids
        index = codes_of(ads, ids["ads"][AD_ID])
        since_days = (impression - _take_times(self.snapshots, rows)).astype(np.float64) / DAY_US
        columns: dict[str, dict[str, Any]] = {}
        published = ids.get("streams", (EVENTS.name,))  # an older publication has events alone
        for stream in STREAMS:
            if stream.name not in published:
                continue
            for level, numbering in stream.levels_in(ids["sizes"]).items():
                group = columns.setdefault(group_of(stream, level), {})
                of_ad = np.append(ids_of_ads(ids, numbering), np.int64(-1))[index]
                values = gather_history(self.folder, stream.files(level), ids["sizes"][numbering], rows, of_ad)
                values[:, -1] += since_days  # NaT gave a huge number, but those rows are NaN already
                for i, name in enumerate(stream.features(level)):
                    group[name] = np.ascontiguousarray(values[:, i])
        return columns


@dataclass(frozen=True)
class Shown:
    """What each impression showed, and when: what priors are gathered for.

    Attributes
    ----------
    advertiser, category : Series of str [impressions]
        Of the ad.
    moment : datetime64[us] array [impressions]
    """

    advertiser: pd.Series[Any]
    category: pd.Series[Any]
    moment: Any


@dataclass(frozen=True, eq=False)
class PriorColumns:
    """A predictor's features, gathered for any impressions.

    Attributes
    ----------
    predictor : str
    folder : Path
        Its published priors.
    files : PriorFiles
    snapshots, available : datetime64[us] arrays [prior rows]
        What each row has seen, and from when it was there.
    pointers : int array [prior rows]
        ``prior_row`` of each, ascending; the arrays may hold rows that none points to.
    """

    predictor: str
    folder: Path
    files: PriorFiles
    snapshots: Any
    available: Any
    pointers: Int

    @classmethod
    def open(cls, repo: Path, predictor: str) -> PriorColumns:
        """Of a repository."""
        folder = view_folder(repo, prior_view(predictor))
        files = PriorFiles.open(folder)
        table = read_parquet(folder / TABLE_FILE, columns=[PRIOR_ROW, SNAPSHOT, EVENT_TIMESTAMP]).sort_values(PRIOR_ROW)
        snapshots, available = (as_datetimes(micros(table[name])) for name in (SNAPSHOT, EVENT_TIMESTAMP))
        return cls(predictor, folder, files, snapshots, available, table[PRIOR_ROW].to_numpy(np.int64))

    @cached_property
    def means(self) -> tuple[Int, Any]:
        """See `ranking.frame.gather.mean_probability`; made when a part first asks, as it reads all priors."""
        means = mean_probability(self.files, self.pointers, self.snapshots.astype(np.int64))
        self.files.let_go()
        return means

    def check(self) -> checks.Finding | None:
        """What a check says of all published rows."""
        return checks.check_available_after_snapshot(prior_view(self.predictor), self.snapshots, self.available)

    def of(self, rows: Int, snapshot: Any, shown: Shown) -> tuple[dict[str, Any], Tallies]:
        """Columns by name, and what the checks count of these impressions.

        Parameters
        ----------
        rows : int array [impressions]
            ``prior_row``, −1 where there is no prior.
        snapshot : datetime64[us] array [impressions]
            Of the joined row, NaT where there is none.
        shown : Shown
        """
        view = prior_view(self.predictor)
        index = places(self.files.advertisers, shown.advertiser, shown.category)
        log_prob, rank = gather_priors(self.files, rows, index)
        self.files.let_go()
        here = ~np.isnan(log_prob)
        age = (shown.moment - snapshot).astype(np.float64) / DAY_US
        columns = {
            f"{view}_log_prob": log_prob,
            f"{view}_log_ratio": _log_ratio(log_prob, here, self.means, snapshot, index),
            f"{view}_rank": rank,
            f"{view}_top20": np.where(here, rank <= TOP, np.nan).astype(np.float32),
            f"{view}_age_days": np.where(rows >= 0, age, np.nan).astype(np.float32),
            f"{view}_missing": (~here).astype(np.float32),
        }
        of_category = gather_interests(self.folder, rows, shown.category)
        if of_category is not None:
            columns[f"{view}_interest_log_prob"] = of_category
        tallies = Tallies()
        published = np.where(rows >= 0, np.searchsorted(self.pointers, rows), -1)
        tallies.add(NEWER, view, _take_times(self.available, published) > shown.moment)
        tallies.add(UNLISTED, self.predictor, index < 0)
        return columns, tallies


def _log_ratio(log_prob: Any, here: Any, means: tuple[Any, Any], snapshot: Any, index: Int) -> Any:
    """Log-probability less that of the mean over the snapshot's users, float32; NaN where there is no prior."""
    moments, mean = means
    at = np.searchsorted(moments, snapshot.astype("datetime64[us]").astype(np.int64))
    log_ratio = np.full(len(log_prob), np.nan, dtype=np.float32)
    # a mean can underflow to 0 only where every log-probability does
    tiny = np.finfo(np.float64).tiny
    log_ratio[here] = log_prob[here] - np.log(np.maximum(mean[at[here], index[here]], tiny))
    return log_ratio
