"""Preflight of the service: everything that would keep it from serving well, before traffic meets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advprior.store.contract import TABLE_FILE, USER_HISTORY_VIEW, USER_ID
from advprior.store.times import DAY_US
from ranking.frame.preflight import check_prior, check_store, publish_command
from ranking.frame.views import view_folder
from ranking.service.app import make_engine
from ranking.service.engine import Engine
from ranking.service.histories import history_catalog
from ranking.service.keys import required_key
from ranking.service.priors import Prior, decode_prior
from ranking.service.resources import Resources
from ranking.service.rows import Row, ViewRow, in_time
from ranking.service.settings import ServeSettings

_SAMPLE = 50
_MINUTE_US = 60_000_000
#: What comes before materializing, where that alone changes nothing.
_FIXES = {
    "history_missing": "{features}, then ",
    "prior_catalog_unknown": "publish the same priors on this machine, then ",
    "prior_corrupt": "advprior publish PRIORS --repo {repo}, then ",
    "prior_missing": "publish priors of these users (advprior publish PRIORS --repo {repo}), then ",
    "prior_stale": "score and publish a newer snapshot (advprior score, publish), then ",
}


@dataclass(frozen=True)
class Note:
    """One thing that was looked at. ``ok`` is None for a warning: it serves, but not as well as it could."""

    ok: bool | None
    text: str
    fix: str = ""
    of_another_time: bool = False  # all is as it should be, at another time than the clock's


def run_checks(settings: ServeSettings) -> Iterator[Note]:
    """Look at everything, and say how it is.

    Raises
    ------
    AdvpriorError
        For what the service would refuse to start with.
    """
    check_store(settings.repo)
    required_key(settings)
    engine = make_engine(settings)
    resources = engine.resources
    for loaded in resources.rankers.both():
        count = len(loaded.plan.features)
        yield Note(True, f"ranker {loaded.digest}: {count} features, all from {loaded.service}")
    for predictor in resources.rankers.priors.plan.predictors:
        check_prior(settings.repo, predictor)
        yield Note(True, f"priors of {predictor}: table, matrix and catalog belong together")
    kind = resources.rankers.priors.predictor.kind
    slow = Note(None, "LightGBM scores: trees are not compiled", "pip install 'advprior[serve]'")
    yield Note(True, "trees are compiled, equal to LightGBM within 1e-6") if kind == "lleaves" else slow
    if settings.towers is not None:
        about = resources.source.about()
        yield Note(True, f"towers fit: {about['ads_known']:.0%} of the ads are those that they were fitted on")
        yield from _retrieval(resources, about)
    try:
        resources.reader.ping()
    except Exception as error:
        yield Note(False, f"the online store does not answer: {error!r}", "start it, or fix feature_store.yaml")
        return
    yield Note(True, "the online store answers")
    # not materialize-incremental: it leaves out profiles older than a year and rows that were published anew
    refresh = f'feast -c {settings.repo} materialize 1970-01-01T00:00:00 "$(date -u +%Y-%m-%dT%H:%M:%S)"'
    resources.refresh_ads()
    now_us = engine.clock.now_us()
    moved = _clock(engine, settings)
    if moved is not None:
        note, now_us = moved
        yield note
        resources.catalogs.refresh(now_us)  # whose priors are current depends on the time
    yield _ads(engine, settings.repo, refresh, now_us)
    yield from _users(engine, settings.repo, refresh, now_us)


def _clock(engine: Engine, settings: ServeSettings) -> tuple[Note, int] | None:
    """Whether what is online is of another time than the clock's; if so, the time that it could be served at.

    Materializing again changes nothing then: the newest rows are there, but the service's clock is years later, or
    before them. The checks that follow look at what is online as of the time that is proposed.
    """
    resources = engine.resources
    table, views, now_us = resources.table, resources.reader.views, engine.clock.now_us()
    newest = {name: int(at.max()) for name, at in table.available_us.items() if len(at) and at.max() >= 0}
    states = {in_time(at, views[name], now_us) for name, at in newest.items()}
    if not newest or len(states) != 1 or states == {None}:
        return None
    last = max(newest.values())
    at_us = last + _MINUTE_US - last % _MINUTE_US  # the next whole minute
    far = abs(now_us - last) / DAY_US
    begin = datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    clock = "this machine's" if settings.clock_start is None else "set by --clock-start"
    when = f"{far:,.1f} days {'before' if states == {'stale'} else 'after'} the service's clock ({clock})"
    text = f"the newest rows online are of {begin[:10]}, {when}: all of them are {states.pop()}"
    fix = (
        f"to serve data of another time, set the clock: --clock-start {begin} for rank check and rank serve"
        f" (advprior refresh: --now); for live data, bring newer events and refresh"
    )
    return Note(False, text, fix, of_another_time=True), at_us


def _ads(engine: Engine, repo: Path, refresh: str, now_us: int) -> Note:
    """Whether the ads' rows are online and in time."""
    resources = engine.resources
    table = resources.table
    late = table.late_views(resources.reader.views, now_us)
    stored = {name: int((at >= 0).sum()) for name, at in table.available_us.items()}
    if not all(stored.values()):
        lacking = ", ".join(name for name, count in stored.items() if not count)
        return Note(False, f"ads: no row of {lacking} is online", refresh)
    if late:
        return Note(
            False,
            f"ads: some rows of {', '.join(late)} are out of their view's time to live",
            f"{publish_command(USER_HISTORY_VIEW, repo)}, then {refresh}",
        )
    fewest = min(stored.values(), default=len(table.ids))
    return Note(True, f"ads: {fewest} of {len(table.ids)} have a row in time")


def _users(engine: Engine, repo: Path, refresh: str, now_us: int) -> Iterator[Note]:
    """What the store holds of a sample of users.

    Parameters
    ----------
    repo : Path
        Feature repository, where the users' histories are published.
    refresh : str
        Command that materializes what is missing.
    now_us : int
        As of when.
    """
    import pandas as pd

    reader, catalogs = engine.resources.reader, engine.resources.catalogs
    published = view_folder(repo, USER_HISTORY_VIEW) / TABLE_FILE
    users = pd.read_parquet(published, columns=[USER_ID])[USER_ID].drop_duplicates()
    sample = users.sample(min(_SAMPLE, len(users)), random_state=0)
    reasons: Counter[str] = Counter()
    ages = []
    for user in sample:
        rows = reader.read_user(user)
        history: Row = rows.get(USER_HISTORY_VIEW)
        if not isinstance(history, ViewRow) or history_catalog(history, catalogs) is None:
            reasons["history_missing"] += 1
        for view in reader.prior_views():
            prior = decode_prior(rows.get(view), reader.views[view], catalogs, now_us)
            if isinstance(prior, Prior):
                ages.append(prior.age_days(now_us))
            else:
                reasons[prior] += 1
    for reason, count in sorted(reasons.items()):
        fix = _FIXES.get(reason, "").format(features=publish_command(USER_HISTORY_VIEW, repo), repo=repo) + refresh
        yield Note(False if count == len(sample) else None, f"{reason}: {count} of {len(sample)} users", fix)
    if ages:
        yield Note(True, f"priors of {len(ages)} of {len(sample)} users, {min(ages):.1f} to {max(ages):.1f} days old")


def _retrieval(resources: Resources, about: dict[str, Any]) -> Iterator[Note]:
    """How candidates will be retrieved."""
    count, limit = len(resources.table.ids), resources.default_candidates
    if about["search"] == "index":
        yield Note(True, f"candidates: an index over {count:,} ads, recall {about['recall']:.3f} of exact")
    elif count > resources.exact_up_to:
        yield Note(None, f"candidates: {count:,} ads searched one by one", "pip install 'advprior[retrieval]'")
    if "quota" not in about:
        yield Note(None, "candidates: towers alone, no slots for predicted advertisers", "--candidates CANDIDATES")
    elif resources.quota is not None:
        text = f"candidates: {limit} a request, {about['quota']:.0%} for advertisers predicted by {about['predictor']}"
        fits = limit == resources.quota.k
        yield Note(True if fits else None, text, "" if fits else f"the quota was chosen for {resources.quota.k}")
