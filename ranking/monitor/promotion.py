"""Whether a new ranker may take the place of the one that serves: on the newest days, by paired intervals.

Both score the same impressions, which neither was trained or tuned on and whose labels are complete. The same users are
resampled for both, so that what is left is the difference of these two rankers: that is what would be served, and
training luck is part of it. What loses is refused, and so is what cannot be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from advprior.store.arrays import Double
from advprior.store.contract import LABEL, LABEL_DELAY, SLATE_ID, TIMESTAMP, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.features import REQUEST_SOURCE
from advprior.store.runs import manifest_digest, read_manifest
from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap
from ranking.evidence.lift import Lift
from ranking.evidence.metrics import Auc, LogLoss, Metric, Ndcg
from ranking.frame.read import FRAME_FIX
from ranking.frame.row_blocks import InParquet, SomeRows
from ranking.models.encoded import EncodedRows
from ranking.models.ranker import Ranker

#: What may decide. The others must not be lost.
METRICS: dict[str, Metric] = {metric.name: metric for metric in (Auc(), LogLoss(), Ndcg(10))}
_TRAIN_FIX = "advprior rank train --frame FRAME --service SERVICE --out CANDIDATE"


@dataclass(frozen=True)
class Rule:
    """When a candidate is good enough.

    Parameters
    ----------
    metric : {"auc", "log_loss", "ndcg_10"}
        Which decides.
    margin : float
        How much worse the candidate may still be: 0 asks for a gain that is clear, more for one that is no clear loss.
    days : float
        Newest days that are compared.
    replicates : int
    """

    metric: str = "auc"
    margin: float = 0.0
    days: float = 14.0
    replicates: int = 1000


@dataclass(frozen=True)
class Decision:
    """What was decided, and why.

    Attributes
    ----------
    promoted : bool
    reason : str
    candidate, current : str
        Digests.
    facts : dict
        Rows, days and the lift of each metric.
    """

    promoted: bool
    reason: str
    candidate: str
    current: str
    facts: dict[str, Any]


def decide(candidate: Path, current: Path, frame: Path, rule: Rule) -> Decision:
    """Compare two rankers on the newest days of a frame.

    Parameters
    ----------
    candidate, current : Path
        Finished ``rank train`` runs.
    frame : Path
        Built after the candidate's, with rows that neither has seen.
    rule : Rule

    Raises
    ------
    AdvpriorError
        ``RNK048`` when no row is newer than what both were tuned on, or none of them has a complete label; and what
        reading a ranker or a frame raises.
    """
    for folder in (candidate, current):
        read_manifest(folder, step="rank train", fix=_TRAIN_FIX)
    digests = {"candidate": manifest_digest(candidate), "current": manifest_digest(current)}
    rankers = {"candidate": Ranker.load(candidate), "current": Ranker.load(current)}
    if digests["candidate"] == digests["current"]:
        return Decision(False, "it is the ranker that serves", digests["candidate"], digests["current"], {})
    if unlike := _unlike(rankers["candidate"], rankers["current"]):
        return Decision(False, unlike, digests["candidate"], digests["current"], {})
    newest = _newest(frame, list(rankers.values()), rule.days)
    rows = newest.read([LABEL, USER_ID, SLATE_ID, TIMESTAMP])
    outcomes = Outcomes.of(rows[LABEL].to_numpy(), rows[USER_ID].astype(str), slate=rows[SLATE_ID])
    scores = {name: [_scores(ranker, newest)] for name, ranker in rankers.items()}
    options = Resampling(tuple(METRICS.values()), rule.replicates)
    lifts = {one.metric: one for one in paired_bootstrap(scores, outcomes, [("candidate", "current")], options)}
    promoted, reason = _judge(lifts, rule)
    facts = {
        "rows": len(rows),
        "positives": int(rows[LABEL].sum()),
        "users": int(rows[USER_ID].nunique()),
        "from": rows[TIMESTAMP].min().isoformat(),
        "to": rows[TIMESTAMP].max().isoformat(),
        "lifts": {name: [one.difference, one.low, one.high] for name, one in lifts.items()},
        "rule": {"metric": rule.metric, "margin": rule.margin, "days": rule.days},
    }
    return Decision(promoted, reason, digests["candidate"], digests["current"], facts)


def _unlike(candidate: Ranker, current: Ranker) -> str:
    """Why a running service would not take the candidate in; nothing where it would."""
    kinds = [any(f.predictor is not None for f in ranker.features) for ranker in (candidate, current)]
    if kinds[0] != kinds[1]:
        return "one reads priors and the other does not: each has its own place in the service"
    contexts = [{f.name for f in ranker.features if f.source == REQUEST_SOURCE} for ranker in (candidate, current)]
    if contexts[0] != contexts[1]:
        changed = ", ".join(sorted(contexts[0] ^ contexts[1])[:5])
        return f"it asks requests for another context ({changed}): put it in place by hand, and start the service anew"
    return ""


def _scores(ranker: Ranker, rows: SomeRows) -> Double:
    """Calibrated probabilities of some rows of a frame, read block by block where they are many."""
    assert ranker.encoder is not None
    return ranker.predict_matrix(EncodedRows(rows.source, ranker.encoder, rows.places))


def _newest(frame: Path, rankers: Sequence[Ranker], days: float) -> SomeRows:
    """Rows of the newest days that neither ranker has seen and whose labels are complete."""
    facts = read_manifest(frame, step="rank frame", fix=FRAME_FIX)["facts"]
    source = InParquet(frame)
    whole = source.read([TIMESTAMP, LABEL])
    seen = max(datetime.fromisoformat(ranker.facts["time_plan"]["valid_end"]) for ranker in rankers)
    stated = facts.get("data", {}).get("label_delay_s")
    delay = LABEL_DELAY if stated is None else timedelta(seconds=float(stated))
    end = datetime.fromisoformat(facts["time_plan"]["end"]) - delay
    begin = max(seen, end - timedelta(days=days))
    chosen = (whole[TIMESTAMP] >= begin).to_numpy() & (whole[TIMESTAMP] < end).to_numpy()
    labels = whole[LABEL][chosen]
    if not len(labels) or labels.nunique() < 2:
        raise AdvpriorError(
            "RNK048",
            "there is nothing to compare the rankers on",
            where=str(frame),
            actual=f"{len(labels):,} rows, {int(labels.sum()):,} positive, from {begin.isoformat()} on",
            expected=f"impressions after {seen.isoformat()}, which neither ranker was trained or tuned on, and before "
            f"{end.isoformat()}, whose labels are complete",
            fix="build a newer frame: advprior rank frame --tables TABLES --repo FEATURE_REPO --out FRAME_RECENT",
        )
    return SomeRows(source, np.flatnonzero(chosen))


def _judge(lifts: dict[str, Lift], rule: Rule) -> tuple[bool, str]:
    """Whether the candidate is good enough, in one sentence with figures."""
    told = {name: f"{name} {one.text()}" for name, one in lifts.items()}
    lost = [name for name, one in lifts.items() if _gains(one)[1] < -rule.margin and np.isfinite(one.difference)]
    if lost:
        return False, f"it loses: {'; '.join(told[name] for name in lost)}"
    low = _gains(lifts[rule.metric])[0]
    if not low > -rule.margin:
        allowed = f", and {rule.margin:g} less is allowed" if rule.margin else ""
        return False, f"it cannot be told from the one that serves: {told[rule.metric]}{allowed}"
    what = "it gains" if low > 0 else f"it is no worse by more than {rule.margin:g}"
    return True, f"{what}: {told[rule.metric]}"


def _gains(lift: Lift) -> tuple[float, float]:
    """The interval of a lift, up is better."""
    return (lift.low, lift.high) if lift.higher_is_better else (-lift.high, -lift.low)
