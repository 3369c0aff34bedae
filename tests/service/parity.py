"""What the service ranks by, held to the frame that its ranker was trained on."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd

from ranking.frame.streams import STREAMS
from ranking.service.slate import Query
from tests.service.live import engine_at
from tests.service.workspaces import SNAPSHOT, FixedClock, Project
from tests.tiny import PLAN


def rows_in_reach(project: Project) -> pd.DataFrame:
    """Rows of the frame for which the newest snapshot in the store is the one that the join takes."""
    frame = project.frame
    low, high = SNAPSHOT + PLAN.lag, SNAPSHOT + PLAN.lag + timedelta(days=7)
    return frame[(frame.timestamp >= low) & (frame.timestamp < high)]


def equal_to_the_frame(project: Project, least: int = 100) -> list[str]:
    """Assert that online and offline are equal, bit by bit, for every impression in the reach of the newest snapshot.

    Returns
    -------
    list of str
        The features that were compared: all of the ranker with priors.
    """
    rows = rows_in_reach(project)
    assert len(rows) > least
    engine = engine_at(project)
    plan = engine.resources.rankers.priors.plan
    names = list(plan.context_kinds())
    features = [f for stream in STREAMS for level in stream.levels for f in stream.features(level)]
    with_history = dict.fromkeys((name for name in features if name in plan.features), 0)
    for (user, moment), slate in rows.groupby(["user_id", "timestamp"], observed=True):
        engine.clock = FixedClock(moment.to_pydatetime())
        contexts = slate[names].to_dict("records")
        ads = slate.ad_id.astype(str).tolist()
        ready = engine.prepare(Query(str(user), candidates=ads, contexts=contexts))
        assert ready.degraded == []
        assert ready.ranker.plan is plan
        expected = plan.ranker.encoder.encode(slate)
        for i, name in enumerate(plan.features):
            np.testing.assert_array_equal(ready.matrix[:, i], expected[:, i], err_msg=f"{name} of {user} at {moment}")
        for name in with_history:
            with_history[name] += int((slate[name] > 0).sum())
        scores = ready.ranker.predictor.scores(ready.matrix)
        np.testing.assert_allclose(scores, plan.ranker.predict(slate), rtol=1e-9)
    assert min(with_history.values()) > 5, with_history  # there was history to get wrong
    return list(plan.features)
