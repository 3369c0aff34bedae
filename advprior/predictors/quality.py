"""How good a fit is on its last labels: beside what it starts from, and beside popularity.

A likelihood alone says nothing: 5.55 nats may be much or worse than nothing. So every predictor is measured together
with what its logits start from (habit and drift) and with plain popularity, at the same points, and whoever fits one
reads at once whether it has learned anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.history.targets import Targets, quality_by_row
from advprior.predictors.logit import log_softmax
from advprior.predictors.offset import SMOOTHING
from advprior.store.arrays import Int

MODEL, START, POPULAR, SEEN = "model", "start", "popularity", "fitted_on_these_labels"
HALF_LIFE = 30.0  # days, of the popularity that predictors are held against


def popularity_quality(histories: Histories, moment: Int, truth: Targets) -> dict[str, float]:
    """Quality of what everyone turns to lately, at P points.

    Parameters
    ----------
    moment : int64 [P]
        Microseconds: events strictly before count.
    truth : Targets
        Of P points.
    """
    moments, index = np.unique(moment, return_inverse=True)
    decayed = counts.popularity(histories, moments, HALF_LIFE, truth.size)
    return quality_by_row(log_softmax(np.log(decayed + SMOOTHING)), index, truth)


def figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The validation figures of a row of a curve, without their prefix.

    >>> figures({"epoch": 2, "valid_nll": 3.5, "interest_nll": 1.0, "seconds": 4})
    {'nll': 3.5, 'interest_nll': 1.0}
    """
    columns = {name.removeprefix("valid_"): value for name, value in row.items() if name.startswith("valid_")}
    return columns | {name: value for name, value in row.items() if name.startswith("interest_")}


def learned_nothing(facts: Mapping[str, Any]) -> str | None:
    """What is wrong with a fit that is no better than what it starts from; None where it is better, or not known.

    >>> worse = {"valid": {"model": {"nll": 5.55}, "start": {"nll": 5.52}}}
    >>> learned_nothing(worse)
    'worse than the habit and drift that it starts from: NLL 5.550 against 5.520'
    >>> learned_nothing({"valid": {"model": {"nll": 5.5}, "start": {"nll": 5.52}}})
    """
    if facts.get("strength") == 0:
        return "no better than the habit and drift that it starts from: its strength beside them is 0"
    valid = facts.get("valid", {})
    for other, called in ((START, "the habit and drift that it starts from"), (POPULAR, "popularity")):
        ours, theirs = (valid.get(side, {}).get("nll") for side in (MODEL, other))
        if ours is not None and theirs is not None and ours > theirs:
            return f"worse than {called}: NLL {ours:.3f} against {theirs:.3f}"
    return None


def quality_lines(facts: Mapping[str, Any]) -> list[str]:
    """What a fit earned on its last labels, in words; the last line says where it learned nothing.

    Parameters
    ----------
    facts : mapping
        Of a fitted run: ``valid`` holds figures by `MODEL`, `START` and `POPULAR`, as far as there are any.
    """
    valid = facts.get("valid", {})
    if MODEL not in valid or not valid[MODEL].get("points", 1):
        return ["its quality was not measured: `advprior evaluate` does, on later labels"]
    names = {MODEL: str(facts.get("predictor", MODEL)), START: "habit and drift alone", POPULAR: "popularity"}
    width = max(len(names[side]) for side in names if side in valid)
    seen = " (it was fitted on these)" if valid.get(SEEN) else ""
    lines = [f"on the last labels before the cut-off{seen}:"]
    for side, name in names.items():
        if side in valid:
            one = valid[side]
            recalls = ", ".join(f"Recall@{k} {one[f'recall@{k}']:.3f}" for k in (5, 20) if f"recall@{k}" in one)
            lines.append(f"  {name:<{width}}  NLL {one['nll']:.3f} nats a target, {recalls}")
    problem = learned_nothing(facts)
    if problem is not None:
        lines.append(f"warning: {problem}. Its priors would tell a ranker nothing new; more epochs, another learning")
        lines.append("  rate, more layers or more users may help; do not publish it as it is")
    stopped = facts.get("stopped_by_max_minutes")
    if stopped:
        lines.append(f"max_minutes ended: {', '.join(stopped)}")
    return lines
