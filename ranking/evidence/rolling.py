"""Rolling origin: the same measurement at several cut-offs, the predictor refitted at each, and one pooled answer.

One split can be lucky. `origins` moves every cut of the time plan forward together, so that the test windows divide
the original one between them: nothing that was named or drawn from before the first cut has seen later data.
`pool` takes the finished ablations of all origins and resamples users over seeds and cut-offs at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Double
from advprior.store.contract import LABEL, SLATE_ID, USER_ID, TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.runs import Run, digest, read_manifest
from advprior.store.tables import load_time_plan, present_tables
from ranking.evidence.ablation import best_controls_of, pairs_of, warnings_of
from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap
from ranking.evidence.claims import gaps_from_json, gaps_to_json
from ranking.evidence.lift import OVERALL
from ranking.evidence.result import AblationResult
from ranking.evidence.segments import SEGMENT_PREFIX
from ranking.evidence.verdict import judge
from ranking.frame.coverage import CoverageGap


def origins(plan: TimePlan, count: int) -> list[TimePlan]:
    """Time plans of ``count`` cut-offs; their test windows divide that of ``plan``, on its grid of snapshots.

    Raises
    ------
    AdvpriorError
        ``RNK034`` when the test window is shorter than ``count`` snapshots.

    Examples
    --------
    >>> from datetime import datetime, timedelta, UTC
    >>> day = lambda n: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=n)
    >>> plans = origins(TimePlan(day(0), day(70), day(140), day(168), day(210)), 3)
    >>> [(p.valid_end - day(0)).days for p in plans], [(p.end - day(0)).days for p in plans]
    ([168, 182, 196], [182, 196, 210])
    """
    step = (plan.end - plan.valid_end) / count // plan.snapshot_every * plan.snapshot_every
    if not step:
        raise AdvpriorError(
            "RNK034",
            "the test window is too short for so many cut-offs",
            actual=str(plan.end - plan.valid_end),
            expected=f"{count} × {plan.snapshot_every} or more",
            fix="ask for fewer cut-offs",
        )
    plans = []
    for i in range(count):
        by = i * step
        end = plan.end if i == count - 1 else plan.valid_end + by + step
        cuts = (plan.finetune_end + by, plan.train_end + by, plan.valid_end + by)
        plans.append(replace(plan, finetune_end=cuts[0], train_end=cuts[1], valid_end=cuts[2], end=end))
    return plans


def origin_config(tables: Path, number: int, of: int) -> dict[str, Any]:
    """What makes the tables of one origin: its number (from 1) and time plan."""
    plan = origins(load_time_plan(tables), of)[number - 1]
    return {"origin": number, "of": of, "time_plan": plan.to_json()}


def write_origin(tables: Path, run: Run, config: dict[str, Any]) -> None:
    """The same tables under another time plan; files are linked, not copied, where the disk allows."""
    for name in present_tables(tables):
        source, target = Path(tables) / f"{name}.parquet", run.path / f"{name}.parquet"
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    facts = dict(read_manifest(tables)["facts"])
    run.facts.update({**facts, "time_plan": config["time_plan"], "origin": config["origin"], "origins": config["of"]})


def pool(ablations: Sequence[Path], *, replicates: int = 1000) -> AblationResult:
    """One ablation of several: lifts over seeds × cut-offs, measures and counts side by side.

    Parameters
    ----------
    ablations : sequence of Path
        Finished ``advprior rank ablate`` runs with the same arms, in time order.
    replicates : int

    Returns
    -------
    AblationResult
        ``about`` is the last one's, with counts summed and ``cutoffs`` naming each origin's test window and verdict.

    Raises
    ------
    AdvpriorError
        ``RNK033`` when the ablations differ in arms, seeds or segments; ``RNK006``.
    """
    results = [AblationResult.load(folder).load_scores() for folder in ablations]
    _check_alike(results, ablations)
    first, seeds = results[0], results[0].about["settings"]["seeds"]
    rows = pd.concat([result.rows for result in results], ignore_index=True)
    cutoff = np.repeat(np.arange(len(results)), [len(result.rows) for result in results if result.rows is not None])
    scores: dict[str, list[Double]] = {
        arm.name: [np.concatenate([result.scores[arm.name][s] for result in results]) for s in range(seeds)]
        for arm in first.arms.arms
    }
    segments = {s: rows[SEGMENT_PREFIX + s].to_numpy(bool) for s in first.segments if s != OVERALL}
    slate = pd.factorize(pd.MultiIndex.from_arrays([cutoff, rows[SLATE_ID]]))[0]
    lifts = paired_bootstrap(
        scores,
        Outcomes.of(rows[LABEL], rows[USER_ID].astype(str), slate=slate, segments=segments, cutoff=cutoff),
        pairs_of(first.arms),
        Resampling(replicates=replicates, progress=True),
    )
    measured = pd.concat(
        [r.measured.assign(seed=r.measured["seed"] + i * seeds) for i, r in enumerate(results)], ignore_index=True
    )
    best_controls = best_controls_of(first.arms, measured)
    best_control = best_controls.get(first.arms.on_trial[0].name)
    about = _about(results, rows.assign(**{SLATE_ID: slate}), segments)
    about["warnings"] = [finding.to_json() for finding in warnings_of(lifts, first.arms)]
    about["settings"] = {**about["settings"], "replicates": replicates}
    gaps: dict[str, CoverageGap] = {}
    for result in results:  # of several cut-offs, the one with the fewest priors
        of_one = gaps_from_json(result.about.get("gaps"))
        gaps |= {name: gap for name, gap in of_one.items() if name not in gaps or gap.share < gaps[name].share}
    about["gaps"] = gaps_to_json(gaps)
    verdict = judge(lifts, first.arms, best_controls=best_controls, gaps=gaps)
    return AblationResult(
        first.arms, lifts, verdict, best_control, measured, about, scores=scores, best_controls=best_controls
    )


def _check_alike(results: Sequence[AblationResult], ablations: Sequence[Path]) -> None:
    shapes = {
        str((tuple(a.name for a in r.arms.arms), r.about["settings"]["seeds"], tuple(r.segments), r.arms.ranker))
        for r in results
    }
    if len(results) < 2 or len(shapes) > 1:
        raise AdvpriorError(
            "RNK033",
            "these ablations cannot be pooled",
            where=", ".join(map(str, ablations)),
            actual=f"{len(ablations)} with {len(shapes)} sets of arms, seeds, segments and settings",
            expected="two or more ablations of the same arms",
            fix="ablate every origin with the same arms file",
        )


def _about(results: Sequence[AblationResult], rows: pd.DataFrame, segments: Mapping[str, Any]) -> dict[str, Any]:
    """The last one's, with counts summed and every origin named."""
    about = dict(results[-1].about)
    about["splits"] = {s: _sum([r.about["splits"][s] for r in results]) for s in about["splits"]}
    about["segments"] = {
        name: {
            "rows": int(mask.sum()),
            "positives": int(rows[LABEL][mask].sum()),
            "users": int(rows[USER_ID][mask].nunique()),
            "slates": int(rows[SLATE_ID][mask].nunique()),
        }
        for name, mask in {OVERALL: np.ones(len(rows), bool), **segments}.items()
    }
    about["splits"]["test"] = about["segments"][OVERALL]
    about["value"] = _mean_value([r.about["value"] for r in results])
    about["test_rows"] = digest([r.about["test_rows"] for r in results])
    about["cutoffs"] = [
        {
            "test": f"{plan['valid_end']} to {plan['end']}",
            "model_cutoff": plan["finetune_end"],
            "verdict": r.verdict.sentence,
        }
        for r in results
        if (plan := r.about["frame_facts"].get("time_plan"))
    ]
    return about


def _sum(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Counts over origins; users, who come back, are the most of any."""
    return {key: max(c[key] for c in counts) if key == "users" else sum(c[key] for c in counts) for key in counts[0]}


def _mean_value(tables: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    whole = pd.concat([pd.DataFrame(table) for table in tables])
    mean = whole.groupby(["arm", "load"], sort=False).mean().reset_index()
    return [{str(key): value for key, value in row.items()} for row in mean.to_dict("records")]
