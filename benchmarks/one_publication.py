"""Was an answer made of one publication? Found out from outside: each is worked out again from the published files.

An answer names the publication, snapshot and catalog of its prior, and the exposure log the moment that it was ranked
for. From that publication's files alone come the vector, the order of its advertisers and their mean; with the rows of
the other views as they were seen in the store, the ranker must give each slot the very score of the answer. A vector of
one publication with the catalog, snapshot or mean of another gives other scores, and is *mixed*.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import (
    EVENT_TIMESTAMP,
    PRIOR_ROW,
    PRIOR_VIEW_PREFIX,
    SNAPSHOT,
    TABLE_FILE,
    USER_HISTORY_VIEW,
    USER_ID,
)
from advprior.store.times import micros, moment_us
from ranking.frame.gather import PriorFiles, mean_probability
from ranking.service.ads import AdTable, read_ads
from ranking.service.engine import Engine
from ranking.service.histories import history_catalog
from ranking.service.matrix import Candidates, UserInputs, matrix
from ranking.service.priors import Prior
from ranking.service.rows import Matrix, Row, ViewRow

Verdict = Literal["whole", "degraded", "mixed"]
#: Scores differ by rounding only when everything they are made of is the same.
SAME = 1e-9


@dataclass(frozen=True)
class _Publication:
    """One published folder, read once: it may be gone by the time that it is asked."""

    version: str
    advertisers: list[str]
    log_probs: Matrix
    rows: dict[int, ViewRow]
    row_of: dict[tuple[str, int], int]
    means: dict[int, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class _Seen:
    """The rows of all views but the priors', as they stood in the store at a moment."""

    users: dict[str, dict[str, Row]]
    ads: AdTable


class Witness:
    """Judges answers of a service.

    Parameters
    ----------
    engine : Engine
        On the service's repository and rankers; it lends its plans, scorers and reader, and ranks nothing.
    view : str
        The priors' view.
    """

    def __init__(self, engine: Engine, view: str) -> None:
        self._engine, self._view = engine, view
        self._published: dict[str, _Publication] = {}
        self._seen: list[_Seen] = []
        self._last = (0, 0)

    def add(self, folder: Path) -> None:
        """Take in a publication, before it can be pruned."""
        from feast.protos.feast.types.Value_pb2 import Value  # once the service has imported Feast its cheaper way

        folder = folder.resolve()
        scalars = list(self._engine.resources.reader.views[self._view].columns)
        table = pd.read_parquet(folder / TABLE_FILE, columns=[USER_ID, PRIOR_ROW, SNAPSHOT, EVENT_TIMESTAMP, *scalars])
        moments, rows, files = micros(table[SNAPSHOT]), table[PRIOR_ROW].to_numpy(np.int64), PriorFiles.open(folder)
        snapshots, means = mean_probability(files, rows, moments)
        log_probs = np.stack([files.row(i) for i in range(len(files.log_probs))])
        row_of = dict(zip(zip(table[USER_ID].tolist(), moments.tolist(), strict=True), rows.tolist(), strict=True))
        available = micros(table[EVENT_TIMESTAMP])
        own = {
            int(row): ViewRow(int(at), {name: Value(float_val=float(v)) for name, v in zip(scalars, of, strict=True)})
            for row, at, of in zip(rows, available, table[scalars].to_numpy(), strict=True)
        }
        self._published[folder.name.rpartition("-")[2]] = _Publication(
            files.version, files.advertisers, log_probs, own, row_of, dict(zip(snapshots.tolist(), means, strict=True))
        )

    def add_kept(self, link: Path) -> None:
        """Take in all that is kept behind a view's link: of two that say the very same, an answer may name either."""
        for folder in sorted(link.parent.glob(f".versions/{link.name}-*")):
            self.add(folder)

    def look(self, users: list[str]) -> None:
        """Take in what the other views hold now."""
        engine, reader, catalogs = self._engine, self._engine.resources.reader, self._engine.resources.catalogs
        catalogs.refresh(engine.clock.now_us())
        assert catalogs.newest is not None
        others = {
            user: {n: row for n, row in reader.read_user(user).items() if not n.startswith(PRIOR_VIEW_PREFIX)}
            for user in users
        }
        self._seen.append(_Seen(others, read_ads(reader, catalogs.newest, engine.clock.now_us())))

    def judge(self, answer: dict[str, Any], moment: str) -> Verdict:
        """What an answer is made of.

        Parameters
        ----------
        moment : str
            ISO 8601, of its exposure.
        """
        used = answer["prior"]
        if used is None:
            return "degraded"
        known = self._published.get(used["publication"])
        snapshot = moment_us(datetime.fromisoformat(used["snapshot"]))
        key = (answer["user_id"], snapshot)
        if known is None or known.version != used["catalog_version"] or key not in known.row_of:
            return "mixed"
        wanted = np.array([slot["score"] for slot in answer["slots"]])
        now_us = moment_us(datetime.fromisoformat(moment))
        return "whole" if self._explains(known, key, answer, wanted, now_us) else "mixed"

    def would_notice(self, answer: dict[str, Any], moment: str) -> bool:
        """Whether the answer's scores would be others with the same user's rows of any other publication.

        A publication that says the very same of the user is no other: nothing of it could be mixed in.
        """
        used = answer["prior"]
        wanted = np.array([slot["score"] for slot in answer["slots"]])
        now_us = moment_us(datetime.fromisoformat(moment))
        others = [
            (known, key)
            for name, known in self._published.items()
            for key in known.row_of
            if key[0] == answer["user_id"] and name != used["publication"] and not self._same(used, known, key)
        ]
        return not any(self._explains(known, key, answer, wanted, now_us) for known, key in others)

    def _same(self, used: dict[str, Any], other: _Publication, key: tuple[str, int]) -> bool:
        """Whether another publication's row, its mean and its catalog are those of the answer's own."""
        mine = self._published.get(used["publication"])
        if mine is None or key[1] != moment_us(datetime.fromisoformat(used["snapshot"])) or key not in mine.row_of:
            return False
        return (
            mine.version == other.version
            and mine.advertisers == other.advertisers
            and np.array_equal(mine.log_probs[mine.row_of[key]], other.log_probs[other.row_of[key]])
            and np.array_equal(mine.means[key[1]], other.means[key[1]])
        )

    def _explains(
        self,
        known: _Publication,
        key: tuple[str, int],
        answer: dict[str, Any],
        wanted: npt.NDArray[np.float64],
        now_us: int,
    ) -> bool:
        """Whether a published row gives these scores, with one state of the user's other views and one of each ad."""
        pointer, snapshot = known.row_of[key], key[1]
        row, means = known.log_probs[pointer], known.means[snapshot]
        prior = Prior(self._view, row, known.version, snapshot, means, known.advertisers)
        for at_user in self._nearest(self._last[0]):
            of_user = self._seen[at_user].users[answer["user_id"]] | {self._view: known.rows[pointer]}
            missing = np.ones(len(wanted), dtype=bool)
            for at_ads in self._nearest(self._last[1]):
                scores = self._scores(prior, answer, of_user, self._seen[at_ads].ads, now_us)
                missing &= np.abs(scores - wanted) > SAME
                if not missing.any():
                    self._last = at_user, at_ads
                    return True
        return False

    def _nearest(self, to: int) -> list[int]:
        """States, those next to the last answer's first: answers come in the order of time."""
        return sorted(range(len(self._seen)), key=lambda i: abs(i - to))

    def _scores(
        self, prior: Prior, answer: dict[str, Any], rows: dict[str, Row], table: AdTable, now_us: int
    ) -> npt.NDArray[np.float64]:
        engine = self._engine
        loaded = engine.resources.rankers.priors
        history = rows.get(USER_HISTORY_VIEW)
        catalog = history_catalog(history, engine.resources.catalogs)
        of_user = UserInputs(
            rows,
            (history, catalog) if isinstance(history, ViewRow) and catalog is not None else None,
            {prior.predictor: prior},
        )
        ads: Int = table.rows([slot["ad_id"] for slot in answer["slots"]])
        return loaded.predictor.scores(matrix(loaded.plan, Candidates(ads), of_user, table, now_us))
