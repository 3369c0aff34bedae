"""What must hold after a step that ended well: no row is lost unseen, ids come out as they came in, priors are priors.

Each function gives what is broken, in words; an empty list is a success.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from advprior.store.contract import (
    AD_ID,
    ADVERTISER_ID,
    CATEGORY,
    IMPRESSION_ID,
    LABEL,
    SLATE_ID,
    TIMESTAMP,
    USER_ID,
    pair_id,
)
from advprior.store.matrix import open_matrix
from advprior.store.runs import read_manifest
from advprior.store.tables import load_time_plan

if TYPE_CHECKING:
    from tests.fuzz.worlds import World


def as_text(value: Any) -> str | None:
    """An id as canonical text: whole numbers without a point, missing ones as None."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, float | Decimal) and value == int(value):
        return str(int(value))
    return str(value)


def of_tables(world: World, tables: Path, output: str) -> list[str]:
    """Canonical tables hold the user's rows, all of them and as they were."""
    broken = []
    for name, own in world.tables.items():
        made = pd.read_parquet(tables / f"{name}.parquet")
        if len(made) != len(own):
            broken.append(f"{name}: {len(own)} rows in, {len(made)} out")
            continue
        if f"{len(own):,} {name}" not in output:
            broken.append(f"{name}: the count of {len(own):,} rows is not printed")
        for key in (USER_ID, ADVERTISER_ID, AD_ID):
            source = world.column(name, key)
            if key in made and source in own and list(map(as_text, own[source])) != list(map(as_text, made[key])):
                broken.append(f"{name}.{key}: ids came out otherwise: {_first_change(own[source], made[key])}")
        for key in (IMPRESSION_ID, SLATE_ID):
            source = world.column(name, key)
            if key in made and source in own and not _same_groups(own[source].map(str), made[key]):
                broken.append(f"{name}.{key}: other rows share an id than before")
        if TIMESTAMP in made and not _same_order(own[world.column(name, TIMESTAMP)], made[TIMESTAMP]):
            broken.append(f"{name}.{TIMESTAMP}: the order in time changed")
        if LABEL in made:
            stated = [int(float(v)) for v in own[world.column(name, LABEL)]]
            if stated != made[LABEL].tolist():
                broken.append(f"{name}.{LABEL}: labels changed")
    return broken


def _first_change(own: pd.Series, made: pd.Series) -> str:
    pairs = zip(own, made, strict=True)
    return next(f"{a!r} as {b!r}" for a, b in pairs if as_text(a) != as_text(b))


def _same_groups(own: pd.Series, made: pd.Series) -> bool:
    return bool((pd.factorize(own)[0] == pd.factorize(made)[0]).all())


def _same_order(own: pd.Series, made: pd.Series) -> bool:
    """Whether times that were in order stay so: a change of zone keeps it, a wrapped unit does not."""
    before, after = pd.to_datetime(own), made
    rank = np.argsort(before.to_numpy(), kind="stable")
    local = getattr(before.dtype, "tz", None) is None
    steps = np.diff(after.to_numpy()[rank])
    # clocks that are set back repeat an hour
    return bool((steps >= np.timedelta64(-3600 if local else 0, "s")).all())


def of_pairs(tables: Path, pairs: Path) -> list[str]:
    """Ads keep an owner each, and two pairs never share an id."""
    ads, made = pd.read_parquet(tables / "ads.parquet"), pd.read_parquet(pairs / "ads.parquet")
    listed = pd.read_parquet(pairs / "advertisers.parquet")[ADVERTISER_ID]
    broken = []
    if len(ads) != len(made) or not made[ADVERTISER_ID].isin(listed).all():
        broken.append("ads lost their pair")
    expected = [pair_id(a, c) for a, c in zip(ads[ADVERTISER_ID], ads[CATEGORY], strict=True)]
    if made[ADVERTISER_ID].tolist() != expected:
        broken.append("ads have another pair than their own")
    if listed.duplicated().any():
        broken.append("a pair is listed twice")
    if len(ads[[ADVERTISER_ID, CATEGORY]].drop_duplicates()) != made[ADVERTISER_ID].nunique():
        broken.append("two pairs share an id")
    return broken


def of_priors(tables: Path, priors: Path) -> list[str]:
    """A row for each snapshot of a user who exists at it, whose probabilities are finite and sum to one."""
    plan, facts = load_time_plan(tables), read_manifest(priors)["facts"]
    rows, matrix = pd.read_parquet(priors / "rows.parquet"), open_matrix(priors / "log_probs.npy")[:]
    matrix = matrix[rows["prior_row"]]
    broken = []
    expected = {
        (user, snapshot)
        for user, since in _exist_from(tables).items()
        for snapshot in pd.DatetimeIndex(plan.snapshots())
        if since <= snapshot
    }
    scored = set(zip(rows[USER_ID], rows["snapshot"], strict=True))
    if len(scored) != len(rows):
        broken.append("a user has two priors at a snapshot")
    if scored != expected:
        broken.append(f"{len(expected - scored)} priors are missing, {len(scored - expected)} are of nobody")
    users = len(pd.read_parquet(tables / "users.parquet"))
    if len(rows) + facts["rows_before_user"] != users * len(plan.snapshots()):
        broken.append(f"{len(rows)} rows and {facts['rows_before_user']} counted of {users} users")
    if not np.isfinite(matrix).all():
        broken.append("log-probabilities that are not finite")
    elif len(matrix) and np.abs(np.exp(matrix.astype("float64")).sum(axis=1) - 1).max() > 1e-3:
        broken.append("probabilities do not sum to one")
    return broken


def _exist_from(tables: Path) -> pd.Series:
    """Time from which each user exists: as stated, or just after their first event or impression."""
    users = pd.read_parquet(tables / "users.parquet")
    seen = []
    for name in ("events", "impressions"):
        if (tables / f"{name}.parquet").is_file():
            table = pd.read_parquet(tables / f"{name}.parquet")
            arrived = table["arrived"].fillna(table[TIMESTAMP]) if "arrived" in table else table[TIMESTAMP]
            seen.append(
                pd.DataFrame(
                    {"user": table[USER_ID], "at": table[TIMESTAMP].where(table[TIMESTAMP] > arrived, arrived)}
                )
            )
    first = pd.concat(seen).groupby("user")["at"].min() + pd.Timedelta(microseconds=1)
    if "known_from" in users:
        stated = users.set_index(USER_ID)["known_from"]
        first = stated.where(stated.notna(), first.reindex(stated.index))
    return first.dropna()


def of_frame(tables: Path, frame: Path) -> list[str]:
    """Every impression that the plan gives to the ranker is there once, the others are counted."""
    plan, facts = load_time_plan(tables), read_manifest(frame)["facts"]
    shown, rows = pd.read_parquet(tables / "impressions.parquet"), pd.read_parquet(frame / "frame.parquet")
    chosen = shown[(shown[TIMESTAMP] >= plan.finetune_end) & (shown[TIMESTAMP] < plan.end)]
    broken = []
    if sorted(rows[IMPRESSION_ID]) != sorted(chosen[IMPRESSION_ID]):
        broken.append(f"{len(rows)} impressions of {len(chosen)} that the time plan gives")
    if sum(facts["rows"].values()) != len(rows):
        broken.append(f"splits hold {facts['rows']}, the frame {len(rows)} rows")
    if facts["rows_beyond_end"] != int((shown[TIMESTAMP] >= plan.end).sum()):
        broken.append("rows beyond the end are counted wrongly")
    listed = {feature["name"] for feature in facts["features"]}
    if listed - set(rows.columns):
        broken.append(f"features without a column: {sorted(listed - set(rows.columns))}")
    labels = rows.set_index(IMPRESSION_ID)[LABEL].reindex(chosen[IMPRESSION_ID])
    if labels.tolist() != chosen[LABEL].tolist():
        broken.append("labels moved between impressions")
    numbers = rows[sorted(listed & set(rows.columns))].select_dtypes("number")
    infinite = [str(name) for name in numbers if np.isinf(numbers[name].to_numpy(dtype="float64")).any()]
    if infinite:
        broken.append(f"infinite values in {infinite}")
    return broken


def of_ablation(frame: Path, ablation: Path) -> list[str]:
    """Every test row has a score between zero and one from every arm."""
    rows = pd.read_parquet(frame / "frame.parquet", columns=[IMPRESSION_ID, "split"])
    scores = pd.read_parquet(ablation / "predictions.parquet")
    broken = []
    test = set(rows[IMPRESSION_ID][rows["split"] == "test"])
    if set(scores[IMPRESSION_ID]) != test or len(scores) != len(test):
        broken.append(f"scores of {len(scores)} rows for {len(test)} test rows")
    numbers = scores.drop(columns=[IMPRESSION_ID, SLATE_ID, LABEL], errors="ignore").select_dtypes("number")
    outside = [str(name) for name in numbers if not numbers[name].between(0, 1).all()]
    if outside:
        broken.append(f"scores outside [0, 1] or missing: {outside}")
    return broken
