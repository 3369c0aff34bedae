"""The paired bootstrap: differences of arms with an interval that resamples users.

Rows of one user hang together, so users are resampled, not rows (a cluster bootstrap: Davison & Hinkley 1997, 3.8),
and both arms of a comparison see the same users in every replicate: what is left is the difference between the arms.
Rankers trained on other seeds differ too. An arm's value is the *mean over its seeds' values*, not the value of
averaged scores; what training leaves in a lift is read off the pair's own differences by seed
(`advprior.store.uncertainty`). With one seed it cannot be: the interval then holds for the two trained rankers only,
and nothing is called clear. No interval of a pair depends on which other arms there are; intervals that hold for many
pairs at once (``adjusted``) do, since they answer for all of them.

**Several cut-offs** (rolling origin): a metric is taken within each cut-off, since scores of rankers trained on other
spans do not share a scale, and averaged over cut-offs. A user drawn in a replicate is drawn in all of them. A cut-off
where a segment has no positive says nothing of it: it is left out, and `Lift.left_out` counts it.

**Several comparisons**: of one metric, four families are held jointly: comparisons with the baseline on all test rows,
comparisons among other arms there, and each of the two on all segments together.

**Power**: with standard error s the smallest true lift that a two-sided test at 5 % detects four times in five is
(1.96 + 0.84) s = 2.8 s (Cohen 1988, 2.4), or more by Student's quantiles where s is known from few seeds. A lift that
is "not clear" says little about effects below it.

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
from advprior.store.progress import Progress
from advprior.store.uncertainty import Joint, Spread, jointly, spread
from ranking.evidence.lift import OVERALL, Lift, Lifts
from ranking.evidence.metrics import DEFAULT_METRICS, Metric, Rows

_MANY = 1_000_000_000  # users, where nobody says how few they are
_BLOCK = 50  # replicates at a time: keeps the curves' [positives, replicates] arrays near the cache
_CELLS = 5_000_000  # of such an array, or of [users, replicates], at most: 40 MB, and a curve takes some six of them
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

    @property
    def telling(self) -> dict[str, int]:
        """Users with a positive in each segment: how many a difference of arms is told by."""
        return {name: len(np.unique(self.user[mask & (self.label == 1)])) for name, mask in self.segments.items()}

    def rows(self, score: ArrayLike) -> Iterator[tuple[str, int, Rows]]:
        """The scored rows of every segment and cut-off; slates are sorted once for all of them."""
        whole = Rows.of(self.label, score, user=self.user, slate=self.slate, users=self.users)
        for segment, mask in self.segments.items():
            for c in range(self.cutoffs):
                chosen = mask & (self.cutoff == c) if self.cutoffs > 1 else mask
                yield segment, c, whole if chosen.all() else whole.part(chosen)


def user_draws(users: int, replicates: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each user is drawn, [users], one replicate after the other."""
    rng = np.random.default_rng(seed)
    for _ in range(replicates):
        yield np.bincount(rng.integers(0, users, users), minlength=users)


def user_weights(users: int, replicates: int, seed: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """How often each user is drawn in each replicate, ``[replicates, users]``; small integers to save memory.

    One byte holds it: of many users one is drawn once on average, and 256 times in no replicate that anyone will see.
    Where it happens all the same, two bytes do.
    """
    drawn: NDArray[np.uint8] | NDArray[np.uint16] = np.empty((replicates, users), dtype=np.uint8)
    for i, counts in enumerate(user_draws(users, replicates, seed)):
        if counts.max(initial=0) > np.iinfo(drawn.dtype).max:
            drawn = drawn.astype(np.uint16)
        drawn[i] = counts
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
            most = max(self.outcomes.users, len(np.unique(rows.score[rows.label == 1])), 1)
            block = max(1, min(_BLOCK, _CELLS // most))
            for start in range(0, self.options.replicates, block):
                weights = np.ascontiguousarray(self.drawn[start : start + block].T, dtype=np.float64)
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
    options = options or Resampling()
    if len({len(of_arm) for of_arm in scores.values()}) > 1:
        raise ValueError("every arm needs scores of as many seeds")
    resampler = Resampler.of(outcomes, options)
    draws: dict[str, list[Draws]] = {arm: [] for arm in scores}
    total = sum(map(len, scores.values()))
    with Progress(total, "bootstrap", "ranker", shown=options.progress) as progress:
        for arm, of_arm in scores.items():
            for score in of_arm:
                draws[arm].append(resampler.draws(score)[0])
                progress.update()
    return lifts_of(draws, pairs, options, outcomes.telling)


def lifts_of(
    draws: Mapping[str, Sequence[Draws]],
    pairs: Iterable[tuple[str, str]],
    options: Resampling,
    users: Mapping[str, int] | None = None,
) -> Lifts:
    """Lifts from what `Resampler.draws` gave for each arm's rankers, one entry per training seed.

    Parameters
    ----------
    draws : mapping of arm to list of Draws
    pairs : iterable of (arm, against)
    options : Resampling
    users : mapping of segment to int, optional
        Users that a segment's lifts are told by; as many as one likes without.
    """
    pairs = list(pairs)
    segments = list(dict.fromkeys(segment for segment, _ in next(iter(draws.values()))[0]))
    lifts: dict[tuple[str, str], list[Lift]] = {}
    for place, metric in enumerate(options.metrics):
        rng = np.random.default_rng([options.seed, 1, place])
        tables = [_Table(metric, segment, options, (users or {}).get(segment, _MANY)) for segment in segments]
        for family in ([t for t in tables if t.segment == OVERALL], [t for t in tables if t.segment != OVERALL]):
            for table, compared in zip(family, _compare(draws, pairs, family, rng), strict=True):
                lifts[table.segment, metric.name] = compared
    return Lifts(lift for segment in segments for metric in options.metrics for lift in lifts[segment, metric.name])


@dataclass(frozen=True)
class _Table:
    """What the comparisons of one metric and segment share."""

    metric: Metric
    segment: str
    options: Resampling
    users: int


def _compare(
    draws: Mapping[str, Sequence[Draws]],
    pairs: Sequence[tuple[str, str]],
    tables: Sequence[_Table],
    rng: np.random.Generator,
) -> list[list[Lift]]:
    """Lifts of each table; held jointly over all of them, those with the baseline and the others apart."""
    spreads: list[list[Spread]] = []
    values: list[dict[str, Double]] = []
    for table in tables:
        key = (table.segment, table.metric.name)
        by_arm = {arm: np.stack([one[key] for one in of_arm], 1) for arm, of_arm in draws.items()}
        spreads.append([spread(by_arm[a] - by_arm[b], table.users, table.options.level) for a, b in pairs])
        values.append({arm: of_arm[:, :, 0].mean(axis=1) for arm, of_arm in by_arm.items()})
    joint: dict[tuple[int, int], Joint] = {}
    for of_baseline in (True, False):
        members = [
            (t, i)
            for t in range(len(tables))
            for i, (_, against) in enumerate(pairs)
            if (against == pairs[0][1]) is of_baseline
        ]
        level = tables[0].options.level if tables else 0.95
        joint |= zip(members, jointly([spreads[t][i] for t, i in members], level, rng), strict=True)
    seeds = len(next(iter(draws.values())))
    return [
        [
            _lift(pair, table, spreads[t][i], joint[t, i], [values[t][arm] for arm in pair], seeds)
            for i, pair in enumerate(pairs)
        ]
        for t, table in enumerate(tables)
    ]


def _lift(
    pair: tuple[str, str], table: _Table, one: Spread, joint: Joint, by_cutoff: Sequence[Double], seeds: int
) -> Lift:
    measured = np.isfinite(one.by_cutoff)
    value, reference = (float(of[measured].mean()) if measured.any() else float("nan") for of in by_cutoff)
    return Lift(
        arm=pair[0],
        baseline=pair[1],
        metric=table.metric.name,
        segment=table.segment,
        value=value,
        baseline_value=reference,
        difference=one.difference,
        relative=one.difference / reference if reference else float("nan"),
        low=one.low,
        high=one.high,
        replicates=table.options.replicates,
        level=table.options.level,
        seed_sd=one.seed_sd,
        higher_is_better=table.metric.higher_is_better,
        error=one.error,
        p=joint.p,
        p_adjusted=joint.p_adjusted,
        adjusted_low=joint.low,
        adjusted_high=joint.high,
        by_cutoff=tuple(one.by_cutoff.tolist()),
        seeds=seeds,
        freedom=one.freedom,
        family=joint.family,
    )
