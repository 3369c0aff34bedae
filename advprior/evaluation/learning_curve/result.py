"""What a learning curve says: rows of differences, where each fades to nothing, and one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import product
from typing import Any

import numpy as np

from advprior.evaluation.learning_curve.arms import LEXICAL
from advprior.evaluation.learning_curve.cells import METRICS, SEGMENTS, CellResult
from advprior.evaluation.learning_curve.encoders import random_control
from advprior.evaluation.learning_curve.pool import Point, crossing, difference
from advprior.evaluation.terms import LOGIT
from advprior.store.arrays import Int

BEST_WITH, BEST_WITHOUT = "best with an LLM", "best without an LLM"
HIGHER_IS_BETTER = {"recall@5": True, "nll": False}


@dataclass
class Cells:
    """All cells by cut-off and size.

    Attributes
    ----------
    everyone : int
        Users of the tables.
    tested : dict of datetime to int64 [P]
    by_place : dict of (datetime, size) to list of CellResult
        A list of draws; size None means all users.
    """

    everyone: int
    tested: dict[datetime, Int] = field(default_factory=dict)
    by_place: dict[tuple[datetime, int | None], list[CellResult]] = field(default_factory=dict)
    unmeasured: int = 0

    def add(self, cutoff: datetime, size: int | None, cell: CellResult | None) -> None:
        """Take a cell; one that had no label to fit on is counted only."""
        if cell is None:
            self.unmeasured += 1
            return
        self.by_place.setdefault((cutoff, size), []).append(cell)

    def at(self, cutoffs: Sequence[datetime], size: int | None) -> list[list[CellResult]] | None:
        """Equally many draws of each cut-off; None where one has none."""
        draws = [self.by_place.get((cutoff, size), []) for cutoff in cutoffs]
        most = min(map(len, draws))
        return [some[:most] for some in draws] if most else None


def result_of(cells: Cells, sizes: Sequence[int | None], cutoffs: Sequence[datetime]) -> dict[str, Any]:
    """``curve``, ``crossing``, ``chosen``, ``sentence`` and ``cells_without_labels``."""
    llms = sorted({name for draws in cells.by_place.values() for cell in draws for name in cell.llms})
    rows, chosen = [], []
    points: dict[tuple[str, str, str], dict[float, Point]] = {}
    for size in sizes:
        best = {cutoff: _best(cells, cutoff, size) for cutoff in cutoffs if cells.at([cutoff], size)}
        chosen += [_chosen_row(cells, cutoff, size, *names) for cutoff, names in best.items()]
        for place in _places(cells, size, best):
            segments = SEGMENTS if place.draw is None else SEGMENTS[:1]
            for (arm, baseline), metric, segment in product(_comparisons(llms), METRICS, segments):
                point = place.point(arm, baseline, metric, segment)
                if point is None:
                    continue
                rows.append(place.about() | _row(arm, baseline, metric, segment, point))
                if place.pooled and segment == "overall":
                    points.setdefault((arm, baseline, metric), {})[rows[-1]["users"]] = point
    crossings = [
        {"arm": arm, "baseline": baseline, "metric": metric}
        | crossing(by_size, higher_is_better=HIGHER_IS_BETTER[metric])
        for (arm, baseline, metric), by_size in points.items()
        if len(by_size) > 1
    ]
    result = {"curve": rows, "crossing": crossings, "chosen": chosen, "cells_without_labels": cells.unmeasured}
    return result | {"sentence": sentence(result)}


def _comparisons(llms: Sequence[str]) -> list[tuple[str, str]]:
    """(arm, baseline): the best against the best, each LLM arm against what it must beat, and the controls' own."""
    pairs = [(BEST_WITH, BEST_WITHOUT), (LEXICAL, LOGIT)]
    for arm in llms:
        control = random_control(arm)
        pairs += [(arm, base) for base in (BEST_WITHOUT, LEXICAL, LOGIT, control)] + [(control, LOGIT)]
    return pairs


def _best(cells: Cells, cutoff: datetime, size: int | None) -> tuple[str, str]:
    """Names of the best arm with an LLM and without, by nats of held-out labels before the cut-off."""
    draws = cells.by_place[cutoff, size]
    names = draws[0].names
    nats = np.mean([[cell.valid_nll[cell.names.index(name)] for name in names] for cell in draws], axis=0)
    llms = draws[0].llms
    by_kind = [
        [(n, name) for n, name in zip(nats, names, strict=True) if (name in llms) is kind and not np.isnan(n)]
        for kind in (True, False)
    ]
    return min(by_kind[0])[1], min(by_kind[1])[1]


def _chosen_row(cells: Cells, cutoff: datetime, size: int | None, arm: str, baseline: str) -> dict[str, Any]:
    fitted = cells.by_place[cutoff, size][0]
    about = {"cutoff": cutoff.isoformat(), "users": fitted.fitted_users, "labels": fitted.fitted_labels}
    return about | {BEST_WITH: arm, BEST_WITHOUT: baseline}


@dataclass(frozen=True)
class _Place:
    """Some cut-offs at one number of users, all draws or one, and the names of the best arms at each cut-off."""

    cells: Cells
    cutoffs: Sequence[datetime]
    size: int | None
    best: Mapping[datetime, tuple[str, str]]
    pooled: bool = False
    draw: int | None = None

    def point(self, arm: str, baseline: str, metric: str, segment: str) -> Point | None:
        """One difference; None where a cut-off has no cell or nobody in the segment."""
        draws = self.cells.at(self.cutoffs, self.size) if self.cutoffs else None
        if draws is None:
            return None
        if self.draw is not None:
            draws = [some[self.draw : self.draw + 1] for some in draws]
        named = [dict(zip((BEST_WITH, BEST_WITHOUT), self.best[cutoff], strict=True)) for cutoff in self.cutoffs]
        arms = [(names.get(arm, arm), names.get(baseline, baseline)) for names in named]
        if any(name not in some[0].names for some, both in zip(draws, arms, strict=True) for name in both):
            return None
        tested = [self.cells.tested[cutoff] for cutoff in self.cutoffs]
        return difference(draws, tested, self.cells.everyone, arms, metric, segment)

    def about(self) -> dict[str, Any]:
        """Which place it is, for a row."""
        fitted = [cell.fitted_users for cutoff in self.cutoffs for cell in self.cells.by_place[cutoff, self.size]]
        cutoff = None if self.pooled else self.cutoffs[0].isoformat()
        users = round(float(np.mean(fitted)))
        return {"cutoff": cutoff, "users": users, "all_users": self.size is None, "draw": self.draw}


def _places(cells: Cells, size: int | None, best: Mapping[datetime, tuple[str, str]]) -> Iterator[_Place]:
    """Every draw of every cut-off, each cut-off, and all of them pooled."""
    for cutoff in best:
        for draw in range(len(cells.by_place[cutoff, size])):
            yield _Place(cells, [cutoff], size, best, draw=draw)
        yield _Place(cells, [cutoff], size, best)
    yield _Place(cells, list(best), size, best, pooled=True)


def _row(arm: str, baseline: str, metric: str, segment: str, point: Point) -> dict[str, Any]:
    low, high = point.interval()
    what = {"segment": segment, "arm": arm, "baseline": baseline, "metric": metric}
    return what | {"difference": point.mean, "low": low, "high": high, "tested": round(point.users)}


def sentence(result: dict[str, Any]) -> str:
    """What a prior from texts is worth at the most users that were measured, by whom, and where it fades."""
    best, words = (_pooled(result, arm, base) for arm, base in ((BEST_WITH, BEST_WITHOUT), (LEXICAL, LOGIT)))
    if not best:
        return "Nothing could be measured: no chosen user has a label before a cut-off."
    users = max(users for users, _ in best)
    overall = best[users, "overall"]
    text = (
        f"At {users:,} users a language model that reads texts changes the NLL by {_signed(overall)} against the best "
    )
    text += f"arm without one: {_verdict(overall)}."
    if (users, "overall") in words:
        text += f" Words alone, without a model, change that of counts by {_signed(words[users, 'overall'])}."
    clear = [row for (size, name), row in best.items() if size == users and name != "overall" and row["high"] < 0]
    if clear:
        text += " By itself, not corrected for how many were looked at, it gains for "
        text += ", ".join(f"{_called(row['segment'])} ({_signed(row)})" for row in clear) + "."
    fewest = best[min(users for users, _ in best), "overall"]
    fading = next((row for row in result["crossing"] if (row["arm"], row["metric"]) == (BEST_WITH, "nll")), None)
    if fading and fading["users"] and fewest["high"] < 0:
        ends = [f"{fading[end]:,.0f}" if fading[end] else "unknown" for end in ("low", "high")]
        text += f" The gain fades to nothing at about {fading['users']:,.0f} users [{', '.join(ends)}]."
    return text


def _pooled(result: dict[str, Any], arm: str, baseline: str) -> dict[tuple[int, str], dict[str, Any]]:
    """Pooled rows of NLL by number of users and segment."""
    return {
        (row["users"], row["segment"]): row
        for row in result["curve"]
        if row["cutoff"] is None and (row["arm"], row["baseline"], row["metric"]) == (arm, baseline, "nll")
    }


def _verdict(row: dict[str, Any]) -> str:
    return "a clear gain" if row["high"] < 0 else "a clear loss" if row["low"] > 0 else "no clear effect"


def _signed(row: dict[str, Any]) -> str:
    text = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
    return text.replace("-", "−")


def _called(segment: str) -> str:
    kind, _, size = segment.partition(" ")
    return f"advertisers with {size} events" if kind == "advertiser" else f"users with {size} events"
