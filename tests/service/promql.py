"""Just enough of PromQL to let the alert rules fire and clear on made series; what it does not know is an error.

Instant vectors of labelled numbers: selectors with =, =~; rate over a range; sum, max, min by labels; numbers, + - * /,
histogram_quantile, comparisons that filter. As https://prometheus.io/docs/prometheus/latest/querying/basics has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

Labels = tuple[tuple[str, str], ...]
Vector = dict[Labels, float]
_TOKEN = re.compile(r'\s*(?:(\d+(?:\.\d+)?)|([a-zA-Z_:][\w:]*)|("[^"]*")|(=~|!=|>=|<=|[-+*/(){}\[\],=><]))')
_RANGE = {"s": 1, "m": 60, "h": 3600}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else math.nan if not a else math.inf,
}


@dataclass
class Series:
    """Samples by series: (name, labels) to seconds and values, rising in time."""

    samples: dict[tuple[str, Labels], list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, at: float, name: str, value: float, **labels: str) -> None:
        self.samples.setdefault((name, tuple(sorted(labels.items()))), []).append((at, value))

    def select(
        self, name: str, matchers: list[tuple[str, str, str]]
    ) -> Iterator[tuple[Labels, list[tuple[float, float]]]]:
        for (own, labels), points in self.samples.items():
            values = dict(labels)
            fits = (
                re.fullmatch(text, values.get(label, "")) if how == "=~" else values.get(label, "") == text
                for label, how, text in matchers
            )
            if own == name and all(fits):
                yield labels, points


class Query:
    """One expression, to be evaluated at a moment.

    >>> series = Series()
    >>> for minute in range(6):
    ...     series.add(60 * minute, "hits_total", 30 * minute, path="/a")
    >>> Query("sum(rate(hits_total[5m])) > 0.4").at(series, 300)
    {(): 0.5}
    """

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at = 0
        while text[at:].strip():
            token = _TOKEN.match(text, at)
            assert token is not None, f"not understood: {text[at:]}"
            self._tokens.append(token[0].strip())
            at = token.end()

    def at(self, series: Series, now: float) -> Vector:
        self._place, self._series, self._now = 0, series, now
        value = self._comparison()
        assert self._place == len(self._tokens), f"left over: {self._tokens[self._place :]}"
        assert isinstance(value, dict)
        return value

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, *expected: str) -> str:
        token = self._peek()
        assert not expected or token in expected, f"{token!r} in the place of {expected}"
        self._place += 1
        return token

    def _comparison(self) -> Vector | float:
        left = self._sum()
        if self._peek() not in _COMPARE:
            return left
        compare, right = _COMPARE[self._take()], self._sum()
        assert isinstance(left, dict)
        other = (lambda labels: right) if isinstance(right, float) else right.get  # type: ignore[union-attr]
        return {k: v for k, v in left.items() if (limit := other(k)) is not None and compare(v, limit)}

    def _sum(self) -> Vector | float:
        return self._binary(("+", "-"), lambda: self._binary(("*", "/"), self._atom))

    def _binary(self, operators: tuple[str, ...], operand: Callable[[], Vector | float]) -> Vector | float:
        left = operand()
        while self._peek() in operators:
            act, right = _ARITHMETIC[self._take()], operand()
            if isinstance(left, float) and isinstance(right, float):
                left = act(left, right)
            elif isinstance(left, float):
                left = {k: act(left, v) for k, v in right.items()}  # type: ignore[union-attr]
            elif isinstance(right, float):
                left = {k: act(v, right) for k, v in left.items()}
            else:
                left = {k: act(v, right[k]) for k, v in left.items() if k in right}
        return left

    def _atom(self) -> Vector | float:
        token = self._take()
        if token == "(":
            inside = self._comparison()
            self._take(")")
            return inside
        if re.fullmatch(r"[\d.]+", token):
            return float(token)
        if token in ("sum", "max", "min"):
            return self._aggregate(token)
        if token == "rate":
            self._take("(")
            rates = self._rate(*self._selector(self._take()))
            self._take(")")
            return rates
        if token == "histogram_quantile":
            self._take("(")
            share = float(self._take())
            self._take(",")
            buckets = self._comparison()
            self._take(")")
            return _quantile(share, buckets)  # type: ignore[arg-type]
        name, matchers = self._selector(token)
        return {k: p[-1][1] for k, points in self._series.select(name, matchers) if (p := self._until(points))}

    def _aggregate(self, how: str) -> Vector:
        by: list[str] = []
        if self._peek() == "by":
            self._take()
            self._take("(")
            while (token := self._take()) != ")":
                by += [] if token == "," else [token]
        self._take("(")
        inside = self._comparison()
        self._take(")")
        groups: dict[Labels, list[float]] = {}
        for labels, value in inside.items():  # type: ignore[union-attr]
            groups.setdefault(tuple(pair for pair in labels if pair[0] in by), []).append(value)
        act = {"sum": sum, "max": max, "min": min}[how]
        return {labels: float(act(values)) for labels, values in groups.items()}

    def _selector(self, name: str) -> tuple[str, list[tuple[str, str, str]]]:
        matchers = []
        if self._peek() == "{":
            self._take()
            while self._peek() != "}":
                label, how, text = self._take(), self._take("=", "=~"), self._take().strip('"')
                matchers.append((label, how, text))
                if self._peek() == ",":
                    self._take()
            self._take("}")
        return name, matchers

    def _rate(self, name: str, matchers: list[tuple[str, str, str]]) -> Vector:
        self._take("[")
        seconds = float(self._take()) * _RANGE[self._take()]
        self._take("]")
        rates = {}
        for labels, points in self._series.select(name, matchers):
            inside = [p for p in self._until(points) if p[0] > self._now - seconds - 1e-9]
            if len(inside) > 1:
                steps = pairwise(inside)
                grown = sum(b[1] - a[1] if b[1] >= a[1] else b[1] for a, b in steps)  # a restart begins at 0
                rates[labels] = grown / (inside[-1][0] - inside[0][0])
        return rates

    def _until(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [point for point in points if point[0] <= self._now]


def _quantile(share: float, buckets: Vector) -> Vector:
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in buckets.items():
        bound = float(dict(labels)["le"].replace("+Inf", "inf"))
        groups.setdefault(tuple(pair for pair in labels if pair[0] != "le"), []).append((bound, count))
    quantiles = {}
    for labels, bounds in groups.items():
        bounds.sort()
        wanted, (low, below) = share * bounds[-1][1], (0.0, 0.0)
        for bound, count in bounds:
            if count >= wanted and count:
                width = bound - low
                quantiles[labels] = low if math.isinf(width) else low + width * (wanted - below) / (count - below)
                break
            low, below = bound, count
    return quantiles
