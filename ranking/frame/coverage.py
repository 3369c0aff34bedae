"""Why impressions have no prior: whose publication begins late, who was never scored, what is too old to be used.

A lift over rows of which many have no prior is not that of the prior. What fixes it depends on the cause, so the cause
is counted, not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advprior.store.arrays import Bool
from advprior.store.contract import EVENT_TIMESTAMP, TABLE_FILE, USER_ID, prior_view
from advprior.store.tables import read_parquet
from advprior.store.times import as_datetimes, micros
from ranking.frame.checks import MIN_COVERAGE
from ranking.frame.preflight import publish_command
from ranking.frame.views import view_folder


@dataclass(frozen=True)
class CoverageGap:
    """Too few rows have a prior.

    Parameters
    ----------
    share : float
        Of the rows that have one.
    cause : str
        What most of the others lack.
    fix : str
        What to do about that.
    of : str
        What the rows are.
    """

    share: float
    cause: str
    fix: str
    of: str = "impressions"

    def to_json(self) -> dict[str, Any]:
        """JSON form, for a manifest."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Uses:
    """Who needed a prior, and when: impressions of a frame, or requests for candidates.

    Parameters
    ----------
    user : sequence or object array of str [rows]
    moment : datetime64[us] array [rows]
    joined : bool array [rows]
        A row of the published priors was joined.
    listed : bool array [rows], optional
        The catalog lists what was shown; all without.
    others : int
        Rows beside these, all of which have a prior: of a long frame only those without one are kept.
    of : str
        What the rows are.
    """

    user: Sequence[str] | NDArray[Any]
    moment: NDArray[Any]
    joined: Bool
    listed: Bool | None = None
    others: int = 0
    of: str = "impressions"

    @property
    def covered(self) -> Bool:
        """Rows that have a prior."""
        return self.joined if self.listed is None else self.joined & self.listed


def coverage_gap(repo: Path, predictor: str, uses: Uses) -> CoverageGap | None:
    """What most rows without a prior lack; None where `MIN_COVERAGE` of the rows have one.

    Parameters
    ----------
    repo : Path
        Feature repository that the priors are published in.
    predictor : str
    uses : Uses
    """
    import pandas as pd

    covered = uses.covered
    total = len(covered) + uses.others
    share = (int(covered.sum()) + uses.others) / total if total else 0.0
    if share >= MIN_COVERAGE:
        return None
    view = prior_view(predictor)
    table = read_parquet(view_folder(repo, view) / TABLE_FILE, columns=[USER_ID, EVENT_TIMESTAMP])
    publish = publish_command(view, repo)
    if not len(table) or not len(covered):
        return CoverageGap(share, "no row of it is published", publish, uses.of)
    available = pd.Series(micros(table[EVENT_TIMESTAMP]), index=table[USER_ID].astype(str).to_numpy())
    first, of_user = int(available.min()), available.groupby(level=0).min()
    codes, users = pd.factorize(np.asarray(uses.user, dtype=object))
    own = of_user.reindex(pd.Index([str(user) for user in users])).to_numpy(np.float64)[codes]
    moment = uses.moment.astype("datetime64[us]").astype(np.int64)
    absent = ~uses.joined
    begins = absent & (moment < first)
    never = absent & ~begins & np.isnan(own)
    late = absent & ~begins & (own > moment)
    expired = absent & ~begins & ~never & ~late
    begin, oldest = (str(as_datetimes(np.array([at]))[0])[:16] for at in (first, int(moment.min())))
    causes = [
        (
            int(begins.sum()),
            f"its published rows begin at {begin}, the {uses.of} at {oldest}; a refresh, which publishes the newest "
            "snapshots only, has replaced the full priors",
            f"publish the full priors again: {publish}",
        ),
        (
            int(never.sum()),
            f"{len(np.unique(codes[never])):,} users have no published row at all",
            f"score every user (advprior score MODEL --tables TABLES), then {publish}",
        ),
        (
            int(late.sum()),
            "these users existed, but their first published row is later: other tables were scored than are used now",
            f"score these tables (advprior score MODEL --tables TABLES), then {publish}",
        ),
        (
            int(expired.sum()),
            "the newest row of these users is older than the view's TTL, or not yet available",
            f"score every snapshot (advprior score without --last), then {publish}",
        ),
        (
            int((uses.joined & ~covered).sum()),
            "its catalog lacks the advertisers of these impressions",
            "fit the predictor on the tables that the frame is built of (RNK012)",
        ),
    ]
    _, cause, fix = max(causes, key=lambda one: one[0])
    return CoverageGap(share, cause, fix, uses.of)
