"""A publication may share arrays that hold more rows than it has: its pointers alone say which are its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.contract import LLM, MATRIX_FILE, TABLE_FILE, prior_view
from ranking.frame.columns import PriorColumns, Shown
from tests.ranking.stores import copy_repo, publish, random_priors
from tests.tiny import PLAN


def test_arrays_may_hold_rows_that_no_pointer_names(tmp_path: Path) -> None:
    users, advertisers = [f"u{i}" for i in range(5)], ["a00", "a01", "a02"]
    files = random_priors(users, advertisers, PLAN.snapshots(), PLAN.lag, PLAN.finetune_end, 4)
    table = files[TABLE_FILE]
    # every other row is somebody else's, and two stand before the first
    places = 2 + 2 * np.arange(len(table))
    shared = np.full((places[-1] + 3, len(advertisers)), np.log(1 / 3), np.float32)
    shared[places] = files[MATRIX_FILE][table.prior_row]
    of = {}
    for name, pointers, matrix in (("own", table.prior_row.to_numpy(), files[MATRIX_FILE]), ("shared", places, shared)):
        repo = copy_repo(tmp_path / name)
        publish(repo, prior_view(LLM), {**files, TABLE_FILE: table.assign(prior_row=pointers), MATRIX_FILE: matrix})
        rows = np.concatenate([[-1], pointers])
        moment = table.event_timestamp.dt.tz_localize(None).to_numpy("datetime64[us]")
        late = np.concatenate([moment[:1], moment + np.timedelta64(1, "h")])
        snapshot = table.snapshot.dt.tz_localize(None).to_numpy("datetime64[us]")
        which = pd.Series(np.resize(advertisers, len(rows)))
        shown = Shown(which, which, late)
        of[name] = PriorColumns.open(repo, LLM).of(rows, np.concatenate([[np.datetime64("NaT")], snapshot]), shown)
    for column, values in of["own"][0].items():
        np.testing.assert_array_equal(of["shared"][0][column], values, err_msg=column)
    assert of["shared"][1].findings() == of["own"][1].findings()
