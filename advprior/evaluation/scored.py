"""Scored priors against all that users turned to: at every snapshot of a window, pooled over cut-offs.

`advprior.evaluation.ladder` asks for a user's next advertiser at one cut-off. A ranker reads a prior at every snapshot,
and what users turn to until the next one is several advertisers: so a point is a user at a snapshot, its targets are
all distinct advertisers within the horizon, and what is measured are the very rows that were scored. Where everything
was refitted at several cut-offs, an arm's rows at all of them are pooled: users, who come back, are drawn again once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.evaluation.intervals import interval, resample
from advprior.evaluation.points import CutOff, ScoredOptions, nobody
from advprior.history.catalog import Catalog
from advprior.history.histories import Histories, micros
from advprior.history.targets import Targets
from advprior.predictors.base import NetworkScorer
from advprior.predictors.labels import LabelSpan
from advprior.predictors.logit import log_softmax
from advprior.predictors.registry import load_predictor
from advprior.store.arrays import Double, Float, Int
from advprior.store.contract import CATALOG_FILE, MATRIX_FILE, PRIOR_ROW, SNAPSHOT, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.matrix import open_matrix
from advprior.store.runs import manifest_digest, read_manifest
from advprior.store.tables import read_parquet

METRICS = ("nll", "recall@5", "recall@20")
PLACES = (5, 20)  # of `METRICS` after the first
#: All targets, and those that the user had never turned to before the snapshot.
SEGMENTS = ("all", "new to the user")
START = "habit and drift"  # the arm of what a network's answers are added to
BLOCK_CELLS = 4_000_000  # of log-probs sorted at once
SCORED_FIX = "advprior score RUN --tables TABLES --out PRIORS"


@dataclass
class _Arm:
    """One arm: where its rows lie at each cut-off, or which run's habit and drift it is."""

    name: str
    priors: dict[int, Path] = field(default_factory=dict)
    starts: dict[int, Path] = field(default_factory=dict)

    @property
    def folders(self) -> dict[int, Path]:
        return self.priors or self.starts


def measure_scored(priors: Sequence[Path], tables: Sequence[Path], options: ScoredOptions) -> dict[str, Any]:
    """Measure scored priors at every snapshot of a window, each cut-off by itself and pooled.

    Parameters
    ----------
    priors : sequence of Path
        Outputs of ``advprior score``; those of one folder name are one arm, one for each of ``tables``.
    tables : sequence of Path
        What they were scored on, one a cut-off, in time order: the tables of an origin, or of a whole project.
    options : ScoredOptions

    Returns
    -------
    dict
        ``arms``: a row an arm, segment and cut-off (None: pooled) with ``nll`` a target, ``recall@5`` and
        ``recall@20`` (share of a point's targets among the best k, of k at most; mean over points), and how many
        users, points and targets; ``comparisons``: differences of every two arms with 95 % intervals; ``about``.

    Raises
    ------
    AdvpriorError
        ``PRI040`` a model saw labels of the window, ``PRI041`` nobody to ask about, ``PRI044`` the priors do not
        match the tables.
    """
    cutoffs = [CutOff.of(folder, options) for folder in tables]
    arms = _arms(priors, options.starts, tables)
    for arm in arms:
        for i, folder in arm.folders.items():
            _require_past(folder, cutoffs[i])
    asked = [len(cutoff.user) for cutoff in cutoffs]
    rows: dict[tuple[str, int], Int] = {}
    for i, cutoff in enumerate(cutoffs):
        every = {arm.name: _rows(arm.priors[i], cutoff) for arm in arms if arm.priors}
        scored = np.all([row >= 0 for row in every.values()], axis=0) if every else np.ones(len(cutoff.user), bool)
        if not scored.any():
            raise nobody(cutoff.tables, options, f"no user of {len(scored)} points has a prior by every arm")
        cutoffs[i] = cutoff.take(scored)
        rows |= {(name, i): row[scored] for name, row in every.items()}
    users = sorted({cutoff.histories.users[u] for cutoff in cutoffs for u in np.unique(cutoff.user).tolist()})
    weights = np.stack([_weights(cutoff, users) for cutoff in cutoffs])
    sums = {arm.name: np.stack([_sums(arm, i, c, users, rows) for i, c in enumerate(cutoffs)]) for arm in arms}
    table, comparisons = _compare(sums, weights, [cutoff.name for cutoff in cutoffs], options)
    return {
        "arms": table,
        "comparisons": comparisons,
        "about": {
            "window": options.window,
            "horizon_s": options.horizon.total_seconds(),
            "replicates": options.replicates,
            "seed": options.seed,
            "cutoffs": [cutoff.name for cutoff in cutoffs],
            "users": len(users),
            "points": sum(len(cutoff.user) for cutoff in cutoffs),
            "points_without_a_prior": sum(asked) - sum(len(cutoff.user) for cutoff in cutoffs),
            "targets": sum(len(cutoff.truth.index) for cutoff in cutoffs),
            "new_targets": sum(int(cutoff.new.sum()) for cutoff in cutoffs),
            "inputs": {str(f): manifest_digest(f) for f in (*tables, *(p for a in arms for p in a.folders.values()))},
        },
    }


def _arms(priors: Sequence[Path], starts: Sequence[Path], tables: Sequence[Path]) -> list[_Arm]:
    """Arms by their folders' names; each has one folder for each of the tables."""
    place = {manifest_digest(folder): i for i, folder in enumerate(tables)}
    arms: dict[str, _Arm] = {}
    for folder, step, fix in (
        *((path, "score", SCORED_FIX) for path in priors),
        *((path, "finetune", "advprior finetune --tables TABLES --out RUN") for path in starts),
    ):
        of_tables = read_manifest(folder, step=step, fix=fix)["inputs"]["tables"]
        name = folder.resolve().name if step == "score" else START
        arm = arms.setdefault(name, _Arm(name))
        at = arm.priors if step == "score" else arm.starts
        i = place.get(of_tables)
        if i is None or i in at:
            raise AdvpriorError(
                "PRI044",
                "the priors do not match the tables",
                where=str(folder),
                actual="none of --tables is what it was made from" if i is None else f"{at[i]} is of the same tables",
                expected=f"one {name} for each of --tables",
                fix="--tables once for each cut-off, of those that the priors were scored on",
            )
        at[i] = folder
    for arm in arms.values():
        for i, folder in enumerate(tables):
            if i not in arm.folders:
                raise AdvpriorError(
                    "PRI044",
                    "the priors do not match the tables",
                    where=str(folder),
                    actual=f"no {arm.name} of these tables",
                    expected=f"one {arm.name} for each of --tables",
                    fix=SCORED_FIX,
                )
    return list(arms.values())


def _require_past(folder: Path, cutoff: CutOff) -> None:
    """Refuse priors of a model that saw labels of the window."""
    seen = LabelSpan.of_run(read_manifest(folder), str(folder)).model_cutoff
    if micros(seen) > int(cutoff.moment.min()):
        raise AdvpriorError(
            "PRI040",
            "the model saw labels that it would be tested on",
            where=str(folder),
            actual=f"fitted on events up to {seen.isoformat()}",
            expected=f"no event from the window's first snapshot {cutoff.name} on",
            fix="a later window, or fit on tables whose finetune_end is before it",
        )


def _rows(folder: Path, cutoff: CutOff) -> Int:
    """Row of each point [P] among the log-probs; -1 of users who had no prior then."""
    table = read_parquet(folder / "rows.parquet", fix=SCORED_FIX)
    matrix = open_matrix(folder / MATRIX_FILE)
    written = pd.MultiIndex.from_arrays([table[USER_ID].astype(str), _micros(table[SNAPSHOT])])
    missing = np.setdiff1d(np.unique(cutoff.moment), np.unique(_micros(table[SNAPSHOT])))
    catalog = Catalog.load(folder / CATALOG_FILE)
    if len(missing) or matrix.shape[1] != len(cutoff.catalog) or catalog.ids != cutoff.catalog.ids:
        raise AdvpriorError(
            "PRI044",
            "the priors do not match the tables",
            where=str(folder),
            actual=f"{len(missing)} snapshots of the window not scored, {matrix.shape[1]} advertisers a row",
            expected=f"every snapshot of the window from {cutoff.name} on, all {len(cutoff.catalog)} advertisers",
            fix=f"advprior score RUN --tables {cutoff.tables} --out {folder} --last {cutoff.last} "
            f"--top-k {len(cutoff.catalog)}",
        )
    users = np.asarray(cutoff.histories.users, object)[cutoff.user]
    at = written.get_indexer(pd.MultiIndex.from_arrays([users, cutoff.moment]))
    rows: Int = np.where(at >= 0, table[PRIOR_ROW].to_numpy(np.int64)[at], -1)
    return rows


def _micros(times: pd.Series) -> Int:
    stamps: Int = pd.DatetimeIndex(times).as_unit("us").asi8.astype(np.int64)
    return stamps


def _weights(cutoff: CutOff, users: Sequence[str]) -> Double:
    """What each user's sums are divided by [U, segments · metrics]: targets for the likelihood, else points."""
    of_user = _places(cutoff, users)
    columns = []
    for counted in (np.ones(len(cutoff.truth.index), bool), cutoff.new):
        targets = np.bincount(cutoff.truth.point, counted, minlength=len(cutoff.user))
        columns.append(np.bincount(of_user, targets, minlength=len(users)))
        columns += [np.bincount(of_user, targets > 0, minlength=len(users))] * len(PLACES)
    return np.stack(columns, axis=1).astype(np.float64)


def _sums(arm: _Arm, number: int, cutoff: CutOff, users: Sequence[str], rows: Mapping[tuple[str, int], Int]) -> Double:
    """Sums of an arm at a cut-off for each user [U, segments · metrics]."""
    at, ranks = np.zeros(len(cutoff.truth.index), np.float64), np.zeros(len(cutoff.truth.index), np.int64)
    step = max(BLOCK_CELLS // max(cutoff.truth.size, 1), 1)
    source = open_matrix(arm.priors[number] / MATRIX_FILE) if arm.priors else _start_of(arm.starts[number])
    for start in range(0, len(cutoff.user), step):
        points = np.arange(start, min(start + step, len(cutoff.user)))
        if callable(source):
            block = source(cutoff.histories, cutoff.user[points], cutoff.moment[points])
        else:
            block = np.asarray(source[rows[arm.name, number][points]])
        part = cutoff.truth.take(points)
        inside = slice(cutoff.truth.offsets[points[0]], cutoff.truth.offsets[points[-1] + 1])
        at[inside] = block[part.point, part.index]
        ranks[inside] = _places_of(block, part)
    of_user, columns = _places(cutoff, users), []
    point, points_count = cutoff.truth.point, len(cutoff.user)
    for counted in (np.ones(len(at), bool), cutoff.new):
        targets = np.bincount(point, counted, minlength=points_count)
        columns.append(np.bincount(of_user, np.bincount(point, -at * counted, points_count), len(users)))
        for k in PLACES:
            hits = np.bincount(point, counted & (ranks < k), points_count) / np.maximum(np.minimum(targets, k), 1)
            columns.append(np.bincount(of_user, hits, len(users)))
    return np.stack(columns, axis=1)


def _places(cutoff: CutOff, users: Sequence[str]) -> Int:
    """Place of each point's user [P] among all that are drawn again."""
    place = {user: i for i, user in enumerate(users)}
    of_user: Int = np.asarray([place[cutoff.histories.users[u]] for u in cutoff.user.tolist()], np.int64)
    return of_user


def _places_of(log_probs: Float, truth: Targets) -> Int:
    """Rank of each target among all advertisers, from 0; of equals the one with the smaller index comes first."""
    order = np.argsort(-log_probs, axis=1, kind="stable")
    place = np.empty(log_probs.shape, np.int32)
    np.put_along_axis(place, order, np.arange(log_probs.shape[1], dtype=np.int32)[None], axis=1)
    ranks: Int = place[truth.point, truth.index].astype(np.int64)
    return ranks


def _start_of(run: Path) -> Any:
    """Habit and drift of a run's network at some points, as log-probs [P, N]."""
    predictor = load_predictor(run)
    scorer, size = predictor.scorer(run / "onnx", "cpu", 1), len(predictor.catalog)
    if not isinstance(scorer, NetworkScorer):
        raise AdvpriorError(
            "PRI044",
            "the run has no habit and drift of its own",
            where=str(run),
            actual=type(scorer).__name__,
            expected="a run of the LLM, SASRec or the hybrid",
        )

    def start(histories: Histories, user: Int, moment: Int) -> Float:
        out = np.zeros((len(user), size), np.float32)
        for cutoff in np.unique(moment):
            those = moment == cutoff
            out[those] = scorer.offset(histories, user[those], np.asarray([cutoff], np.int64))[:, 0]
        return log_softmax(out)

    return start


def _compare(
    sums: Mapping[str, Double], weights: Double, names: Sequence[str], options: ScoredOptions
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of arms, and of the differences of every two, pooled first.

    Parameters
    ----------
    sums : mapping of str to float [cut-offs, U, K]
    weights : float [cut-offs, U, K]
    """
    every = [None, *names]

    def columns(values: Double) -> Double:
        """Pooled, then each cut-off [U, (1 + cut-offs) · K]."""
        return np.concatenate([values.sum(0), *values], axis=1)

    weight = columns(weights)
    drawn_weight = resample([weight], replicates=options.replicates, seed=options.seed)[0]
    people = (weight > 0).sum(0)
    values: dict[str, Double] = {}
    for name, of_arm in sums.items():
        total = columns(of_arm)
        again = resample([total], replicates=options.replicates, seed=options.seed)[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            values[name] = np.vstack([total.sum(0) / weight.sum(0), again / drawn_weight])
    keys = [(cutoff, segment, metric) for cutoff in every for segment in SEGMENTS for metric in METRICS]
    table: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for name, value in values.items():
        for start in range(0, len(keys), len(METRICS)):
            cutoff, segment, _ = keys[start]
            row: dict[str, Any] = {"arm": name, "segment": segment, "cutoff": cutoff, "users": int(people[start])}
            row |= {"targets": int(weight[:, start].sum()), "points": int(weight[:, start + 1].sum())}
            table.append(row | {m: _number(value[0, start + j]) for j, m in enumerate(METRICS)})
    arms = list(values)
    for arm, baseline in ((a, b) for i, a in enumerate(arms) for b in arms[i + 1 :]):
        low, high = interval(values[arm][None], values[baseline][None], people)
        for k, (cutoff, segment, metric) in enumerate(keys):
            difference = values[arm][0, k] - values[baseline][0, k]
            row = {"arm": arm, "baseline": baseline, "segment": segment, "metric": metric, "cutoff": cutoff}
            row |= {"difference": _number(difference), "low": _number(low[k]), "high": _number(high[k])}
            comparisons.append(row)
    return table, comparisons


def _number(value: Any) -> float | None:
    """A JSON number; nothing where nobody has such a target."""
    return float(value) if value == value else None
