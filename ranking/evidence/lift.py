"""Lift: one arm minus another on one metric and segment, with its intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Literal

from advprior.store.uncertainty import quantile
from ranking.evidence.wording import interval, outcome, signed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OVERALL = "overall"
#: What an interval says. One seed says nothing of other seeds, so its interval is never clear.
State = Literal["gain", "loss", "unclear", "one seed", "undefined"]
POWER = 0.8  # chance of finding the smallest lift that counts as detectable
_LOG_LOSS = "log_loss"  # it moves in the fifth digit


@dataclass(frozen=True)
class Lift:
    """One arm minus another, on one metric and segment.

    Parameters
    ----------
    arm, baseline : str
        What is compared with what.
    metric, segment : str
    value, baseline_value : float
        Means over seeds.
    difference, relative : float
        ``value − baseline_value``, and that over ``baseline_value``.
    low, high : float
        Percentile interval of the difference.
    replicates : int
        Resamplings of users behind the interval.
    level : float
        Nominal coverage of the interval.
    seed_sd : float or None
        Standard deviation of *this* difference between training seeds; None with one seed.
    higher_is_better : bool
    error : float
        Standard error of the difference: users and training seeds.
    p, p_adjusted : float
        Two-sided: alone, and among its family of comparisons.
    adjusted_low, adjusted_high : float
        Interval that holds for the whole family at once.
    by_cutoff : tuple of float
        The difference at each cut-off, NaN where it is undefined and left out; one number where there is one cut-off.
    seeds : int or None
        Training seeds behind each value; None where that was not recorded.
    freedom : float
        Degrees of freedom of `error`; infinite where it is known well.
    family : int
        Comparisons that the adjusted interval holds for at once, this one among them.
    """

    arm: str
    baseline: str
    metric: str
    segment: str
    value: float
    baseline_value: float
    difference: float
    relative: float
    low: float
    high: float
    replicates: int
    level: float = 0.95
    seed_sd: float | None = None
    higher_is_better: bool = True
    error: float = float("nan")
    p: float = float("nan")
    p_adjusted: float = float("nan")
    adjusted_low: float = float("nan")
    adjusted_high: float = float("nan")
    by_cutoff: tuple[float, ...] = ()
    seeds: int | None = None
    freedom: float = inf
    family: int = 1

    @property
    def detectable(self) -> float:
        """The smallest true lift, either way, that data as this would have shown with `POWER`."""
        both = quantile((1 + self.level) / 2, self.freedom) + quantile(POWER, self.freedom)
        return both * self.error

    @property
    def digits(self) -> int:
        """Digits that it is shown with."""
        return 5 if self.metric == _LOG_LOSS else 4

    def text(self, digits: int | None = None) -> str:
        """The difference and its interval.

        >>> Lift("llm", "baseline", "auc", "overall", 0.9, 0.89, 0.01, 0.011, 0.005, 0.015, 1000).text()
        '+0.0100 [+0.0050, +0.0150]'
        """
        shown = self.digits if digits is None else digits
        return f"{signed(self.difference, shown)} {interval(self.low, self.high, shown)}"

    @property
    def conclusive(self) -> bool:
        """Whether more than one seed was trained: one interval of one seed holds for its two rankers alone."""
        return self.seeds != 1

    @property
    def better(self) -> bool:
        """The whole interval lies on the good side of zero, and more than one seed was trained."""
        return self.conclusive and (self.low > 0 if self.higher_is_better else self.high < 0)

    @property
    def worse(self) -> bool:
        """The whole interval lies on the bad side of zero, and more than one seed was trained."""
        return self.conclusive and (self.high < 0 if self.higher_is_better else self.low > 0)

    @property
    def state(self) -> State:
        """What the interval says.

        >>> one = Lift("llm", "baseline", "auc", "overall", 0.9, 0.89, 0.01, 0.011, 0.005, 0.015, 1000, seeds=1)
        >>> one.state, replace(one, seeds=3).state
        ('one seed', 'gain')
        """
        if not isfinite(self.difference):
            return "undefined"
        if not self.conclusive:
            return "one seed"
        return "gain" if self.better else "loss" if self.worse else "unclear"

    @property
    def joint(self) -> Lift:
        """The same lift with the interval that holds for its whole family at once."""
        return replace(self, low=self.adjusted_low, high=self.adjusted_high, p=self.p_adjusted)

    @property
    def left_out(self) -> int:
        """Cut-offs that say nothing of it, having no positive or no row, and do not count."""
        return sum(not isfinite(value) for value in self.by_cutoff) if isfinite(self.difference) else 0

    def frame(self) -> pd.DataFrame:
        """One row."""
        return Lifts([self]).frame()

    def plot(self) -> Figure:
        """The difference with both intervals, and what it was at each cut-off."""
        return Lifts([self]).plot()

    def _repr_html_(self) -> str:
        return Lifts([self])._repr_html_()


class Lifts(list[Lift]):
    """Lifts of one bootstrap: a list that shows itself.

    >>> lift = Lift("llm", "baseline", "auc", "overall", 0.9, 0.89, 0.01, 0.011, 0.005, 0.015, 1000)
    >>> Lifts([lift])
    llm − baseline, auc, overall: +0.0100 [+0.0050, +0.0150], above zero
    """

    def __repr__(self) -> str:
        """At most twenty of them, one a line."""
        lines = [
            f"{one.arm} − {one.baseline}, {one.metric}, {one.segment}: {one.text()}, {_says(one)}" for one in self[:20]
        ]
        return "\n".join(lines + ([f"… {len(self) - 20} more: .frame()"] if len(self) > 20 else []))

    def plot(self) -> Figure:
        """Each difference with its interval (thick), that for all comparisons at once (thin), and its cut-offs (dots).

        Choose among many first: ``Lifts(l for l in lifts if l.metric == "auc" and l.segment == "overall").plot()``.
        """
        from ranking.evidence.plots import differences

        return differences(self.frame())

    def _repr_html_(self) -> str:
        shown = [
            "arm",
            "baseline",
            "metric",
            "segment",
            "difference",
            "low",
            "high",
            "adjusted_low",
            "adjusted_high",
            "p",
            "p_adjusted",
            "detectable",
        ]
        return str(self.frame()[shown].to_html(index=False, float_format="{:.5f}".format))

    def frame(self) -> pd.DataFrame:
        """One row per lift."""
        import pandas as pd

        rows = [{**asdict(lift), "detectable": lift.detectable} for lift in self]
        return pd.DataFrame(rows, columns=[*Lift.__dataclass_fields__, "detectable"])

    def get(self, arm: str, baseline: str, metric: str, segment: str = OVERALL) -> Lift:
        """The lift of one arm over another.

        Raises
        ------
        KeyError
            When the two were not compared on that metric and segment.
        """
        for lift in self:
            if (lift.arm, lift.baseline, lift.metric, lift.segment) == (arm, baseline, metric, segment):
                return lift
        raise KeyError((arm, baseline, metric, segment))


def _says(lift: Lift) -> str:
    """What an interval says, and what it leaves out."""
    left_out = f", {lift.left_out} of {len(lift.by_cutoff)} cut-offs say nothing of it" if lift.left_out else ""
    if lift.state == "undefined":
        return "not measurable"
    return outcome(lift.better, lift.worse, one_seed=not lift.conclusive) + left_out


def as_lifts(records: Iterable[Mapping[str, Any]]) -> Lifts:
    """Lifts from what `Lifts.frame` or JSON kept of them (null where a value was undefined)."""
    numbers = {name for name, kind in Lift.__annotations__.items() if kind == "float"}
    nan = float("nan")
    filled: list[dict[str, Any]] = [
        {key: nan if value is None and key in numbers else value for key, value in record.items()} for record in records
    ]
    fields = Lift.__dataclass_fields__  # a frame has derived columns too
    arguments = [{key: value for key, value in record.items() if key in fields} for record in filled]
    for record in arguments:
        record["by_cutoff"] = tuple(nan if value is None else value for value in record.get("by_cutoff", ()))
        record["freedom"] = record["freedom"] if isfinite(record.get("freedom", inf)) else inf  # JSON knows none
        if "seeds" not in record and record.get("seed_sd") is None:  # before seeds were recorded: one left no spread
            record["seeds"] = 1
    return Lifts(Lift(**record) for record in arguments)
