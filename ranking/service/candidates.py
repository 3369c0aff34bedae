"""Which ads are ranked when a request names none. The seam for retrieval: anything with `choose` will do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Int
from ranking.service.ads import AdTable
from ranking.service.priors import Prior
from ranking.service.rows import Row

#: Where a candidate came from, in the order of `Choice.origin`.
GIVEN, MOST_SHOWN, TOWERS, PREDICTED = ORIGINS = ("given", "most_shown", "towers", "predicted_advertiser")


@dataclass(frozen=True)
class Choice:
    """Candidates of one request.

    Attributes
    ----------
    ads : int64 [candidates]
        Rows of the ads' table.
    origin : int8 [candidates]
        Place in `ORIGINS`.
    degraded : list of str
        Why they are less than they could be.
    """

    ads: Int
    origin: npt.NDArray[np.int8]
    degraded: list[str] = field(default_factory=list)

    @classmethod
    def all_from(cls, ads: Int, origin: str) -> Choice:
        """Candidates of one origin."""
        return cls(ads, np.full(len(ads), ORIGINS.index(origin), dtype=np.int8))


class CandidateSource(Protocol):
    """Chooses candidates for one user."""

    def prepare(self, table: AdTable) -> None:
        """Work out what does not change from request to request. Called when ads are read, never in a request."""
        ...

    def choose(self, table: AdTable, rows: Mapping[str, Row], priors: Mapping[str, Prior], limit: int) -> Choice:
        """At most ``limit`` rows of the ads' table.

        Parameters
        ----------
        rows : the user's rows by view; None for one that is missing or not in time
        priors : by predictor; empty where there is none that can be used, or the arm has none
        """
        ...

    def about(self) -> dict[str, Any]:
        """What chooses, for people."""
        ...


class MostShown:
    """Every ad; above the limit, those shown most often in the last four weeks."""

    def prepare(self, table: AdTable) -> None:
        self._order(table)

    def choose(self, table: AdTable, rows: Mapping[str, Row], priors: Mapping[str, Prior], limit: int) -> Choice:
        return Choice.all_from(self._order(table)[:limit], MOST_SHOWN)

    def about(self) -> dict[str, Any]:
        return {"source": MOST_SHOWN}

    def _order(self, table: AdTable) -> Int:
        def make() -> Int:
            rows = np.arange(len(table.ids))
            shown = table.values.get("ad_impressions_4w")
            if shown is not None:
                counts = np.nan_to_num(shown[:-1].astype(np.float64), nan=-1.0)
                rows = np.argsort(-counts, kind="stable")
            return rows.astype(np.int64)

        order: Int = table.cached(self, make)
        return order
