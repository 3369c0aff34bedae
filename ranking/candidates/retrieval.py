"""The towers' score of shown ads: what a two-by-two retrieves within each slate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.arrays import Double
from advprior.store.contract import AD_ID, TIMESTAMP, USER_ID
from advprior.store.tables import load_tables, load_time_plan
from advprior.store.times import micros, moment_us
from ranking.candidates.inputs import Pasts, snapshot_of
from ranking.candidates.towers import Towers


def retrieval_scores(tables: Path, towers: Towers, *splits: pd.DataFrame) -> list[Double]:
    """The towers' score of each row's user and ad, the user as of the newest snapshot available at the row's time.

    Parameters
    ----------
    tables : Path
    towers : Towers
    *splits : DataFrame
        Rows with user_id, ad_id and timestamp.

    Returns
    -------
    list of float array [rows]
        One for each split.
    """
    plan, loaded = load_time_plan(tables), load_tables(tables, "ads")
    pasts = Pasts.load(tables, towers.vocabulary)
    vectors, bias = towers.ads(loaded["ads"])
    rows = pd.concat([split[[USER_ID, AD_ID, TIMESTAMP]] for split in splits], ignore_index=True)
    user = pd.Index(pasts.ids).get_indexer(pd.Index(rows[USER_ID].astype(str)))
    ad = pd.Index(loaded["ads"][AD_ID].astype(str)).get_indexer(pd.Index(rows[AD_ID].astype(str)))
    at = snapshot_of(micros(rows[TIMESTAMP]), plan)
    moments = [moment_us(s) for s in plan.feature_snapshots()]
    score = np.empty(len(rows))
    for snapshot in np.unique(at):
        chosen = np.flatnonzero(at == snapshot)
        users, place = np.unique(user[chosen], return_inverse=True)
        of_user = towers.users(pasts.at(moments[snapshot])[users])
        score[chosen] = (of_user[place] * vectors[ad[chosen]]).sum(axis=1) + bias[ad[chosen]]
    return np.split(score, np.cumsum([len(split) for split in splits])[:-1])
