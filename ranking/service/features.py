"""From one user's row and the ads' table to the ranker's matrix: the same values as the training frame's.

Each function here has its counterpart in `frame.columns` and `frame.gather`; a test holds both to equal numbers for
the same user, ad and moment. The rules of the join are kept: a row that is not yet available, or older than its view's
TTL, is no row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.store.contract import (
    CATALOG_VERSION,
    CONTEXT_PREFIX,
    INTEREST_LOG_PROBS,
    LOG_PROBS,
    PRIOR_ROW,
    PRIOR_VIEW_PREFIX,
    SNAPSHOT,
    TAIL_LOG_MASS,
    TOP_INDEX,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from ranking.frame.columns import clock_columns
from ranking.frame.counts import DAY_US, Ints
from ranking.frame.gather import HISTORY_VALUES, TOP
from ranking.frame.history import LEVELS, online_columns
from ranking.models.ranker import Ranker
from ranking.service.ads import AdTable
from ranking.service.catalogs import Catalogs, HistoryCatalog
from ranking.service.reader import Broken, OnlineReader, Row, ServedView, ViewRow, in_time

Matrix = npt.NDArray[np.float32]
_DERIVED = ("log_prob", "log_ratio", "rank", "top20", "age_days", "interest_log_prob", "missing")
_TINY = np.finfo(np.float64).tiny


def floats(message: Any) -> Matrix:
    """A Feast list of floats as an array, without walking it in Python: packed, it ends with its own bytes."""
    count = len(message.val)
    data = message.SerializeToString()
    return np.frombuffer(data, dtype="<f4", offset=len(data) - 4 * count, count=count)


@dataclass(frozen=True)
class Prior:
    """One user's prior, checked: log-probabilities in the order of their catalog."""

    view: str
    log_probs: Matrix
    version: str
    snapshot_us: int
    means: npt.NDArray[np.float64]
    advertisers: list[str]
    publication: str = ""
    interests: Matrix | None = None
    categories: list[str] = field(default_factory=list)

    def age_days(self, now_us: int) -> float:
        """Days since the newest event it may have seen."""
        return (now_us - self.snapshot_us) / DAY_US


def decode_prior(row: Row, view: ServedView, catalogs: Catalogs, now_us: int) -> Prior | str:
    """A user's prior, or why there is none that can be used.

    Returns
    -------
    Prior or str
        ``prior_missing``, ``prior_stale``, ``prior_early`` (from the future: a clock is wrong), ``prior_corrupt``, or
        ``prior_catalog_unknown`` (of a catalog or snapshot that is not published here).
    """
    if row is None:
        return "prior_missing"
    if isinstance(row, Broken):
        return "prior_corrupt"
    if (late := in_time(row.available_us, view, now_us)) is not None:
        return f"prior_{late}"
    version, snapshot = row.text(CATALOG_VERSION), row.time_us(SNAPSHOT)
    vector = row.values.get(LOG_PROBS)
    if version is None or snapshot is None or vector is None or vector.WhichOneof("val") != "float_list_val":
        return "prior_corrupt"
    kept = floats(vector.float_list_val)
    catalog = catalogs.prior(view.name, version)
    published = catalogs.published(view.name, version, snapshot, row.number(PRIOR_ROW), kept)
    if catalog is None or published is None:
        return "prior_catalog_unknown"
    size = len(catalog.advertisers)
    log_probs = whole(row, kept, size)
    # exp and a sum of the whole vector: microseconds, against serving noise with conviction
    if log_probs is None or len(log_probs) != size or not abs(float(np.exp(log_probs).sum()) - 1.0) < 1e-3:
        return "prior_corrupt"
    interests = None
    found = row.values.get(INTEREST_LOG_PROBS)
    if found is not None and found.WhichOneof("val") == "float_list_val":
        interests = floats(found.float_list_val)
        if len(interests) != len(catalog.interests):
            return "prior_corrupt"
    return Prior(
        view.name,
        log_probs,
        version,
        snapshot,
        published.mean,
        catalog.advertisers,
        published.publication,
        interests,
        catalog.interests,
    )


def whole(row: ViewRow, kept: Matrix, size: int) -> Matrix | None:
    """The whole vector of a row that may hold only its likeliest advertisers (`ranking.frame.gather.PriorFiles.row`).

    None when the two parts do not fit each other.
    """
    top, tail = row.values.get(TOP_INDEX), row.number(TAIL_LOG_MASS)
    if top is None:
        return kept
    places = np.array(top.int64_list_val.val, dtype=np.int64)
    if tail is None or len(places) != len(kept) or not 0 < len(kept) < size:
        return None
    if places.min() < 0 or places.max() >= size:
        return None
    full = np.full(size, np.float32(tail) - np.log(size - len(kept)), np.float32)
    full[places] = np.maximum(kept, np.nextafter(full[0], np.float32(np.inf)))
    return full


def prior_columns(prior: Prior, advertisers: Ints, categories: Ints, now_us: int) -> dict[str, Matrix]:
    """The derived features of `ranking.frame.columns.prior_columns`, by place of advertiser and category."""
    here = advertisers >= 0
    at = np.where(here, advertisers, 0)
    mine = prior.log_probs[at]
    rank = (len(prior.log_probs) - np.searchsorted(np.sort(prior.log_probs), mine, side="right") + 1).astype(np.float32)
    log_ratio = (mine - np.log(np.maximum(prior.means[at], _TINY))).astype(np.float32)
    nan = np.float32(np.nan)
    return {
        "log_prob": np.where(here, mine, nan),
        "log_ratio": np.where(here, log_ratio, nan),
        "rank": np.where(here, rank, nan),
        "top20": np.where(here, (rank <= TOP).astype(np.float32), nan),
        "interest_log_prob": _at(prior.interests, categories),
        "age_days": np.full(len(at), prior.age_days(now_us), dtype=np.float32),
        "missing": (~here).astype(np.float32),
    }


def _at(values: Matrix | None, places: Ints) -> Matrix:
    """``values[places]``, NaN for −1 and where there are no values."""
    if values is None or not len(values):
        return np.full(len(places), np.nan, dtype=np.float32)
    return np.where(places >= 0, values[np.maximum(places, 0)], np.float32(np.nan))


def no_prior_columns(count: int) -> dict[str, Matrix]:
    """What the frame holds where a user has no prior."""
    nan = np.full(count, np.nan, dtype=np.float32)
    return dict.fromkeys(_DERIVED[:-1], nan) | {"missing": np.ones(count, dtype=np.float32)}


def history_values(row: ViewRow, level: str, wanted: Ints, now_us: int) -> Matrix:
    """`ranking.frame.gather.gather_history` on one user's own lists: float32 [candidates, 5].

    Counts in 1, 4, 12 weeks and ever (0 when nothing is there), days since the last (NaN then); all NaN where the ad
    has no id at this level. Recency counts to now, not to the snapshot.
    """
    ids_name, values_name = online_columns(level)
    found = np.zeros((len(wanted), len(HISTORY_VALUES)), dtype=np.float32)
    found[:, 4] = np.nan
    ids_message, values_message = row.values.get(ids_name), row.values.get(values_name)
    if ids_message is not None and values_message is not None and len(ids_message.int32_list_val.val):
        ids = np.array(ids_message.int32_list_val.val, dtype=np.int64)
        values = floats(values_message.float_list_val).reshape(len(ids), len(HISTORY_VALUES))
        at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        hit = ids[at] == wanted
        found[hit] = values[at[hit]]
    since = row.time_us(SNAPSHOT)
    # float64 of both, then float32: the order of the frame
    found[:, 4] += np.nan if since is None else np.float64(now_us - since) / DAY_US
    found[wanted < 0] = np.nan
    return found


class Plan:
    """Where each of a ranker's features comes from; made once a ranker.

    Parameters
    ----------
    ranker : Ranker
    reader : OnlineReader

    Raises
    ------
    AdvpriorError
        ``SRV003`` when the ranker's features are not exactly those that its service gives.
    """

    def __init__(self, ranker: Ranker, reader: OnlineReader) -> None:
        assert ranker.encoder is not None
        self.ranker = ranker
        self.features = list(ranker.encoder.features)
        self.categories = ranker.encoder.categories
        place = {name: i for i, name in enumerate(self.features)}
        self._codes = {
            name: {text: float(i) for i, text in enumerate(known)} for name, known in ranker.encoder.categories.items()
        }
        # a column reaches the ranker from the service, by derivation, or with the request; nothing may be left over
        own = [
            view
            for view in reader.views.values()
            if set(view.columns.values()) & set(reader.columns_of[ranker.service])
        ]
        supplied = {
            column: (view, feature) for view in own for feature, column in view.columns.items() if "__" not in column
        }
        self.predictors = sorted({_predictor_of(name) for name in place if name.startswith(PRIOR_VIEW_PREFIX)} - {""})
        derived = {f"history_{level}_{name}" for level in LEVELS for name in HISTORY_VALUES}
        derived |= {f"{prior_view(p)}_{name}" for p in self.predictors for name in _DERIVED}
        clock = set(clock_columns(np.zeros(1, dtype="datetime64[us]")))
        self._check(place, set(supplied), derived | clock, reader, own)
        self.user = [(place[c], view.name, f, c) for c, (view, f) in supplied.items() if view.name in reader.user_views]
        self.ad_columns = [c for c, (view, _) in supplied.items() if view.name in reader.ad_views]
        self.ad_places = np.array([place[c] for c in self.ad_columns], dtype=np.intp)
        self.history = {
            level: [
                (place[f"history_{level}_{v}"], i)
                for i, v in enumerate(HISTORY_VALUES)
                if f"history_{level}_{v}" in place
            ]
            for level in LEVELS
        }
        self.prior = {
            p: [(place[f"{prior_view(p)}_{n}"], n) for n in _DERIVED if f"{prior_view(p)}_{n}" in place]
            for p in self.predictors
        }
        self.clock = [(place[name], name) for name in sorted(clock) if name in place]
        self.context = [(i, n) for n, i in place.items() if n.startswith(CONTEXT_PREFIX)]

    def _check(
        self, place: Mapping[str, int], supplied: set[str], derived: set[str], reader: OnlineReader, own: Sequence[Any]
    ) -> None:
        lacking = [n for n in place if n not in supplied | derived and not n.startswith(CONTEXT_PREFIX)]
        beyond = sorted(c for c in supplied if c not in place)
        text = {column for view in own for feature, column in view.columns.items() if feature in view.text}
        changed = sorted(c for c in supplied & set(place) if (c in text) != (c in self._codes))
        if self.ranker.service not in reader.services or lacking or beyond or changed:
            found = [f"not served: {', '.join(lacking[:5])}"] if lacking else []
            found += [f"not known to the ranker: {', '.join(beyond[:5])}"] if beyond else []
            found += [f"text in one, a number in the other: {', '.join(changed[:5])}"] if changed else []
            raise AdvpriorError(
                "SRV003",
                "the feature service differs from what the ranker was trained on",
                where=f"service {self.ranker.service}",
                actual="; ".join(found) or "another service",
                expected=f"the {len(place)} features of the ranker's manifest",
                fix="feast apply, build the frame again, then: advprior rank train --frame FRAME --service "
                f"{self.ranker.service} --out RANKER",
            )

    def encode(self, column: str, value: Any) -> float:
        """One value as the ranker takes it: NaN for what is missing or a category it does not know."""
        if value is None:
            return float("nan")
        codes = self._codes.get(column)
        if codes is not None:
            return codes.get(str(value), float("nan"))
        try:
            return float(value)
        except (TypeError, ValueError):
            return float("nan")

    def ads(self, table: AdTable) -> Matrix:
        """The ads' own features, encoded: float32 [ads + 1, ad columns]; worked out once a table."""
        if self not in table._encoded:
            out = np.empty((len(table.ids) + 1, len(self.ad_columns)), dtype=np.float32)
            for i, column in enumerate(self.ad_columns):
                values = table.values[column]
                text = values.dtype == object
                out[:, i] = [self.encode(column, v) for v in values] if text else values.astype(np.float32)
            table._encoded[self] = out
        found: Matrix = table._encoded[self]
        return found


def _predictor_of(column: str) -> str:
    """Predictor of a prior's column.

    >>> _predictor_of("prior_llm_log_prob"), _predictor_of("prior_sas_rec_entropy")
    ('llm', 'sas_rec')
    """
    rest = column.removeprefix(PRIOR_VIEW_PREFIX)
    for name in ("interest_log_prob", *_DERIVED, "entropy", TAIL_LOG_MASS):
        if rest.endswith(f"_{name}"):
            return rest.removesuffix(f"_{name}")
    return ""


@dataclass(frozen=True)
class Request:
    """What is ranked for whom: resolved to rows of the ads' table.

    Attributes
    ----------
    ads : int64 [candidates]
        −1: an ad that is not known.
    context : features of the request as a whole, by their frame column
    contexts : the same per candidate, where they differ
    """

    ads: Ints
    context: Mapping[str, Any]
    contexts: Sequence[Mapping[str, Any] | None] | None = None


def history_fits(row: ViewRow) -> bool:
    """Whether each id of a history has its values."""
    for level in LEVELS:
        ids, values = (row.values.get(name) for name in online_columns(level))
        count = 0 if ids is None else len(ids.int32_list_val.val)
        if count and (values is None or len(values.float_list_val.val) != count * len(HISTORY_VALUES)):
            return False
    return True


def history_catalog(row: Row, catalogs: Catalogs) -> HistoryCatalog | None:
    """The catalog that a user's own counts are numbered by; None when it is not published here."""
    version = row.text(CATALOG_VERSION) if isinstance(row, ViewRow) else None
    return None if version is None else catalogs.histories.get(version)


def matrix(
    plan: Plan,
    request: Request,
    rows: Mapping[str, Row],
    views: Mapping[str, ServedView],
    history: tuple[ViewRow, HistoryCatalog] | None,
    priors: Mapping[str, Prior],
    table: AdTable,
    now_us: int,
) -> Matrix:
    """The ranker's matrix, float32 [candidates, features].

    Parameters
    ----------
    rows : the user's rows by view; those not in time, broken or absent count as missing
    history : the user's history row and its catalog, None when it cannot be used
    priors : by predictor
    """
    count = len(request.ads)
    user = np.full(len(plan.features), np.nan, dtype=np.float32)
    for place, view, feature, column in plan.user:
        row = rows.get(view)
        if isinstance(row, ViewRow) and in_time(row.available_us, views[view], now_us) is None:
            user[place] = plan.encode(column, _value(row, feature, views[view], now_us))
    moment = np.array([now_us], dtype="datetime64[us]")
    now = clock_columns(moment)
    for place, column in plan.clock:
        user[place] = now[column][0]
    for place, column in plan.context:
        user[place] = plan.encode(column, request.context.get(column))
    out = np.empty((count, len(plan.features)), dtype=np.float32)
    out[:] = user
    out[:, plan.ad_places] = plan.ads(table)[request.ads]
    for name in table.late_views(views, now_us):
        available = table.available_us[name][request.ads]
        gone = np.array([in_time(int(moment), views[name], now_us) is not None for moment in available])
        mine = [p for p, c in zip(plan.ad_places, plan.ad_columns, strict=True) if table.view_of[c] == name]
        out[np.ix_(gone, mine)] = np.nan
    if history is not None:
        for level, wanted in plan.history.items():
            if wanted:
                ids = table.history_ids(history[1], level)[request.ads]
                found = history_values(history[0], level, ids, now_us)
                out[:, [place for place, _ in wanted]] = found[:, [i for _, i in wanted]]
    for predictor, wanted_names in plan.prior.items():
        prior = priors.get(predictor)
        if prior is None:
            columns = no_prior_columns(count)
        else:
            index = table.advertiser_index(prior.version, prior.advertisers)[request.ads]
            interests = table.category_index(prior.version, prior.categories)[request.ads]
            columns = prior_columns(prior, index, interests, now_us)
        for place, name in wanted_names:
            out[:, place] = columns[name]
    if request.contexts is not None:
        for i, own in enumerate(request.contexts):
            if own:
                for place, column in plan.context:
                    if column in own:
                        out[i, place] = plan.encode(column, own[column])
    return out


def _value(row: ViewRow, feature: str, view: ServedView, now_us: int) -> Any:
    """A feature as the frame has it: text, a number, or the days since a moment."""
    if feature in view.text:
        return row.text(feature)
    if feature in view.times:
        moment = row.time_us(feature)
        return None if moment is None else (now_us - moment) / DAY_US
    return row.number(feature)
