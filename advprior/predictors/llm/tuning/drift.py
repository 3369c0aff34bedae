"""Fitting the LLM on how a user differs from everyone at the time, and weighing that beside what a snapshot knows.

As in the sequence network (`predictors.offset`): while it is fitted, the logits start from the events around
each label's own day. What scoring starts from, drift so far and habit, is weighed on validation labels after each
epoch, together with the strength of what the network says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from advprior.history.counts import DAY
from advprior.history.targets import quality
from advprior.predictors.base import FitData
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.llm.tuning.batches import TrainingBatches
from advprior.predictors.llm.tuning.points import WindowPoints
from advprior.predictors.logit import fit_logit, log_softmax
from advprior.predictors.offset import Around, Offset, OffsetTerms, weigh, weighed
from advprior.store.arrays import Float
from advprior.store.errors import AdvpriorError

SAMPLE = 6000  # training points that weigh what the logits start from


class Drift:
    """The points' offsets while fitting, and the weights for scoring.

    Parameters
    ----------
    data : FitData
    points : list of WindowPoints
        Their offsets are filled in: around the label for training points, nothing for validation points.
    order : list of int
        Points in the order of validation.
    settings : LLMSettings
        With ``drift.around_days``.

    Attributes
    ----------
    border : int
        Microseconds: where training labels end and validation labels start.
    """

    def __init__(self, data: FitData, points: list[WindowPoints], order: list[int], settings: LLMSettings) -> None:
        self._data, self._points, self._settings = data, points, settings
        self._size = len(data.catalog)
        self._shape = OffsetTerms(settings.drift.popular, settings.habit.half_lives_days)
        self.border = data.cutoff - int(settings.training.valid_days * DAY)
        for p in points:
            p.offset = np.zeros((len(p.moments), self._size), np.float32)
        self._around(self.border)
        user = np.concatenate([np.full(int(points[i].valid.sum()), points[i].user) for i in order])
        moment = np.concatenate([points[i].moments[points[i].valid] for i in order])
        self._truth = np.concatenate([points[i].truth[points[i].valid] for i in order])
        # a point's targets share it, as in the loss
        self._truth = self._truth / np.maximum(self._truth.sum(1, keepdims=True), 1.0)
        self._terms: Float = self._shape(data.histories, user, moment, self._size)
        self._order = order

    def alone(self) -> Float:
        """Logits of validation points without the network [V, N]."""
        return self._logits(weigh(self._terms, self._truth)[0])

    def judge(self, batches: TrainingBatches) -> dict[str, float]:
        """Validation figures of network and offset, weighed together."""
        log_probs, interests = batches.validate()
        weights, strength = weigh(self._terms, self._truth, log_probs)
        figures = quality(log_softmax(self._logits(weights) + strength * log_probs), self._truth)
        row = {f"valid_{k}": v for k, v in figures.items() if k != "points"}
        if interests.shape[1]:
            of_interests = quality(interests, batches.valid("interests"))
            row |= {f"interest_{k}": of_interests[k] for k in ("nll", "recall@5")}
        return row | {"strength": strength}

    def settle(self, batches: TrainingBatches) -> tuple[Offset, float]:
        """What scoring starts from, and the strength of the network as it is; fills in validation points' offsets."""
        weights, strength = weigh(self._terms, self._truth, batches.validate()[0])
        logits, start = self._logits(weights), 0
        offset = Offset(self._shape, weights)
        for i in self._order:
            p = self._points[i]
            stop = start + int(p.valid.sum())
            p.offset[p.valid] = logits[start:stop]
            start = stop
        some = [p for p in self._points if p.no_history.any()]
        if some:
            user = np.concatenate([np.full(int(p.no_history.sum()), p.user) for p in some])
            moment = np.concatenate([p.moments[p.no_history] for p in some])
            of_each = np.split(
                offset.logits(self._data.histories, user, moment, self._size),
                np.cumsum([int(p.no_history.sum()) for p in some])[:-1],
            )
            for p, part in zip(some, of_each, strict=True):
                p.offset[p.no_history] = part
        return offset, strength

    def up_to_cutoff(self) -> int:
        """Make the points of all labels before the cut-off training points; how many there are."""
        for p in self._points:
            p.train = p.again
        self._around(self._data.cutoff)
        return int(sum(p.train.sum() for p in self._points))

    def _around(self, end: int) -> None:
        """Offsets of training points: everyone's events around the label, of events before ``end``, and habit."""
        settings, size = self._settings, self._size
        some = [p for p in self._points if p.train.any()]
        if not some or settings.drift.around_days is None:
            raise AdvpriorError(
                "PRI006",
                "the histories hold too little to fit on",
                where="events before finetune_end",
                actual="no training point",
                expected="at least one",
                fix="move finetune_end later, lower valid_days, or add events",
            )
        around = Around(self._data.histories.before(end), settings.drift.around_days, size)

        def terms(user: Any, moment: Any, ends: Any) -> Float:
            return np.concatenate(
                [around(user, moment, ends)[None], self._shape.habit(self._data.histories, user, moment, size)]
            )

        user = np.concatenate([np.full(int(p.train.sum()), p.user) for p in some])
        moment, ends, weight = (
            np.concatenate([getattr(p, of)[p.train] for p in some]) for of in ("moments", "ends", "weight")
        )
        truth = np.concatenate([p.truth[p.train] for p in some])
        chosen = np.arange(len(user))
        if len(user) > SAMPLE:
            chosen = np.random.default_rng(settings.training.seed).choice(len(user), SAMPLE, replace=False)
        share = truth[chosen] / np.maximum(truth[chosen].sum(1, keepdims=True), 1.0) * weight[chosen][:, None]
        start = [1.0] + [0.5] * len(self._shape.own)
        weights = fit_logit(terms(user[chosen], moment[chosen], ends[chosen]), share, centre=start)
        del truth
        # many points at a time: a pass over everyone's events each time, and not all terms at once
        stops = np.cumsum([int(p.train.sum()) for p in some])
        begin = 0
        while begin < len(some):
            done = stops[begin - 1] if begin else 0
            stop = max(int(np.searchsorted(stops, done + 20_000, side="right")), begin + 1)
            rows = slice(int(done), int(stops[stop - 1]))
            logits = weighed(terms(user[rows], moment[rows], ends[rows]), weights)
            for p, part in zip(some[begin:stop], np.split(logits, stops[begin : stop - 1] - done), strict=True):
                p.offset[p.train] = part
            begin = stop

    def _logits(self, weights: tuple[float, ...]) -> Float:
        return weighed(self._terms, weights)
