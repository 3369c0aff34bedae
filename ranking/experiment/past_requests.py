"""A window of past impressions as requests to a service: which, in what order, how fast, and with which context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import AD_ID, CONTEXT_PREFIX, SLATE_ID, TIMESTAMP, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.times import micros
from ranking.experiment.client import SERVE_FIX, TIME_HEADER, Ask, Service

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso(us: int) -> str:
    """A moment, microseconds since 1970, as the service writes it.

    >>> iso(0)
    '1970-01-01T00:00:00+00:00'
    """
    return (_EPOCH + timedelta(microseconds=us)).isoformat()


@dataclass(frozen=True)
class Pace:
    """How fast: requests a second, or so many times as fast as it happened; neither: one after another."""

    rate: float | None = None
    speed: float | None = None
    connections: int = 4
    minutes: float = 30.0

    @property
    def given(self) -> bool:
        """Whether requests have times of their own."""
        return self.rate is not None or self.speed is not None

    def due(self, times: Int) -> list[float]:
        """Seconds after the first at which requests of these moments (microseconds, rising) are sent."""
        if self.rate is not None:
            return [i / self.rate for i in range(len(times))]
        if self.speed is not None:
            return ((times - times[0]) / 1e6 / self.speed).tolist() if len(times) else []
        return [0.0] * len(times)


def window_of(
    impressions: pd.DataFrame, day: datetime | None, start: datetime | None, end: datetime | None
) -> tuple[datetime, datetime]:
    """From and to (not with it): a day of UTC, what was asked for, or the last day that has impressions.

    Raises
    ------
    AdvpriorError
        ``RNK041`` when nothing was shown then.
    """
    times = impressions[TIMESTAMP]
    if day is None and start is None and end is None:
        day = times.max().to_pydatetime()
    if day is not None:
        start = day.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        end = start + timedelta(days=1)
    start = start or times.min().to_pydatetime()
    end = end or times.max().to_pydatetime() + timedelta(microseconds=1)
    if not ((times >= start) & (times < end)).any():
        raise AdvpriorError(
            "RNK041",
            "nothing to replay",
            where=f"{start.isoformat()} to {end.isoformat()}",
            actual="no impression",
            expected=f"a time from {times.min().isoformat()} to {times.max().isoformat()}",
            fix="name another --day, or --from and --to",
        )
    return start, end


@dataclass(frozen=True)
class Limits:
    """What the service takes, read off its OpenAPI.

    Attributes
    ----------
    contexts : dict of name to whether it is text
    """

    candidates: int
    slots: int
    contexts: dict[str, bool]

    @classmethod
    def of(cls, service: Service) -> Limits:
        """Ask.

        Raises
        ------
        AdvpriorError
            ``RNK042`` when it is another kind of service.
        """
        _, openapi = service.get("/openapi.json")
        try:
            schemas = openapi["components"]["schemas"]
            request = schemas["RankRequest"]["properties"]
            lists = [one for one in request["candidates"]["anyOf"] if one.get("type") == "array"]
            names = schemas.get("Context", {}).get("properties", {})
            text = {n: any(one.get("type") == "string" for one in about["anyOf"]) for n, about in names.items()}
            return cls(int(lists[0]["maxItems"]), int(request["slots"]["maximum"]), text)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise AdvpriorError(
                "RNK042",
                "no ranking service answers",
                where=f"{service.url}/openapi.json",
                actual=f"another OpenAPI: no {error}",
                expected="advprior rank serve",
                fix=SERVE_FIX,
            ) from error


@dataclass(frozen=True)
class Slates:
    """Requests to send, with the rows of the impressions that they stand for."""

    asks: list[Ask]
    rows: list[Int]
    times: Int
    too_large: int


def requests_of(shown: pd.DataFrame, limits: Limits, pace: Pace, limit: int, *, timed: bool) -> Slates:
    """One request per slate, by time; a slate that the service would refuse is left out and counted.

    Parameters
    ----------
    shown : DataFrame
        Impressions, in the order of a range index.
    limit : int
        Slates at most.
    timed : bool
        Say as of when each is to be ranked: the slate's first impression.
    """
    moments = micros(shown[TIMESTAMP])
    codes, _ = pd.factorize(shown[SLATE_ID])
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    first = np.array([moments[rows].min() for rows in groups])
    groups = [groups[i] for i in np.argsort(first, kind="stable")]
    fits = [rows for rows in groups if shown[AD_ID].iloc[rows].nunique() <= limits.candidates][:limit]
    too_large = sum(shown[AD_ID].iloc[rows].nunique() > limits.candidates for rows in groups)
    times = np.array([moments[rows].min() for rows in fits], dtype=np.int64)
    contexts = _contexts(shown, limits.contexts)
    ads, users = shown[AD_ID].astype(str).tolist(), shown[USER_ID].astype(str).tolist()
    asks = []
    for rows, moment, due in zip(fits, times.tolist(), pace.due(times), strict=True):
        named = [ads[i] if not contexts[i] else {"ad_id": ads[i], "context": contexts[i]} for i in rows]
        body = {
            "user_id": users[rows[0]],
            "slots": min(len({ads[i] for i in rows}), limits.slots),
            "candidates": named,
        }
        asks.append(Ask(json.dumps(body).encode(), {TIME_HEADER: iso(moment)} if timed else {}, due))
    return Slates(asks, fits, times, too_large)


def _contexts(shown: pd.DataFrame, taken: Mapping[str, bool]) -> list[dict[str, Any]]:
    """What the service takes of each impression's context."""
    contexts: list[dict[str, Any]] = [{} for _ in range(len(shown))]
    for name, text in taken.items():
        if not name.startswith(CONTEXT_PREFIX) or name not in shown:
            continue
        for i, (given, value) in enumerate(zip(shown[name].notna(), shown[name], strict=True)):
            if given:
                contexts[i][name] = str(value) if text else float(value)
    return contexts
