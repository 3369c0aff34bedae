"""Rules between columns and between tables: references, owners of slates, and the order of times.

A rule is applied where the columns that it compares are sound.

pandas is imported by whoever holds a table: the command line imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from advprior.store.columns import REFERENCES
from advprior.store.contract import (
    AD_ID,
    ADS,
    ADVERTISER_ID,
    ARRIVED,
    EVENTS,
    IMPRESSIONS,
    KNOWN_FROM,
    LABEL,
    LABEL_TIME,
    SLATE_ID,
    TIMESTAMP,
    USER_ID,
    USERS,
)
from advprior.store.problems import Problem, rows_problem

if TYPE_CHECKING:
    import pandas as pd

#: Whether some columns of a table are there and without a problem of their own.
Sound = Callable[..., bool]


def relation_problems(
    tables: Mapping[str, pd.DataFrame], broken: set[tuple[str, str]], label_delay: timedelta
) -> list[Problem]:
    """Every problem between columns and between tables.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Canonical tables by name.
    broken : set of (table, column)
        What has a problem of its own already; an empty column stands for the whole table.
    label_delay : timedelta
        After it a label is complete.
    """

    def sound(table: str, *columns: str) -> bool:
        return (
            table in tables
            and (table, "") not in broken
            and all(column in tables[table] and (table, column) not in broken for column in columns)
        )

    return [
        *_reference_problems(tables, sound),
        *_owner_problems(tables, sound),
        *_time_problems(tables, sound, label_delay),
    ]


def _reference_problems(tables: Mapping[str, pd.DataFrame], sound: Sound) -> Iterator[Problem]:
    """Ids that the table they refer to does not have."""
    for (name, column), target in REFERENCES.items():
        if not (sound(name, column) and sound(target, column)):
            continue
        values = tables[name][column]
        bad = values.notna() & ~values.isin(tables[target][column])
        if bad.any():
            yield rows_problem("DAT011", name, values, bad, f"not in {target}")


def _owner_problems(tables: Mapping[str, pd.DataFrame], sound: Sound) -> Iterator[Problem]:
    """Impressions with another advertiser than their ad's, and slates of several users."""
    if sound(ADS, AD_ID, ADVERTISER_ID) and sound(IMPRESSIONS, AD_ID, ADVERTISER_ID):
        ads, shown = tables[ADS], tables[IMPRESSIONS]
        owner = shown[AD_ID].map(ads.set_index(AD_ID)[ADVERTISER_ID])
        bad = owner.notna() & shown[ADVERTISER_ID].notna() & (owner != shown[ADVERTISER_ID])
        if bad.any():
            yield rows_problem("DAT012", IMPRESSIONS, shown[ADVERTISER_ID], bad, "ads has another advertiser")
    if sound(IMPRESSIONS, SLATE_ID, USER_ID):
        shown = tables[IMPRESSIONS]
        bad = shown[USER_ID] != shown.groupby(SLATE_ID)[USER_ID].transform("first")
        if bad.any():
            what = "another user's slate has this id (number them over all users, or make one text of user and slate)"
            yield rows_problem("DAT016", IMPRESSIONS, shown[SLATE_ID], bad, what)


def _time_problems(tables: Mapping[str, pd.DataFrame], sound: Sound, label_delay: timedelta) -> Iterator[Problem]:
    """Rows that arrive before they happen; labels that come about before their impression, too late, or never."""
    if sound(EVENTS, TIMESTAMP, ARRIVED):
        events = tables[EVENTS]
        bad = events[ARRIVED] < events[TIMESTAMP]
        if bad.any():
            yield rows_problem("DAT018", EVENTS, events[ARRIVED], bad, "before the event's own timestamp")
    if not sound(IMPRESSIONS, TIMESTAMP, LABEL_TIME):
        return
    shown = tables[IMPRESSIONS]
    label_time = shown[LABEL_TIME]
    early = label_time < shown[TIMESTAMP]
    if early.any():
        yield rows_problem("DAT018", IMPRESSIONS, label_time, early, "before the impression's own timestamp")
    wrong = label_time - shown[TIMESTAMP] > label_delay
    what = (
        f"later than the label delay of {delay_text(label_delay)} after its impression (state another `label_delay` "
        "in the mapping, or make the label 0)"
    )
    if sound(IMPRESSIONS, LABEL):
        negative = label_time.notna() & (shown[LABEL] != 1)
        wrong &= ~negative
        if negative.any():
            yield rows_problem("DAT019", IMPRESSIONS, label_time, negative, "the label is 0, so it has no time")
    if wrong.any():
        yield rows_problem("DAT019", IMPRESSIONS, label_time, wrong, what)


def delay_text(delay: timedelta) -> str:
    """A delay in words.

    >>> delay_text(timedelta(days=7)), delay_text(timedelta(hours=36)), delay_text(timedelta())
    ('7 days', '1.5 days', '0 days')
    """
    return f"{delay / timedelta(days=1):g} days"


def existence_warnings(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Users and ads that were seen before they existed: allowed, since an account may be younger than its first visit.

    They have no features and no prior before ``known_from``; what they did before it counts after it.
    """
    warnings = []
    for name, key, sources in ((USERS, USER_ID, (EVENTS, IMPRESSIONS)), (ADS, AD_ID, (IMPRESSIONS,))):
        if name not in tables or KNOWN_FROM not in tables[name]:
            continue
        exists = tables[name].set_index(key)[KNOWN_FROM]
        early = sum(
            int((tables[source][TIMESTAMP] < tables[source][key].map(exists)).sum())
            for source in sources
            if source in tables
        )
        if early:
            warnings.append(
                f"{name}.{KNOWN_FROM}: {early:,} rows of {' and '.join(sources)} are earlier than it; until then they "
                f"are {name} without features and priors"
            )
    return warnings
