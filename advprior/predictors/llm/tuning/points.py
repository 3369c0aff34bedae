"""Training points: every occasion of a history and every snapshot within it, with what the user turned to next.

One causal forward serves all points of a user. Everything here is as of its time: a point sees events before it,
and its targets end by the cut-off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.targets import dense, first_occasion, next_advertisers
from advprior.predictors.base import FitData
from advprior.predictors.llm.prompts import PromptEncoder, Window, occasions_before
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.logit import fit_logit
from advprior.predictors.offset import Offset, OffsetTerms
from advprior.store.arrays import Float, Int

CHUNK_USERS = 1000
CHUNK_POINTS = 20_000


@dataclass
class Points:
    """Training points of one window of one user.

    Attributes
    ----------
    window : Window
    user : int
    positions, moments : int64 [P]
        Position in the window; the point sees events before this moment (microseconds).
    weight : float32 [P]
        Of the point in the loss: 1, or less for old ones.
    train, valid : bool [P]
    again : bool [P]
        Whether the point is fitted on when the network is fitted again up to the cut-off.
    ends : int64 [P]
        When the label comes (microseconds), as far as a point is a wait for one.
    truth, offset : float32 [P, N]
        Multi-hot targets; what the logits start from (filled in once habit is fitted).
    interests : float32 [P, C]
        Multi-hot product categories turned to; C = 0 where interests are not asked for.
    """

    window: Window
    user: int
    positions: Any
    moments: Any
    weight: Any
    train: Any
    valid: Any
    again: Any
    ends: Any
    truth: Float
    offset: Float
    interests: Float


def training_points(data: FitData, encoder: PromptEncoder, settings: LLMSettings) -> list[Points]:
    """Points whose whole target window ends by the cut-off, split in time.

    Training points are all occasions (just after each) and weekly snapshots with targets that end before
    ``cutoff - valid_days``; validation points are the weekly snapshots after that, the way priors are used.
    Where the drift around labels is asked for, each wait for an occasion is one training point instead.
    """
    drift = settings.drift
    rng = np.random.default_rng(settings.training.seed)
    horizon = int(settings.horizon_days * DAY)
    border = data.cutoff - int(settings.training.valid_days * DAY)
    half_life = settings.training.recency_half_life_days
    first = settings.target == "first"
    interests = data.interests if settings.interests.weight else None
    weeks = np.arange(data.cutoff - horizon, data.start, -data.snapshot_every, dtype=np.int64)[::-1]
    found = []
    # many users at once: looking targets up costs a pass over everyone's events
    for start in range(0, len(data.histories), CHUNK_USERS):
        users = range(start, min(start + CHUNK_USERS, len(data.histories)))
        prompts = [(user, prompt) for user in users if len((prompt := encoder.prompt(data.histories, user)).times)]
        if not prompts:
            continue
        if drift.around_days is None:
            ends = [p.times for _, p in prompts]
            parts = [np.concatenate([p.times + 1, weeks[weeks > p.times[0]]]) for _, p in prompts]
        else:
            ends = [p.times[1:] for _, p in prompts]
            parts = [np.concatenate([_within(p.times, horizon, rng), weeks[weeks > p.times[0]]]) for _, p in prompts]
        moments = np.concatenate(parts)
        who = np.repeat([user for user, _ in prompts], [len(part) for part in parts])
        wanted = _Targets(data.histories, who, moments, horizon, len(data.catalog), only_first=first)
        of_interests = None
        if interests is not None:
            size = len(interests.catalog)
            of_interests = _Targets(interests.histories, who, moments, horizon, size, only_first=first)
        stop = 0
        for (user, prompt), part, end in zip(prompts, parts, ends, strict=True):
            begin, stop = stop, stop + len(part)
            weekly = np.arange(len(part)) >= len(end)
            end = np.concatenate([end, np.zeros(weekly.sum(), np.int64)])
            valid = (part >= border) & weekly
            if drift.around_days is None:
                train, again = part + horizon <= border, np.zeros(len(part), bool)
            else:
                known = end if first else part + horizon - 1  # the last event that tells the target
                train, again = ~weekly & (known < border), ~weekly & (known < data.cutoff)
            keep = (wanted.counts[begin:stop] > 0) & (train | valid | again)
            if not keep.any():
                continue
            rows = begin + np.flatnonzero(keep)
            truth = wanted.dense(rows)
            categories = of_interests.dense(rows) if of_interests else np.zeros((len(rows), 0), np.float32)
            age = np.maximum(data.cutoff - part[keep], 0) / DAY
            weight = np.ones(len(age)) if half_life is None else 0.5 ** (age / half_life)
            if drift.around_days is not None and len(prompt.times) > 1:
                waits = np.minimum(np.diff(prompt.times), horizon) / horizon
                weight = weight * np.concatenate([waits**drift.gap_power, np.ones(weekly.sum())])[keep]
            weight = weight.astype(np.float32)
            seen = occasions_before(prompt, part[keep])
            for window in encoder.windows(prompt, seen):
                here = np.isin(seen, window.occasions)
                found.append(
                    Points(
                        window=window,
                        user=user,
                        positions=window.positions[np.searchsorted(window.occasions, seen[here])],
                        moments=part[keep][here],
                        weight=weight[here],
                        train=train[keep][here],
                        valid=valid[keep][here],
                        again=again[keep][here],
                        ends=end[keep][here],
                        truth=truth[here],
                        offset=np.zeros((0, len(data.catalog)), np.float32),
                        interests=categories[here],
                    )
                )
    return found


def _within(times: Int, horizon: int, rng: np.random.Generator) -> Int:
    """A moment in each wait for the next of ``times``, no earlier than the horizon before it; it has not come yet."""
    ends = times[1:]
    begins = np.maximum(times[:-1] + 1, ends - horizon + 1)
    return begins + (rng.random(len(ends)) * (ends - begins + 1)).astype(np.int64)


class _Targets:
    """Targets of many points, made dense for some of them at a time."""

    def __init__(
        self, histories: Histories, user: Int, moment: Int, horizon: int, size: int, *, only_first: bool
    ) -> None:
        # a point sees events before its moment: what happens at that very time is target
        until = first_occasion(histories, user, moment - 1, horizon) if only_first else horizon
        self._offsets, self._index = next_advertisers(histories, user, moment - 1, until)
        self._size = size
        self.counts = np.diff(self._offsets)

    def dense(self, points: Int) -> Float:
        """Multi-hot [len(points), size]."""
        counts = self.counts[points]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        at = np.arange(offsets[-1]) + np.repeat(self._offsets[points] - offsets[:-1], counts)
        return dense(offsets, self._index[at], self._size)


def fit_habit(data: FitData, points: list[Points], settings: LLMSettings, limit: int = 6000) -> Offset:
    """Habit and drift weights on (a sample of) the training points; fills in every point's offset."""
    user = np.concatenate([np.full(len(p.moments), p.user) for p in points])
    moment = np.concatenate([p.moments for p in points])
    train = np.flatnonzero(np.concatenate([p.train for p in points]))
    if len(train) > limit:
        train = np.random.default_rng(settings.training.seed).choice(train, limit, replace=False)
    starts = np.concatenate([[0], np.cumsum([len(p.moments) for p in points])])
    owner = np.searchsorted(starts, train, side="right") - 1
    # a point's whole truth scaled is a weight of the point in the likelihood
    chosen = [(points[i], row - starts[i]) for i, row in zip(owner, train, strict=True)]
    truth = np.stack([p.truth[row] * p.weight[row] for p, row in chosen])
    size = len(data.catalog)
    shape = OffsetTerms((settings.habit.popularity_half_life_days,), settings.habit.half_lives_days, monthly=False)
    # popularity hardly moves within a day
    drift = shape.everyone(data.histories, moment[train] // DAY * DAY, size)
    terms = np.concatenate([drift, shape.habit(data.histories, user[train], moment[train], size)])
    weights = fit_logit(terms, truth, centre=[1.0, *[0.0] * len(shape.own)])
    habit = Offset(shape, tuple(map(float, weights)))
    # many points a pass over everyone's events, but not all: a row of logits each is the most memory of a fit
    first = 0
    while first < len(points):
        last = max(int(np.searchsorted(starts, starts[first] + CHUNK_POINTS, side="right")) - 1, first + 1)
        rows = slice(starts[first], starts[last])
        offset = habit.logits(data.histories, user[rows], moment[rows], size)
        for p, part in zip(points[first:last], np.split(offset, starts[first + 1 : last] - starts[first]), strict=True):
            p.offset = part
        first = last
    return habit
