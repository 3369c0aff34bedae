"""Ranks one user's candidates, and never fails for want of a feature.

Two rankers are loaded: with priors and without. A prior that is missing, stale or corrupt, or a store that does not
answer, means the ranker without priors; the answer says so. What a request sees (rankers, ads, catalogs) is taken once
at its start, so that nothing that is swapped meanwhile mixes into it.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advprior.store.contract import PRIOR_VIEW_PREFIX, USER_HISTORY_VIEW, USER_PROFILE_VIEW, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest, read_manifest
from ranking.candidates.nearest import EXACT_UP_TO
from ranking.experiment.assignment import EVERYBODY, Experiment, ServedArm
from ranking.frame.counts import DAY_US, Ints
from ranking.models.ranker import Ranker
from ranking.service.ads import AdTable, read_ads
from ranking.service.candidates import GIVEN, ORIGINS, CandidateSource, Choice, MostShown
from ranking.service.catalogs import Catalogs
from ranking.service.clock import Clock
from ranking.service.features import (
    Matrix,
    Plan,
    Prior,
    Request,
    decode_prior,
    history_catalog,
    history_fits,
    matrix,
)
from ranking.service.predictor import Predictor
from ranking.service.reader import Broken, OnlineReader, Row, ViewRow, in_time
from ranking.service.towers import TowerSource, load_towers, read_quota

log = logging.getLogger("advprior.service")

TRAIN_FIX = "advprior rank train --frame FRAME --service SERVICE --out RANKER"
#: After a failed read the store is left alone for so long: a dead store must not cost every request its timeout.
_RETRY_S = 0.2
_USER_VIEWS = (USER_PROFILE_VIEW, USER_HISTORY_VIEW)
#: How often the links to what is published are looked at.
_LOOK_S = 1.0
#: Rest between batches of ads, so that reading them does not hold up requests.
_PAUSE_S = 0.005
#: Candidates of a request that names none.
_CANDIDATES = 500


@dataclass(frozen=True)
class Loaded:
    """A ranker, ready to rank."""

    plan: Plan
    predictor: Predictor
    digest: str

    @property
    def service(self) -> str:
        return self.plan.ranker.service


@dataclass(frozen=True)
class Rankers:
    """Both rankers; swapped together."""

    priors: Loaded
    plain: Loaded


@dataclass
class Slate:
    """What `Engine.rank` found.

    Attributes
    ----------
    ads : list of (ad id, advertiser id or None)
        In ranked order.
    scores : list of float
        Calibrated probabilities.
    degraded : list of str
        Why the answer is less than it could be; empty when it is not.
    now_us : int
        The moment that it was ranked for: with it the features can be worked out again.
    timings : dict of stage to seconds
    features : float32 [slots, features], optional
        What the ranker read of the ads, where it was asked to keep it.
    origins : list of str
        Where each of the ads came from, see `ranking.service.candidates.ORIGINS`.
    as_of : dict of view to list of int
        When the rows behind the answer became available, microseconds; empty for a view without a row in time. Filled
        with explanations and for a request with a time of its own.
    """

    arm: ServedArm
    ranker: Loaded
    ads: list[tuple[str, str | None]]
    scores: list[float]
    candidates: int
    unknown_ads: list[str]
    degraded: list[str]
    user_known: bool
    now_us: int
    prior: Prior | None = None
    prior_age_days: float | None = None
    contributions: list[dict[str, Any]] | None = None
    timings: dict[str, float] = field(default_factory=dict)
    origins: list[str] = field(default_factory=list)
    as_of: dict[str, list[int]] = field(default_factory=dict)
    features: Matrix | None = None


@dataclass(frozen=True)
class Found:
    """What the store gave for a user: rows by view, or why there are none."""

    rows: Mapping[str, Row]
    lacking: list[str]


@dataclass(frozen=True)
class Prepared:
    """A request up to its matrix."""

    arm: ServedArm
    ranker: Loaded
    table: AdTable
    choice: Choice
    matrix: Matrix
    rows: Mapping[str, Row]
    priors: dict[str, Prior]
    degraded: list[str]
    now_us: int
    timings: dict[str, float]

    @property
    def ads(self) -> Ints:
        """Candidates, as rows of the ads' table."""
        return self.choice.ads


class Engine:
    """Ranks.

    Parameters
    ----------
    repo : Path
        Feature repository, published, applied and materialized.
    with_priors, plain : Path
        Ranker folders, of a service with priors and of one without.
    cache : Path, optional
        Of compiled trees.
    max_prior_age_days : float, optional
        A prior of an older snapshot is stale. Default: only its view's TTL counts.
    refresh_s : float
        How often ads, catalogs and ranker folders are looked at.
    towers : Path, optional
        ``rank towers`` run that retrieves where a request names no candidates. Default: the ads shown most often.
    quota : Path, optional
        ``rank candidates`` run on these towers, whose quota of slots goes to ads of predicted advertisers.
    exact_up_to : int
        Ads up to which retrieval is exact.
    default_candidates : int, optional
        Ads ranked where a request names none. Default: what the quota was chosen for; 500 without one.

    Raises
    ------
    AdvpriorError
        ``SRV003`` when a service differs from its ranker's manifest, ``SRV004`` when the rankers are the wrong way
        round, ``SRV010`` to ``SRV012`` when the towers do not fit, and whatever reading them raises.
    """

    def __init__(
        self,
        repo: Path,
        with_priors: Path,
        plain: Path,
        *,
        experiment: Experiment = EVERYBODY,
        clock: Clock | None = None,
        cache: Path | None = None,
        max_prior_age_days: float | None = None,
        refresh_s: float = 60.0,
        towers: Path | None = None,
        quota: Path | None = None,
        exact_up_to: int = EXACT_UP_TO,
        default_candidates: int | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.experiment = experiment
        self._folders = (Path(with_priors), Path(plain))
        self._cache = cache
        self._max_age_us = None if max_prior_age_days is None else int(max_prior_age_days * DAY_US)
        self._refresh_s = refresh_s
        loaded = [_read_ranker(folder) for folder in self._folders]
        self.reader = OnlineReader(
            repo, list(dict.fromkeys(ranker.service for ranker, _ in loaded)), tokens=bool(towers)
        )
        self.rankers = self._rankers(loaded)
        self.catalogs = Catalogs(repo, self.reader.prior_views())
        self.catalogs.refresh(self.clock.now_us())
        if self.catalogs.newest is None:
            raise AdvpriorError(
                "STO003",
                "views are not published",
                where=str(repo),
                actual=f"no {USER_HISTORY_VIEW}",
                fix=f"advprior rank features --tables TABLES --repo {repo} ; feast -c {repo} apply",
            )
        found = (
            None if towers is None or quota is None else read_quota(quota, towers, self.rankers.priors.plan.predictors)
        )
        self.default_candidates = default_candidates or (_CANDIDATES if found is None else found.k)
        self.source: CandidateSource = MostShown()
        self.quota = found
        self.exact_up_to = exact_up_to
        if towers is not None:
            self.source = TowerSource(
                load_towers(towers),
                found,
                self.reader,
                self.catalogs,
                limit=self.default_candidates,
                exact_up_to=exact_up_to,
            )
        self.table = AdTable.unread(self.reader, self.catalogs.newest)
        self.source.prepare(self.table)
        self.reloads: dict[str, int] = {"done": 0, "refused": 0}
        self._refused: tuple[str, str] | None = None
        self._dead_until = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the ads, warm up, and keep both fresh in the background."""
        self._refresh_ads(pause_s=0.0)
        self.warm_up()
        self._thread = threading.Thread(target=self._keep_fresh, name="advprior-refresh", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the background work."""
        self._stop.set()
        self.catalogs.wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def warm_up(self) -> None:
        """Rank a few times, then take what is in memory out of the garbage collector's way."""
        for loaded in (self.rankers.priors, self.rankers.plain):
            block = np.full((self.default_candidates, len(loaded.plan.features)), np.nan, dtype=np.float32)
            for _ in range(3):
                loaded.predictor.scores(block)
        self.rank("", 10)
        gc.collect()
        gc.freeze()

    def not_ready(self) -> list[str]:
        """Why traffic should not come here; empty when it should. Asks the store."""
        return ([] if self.table.read_us >= 0 else ["ads_unread"]) + self.look_up("").lacking

    def refresh(self) -> None:
        """Take in what was published, materialized or trained since. Failures keep what there is."""
        self._refresh_catalogs()
        self._refresh_ads(pause_s=_PAUSE_S)
        self._refresh_rankers()

    def _keep_fresh(self) -> None:
        due = time.monotonic() + self._refresh_s
        while not self._stop.is_set():
            # a row of a catalog that is not known yet is a reason to look at once, but not in a tight loop
            asked = self.catalogs.wanted.wait(min(_LOOK_S, max(0.0, due - time.monotonic())))
            if self._stop.is_set():
                return
            if time.monotonic() >= due:
                self.refresh()
                due = time.monotonic() + self._refresh_s
            elif asked or self.catalogs.moved():  # known before the first row of it can be there
                self._refresh_catalogs()
            else:
                continue
            self._stop.wait(min(1.0, self._refresh_s))

    def _refresh_catalogs(self) -> None:
        try:
            self.catalogs.refresh(self.clock.now_us())
        except Exception:
            log.exception("catalogs cannot be refreshed, the old ones stay")

    def _refresh_ads(self, *, pause_s: float) -> None:
        catalog = self.catalogs.newest
        if catalog is None:
            return
        try:
            table = read_ads(self.reader, catalog, self.clock.now_us(), pause_s=pause_s)
        except Exception as error:
            log.warning("ads cannot be read, the old ones stay", extra={"error": repr(error)})
            return
        for loaded in (self.rankers.priors, self.rankers.plain):
            loaded.plan.ads(table)  # worked out here, not by the first request
        try:
            self.source.prepare(table)
        except Exception:
            log.exception("candidates cannot be prepared, the old ads stay")
            return
        self.table = table

    # -- rankers ---------------------------------------------------------------------------------------------------

    def _rankers(self, loaded: Sequence[tuple[Ranker, str]]) -> Rankers:
        both = []
        for (ranker, digest), folder in zip(loaded, self._folders, strict=True):
            both.append(Loaded(Plan(ranker, self.reader), Predictor(ranker, folder, self._cache), digest))
        for one, wanted in zip(both, (True, False), strict=True):
            if bool(one.plan.predictors) != wanted:
                raise AdvpriorError(
                    "SRV004",
                    "the service needs a ranker with priors and one without",
                    where=one.service,
                    actual="a ranker without priors" if wanted else "a ranker with priors",
                    expected="--ranker with priors, --fallback without",
                    fix=TRAIN_FIX,
                )
        return Rankers(*both)

    def _refresh_rankers(self) -> None:
        """Swap rankers that were trained anew; what cannot be read or does not fit is refused once, and counted."""
        try:
            found = tuple(manifest_digest(folder) for folder in self._folders)
        except (AdvpriorError, OSError) as error:
            found = (repr(error), "")
        if found == (self.rankers.priors.digest, self.rankers.plain.digest) or found == self._refused:
            return
        try:
            rankers = self._rankers([_read_ranker(folder) for folder in self._folders])
            for now, new in ((self.rankers.priors, rankers.priors), (self.rankers.plain, rankers.plain)):
                if {n for _, n in now.plan.context} != {n for _, n in new.plan.context}:
                    raise ValueError("the new ranker asks for other context features: start the service anew")
            for loaded in (rankers.priors, rankers.plain):
                loaded.plan.ads(self.table)
            self.rankers = rankers
            self.reloads["done"] += 1
            self._refused = None
            log.info("rankers swapped", extra={"rankers": [rankers.priors.digest, rankers.plain.digest]})
        except Exception as error:
            self._refused = (found[0], found[1])
            self.reloads["refused"] += 1
            log.warning("a new ranker is refused, the old one stays", extra={"error": str(error)})

    # -- ranking ---------------------------------------------------------------------------------------------------

    def rank(
        self,
        user_id: str,
        slots: int,
        candidates: Sequence[str] | None = None,
        *,
        context: Mapping[str, Any] | None = None,
        contexts: Sequence[Mapping[str, Any] | None] | None = None,
        explain: bool = False,
        arm: ServedArm | None = None,
        found: Found | None = None,
        keep: bool = False,
        now_us: int | None = None,
    ) -> Slate:
        """The best ``slots`` of the candidates for a user.

        Parameters
        ----------
        candidates : sequence of ad ids, optional
            Default: what the candidate source chooses.
        context, contexts : features of the request, and per candidate
        explain : bool
            Give the contributions of each returned ad.
        arm : ServedArm, optional
            To look at another arm. Default: the one that the experiment deals the user to.
        found : Found, optional
            What `look_up` gave, to rank one user more than once. Default: the store is asked.
        keep : bool
            Give the features of each returned ad.
        now_us : int, optional
            Rank as of then. Default: the clock's now.
        """
        clock = time.perf_counter
        begin = clock()
        ready = self.prepare(
            user_id, candidates, context=context, contexts=contexts, arm=arm, found=found, now_us=now_us
        )
        built = clock()
        chosen, table, ads = ready.ranker, ready.table, ready.ads
        scores = chosen.predictor.scores(ready.matrix)
        order = np.argsort(-scores, kind="stable")[:slots].tolist()
        scored = clock()
        named = [table.ids[ads[i]] if candidates is None else candidates[i] for i in order]
        owners = [table.advertisers[ads[i]] if ads[i] >= 0 else None for i in order]
        prior = next(iter(ready.priors.values()), None)
        slate = Slate(
            arm=ready.arm,
            ranker=chosen,
            ads=list(zip(named, owners, strict=True)),
            scores=[float(scores[i]) for i in order],
            candidates=len(ads),
            unknown_ads=[] if candidates is None else [candidates[i] for i in np.flatnonzero(ads < 0).tolist()],
            degraded=ready.degraded,
            user_known=any(isinstance(ready.rows.get(v), ViewRow) for v in (USER_PROFILE_VIEW, USER_HISTORY_VIEW)),
            now_us=ready.now_us,
            prior=prior,
            prior_age_days=None if prior is None else prior.age_days(ready.now_us),
            timings={
                **ready.timings,
                "features": built - begin - sum(ready.timings.values()),
                "predict": scored - built,
            },
            origins=[ORIGINS[ready.choice.origin[i]] for i in order],
        )
        if keep:
            slate.features = ready.matrix[order]
        if explain or now_us is not None:
            slate.as_of = self._as_of(ready)
        if explain:
            slate.contributions = self._explain(chosen, ready.matrix[order])
            slate.timings["explain"] = clock() - scored
        slate.timings["total"] = clock() - begin
        return slate

    def prepare(
        self,
        user_id: str,
        candidates: Sequence[str] | None = None,
        *,
        context: Mapping[str, Any] | None = None,
        contexts: Sequence[Mapping[str, Any] | None] | None = None,
        arm: ServedArm | None = None,
        found: Found | None = None,
        now_us: int | None = None,
    ) -> Prepared:
        """Everything up to the scores: which ranker, and its matrix for the candidates."""
        begin = time.perf_counter()
        now_us = self.clock.now_us() if now_us is None else now_us
        rankers, table = self.rankers, self.table
        arm = arm or self.experiment.arm_of(user_id)
        found = found or self.look_up(user_id)
        rows, degraded = found.rows, list(found.lacking)
        timings = {"read": time.perf_counter() - begin}
        priors: dict[str, Prior] = {}
        chosen = rankers.priors if arm.priors else rankers.plain
        if arm.priors:
            if not degraded:
                degraded += self._priors(chosen.plan, rows, now_us, priors)
            if degraded:
                chosen = rankers.plain
        history = self._history(rows, now_us, degraded)
        if table.read_us < 0:
            degraded.append("ads_unread")
        if candidates is None:
            begin = time.perf_counter()
            choice = self._choose(table, rows, priors, arm, now_us, degraded)
            timings["candidates"] = time.perf_counter() - begin
        else:
            choice = Choice.all_from(table.rows(candidates), GIVEN)
        request = Request(choice.ads, context or {}, contexts)
        block = matrix(chosen.plan, request, rows, self.reader.views, history, priors, table, now_us)
        return Prepared(arm, chosen, table, choice, block, rows, priors, degraded, now_us, timings)

    def _choose(
        self,
        table: AdTable,
        rows: Mapping[str, Row],
        priors: Mapping[str, Prior],
        arm: ServedArm,
        now_us: int,
        degraded: list[str],
    ) -> Choice:
        """Candidates of a request that names none, from what is in time; ``degraded`` says what they lack."""
        choice = self.source.choose(table, self._in_time(rows, now_us), priors, self.default_candidates)
        degraded += choice.degraded
        if arm.priors and self.quota is not None and self.quota.share and self.quota.predictor not in priors:
            degraded.append("candidates_without_priors")
        return choice

    def _in_time(self, rows: Mapping[str, Row], now_us: int) -> dict[str, Row]:
        """Rows as the join would take them: None for one that is too early or too old."""
        views = self.reader.views
        return {
            name: row if isinstance(row, ViewRow) and in_time(row.available_us, views[name], now_us) is None else None
            for name, row in rows.items()
        }

    def _as_of(self, ready: Prepared) -> dict[str, list[int]]:
        """When the rows behind a request became available, by view."""
        found: dict[str, list[int]] = {}
        for name, row in self._in_time(ready.rows, ready.now_us).items():
            found[name] = [row.available_us] if isinstance(row, ViewRow) else []
        for name, available in ready.table.available_us.items():
            moments = np.unique(available[ready.ads]).tolist()
            view = self.reader.views[name]
            found[name] = [m for m in moments if m >= 0 and in_time(m, view, ready.now_us) is None]
        return found

    def look_up(self, user_id: str) -> Found:
        """The user's rows of all views."""
        if time.monotonic() >= self._dead_until:
            try:
                rows = self.reader.read_user(user_id)
                self._dead_until = 0.0
                return Found(rows, [])
            except Exception as error:
                self._dead_until = time.monotonic() + _RETRY_S
                log.warning("the online store does not answer", extra={"error": repr(error)})
        return Found({}, ["store_unavailable"])

    def _priors(self, plan: Plan, rows: Mapping[str, Row], now_us: int, out: dict[str, Prior]) -> list[str]:
        """Fill ``out`` with the priors the ranker takes; reasons where one cannot be used."""
        reasons = []
        for predictor in plan.predictors:
            view = prior_view(predictor)
            found = decode_prior(rows.get(view), self.reader.views[view], self.catalogs, now_us)
            if (
                isinstance(found, Prior)
                and self._max_age_us is not None
                and now_us - found.snapshot_us > self._max_age_us
            ):
                found = "prior_stale"
            if isinstance(found, Prior):
                out[predictor] = found
            else:
                reasons.append(found)
        if reasons:
            out.clear()
        return list(dict.fromkeys(reasons))

    def _history(self, rows: Mapping[str, Row], now_us: int, degraded: list[str]) -> Any:
        row = rows.get(USER_HISTORY_VIEW)
        degraded += [
            f"{name.removeprefix('user_')}_corrupt" for name in _USER_VIEWS if isinstance(rows.get(name), Broken)
        ]
        if not isinstance(row, ViewRow):
            return None
        if not history_fits(row):
            degraded.append("history_corrupt")
            return None
        if (late := in_time(row.available_us, self.reader.views[USER_HISTORY_VIEW], now_us)) is not None:
            degraded.append(f"history_{late}")
            return None
        catalog = history_catalog(row, self.catalogs)
        if catalog is None:
            self.catalogs.wanted.set()
            degraded.append("history_catalog_unknown")
            return None
        return row, catalog

    @staticmethod
    def _explain(loaded: Loaded, block: Matrix) -> list[dict[str, Any]]:
        """Contributions of each row, largest first, in log-odds before calibration."""
        found = loaded.predictor.contributions(block)
        names = loaded.plan.features
        of_prior = np.array([name.startswith(PRIOR_VIEW_PREFIX) for name in names])
        out = []
        for row in found:
            own, size = row[:-1], np.abs(row[:-1])
            total = float(size.sum())
            out.append(
                {
                    "base": float(row[-1]),
                    "raw_score": float(row.sum()),
                    "prior": float(own[of_prior].sum()),
                    "prior_share": float(size[of_prior].sum()) / total if total else 0.0,
                    "features": {names[i]: float(own[i]) for i in np.argsort(-size, kind="stable") if own[i]},
                }
            )
        return out


def _read_ranker(folder: Path) -> tuple[Ranker, str]:
    """A finished ranker folder and its digest."""
    read_manifest(folder, step="rank train", fix=TRAIN_FIX)
    return Ranker.load(folder), manifest_digest(folder)
