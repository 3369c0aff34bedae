"""The ranker's learning curve: what priors add where it learns from a share of the users, by age of an advertiser.

A prior may pay while behaviour is scarce and fade as it accumulates. So every arm's rankers are fitted on random shares
of the users of training and validation rows, and measured on the same test rows; each seed of a ranker draws users of
its own, so that their luck is in the intervals. Features stay those of the frame: everyone's events are counted in
them, and priors keep the fit that they have. It says how a *ranker's* need of a prior fades, no more.

What a share's rankers gave the test rows is kept, so that `ranking.evidence.pooled_shares` can resample the users of
several cut-offs at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advprior.store.arrays import Bool, Double
from advprior.store.contract import USER_ID
from advprior.store.features import Feature
from advprior.store.progress import Progress
from advprior.store.runs import write_json
from advprior.store.tables import write_parquet
from ranking.evidence.ablation import AblationOptions, Previous, best_controls_of, pairs_of
from ranking.evidence.bootstrap import Resampler, Resampling, lifts_of
from ranking.evidence.deciding import SLOTS, metrics_at
from ranking.evidence.lift import Lift
from ranking.evidence.metrics import Auc
from ranking.evidence.rankers import MEASURED, ArmScores, Encoded, fit_arm
from ranking.evidence.result import without_nan
from ranking.evidence.segments import EVENTS, SEGMENT_PREFIX
from ranking.frame.read import load_features
from ranking.frame.row_blocks import FrameSource, InParquet
from ranking.models.arms import Arms

BEST_CONTROL = "best control"
USER_SHARES_FILE = "user_shares.json"
SHARE_SCORES_FILE = "user_shares.parquet"  # the test rows, and each ranker's scores as ``<share>:<arm>:<draw>``
NEVER = "never_advertiser"
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
        """A flat row: share, users, segment, arm, baseline, metric, difference, low, high, by_cutoff, and what it
        ``says``."""
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
            "by_cutoff": list(lift.by_cutoff),
            "says": lift.state,
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


@dataclass(frozen=True, eq=False)
class ShareScores:
    """What the rankers of one share of the users gave the test rows.

    Parameters
    ----------
    share : float
    users : int
        Of training rows, on average over the draws.
    scores : dict of str to list of float array [test rows]
        Probabilities of each arm, one array per draw.
    valid : dict of str to float
        Each arm's AUC on validation rows, mean over the draws: the best control is chosen by it.
    """

    share: float
    users: int
    scores: dict[str, list[Double]] = field(repr=False)
    valid: dict[str, float]

    def best_controls(self, arms: Arms) -> dict[str, str]:
        """Each arm on trial and its best control."""
        rows = [(arm, 0, "valid", "overall", Auc.name, value) for arm, value in self.valid.items()]
        return best_controls_of(arms, pd.DataFrame(rows, columns=MEASURED), Auc())


@dataclass(frozen=True, eq=False)
class UserShares:
    """A ranker's learning curve.

    Parameters
    ----------
    curve : list of ShareRow
    rows : DataFrame [test rows]
        impression_id, user_id, slate_id, label, segments.
    by_share : list of ShareScores
    """

    curve: list[ShareRow]
    rows: pd.DataFrame
    by_share: list[ShareScores]

    def write(self, folder: Path) -> None:
        """Write rows of the curve, and what pools it with those of other cut-offs."""
        of_shares = [{"share": one.share, "users": one.users, "valid_auc": one.valid} for one in self.by_share]
        curve = [row.to_json() for row in self.curve]
        write_json(folder / USER_SHARES_FILE, without_nan({"curve": curve, "by_share": of_shares}))
        scores = {
            f"{one.share:g}:{arm}:{draw}": score.astype(np.float32)
            for one in self.by_share
            for arm, of_arm in one.scores.items()
            for draw, score in enumerate(of_arm)
        }
        write_parquet(self.rows.assign(**scores), folder / SHARE_SCORES_FILE)


def user_shares(
    source: FrameSource, features: Sequence[Feature], arms: Arms, shares: Sequence[float], options: AblationOptions
) -> UserShares:
    """Arm − baseline, and each treatment − its best control, by share of users and age of the advertiser.

    Parameters
    ----------
    source : FrameSource
        Rows of a frame.
    features : sequence of Feature
        Of the frame.
    arms : Arms
        Those that the frame can feed.
    shares : sequence of float
        Of the users, in (0, 1]; a smaller one lies inside a larger.
    options : AblationOptions
        Seeds are draws of users, too. An arm that ``reuse`` measured on the same rows is not fitted again on all users.
    """
    keys = source.read([USER_ID, "split", *(name for name in (EVENTS, _NEVER_COLUMN) if name in source.names)])
    segments = _segments(keys[(keys["split"] == "test").to_numpy()])
    curve: list[ShareRow] = []
    by_share: list[ShareScores] = []
    total = len(shares) * options.seeds * len(arms.arms)
    with Progress(total, "rankers by share of users", "ranker") as progress:
        for share in sorted(shares):
            reached: dict[str, ArmScores] = {arm.name: ArmScores("") for arm in arms.arms}
            users = []
            for draws, encoded in _drawn(source, features, arms, (keys, share, options.seeds)):
                encoded = replace(encoded, segments=segments)
                users += [int(encoded.blocks["train"].keys[USER_ID].nunique())] * len(draws)
                metrics = metrics_at(options.slots or (options.reuse.slots if options.reuse else SLOTS))
                resampler = Resampler.of(encoded.outcomes, Resampling(metrics, options.replicates))
                previous = Previous.of(encoded, options) if share >= 1 else None
                for arm in arms.arms:
                    progress.note(f"{arm.name}, {share:g} of the users")
                    old = previous.scores(arm, arms, encoded, resampler) if previous else None
                    whole = old is not None and len(old.scores) == len(draws)
                    one = old if old is not None and whole else fit_arm(arm, arms, encoded, resampler, draws)
                    _add(reached[arm.name], one)
                    progress.update(len(draws))
            by_share.append(_scores_of(share, round(float(np.mean(users))), reached))
            curve += rows_of(by_share[-1], arms, reached, resampler)
    return UserShares(curve, encoded.test_rows(), by_share)


def write_user_shares(
    frame_folder: Path, out: Path, arms: Arms, shares: Sequence[float], options: AblationOptions
) -> list[str]:
    """Measure shares of a frame's users, write them into ``out``; lines of AUC for a terminal."""
    result = user_shares(InParquet(frame_folder), load_features(frame_folder), arms, shares, options)
    result.write(out)
    return lines_of(result.curve, arms)


def lines_of(curve: Sequence[ShareRow], arms: Arms) -> list[str]:
    """AUC of the arms on trial, a line each."""
    treatments = {arm.name for arm in arms.on_trial}
    return [row.text() for row in curve if row.lift.metric == Auc.name and row.lift.arm in treatments]


def rows_of(one: ShareScores, arms: Arms, reached: Mapping[str, ArmScores], resampler: Resampler) -> list[ShareRow]:
    """Lifts over the baseline, and of each treatment over the control that is best on validation rows."""
    best = one.best_controls(arms)
    draws = {name: of_arm.draws for name, of_arm in reached.items()}
    lifts = lifts_of(draws, pairs_of(arms), resampler.options, resampler.outcomes.telling)
    base = arms.baseline.name
    return [
        ShareRow(one.share, one.users, "" if lift.baseline == base else lift.baseline, lift)
        for lift in lifts
        if lift.baseline in (base, best.get(lift.arm))
    ]


_NEVER_COLUMN = SEGMENT_PREFIX + NEVER


def _segments(test: pd.DataFrame) -> dict[str, Bool]:
    """Test rows of an advertiser that the user never bought from, and by the advertiser's age."""
    never = test[_NEVER_COLUMN].to_numpy(bool) if _NEVER_COLUMN in test else np.zeros(len(test), bool)
    return {**({NEVER: never} if never.any() else {}), **by_age(test)}


def _drawn(
    source: FrameSource, features: Sequence[Feature], arms: Arms, of: tuple[pd.DataFrame, float, int]
) -> Iterator[tuple[list[int], Encoded]]:
    """Draws of users, and the rows that rankers of each learn from; all users are the same rows in every draw."""
    keys, share, draws = of
    if share >= 1:
        yield list(range(draws)), Encoded.of(source, features, arms)
        return
    for draw in range(draws):
        yield [draw], Encoded.of(source, features, arms, _some_users(keys, share, draw))


def _some_users(keys: pd.DataFrame, share: float, draw: int) -> NDArray[np.bool_]:
    """Which rows stay: all test rows, and the others of a random share of their users."""
    learned = (keys["split"] != "test").to_numpy()
    names = np.sort(keys.loc[learned, USER_ID].astype(str).unique())
    order = np.random.default_rng([draw, 31]).permutation(len(names))
    chosen = set(names[order[: max(round(share * len(names)), 1)]])
    return ~learned | keys[USER_ID].astype(str).isin(chosen).to_numpy()


def _add(reached: ArmScores, one: ArmScores) -> None:
    """More draws' rankers of an arm."""
    reached.scores += one.scores
    reached.draws += one.draws
    reached.measured += one.measured


def _scores_of(share: float, users: int, reached: Mapping[str, ArmScores]) -> ShareScores:
    valid = {
        arm: float(np.mean([m["value"] for m in one.measured if (m["split"], m["metric"]) == ("valid", Auc.name)]))
        for arm, one in reached.items()
    }
    return ShareScores(share, users, {arm: one.scores for arm, one in reached.items()}, valid)
