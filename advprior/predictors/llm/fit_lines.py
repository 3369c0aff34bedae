"""What a fit of the LLM decided on its validation labels, in words: for its card, and for who ran it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advprior.predictors.llm.saved_prompt import NETWORK, NO_HISTORY, OFFSET_ALONE


def decision_lines(facts: Mapping[str, Any]) -> list[str]:
    """Sentences on the ranking stage and on users without a history; none of a predictor that decides neither.

    >>> decision_lines({"no_history": {"points": 0, "given": "offset_alone"}})
    ['users without a history are given habit and drift alone: none came in the weeks of validation']
    """
    lines = []
    if "ranking" in facts:
        lines.append(_ranking_line(facts["ranking"]))
    if NO_HISTORY in facts:
        lines.append(_no_history_line(facts[NO_HISTORY]))
    return lines


def _ranking_line(ranking: Mapping[str, Any]) -> str:
    before, after = ranking["before"], ranking["after"]
    tried = ranking.get("trials", [])
    of = f"the best of {len(tried)} trials (learning rate × KL weight)" if len(tried) > 1 else "one trial"
    figures = ", ".join(
        f"{name} {before[key]:.3f} → {after[key]:.3f}"
        for name, key in (("reward", "valid_reward"), ("Recall@5", "valid_recall@5"), ("NLL", "valid_nll"))
    )
    verdict = "kept" if ranking["kept"] else "not kept: validation was not better, so the weights are those before it"
    return f"the ranking stage, {of}, was {verdict} ({figures}; {ranking['criterion']})"


def _no_history_line(judged: Mapping[str, Any]) -> str:
    if not judged["points"]:
        return "users without a history are given habit and drift alone: none came in the weeks of validation"
    given = "the network's answer to their profile" if judged["given"] == NETWORK else "habit and drift alone"
    return (
        f"users without a history are given {given}: at {judged['points']} validation points NLL "
        f"{judged[NETWORK]:.3f} of the network, {judged[OFFSET_ALONE]:.3f} of habit and drift alone"
    )
