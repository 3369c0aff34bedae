"""What an exposure log says of one experiment, as arrays: some twenty bytes an exposure, however long it ran."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import USER_ID
from advprior.store.times import as_datetimes, moment_us


class ExposureTable:
    """An experiment's exposures up to a moment, in the order of the log.

    Parameters
    ----------
    exposures : records of the exposure log
        Those of other experiments are passed over.
    experiment : str
    until : datetime, optional
        Exposures from then on are passed over.

    Attributes
    ----------
    users, arms, publications : dict of str to int
        Numbers in order of appearance; of a publication see `publication`.
    """

    def __init__(self, exposures: Iterable[Mapping[str, Any]], experiment: str, until: datetime | None) -> None:
        self.users: dict[str, int] = {}
        self.arms: dict[str, int] = {}
        self.publications: dict[str, int] = {}
        self._user, self._arm, self._publication = array("i"), array("i"), array("i")
        self._time, self._degraded = array("q"), array("b")
        end = None if until is None else moment_us(until)
        for exposure in exposures:
            if exposure["experiment"] == experiment:
                time = _micros(exposure["time"])
                if end is None or time < end:
                    self._add(exposure, time)

    def __len__(self) -> int:
        return len(self._time)

    def _add(self, exposure: Mapping[str, Any], time: int) -> None:
        self._user.append(self.users.setdefault(exposure["user_id"], len(self.users)))
        self._arm.append(self.arms.setdefault(exposure["arm"], len(self.arms)))
        self._publication.append(self.publications.setdefault(publication(exposure), len(self.publications)))
        self._time.append(time)
        self._degraded.append(bool(exposure["degraded"]))

    def frame(self) -> pd.DataFrame:
        """A row an exposure: user_id, arm and publication as numbers, time and degraded."""
        return pd.DataFrame(
            {
                USER_ID: np.asarray(self._user),
                "arm": np.asarray(self._arm),
                "time": pd.DatetimeIndex(as_datetimes(np.asarray(self._time, np.int64))).tz_localize("UTC"),
                "degraded": np.asarray(self._degraded, np.bool_),
                "publication": np.asarray(self._publication),
            }
        )


def publication(exposure: Mapping[str, Any]) -> str:
    """Which publication's prior an exposure was ranked with."""
    used = exposure.get("prior", "unrecorded")
    return used if isinstance(used, str) else "none" if used is None else f"{used['predictor']} {used['publication']}"


def _micros(text: str) -> int:
    """Microseconds since 1970; UTC where it names no zone."""
    moment = datetime.fromisoformat(text)
    return moment_us(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
