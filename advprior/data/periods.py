"""What a time plan leaves in each of its periods, and whether that can answer anything.

Counts say at a glance what a run has to work with; a plan under which no ranker could be fitted or measured is refused
by `advprior data check`, minutes before the step that would fail on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from advprior.store.contract import EVENTS, IMPRESSIONS, LABEL, SLATE_ID, TIMESTAMP, USER_ID, TimePlan
from advprior.store.errors import AdvpriorError

if TYPE_CHECKING:
    import pandas as pd

DAY = timedelta(days=1)
#: Fewer days of labels leave a predictor nothing: one to learn from, one to validate, one ahead of both.
FEWEST_LABEL_DAYS = 3
#: Below these the plan stands, with a warning.
FEW_LABEL_DAYS, FEW_TEST_DAYS, FEW_SNAPSHOTS, FEW_POSITIVES = 28, 7, 3, 10

LEARN = "predictors learn"
SPLITS = ("rankers learn", "rankers are tuned", "everything is tested")


def periods_of(plan: TimePlan) -> dict[str, tuple[datetime, datetime]]:
    """The four periods of a time plan, in order, by what happens in them."""
    cuts = (plan.start, plan.finetune_end, plan.train_end, plan.valid_end, plan.end)
    return dict(zip((LEARN, *SPLITS), pairwise(cuts), strict=True))


def period_counts(tables: Mapping[str, pd.DataFrame], plan: TimePlan) -> dict[str, dict[str, int]]:
    """Rows, users and positives in each period.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Canonical tables.
    plan : TimePlan

    Returns
    -------
    dict of str to dict
        ``events`` and ``users`` of the predictors' period; ``impressions``, ``users``, ``slates``, ``positives`` of the
        others, where anything was shown.
    """
    counts: dict[str, dict[str, int]] = {}
    for name, (begin, end) in periods_of(plan).items():
        table = tables.get(EVENTS if name == LEARN else IMPRESSIONS)
        if table is None:
            continue
        rows = table[((table[TIMESTAMP] >= begin) & (table[TIMESTAMP] < end)).to_numpy()]
        count = {"events" if name == LEARN else "impressions": len(rows), "users": int(rows[USER_ID].nunique())}
        if name != LEARN:
            count |= {"slates": int(rows[SLATE_ID].nunique()), "positives": int(rows[LABEL].sum())}
        counts[name] = count
    return counts


def check_periods(
    counts: Mapping[str, Mapping[str, int]], plan: TimePlan, label_delay: timedelta | None, where: str
) -> list[str]:
    """Refuse a plan that cannot answer; warn of one that can answer little.

    Parameters
    ----------
    counts : mapping
        What `period_counts` gives.
    plan : TimePlan
    label_delay : timedelta, optional
        After which an outcome is complete; None where nothing was shown.
    where : str
        For messages.

    Returns
    -------
    list of str
        Warnings.

    Raises
    ------
    AdvpriorError
        ``DAT052``: too few days of labels for any predictor, or a period in which nobody was shown anything, nobody
        responded or everybody did.
    """
    problems, days = [], (plan.finetune_end - plan.start) / DAY
    if days < FEWEST_LABEL_DAYS:
        problems.append(f"{LEARN}: {days:.1f} days, of which some must validate; at least {FEWEST_LABEL_DAYS}")
    if not counts[LEARN]["events"]:
        problems.append(f"{LEARN}: no event")
    for name in SPLITS:
        count = counts.get(name)
        if count is not None and not 0 < count["positives"] < count["impressions"]:
            problems.append(f"{name}: {count['positives']:,} positives in {count['impressions']:,} impressions")
    if problems:
        cuts = ", ".join(f"{key} {getattr(plan, key):%Y-%m-%d %H:%M}" for key in ("start", *_CUTS, "end"))
        raise AdvpriorError(
            "DAT052",
            "the time plan cannot answer anything on these tables",
            where=where,
            actual="; ".join(problems),
            expected=f"events to learn from, and impressions with both outcomes in every later period ({cuts})",
            fix="bring a longer span, or write other cuts (time_plan in the mapping); to measure predictors alone "
            "leave ads and impressions out",
        )
    return _warnings(counts, plan, label_delay)


def young_labels(tables: Mapping[str, pd.DataFrame], plan: TimePlan, label_delay: timedelta) -> str:
    """What to say of impressions so young that a positive label may still arrive: they are tested as negatives.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Canonical tables.
    plan : TimePlan
    label_delay : timedelta
        After which a label is complete.

    Returns
    -------
    str
        Empty where every label before the plan's end is complete.
    """
    shown = tables.get(IMPRESSIONS)
    if shown is None or not len(shown):
        return ""
    newest = max(tables[name][TIMESTAMP].max() for name in (EVENTS, IMPRESSIONS) if len(tables[name]))
    tested = shown[((shown[TIMESTAMP] >= plan.valid_end) & (shown[TIMESTAMP] < plan.end)).to_numpy()]
    young = int(((tested[TIMESTAMP] > newest - label_delay) & (tested[LABEL] != 1)).sum())
    if not young:
        return ""
    return (
        f"{SPLITS[-1]}: {young:,} of {len(tested):,} impressions have no positive label and lie within "
        f"{label_delay / DAY:g} days (label_delay) of the newest row: a label may still come; bring later rows, or end "
        f"the plan before them (time_plan.end: {newest - label_delay:%Y-%m-%dT%H:%M:%SZ})"
    )


_CUTS = ("finetune_end", "train_end", "valid_end")


def _warnings(counts: Mapping[str, Mapping[str, int]], plan: TimePlan, label_delay: timedelta | None) -> list[str]:
    """What can answer little: short periods, few snapshots, few positives."""
    warnings, days = [], (plan.finetune_end - plan.start) / DAY
    if days < FEW_LABEL_DAYS:
        warnings.append(f"{LEARN}: {days:.0f} days of labels; horizons and validation days shrink with them")
    if label_delay is None:
        return warnings
    tested, trained = plan.end - plan.valid_end, plan.train_end - plan.finetune_end
    if tested < FEW_TEST_DAYS * DAY:
        warnings.append(f"{SPLITS[-1]}: {tested / DAY:.1f} days; other days of the week may say otherwise")
    snapshots = len(plan.snapshots())
    if snapshots < FEW_SNAPSHOTS:
        warnings.append(
            f"{snapshots} snapshots after finetune_end, {plan.snapshot_every / DAY:g} days apart: what is known of a "
            "user hardly moves; set time_plan.snapshot_every to less"
        )
    if label_delay > trained:
        warnings.append(
            f"label_delay is {label_delay / DAY:g} days, rankers learn from {trained / DAY:g}: no outcome there is "
            "complete within that time, so rates stand on older rows; set label_delay to what your labels take"
        )
    few = [name for name in SPLITS if name in counts and counts[name]["positives"] < FEW_POSITIVES]
    return warnings + [f"{name}: {counts[name]['positives']} positives; intervals will be wide" for name in few]
