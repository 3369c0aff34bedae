"""Preflight of the service: everything that would keep it from serving well, found before traffic does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from advprior.store.contract import TABLE_FILE, USER_HISTORY_VIEW, USER_ID
from ranking.frame.preflight import check_prior, check_store
from ranking.frame.views import view_folder
from ranking.service.app import make_engine, required_key
from ranking.service.engine import Engine
from ranking.service.features import Prior, decode_prior, history_catalog
from ranking.service.reader import Row, ViewRow
from ranking.service.settings import ServeSettings

_SAMPLE = 50


@dataclass(frozen=True)
class Note:
    """One thing that was looked at. ``ok`` is None for a warning: it serves, but not as well as it could."""

    ok: bool | None
    text: str
    fix: str = ""


def run_checks(settings: ServeSettings) -> Iterator[Note]:
    """Look at everything, and say what was found.

    Raises
    ------
    AdvpriorError
        For what the service would refuse to start with.
    """
    import pandas as pd

    check_store(settings.repo)
    required_key(settings)
    engine = make_engine(settings)
    both = (engine.rankers.priors, engine.rankers.plain)
    for loaded in both:
        count = len(loaded.plan.features)
        yield Note(True, f"ranker {loaded.digest}: {count} features, all from {loaded.service}")
    for predictor in engine.rankers.priors.plan.predictors:
        check_prior(settings.repo, predictor)
        yield Note(True, f"priors of {predictor}: table, matrix and catalog belong together")
    kind = engine.rankers.priors.predictor.kind
    slow = Note(None, "LightGBM scores: trees are not compiled", "pip install 'advprior[serve]'")
    yield Note(True, "trees are compiled, equal to LightGBM within 1e-6") if kind == "lleaves" else slow

    about = engine.source.about()
    if settings.towers is not None:
        yield Note(True, f"towers fit: {about['ads_known']:.0%} of the ads were there when they were fitted")
        yield from _retrieval(engine, about)
    # not materialize-incremental: it leaves out profiles older than a year and rows that were published anew
    refresh = f'feast -c {settings.repo} materialize 1970-01-01T00:00:00 "$(date -u +%Y-%m-%dT%H:%M:%S)"'
    try:
        engine.reader.ping()
    except Exception as error:
        yield Note(False, f"the online store does not answer: {error!r}", "start it, or mend feature_store.yaml")
        return
    yield Note(True, "the online store answers")
    engine._refresh_ads(pause_s=0.0)
    table, now_us = engine.table, engine.clock.now_us()
    late = table.late_views(engine.reader.views, now_us)
    there = {name: int((at >= 0).sum()) for name, at in table.available_us.items()}
    if late or not all(there.values()):
        yield Note(False, f"ads: none in time in {', '.join(late or there)}", refresh)
    else:
        yield Note(True, f"ads: {min(there.values())} of {len(table.ids)} have a row in time")

    table_file = view_folder(settings.repo, USER_HISTORY_VIEW) / TABLE_FILE
    users = pd.read_parquet(table_file, columns=[USER_ID])[USER_ID].drop_duplicates()
    sample = users.sample(min(_SAMPLE, len(users)), random_state=0)
    counts: dict[str, int] = {}
    ages = []
    for user in sample:
        rows = engine.reader.read_user(user)
        history: Row = rows.get(USER_HISTORY_VIEW)
        if not isinstance(history, ViewRow) or history_catalog(history, engine.catalogs) is None:
            counts["history_missing"] = counts.get("history_missing", 0) + 1
        for view in engine.reader.prior_views():
            found = decode_prior(rows.get(view), engine.reader.views[view], engine.catalogs, now_us)
            if isinstance(found, Prior):
                ages.append(found.age_days(now_us))
            else:
                counts[found] = counts.get(found, 0) + 1
    for reason, count in sorted(counts.items()):
        yield Note(False if count == len(sample) else None, f"{reason}: {count} of {len(sample)} users", refresh)
    if ages:
        yield Note(True, f"priors of {len(ages)} of {len(sample)} users, {min(ages):.1f} to {max(ages):.1f} days old")


def _retrieval(engine: Engine, about: dict[str, Any]) -> Iterator[Note]:
    """How candidates will be found."""
    count, limit = len(engine.table.ids), engine.default_candidates
    if about["search"] == "index":
        yield Note(True, f"candidates: an index over {count:,} ads, recall {about['recall']:.3f} of exact")
    elif count > engine.exact_up_to:
        yield Note(None, f"candidates: {count:,} ads searched one by one", "pip install 'advprior[retrieval]'")
    if "quota" not in about:
        yield Note(None, "candidates: towers alone, no slots for predicted advertisers", "--candidates CANDIDATES")
    elif engine.quota is not None:
        text = f"candidates: {limit} a request, {about['quota']:.0%} for advertisers predicted by {about['predictor']}"
        fits = limit == engine.quota.k
        yield Note(True if fits else None, text, "" if fits else f"the quota was chosen for {engine.quota.k}")
