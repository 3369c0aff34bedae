"""What the generated logs share: their size and seed, a time plan that follows from the weeks, and a clock.

`synthetic` and `clicks` draw different worlds. That a size is checked, and that a second since the start becomes a
time, is the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from advprior.store.contract import TimePlan
from advprior.store.errors import AdvpriorError

if TYPE_CHECKING:
    import pandas as pd

START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Size:
    """How much to draw, and from which seed.

    Parameters
    ----------
    users, advertisers, weeks : int
    seed : int
        Same seed and size, same tables on one machine.
    """

    users: int
    advertisers: int
    weeks: int
    seed: int = 0

    def counts(self) -> dict[str, int]:
        """Users, advertisers and weeks by name, as the options of the command line call them."""
        return {"users": self.users, "advertisers": self.advertisers, "weeks": self.weeks}

    def check(self, data_set: str, least: Mapping[str, int]) -> None:
        """Refuse a size in which too little can happen.

        Raises
        ------
        AdvpriorError
            ``DAT042`` for a count below ``least``, ``CFG002`` for a negative seed.
        """
        for option, count in self.counts().items():
            if count < least[option]:
                raise AdvpriorError(
                    "DAT042",
                    f"too few {option}",
                    where=f"--{option}",
                    actual=str(count),
                    expected=f"{least[option]} or more",
                    fix=f"advprior data build {data_set} --out DIR --{option} {least[option]}",
                )
        if self.seed < 0:
            raise AdvpriorError(
                "CFG002", "the seed must not be negative", where="--seed", actual=str(self.seed), expected="0 or more"
            )


def time_plan(weeks: int) -> TimePlan:
    """A third of the weeks fine-tunes, a third trains the ranker, a sixth each validates and tests.

    >>> [(moment - START) // WEEK for moment in (time_plan(30).finetune_end, time_plan(30).end)]
    [10, 30]
    """
    first, second, third, end = (START + k * WEEK for k in (weeks // 3, weeks * 2 // 3, weeks * 5 // 6, weeks))
    return TimePlan(START, first, second, third, end)


def times(seconds: npt.NDArray[np.int64]) -> pd.DatetimeIndex:
    """Seconds since `START` as UTC microseconds."""
    import pandas as pd

    since = np.datetime64(START.replace(tzinfo=None), "us") + seconds.astype("timedelta64[s]")
    return pd.DatetimeIndex(since.astype("datetime64[us]")).tz_localize("UTC")
