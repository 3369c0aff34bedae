"""Fitting the LLM on how a user differs from everyone at the time, and weighing that beside what a snapshot knows.

As in the sequence network (`predictors.offset`): while it is fitted, the logits start from the events around
each label's own day. What scoring starts from, drift so far and habit, is weighed on validation labels after each
epoch, together with the strength of what the network says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from advprior.history.counts import DAY
from advprior.history.targets import quality, quality_of_blocks
from advprior.predictors.around import Around
from advprior.predictors.base import FitData
from advprior.predictors.llm.settings import LLMSettings
from advprior.predictors.llm.tuning.batches import TrainingBatches
from advprior.predictors.llm.tuning.points import SAMPLE, WindowPoints, sample
from advprior.predictors.logit import fit_logit, log_softmax
from advprior.predictors.offset import Offset, OffsetTerms, weigh
from advprior.predictors.starts import AroundLabel, AsOf, Nothing
from advprior.predictors.terms import Terms
from advprior.store.arrays import Float
from advprior.store.errors import AdvpriorError


class Drift:
    """What the logits start from while fitting, and the weights for scoring.

    Parameters
    ----------
    data : FitData
    points : list of WindowPoints
    batches : TrainingBatches
        What its logits start from is set: around the label for training points, nothing for validation points.
    settings : LLMSettings
        With ``drift.around_days``.

    Attributes
    ----------
    border : int
        Microseconds: where training labels end and validation labels start.
    """

    def __init__(
        self, data: FitData, points: list[WindowPoints], batches: TrainingBatches, settings: LLMSettings
    ) -> None:
        self._data, self._points, self._batches, self._settings = data, points, batches, settings
        self._size = len(data.catalog)
        self._shape = OffsetTerms(settings.drift.popular, settings.habit.half_lives_days)
        self.border = data.cutoff - int(settings.training.valid_days * DAY)
        nothing = Nothing(self._size)
        batches.starts = {"train": self._around(self.border), "valid": nothing, "no_history": nothing}
        user = np.repeat([points[i].user for i in batches.order], [int(points[i].valid.sum()) for i in batches.order])
        # a point's targets share it, as in the loss
        self._truth = batches.valid("truth").shares()
        self._terms: Terms = self._shape.sparse(data.histories, user, batches.valid("moments"), self._size)

    def alone(self) -> Iterator[Float]:
        """Logits of validation points without the network [b, N], a block of points at a time."""
        return self._terms.blocks(weigh(self._terms, self._truth)[0])

    def judge(self) -> dict[str, float]:
        """Validation figures of network and offset, weighed together."""
        log_probs, interests = self._batches.validate()
        weights, strength = weigh(self._terms, self._truth, log_probs)
        logits = self._terms.beside(log_probs).blocks([*weights, strength])
        figures = quality_of_blocks(map(log_softmax, logits), self._truth)
        row = {f"valid_{k}": v for k, v in figures.items() if k != "points"}
        if interests.shape[1]:
            of_interests = quality(interests, self._batches.valid("interests"))
            row |= {f"interest_{k}": of_interests[k] for k in ("nll", "recall@5")}
        return row | {"strength": strength}

    def settle(self) -> tuple[Offset, float]:
        """What scoring starts from, and the strength of the network as it is; validation points start from it."""
        weights, strength = weigh(self._terms, self._truth, self._batches.validate()[0])
        offset = Offset(self._shape, weights)
        as_of = AsOf(offset, self._data.histories, self._size)
        self._batches.starts |= {"valid": as_of, "no_history": as_of}
        return offset, strength

    def up_to_cutoff(self) -> int:
        """Make the points of all labels before the cut-off training points; how many there are."""
        for p in self._points:
            p.train = p.again
        self._batches.starts["train"] = self._around(self._data.cutoff)
        return int(sum(p.train.sum() for p in self._points))

    def _around(self, end: int) -> AroundLabel:
        """What training points start from: everyone's events around the label, of events before ``end``, and habit."""
        settings = self._settings
        if not any(p.train.any() for p in self._points) or settings.drift.around_days is None:
            raise AdvpriorError(
                "PRI006",
                "the histories hold too little to fit on",
                where="events before finetune_end",
                actual="no training point",
                expected="at least one",
                fix="move finetune_end later, lower valid_days, or add events",
            )
        around = Around(self._data.histories.before(end), settings.drift.around_days, self._size)
        chosen = sample(self._points, SAMPLE, np.random.default_rng(settings.training.seed))
        terms = around.terms(self._shape, chosen.user, chosen.moment, chosen.end)
        share = chosen.truth.shares().times(chosen.weight)
        weights = fit_logit(terms, share, centre=[1.0] + [0.5] * len(self._shape.own))
        return AroundLabel(around, self._shape, tuple(map(float, weights)))
