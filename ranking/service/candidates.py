"""Which ads are ranked when a request names none. The seam for retrieval: anything with `choose` will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ranking.counts import Ints
from ranking.service.ads import AdTable
from ranking.service.features import Prior
from ranking.service.reader import Row


class CandidateSource(Protocol):
    """Chooses candidates for one user."""

    def choose(self, table: AdTable, rows: Mapping[str, Row], priors: Mapping[str, Prior], limit: int) -> Ints:
        """Rows of the ads' table, at most ``limit``.

        Parameters
        ----------
        rows : the user's rows by view
        priors : by predictor; empty where there is none that can be used, or the arm has none
        """
        ...


class MostShown:
    """Every ad there is; above the limit, those shown most often in the last four weeks."""

    def __init__(self) -> None:
        self._order: tuple[int, Ints] | None = None

    def choose(self, table: AdTable, rows: Mapping[str, Row], priors: Mapping[str, Prior], limit: int) -> Ints:
        if self._order is None or self._order[0] != id(table):
            known = np.arange(len(table.ids))
            shown = table.values.get("ad_impressions_4w")
            if shown is not None:
                counts = np.nan_to_num(shown[:-1].astype(np.float64), nan=-1.0)
                known = np.argsort(-counts, kind="stable")
            self._order = (id(table), known.astype(np.int64))
        return self._order[1][:limit]
