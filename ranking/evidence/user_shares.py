"""The ranker's learning curve: what priors add where it learns from a share of the users, by age of an advertiser.

A prior may pay while behaviour is scarce and fade as it accumulates. So every arm's rankers are fitted on random shares
of the users of training and validation rows, and measured on the same test rows; each seed of a ranker draws users of
its own, so that their luck is in the intervals. Features stay those of the frame: everyone's events are counted in
them, and priors keep the fit that they have. It says how a *ranker's* need of a prior fades, no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Bool
from advprior.store.contract import USER_ID
from advprior.store.runs import write_json
from ranking.evidence.ablation import AblationOptions, best_controls_of, pairs_of
from ranking.evidence.bootstrap import Resampler, Resampling, lifts_of
from ranking.evidence.lift import Lift
from ranking.evidence.metrics import Auc
from ranking.evidence.rankers import MEASURED, ArmScores, Encoded, fit_arm
from ranking.evidence.segments import EVENTS
from ranking.frame.row_blocks import InMemory
from ranking.frame.table import Frame
from ranking.models.arms import Arms

BEST_CONTROL = "best control"
USER_SHARES_FILE = "user_shares.json"
#: (least, most) events of an advertiser as of the snapshot before an impression
AGES = ((0, 0), (1, 10), (11, 100), (101, None))


@dataclass(frozen=True)
class ShareRow:
    """One difference at one share of the users.

    Attributes
    ----------
    share : float
    users : int
        Of training rows, on average over the draws.
    control : str
        Which control is the best one at this share, by validation rows; empty where the baseline is none.
    lift : Lift
    """

    share: float
    users: int
    control: str
    lift: Lift

    def to_json(self) -> dict[str, Any]:
        """A flat row: share, users, segment, arm, baseline, metric, difference, low, high."""
        lift = self.lift
        baseline = BEST_CONTROL if self.control else lift.baseline
        return {
            "share": self.share,
            "users": self.users,
            "segment": lift.segment,
            "arm": lift.arm,
            "baseline": baseline,
            "control": self.control,
            "metric": lift.metric,
            "difference": lift.difference,
            "low": lift.low,
            "high": lift.high,
        }

    def text(self) -> str:
        """A line for a terminal."""
        lift = self.lift
        against = f"{BEST_CONTROL}, {self.control}" if self.control else lift.baseline
        return f"{self.users:>8,} users, {lift.segment}: {lift.arm} − {against}, {lift.metric} {lift.text()}"


def by_age(rows: pd.DataFrame) -> dict[str, Bool]:
    """Rows by the advertiser's events as of their snapshot: nothing where the frame does not hold that feature.

    >>> masks = by_age(pd.DataFrame({EVENTS: [0.0, 7.0, None, 200.0]}))
    >>> {name: mask.tolist() for name, mask in masks.items()}["advertiser 0"]
    [True, False, True, False]
    """
    if EVENTS not in rows:
        return {}
    events = np.nan_to_num(rows[EVENTS].to_numpy(np.float64))
    masks: dict[str, Bool] = {}
    for least, most in AGES:
        called = f"over {least - 1}" if most is None else f"{least}" if least == most else f"{least}-{most}"
        inside: Bool = (events >= least) & (events <= (np.inf if most is None else most))
        if inside.any():
            masks[f"advertiser {called}"] = inside
    return masks


def user_shares(frame: Frame, arms: Arms, shares: Sequence[float], options: AblationOptions) -> list[ShareRow]:
    """Arm − baseline, and each treatment − its best control, by share of users and age of the advertiser.

    Parameters
    ----------
    frame : Frame
        Not changed.
    arms : Arms
        Those that the frame can feed.
    shares : sequence of float
        Of the users, in (0, 1]; a smaller one lies inside a larger.
    options : AblationOptions
        Seeds are draws of users, too; ``reuse`` is not read.
    """
    rows: list[ShareRow] = []
    test = frame.rows[(frame.rows["split"] == "test").to_numpy()]
    segments = by_age(test)
    for share in sorted(shares):
        reached: dict[str, ArmScores] = {}
        users = []
        for draw in range(options.seeds):
            some = _some_users(frame.rows, share, draw)
            users.append(int(some.loc[some["split"] == "train", USER_ID].nunique()))
            encoded = replace(Encoded.of(InMemory(some), frame.features, arms), segments=segments)
            resampler = Resampler.of(encoded.outcomes, Resampling(replicates=options.replicates))
            for arm in arms.arms:
                _add(reached, arm.name, fit_arm(arm, arms, encoded, resampler, [draw]))
        rows += _rows(share, round(float(np.mean(users))), arms, reached, resampler)
    return rows


def write_user_shares(
    frame_folder: Path, out: Path, arms: Arms, shares: Sequence[float], options: AblationOptions
) -> list[str]:
    """Measure shares of a frame's users, write `USER_SHARES_FILE` into ``out``; lines of AUC for a terminal."""
    rows = user_shares(Frame.load(frame_folder), arms, shares, options)
    write_json(out / USER_SHARES_FILE, {"curve": [row.to_json() for row in rows]})
    treatments = {arm.name for arm in arms.on_trial}
    return [row.text() for row in rows if row.lift.metric == Auc.name and row.lift.arm in treatments]


def _some_users(rows: pd.DataFrame, share: float, draw: int) -> pd.DataFrame:
    """All test rows, and the others of a random share of their users."""
    if share >= 1:
        return rows
    learned = (rows["split"] != "test").to_numpy()
    names = np.sort(rows.loc[learned, USER_ID].astype(str).unique())
    order = np.random.default_rng([draw, 31]).permutation(len(names))
    chosen = set(names[order[: max(round(share * len(names)), 1)]])
    return rows[~learned | rows[USER_ID].astype(str).isin(chosen).to_numpy()]


def _add(reached: dict[str, ArmScores], arm: str, one: ArmScores) -> None:
    """One more draw's ranker of an arm."""
    if arm not in reached:
        reached[arm] = one
        return
    reached[arm].draws += one.draws
    reached[arm].measured += one.measured


def _rows(
    share: float, users: int, arms: Arms, reached: Mapping[str, ArmScores], resampler: Resampler
) -> list[ShareRow]:
    """Lifts over the baseline, and of each treatment over the control that is best on validation rows."""
    measured = pd.DataFrame([row for one in reached.values() for row in one.measured], columns=MEASURED)
    best = best_controls_of(arms, measured, Auc())
    draws = {name: one.draws for name, one in reached.items()}
    lifts = lifts_of(draws, pairs_of(arms), resampler.options, resampler.outcomes.telling)
    base = arms.baseline.name
    return [
        ShareRow(share, users, "" if lift.baseline == base else lift.baseline, lift)
        for lift in lifts
        if lift.baseline in (base, best.get(lift.arm))
    ]
