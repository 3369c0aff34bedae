"""Priors as data frames: users and advertisers by id and name, the likeliest first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.history.catalog import Catalog
from advprior.store.arrays import Float
from advprior.store.contract import (
    ADVERTISER_ID,
    CATALOG_FILE,
    MATRIX_FILE,
    NAME,
    PRIOR_ROW,
    SNAPSHOT,
    TABLE_FILE,
    TEXT,
    TOP_INDEX_FILE,
    USER_ID,
)
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import Matrix, matrix_path, open_matrix

ROWS_FILE = "rows.parquet"  # of a scoring run; as published it is `TABLE_FILE`


@dataclass(frozen=True)
class Priors:
    """Priors of users at snapshots: a table of rows beside one large array.

    Attributes
    ----------
    rows : DataFrame
        One row a user and snapshot: ``user_id``, ``snapshot`` (UTC), ``entropy`` (nats), ``prior_row`` and more.
    log_probs : float32 [P, N], or [P, K] where only the K likeliest advertisers were written
        Natural logarithms, on disk until rows of it are picked (`array` picks all); a row of ``rows`` has its priors
        at ``prior_row``.
    advertisers : DataFrame
        ``advertiser_id``, ``name`` and what else the catalog says of N advertisers, in the order of the columns.
    top_index : int32 [P, K], optional
        Which advertiser each column of ``log_probs`` is, where only the likeliest were written.
    """

    rows: pd.DataFrame
    log_probs: Matrix
    advertisers: pd.DataFrame
    top_index: Matrix | None = None

    def __repr__(self) -> str:
        return (
            f"Priors of {self.rows[USER_ID].nunique():,} users at {self.rows[SNAPSHOT].nunique():,} snapshots "
            f"over {len(self.advertisers):,} advertisers"
        )

    def of(self, users: Iterable[str] | str | None = None, snapshot: datetime | str | None = None) -> Priors:
        """Those of some users, or of one snapshot; the array is shared.

        Raises
        ------
        AdvpriorError
            ``PRI080`` when no prior is left.
        """
        keep = np.ones(len(self.rows), np.bool_)
        if users is not None:
            keep &= self.rows[USER_ID].isin([users] if isinstance(users, str) else list(users)).to_numpy()
        if snapshot is not None:
            keep &= (self.rows[SNAPSHOT] == utc(snapshot)).to_numpy()
        if not keep.any():
            raise AdvpriorError(
                "PRI080",
                "no prior of these users at this snapshot",
                actual=f"users {users!r}, snapshot {snapshot!r}",
                expected="ids in `rows.user_id`, and a time in `rows.snapshot`",
            )
        return Priors(self.rows[keep].reset_index(drop=True), self.log_probs, self.advertisers, self.top_index)

    def array(self) -> Float:
        """Log-probabilities in the order of ``rows`` [len(rows), N]; minus infinity where none was written."""
        picked: Float = np.asarray(self.log_probs[self.rows[PRIOR_ROW].to_numpy()])
        if self.top_index is None:
            return picked
        out = np.full((len(picked), len(self.advertisers)), -np.inf, np.float32)
        np.put_along_axis(out, self.top_index[self.rows[PRIOR_ROW].to_numpy()].astype(np.int64), picked, axis=1)
        return out

    def frame(self, top: int | None = 20) -> pd.DataFrame:
        """One row a user, snapshot and advertiser, the likeliest first.

        Parameters
        ----------
        top : int, optional
            Advertisers of each user and snapshot; None for all, which is len(rows) × N rows.

        Returns
        -------
        DataFrame
            ``user_id, snapshot, rank, advertiser_id, advertiser, log_prob``; ``rank`` starts at 1.
        """
        picked = self.log_probs[self.rows[PRIOR_ROW].to_numpy()]
        index = None if self.top_index is None else self.top_index[self.rows[PRIOR_ROW].to_numpy()]
        return long_frame(self.rows[[USER_ID, SNAPSHOT]], picked, self.advertisers, top, index)


def load_priors(folder: str | Path) -> Priors:
    """Priors of a scoring run (``advprior score --out``), or as published (``feature_repo/data/prior_NAME``).

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    Priors

    Raises
    ------
    AdvpriorError
        ``PRI080`` when the folder holds none.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> rows = pd.DataFrame({"user_id": ["u1"], "snapshot": pd.to_datetime(["2024-02-05"], utc=True), "prior_row": [0]})
    >>> rows.to_parquet(folder / "rows.parquet")
    >>> np.save(folder / "log_probs.npy", np.log(np.array([[0.25, 0.75]], np.float32)))
    >>> Catalog(("a1", "a2"), ("Tea house", "Bakery")).save(folder / "catalog.json")
    >>> priors = load_priors(folder)
    >>> priors
    Priors of 1 users at 1 snapshots over 2 advertisers
    >>> priors.frame(top=1)[["user_id", "rank", "advertiser", "log_prob"]].round(3)
      user_id  rank advertiser  log_prob
    0      u1     1     Bakery    -0.288
    >>> priors.of("u1").array().shape
    (1, 2)
    """
    folder = Path(folder)
    table = next((folder / name for name in (ROWS_FILE, TABLE_FILE) if (folder / name).is_file()), None)
    if table is None or matrix_path(folder / MATRIX_FILE) is None:
        raise AdvpriorError(
            "PRI080",
            "the folder holds no priors",
            where=str(folder),
            expected=f"{ROWS_FILE} or {TABLE_FILE}, and the log-probabilities beside",
            fix="advprior score RUN --tables TABLES --out PRIORS",
        )
    import pyarrow.parquet as pq

    # as published, a row holds its log-probs once more: the array has them already
    columns = [name for name in pq.read_schema(table).names if name not in ("log_probs", "top_index")]
    rows = pd.read_parquet(table, columns=columns)
    top = folder / TOP_INDEX_FILE
    return Priors(
        rows,
        open_matrix(folder / MATRIX_FILE),
        advertisers_of(Catalog.load(folder / CATALOG_FILE)),
        open_matrix(top) if matrix_path(top) else None,
    )


def long_frame(
    who: pd.DataFrame,
    log_probs: Float,
    advertisers: pd.DataFrame,
    top: int | None,
    index: npt.NDArray[np.int32] | None = None,
) -> pd.DataFrame:
    """Rows of ``who`` [P] × their likeliest advertisers, from log-probs [P, N] or, with ``index``, [P, K]."""
    count = log_probs.shape[1] if top is None else min(top, log_probs.shape[1])
    order = np.argsort(-log_probs, axis=1, kind="stable")[:, :count]
    column = order if index is None else np.take_along_axis(index, order, axis=1)
    return pd.DataFrame(
        {
            USER_ID: np.repeat(who[USER_ID].to_numpy(), count),
            SNAPSHOT: who[SNAPSHOT].repeat(count).array,
            "rank": np.tile(np.arange(1, count + 1), len(who)),
            ADVERTISER_ID: advertisers[ADVERTISER_ID].to_numpy()[column.ravel()],
            "advertiser": advertisers[NAME].to_numpy()[column.ravel()],
            "log_prob": np.take_along_axis(log_probs, order, axis=1).ravel(),
        }
    )


def advertisers_of(catalog: Catalog) -> pd.DataFrame:
    """``advertiser_id``, ``name`` and, where there are some, ``text``, in the order of a prior's columns."""
    table = pd.DataFrame({ADVERTISER_ID: catalog.ids, NAME: catalog.names})
    return table.assign(**{TEXT: catalog.texts}) if catalog.texts else table


def utc(moment: datetime | str) -> pd.Timestamp:
    """A time in UTC; one without a zone is taken for it."""
    stamp = pd.Timestamp(moment)
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")
