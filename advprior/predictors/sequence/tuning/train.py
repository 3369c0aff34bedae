"""Fitting the sequence network: choose on the last labels, then fit again on all.

1. The network is fitted on labels before ``cutoff - valid_days``, on top of the drift around each label.
2. The labels after that, asked for from one or a few snapshots, choose the number of passes. On the same labels a
   conditional logit then weighs what is known at a snapshot: drift so far, habit, and the strength of the deviation.
3. The network is fitted again on all labels before ``cutoff`` for that many passes; the weights stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.targets import quality_of_blocks
from advprior.predictors.base import FitData
from advprior.predictors.deadline import Deadline
from advprior.predictors.labels import MORE_EVENTS, LabelSpan, require_choosing_labels
from advprior.predictors.logit import log_softmax
from advprior.predictors.offset import Offset, OffsetTerms, weigh
from advprior.predictors.quality import MODEL, POPULAR, START, figures, popularity_quality
from advprior.predictors.sequence.points import Target, WaitRules, Waits, waits
from advprior.predictors.sequence.settings import SequenceSettings
from advprior.predictors.sequence.tokens import Vocabulary
from advprior.predictors.sequence.tuning.network import SequenceNetwork
from advprior.predictors.sequence.tuning.passes import Judge, Learner, Recipe, best_pass
from advprior.predictors.sequence.tuning.snapshots import Snapshots
from advprior.predictors.tuning.compute import Compute, within_memory
from advprior.store.arrays import Float
from advprior.store.errors import AdvpriorError
from advprior.store.runs import write_json

SHORT = 64  # events that are read whatever the histories are
WEIGHTS, PARAMETERS = "network.pt", "parameters.json"


@within_memory()
def fit_sequence(
    data: FitData,
    settings: SequenceSettings,
    out: Path,
    encodings: Float | None = None,
    deadline: Deadline | None = None,
) -> dict[str, Any]:
    """Fit a network and write it into ``out``.

    Parameters
    ----------
    data : FitData
    settings : SequenceSettings
    out : Path
    encodings : float32 [N, D], optional
        Of the advertisers' texts.
    deadline : Deadline, optional
        Of all of the fit, encodings included; from ``training.max_minutes`` by default.

    Returns
    -------
    dict
        Facts for the manifest: the curve, the epoch chosen, weights, quality on the labels that chose them beside that
        of the offset alone; ``context``, the events that are read.

    Raises
    ------
    AdvpriorError
        ``PRI006`` when there is nothing to fit on or to choose with, ``PRI018`` when the horizon is longer than
        ``valid_days``.
    """
    require_choosing_labels(settings.horizon_days, settings.valid_days, "valid_days")
    context = trained_context(settings.network.context, data.histories)
    network = settings.network.model_copy(update={"context": context})
    settings = settings.model_copy(update={"network": network})
    compute = Compute.of()
    fit = _Fit(data, settings, encodings, deadline or Deadline(settings.training.max_minutes), compute.device)
    with _one_thread() if compute.device.type == "cpu" else nullcontext():
        return {**fit.run(out), "compute": compute.facts()}


def trained_context(most: int, past: Histories) -> int:
    """Events that are read: as many as a tenth of the users have, so that each place in a window is trained.

    A place that no history of the fit reaches would keep its random embedding, and later histories are longer.

    >>> lengths = np.array([10, 70, 80, 100, 120])
    >>> h = Histories(("",) * 5, ("",) * 5, np.r_[0, lengths.cumsum()], np.zeros(380, int), np.zeros(380, int))
    >>> trained_context(512, h), trained_context(32, h)
    (112, 32)
    """
    lengths = np.diff(past.offsets)
    reached = int(np.quantile(lengths[lengths > 0], 0.9)) if len(past.time) else 0
    return min(most, max(reached, SHORT))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products this small gain nothing from a second thread, and wait for it where the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Fit:
    """The three steps of one fit, and what they share."""

    def __init__(
        self,
        data: FitData,
        settings: SequenceSettings,
        encodings: Float | None,
        deadline: Deadline,
        device: torch.device,
    ) -> None:
        self._deadline, self._device = deadline, device
        training, horizon = settings.training, int(settings.horizon_days * DAY)
        self.data, self.settings, self.encodings = data, settings, encodings
        self.border = data.cutoff - int(settings.valid_days * DAY)
        self.target = Target(horizon, len(data.catalog), settings.target == "first")
        self.rules = WaitRules(
            horizon,
            training.recency_half_life_days,
            training.gap_power,
            training.points_a_history,
            training.seed,
        )

    def run(self, out: Path) -> dict[str, Any]:
        """All steps; writes into ``out``."""
        data, training = self.data, self.settings.training
        early = self._learner(self.border, training.epochs)
        points = Snapshots.since(data, self.border, self.target, training.seed)
        _require_labels(early.waits, points)
        judge = Judge(data.histories, points, OffsetTerms(self.settings.offset.popular, self.settings.offset.own))
        network, curve, weighings = early.learn(training.epochs, judge, self._deadline.part(1 + training.refit))
        best = best_pass(curve)
        weights, strength = weighings[best]
        offset = Offset(judge.shape, weights)

        stopped = ["fit"] if early.late else []
        last, again = early, list[dict[str, Any]]()
        if training.refit:
            final = self._learner(data.cutoff, training.epochs)
            if self._has_time(curve[: best + 1], len(final.waits) / len(early.waits)):
                last = final
                network, again, _ = final.learn(best + 1)
            else:
                stopped.append("fit again")
        network.to("cpu").strength.fill_(strength)
        self._write(out, network, offset, last.vocabulary)
        alone = judge.terms.blocks(weigh(judge.terms, points.target)[0])
        valid = {
            MODEL: figures(curve[best]),
            START: quality_of_blocks(map(log_softmax, alone), points.target),
            POPULAR: popularity_quality(data.histories, points.moment, points.target),
        }
        return {
            **LabelSpan.micros(data.cutoff if again else self.border, data.cutoff).to_json(),
            "labels": {"train": len(early.waits), "refit": len(last.waits), "valid": len(points)},
            "curve": curve,
            "refit_curve": again,
            "stopped_by_max_minutes": stopped,
            "best_epoch": best + 1,
            "strength": strength,
            "context": self.settings.network.context,
            "offset": offset.to_json(),
            "valid": valid,
            "parameters": {"trained": sum(p.numel() for p in network.parameters())},
        }

    def _has_time(self, curve: list[dict[str, Any]], more: float) -> bool:
        """Whether the passes of ``curve`` would end by the deadline on so many times as many labels."""
        return float(sum(row["seconds"] for row in curve)) * more <= self._deadline.left

    def _learner(self, until: int, planned: int) -> Learner:
        """Ready to fit on labels before ``until``, with a learning rate that falls over ``planned`` passes."""
        past = self.data.histories.before(until) if until < self.data.cutoff else self.data.histories
        recipe = Recipe(self.settings, self.target, planned, self.encodings, self._device)
        return Learner(past, Vocabulary.of(past), waits(past, until, self.rules), recipe)

    def _write(self, out: Path, network: SequenceNetwork, offset: Offset, vocabulary: Vocabulary) -> None:
        torch.save(network.state_dict(), out / WEIGHTS)
        parameters = {
            "settings": self.settings.model_dump(mode="json"),
            "offset": offset.to_json(),
            "vocabulary": {
                "categories": vocabulary.categories,
                "profile_fields": vocabulary.profile_fields,
                "profile_levels": vocabulary.profile_levels,
            },
        }
        write_json(out / PARAMETERS, parameters)


def _require_labels(labels: Waits, points: Snapshots) -> None:
    if not len(labels) or not len(points):
        raise AdvpriorError(
            "PRI006",
            "the histories hold too little to fit on",
            where="events before finetune_end",
            actual=f"{len(labels)} labels to fit on, {len(points)} to choose with",
            expected="at least one of each",
            fix=MORE_EVENTS
            if not len(labels) and not len(points)
            else f"{'lower' if len(points) else 'raise'} valid_days, or move finetune_end later",
        )
