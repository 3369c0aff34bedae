"""Settings that follow from the data's span: defaults suit a year, and some weeks of labels need smaller ones."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from advprior.store.contract import EASE, HYBRID, L3AE, LLM, NEIGHBOURS, POPULARITY, SASREC, TimePlan

#: Where a predictor keeps the days of labels that validate it, and their default; all have `horizon_days` of 7.
_VALID_DAYS = {
    LLM: (("training", "valid_days"), 21.0),
    SASREC: (("valid_days",), 21.0),
    HYBRID: (("valid_days",), 21.0),
    POPULARITY: (("valid_days",), 21.0),
    NEIGHBOURS: (("valid_days",), 28.0),
    EASE: (("valid_days",), 28.0),
    L3AE: (("valid_days",), 28.0),
}
_HORIZON_DAYS = 7.0


def settings_for_span(predictor: str, plan: TimePlan | None) -> dict[str, Any]:
    """Settings that must be smaller than their defaults because the labels before `finetune_end` span too few days.

    A quarter of them may validate, and a horizon is a ninth at most; empty where the defaults fit.

    Examples
    --------
    >>> from datetime import UTC, datetime, timedelta
    >>> day, start = timedelta(days=1), datetime(2024, 1, 1, tzinfo=UTC)
    >>> plan = TimePlan(start, start + 36 * day, start + 70 * day, start + 80 * day, start + 100 * day)
    >>> settings_for_span("llm", plan)
    {'horizon_days': 4, 'training': {'valid_days': 9}}
    """
    if plan is None or predictor not in _VALID_DAYS:
        return {}
    days = (plan.finetune_end - plan.start) / timedelta(days=1)
    keys, default = _VALID_DAYS[predictor]
    settings: dict[str, Any] = {}
    if days / 9 < _HORIZON_DAYS:
        settings["horizon_days"] = max(1, int(days / 9))
    if days / 4 < default:
        value: Any = max(1, int(days / 4))
        for key in reversed(keys):
            value = {key: value}
        settings |= value
    return settings


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, the second's where both say something.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result
