"""What users without a history are given: the network's answer to their profile, or what it starts from alone.

Both are measured on users whose first event lies in the weeks of validation, at the last weekly snapshot before it.
The network has to be better there by more than the standard error; without such users nothing speaks for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from advprior.history.targets import Targets
from advprior.predictors.llm.saved_prompt import NETWORK, OFFSET_ALONE
from advprior.predictors.llm.tuning.batches import TrainingBatches
from advprior.predictors.logit import log_softmax
from advprior.store.arrays import Double, Float

LEAST_POINTS = 10  # below it a standard error says nothing


def judge_no_history(batches: TrainingBatches) -> dict[str, Any]:
    """Negative log-likelihoods of both at the points without a history.

    Returns
    -------
    dict
        ``points``, ``network`` and ``offset_alone`` (nats, None without points), and ``given``: which of the two.
    """
    truth = batches.valid("truth", "no_history")
    if not len(truth):
        return {"points": 0, NETWORK: None, OFFSET_ALONE: None, "given": OFFSET_ALONE}
    network = _by_point(batches.validate("no_history")[0], truth)
    parts, start = [], 0
    for logits in batches.valid_start("no_history"):
        parts.append(_by_point(log_softmax(logits), truth.take(np.arange(start, start + len(logits)))))
        start += len(logits)
    alone: Double = np.concatenate(parts)
    return {
        "points": len(truth),
        NETWORK: float(network.mean()),
        OFFSET_ALONE: float(alone.mean()),
        "given": better(network, alone),
    }


def better(network: Double, alone: Double) -> str:
    """The network where it is better by more than the standard error of the difference, of `LEAST_POINTS` at least.

    >>> better(np.linspace(4.0, 4.4, 20), np.full(20, 4.6)), better(np.linspace(4.0, 5.0, 20), np.full(20, 4.51))
    ('network', 'offset_alone')
    """
    gain = alone - network
    if len(gain) < LEAST_POINTS:
        return OFFSET_ALONE
    return NETWORK if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)) else OFFSET_ALONE


def _by_point(log_probs: Float, truth: Targets) -> Double:
    """Negative log-likelihood of each point; its targets share it."""
    at = log_probs[truth.point, truth.index].astype(np.float64) * truth.value
    nll: Double = -np.bincount(truth.point, weights=at, minlength=len(truth)) / truth.totals
    return nll
