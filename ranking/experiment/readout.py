"""What an experiment says: lift over the control per user, its interval, and whether it may be trusted.

The unit is the user, because users are assigned to arms. A user's outcome is what followed their first exposure, and
what is compared is outcomes per user or per exposure; an interval treats users as independent, requests not.
CUPED takes out what a user's own behaviour before the experiment explains (Deng et al., 2013, "Improving the
sensitivity of online controlled experiments by utilizing pre-experiment data"): the effect is the same, the interval
shorter. A sample ratio that chance does not explain means that users are missing from an arm, and then no figure here
means anything (Fabijan et al., 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advprior.store.arrays import Double
from advprior.store.contract import TIMESTAMP, USER_ID, VALUE
from advprior.store.errors import AdvpriorError
from ranking.experiment.assignment import Experiment, Per
from ranking.experiment.effects import Effect, effect
from ranking.experiment.exposure_table import ExposureTable

#: Below it a sample ratio is no chance: strict, since it is looked at again and again.
SRM_ALPHA = 0.0005


@dataclass
class Readout:
    """An experiment's result.

    Attributes
    ----------
    per : {'user', 'exposure'}
        What means and effects are of.
    effects : dict of arm to its effect, plain
    adjusted : the same with CUPED, empty without a pre-period
    variance_left : float or None
        Share of the variance that CUPED leaves.
    sample_ratio_p : float
        Probability of a ratio this far from the shares, by chance.
    publications : dict of arm to exposures by publication
        Which published priors ranked them; ``none`` where no prior did, ``unrecorded`` in logs that did not say.
    """

    experiment: str
    control: str
    per: Per
    users: dict[str, int]
    mean: dict[str, float]
    exposures: dict[str, int]
    degraded: dict[str, float]
    effects: dict[str, Effect]
    adjusted: dict[str, Effect]
    variance_left: float | None
    sample_ratio_p: float
    crossed_users: int
    publications: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def trusted(self) -> bool:
        """Whether the sample ratio is as configured."""
        return self.sample_ratio_p >= SRM_ALPHA

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "trusted": self.trusted}

    def text(self) -> str:
        """A few lines to read."""
        lines = [f"experiment {self.experiment}, control {self.control}"]
        for arm, count in self.users.items():
            lines.append(
                f"  {arm}: {count:,} users, {self.exposures[arm]:,} exposures ({self.degraded[arm]:.1%} degraded), "
                f"mean {self.mean[arm]:.4g} per {self.per}"
            )
        for arm, served in self.publications.items():
            if set(served) - {"none", "unrecorded"}:
                lines.append(f"  {arm} was ranked with: {_most_served(served)}")
        for name, effects in (("plain", self.effects), ("CUPED", self.adjusted)):
            for arm, e in effects.items():
                lines.append(f"  {arm} against {self.control}, {name}: {e.text()}")
        if self.variance_left is not None:
            lines.append(f"  CUPED leaves {self.variance_left:.0%} of the variance")
        verdict = "as configured" if self.trusted else "NOT AS CONFIGURED: do not trust any figure above"
        lines.append(f"  sample ratio: p = {self.sample_ratio_p:.3g}, {verdict}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def sample_ratio(users: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Chi-square p-value of users per arm against their shares.

    Examples
    --------
    >>> even = {"control": 0.5, "treatment": 0.5}
    >>> sample_ratio({"control": 5010, "treatment": 4990}, even) > 0.5
    True
    >>> sample_ratio({"control": 5300, "treatment": 4700}, even) < 1e-8
    True
    """
    from scipy.stats import chisquare

    total = sum(users.values())
    if len(shares) < 2 or not total:
        return 1.0
    counts = [users.get(arm, 0) for arm in shares]
    return float(chisquare(counts, [share * total for share in shares.values()]).pvalue)


def cuped(outcome: Double, before: Double, arm: npt.NDArray[Any]) -> Double:
    """Outcome less what behaviour before explains; its slope is taken within arms, so that no effect goes into it.

    Examples
    --------
    >>> before = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    >>> cuped(before * 2 + np.array([0, 0, 0, 1, 1, 1]), before, np.array([0, 0, 0, 1, 1, 1])).tolist()
    [4.0, 4.0, 4.0, 5.0, 5.0, 5.0]
    """
    covariance = variance = 0.0
    for one in np.unique(arm):
        of_arm = arm == one
        x = before[of_arm] - before[of_arm].mean()
        covariance += float(x @ outcome[of_arm])
        variance += float(x @ x)
    slope = covariance / variance if variance else 0.0
    clean: Double = outcome - slope * (before - before.mean())
    return clean


def per_exposure(outcome: Double, exposures: Double, arm: npt.NDArray[Any]) -> Double:
    """Outcomes per exposure as one value a user, whose mean and variance are those of the ratio of sums in each arm.

    The ratio R of two sums over users has, for many of them, the variance of ``(y − R·n) / mean(n)``: the delta method
    (Deng, Knoblich & Lu 2018, "Applying the delta method in metric analytics"). Users who are shown more have more
    outcomes, whatever the arm: that is no noise here.

    Parameters
    ----------
    outcome, exposures : float64 [users]
    arm : [users]

    Examples
    --------
    >>> arm = np.array(["a", "a", "b", "b"])
    >>> per_exposure(np.array([1.0, 30.0, 2.0, 60.0]), np.array([10.0, 300.0, 10.0, 300.0]), arm).round(12).tolist()
    [0.1, 0.1, 0.2, 0.2]
    """
    values = np.empty(len(outcome))
    for one in np.unique(arm):
        of_arm = arm == one
        y, n = outcome[of_arm], exposures[of_arm]
        ratio = y.sum() / n.sum()
        values[of_arm] = ratio + (y - ratio * n) / n.mean()
    return values


@dataclass(frozen=True)
class _Shown:
    """What an exposure log says of one experiment.

    Attributes
    ----------
    exposures : pandas.DataFrame
        One row an exposure of the users that are compared: user_id, arm, degraded, publication; numbers of ``table``.
    table : ExposureTable
    users : pandas.DataFrame
        One row a user of one arm, by user_id: arm, time of the first exposure, and how many there were.
    crossed : int
        Users that were seen in more than one arm; they are in neither table.
    """

    exposures: pd.DataFrame
    table: ExposureTable
    users: pd.DataFrame
    crossed: int


def read_out(
    exposures: Iterable[Mapping[str, Any]],
    outcomes: pd.DataFrame,
    experiment: Experiment,
    *,
    control: str | None = None,
    pre_days: float = 0.0,
    until: datetime | None = None,
) -> Readout:
    """Compare the arms of an experiment.

    Parameters
    ----------
    exposures : records of the exposure log
        Those of other experiments are passed over.
    outcomes : pandas.DataFrame
        user_id, timestamp and, where outcomes differ in worth, value. Those before the first exposure of all count as
        the pre-period. Whole numbers as user ids are taken as text, as the log has them.
    control : str, optional
        Default: the first arm without priors, else the first.
    pre_days : float
        Length of the pre-period for CUPED; 0: none.
    until : datetime, optional
        Exposures and outcomes from then on are not counted: what was to be read at that moment.

    Raises
    ------
    AdvpriorError
        ``EXP001`` when there is nothing to compare, ``EXP002`` when outcomes lack a column, or hold times without a
        zone or values that are no numbers.
    """
    outcomes = _checked(outcomes)
    names = [arm.name for arm in experiment.arms]
    control = control or next((arm.name for arm in experiment.arms if not arm.priors), names[0])
    shown = _shown(exposures, experiment, until)
    users = shown.users
    counts = {name: int((users["arm"] == name).sum()) for name in names}
    _check_comparable(experiment, control, counts)
    after = outcomes[TIMESTAMP] >= outcomes[USER_ID].map(users["first"])  # False for users who were not exposed
    if until is not None:
        after &= outcomes[TIMESTAMP] < pd.Timestamp(until)
    outcome, arm = _per_user(outcomes[after], users.index), users["arm"].to_numpy()
    if experiment.per == "exposure":
        outcome = per_exposure(outcome, users["exposures"].to_numpy(np.float64), arm)
    effects = _effects(outcome, arm, experiment, control)
    adjusted: dict[str, Effect] = {}
    variance_left = None
    notes = []
    if not after.any():
        notes.append("no outcome follows an exposure: are user_id and timestamp of the same users and time?")
    if pre_days > 0:
        begin = users["first"].min()
        early = (outcomes[TIMESTAMP] < begin) & (outcomes[TIMESTAMP] >= begin - timedelta(days=pre_days))
        before = _per_user(outcomes[early], users.index)
        if before.std() > 0:
            clean = cuped(outcome, before, arm)
            adjusted = _effects(clean, arm, experiment, control)
            variance_left = _variance_left(outcome, clean, arm)
        else:
            notes.append(f"no outcome in the {pre_days:g} days before {begin}: no CUPED")
    if shown.crossed:
        notes.append(f"{shown.crossed} users seen in more than one arm are left out: did the salt change?")
    return Readout(
        experiment=experiment.name,
        control=control,
        per=experiment.per,
        users=counts,
        mean={name: float(outcome[arm == name].mean()) for name in names},
        **_by_arm(shown, names),
        effects=effects,
        adjusted=adjusted,
        variance_left=variance_left,
        sample_ratio_p=sample_ratio(counts, experiment.shares),
        crossed_users=shown.crossed,
        notes=notes,
    )


def _effects(values: Double, arm: npt.NDArray[Any], experiment: Experiment, control: str) -> dict[str, Effect]:
    """Every other arm against the control, with the users that the experiment plans for each."""
    planned = {name: share * experiment.planned_users for name, share in experiment.shares.items()}
    return {
        name: effect(values[arm == name], values[arm == control], (planned[name], planned[control]))
        for name in planned
        if name != control
    }


def _variance_left(outcome: Double, clean: Double, arm: npt.NDArray[Any]) -> float | None:
    """Share of the variance within arms that CUPED leaves; None where there is none."""
    spread, left = (sum(v[arm == one].var() * (arm == one).sum() for one in np.unique(arm)) for v in (outcome, clean))
    return float(left / spread) if spread else None


def _checked(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The outcomes with text ids, times in UTC and a numeric value."""
    problem = None
    columns = [name for name in (USER_ID, TIMESTAMP, VALUE) if name in outcomes]
    if lacking := [name for name in (USER_ID, TIMESTAMP) if name not in outcomes]:
        problem = f"no {' and no '.join(lacking)}, only {', '.join(map(str, outcomes.columns))}"
    elif not isinstance(outcomes[TIMESTAMP].dtype, pd.DatetimeTZDtype):
        problem = f"{TIMESTAMP} is {outcomes[TIMESTAMP].dtype}"
    elif VALUE in outcomes and not pd.api.types.is_numeric_dtype(outcomes[VALUE]):
        problem = f"{VALUE} is {outcomes[VALUE].dtype}"
    elif empty := [name for name in columns if outcomes[name].isna().any()]:
        problem = f"{', '.join(empty)} missing in {int(outcomes[empty].isna().any(axis=1).sum())} rows"
    if problem is not None:
        raise AdvpriorError(
            "EXP002",
            "the outcomes cannot be read",
            actual=problem,
            expected=f"{USER_ID}, {TIMESTAMP} with a zone, and perhaps a number {VALUE}; none of them missing",
            fix=f"outcomes.{TIMESTAMP} = pandas.to_datetime(outcomes.{TIMESTAMP}, utc=True), or name the columns so",
        )
    value = outcomes[VALUE].astype(np.float64) if VALUE in outcomes else 1.0
    when = outcomes[TIMESTAMP].dt.tz_convert("UTC")
    return pd.DataFrame({USER_ID: outcomes[USER_ID].astype(str), TIMESTAMP: when, VALUE: value})


def _shown(exposures: Iterable[Mapping[str, Any]], experiment: Experiment, until: datetime | None) -> _Shown:
    """An experiment's exposures up to a moment, of users of one arm."""
    table = ExposureTable(exposures, experiment.name, until)
    every = table.frame()
    by_user = every.groupby(USER_ID).agg(
        arm=("arm", "first"), arms=("arm", "nunique"), first=("time", "min"), exposures=("time", "size")
    )
    names, arms = np.array(list(table.users), dtype=object), np.array(list(table.arms), dtype=object)
    crossed = by_user["arms"] > 1
    planned = [number for arm, number in table.arms.items() if arm in experiment.shares]
    users = by_user[~crossed & by_user["arm"].isin(planned)]
    rows = every[every[USER_ID].isin(users.index)]
    users = users.assign(arm=arms[users["arm"].to_numpy(np.int64)])
    users = users.set_axis(pd.Index(names[users.index.to_numpy(np.int64)], name=USER_ID))
    return _Shown(rows, table, users.sort_index(), int(crossed.sum()))


def _check_comparable(experiment: Experiment, control: str, counts: Mapping[str, int]) -> None:
    if control not in counts or min(counts.values(), default=0) < 2 or len(counts) < 2:
        raise AdvpriorError(
            "EXP001",
            "there is nothing to compare",
            where=f"experiment {experiment.name}",
            actual=", ".join(f"{name}: {count} users" for name, count in counts.items()) or "no arm",
            expected=f"two users or more in each arm, and a control ({control})",
            fix="let it run longer, or name the experiment that was served",
        )


def _per_user(outcomes: pd.DataFrame, users: pd.Index[Any]) -> Double:
    """Sum of the outcomes' values, of each user."""
    sums = outcomes.groupby(USER_ID)[VALUE].sum().reindex(users, fill_value=0.0)
    return sums.to_numpy(dtype=np.float64)


def _by_arm(shown: _Shown, names: Sequence[str]) -> dict[str, Any]:
    """Exposures, the share of degraded ones, and exposures by publication, of each arm."""
    exposures, called = shown.exposures, list(shown.table.publications)
    of_arm = {name: exposures[(exposures["arm"] == shown.table.arms.get(name, -1)).to_numpy()] for name in names}
    return {
        "exposures": {name: len(rows) for name, rows in of_arm.items()},
        "degraded": {name: float(rows["degraded"].mean()) for name, rows in of_arm.items()},
        "publications": {
            name: {called[k]: n for k, n in zip(served.index.tolist(), served.tolist(), strict=True)}
            for name, rows in of_arm.items()
            for served in [rows["publication"].value_counts()]
        },
    }


def _most_served(served: Mapping[str, int], most: int = 4) -> str:
    """The publications that ranked most exposures, and how many others did: a year of refreshes makes hundreds.

    >>> _most_served({"llm a": 9, "llm b": 7, "llm c": 5, "none": 1}, most=2)
    'llm a (9), llm b (7) and 1 other (5); none (1)'
    """
    by_count = sorted(((k, n) for k, n in served.items() if k != "none"), key=lambda one: -one[1])
    text = ", ".join(f"{name} ({count:,})" for name, count in by_count[:most])
    if others := by_count[most:]:
        text += f" and {len(others)} other{'s' * (len(others) > 1)} ({sum(count for _, count in others):,})"
    return text + (f"; none ({served['none']:,})" if served.get("none") else "")
