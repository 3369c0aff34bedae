"""Predictors on data frames: load or fit one, and score users that are given as a frame of events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from advprior.frames.arguments import require_frame, require_moment, require_times, require_users
from advprior.frames.priors import advertisers_of, long_frame
from advprior.history.catalog import Catalog
from advprior.history.counts import DAY
from advprior.history.histories import Histories, build_histories, micros
from advprior.predictors import registry
from advprior.store.arrays import Float, Int
from advprior.store.contract import (
    ADVERTISER_ID,
    ADVERTISERS,
    ARRIVED,
    CATEGORY,
    EVENTS,
    NAME,
    PROFILE_PREFIX,
    SNAPSHOT,
    TEXT,
    TIMESTAMP,
    USER_ID,
    USERS,
    VALUE,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, manifest_digest, new_run, read_manifest, run_key

if TYPE_CHECKING:
    from advprior.predictors.base import Predictor

CHUNK_CELLS = 4_000_000  # of priors scored at once
WEEK = 7 * DAY
_EVENTS = (USER_ID, TIMESTAMP, ADVERTISER_ID)
_MORE = (CATEGORY, TEXT, VALUE, ARRIVED)


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
        *all* users, also when only some are scored: what everyone turns to is part of a prior. Events of advertisers
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
        ``PRI081`` when a frame is none, lacks a column, a user or a time, or a user is in neither of them; ``RUN001``
        without an export.

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
    >>> tables = {"events": events, "advertisers": advertisers}
    >>> predictor = fit("popularity", tables, "2024-02-05", Path(mkdtemp()) / "run")
    >>> score_users(predictor, events, "2024-01-30", users=["u2"])[["user_id", "rank", "advertiser"]]
      user_id  rank advertiser
    0      u2     1  Tea house
    1      u2     2     Bakery
    """
    if isinstance(predictor, str | Path):
        predictor = load_predictor(predictor)
    if not hasattr(predictor, "scorer"):
        raise AdvpriorError(
            "PRI081",
            "the first argument is no predictor",
            where="predictor",
            actual=f"a {type(predictor).__name__}",
            expected="what load_predictor or fit gives, or a run's folder",
            fix='score_users("models/llm", events, snapshot)',
        )
    moment = require_moment(snapshot, "snapshot")
    histories = _histories(events, profiles, predictor.catalog)
    ids = list(histories.users) if users is None else [users] if isinstance(users, str) else [str(u) for u in users]
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
    return long_frame(who, log_probs, advertisers_of(predictor.catalog), top)


def fit(
    kind: str,
    tables: Mapping[str, pd.DataFrame],
    cutoff: datetime | str,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Predictor:
    """Fit a predictor on frames and export it, as ``advprior finetune`` and ``advprior export`` do on tables.

    Parameters
    ----------
    kind : str
        ``popularity``, ``neighbours``, ``sasrec``, ``text``, ``hybrid``, ``llm`` or ``zero_shot``.
    tables : mapping of str to DataFrame
        ``events`` and, as profiles, ``users``: see `score_users`. ``advertisers``: ``advertiser_id``, ``name`` and,
        where there is more to say of each, ``text``.
    cutoff : datetime or str
        Nothing at or after it is seen, labels included. A time without a zone is UTC.
    out : str or Path
        Folder; afterwards a run that every command reads.
    settings : mapping, optional
        As in the predictor's YAML.
    device : str
        ``auto``, ``cpu``, ``cuda``, or one of several cards: ``cuda:1``.

    Returns
    -------
    Predictor

    Raises
    ------
    AdvpriorError
        ``PRI001`` for an advertiser without a name, ``PRI003`` for an unknown kind, ``PRI006`` when there is too little
        to fit on, ``PRI031`` when the device cannot be had, ``PRI081`` when a table or a column is missing, ``CFG002``
        for settings that do not fit.

    Examples
    --------
    See `score_users`.
    """
    from advprior.pipeline.fit import validated_settings
    from advprior.predictors.base import FitData
    from advprior.predictors.labels import LabelSpan
    from advprior.store.device import computing_on

    out, end = Path(out), require_moment(cutoff, "cutoff")
    model = registry.predictor_class(kind)
    checked = validated_settings(kind, dict(settings or {}), "settings")
    for name in (EVENTS, ADVERTISERS):
        if not isinstance(tables, Mapping) or name not in tables:
            actual = ", ".join(tables) if isinstance(tables, Mapping) else f"a {type(tables).__name__}"
            raise AdvpriorError("PRI081", f"there is no table {name}", actual=actual, expected=f"a mapping with {name}")
    catalog = Catalog.from_table(require_frame(tables[ADVERTISERS], ADVERTISERS, (ADVERTISER_ID, NAME)))
    histories = _histories(tables[EVENTS], tables.get(USERS), catalog).before(micros(end))
    if not len(histories.time):
        raise AdvpriorError("PRI006", "no event lies before the cut-off", where=EVENTS, actual="0 events")
    data = FitData(histories, catalog, int(histories.time.min()), micros(end), WEEK)
    config = {"predictor": kind, "settings": checked.model_dump(mode="json")}
    inputs = {"frames": digest([catalog.version, histories.time.tolist(), histories.advertiser.tolist()])}
    with new_run(out, "finetune", config=config, inputs=inputs, key=run_key("fit", config, inputs, 1)) as run:
        with computing_on(device):
            facts = model.fit(data, checked, run.path)
        run.facts.update({**LabelSpan(end, end).to_json(), **facts}, predictor=kind, catalog_version=catalog.version)
        run.facts.update(advertisers=len(catalog), users=len(histories), events=len(histories.time))
    fitted = registry.load_predictor(out)
    source = {"model": manifest_digest(out)}
    with new_run(out / "onnx", "export", config={}, inputs=source, key=run_key("export", {}, source, 0)) as run:
        run.facts.update(fitted.export(run.path), predictor=kind)
    return fitted


def _score(predictor: Predictor, histories: Histories, users: Int, cutoff: int) -> Float:
    """Priors [len(users), N] at one cut-off, a bounded number of users at a time."""
    read_manifest(predictor.run / "onnx", step="export", fix=f"advprior export {predictor.run}")
    scorer = predictor.scorer(predictor.run / "onnx")
    past, moment = histories.before(cutoff), np.asarray([cutoff], np.int64)
    step = max(CHUNK_CELLS // len(predictor.catalog), 1)
    parts = [scorer.score(past, users[start : start + step], moment)[:, 0] for start in range(0, len(users), step)]
    return np.concatenate(parts) if parts else np.zeros((0, len(predictor.catalog)), np.float32)


def _histories(events: pd.DataFrame, profiles: pd.DataFrame | None, catalog: Catalog) -> Histories:
    """Histories of every user in either frame."""
    require_frame(events, "events", _EVENTS)
    require_users(events, "events", once=False)
    table = events[[*_EVENTS, *(name for name in _MORE if name in events)]].copy()
    for name in (TIMESTAMP, ARRIVED):
        if name in table:
            table[name] = require_times(table, "events", name)
    table[USER_ID] = table[USER_ID].astype(str)
    people = pd.DataFrame({USER_ID: sorted(set(table[USER_ID]))})
    if profiles is not None:
        require_frame(profiles, "profiles", (USER_ID,))
        require_users(profiles, "profiles", once=True)
        told = profiles[[USER_ID, *(name for name in profiles if str(name).startswith(PROFILE_PREFIX))]]
        people = people.merge(told.astype({USER_ID: str}), on=USER_ID, how="outer")
    return build_histories(people, table, catalog)
