"""From canonical tables and fitted runs to the ladder of arms with paired intervals: ``advprior evaluate``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprior.store.contract import ADVERTISERS, EVENTS, LLM, NEIGHBOURS, POPULARITY, USERS
from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest, peak_memory_mb, read_manifest, run_key, versions, write_json
from advprior.store.tables import TABLES_FIX, load_tables

if TYPE_CHECKING:
    from advprior.evaluation.protocol import Labels
    from advprior.evaluation.seeds import Group, Seeds
    from advprior.history.catalog import Catalog
    from advprior.history.histories import Histories
    from advprior.predictors.base import Scorer
    from advprior.store.arrays import Float, Int

STEP = "evaluate"
CODE_VERSION = 4
SHARD = 256  # users scored at once
DAY = timedelta(days=1)
#: Names that no run's arm may have
TAKEN = (POPULARITY, "drift", "recency", NEIGHBOURS, "als", "logit", "blend", "best control", "all LLMs")


def evaluate(
    runs: Sequence[Path],
    tables: Path,
    cutoff: datetime,
    *,
    horizon: timedelta = 365 * DAY,
    earlier: Sequence[Path] = (),
    out: Path | None = None,
    seeds: Seeds = "together",
    profile_only: int = 4000,
    replicates: int = 1000,
    seed: int = 0,
    users: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    force: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Measure every arm at ``cutoff``; the result, and whether it was computed (False: read from ``out``).

    Parameters
    ----------
    runs : sequence of Path
        Fitted and exported predictors; each becomes an arm of its folder's name. Those without an LLM take part in
        ``blend``, the blend of all controls; those with one get ``blend + <name>`` beside it, and all of them together
        ``blend + all LLMs``.
    tables : Path
        Only users, advertisers and events are read.
    cutoff, horizon : datetime, timedelta
        Labels lie in ``[cutoff, cutoff + horizon)``.
    earlier : sequence of Path
        None, or one for each of ``runs``: the same predictor fitted on less, whose scores weigh it in the blend. A run
        that saw the blend's labels looks better on them than it is.
    users : int, optional
        Ask about no more than so many, drawn by ``seed``, the same for every arm: for arms that cost too much for all.
    out : Path, optional
        JSON file; written whole or not at all.
    seeds : {"together", "averaged", "apart"}
        Runs whose fits differ in nothing but their seed (`advprior.evaluation.seeds`) are one arm with their mean
        figures; one arm that answers with their mean probability; or an arm each.
    profile_only : int
        At most this many users without an event before the cut-off are asked about too, drawn at random: the segment
        ``profile only``, apart from all others.

    Raises
    ------
    AdvpriorError
        ``PRI002`` catalogs differ, ``PRI040`` a run saw labels of the future, ``PRI041`` nobody to ask about,
        ``PRI042`` ``earlier`` does not match ``runs``, ``PRI043`` ``out`` holds something else.
    """
    started = time.time()
    for run in (*runs, *earlier):
        require_past(run, cutoff)
    if earlier and len(earlier) != len(runs):
        raise AdvpriorError(
            "PRI042",
            "each run needs its own earlier run",
            actual=f"{len(earlier)} for {len(runs)} runs",
            expected="--earlier once for each RUN, in the same order, or not at all",
        )
    read_manifest(tables, fix=TABLES_FIX)
    from advprior.evaluation.seeds import group_runs

    groups = group_runs(runs, TAKEN, together=seeds != "apart", averaged=seeds == "averaged")
    config = {
        "cutoff": cutoff.isoformat(),
        "horizon_s": horizon.total_seconds(),
        "replicates": replicates,
        "seed": seed,
        "profile_only": profile_only,
        "runs": {group.name: [runs[i].resolve().name for i in group.members] for group in groups},
    }
    if users is not None:
        config["asked"] = users
    inputs = {"tables": manifest_digest(tables)}
    for label, some in (("run", runs), ("earlier", earlier)):
        for i, run in enumerate(some):
            inputs[f"{label}:{i}"] = manifest_digest(run)
            inputs[f"{label}:{i}:onnx"] = manifest_digest(run / "onnx")

    from advprior.evaluation.terms import als_installed

    key = run_key(STEP, {**config, "als": als_installed()}, inputs, CODE_VERSION)
    kept = _read(out)
    if not force and kept is not None and kept["about"]["key"] == key:
        return kept, False

    result = _measure(
        runs, earlier, groups, tables, cutoff, horizon, profile_only, replicates, seed, users, device, threads
    )
    result["about"] = {
        "step": STEP,
        "key": key,
        "config": config,
        "inputs": inputs,
        **result["about"],
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 2),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    return result, True


def require_past(run: Path, cutoff: datetime) -> None:
    """Refuse (``PRI040``) a run that saw labels from the cut-off on."""
    fitted = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    read_manifest(run / "onnx", step="export", fix=f"advprior export {run}")
    if datetime.fromisoformat(fitted["facts"]["model_cutoff"]) > cutoff:
        raise AdvpriorError(
            "PRI040",
            "the model saw labels that it is to be asked about",
            where=str(run),
            actual=f"fitted on events up to {fitted['facts']['model_cutoff']}",
            expected=f"no event from the cut-off {cutoff.isoformat()} on",
            fix="a later --cutoff, or fit on tables whose finetune_end is the cut-off",
        )


def _read(out: Path | None) -> dict[str, Any] | None:
    """What an earlier evaluation wrote to ``out``; None when nothing is there."""
    if out is None or not out.exists():
        return None
    try:
        kept = json.loads(out.read_text())
        if kept["about"]["step"] == STEP:
            return dict(kept)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise AdvpriorError(
        "PRI043",
        "the output would replace something that evaluate did not write",
        where=str(out),
        expected="a new file, or an earlier evaluation",
        fix="choose another --out",
    )


def _measure(
    runs: Sequence[Path],
    earlier: Sequence[Path],
    groups: Sequence[Group],
    tables: Path,
    cutoff: datetime,
    horizon: timedelta,
    profile_only: int,
    replicates: int,
    seed: int,
    users: int | None,
    device: str,
    threads: int | None,
) -> dict[str, Any]:
    import numpy as np

    from advprior.evaluation.compare import compare, overall
    from advprior.evaluation.controls import BLEND
    from advprior.evaluation.population import ALL, add_blends, ask, fitted_facts, pairs
    from advprior.evaluation.protocol import PROFILE_ONLY, segments
    from advprior.evaluation.seeds import mean_probability
    from advprior.evaluation.terms import ALS, Terms, als_installed
    from advprior.history.catalog import Catalog
    from advprior.history.histories import build_histories, micros

    loaded = load_tables(tables, USERS, ADVERTISERS, EVENTS)
    catalog = Catalog.from_table(loaded[ADVERTISERS])
    histories = build_histories(loaded[USERS], loaded[EVENTS], catalog)
    del loaded
    now, ahead, size = micros(cutoff), round(horizon.total_seconds() * 1_000_000), len(catalog)
    past = histories.before(now)  # all that anything below is fitted on or scored from
    # labels to fit on end at T; where the data before T is shorter than two horizons, half of it is history
    back = min(ahead, int(now - past.time.min()) // 2) if len(past.time) else 1
    then = now - back
    before = histories.before(then)

    @cache
    def terms_at(moment: int) -> Terms:
        return Terms(histories.before(moment), moment, size, seed)

    main = ask(histories, now, ahead, back, terms_at, size, seed, users=users)
    if main is None:
        raise AdvpriorError(
            "PRI041",
            "nobody can be asked, or fitted on",
            where=f"{tables}/events.parquet",
            actual="no user with an event before the cut-off and one within the horizon, there or one horizon earlier",
            expected=f"events before and from {cutoff.isoformat()} on",
            fix="another --cutoff or --horizon",
        )
    beside = None
    if profile_only:
        beside = ask(histories, now, ahead, back, terms_at, size, seed, profile_only=profile_only, users=users)
    people = [main] if beside is None else [main, beside]

    about_runs: dict[str, Any] = {}
    optimistic, with_llm = [], set()
    for group in groups:
        about_runs[group.name] = []
        for i in group.members:
            scorer, facts = open_run(runs[i], catalog, tables, device, threads)
            weigher, seen = open_run(earlier[i], catalog, tables, device, threads) if earlier else (scorer, facts)
            for asked in people:
                asked.arms.setdefault(group.name, []).append(score_labels(scorer, past, asked.labels, now, group.name))
                asked.first.setdefault(group.name, []).append(
                    score_labels(weigher, before, asked.early, then, group.name)
                )
            if micros(datetime.fromisoformat(seen["model_cutoff"])) > then and group.name not in optimistic:
                optimistic.append(group.name)
            if facts["uses_llm"]:
                with_llm.add(group.name)
            about_runs[group.name].append(
                {
                    "run": runs[i].resolve().name,
                    "digest": manifest_digest(runs[i]),
                    **facts,
                    "provider": scorer.provider,
                }
            )

    names = [group.name for group in groups]
    for asked in people:
        for group in (group for group in groups if group.averaged):
            asked.arms[group.name] = [mean_probability(asked.arms[group.name])]
            asked.first[group.name] = [mean_probability(asked.first[group.name])]
        add_blends(asked, names, with_llm, optimistic)
    inside = segments(main.labels, histories, now, size)
    rows, comparisons = compare(
        main.arms, main.labels, inside, pairs(main, names, with_llm), replicates=replicates, seed=seed
    )
    if beside is not None:
        everyone = {PROFILE_ONLY: np.ones(len(beside.labels.advertiser), np.bool_)}
        more = compare(
            beside.arms, beside.labels, everyone, pairs(beside, names, with_llm), replicates=replicates, seed=seed
        )
        rows, comparisons = rows + more[0], comparisons + more[1]
    for row in rows:
        row["uses_llm"] = row["arm"].removeprefix(f"{BLEND} + ") in {*with_llm, ALL}
    about = {
        "users": len(main.labels),
        "labels": len(main.labels.advertiser),
        "labels_shared": int((main.labels.credit < 1).sum()),
        "advertisers": size,
        "catalog_version": catalog.version,
        "fitted_at": datetime.fromtimestamp(then / 1e6, UTC).isoformat(),
        "runs": about_runs,
        "left_out": {} if als_installed() else {ALS: "package implicit is not installed"},
        "saw_the_blend_labels": optimistic,
        **fitted_facts(main),
    }
    if beside is not None:
        about[PROFILE_ONLY] = {
            "users": len(beside.labels),
            **fitted_facts(beside),
            "note": "users without an event before the cut-off; the profile is the users table's, whenever it was told",
        }
    return {"arms": overall(rows), "comparisons": comparisons, "segments": rows, "about": about}


def open_run(
    run: Path, catalog: Catalog, tables: Path, device: str, threads: int | None
) -> tuple[Scorer, dict[str, Any]]:
    """An exported run's scorer, and what the provenance says of it; ``PRI002`` when its catalog is another."""
    from advprior.predictors.registry import load_predictor

    predictor = load_predictor(run)
    predictor.catalog.require_same(
        catalog,
        where=f"{tables}/advertisers.parquet against {run}",
        fix=f"advprior finetune --tables {tables} --predictor {predictor.kind} --out {run}",
    )
    cutoff = read_manifest(run)["facts"]["model_cutoff"]
    facts = {
        "predictor": predictor.kind,
        "model_cutoff": cutoff,
        "uses_llm": bool(getattr(predictor, "uses_llm", predictor.kind == LLM)),
    }
    return predictor.scorer(run / "onnx", device, threads), facts


def score_labels(scorer: Scorer, past: Histories, labels: Labels, cutoff: int, name: str) -> Float:
    """Log-probs [P, N] of the labels' users; the scorer is given the past only."""
    import numpy as np
    from tqdm.auto import tqdm

    moment: Int = np.asarray([cutoff], np.int64)
    # of users without a past the profile is all there is: one forward answers for all who told the same
    length = np.diff(past.offsets)[labels.user]
    same = [past.profiles[u] if not n else u for u, n in zip(labels.user.tolist(), length.tolist(), strict=True)]
    first = {key: i for i, key in reversed(list(enumerate(same)))}
    asked = np.asarray(sorted(first.values()), np.int64)
    shards = tqdm(range(0, len(asked), SHARD), desc=f"{name} on {scorer.provider}", unit="shard", disable=None)
    parts = [scorer.score(past, labels.user[asked[start : start + SHARD]], moment)[:, 0] for start in shards]
    log_probs: Float = np.concatenate(parts)[np.searchsorted(asked, [first[key] for key in same])]
    if not np.abs(np.exp(log_probs, dtype=np.float64).sum(1) - 1).max() <= 1e-4:  # a NaN fails too
        raise AdvpriorError(
            "PRI008",
            "a prior is no distribution over the catalog",
            where=name,
            expected="sums within 1e-4 of one",
            fix="advprior export RUN --force, then evaluate again",
        )
    return log_probs
