"""What a learning curve measured: rows of differences, and where each fades to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from advprior.evaluation.learning_curve.arms import LEXICAL, Kin
from advprior.evaluation.learning_curve.cells import METRICS, SEGMENTS, CellResult
from advprior.evaluation.learning_curve.pool import Contrast, Point, crossing, difference
from advprior.evaluation.terms import LOGIT
from advprior.store.arrays import Int

BEST_WITH, BEST_WITHOUT = "best with an LLM", "best without an LLM"
BEST_RANDOM = "its random-weight control"
WORDS = "words in its place"
NO_NAMES = "itself without names"
#: What names add to an arm, less what they add to its random-weight control, or to words in its place: what a network
#: remembers of advertisers, and letters do not tell.
NAMES_BEYOND_RANDOM, NAMES_BEYOND_WORDS = f"{NO_NAMES}, beyond {BEST_RANDOM}", f"{NO_NAMES}, beyond {WORDS}"
PLAIN = Kin()  # of an arm that is none of a text's
LEAST_TESTED = 30  # users with a label in a segment: fewer give no interval worth a line
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
    """``curve``, ``crossing``, ``chosen`` and ``cells_without_labels``."""
    kin = {name: of for draws in cells.by_place.values() for cell in draws for name, of in cell.kin.items()}
    rows, chosen = [], []
    points: dict[tuple[str, str, str], dict[float, Point]] = {}
    for size in sizes:
        measured = [cutoff for cutoff in cutoffs if cells.at([cutoff], size)]
        chosen += [_chosen_row(cutoff, cells.by_place[cutoff, size]) for cutoff in measured]
        for place in _places(cells, size, measured):
            segments = SEGMENTS if place.draw is None else SEGMENTS[:1]
            for (arm, baseline), metric, segment in product(_comparisons(kin), METRICS, segments):
                point = place.point(arm, baseline, metric, segment)
                if point is None or point.users < LEAST_TESTED:
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
    return {"curve": rows, "crossing": crossings, "chosen": chosen, "cells_without_labels": cells.unmeasured}


def _comparisons(kin: Mapping[str, Kin]) -> list[tuple[str, str]]:
    """(arm, baseline): the best against what it must beat, words against counts, each LLM arm by itself.

    Arms that read no names are set beside those that do, and beside each other.
    """
    names = [NO_NAMES, NAMES_BEYOND_RANDOM, NAMES_BEYOND_WORDS] if any(of.masked for of in kin.values()) else []
    pairs = [(BEST_WITH, base) for base in (BEST_WITHOUT, BEST_RANDOM, WORDS, LEXICAL, LOGIT, *names)]
    pairs += [(BEST_WITHOUT, LOGIT), (LEXICAL, LOGIT)]
    for arm, of in sorted(kin.items()):
        if of.is_masked:
            pairs += [(arm, base) for base in ((BEST_RANDOM, WORDS, LOGIT) if of.uses_llm else (LOGIT,))]
        elif of.uses_llm:
            pairs += [(arm, base) for base in (BEST_WITHOUT, BEST_RANDOM, WORDS, LEXICAL, LOGIT, *names)]
        elif of.masked:
            pairs.append((arm, NO_NAMES))
    return pairs


def _best(draws: Sequence[CellResult]) -> dict[str, str]:
    """Names of the best arm with an LLM and without, by nats of held-out labels before the cut-off.

    By all draws of a size together: one draw of a hundred users tells arms apart by luck, and the one that is picked
    for its luck makes the other look better than it is.
    """
    kin = draws[0].kin
    names = [name for name in draws[0].names if not kin.get(name, PLAIN).is_masked]
    nats = np.mean([[cell.valid_nll[cell.names.index(name)] for name in names] for cell in draws], axis=0)
    by_kind = [
        [
            (n, name)
            for n, name in zip(nats, names, strict=True)
            if kin.get(name, PLAIN).uses_llm is kind and not np.isnan(n)
        ]
        for kind in (True, False)
    ]
    return {BEST_WITH: min(by_kind[0])[1], BEST_WITHOUT: min(by_kind[1])[1]}


def _chosen_row(cutoff: datetime, draws: Sequence[CellResult]) -> dict[str, Any]:
    about = {"cutoff": cutoff.isoformat(), "users": draws[0].fitted_users, "labels": draws[0].fitted_labels}
    return about | _best(draws)


@dataclass(frozen=True)
class _Place:
    """Some cut-offs at one number of users, all draws or one."""

    cells: Cells
    cutoffs: Sequence[datetime]
    size: int | None
    pooled: bool = False
    draw: int | None = None

    @cached_property
    def best(self) -> list[dict[str, str]]:
        """The best arms of each cut-off, by all of its draws."""
        return [_best(self.cells.by_place[cutoff, self.size]) for cutoff in self.cutoffs]

    def point(self, arm: str, baseline: str, metric: str, segment: str) -> Point | None:
        """One difference; None where a cut-off has no cell or nobody in the segment."""
        draws = self.cells.at(self.cutoffs, self.size) if self.cutoffs else None
        if draws is None:
            return None
        if self.draw is not None:
            draws = [some[self.draw : self.draw + 1] for some in draws]
        arms = [
            [_contrast(cell, names, arm, baseline) for cell in some]
            for some, names in zip(draws, self.best, strict=True)
        ]
        if any(
            name not in cell.names
            for some, contrasts in zip(draws, arms, strict=True)
            for cell, contrast in zip(some, contrasts, strict=True)
            for _, name in contrast
        ):
            return None
        tested = [self.cells.tested[cutoff] for cutoff in self.cutoffs]
        return difference(draws, tested, self.cells.everyone, arms, metric, segment)

    def about(self) -> dict[str, Any]:
        """Which place it is, for a row."""
        fitted = [cell.fitted_users for cutoff in self.cutoffs for cell in self.cells.by_place[cutoff, self.size]]
        cutoff = None if self.pooled else self.cutoffs[0].isoformat()
        users = round(float(np.mean(fitted)))
        return {"cutoff": cutoff, "users": users, "all_users": self.size is None, "draw": self.draw}


def _contrast(cell: CellResult, best: Mapping[str, str], arm: str, baseline: str) -> Contrast:
    """An arm and its baseline in one cell, where the best are chosen and each arm has controls of its own."""
    arm = best.get(arm, arm)
    kin = cell.kin.get(arm, PLAIN)
    if baseline in (NAMES_BEYOND_RANDOM, NAMES_BEYOND_WORDS):
        beside = kin.control if baseline == NAMES_BEYOND_RANDOM else kin.words
        return (1, arm), (-1, kin.masked), (-1, beside), (1, cell.kin.get(beside, PLAIN).masked)
    own = {BEST_RANDOM: kin.control, WORDS: kin.words, NO_NAMES: kin.masked}
    return (1, arm), (-1, {**best, **own}.get(baseline, baseline))


def _places(cells: Cells, size: int | None, cutoffs: Sequence[datetime]) -> Iterator[_Place]:
    """Every draw of every cut-off, each cut-off, and all of them pooled."""
    for cutoff in cutoffs:
        for draw in range(len(cells.by_place[cutoff, size])):
            yield _Place(cells, [cutoff], size, draw=draw)
        yield _Place(cells, [cutoff], size)
    yield _Place(cells, cutoffs, size, pooled=True)


def _row(arm: str, baseline: str, metric: str, segment: str, point: Point) -> dict[str, Any]:
    low, high = point.interval()
    joint_low, joint_high = point.interval(1 if segment == SEGMENTS[0] else len(SEGMENTS) - 1)
    what = {"segment": segment, "arm": arm, "baseline": baseline, "metric": metric}
    bounds = {"low": low, "high": high, "joint_low": joint_low, "joint_high": joint_high}
    return what | {"difference": point.mean, **bounds, "tested": round(point.users)}
