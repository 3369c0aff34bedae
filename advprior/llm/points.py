"""Training points: every occasion of a history and every snapshot within it, with what the user turned to next.

One causal forward serves all points of a user. Everything here is as of its time: a point sees events before it,
and its targets end by the cut-off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from advprior.predictors.base import FitData, Float
from advprior.predictors.counts import DAY, own_points
from advprior.predictors.habit import Habit, fit_weights, habit_terms
from advprior.predictors.llm import LLMSettings
from advprior.prompts import PromptEncoder, Window, occasions_before
from advprior.targets import dense, first_occasion, next_advertisers


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
    truth: Float
    offset: Float
    interests: Float


def training_points(data: FitData, encoder: PromptEncoder, settings: LLMSettings) -> list[Points]:
    """Points whose whole target window ends by the cut-off, split in time.

    Training points are all occasions (just after each) and weekly snapshots with targets that end before
    ``cutoff - valid_days``; validation points are the weekly snapshots after that, the way priors are used.
    """
    horizon = int(settings.horizon_days * DAY)
    border = data.cutoff - int(settings.training.valid_days * DAY)
    half_life = settings.training.recency_half_life_days
    first = settings.target == "first"
    interests = data.interests if settings.interests.weight else None
    weeks = np.arange(data.cutoff - horizon, data.start, -data.snapshot_every, dtype=np.int64)[::-1]
    found = []
    for user in range(len(data.histories)):
        prompt = encoder.prompt(data.histories, user)
        if not len(prompt.times):
            continue
        moments = np.concatenate([prompt.times + 1, weeks[weeks > prompt.times[0]]])
        weekly = np.arange(len(moments)) >= len(prompt.times)
        train, valid = moments + horizon <= border, (moments >= border) & weekly
        who = np.full(len(moments), user)
        until = first_occasion(data.histories, who, moments - 1, horizon) if first else horizon
        truth = dense(*next_advertisers(data.histories, who, moments - 1, until), len(data.catalog))
        keep = (truth.sum(1) > 0) & (train | valid)
        if not keep.any():
            continue
        who, moments, truth, train, valid = who[keep], moments[keep], truth[keep], train[keep], valid[keep]
        age = np.maximum(data.cutoff - moments, 0) / DAY
        weight = (np.ones(len(age)) if half_life is None else 0.5 ** (age / half_life)).astype(np.float32)
        categories = np.zeros((len(moments), 0), np.float32)
        if interests is not None:
            until = first_occasion(interests.histories, who, moments - 1, horizon) if first else horizon
            targets = next_advertisers(interests.histories, who, moments - 1, until)
            categories = dense(*targets, len(interests.catalog))
        seen = occasions_before(prompt, moments)
        for window in encoder.windows(prompt, seen):
            rows = np.isin(seen, window.occasions)
            found.append(
                Points(
                    window=window,
                    user=user,
                    positions=window.positions[np.searchsorted(window.occasions, seen[rows])],
                    moments=moments[rows],
                    weight=weight[rows],
                    train=train[rows],
                    valid=valid[rows],
                    truth=truth[rows],
                    offset=np.zeros((0, len(data.catalog)), np.float32),
                    interests=categories[rows],
                )
            )
    return found


def fit_habit(data: FitData, points: list[Points], settings: LLMSettings, limit: int = 6000) -> Habit:
    """Habit and drift weights on (a sample of) the training points; fills in every point's offset."""
    user = np.concatenate([np.full(len(p.moments), p.user) for p in points])
    moment = np.concatenate([p.moments for p in points])
    train = np.flatnonzero(np.concatenate([p.train for p in points]))
    # a point's whole truth scaled is a weight of the point in the likelihood
    truth = np.concatenate([p.truth * p.weight[:, None] for p in points])
    if len(train) > limit:
        train = np.random.default_rng(settings.training.seed).choice(train, limit, replace=False)
    half_life, half_lives = settings.habit.popularity_half_life_days, settings.habit.half_lives_days
    size = len(data.catalog)
    # popularity hardly moves within a day
    terms = habit_terms(data.histories, user[train], moment[train] // DAY * DAY, half_life, (), size)
    own = [own_points(data.histories, user[train], moment[train], h, size) for h in half_lives]
    weights, _ = fit_weights(
        np.concatenate([terms, np.log1p(own).reshape(-1, len(train), size)]), truth[train], [1.0, *[0.0] * len(own)]
    )
    habit = Habit(half_life, tuple(half_lives), tuple(map(float, weights)))
    # all points at once: one pass over everyone's events, not one a user
    offset = habit.logits(data.histories, user, moment, size)
    for p, part in zip(points, np.split(offset, np.cumsum([len(p.moments) for p in points])[:-1]), strict=True):
        p.offset = part
    return habit
