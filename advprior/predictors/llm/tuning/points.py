"""Training points: every occasion of a history and every snapshot within it, with what the user turned to next.

One causal forward serves all points of a user. Everything here is as of its time: a point sees events before it,
and its targets end by the cut-off. The first point of a user lies before their first event: the profile is all that it
sees, as it is for users without a history.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.targets import Targets, first_occasion, targets_of
from advprior.predictors.base import FitData
from advprior.predictors.llm.prompts import Prompt, PromptEncoder, PromptWindow, occasions_before
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.logit import fit_logit
from advprior.predictors.offset import Offset, OffsetTerms
from advprior.store.arrays import Bool, Double, Float, Int
from advprior.store.progress import tracked

CHUNK_USERS = 1000
VALID_CELLS, LEAST_VALID = 100_000_000, 1000  # of validation points × advertisers, and points whatever N is
SAMPLE = 6000  # training points that weigh what the logits start from


@dataclass
class WindowPoints:
    """Training points of one window of one user.

    Attributes
    ----------
    window : PromptWindow
    user : int
    positions, moments : int64 [P]
        Position in the window; the point sees events before this moment (microseconds).
    weight : float32 [P]
        Of the point in the loss: 1, or less for old ones.
    train, valid : bool [P]
    again : bool [P]
        Whether the point is fitted on when the network is fitted again up to the cut-off.
    no_history : bool [P]
        Whether the point validates what is said of users without a history; it is no point of ``valid`` then.
    ends : int64 [P]
        When the label comes (microseconds), as far as a point is a wait for one.
    truth : Targets
        Advertisers turned to, of P points.
    interests : Targets
        Product categories turned to; none of C = 0 where interests are not asked for.
    """

    window: PromptWindow
    user: int
    positions: Int
    moments: Int
    weight: Float
    train: Bool
    valid: Bool
    again: Bool
    no_history: Bool
    ends: Int
    truth: Targets
    interests: Targets


def training_points(data: FitData, encoder: PromptEncoder, settings: LLMSettings) -> list[WindowPoints]:
    """Points whose whole target window ends by the cut-off, split in time.

    Training points are all occasions (just after each), a moment before the first and weekly snapshots with targets
    that end before ``cutoff - valid_days``; validation points are the weekly snapshots after that, the way priors are
    used. Where the drift around labels is asked for, each wait for an occasion is one training point instead.
    """
    maker = _Maker(data, settings, np.random.default_rng(settings.training.seed))
    points: list[WindowPoints] = []
    drawn = maker.users()
    # many users at once: looking targets up costs a pass over everyone's events
    for start in tracked(range(0, len(drawn), CHUNK_USERS), "training points", f"{CHUNK_USERS:,} users"):
        users = drawn[start : start + CHUNK_USERS].tolist()
        prompts = [(user, prompt) for user in users if len((prompt := encoder.prompt(data.histories, user)).times)]
        if not prompts:
            continue
        times = [maker.moments(prompt) for _, prompt in prompts]
        who = np.repeat([user for user, _ in prompts], [len(moments) for moments, _ in times])
        targets = maker.targets(who, np.concatenate([moments for moments, _ in times]))
        stop = 0
        for (user, prompt), (moments, ends) in zip(prompts, times, strict=True):
            begin, stop = stop, stop + len(moments)
            chosen = maker.choose(prompt, moments, ends, targets[0].counts[begin:stop])
            if not len(chosen.rows):
                continue
            truth, categories = (of.take(begin + chosen.rows) for of in targets)
            seen = occasions_before(prompt, chosen.moments)
            for window in encoder.windows(prompt, seen):
                within = np.isin(seen, window.occasions)
                points.append(
                    WindowPoints(
                        window=window,
                        user=user,
                        positions=window.positions[np.searchsorted(window.occasions, seen[within])],
                        moments=chosen.moments[within],
                        weight=chosen.weight[within],
                        train=chosen.train[within],
                        valid=chosen.valid[within],
                        again=chosen.again[within],
                        no_history=chosen.no_history[within],
                        ends=chosen.ends[within],
                        truth=truth.take(within),
                        interests=categories.take(within),
                    )
                )
    return _few_to_validate(points, len(data.catalog), settings.training.seed)


def _few_to_validate(points: list[WindowPoints], size: int, seed: int) -> list[WindowPoints]:
    """Of the points that validate, over a wide catalog, some at random: each is judged by all of it."""
    most, rng = max(VALID_CELLS // size, LEAST_VALID), np.random.default_rng(seed)
    for which in ("valid", "no_history"):
        masks = [getattr(p, which) for p in points]
        places = np.flatnonzero(np.concatenate(masks)) if masks else np.zeros(0, np.int64)
        if len(places) > most:
            stay = np.zeros(sum(map(len, masks)), np.bool_)
            stay[rng.choice(places, most, replace=False)] = True
            for p, mask in zip(points, np.split(stay, np.cumsum([len(mask) for mask in masks])[:-1]), strict=True):
                setattr(p, which, mask)
    return [p for p in points if (p.train | p.valid | p.again | p.no_history).any()]


@dataclass(frozen=True)
class _Chosen:
    """Points of one user that train or validate: rows of the moments asked for, and columns of `WindowPoints`."""

    rows: Int
    moments: Int
    ends: Int
    weight: Float
    train: Bool
    valid: Bool
    again: Bool
    no_history: Bool


class _Maker:
    """Moments, targets and weights of the points of a user."""

    def __init__(self, data: FitData, settings: LLMSettings, rng: np.random.Generator) -> None:
        self._data, self._settings, self._rng = data, settings, rng
        self._draw = np.random.default_rng(settings.training.seed + 1)
        self._waits = settings.drift.around_days is not None  # each wait for an occasion is one training point
        self._first = settings.target == "first"
        self._horizon = int(settings.horizon_days * DAY)
        self._border = data.cutoff - int(settings.training.valid_days * DAY)
        last = data.cutoff - self._horizon
        self._weeks = np.arange(last, data.start, -data.snapshot_every, dtype=np.int64)[::-1]

    def users(self) -> Int:
        """Users in order: all, or those drawn whose training points are ``max_points`` together, by a bound from above.

        A user has a point for each occasion and one before the first, and the weekly moments that lie within a horizon
        before an occasion.
        """
        histories, training = self._data.histories, self._settings.training
        every = np.arange(len(histories), dtype=np.int64)
        if training.max_points is None:
            return every
        later = (np.diff(histories.user_of_row, prepend=-1) != 0) | (np.diff(histories.time, prepend=-1) != 0)
        occasions = np.bincount(histories.user_of_row[later], minlength=len(histories))
        weekly = occasions * -(-self._horizon // self._data.snapshot_every)
        bound = occasions + (0 if self._waits else (occasions > 0) + np.minimum(weekly, len(self._weeks)))
        if training.points_a_user is not None:
            bound = np.minimum(bound, training.points_a_user)
        if bound.sum() <= training.max_points:
            return every
        order = np.random.default_rng(training.seed).permutation(every)
        order = order[occasions[order] > 0]
        count = max(int(np.searchsorted(np.cumsum(bound[order]), training.max_points, side="right")), 1)
        print(
            f"fitted on {count:,} of {len(every):,} users, drawn at random: training.max_points is "
            f"{training.max_points:,}, and all of them have up to {int(bound.sum()):,} points",
            file=sys.stderr,
        )
        return np.sort(order[:count])

    def moments(self, prompt: Prompt) -> tuple[Int, Int]:
        """Moments of occasions (or within the waits for them) and then weekly ones [P]; when the waits end [W].

        The first wait is that for the first occasion: of the weekly moments before it the last one is among them.
        """
        first = prompt.times[0]
        weeks = self._weeks[max(int(np.searchsorted(self._weeks, first, side="right")) - 1, 0) :]
        waits = _within(self._since(prompt), self._horizon, self._rng)
        if self._waits:
            return np.concatenate([waits, weeks]), prompt.times
        return np.concatenate([waits[:1], prompt.times + 1, weeks]), np.concatenate([[first], prompt.times])

    def _since(self, prompt: Prompt) -> Int:
        """Times of occasions after that of the start of the tables, before which nobody waits [K + 1]."""
        return np.concatenate([[min(self._data.start, int(prompt.times[0])) - 1], prompt.times])

    def targets(self, user: Int, moment: Int) -> tuple[Targets, Targets]:
        """Advertisers turned to, and interests where they are wanted, of points of many users."""
        data, interests = self._data, self._data.interests if self._settings.interests.weight else None
        advertisers = self._next(data.histories, user, moment, len(data.catalog))
        if interests is None:
            return advertisers, Targets.none(len(user))
        return advertisers, self._next(interests.histories, user, moment, len(interests.catalog))

    def _next(self, histories: Histories, user: Int, moment: Int, size: int) -> Targets:
        # a point sees events before its moment: what happens at that very time is target
        until = first_occasion(histories, user, moment - 1, self._horizon) if self._first else self._horizon
        return targets_of(histories, user, moment - 1, until, size)

    def choose(self, prompt: Prompt, moments: Int, ends: Int, counts: Int) -> _Chosen:
        """The points of a user that have a target [P] and lie on one side of the border with all of their horizon."""
        weekly = np.arange(len(moments)) >= len(ends)
        ends = np.concatenate([ends, np.zeros(weekly.sum(), np.int64)])
        late = (moments >= self._border) & weekly
        no_history = late & (moments <= prompt.times[0])
        valid = late & ~no_history
        if self._waits:
            told_by = ends if self._first else moments + self._horizon - 1  # the last event that tells the target
            train, again = ~weekly & (told_by < self._border), ~weekly & (told_by < self._data.cutoff)
        else:
            train, again = moments + self._horizon <= self._border, np.zeros(len(moments), bool)
            # users whose first event lies in a week weigh no more than by the one point before it
            train &= ~(weekly & (moments <= prompt.times[0]))
        train, again = self._most(train & (counts > 0), again & (counts > 0), moments)
        rows = np.flatnonzero((counts > 0) & (train | late | again))
        weight = self._weight(prompt, moments, weekly)[rows].astype(np.float32)
        masks = (mask[rows] for mask in (train, valid, again, no_history))
        return _Chosen(rows, moments[rows], ends[rows], weight, *masks)

    def _most(self, train: Bool, again: Bool, moments: Int) -> tuple[Bool, Bool]:
        """Points that are fitted on [P], and again, no more of a user than the settings let be."""
        most, places = self._settings.training.points_a_user, np.flatnonzero(train | again)
        if most is None or len(places) <= most:
            return train, again
        if self._settings.training.points_of_user == "drawn":
            places = self._draw.permutation(places)
        else:
            places = places[np.argsort(-moments[places], kind="stable")]
        stay = np.zeros(len(train), np.bool_)
        stay[places[:most]] = True
        return train & stay, again & stay

    def _weight(self, prompt: Prompt, moments: Int, weekly: Bool) -> Double:
        """Weight of each point in the loss [P]: by its age and, of a wait, by its length."""
        half_life = self._settings.training.recency_half_life_days
        age = np.maximum(self._data.cutoff - moments, 0) / DAY
        weight = np.ones(len(age)) if half_life is None else 0.5 ** (age / half_life)
        if self._waits:
            shares = np.minimum(np.diff(self._since(prompt)), self._horizon) / self._horizon
            weight = weight * np.concatenate([shares**self._settings.drift.gap_power, np.ones(weekly.sum())])
        return weight


def _within(times: Int, horizon: int, rng: np.random.Generator) -> Int:
    """A moment in each wait for the next of ``times``, no earlier than the horizon before it; it has not come yet."""
    ends = times[1:]
    begins = np.maximum(times[:-1] + 1, ends - horizon + 1)
    return begins + (rng.random(len(ends)) * (ends - begins + 1)).astype(np.int64)


def fit_habit(data: FitData, points: list[WindowPoints], settings: LLMSettings, limit: int = SAMPLE) -> Offset:
    """Habit and drift weights on (a sample of) the training points."""
    rng = np.random.default_rng(settings.training.seed)
    train = sample(points, limit, rng)
    # a point's whole truth scaled is a weight of the point in the likelihood
    truth = train.truth.times(train.weight)
    shape = OffsetTerms((settings.habit.popularity_half_life_days,), settings.habit.half_lives_days, monthly=False)
    # popularity hardly moves within a day
    day = train.moment // DAY * DAY
    terms = shape.sparse(data.histories, train.user, train.moment, len(data.catalog), everyone_at=day)
    weights = fit_logit(terms, truth, centre=[1.0, *[0.0] * len(shape.own)])
    return Offset(shape, tuple(map(float, weights)))


@dataclass(frozen=True)
class TrainingPoints:
    """Training points of all windows together.

    Attributes
    ----------
    user, moment, end : int64 [P]
    weight : float32 [P]
    truth : Targets
    """

    user: Int
    moment: Int
    end: Int
    weight: Float
    truth: Targets


def sample(points: list[WindowPoints], limit: int, rng: np.random.Generator) -> TrainingPoints:
    """Training points, drawn at random where they are more than ``limit``."""
    some = [p for p in points if p.train.any()]
    user = np.concatenate([np.full(int(p.train.sum()), p.user) for p in some])
    moment, end, weight = (
        np.concatenate([getattr(p, of)[p.train] for p in some]) for of in ("moments", "ends", "weight")
    )
    truth = Targets.joined([p.truth.take(p.train) for p in some])
    chosen = np.arange(len(user))
    if len(user) > limit:
        chosen = rng.choice(len(user), limit, replace=False)
    return TrainingPoints(user[chosen], moment[chosen], end[chosen], weight[chosen], truth.take(chosen))
