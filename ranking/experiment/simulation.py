"""Users of a given taste, clicking on what the service shows them: does the readout report the lift that they make?

A click depends on the user's taste for the advertiser and on the place in the slate, on nothing else: so the lift of
one arm over another is known exactly, as the expected clicks on the slates that each arm would show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from advprior.store.arrays import Double
from advprior.store.contract import TIMESTAMP, USER_ID

#: A user's slate: advertisers in ranked order, None for an ad outside the catalog.
SlateOf = Callable[[str], Sequence[str | None]]


@dataclass(frozen=True)
class ClickModel:
    """P(click) = scale · taste[user, advertiser] · decay^place.

    Parameters
    ----------
    users, advertisers : lists of ids
    taste : float64 [users, advertisers], in [0, 1]
    scale, decay : float
    """

    users: Sequence[str]
    advertisers: Sequence[str]
    taste: Double
    scale: float = 1.0
    decay: float = 0.8

    def probabilities(self, user: str, slate: Sequence[str | None]) -> Double:
        """Of a click on each ad of a slate."""
        row = self.taste[self.users.index(user)]
        place = {name: i for i, name in enumerate(self.advertisers)}
        liked = np.array([0.0 if name is None else row[place[name]] for name in slate])
        return np.asarray(np.clip(self.scale * liked * self.decay ** np.arange(len(slate)), 0.0, 1.0))

    def expected(self, slate_of: SlateOf) -> float:
        """Expected clicks of one request, over all users."""
        return float(np.mean([self.probabilities(user, slate_of(user)).sum() for user in self.users]))


def click(
    model: ClickModel, slate_of: SlateOf, start: datetime, requests: int, seed: int, every: timedelta
) -> pd.DataFrame:
    """Clicks of all users, each asking ``requests`` times: user_id, timestamp."""
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(requests):
        for user in model.users:
            chance = model.probabilities(user, slate_of(user))
            when = start + at * every + timedelta(seconds=1)  # a click follows its exposure
            rows += [(user, when)] * int((rng.random(len(chance)) < chance).sum())
    clicks = pd.DataFrame(rows, columns=[USER_ID, TIMESTAMP])
    clicks[TIMESTAMP] = pd.to_datetime(clicks[TIMESTAMP], utc=True)
    return clicks
