"""Lift: paired differences of two arms with an interval that resamples users.

Rows of one user hang together, so users are resampled, not rows, and both arms of a pair see the same users in every
replicate: what is left is the difference between the arms. Rankers trained on other seeds differ too. An arm's
value is the *mean over its seeds' values*, not the value of averaged scores; the variance that training leaves in
that mean is estimated between seeds, pooled over arms (few seeds say little alone), and added to every replicate as
a t-distributed term. With one seed it cannot be known: the interval then holds for the trained rankers only.

**Several cut-offs** (rolling origin): a metric is taken within each cut-off, since scores of rankers trained on other
spans do not share a scale, and averaged over cut-offs. A user drawn in a replicate is drawn in all of them.

**Several comparisons**: single-step max-t (Westfall & Young 1993, algorithm 2.5). The comparisons of one metric and
segment with the baseline are a family, those among the other arms another. Each replicate gives the largest
|difference − its mean| / standard error of the family; its quantile widens all intervals alike (``simultaneous``), and
the share of replicates beyond a lift's own ratio is its adjusted p. Being joint, it costs less than Bonferroni or
Holm where arms are alike.

**Power**: with standard error s the smallest true lift that a two-sided test at 5 % finds four times in five is
(1.96 + 0.84) s = 2.8 s. A lift that is "not clear" says little about effects below it.

>>> from ranking.evidence.metrics import Auc
>>> label, user = [1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2]
>>> good, bad = [.9, .1, .8, .2, .7, .3], [.1, .9, .8, .2, .7, .3]
>>> lift = paired_bootstrap({"bad": [bad], "good": [good]}, label, user, [("good", "bad")], metrics=[Auc()])[0]
>>> round(lift.difference, 3), lift.replicates
(0.556, 1000)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ranking.evidence.metrics import DEFAULT_METRICS, Floats, Metric, Rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OVERALL = "overall"
POWER = 0.8  # chance of finding the smallest lift that counts as detectable
_BLOCK = 50  # replicates at a time: keeps the curves' [positives, replicates] arrays near the cache


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
    """Lifts of one bootstrap."""

    def plot(self) -> Figure:
        """Each difference with its interval (thick), that for all comparisons at once (thin), and its cut-offs (dots).

        Choose among many first: ``Lifts(l for l in lifts if l.metric == "auc" and l.segment == "overall").plot()``.
        """
        from ranking.evidence.plots import differences

        return differences(self)

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
        """The lift of one pair."""
        for lift in self:
            if (lift.arm, lift.baseline, lift.metric, lift.segment) == (arm, baseline, metric, segment):
                return lift
        raise KeyError((arm, baseline, metric, segment))


def user_weights(users: int, replicates: int, seed: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """How often each user is drawn in each replicate, ``[replicates, users]``; small integers to save memory."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((replicates, users), dtype=np.uint8 if users < 256 else np.uint16)
    for i in range(replicates):
        drawn[i] = np.bincount(rng.integers(0, users, users), minlength=users)
    return drawn


def paired_bootstrap(
    scores: Mapping[str, Sequence[ArrayLike]],
    label: ArrayLike,
    user: ArrayLike,
    pairs: Iterable[tuple[str, str]],
    *,
    slate: ArrayLike | None = None,
    segments: Mapping[str, ArrayLike] | None = None,
    cutoff: ArrayLike | None = None,
    metrics: Sequence[Metric] = DEFAULT_METRICS,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> Lifts:
    """Lift of every pair on every metric and segment, resampling users.

    Parameters
    ----------
    scores : mapping of arm to list of array [n]
        Probabilities of one row set, one array per training seed; every arm has as many.
    label, user, slate : array [n]
        Of those rows; ``user`` and ``slate`` may be of any type that can be sorted.
    pairs : iterable of (arm, against)
    segments : mapping of name to bool array [n], optional
        Row sets beside the overall one. A slate is then the segment's part of it.
    cutoff : array [n], optional
        Which origin each row was tested at, when rows of several are given: one number a metric and cut-off, then the
        mean. Rows of one seed's array were scored by as many rankers as there are cut-offs.
    replicates : int
    level : float
        Nominal coverage.
    seed : int
        Of the resampling.
    progress : bool
        Show a bar where there is a terminal.

    Returns
    -------
    Lifts
        Not a number where a metric is undefined, as AUC is without a positive.
    """
    from tqdm.auto import tqdm

    label, slate = np.asarray(label), None if slate is None else np.unique(np.asarray(slate), return_inverse=True)[1]
    names, who = np.unique(np.asarray(user), return_inverse=True)
    masks = {
        OVERALL: np.ones(len(label), dtype=bool),
        **{k: np.asarray(v, dtype=bool) for k, v in (segments or {}).items()},
    }
    drawn = user_weights(len(names), replicates, seed)
    seeds = len(next(iter(scores.values())))
    if any(len(of_arm) != seeds for of_arm in scores.values()):
        raise ValueError("every arm needs scores of as many seeds")

    if cutoff is None:
        origins, origin = 1, np.zeros(len(label), dtype=np.int64)
    else:
        found, origin = np.unique(np.asarray(cutoff), return_inverse=True)
        origins = len(found)

    # (segment, arm, metric) -> [cut-offs, seeds, 1 + replicates], first unweighted
    draws: dict[tuple[str, str, str], Floats] = {
        (segment, arm, metric.name): np.empty((origins, seeds, 1 + replicates))
        for segment in masks
        for arm in scores
        for metric in metrics
    }
    bar = tqdm(
        total=len(masks) * len(scores) * seeds * origins,
        desc="bootstrap",
        unit="arm",
        disable=None if progress else True,
    )
    for segment, chosen in masks.items():
        for c in range(origins):
            mask = chosen & (origin == c) if origins > 1 else chosen
            for arm, of_arm in scores.items():
                for s, score in enumerate(of_arm):
                    rows = Rows.of(
                        label[mask],
                        np.asarray(score)[mask],
                        user=who[mask],
                        users=len(names),
                        slate=None if slate is None else slate[mask],
                    )
                    for metric in metrics:
                        draws[segment, arm, metric.name][c, s, 0] = metric(rows)
                    for start in range(0, replicates, _BLOCK):
                        weights = np.ascontiguousarray(drawn[start : start + _BLOCK].T, dtype=np.float64)
                        for metric in metrics:
                            got = metric.weighted(rows, weights)
                            draws[segment, arm, metric.name][c, s, 1 + start : 1 + start + len(got)] = got
                    bar.update()
    bar.close()

    lifts, pairs = Lifts(), list(pairs)
    rng = np.random.default_rng([seed, 1])
    for segment in masks:
        for metric in metrics:
            by_arm = {arm: draws[segment, arm, metric.name] for arm in scores}
            first = [values[:, :, 0] for values in by_arm.values()]
            seed_sd = _between_seeds(first) if seeds > 1 else None
            compared = []
            for a, b in pairs:
                replicate = (by_arm[a] - by_arm[b])[:, :, 1:].mean(axis=(0, 1))
                if seed_sd:
                    luck = rng.standard_t(len(scores) * origins * (seeds - 1), replicates)
                    replicate = replicate + seed_sd / np.sqrt(seeds * origins) * luck
                compared.append(replicate)
            points = [
                (float(by_arm[a][:, :, 0].mean()), float(by_arm[b][:, :, 0].mean())) for a, b in pairs
            ]  # means over cut-offs and seeds
            joint = _max_t([value - against for value, against in points], compared, pairs, level)
            for i, (a, b) in enumerate(pairs):
                value, against = points[i]
                low, high = _interval(compared[i], level)
                lift = Lift(
                    arm=a,
                    baseline=b,
                    metric=metric.name,
                    segment=segment,
                    value=value,
                    baseline_value=against,
                    difference=value - against,
                    relative=(value - against) / against if against else float("nan"),
                    low=low,
                    high=high,
                    replicates=replicates,
                    level=level,
                    seed_sd=seed_sd,
                    higher_is_better=metric.higher_is_better,
                    by_cutoff=tuple((by_arm[a] - by_arm[b])[:, :, 0].mean(axis=1).tolist()),
                    **joint[i],
                )
                lifts.append(lift)
    return lifts


def _max_t(
    differences: Sequence[float], replicates: Sequence[Floats], pairs: Sequence[tuple[str, str]], level: float
) -> list[dict[str, float]]:
    """Standard error, p and interval of each comparison, alone and jointly with its family (module docstring)."""
    undefined = dict.fromkeys(("error", "p", "p_adjusted", "adjusted_low", "adjusted_high"), float("nan"))
    out = [dict(undefined) for _ in pairs]
    for among in (True, False):
        # a comparison that is undefined, or of two equal arms, says nothing and belongs to no family
        family = [
            i
            for i, (_, against) in enumerate(pairs)
            if (against == pairs[0][1]) is among and np.isfinite(differences[i])
        ]
        ratios = {}
        for i in family:
            finite = replicates[i][np.isfinite(replicates[i])]
            error = float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")
            out[i]["error"] = error
            if error > 0:
                ratios[i] = np.abs(replicates[i] - finite.mean()) / error
        if not ratios:
            continue
        largest = np.nanmax(np.nan_to_num(np.stack(list(ratios.values())), nan=0.0), axis=0)
        wide = float(np.quantile(largest, level))
        for i, ratio in ratios.items():
            own = abs(differences[i]) / out[i]["error"]
            # one is added to both, so that no p is zero (Davison & Hinkley 1997, 4.11)
            out[i]["p"] = float((1 + np.sum(ratio >= own)) / (1 + len(ratio)))
            out[i]["p_adjusted"] = float((1 + np.sum(largest >= own)) / (1 + len(largest)))
            out[i]["adjusted_low"] = differences[i] - wide * out[i]["error"]
            out[i]["adjusted_high"] = differences[i] + wide * out[i]["error"]
    return out


def _between_seeds(values: Sequence[Floats]) -> float:
    """Standard deviation between seeds of a difference of two arms, at one cut-off.

    Variances [cut-offs, seeds] averaged over arms and cut-offs, twice.
    """
    return float(np.sqrt(2 * np.mean([of_arm.var(axis=-1, ddof=1) for of_arm in values])))


def _interval(replicate: Floats, level: float) -> tuple[float, float]:
    """Percentile interval, of the replicates in which the metric is defined."""
    defined = replicate[np.isfinite(replicate)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def as_lifts(records: Iterable[Mapping[str, Any]]) -> Lifts:
    """Lifts from what `Lifts.frame` or JSON kept of them (null where a value was undefined)."""
    numbers = {name for name, kind in Lift.__annotations__.items() if kind == "float"}
    nan = float("nan")
    filled: list[dict[str, Any]] = [
        {key: nan if value is None and key in numbers else value for key, value in record.items()} for record in records
    ]
    known = Lift.__dataclass_fields__  # a frame has derived columns too
    kept = [{key: value for key, value in record.items() if key in known} for record in filled]
    for record in kept:
        record["by_cutoff"] = tuple(nan if value is None else value for value in record.get("by_cutoff", ()))
    return Lifts(Lift(**record) for record in kept)
