"""Lift: one arm minus another on one metric and segment, with its intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from ranking.evidence.wording import interval, outcome, signed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OVERALL = "overall"
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
        Standard deviation of such a difference between training seeds; None with one seed.
    higher_is_better : bool
    error : float
        Standard error of the difference: users and training seeds.
    p, p_adjusted : float
        Two-sided, from the bootstrap: alone, and among its family of comparisons (max-t).
    adjusted_low, adjusted_high : float
        Interval that holds for the whole family at once.
    by_cutoff : tuple of float
        The difference at each cut-off; one number where there is one cut-off.
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

    @property
    def detectable(self) -> float:
        """The smallest true lift, either way, that data as this would have shown with `POWER`."""
        normal = NormalDist()
        return (normal.inv_cdf((1 + self.level) / 2) + normal.inv_cdf(POWER)) * self.error

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
    def better(self) -> bool:
        """The whole interval lies on the good side of zero."""
        return self.low > 0 if self.higher_is_better else self.high < 0

    @property
    def worse(self) -> bool:
        """The whole interval lies on the bad side of zero."""
        return self.high < 0 if self.higher_is_better else self.low > 0

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
    llm − baseline, auc, overall: +0.0100 [+0.0050, +0.0150], a clear gain
    """

    def __repr__(self) -> str:
        """At most twenty of them, one a line."""
        lines = [
            f"{one.arm} − {one.baseline}, {one.metric}, {one.segment}: {one.text()}, {outcome(one.better, one.worse)}"
            for one in self[:20]
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
    return Lifts(Lift(**record) for record in arguments)
