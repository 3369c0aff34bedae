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
from ranking.evidence.ablation import best_controls_of, pairs_of, segment_counts, warnings_of
from ranking.evidence.bootstrap import Outcomes, Resampling, paired_bootstrap
from ranking.evidence.claims import gaps_from_json, gaps_to_json
from ranking.evidence.deciding import metrics_at
from ranking.evidence.lift import OVERALL
from ranking.evidence.result import AblationResult
from ranking.evidence.segments import SEGMENT_PREFIX
from ranking.evidence.verdict import judge
from ranking.evidence.wording import at_cutoffs, plain_label
from ranking.frame.coverage import CoverageGap
from ranking.models.arms import Arm, Arms

BEST_CONTROL = "best_control"  # the arm that stands for unlike choices


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

    The best control is chosen at each cut-off on that cut-off's own validation rows: a later one's have been test rows
    before. Where the choices differ, an arm ``best_control`` stands for them, with each cut-off's own.

    Parameters
    ----------
    ablations : sequence of Path
        Finished ``advprior rank ablate`` runs with the same arms, in time order.
    replicates : int

    Returns
    -------
    AblationResult
        ``about`` is the last one's, with counts summed, ``cutoffs`` naming each origin's test window, verdict and the
        segments that it lacks, and ``best_control_by_cutoff`` each origin's choice for every arm on trial.

    Raises
    ------
    AdvpriorError
        ``RNK033`` when the ablations differ in arms, seeds or settings; ``RNK006``.
    """
    results = [AblationResult.load(folder).load_scores() for folder in ablations]
    _check_alike(results, ablations)
    seeds = results[0].about["settings"]["seeds"]
    choices = _choices(results)
    arms, best_controls = _with_choices(results[0].arms, choices)
    results = [_chosen(result, i, choices, best_controls) for i, result in enumerate(results)]
    rows = pd.concat([result.rows for result in results], ignore_index=True)
    cutoff = np.repeat(np.arange(len(results)), [len(result.rows) for result in results if result.rows is not None])
    scores: dict[str, list[Double]] = {
        arm.name: [np.concatenate([result.scores[arm.name][s] for result in results]) for s in range(seeds)]
        for arm in arms.arms
    }
    names = dict.fromkeys(segment for result in results for segment in result.segments if segment != OVERALL)
    segments = {name: (rows[SEGMENT_PREFIX + name] == True).to_numpy(bool) for name in names}  # noqa: E712 (or absent)
    slate = pd.factorize(pd.MultiIndex.from_arrays([cutoff, rows[SLATE_ID]]))[0]
    lifts = paired_bootstrap(
        scores,
        Outcomes.of(rows[LABEL], rows[USER_ID].astype(str), slate=slate, segments=segments, cutoff=cutoff),
        pairs_of(arms),
        Resampling(metrics_at(results[0].slots), replicates, progress=True),
    )
    measured = pd.concat(
        [r.measured.assign(seed=r.measured["seed"] + i * seeds) for i, r in enumerate(results)], ignore_index=True
    )
    about = _about(results, rows.assign(**{SLATE_ID: slate}), segments) | {"best_control_by_cutoff": choices}
    about["warnings"] = [finding.to_json() for finding in warnings_of(lifts, arms, results[0].metric)]
    about["settings"] = {**about["settings"], "replicates": replicates}
    gaps: dict[str, CoverageGap] = {}
    for result in results:  # of several cut-offs, the one with the fewest priors
        of_one = gaps_from_json(result.about.get("gaps"))
        gaps |= {name: gap for name, gap in of_one.items() if name not in gaps or gap.share < gaps[name].share}
    about["gaps"] = gaps_to_json(gaps)
    expected = results[-1].about.get("expected_kinds")
    metric = results[0].metric
    verdict = judge(lifts, arms, best_controls=best_controls, metric=metric, gaps=gaps, expected=expected)
    best_control = best_controls.get(arms.on_trial[0].name)
    return AblationResult(
        arms, lifts, verdict, best_control, measured, about, scores=scores, best_controls=best_controls
    )


def _check_alike(results: Sequence[AblationResult], ablations: Sequence[Path]) -> None:
    shapes = {
        str((tuple(a.name for a in r.arms.arms), r.about["settings"]["seeds"], r.slots, r.metric.name, r.arms.ranker))
        for r in results
    }
    if len(results) < 2 or len(shapes) > 1:
        raise AdvpriorError(
            "RNK033",
            "these ablations cannot be pooled",
            where=", ".join(map(str, ablations)),
            actual=f"{len(ablations)} with {len(shapes)} sets of arms, seeds, metrics and settings",
            expected="two or more ablations of the same arms, decided on the same metric",
            fix="ablate every origin with the same arms file, --decide-on and --slots",
        )


def _choices(results: Sequence[AblationResult]) -> dict[str, list[str]]:
    """Each arm on trial and its best control at every cut-off, chosen on that cut-off's validation rows."""
    by_origin = [best_controls_of(result.arms, result.measured, result.metric) for result in results]
    return {
        arm.name: [best[arm.name] for best in by_origin]
        for arm in results[0].arms.on_trial
        if all(arm.name in best for best in by_origin)
    }


def _with_choices(arms: Arms, choices: Mapping[str, Sequence[str]]) -> tuple[Arms, dict[str, str]]:
    """Arms with one more for every set of unlike choices, and the arm that is each one's best control."""
    best, added = {}, dict[tuple[str, ...], Arm]()
    for name, by_origin in choices.items():
        unlike = tuple(by_origin)
        if len(set(unlike)) == 1:
            best[name] = unlike[0]
            continue
        if unlike not in added:
            last, number = (
                arms.find(unlike[-1]),
                len(added) + 1 + sum(a.name.startswith(BEST_CONTROL) for a in arms.arms),
            )
            labels = at_cutoffs([plain_label(arms.find(chosen).label) for chosen in unlike])
            renamed = {
                "name": BEST_CONTROL if number == 1 else f"{BEST_CONTROL}_{number}",
                "label": f"best control of each cut-off ({labels})",
                "role": "control",
                "kind": None,
                "of": (),
            }
            added[unlike] = last.model_copy(update=renamed)
        best[name] = added[unlike].name
    return Arms(arms=(*arms.arms, *added.values()), ranker=arms.ranker), best


def _chosen(
    result: AblationResult, place: int, choices: Mapping[str, Sequence[str]], best_controls: Mapping[str, str]
) -> AblationResult:
    """One cut-off's result with the scores, measures and worth of its choice under the added arm's name."""
    about, measured, scores = dict(result.about), result.measured, dict(result.scores)
    for name, stands_for in best_controls.items():
        chosen = choices[name][place]
        if stands_for in scores:
            continue
        scores[stands_for] = scores[chosen]
        measured = pd.concat([measured, measured[measured["arm"] == chosen].assign(arm=stands_for)])
        about["per_arm"] = {**about["per_arm"], stands_for: about["per_arm"].get(chosen, {})}
        about["value"] = [*about["value"], *({**v, "arm": stands_for} for v in about["value"] if v["arm"] == chosen)]
    return replace(result, about=about, measured=measured, scores=scores)


def _about(results: Sequence[AblationResult], rows: pd.DataFrame, segments: Mapping[str, Any]) -> dict[str, Any]:
    """The last one's, with counts summed and every origin named."""
    about = dict(results[-1].about)
    about["splits"] = {s: _sum([r.about["splits"][s] for r in results]) for s in about["splits"]}
    about["segments"] = segment_counts(rows, {OVERALL: np.ones(len(rows), bool), **segments})
    about["segment_order"] = list(about["segments"])
    about["splits"]["test"] = about["segments"][OVERALL]
    about["value"] = _mean_value([r.about["value"] for r in results])
    about["test_rows"] = digest([r.about["test_rows"] for r in results])
    about["cutoffs"] = [
        {
            "test": f"{plan['valid_end']} to {plan['end']}",
            "model_cutoff": plan["finetune_end"],
            "verdict": r.verdict.sentence,
            "without": [name for name in segments if r.about["segments"].get(name, {}).get("positives", 0) == 0],
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
