"""Ranks one user's candidates, and never fails for want of a feature.

Two rankers are loaded: with priors and without. A prior that is missing, stale or corrupt, or a store that does not
answer, means the ranker without priors; the answer says so. What a request sees (rankers, ads, catalogs) is taken once
at its start, so that nothing that is swapped meanwhile mixes into it.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping

import numpy as np

from advprior.store.arrays import Bool, Double
from advprior.store.contract import PRIOR_VIEW_PREFIX, USER_HISTORY_VIEW, USER_PROFILE_VIEW, prior_view
from advprior.store.times import DAY_US
from ranking.experiment.assignment import ServedArm
from ranking.service.ads import AdTable
from ranking.service.candidates import GIVEN, ORIGINS, Choice
from ranking.service.catalogs import HistoryCatalog
from ranking.service.clock import Clock
from ranking.service.explanations import as_of, contributions, rows_in_time
from ranking.service.histories import history_catalog, history_fits
from ranking.service.matrix import Candidates, UserInputs, matrix
from ranking.service.plan import Plan
from ranking.service.priors import Prior, decode_prior
from ranking.service.resources import EngineOptions, Refresher, Resources
from ranking.service.rows import Broken, Row, ViewRow, in_time
from ranking.service.slate import Prepared, Query, Slate, UserRows

log = logging.getLogger("advprior.service")

#: After a failed read the store is left alone for so long: a dead store must not cost every request its timeout.
_RETRY_S = 0.2
_USER_VIEWS = (USER_PROFILE_VIEW, USER_HISTORY_VIEW)


def behind_the_listed(scores: Double, listed: Bool) -> Double:
    """Scores of which none of an ad outside the catalog is above those of the catalog's ads.

    A ranker says nothing of an ad of which nothing is read: what it gives for missing features may well be more than
    what it gives for an ad that it has seen fail.

    >>> behind_the_listed(np.array([0.2, 0.117, 0.061]), np.array([True, False, True])).tolist()
    [0.2, 0.061, 0.061]
    """
    if listed.all() or not listed.any():
        return scores
    return np.where(listed, scores, np.minimum(scores, scores[listed].min()))


class Engine:
    """Ranks.

    Parameters
    ----------
    options : EngineOptions

    Attributes
    ----------
    clock : Clock
    experiment : Experiment
    resources : Resources
        What it ranks with.

    Raises
    ------
    AdvpriorError
        Whatever `Resources` refuses to start with.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.clock = options.clock or Clock()
        self.experiment = options.experiment
        days = options.max_prior_age_days
        self._max_age_us = None if days is None else int(days * DAY_US)
        self.resources = Resources(options, self.clock)
        self._refresher = Refresher(self.resources, options.refresh_s)
        self._dead_until = 0.0

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the ads, warm up, and keep both fresh in the background."""
        self.resources.refresh_ads()
        self.warm_up()
        self._refresher.start()

    def stop(self) -> None:
        """End the background work."""
        self._refresher.stop()

    def warm_up(self) -> None:
        """Rank a few times, then take what is in memory out of the garbage collector's way."""
        for loaded in self.resources.rankers.both():
            shape = (self.resources.default_candidates, len(loaded.plan.features))
            block = np.full(shape, np.nan, dtype=np.float32)
            for _ in range(3):
                loaded.predictor.scores(block)
        self.rank(Query(""))
        gc.collect()
        gc.freeze()

    def prior_limit_days(self) -> float | None:
        """Age from which the priors of the ranker are no longer used; None where there is no limit."""
        views = self.resources.reader.views
        priors = [views[prior_view(name)].ttl_us for name in self.resources.rankers.priors.plan.predictors]
        limits = [us for us in (*priors, self._max_age_us) if us]
        return min(limits) / DAY_US if limits else None

    def not_ready(self) -> list[str]:
        """Why traffic should not come here; empty when it should. Asks the store."""
        return ([] if self.resources.table.read_us >= 0 else ["ads_unread"]) + self.look_up("").lacking

    # -- ranking ---------------------------------------------------------------------------------------------------

    def rank(self, query: Query) -> Slate:
        """The best candidates for a user."""
        begin = time.perf_counter()
        ready = self.prepare(query)
        built = time.perf_counter()
        scores = ready.ranker.predictor.scores(ready.matrix)
        table, ads, names = ready.table, ready.ads, query.candidates
        scores = behind_the_listed(scores, ads >= 0)
        # of equal scores, an ad of the catalog comes first
        order = np.lexsort((ads < 0, -scores))[: query.slots].tolist()
        scored = time.perf_counter()
        ad_ids = [table.ids[ads[i]] if names is None else names[i] for i in order]
        owners = [table.advertisers[ads[i]] if ads[i] >= 0 else None for i in order]
        prior = next(iter(ready.user.priors.values()), None)
        rows = ready.user.rows
        slate = Slate(
            arm=ready.arm,
            ranker=ready.ranker,
            ads=list(zip(ad_ids, owners, strict=True)),
            scores=[float(scores[i]) for i in order],
            candidates=len(ads),
            unknown_ads=[] if names is None else [names[i] for i in np.flatnonzero(ads < 0).tolist()],
            degraded=ready.degraded,
            user_known=any(isinstance(rows.get(view), ViewRow) for view in _USER_VIEWS),
            now_us=ready.now_us,
            prior=prior,
            prior_age_days=None if prior is None else prior.age_days(ready.now_us),
            origins=[ORIGINS[ready.choice.origin[i]] for i in order],
            reference={n: v for n, v in ready.ranker.plan.reference.items() if query.context.get(n) is None},
        )
        features_s = built - begin - sum(ready.timings.values())
        slate.timings = {**ready.timings, "features": features_s, "predict": scored - built}
        if query.keep_features:
            slate.features = ready.matrix[order]
            slate.features_as_of = as_of(ready, self.resources.reader.views)
        if query.explain or query.now_us is not None:
            slate.as_of = as_of(ready, self.resources.reader.views)
        if query.explain:
            slate.contributions = contributions(ready.ranker, ready.matrix[order])
            slate.timings["explain"] = time.perf_counter() - scored
        slate.timings["total"] = time.perf_counter() - begin
        return slate

    def prepare(self, query: Query) -> Prepared:
        """Everything up to the scores: which ranker, and its matrix for the candidates."""
        begin = time.perf_counter()
        now_us = self.clock.now_us() if query.now_us is None else query.now_us
        rankers, table = self.resources.rankers, self.resources.table
        arm = query.arm or self.experiment.arm_of(query.user_id)
        stored = query.user_rows or self.look_up(query.user_id)
        rows, degraded = stored.rows, list(stored.lacking)
        timings = {"read": time.perf_counter() - begin}
        priors: dict[str, Prior] = {}
        ranker = rankers.priors if arm.priors else rankers.plain
        if arm.priors:
            if not degraded:
                priors, reasons = self._priors(ranker.plan, rows, now_us)
                degraded += reasons
            if degraded:
                ranker = rankers.plain
        history = self._history(rows, now_us, degraded)
        if table.read_us < 0:
            degraded.append("ads_unread")
        user = UserInputs(rows, history, priors)
        if query.candidates is None:
            begin = time.perf_counter()
            choice = self._choose(table, user, arm, now_us)
            degraded += choice.degraded
            timings["candidates"] = time.perf_counter() - begin
        else:
            choice = Choice.all_from(table.rows(query.candidates), GIVEN)
        candidates = Candidates(choice.ads, query.context, query.contexts)
        block = matrix(ranker.plan, candidates, user, table, now_us)
        return Prepared(arm, ranker, table, choice, block, user, degraded, now_us, timings)

    def _choose(self, table: AdTable, user: UserInputs, arm: ServedArm, now_us: int) -> Choice:
        """Candidates of a request that names none, from what is in time."""
        resources, quota = self.resources, self.resources.quota
        rows = rows_in_time(user.rows, resources.reader.views, now_us)
        choice = resources.source.choose(table, rows, user.priors, resources.default_candidates)
        if arm.priors and quota is not None and quota.share and quota.predictor not in user.priors:
            return Choice(choice.ads, choice.origin, [*choice.degraded, "candidates_without_priors"])
        return choice

    def look_up(self, user_id: str) -> UserRows:
        """The user's rows of all views."""
        if time.monotonic() >= self._dead_until:
            try:
                rows = self.resources.reader.read_user(user_id)
                self._dead_until = 0.0
                return UserRows(rows, [])
            except Exception as error:
                self._dead_until = time.monotonic() + _RETRY_S
                log.warning("the online store does not answer", extra={"error": repr(error)})
        return UserRows({}, ["store_unavailable"])

    def _priors(self, plan: Plan, rows: Mapping[str, Row], now_us: int) -> tuple[dict[str, Prior], list[str]]:
        """The priors that the ranker takes, all or none; and why one cannot be used."""
        priors: dict[str, Prior] = {}
        reasons = []
        for predictor in plan.predictors:
            view = prior_view(predictor)
            prior = decode_prior(rows.get(view), plan.views[view], self.resources.catalogs, now_us)
            if isinstance(prior, str):
                reasons.append(prior)
            elif self._max_age_us is not None and now_us - prior.snapshot_us > self._max_age_us:
                reasons.append("prior_stale")
            else:
                priors[predictor] = prior
        return ({} if reasons else priors), list(dict.fromkeys(reasons))

    def _history(
        self, rows: Mapping[str, Row], now_us: int, degraded: list[str]
    ) -> tuple[ViewRow, HistoryCatalog] | None:
        """The history row and its catalog; None, and a reason in ``degraded``, when they cannot be used."""
        degraded += [
            f"{view.removeprefix('user_')}_corrupt"
            for view, row in rows.items()
            if isinstance(row, Broken) and not view.startswith(PRIOR_VIEW_PREFIX)
        ]
        row = rows.get(USER_HISTORY_VIEW)
        if not isinstance(row, ViewRow):
            return None
        if not history_fits(row):
            degraded.append("history_corrupt")
            return None
        if (late := in_time(row.available_us, self.resources.reader.views[USER_HISTORY_VIEW], now_us)) is not None:
            degraded.append(f"history_{late}")
            return None
        catalog = history_catalog(row, self.resources.catalogs)
        if catalog is None:
            self.resources.catalogs.wanted.set()
            degraded.append("history_catalog_unknown")
            return None
        return row, catalog
