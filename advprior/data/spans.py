"""A time plan proposed from the data's own span, where the mapping has none.

The proportions are those that the demo's year was cut by: a third for the predictors to learn from, and of what the
ranker sees six parts in ten to learn, one to be tuned, three to be tested on.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from advprior.store.contract import TimePlan
from advprior.store.errors import AdvpriorError

FIT_SHARE = 0.35  # of the whole span, before the first snapshot
TRAIN_SHARE, VALID_SHARE = 0.58, 0.12  # of the span after it
DAY = timedelta(days=1)


def propose_time_plan(
    span: tuple[datetime, datetime], shown: tuple[datetime, datetime], *, lag: timedelta, where: str
) -> TimePlan:
    """Cuts of a span, on midnights (UTC) where it has ten days or more.

    Parameters
    ----------
    span : (datetime, datetime)
        First event or impression; just after the last.
    shown : (datetime, datetime)
        First impression, and just after the last: only these are ranked.
    lag : timedelta
    where : str
        For messages.

    Raises
    ------
    AdvpriorError
        ``DAT051`` for a span of less than two days, or impressions that leave no time before or after them.

    Examples
    --------
    >>> year = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 12, 31, tzinfo=UTC)
    >>> plan = propose_time_plan(year, year, lag=timedelta(hours=1), where="mapping.yaml")
    >>> [f"{moment:%m-%d}" for moment in (plan.finetune_end, plan.train_end, plan.valid_end)]
    ['05-08', '09-22', '10-21']
    """
    (start, end), (shown_from, shown_until) = span, shown
    unit = DAY if end - start >= 10 * DAY else timedelta(hours=1)
    finetune_end = _rounded(max(start + FIT_SHARE * (end - start), shown_from), unit, up=True)
    ranked = shown_until - finetune_end
    train_end = _rounded(finetune_end + TRAIN_SHARE * ranked, unit)
    valid_end = _rounded(finetune_end + (TRAIN_SHARE + VALID_SHARE) * ranked, unit, up=True)
    if not (end - start >= 2 * DAY and start < finetune_end < train_end < valid_end < shown_until):
        raise AdvpriorError(
            "DAT051",
            "no time plan can be proposed for so short a span",
            where=where,
            actual=f"data from {start.isoformat()} to {end.isoformat()}, impressions from {shown_from.isoformat()} "
            f"to {shown_until.isoformat()}",
            expected="some weeks of events, and impressions over the later part of them",
            fix="bring a longer span, or write time_plan into the mapping",
        )
    every = snapshot_distance(shown_until - finetune_end)
    return TimePlan(start, finetune_end, train_end, valid_end, end, every, min(lag, every / 24))


def snapshot_distance(ranked: timedelta) -> timedelta:
    """How often priors are made anew: weekly where six weeks or more are ranked, else daily, else each tenth of it.

    >>> [str(snapshot_distance(timedelta(days=d))) for d in (200, 40, 5)]
    ['7 days, 0:00:00', '1 day, 0:00:00', '12:00:00']
    """
    for every in (7 * DAY, DAY):
        if ranked >= 6 * every:
            return every
    return ranked / 10


def _rounded(moment: datetime, unit: timedelta, *, up: bool = False) -> datetime:
    """Down (or up) to a whole day or hour, UTC."""
    moment = moment.astimezone(UTC)
    floor = moment.replace(minute=0, second=0, microsecond=0)
    if unit >= DAY:
        floor = floor.replace(hour=0)
    return floor + unit if up and floor < moment else floor
