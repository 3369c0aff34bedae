"""Predicted advertisers of each request, as the store knew them then: Feast's point-in-time join, then one gather."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from advprior.store.arrays import Int
from advprior.store.contract import (
    ADVERTISER_ID,
    CATEGORY,
    EVENT_TIMESTAMP,
    IMPRESSION_ID,
    MODEL_CUTOFF,
    PRIOR_ROW,
    SNAPSHOT,
    USER_ID,
    prior_view,
)
from ranking.frame import checks
from ranking.frame.gather import PriorFiles, gather_priors, places
from ranking.frame.join import join_features, open_store
from ranking.frame.join import pointer as as_pointer
from ranking.frame.join import times as as_times
from ranking.frame.preflight import check_prior, check_published, check_store
from ranking.frame.views import view_folder

if TYPE_CHECKING:
    import pandas as pd


def prior_rows(repo: Path, predictor: str, users: Sequence[str], time: NDArray[Any]) -> Int:
    """Row of the published priors that each user had at each time, −1 for none.

    Parameters
    ----------
    users : sequence of str [R]
    time : datetime64[us] [R]

    Raises
    ------
    AdvpriorError
        ``STO00x`` when the priors are not published and applied, ``RNK001`` when their model has seen later labels,
        ``RNK002`` when one is newer than its request, ``RNK005`` when the join loses rows.
    """
    import pandas as pd

    view = prior_view(predictor)
    check_store(repo)
    check_published(repo, [view])
    check_prior(repo, predictor)
    at = pd.DatetimeIndex(time.astype("datetime64[us]")).tz_localize("UTC")
    entities = pd.DataFrame({IMPRESSION_ID: np.arange(len(users)), USER_ID: list(users), EVENT_TIMESTAMP: at})
    names = (PRIOR_ROW, SNAPSHOT, MODEL_CUTOFF)
    joined = join_features(open_store(repo), [f"{view}:{name}" for name in names], entities)
    rows = as_pointer(joined.pop(f"{view}__{PRIOR_ROW}"))
    checks.enforce(
        [
            checks.check_model_cutoff(predictor, as_times(joined.pop(f"{view}__{MODEL_CUTOFF}")), time),
            checks.check_not_newer(view, as_times(joined.pop(f"{view}__{SNAPSHOT}")), time),
        ],
        "the candidates",
    )
    return rows


def predicted(repo: Path, predictor: str, rows: Int, ads: pd.DataFrame, top: int) -> NDArray[np.bool_]:
    """Whether each ad is of the ``top`` of each prior: bool [rows, ads]; no prior predicts nothing.

    By the ad's advertiser, or by its advertiser × category where the prior's catalog lists those.

    Parameters
    ----------
    rows : int array
        As `prior_rows` gives them.
    ads : DataFrame
        The ads, as in the canonical table.
    """
    files = PriorFiles.open(view_folder(repo, prior_view(predictor)))
    index = places(files.advertisers, ads[ADVERTISER_ID], ads[CATEGORY])
    _, rank = gather_priors(files, np.repeat(rows, len(index)), np.tile(index, len(rows)))
    mask: NDArray[np.bool_] = (rank <= top).reshape(len(rows), len(index))  # no rank where there is no prior
    return mask
