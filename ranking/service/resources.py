"""What an engine ranks with - rankers, ads, catalogs, a source of candidates - and how each is renewed under traffic.

A request takes each part once, at its start. A part is swapped whole, and only when its successor is ready: what cannot
be read or does not fit is logged, counted and left out, and the old part stays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advprior.store.contract import USER_HISTORY_VIEW, prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest
from ranking.candidates.nearest import EXACT_UP_TO
from ranking.experiment.assignment import EVERYBODY, Experiment
from ranking.frame.preflight import publish_command
from ranking.service.ads import AdTable, read_ads, refreshed
from ranking.service.candidates import CandidateSource, MostShown
from ranking.service.catalogs import Catalogs, HistoryCatalog
from ranking.service.clock import Clock
from ranking.service.loading import RankerFolder, Rankers, features_by_service, make_rankers
from ranking.service.matrix import history_ids
from ranking.service.memory import release_freed
from ranking.service.quota import read_quota
from ranking.service.reader import OnlineReader
from ranking.service.towers import TowerSource, load_towers

log = logging.getLogger("advprior.service")

#: How often the links to what is published are looked at.
_LOOK_S = 1.0
#: Rest between batches of ads, so that reading them does not hold up requests.
_PAUSE_S = 0.005
#: Ads are read whole at least once in so many seconds, whatever the times of their rows say.
_WHOLE_S = 3600.0
#: Candidates of a request that names none.
_CANDIDATES = 500


@dataclass(frozen=True)
class EngineOptions:
    """How an engine ranks.

    Attributes
    ----------
    repo : Path
        Feature repository, published, applied and materialized.
    ranker, fallback : Path
        Ranker folders, of a service with priors and of one without.
    experiment : Experiment
        Who is ranked with priors. Default: everybody.
    clock : Clock, optional
        Default: the system's.
    cache : Path, optional
        Of compiled trees; without one they are not compiled.
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
    """

    repo: Path
    ranker: Path
    fallback: Path
    experiment: Experiment = EVERYBODY
    clock: Clock | None = None
    cache: Path | None = None
    max_prior_age_days: float | None = None
    refresh_s: float = 60.0
    towers: Path | None = None
    quota: Path | None = None
    exact_up_to: int = EXACT_UP_TO
    default_candidates: int | None = None

    @property
    def folders(self) -> tuple[Path, Path]:
        """Of both rankers, the one with priors first."""
        return Path(self.ranker), Path(self.fallback)


class Resources:
    """What is loaded, and its renewal.

    Attributes
    ----------
    reader : OnlineReader
    catalogs : Catalogs
    rankers : Rankers
    table : AdTable
        The ads and what the store says of them.
    source : CandidateSource
        Chooses for a request that names no candidates.
    quota : Quota, optional
        Of slots for ads of predicted advertisers.
    default_candidates, exact_up_to : int
    reloads : dict of str to int
        Rankers swapped in (``done``) and refused.

    Raises
    ------
    AdvpriorError
        ``SRV003`` when a service lacks what its ranker was trained on, ``SRV004`` when the rankers are the wrong way
        round, ``SRV010`` to ``SRV012`` when the towers do not fit, and whatever reading them raises.
    """

    def __init__(self, options: EngineOptions, clock: Clock) -> None:
        self._options, self._clock = options, clock
        folders = [RankerFolder.read(folder) for folder in options.folders]
        self.reader = OnlineReader(options.repo, features_by_service(folders), tokens=options.towers is not None)
        self.rankers = make_rankers(folders, self.reader, options.cache)
        self.catalogs = Catalogs(options.repo, self.reader.prior_views())
        newest = self._first_catalog()
        self.quota = None
        if options.towers is not None and options.quota is not None:
            self.quota = read_quota(options.quota, options.towers, self.rankers.priors.plan.predictors)
        self.default_candidates = options.default_candidates or (_CANDIDATES if self.quota is None else self.quota.k)
        self.exact_up_to = options.exact_up_to
        self.source = self._candidate_source()
        self.table = AdTable.unread(self.reader, newest)
        self.source.prepare(self.table)
        self.reloads: dict[str, int] = {"done": 0, "refused": 0}
        self._refused: tuple[str, ...] | None = None
        self._ads_of: list[str] = []
        self._ads_read = 0.0

    @property
    def ranker_refused(self) -> bool:
        """Whether what lies in the rankers' place now is refused."""
        return self._refused is not None

    def _first_catalog(self) -> HistoryCatalog:
        self.catalogs.refresh(self._clock.now_us())
        if self.catalogs.newest is None:
            repo = self._options.repo
            raise AdvpriorError(
                "STO003",
                "views are not published",
                where=str(repo),
                actual=f"no {USER_HISTORY_VIEW}",
                fix=f"{publish_command(USER_HISTORY_VIEW, repo)} ; feast -c {repo} apply",
            )
        return self.catalogs.newest

    def _candidate_source(self) -> CandidateSource:
        if self._options.towers is None:
            return MostShown()
        return TowerSource(
            load_towers(self._options.towers),
            self.quota,
            self.reader,
            self.catalogs,
            limit=self.default_candidates,
            exact_up_to=self.exact_up_to,
        )

    def refresh(self) -> None:
        """Take in what was published, materialized or trained since. Failures keep what is loaded."""
        self.refresh_catalogs()
        self.refresh_ads(pause_s=_PAUSE_S)
        self.refresh_rankers()

    def state(self) -> tuple[Any, ...]:
        """What changes where something was published, read whole or trained: by it one sees that there was work."""
        return self.catalogs.links, self._ads_read, *self.reloads.values()

    def refresh_catalogs(self) -> None:
        """Take in what was published since."""
        try:
            self.catalogs.refresh(self._clock.now_us())
            self._work_ahead(self.table)
        except Exception:
            log.exception("catalogs cannot be refreshed, the old ones stay")

    def refresh_ads(self, *, pause_s: float = 0.0) -> None:
        """Read the ads whose rows changed; all of them at first, after a publication, and now and then.

        Rows of a publication may have other values at the same times: a rollback writes such rows.

        Parameters
        ----------
        pause_s : float
            Rest between batches.
        """
        catalog = self.catalogs.newest
        if catalog is None:
            return
        begin = time.monotonic()
        publications = self.catalogs.publications(self.reader.ad_views)
        whole = self.table.read_us < 0 or publications != self._ads_of or begin - self._ads_read >= _WHOLE_S
        try:
            if whole:
                table = read_ads(self.reader, catalog, self._clock.now_us(), pause_s=pause_s)
            else:
                table = refreshed(self.table, self.reader, catalog, self._clock.now_us(), pause_s=pause_s)
        except Exception as error:
            log.warning("ads cannot be read, the old ones stay", extra={"error": repr(error)})
            return
        try:
            self._work_ahead(table)
            self.source.prepare(table)
        except Exception:
            log.exception("candidates cannot be prepared, the old ads stay")
            return
        self.table = table
        if whole:
            self._ads_of, self._ads_read = publications, begin

    def _work_ahead(self, table: AdTable) -> None:
        """What follows from the ads alone is worked out here, not by the first request that needs it."""
        histories, priors = list(self.catalogs.histories.values()), self.catalogs.priors
        table.keep_catalogs(self.catalogs.versions())
        table.keep_made(self._owners())
        for loaded in self.rankers.both():
            loaded.plan.ads(table)
            for lists, *_ in loaded.plan.history:
                for history in histories:
                    history_ids(table, history, lists)
            for predictor in loaded.plan.predictors:
                for prior in list(priors.get(prior_view(predictor), {}).values()):
                    table.advertiser_index(prior.version, prior.advertisers)

    def _owners(self) -> list[Any]:
        """For whom something is worked out from the ads."""
        return [self.source, *(loaded.plan for loaded in self.rankers.both())]

    def refresh_rankers(self) -> None:
        """Swap rankers that were trained anew; what cannot be read or does not fit is refused once, and counted."""
        digests: tuple[str, ...]
        try:
            digests = tuple(manifest_digest(folder) for folder in self._options.folders)
        except (AdvpriorError, OSError) as error:
            digests = (repr(error), "")
        if digests == self.rankers.digests:
            self._refused = None  # the one that was refused has gone
            return
        if digests == self._refused:
            return
        try:
            folders = [RankerFolder.read(folder) for folder in self._options.folders]
            reader, rankers = self._ready(folders)
            if rankers.context_names != self.rankers.context_names:
                raise ValueError("the new ranker asks for other context features: start the service anew")
            table = self.table if reader is self.reader else self._read_by(reader)
            for loaded in rankers.both():
                loaded.plan.ads(table)
            # a new reader reads all that the old one did: a request in between finds what it looks for
            self.reader, self.table = reader, table
            self.rankers = rankers
            table.keep_made(self._owners())
            self.reloads["done"] += 1
            self._refused = None
            log.info("rankers swapped", extra={"rankers": list(rankers.digests)})
        except Exception as error:
            self._refused = digests
            self.reloads["refused"] += 1
            log.warning("a new ranker is refused, the old one stays", extra={"error": str(error)})

    def _ready(self, folders: Sequence[RankerFolder]) -> tuple[OnlineReader, Rankers]:
        """New rankers and what reads for them: a reader of today's views, where they need one that was added since."""
        try:
            return self.reader, make_rankers(folders, self.reader, self._options.cache)
        except AdvpriorError as error:
            if error.code != "SRV003":
                raise
        reader = OnlineReader(self._options.repo, features_by_service(folders), tokens=self._options.towers is not None)
        if set(reader.prior_views()) != set(self.reader.prior_views()):
            raise ValueError("the new ranker reads other priors: start the service anew")
        return reader, make_rankers(folders, reader, self._options.cache)

    def _read_by(self, reader: OnlineReader) -> AdTable:
        """The ads with what a new reader reads of them."""
        assert self.catalogs.newest is not None
        table = read_ads(reader, self.catalogs.newest, self._clock.now_us(), pause_s=_PAUSE_S)
        for loaded in self.rankers.both():
            loaded.plan.ads(table)
        self.source.prepare(table)
        return table


class Refresher:
    """Renews resources in the background, from `start` to `stop`.

    Parameters
    ----------
    resources : Resources
    every_s : float
        Between two full refreshes; catalogs are taken in as soon as they are published, and ads that could not be read
        at the start as soon as they can be.
    """

    def __init__(self, resources: Resources, every_s: float) -> None:
        self._resources, self._every_s = resources, every_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="advprior-refresh", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, once what is under way is done."""
        self._stop.set()
        self._resources.catalogs.wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        catalogs, seen = self._resources.catalogs, self._resources.state()
        due = time.monotonic() + self._every_s
        while not self._stop.is_set():
            # a row of a catalog that is not read yet is a reason to look at once, but not in a tight loop
            wanted = catalogs.wanted.wait(min(_LOOK_S, max(0.0, due - time.monotonic())))
            if self._stop.is_set():
                return
            if time.monotonic() >= due:
                self._resources.refresh()
                due = time.monotonic() + self._every_s
            elif wanted or catalogs.moved():  # read before the first row of it can be online
                self._resources.refresh_catalogs()
            elif self._resources.table.read_us < 0:  # one slow read at the start is no reason for a minute without ads
                self._resources.refresh_ads(pause_s=_PAUSE_S)
            else:
                continue
            if (now := self._resources.state()) != seen:
                seen = now
                release_freed()
            self._stop.wait(min(1.0, self._every_s))
