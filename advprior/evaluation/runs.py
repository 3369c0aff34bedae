"""Fitted runs as arms: opened, refused where they saw the future, and scored for the users of some labels."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from advprior.evaluation.options import Options
from advprior.evaluation.protocol import Labels
from advprior.history.catalog import Catalog
from advprior.history.histories import Histories
from advprior.predictors.base import Scorer
from advprior.predictors.labels import LabelSpan
from advprior.predictors.registry import load_predictor
from advprior.store.arrays import Float, Int
from advprior.store.contract import LLM, NEIGHBOURS, POPULARITY
from advprior.store.errors import AdvpriorError
from advprior.store.progress import tracked
from advprior.store.runs import read_manifest

SHARD = 256  # users scored at once
SUM_TOLERANCE = 1e-4  # of a row of probabilities, relative to the one that it is
#: Names that no run's arm may have
TAKEN = (POPULARITY, "drift", "recency", NEIGHBOURS, "als", "ease", "logit", "blend", "best control", "all LLMs")


def require_past(run: Path, cutoff: datetime) -> None:
    """Refuse a run that saw labels from the cut-off on (``PRI040``), or misstates which it saw (``PRI017``)."""
    fitted = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    read_manifest(run / "onnx", step="export", fix=f"advprior export {run}")
    labels = LabelSpan.of_run(fitted, str(run))
    if labels.model_cutoff > cutoff:
        raise AdvpriorError(
            "PRI040",
            "the model saw labels that it would be tested on",
            where=str(run),
            actual=f"fitted on events up to {labels.model_cutoff.isoformat()}",
            expected=f"no event from the cut-off {cutoff.isoformat()} on",
            fix="a later --cutoff, or fit on tables whose finetune_end is the cut-off",
        )


def open_run(run: Path, catalog: Catalog, tables: Path, options: Options) -> tuple[Scorer, dict[str, Any]]:
    """An exported run's scorer, and what the provenance says of it; ``PRI002`` when its catalog is another."""
    predictor = load_predictor(run)
    predictor.catalog.require_same(
        catalog,
        where=f"{tables}/advertisers.parquet against {run}",
        fix=f"advprior finetune --tables {tables} --predictor {predictor.kind} --out {run}",
    )
    facts = {
        "predictor": predictor.kind,
        **LabelSpan.of_run(read_manifest(run), str(run)).to_json(),
        "uses_llm": bool(getattr(predictor, "uses_llm", predictor.kind == LLM)),
    }
    return predictor.scorer(run / "onnx", options.device, options.threads), facts


def score_labels(scorer: Scorer, past: Histories, labels: Labels, cutoff: int, name: str) -> Float:
    """Log-probs [P, N] of the labels' users; the scorer is given the past only."""
    moment: Int = np.asarray([cutoff], np.int64)
    # of users without a past the profile is all there is: one forward answers for all who told the same
    length = np.diff(past.offsets)[labels.user]
    same = [past.profiles[u] if not n else u for u, n in zip(labels.user.tolist(), length.tolist(), strict=True)]
    first = {key: i for i, key in reversed(list(enumerate(same)))}
    rows = np.asarray(sorted(first.values()), np.int64)
    shards = tracked(range(0, len(rows), SHARD), f"{name} on {scorer.provider}", f"{SHARD} users")
    parts = [scorer.score(past, labels.user[rows[start : start + SHARD]], moment)[:, 0] for start in shards]
    log_probs: Float = np.concatenate(parts)[np.searchsorted(rows, [first[key] for key in same])]
    if not np.abs(np.exp(log_probs, dtype=np.float64).sum(1) - 1).max() <= SUM_TOLERANCE:  # a NaN fails too
        raise AdvpriorError(
            "PRI008",
            "a prior is no distribution over the catalog",
            where=name,
            expected=f"sums within {SUM_TOLERANCE:.0e} of one",
            fix="advprior export RUN --force, then evaluate again",
        )
    return log_probs
