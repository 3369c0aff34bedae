"""The Python interface: priors and predictors on data frames, for notebooks. The commands work on files instead.

Users and advertisers go by their ids, advertisers by their names as well; arrays stay within reach. No function changes
its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.history.catalog import Catalog
from advprior.history.histories import Histories, build_histories, micros
from advprior.predictors import registry
from advprior.store.arrays import Float, Int
from advprior.store.contract import (
    ADVERTISER_ID,
    CATALOG_FILE,
    CATEGORY,
    MATRIX_FILE,
    NAME,
    PRIOR_ROW,
    PROFILE_PREFIX,
    SNAPSHOT,
    TABLE_FILE,
    TEXT,
    TIMESTAMP,
    TOP_INDEX_FILE,
    USER_ID,
    VALUE,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, manifest_digest, new_run, run_key

if TYPE_CHECKING:
    from advprior.predictors.base import Predictor

ROWS_FILE = "rows.parquet"  # of a scoring run; as published it is `TABLE_FILE`
CHUNK_CELLS = 4_000_000  # of priors scored at once
_EVENTS = (USER_ID, TIMESTAMP, ADVERTISER_ID)
_MORE = (CATEGORY, TEXT, VALUE)


@dataclass(frozen=True)
class Priors:
    """Priors of users at snapshots: a table of rows beside one large array.

    Attributes
    ----------
    rows : DataFrame
        One row a user and snapshot: ``user_id``, ``snapshot`` (UTC), ``entropy`` (nats), ``prior_row`` and more.
    log_probs : float32 [P, N], or [P, K] where only the K likeliest advertisers were written
        Natural logarithms, memory-mapped and read-only; a row of ``rows`` has its priors at ``prior_row``.
    advertisers : DataFrame
        ``advertiser_id``, ``name`` and what else the catalog says of N advertisers, in the order of the columns.
    top_index : int32 [P, K], optional
        Which advertiser each column of ``log_probs`` is, where only the likeliest were written.
    """

    rows: pd.DataFrame
    log_probs: Float
    advertisers: pd.DataFrame
    top_index: npt.NDArray[np.int32] | None = None

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
            keep &= (self.rows[SNAPSHOT] == _utc(snapshot)).to_numpy()
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
        return _long(self.rows[[USER_ID, SNAPSHOT]], picked, self.advertisers, top, index)


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
    if table is None or not (folder / MATRIX_FILE).is_file():
        raise AdvpriorError(
            "PRI080",
            "the folder holds no priors",
            where=str(folder),
            expected=f"{ROWS_FILE} or {TABLE_FILE}, and {MATRIX_FILE}",
            fix="advprior score RUN --tables TABLES --out PRIORS",
        )
    import pyarrow.parquet as pq

    # as published, a row holds its log-probs once more: the array has them already
    columns = [name for name in pq.read_schema(table).names if name not in ("log_probs", "top_index")]
    rows = pd.read_parquet(table, columns=columns)
    top = folder / TOP_INDEX_FILE
    return Priors(
        rows,
        np.load(folder / MATRIX_FILE, mmap_mode="r"),
        _advertisers(Catalog.load(folder / CATALOG_FILE)),
        np.load(top, mmap_mode="r") if top.is_file() else None,
    )


def load_predictor(run: str | Path) -> Predictor:
    """A fitted predictor: the folder that ``advprior finetune`` or `fit` wrote.

    Parameters
    ----------
    run : str or Path

    Returns
    -------
    Predictor
        With its ``kind``, its ``catalog`` and, by `score_users`, its priors.

    Raises
    ------
    AdvpriorError
        ``RUN001`` when the folder holds no finished run, ``RUN003`` when another step wrote it.
    """
    return registry.load_predictor(Path(run))


def score_users(
    predictor: Predictor | str | Path,
    events: pd.DataFrame,
    snapshot: datetime | str,
    *,
    users: Iterable[str] | None = None,
    profiles: pd.DataFrame | None = None,
    top: int | None = 20,
) -> pd.DataFrame:
    """Priors at a snapshot, from events strictly before it.

    Parameters
    ----------
    predictor : Predictor, str or Path
        Exported; a path is the run's folder.
    events : DataFrame
        ``user_id, timestamp, advertiser_id``, and ``category, text, value`` where there are. Give the events of
        *all* users, also when only some are scored: what everyone buys is part of a prior. Events of advertisers
        outside the predictor's catalog are left out.
    snapshot : datetime or str
        Events at this very time or later are not seen. A time without a zone is UTC.
    users : iterable of str, optional
        Whom to score; everyone by default. A user without an event before the snapshot has a prior, too.
    profiles : DataFrame, optional
        ``user_id`` and the ``profile_*`` columns that the predictor was fitted with.
    top : int, optional
        Advertisers of each user; None for all N.

    Returns
    -------
    DataFrame
        ``user_id, snapshot, rank, advertiser_id, advertiser, log_prob``, by user in the order asked for, the likeliest
        advertiser first.

    Raises
    ------
    AdvpriorError
        ``PRI081`` when a column is missing, or a user is in neither frame; ``RUN001`` without an export.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> events = pd.DataFrame(
    ...     {
    ...         "user_id": ["u1", "u1", "u1", "u2"],
    ...         "timestamp": pd.to_datetime(["2024-01-02", "2024-01-09", "2024-01-30", "2024-01-05"]),
    ...         "advertiser_id": ["a1", "a1", "a2", "a1"],
    ...     }
    ... )
    >>> advertisers = pd.DataFrame({"advertiser_id": ["a1", "a2"], "name": ["Tea house", "Bakery"]})
    >>> predictor = fit("popularity", events, advertisers, "2024-02-05", Path(mkdtemp()) / "run")
    >>> score_users(predictor, events, "2024-01-30", users=["u2"])[["user_id", "rank", "advertiser"]]
      user_id  rank advertiser
    0      u2     1  Tea house
    1      u2     2     Bakery
    """
    if isinstance(predictor, str | Path):
        predictor = load_predictor(predictor)
    moment = _utc(snapshot)
    histories = _histories(events, profiles, predictor.catalog)
    ids = list(histories.users) if users is None else [str(user) for user in users]
    rows = pd.Index(histories.users).get_indexer(pd.Index(ids))
    if (rows < 0).any():
        missing = [user for user, row in zip(ids, rows, strict=True) if row < 0]
        raise AdvpriorError(
            "PRI081",
            f"{len(missing)} users are in neither events nor profiles",
            actual=", ".join(missing[:5]),
            expected="ids of `events.user_id` or `profiles.user_id`",
            fix="give a profile of each new user, if only its `user_id`",
        )
    log_probs = _score(predictor, histories, rows.astype(np.int64), micros(moment))
    who = pd.DataFrame({USER_ID: ids, SNAPSHOT: moment})
    return _long(who, log_probs, _advertisers(predictor.catalog), top)


def fit(
    kind: str,
    events: pd.DataFrame,
    advertisers: pd.DataFrame,
    cutoff: datetime | str,
    out: str | Path,
    *,
    profiles: pd.DataFrame | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Predictor:
    """Fit a predictor on frames and export it, as ``advprior finetune`` and ``advprior export`` do on tables.

    Parameters
    ----------
    kind : str
        ``popularity``, ``neighbours``, ``sasrec``, ``text``, ``hybrid``, ``llm`` or ``zero_shot``.
    events, profiles : DataFrame
        As for `score_users`.
    advertisers : DataFrame
        ``advertiser_id``, ``name`` and, where there is more to say of each, ``text``.
    cutoff : datetime or str
        Nothing at or after it is seen, labels included. A time without a zone is UTC.
    out : str or Path
        New folder; afterwards a run that every command reads.
    settings : mapping, optional
        As in the predictor's YAML.

    Returns
    -------
    Predictor

    Raises
    ------
    AdvpriorError
        ``PRI001`` for an advertiser without a name, ``PRI003`` for an unknown kind, ``PRI006`` when there is too little
        to fit on, ``PRI081`` when a column is missing.

    Examples
    --------
    See `score_users`.
    """
    from advprior.predictors.base import FitData

    out = Path(out)
    model, end = registry.predictor_class(kind), _utc(cutoff)
    checked = model.settings(dict(settings or {}))
    catalog = Catalog.from_table(_require(advertisers, "advertisers", (ADVERTISER_ID, NAME)))
    histories = _histories(events, profiles, catalog).before(micros(end))
    if not len(histories.time):
        raise AdvpriorError("PRI006", "no event lies before the cut-off", where="events", actual="0 events")
    week = 7 * 86_400_000_000
    data = FitData(histories, catalog, int(histories.time.min()), micros(end), week)
    config = {"predictor": kind, "settings": checked.model_dump(mode="json")}
    inputs = {"frames": digest([catalog.version, histories.time.tolist(), histories.advertiser.tolist()])}
    with new_run(out, "finetune", config=config, inputs=inputs, key=run_key("fit", config, inputs, 1)) as run:
        facts = model.fit(data, checked, run.path)
        run.facts.update(
            facts,
            predictor=kind,
            catalog_version=catalog.version,
            advertisers=len(catalog),
            users=len(histories),
            events=len(histories.time),
            model_cutoff=end.isoformat(),
        )
    fitted = registry.load_predictor(out)
    source = {"model": manifest_digest(out)}
    with new_run(out / "onnx", "export", config={}, inputs=source, key=run_key("export", {}, source, 0)) as run:
        run.facts.update(fitted.export(run.path), predictor=kind)
    return fitted


def _score(predictor: Predictor, histories: Histories, users: Int, cutoff: int) -> Float:
    """Priors [len(users), N] at one cut-off, a bounded number of users at a time."""
    from advprior.store.runs import read_manifest

    read_manifest(predictor.run / "onnx", step="export", fix=f"advprior export {predictor.run}")
    scorer = predictor.scorer(predictor.run / "onnx")
    past, moment = histories.before(cutoff), np.asarray([cutoff], np.int64)
    step = max(CHUNK_CELLS // len(predictor.catalog), 1)
    parts = [scorer.score(past, users[start : start + step], moment)[:, 0] for start in range(0, len(users), step)]
    return np.concatenate(parts) if parts else np.zeros((0, len(predictor.catalog)), np.float32)


def _long(
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


def _advertisers(catalog: Catalog) -> pd.DataFrame:
    table = pd.DataFrame({ADVERTISER_ID: catalog.ids, NAME: catalog.names})
    return table.assign(**{TEXT: catalog.texts}) if catalog.texts else table


def _histories(events: pd.DataFrame, profiles: pd.DataFrame | None, catalog: Catalog) -> Histories:
    """Histories of every user in either frame."""
    _require(events, "events", _EVENTS)
    table = events[[*_EVENTS, *(name for name in _MORE if name in events)]].copy()
    table[TIMESTAMP] = pd.to_datetime(table[TIMESTAMP], utc=True)
    table[USER_ID] = table[USER_ID].astype(str)
    people = pd.DataFrame({USER_ID: sorted(set(table[USER_ID]))})
    if profiles is not None:
        _require(profiles, "profiles", (USER_ID,))
        told = profiles[[USER_ID, *(name for name in profiles if str(name).startswith(PROFILE_PREFIX))]]
        people = people.merge(told.astype({USER_ID: str}), on=USER_ID, how="outer")
    return build_histories(people, table, catalog)


def _require(table: pd.DataFrame, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    missing = [column for column in columns if column not in table]
    if missing:
        raise AdvpriorError(
            "PRI081",
            f"{name} lacks {', '.join(missing)}",
            where=name,
            actual=", ".join(map(str, table.columns)),
            expected=", ".join(columns),
            fix="rename the columns: frame.rename(columns={...})",
        )
    return table


def _utc(moment: datetime | str) -> pd.Timestamp:
    """A time in UTC; one without a zone is taken for it."""
    stamp = pd.Timestamp(moment)
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")
