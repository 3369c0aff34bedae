"""Leak checks with stable codes: each looks at one way in which a frame can flatter a ranker.

A check returns a `Finding` or None; `enforce` raises on errors and hands warnings back. What each code means,
what causes it and how to fix it stands in ``docs/checks.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from advprior.store.contract import SLATE_ID, USER_ID
from advprior.store.errors import AdvpriorError
from ranking.frame.read import SPLITS

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]

DOCS = "docs/checks.md"
GOLDEN_ERROR, GOLDEN_WARNING = 0.99, 0.97
MIN_COVERAGE = 0.9
MIN_POSITIVES = 100
MIN_IN_CATALOG = 0.9
_GOLDEN_ROWS = 50_000


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes
    ----------
    code : str
        ``RNK001`` …
    severity : "error" or "warning"
        An error stops the step; a warning goes into its manifest and the report.
    message : str
        What is wrong, with numbers.
    fix : str
        The edit or command that fixes it.
    """

    code: str
    severity: Literal["error", "warning"]
    message: str
    fix: str

    @property
    def docs(self) -> str:
        """Where the code is explained."""
        return f"{DOCS}#{self.code.lower()}"

    def to_json(self) -> dict[str, str]:
        """JSON form, for a manifest."""
        return {**asdict(self), "docs": self.docs}


def enforce(findings: Iterable[Finding | None], where: str | None = None) -> list[Finding]:
    """Raise the first error (naming the others); return the warnings.

    Raises
    ------
    AdvpriorError
        With the code of the first error.
    """
    actual = [finding for finding in findings if finding is not None]
    errors = [finding for finding in actual if finding.severity == "error"]
    if errors:
        first, *others = errors
        also = "; also " + ", ".join(f"{o.code}: {o.message}" for o in others) if others else ""
        raise AdvpriorError(first.code, first.message + also, where=where, expected=f"see {first.docs}", fix=first.fix)
    return actual


def require_own_slates(rows: pd.DataFrame) -> None:
    """Refuse a frame in which a slate holds several users' rows: they would be ranked as if shown together.

    Two columns of it are enough.

    Raises
    ------
    AdvpriorError
        ``DAT016``, as ``advprior data check`` says it of tables; a frame made in Python was never a table.
    """
    import pandas as pd

    users, (place, slates) = pd.factorize(rows[USER_ID])[0], pd.factorize(rows[SLATE_ID])
    of_slate = np.zeros(len(slates), users.dtype)
    of_slate[place[::-1]] = users[::-1]  # of its first row
    shared = of_slate[place] != users
    if shared.any():
        slates = rows.loc[shared, SLATE_ID].unique()
        raise AdvpriorError(
            "DAT016",
            "a slate belongs to several users",
            where=f"{SLATE_ID} {', '.join(map(str, slates[:5]))}",
            actual=f"{len(slates):,} slates of several users",
            expected="one user a slate",
            fix="number slates over all users: make one text of user and slate",
        )


def check_model_cutoff(predictor: str, cutoff: Array, impression: Array) -> Finding | None:
    """RNK001: a prior's model learned from labels at or after the impression that uses it.

    Parameters
    ----------
    cutoff, impression : datetime64 arrays [impressions]
        NaT in ``cutoff`` where there is no prior.
    """
    return late_cutoffs(predictor, int((cutoff > impression).sum()), len(impression))


def late_cutoffs(predictor: str, late: int, total: int) -> Finding | None:
    """RNK001 by counts: impressions whose prior has a later model_cutoff, and all of them."""
    if not late:
        return None
    return Finding(
        "RNK001",
        "error",
        f"{late:,} of {total:,} impressions have a prior of `{predictor}` with a later model_cutoff",
        "fit the predictor on labels before the first ranker row, or start the ranker's rows after model_cutoff",
    )


def check_not_newer(view: str, feature_time: Array, impression: Array) -> Finding | None:
    """RNK002: a feature row is newer than the impression that it describes (datetime64 arrays, NaT = no row)."""
    return newer_rows(view, int((feature_time > impression).sum()), len(impression))


def newer_rows(view: str, late: int, total: int) -> Finding | None:
    """RNK002 by counts: impressions with a newer row of a view, and all of them."""
    if not late:
        return None
    return Finding(
        "RNK002",
        "error",
        f"{late:,} of {total:,} impressions carry a row of `{view}` that is newer than they are",
        "join through Feast's point-in-time join, and publish rows with the time at which they were available",
    )


def check_available_after_snapshot(view: str, snapshot: Array, available: Array) -> Finding | None:
    """RNK003: a row says it was available before the snapshot of what it has seen (datetime64 arrays [table rows])."""
    early = int((available < snapshot).sum())
    if not early:
        return None
    return Finding(
        "RNK003",
        "error",
        f"{early:,} of {len(snapshot):,} rows of `{view}` have an event_timestamp before their snapshot",
        "publish with event_timestamp = snapshot + lag",
    )


def check_splits_apart(split: Array, time: Array) -> Finding | None:
    """RNK004: train, validation and test overlap in time, or are out of order."""
    spans = {name: time[split == name] for name in SPLITS}
    present = [(name, t.min(), t.max()) for name, t in spans.items() if len(t)]
    for (before, _, newest), (after, oldest, _) in pairwise(present):
        if newest >= oldest:
            return Finding(
                "RNK004",
                "error",
                f"split `{before}` reaches {newest}, and `{after}` starts at {oldest}",
                "cut the splits by time, as the time plan does",
            )
    return None


def check_rows_kept(expected_ids: Array, joined_ids: Array) -> Finding | None:
    """RNK005: a join lost, doubled or swapped impressions."""
    if len(expected_ids) == len(joined_ids) and np.array_equal(np.sort(expected_ids), np.sort(joined_ids)):
        return None
    lost = len(np.setdiff1d(expected_ids, joined_ids))
    doubled = len(joined_ids) - len(np.unique(joined_ids))
    return Finding(
        "RNK005",
        "error",
        f"{len(expected_ids):,} impressions went into the join and {len(joined_ids):,} rows came out"
        f" ({lost:,} lost, {doubled:,} doubled)",
        "make impression_id unique, and use the duckdb offline store (the file store loses rows)",
    )


def check_same_test_rows(digests: Mapping[str, str]) -> Finding | None:
    """RNK006: arms were measured on different test rows (one digest per arm)."""
    if len(set(digests.values())) <= 1:
        return None
    groups: dict[str, list[str]] = {}
    for arm, digest in digests.items():
        groups.setdefault(digest, []).append(arm)
    return Finding(
        "RNK006",
        "error",
        "arms were measured on different test rows: " + " | ".join(", ".join(arms) for arms in groups.values()),
        "measure every arm on one frame",
    )


def univariate_auc(values: pd.Series[Any], label: Array) -> float:
    """AUC of one feature alone, whichever way it points. Missing counts as a value of its own.

    A text feature is ranked by the mean label of its values, where it has few enough for that to mean anything.
    """
    import pandas as pd

    positive = label == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        return 0.5
    if not pd.api.types.is_numeric_dtype(values) or isinstance(values.dtype, pd.CategoricalDtype):
        codes, levels = pd.factorize(values)
        if len(levels) > len(values) / 100:
            return 0.5
        sums = np.bincount(codes + 1, weights=positive, minlength=len(levels) + 1)
        counts = np.bincount(codes + 1, minlength=len(levels) + 1)
        numbers = (sums / np.maximum(counts, 1))[codes + 1]
    else:
        numbers = np.nan_to_num(values.to_numpy(np.float64), nan=-np.inf, posinf=np.finfo(np.float64).max)
    below = np.sort(numbers[~positive])
    # a positive beats every negative below it, and half of those that are equal
    won = sum(int(np.searchsorted(below, numbers[positive], side=side).sum()) for side in ("left", "right")) / 2
    auc = won / (n1 * n0)
    return max(auc, 1 - auc)


def golden_rows(label: Array, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Rows that `check_golden_features` looks at, rising: a sample with every positive, as far as there are many.

    Empty where there are too few positives, or no negative.
    """
    negatives = np.flatnonzero(label == 0)
    positives = np.flatnonzero(label == 1)
    if len(positives) < 10 or not len(negatives):
        return negatives[:0]
    if len(negatives) > _GOLDEN_ROWS:
        negatives = np.random.default_rng(seed).choice(negatives, _GOLDEN_ROWS, replace=False)
    return np.sort(np.concatenate([positives[:_GOLDEN_ROWS], negatives]))


def check_golden_features(features: pd.DataFrame, label: Array, *, seed: int = 0) -> list[Finding]:
    """RNK007: one feature alone all but knows the label (test rows). On those that `golden_rows` chooses."""
    rows = golden_rows(label, seed=seed)
    if not len(rows):
        return []
    alone = {name: univariate_auc(features[name].iloc[rows], label[rows]) for name in features.columns}
    return [_golden(str(name), auc) for name, auc in alone.items() if auc >= GOLDEN_WARNING]


def _golden(name: str, auc: float) -> Finding:
    return Finding(
        "RNK007",
        "error" if auc >= GOLDEN_ERROR else "warning",
        f"feature `{name}` alone reaches an AUC of {auc:.4f} on test rows: it may hold the answer",
        f"find out when `{name}` becomes known; drop it from the service if that is after the impression",
    )


def check_prior_coverage(predictor: str, share: float, cause: str, fix: str) -> Finding | None:
    """RNK008: many impressions have no prior, so its lift is not that of the prior.

    Parameters
    ----------
    predictor : str
    share : float
        Of the impressions that have one.
    cause, fix : str
        As `ranking.frame.coverage.coverage_gap` finds them.
    """
    if share >= MIN_COVERAGE:
        return None
    message = f"only {100 * share:.1f} % of the impressions have a prior of `{predictor}`: {cause}"
    return Finding("RNK008", "warning", message, fix)


def check_enough_positives(split: Array, label: Array) -> Finding | None:
    """RNK009: a split has too few positives to tell arms apart."""
    few = {name: int(label[split == name].sum()) for name in SPLITS}
    few = {name: count for name, count in few.items() if count < MIN_POSITIVES}
    if not few:
        return None
    return Finding(
        "RNK009",
        "warning",
        "few positives: " + ", ".join(f"{count} in {name}" for name, count in few.items()),
        f"use more users or a longer span: below {MIN_POSITIVES} positives an interval says little",
    )


def check_placebo(arm: str, low: float, high: float, where: str = "All test impressions") -> Finding | None:
    """RNK011: priors of other users change the metric: its interval (over the baseline) leaves zero out.

    Parameters
    ----------
    arm : str
    low, high : float
        Interval that holds for all comparisons at once.
    where : str
        The segment, in words.
    """
    if not (low > 0 or high < 0):
        return None
    return Finding(
        "RNK011",
        "warning",
        f"{where}: the placebo `{arm}` changes AUC by something between {low:+.4f} and {high:+.4f}: it should change "
        "nothing",
        "one placebo in twenty does this by chance: shuffle again (`advprior publish … --seed 1`) and measure with "
        "more seeds; if it stays, give the baseline what a prior tells beside taste (its age, its user's activity)",
    )


def check_in_catalog(predictor: str, lacking: int, total: int) -> Finding | None:
    """RNK012: the catalog of a prior lacks advertisers of many impressions (how many do, of how many)."""
    share = 1 - lacking / total if total else 1.0
    if share >= MIN_IN_CATALOG:
        return None
    return Finding(
        "RNK012",
        "warning",
        f"the catalog of `{predictor}` has the advertisers of {share:.1%} of the impressions only",
        "fit the predictor on these tables: a prior says nothing of an advertiser that its catalog lacks",
    )


def check_rows_joined(view: str, lost: int, total: int) -> Finding | None:
    """RNK015: users or ads who existed have no row of a view that was in time: a baseline without its features."""
    if not lost:
        return None
    return Finding(
        "RNK015",
        "error" if lost > (1 - MIN_COVERAGE) * total else "warning",
        f"{lost:,} of {total:,} impressions have no row of `{view}`, though their user or ad has existed long enough",
        "let the view live as long as two snapshots are apart (ttl in definitions.py, as shipped), then: "
        "advprior rank features --tables TABLES --repo REPO ; feast -c REPO apply",
    )


def check_views_joined(absent: Sequence[str], service: str) -> Finding | None:
    """RNK014: feature views of a user's own are applied, but no service has them (their names)."""
    if not absent:
        return None
    return Finding(
        "RNK014",
        "warning",
        f"feature views that `{service}` does not have are not joined: {', '.join(absent)}",
        "add them to _BASELINE in definitions.py, apply, and build the frame again",
    )


def check_numbers_held(too_large: Mapping[str, int]) -> Finding | None:
    """RNK045: numbers that float32 cannot hold are missing to the ranker (how many, by feature)."""
    some = {name: count for name, count in too_large.items() if count}
    if not some:
        return None
    return Finding(
        "RNK045",
        "warning",
        "infinite numbers, or such beyond 3.4e38, are missing: " + ", ".join(f"{c:,} of {n}" for n, c in some.items()),
        "publish such features cut to a range, or as a logarithm",
    )


def check_one_catalog(versions: Mapping[str, str]) -> Finding | None:
    """RNK013: predictors under comparison have different catalogs (version by predictor)."""
    if len(set(versions.values())) <= 1:
        return None
    return Finding(
        "RNK013",
        "warning",
        "priors of different catalogs are compared: " + ", ".join(f"{n} {v}" for n, v in versions.items()),
        "fit every predictor on the same tables: log-probabilities over other catalogs do not share a scale",
    )
