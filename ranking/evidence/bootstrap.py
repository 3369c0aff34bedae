"""The paired bootstrap: differences of arms with an interval that resamples users.

Rows of one user hang together, so users are resampled, not rows (a cluster bootstrap: Davison & Hinkley 1997, 3.8),
and both arms of a comparison see the same users in every replicate: what is left is the difference between the arms.
Rankers trained on other seeds differ too. An arm's value is the *mean over its seeds' values*, not the value of
averaged scores; the variance that training leaves in that mean is estimated between seeds, pooled over arms (few
seeds say little alone), and added to every replicate as a t-distributed term. With one seed it cannot be estimated:
the interval then holds for the trained rankers only.

**Several cut-offs** (rolling origin): a metric is taken within each cut-off, since scores of rankers trained on other
spans do not share a scale, and averaged over cut-offs. A user drawn in a replicate is drawn in all of them.

**Several comparisons**: single-step max-t (Westfall & Young 1993, algorithm 2.5). The comparisons of one metric and
segment with the baseline are a family, those among the other arms another. Each replicate gives the largest
|difference − its mean| / standard error of the family; its quantile widens all intervals alike (``simultaneous``), and
the share of replicates beyond a lift's own ratio is its adjusted p. Being joint, it costs less than Bonferroni or
Holm where arms are alike.

**Power**: with standard error s the smallest true lift that a two-sided test at 5 % detects four times in five is
(1.96 + 0.84) s = 2.8 s (Cohen 1988, 2.4). A lift that is "not clear" says little about effects below it.

>>> from ranking.evidence.metrics import Auc
>>> outcomes = Outcomes.of(label=[1, 0, 1, 0, 1, 0], user=[0, 0, 1, 1, 2, 2])
>>> good, bad = [.9, .1, .8, .2, .7, .3], [.1, .9, .8, .2, .7, .3]
>>> options = Resampling(metrics=(Auc(),))
>>> lift = paired_bootstrap({"bad": [bad], "good": [good]}, outcomes, [("good", "bad")], options)[0]
>>> round(lift.difference, 3), lift.replicates
(0.556, 1000)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from advprior.store.arrays import Double, Int
from ranking.evidence.lift import OVERALL, Lift, Lifts
from ranking.evidence.metrics import DEFAULT_METRICS, Metric, Rows

_BLOCK = 50  # replicates at a time: keeps the curves' [positives, replicates] arrays near the cache
#: Values of one ranker: (segment, metric) to [cut-offs, 1 + replicates], the first of them unweighted.
Draws = dict[tuple[str, str], Double]


@dataclass(frozen=True)
class Resampling:
    """What is resampled, how often, and for which metrics.

    Parameters
    ----------
    metrics : tuple of Metric
    replicates : int
        Resamplings of users.
    level : float
        Nominal coverage of the intervals.
    seed : int
        Of the resampling: the same seed draws the same users.
    progress : bool
        Show a bar where there is a terminal.
    """

    metrics: tuple[Metric, ...] = DEFAULT_METRICS
    replicates: int = 1000
    level: float = 0.95
    seed: int = 0
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What happened on the rows that every arm scores.

    Parameters
    ----------
    label : array [n] of 0/1
    user : int array [n]
        Index of the user of each row.
    users : int
        How many there are.
    slate : int array [n], optional
        Index of the slate of each row.
    segments : dict of str to bool array [n]
        `OVERALL` first. A slate is then the segment's part of it.
    cutoff : int array [n]
        Index of the origin that each row was tested at.
    cutoffs : int
    """

    label: NDArray[np.int8]
    user: Int
    users: int
    slate: Int | None
    segments: dict[str, NDArray[np.bool_]]
    cutoff: Int
    cutoffs: int

    @classmethod
    def of(
        cls,
        label: ArrayLike,
        user: ArrayLike,
        *,
        slate: ArrayLike | None = None,
        segments: Mapping[str, ArrayLike] | None = None,
        cutoff: ArrayLike | None = None,
    ) -> Outcomes:
        """Outcomes from anything array-like; users, slates and cut-offs may be of any type that can be sorted."""
        y = np.asarray(label).astype(np.int8)
        names, who = np.unique(np.asarray(user), return_inverse=True)
        masks = {OVERALL: np.ones(len(y), dtype=bool)}
        masks |= {name: np.asarray(mask, dtype=bool) for name, mask in (segments or {}).items()}
        origins, origin = (
            (np.zeros(1), np.zeros(len(y), dtype=np.int64))
            if cutoff is None
            else np.unique(np.asarray(cutoff), return_inverse=True)
        )
        slates = None if slate is None else np.unique(np.asarray(slate), return_inverse=True)[1]
        return cls(y, who, len(names), slates, masks, origin, len(origins))

    def rows(self, score: ArrayLike) -> Iterator[tuple[str, int, Rows]]:
        """The scored rows of every segment and cut-off; slates are sorted once for all of them."""
        whole = Rows.of(self.label, score, user=self.user, slate=self.slate, users=self.users)
        for segment, mask in self.segments.items():
            for c in range(self.cutoffs):
                chosen = mask & (self.cutoff == c) if self.cutoffs > 1 else mask
                yield segment, c, whole if chosen.all() else whole.part(chosen)


def user_weights(users: int, replicates: int, seed: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """How often each user is drawn in each replicate, ``[replicates, users]``; small integers to save memory."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((replicates, users), dtype=np.uint8 if users < 256 else np.uint16)
    for i in range(replicates):
        drawn[i] = np.bincount(rng.integers(0, users, users), minlength=users)
    return drawn


@dataclass(frozen=True, eq=False)
class Resampler:
    """Draws the same users for every ranker.

    Parameters
    ----------
    outcomes : Outcomes
    options : Resampling
    drawn : int array [replicates, users]
    """

    outcomes: Outcomes
    options: Resampling
    drawn: NDArray[Any]

    @classmethod
    def of(cls, outcomes: Outcomes, options: Resampling) -> Resampler:
        """With the users that the options' seed draws."""
        return cls(outcomes, options, user_weights(outcomes.users, options.replicates, options.seed))

    def draws(self, score: ArrayLike, also: Sequence[Metric] = ()) -> tuple[Draws, dict[tuple[str, str], float]]:
        """Values of one ranker's scores in every replicate, and of further metrics as they are.

        Parameters
        ----------
        score : array [n]
        also : sequence of Metric
            Taken on the rows as they are, without replicates.

        Returns
        -------
        Draws
        dict of (segment, metric) to float
            The value of the metrics in ``also``; of the first cut-off.
        """
        draws: Draws = {}
        extra: dict[tuple[str, str], float] = {}
        shape = (self.outcomes.cutoffs, 1 + self.options.replicates)
        for segment, c, rows in self.outcomes.rows(score):
            plain = np.ones((self.outcomes.users, 1))
            for metric in self.options.metrics:
                draws.setdefault((segment, metric.name), np.empty(shape))[c, 0] = metric.weighted(rows, plain)[0]
            for metric in also:
                extra.setdefault((segment, metric.name), float(metric.weighted(rows, plain)[0]))
            for start in range(0, self.options.replicates, _BLOCK):
                weights = np.ascontiguousarray(self.drawn[start : start + _BLOCK].T, dtype=np.float64)
                for metric in self.options.metrics:
                    values = metric.weighted(rows, weights)
                    draws[segment, metric.name][c, 1 + start : 1 + start + len(values)] = values
        return draws, extra


def paired_bootstrap(
    scores: Mapping[str, Sequence[ArrayLike]],
    outcomes: Outcomes,
    pairs: Iterable[tuple[str, str]],
    options: Resampling | None = None,
) -> Lifts:
    """Lift of every comparison on every metric and segment, resampling users.

    Parameters
    ----------
    scores : mapping of arm to list of array [n]
        Probabilities of one row set, one array per training seed; every arm has as many. With several cut-offs, rows
        of one seed's array were scored by as many rankers as there are cut-offs.
    outcomes : Outcomes
        Of those rows.
    pairs : iterable of (arm, against)
    options : Resampling, optional

    Returns
    -------
    Lifts
        Not a number where a metric is undefined, as AUC is without a positive.

    Raises
    ------
    ValueError
        When arms have scores of unlike numbers of seeds.
    """
    from tqdm.auto import tqdm

    options = options or Resampling()
    if len({len(of_arm) for of_arm in scores.values()}) > 1:
        raise ValueError("every arm needs scores of as many seeds")
    resampler = Resampler.of(outcomes, options)
    draws: dict[str, list[Draws]] = {arm: [] for arm in scores}
    total = sum(map(len, scores.values()))
    with tqdm(total=total, desc="bootstrap", unit="ranker", disable=None if options.progress else True) as bar:
        for arm, of_arm in scores.items():
            for score in of_arm:
                draws[arm].append(resampler.draws(score)[0])
                bar.update()
    return lifts_of(draws, pairs, options)


def lifts_of(draws: Mapping[str, Sequence[Draws]], pairs: Iterable[tuple[str, str]], options: Resampling) -> Lifts:
    """Lifts from what `Resampler.draws` gave for each arm's rankers, one entry per training seed."""
    pairs = list(pairs)
    rng = np.random.default_rng([options.seed, 1])
    segments = list(dict.fromkeys(segment for segment, _ in next(iter(draws.values()))[0]))
    lifts = Lifts()
    for segment in segments:
        for metric in options.metrics:
            # [cut-offs, seeds, 1 + replicates] of each arm
            by_arm = {arm: np.stack([one[segment, metric.name] for one in of_arm], 1) for arm, of_arm in draws.items()}
            lifts += _compare(by_arm, pairs, _Family(metric, segment, options), rng)
    return lifts


@dataclass(frozen=True)
class _Family:
    """What the comparisons of one table share."""

    metric: Metric
    segment: str
    options: Resampling


def _compare(
    by_arm: Mapping[str, Double], pairs: Sequence[tuple[str, str]], family: _Family, rng: np.random.Generator
) -> list[Lift]:
    """Lifts of one metric and segment from values ``[cut-offs, seeds, 1 + replicates]`` of each arm."""
    options, metric = family.options, family.metric
    origins, seeds = next(iter(by_arm.values())).shape[:2]
    seed_sd = _between_seeds([values[:, :, 0] for values in by_arm.values()]) if seeds > 1 else None
    replicates = []
    for arm, against in pairs:
        replicate = (by_arm[arm] - by_arm[against])[:, :, 1:].mean(axis=(0, 1))
        if seed_sd:
            luck = rng.standard_t(len(by_arm) * origins * (seeds - 1), options.replicates)
            replicate = replicate + seed_sd / np.sqrt(seeds * origins) * luck
        replicates.append(replicate)
    # means over cut-offs and seeds
    values = [(float(by_arm[arm][:, :, 0].mean()), float(by_arm[other][:, :, 0].mean())) for arm, other in pairs]
    joint = _max_t([value - against for value, against in values], replicates, pairs, options.level)
    lifts = []
    for (arm, other), (value, reference), replicate, of_family in zip(pairs, values, replicates, joint, strict=True):
        low, high = _interval(replicate, options.level)
        lift = Lift(
            arm=arm,
            baseline=other,
            metric=metric.name,
            segment=family.segment,
            value=value,
            baseline_value=reference,
            difference=value - reference,
            relative=(value - reference) / reference if reference else float("nan"),
            low=low,
            high=high,
            replicates=options.replicates,
            level=options.level,
            seed_sd=seed_sd,
            seeds=seeds,
            higher_is_better=metric.higher_is_better,
            by_cutoff=tuple((by_arm[arm] - by_arm[other])[:, :, 0].mean(axis=1).tolist()),
            **of_family,
        )
        lifts.append(lift)
    return lifts


def _max_t(
    differences: Sequence[float], replicates: Sequence[Double], pairs: Sequence[tuple[str, str]], level: float
) -> list[dict[str, Any]]:
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


def _between_seeds(values: Sequence[Double]) -> float:
    """Standard deviation between seeds of a difference of two arms, at one cut-off.

    Variances [cut-offs, seeds] averaged over arms and cut-offs, twice.
    """
    return float(np.sqrt(2 * np.mean([of_arm.var(axis=-1, ddof=1) for of_arm in values])))


def _interval(replicate: Double, level: float) -> tuple[float, float]:
    """Percentile interval, of the replicates in which the metric is defined."""
    defined = replicate[np.isfinite(replicate)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
