"""From canonical tables and fitted runs to the ladder of arms with paired intervals: ``advprior evaluate``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.contract import ADVERTISERS, EVENTS, LLM, POPULARITY, USERS
from feature_repo.errors import AdvpriorError
from feature_repo.runs import manifest_digest, peak_memory_mb, read_manifest, run_key, versions, write_json
from feature_repo.tables import TABLES_FIX, load_tables

if TYPE_CHECKING:
    from advprior.catalog import Catalog
    from advprior.evaluation.protocol import Labels
    from advprior.histories import Histories, Int
    from advprior.predictors.base import Float, Scorer

STEP = "evaluate"
CODE_VERSION = 1
MOST_FITTED = 20_000  # users on whose earlier labels the controls and blends are fitted
SHARD = 256  # users scored at once
DAY = timedelta(days=1)


def evaluate(
    runs: Sequence[Path],
    tables: Path,
    cutoff: datetime,
    *,
    horizon: timedelta = 365 * DAY,
    earlier: Sequence[Path] = (),
    out: Path | None = None,
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
        Fitted and exported predictors; each becomes an arm of its folder's name, and ``blend + <name>``.
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

    Raises
    ------
    AdvpriorError
        ``PRI002`` catalogs differ, ``PRI040`` a run saw labels of the future, ``PRI041`` nobody to ask about,
        ``PRI042`` ``earlier`` does not match ``runs``, ``PRI043`` ``out`` holds something else.
    """
    started = time.time()
    for run in (*runs, *earlier):
        _require_past(run, cutoff)
    if earlier and len(earlier) != len(runs):
        raise AdvpriorError(
            "PRI042", "each run needs its own earlier run", found=f"{len(earlier)} for {len(runs)} runs",
            expected="--earlier once for each RUN, in the same order, or not at all",
        )  # fmt: skip
    read_manifest(tables, fix=TABLES_FIX)
    names = arm_names(runs)
    config = {"cutoff": cutoff.isoformat(), "horizon_s": horizon.total_seconds(), "replicates": replicates,
              "seed": seed, "runs": names}  # fmt: skip
    if users is not None:
        config["asked"] = users
    inputs = {"tables": manifest_digest(tables)}
    for label, some in (("run", runs), ("earlier", earlier)):
        for name, run in zip(names, some, strict=False):
            inputs[f"{label}:{name}"] = manifest_digest(run)
            inputs[f"{label}:{name}:onnx"] = manifest_digest(run / "onnx")

    from advprior.evaluation.controls import als_installed

    key = run_key(STEP, {**config, "als": als_installed()}, inputs, CODE_VERSION)
    kept = _read(out)
    if not force and kept is not None and kept["about"]["key"] == key:
        return kept, False

    result = _measure(runs, earlier, names, tables, cutoff, horizon, replicates, seed, users, device, threads)
    result["about"] = {
        "step": STEP, "key": key, "config": config, "inputs": inputs, **result["about"], "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.time() - started, 2),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }  # fmt: skip
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    return result, True


def arm_names(runs: Sequence[Path]) -> list[str]:
    """Names of the runs' arms: their folders', told apart from each other and from the controls.

    >>> arm_names([Path("a/llm"), Path("b/llm"), Path("popularity")])
    ['llm', 'llm (2)', 'popularity (2)']
    """
    from advprior.evaluation.controls import ALS, BLEND, RECENCY
    from feature_repo.contract import NEIGHBOURS

    taken = {POPULARITY, RECENCY, NEIGHBOURS, ALS, BLEND}
    names = []
    for run in runs:
        base = name = run.resolve().name
        number = 1
        while name in taken:
            number += 1
            name = f"{base} ({number})"
        taken.add(name)
        names.append(name)
    return names


def _require_past(run: Path, cutoff: datetime) -> None:
    fitted = read_manifest(run, step="finetune", fix="advprior finetune --tables TABLES --out RUN")
    read_manifest(run / "onnx", step="export", fix=f"advprior export {run}")
    if datetime.fromisoformat(fitted["facts"]["model_cutoff"]) > cutoff:
        raise AdvpriorError(
            "PRI040", "the model saw labels that it is to be asked about", where=str(run),
            found=f"fitted on events up to {fitted['facts']['model_cutoff']}",
            expected=f"no event from the cut-off {cutoff.isoformat()} on",
            fix="a later --cutoff, or fit on tables whose finetune_end is the cut-off",
        )  # fmt: skip


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
        "PRI043", "the output would replace something that evaluate did not write", where=str(out),
        expected="a new file, or an earlier evaluation", fix="choose another --out",
    )  # fmt: skip


def _measure(
    runs: Sequence[Path],
    earlier: Sequence[Path],
    names: list[str],
    tables: Path,
    cutoff: datetime,
    horizon: timedelta,
    replicates: int,
    seed: int,
    users: int | None,
    device: str,
    threads: int | None,
) -> dict[str, Any]:
    from advprior.catalog import Catalog
    from advprior.evaluation import controls
    from advprior.evaluation.protocol import first_labels, segments
    from advprior.histories import build_histories, micros

    loaded = load_tables(tables, USERS, ADVERTISERS, EVENTS)
    catalog = Catalog.from_table(loaded[ADVERTISERS])
    histories, size = build_histories(loaded[USERS], loaded[EVENTS], catalog), len(catalog)
    del loaded
    now, ahead = micros(cutoff), round(horizon.total_seconds() * 1_000_000)
    past = histories.before(now)  # all that anything below is fitted on or scored from
    labels = first_labels(histories, now, ahead)
    if not len(labels):
        raise AdvpriorError(
            "PRI041", "no user has an event both before and after the cut-off", where=f"{tables}/events.parquet",
            found="0 users", expected=f"events before and from {cutoff.isoformat()} on", fix="another --cutoff",
        )  # fmt: skip
    labels = labels if users is None else labels.sample(users, seed)
    # labels to fit on end at T; where the data before T is shorter than two horizons, half of it is history
    then = now - min(ahead, int(now - past.time.min()) // 2)
    early = first_labels(past, then, now - then)
    if not len(early):
        raise AdvpriorError(
            "PRI041", "no user's label before the cut-off can be fitted on", where=f"{tables}/events.parquet",
            found="0 users with two occasions", expected="some before the cut-off", fix="a later --cutoff",
        )  # fmt: skip
    early, before = early.sample(min(users or MOST_FITTED, MOST_FITTED), seed), histories.before(then)

    fitted = controls.fit_controls(before, early, then, size, seed=seed)
    first = fitted.log_probs(before, early.user, then, size)
    arms = fitted.log_probs(past, labels.user, now, size)
    plain = list(arms)
    weights = {controls.BLEND: controls.fit_blend(first, early)}
    arms[controls.BLEND] = controls.blend(arms, weights[controls.BLEND])
    uses_llm = dict.fromkeys(arms, False)
    about_runs, optimistic = {}, []
    for i, (name, run) in enumerate(zip(names, runs, strict=True)):
        scorer, facts = _open(run, catalog, tables, device, threads)
        arms[name] = _score(scorer, past, labels, now, name)
        weigher, seen = scorer, facts
        if earlier:
            weigher, seen = _open(earlier[i], catalog, tables, device, threads)
        if micros(datetime.fromisoformat(seen["model_cutoff"])) > then:
            optimistic.append(name)
        both = f"{controls.BLEND} + {name}"
        seen_first = {**{c: first[c] for c in plain}, name: _score(weigher, before, early, then, name)}
        weights[both] = controls.fit_blend(seen_first, early)
        arms[both] = controls.blend(arms, weights[both])
        uses_llm[name] = uses_llm[both] = facts["uses_llm"]
        about_runs[name] = {**facts, "provider": scorer.provider}

    inside = segments(labels, histories, now, size)
    result = _compare(arms, labels, inside, _pairs(plain, names), replicates, seed)
    for row in result["arms"]:
        row["uses_llm"] = uses_llm[row["name"]]
    result["about"] = {
        "users": len(labels), "labels": len(labels.advertiser), "labels_shared": int((labels.credit < 1).sum()),
        "advertisers": size, "catalog_version": catalog.version,
        "fitted_at": datetime.fromtimestamp(then / 1e6, UTC).isoformat(), "fitted_users": len(early),
        "controls": fitted.to_json(), "blend_weights": weights, "runs": about_runs,
        "left_out": {} if controls.als_installed() else {controls.ALS: "package implicit is not installed"},
        "saw_the_blend_labels": optimistic,
    }  # fmt: skip
    return result


def _open(run: Path, catalog: Catalog, tables: Path, device: str, threads: int | None) -> tuple[Scorer, dict[str, Any]]:
    from advprior.predictors.base import load_predictor

    predictor = load_predictor(run)
    predictor.catalog.require_same(
        catalog, where=f"{tables}/advertisers.parquet against {run}",
        fix=f"advprior finetune --tables {tables} --predictor {predictor.kind} --out {run}",
    )  # fmt: skip
    cutoff = read_manifest(run)["facts"]["model_cutoff"]
    facts = {
        "predictor": predictor.kind,
        "model_cutoff": cutoff,
        "uses_llm": bool(getattr(predictor, "uses_llm", predictor.kind == LLM)),
    }
    return predictor.scorer(run / "onnx", device, threads), facts


def _score(scorer: Scorer, past: Histories, labels: Labels, cutoff: int, name: str) -> Float:
    """Log-probs [P, N] of the labels' users; the scorer is given the past only."""
    import numpy as np
    from tqdm.auto import tqdm

    moment: Int = np.asarray([cutoff], np.int64)
    shards = tqdm(range(0, len(labels), SHARD), desc=f"{name} on {scorer.provider}", unit="shard", disable=None)
    parts = [scorer.score(past, labels.user[start : start + SHARD], moment)[:, 0] for start in shards]
    log_probs: Float = np.concatenate(parts)
    if not np.abs(np.exp(log_probs, dtype=np.float64).sum(1) - 1).max() <= 1e-4:  # a NaN fails too
        raise AdvpriorError(
            "PRI008", "a prior is no distribution over the catalog", where=name, expected="sums within 1e-4 of one",
            fix="advprior export RUN --force, then evaluate again",
        )  # fmt: skip
    return log_probs


def _pairs(plain: list[str], names: list[str]) -> Iterator[tuple[str, str]]:
    """(arm, baseline): controls against popularity; each run against every control; blends against blends."""
    from advprior.evaluation.controls import BLEND

    for arm in (*plain, BLEND):
        if arm != POPULARITY:
            yield arm, POPULARITY
    for name in names:
        for baseline in (*plain, BLEND, *(n for n in names if n != name)):
            yield name, baseline
        yield f"{BLEND} + {name}", BLEND
        yield f"{BLEND} + {name}", name
        for other in names:
            if other != name:
                yield f"{BLEND} + {name}", f"{BLEND} + {other}"


def _compare(
    arms: dict[str, Float], labels: Labels, inside: dict[str, Any], pairs: Iterator[tuple[str, str]],
    replicates: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Every metric of every arm, overall and by segment, and the pairs' differences with their intervals."""
    import numpy as np

    from advprior.evaluation.intervals import paired_bootstrap
    from advprior.evaluation.protocol import METRICS, marks

    row, credit, users = labels.row, labels.credit, len(labels)
    weight: Any = np.stack([np.bincount(row, credit * kept, minlength=users) for kept in inside.values()], axis=1)
    total = weight.sum(0)
    # sums per user [users, metrics, segments]: enough for means and for every interval
    sums: dict[str, Any] = {}
    for name, log_probs in arms.items():
        found = marks(log_probs, labels)
        sums[name] = np.stack(
            [
                np.stack([np.bincount(row, found[m] * credit * kept, minlength=users) for m in METRICS], axis=1)
                for kept in inside.values()
            ],
            axis=2,
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {name: s.sum(0) / total for name, s in sums.items()}
    by_segment = [
        {"arm": name, "segment": segment, "users": int((weight[:, j] > 0).sum()),
         **{m: _number(means[name][i, j]) for i, m in enumerate(METRICS)}}
        for name in arms for j, segment in enumerate(inside)
    ]  # fmt: skip
    table = [
        {"name": r["arm"], **{k: v for k, v in r.items() if k not in ("arm", "segment")}}
        for r in by_segment if r["segment"] == "overall"
    ]  # fmt: skip
    of = np.tile(np.arange(len(inside)), len(METRICS))
    comparisons = []
    for arm, baseline in pairs:
        columns = (sums[arm] - sums[baseline]).reshape(users, -1)
        # the same seed for every pair: all are drawn the same users
        found_, low, high = (
            x.reshape(len(METRICS), -1) for x in paired_bootstrap(columns, weight, of, replicates=replicates, seed=seed)
        )
        for i, metric in enumerate(METRICS):
            for j, segment in enumerate(inside):
                base = means[baseline][i, j]
                comparisons.append({
                    "arm": arm, "baseline": baseline, "metric": metric, "segment": segment,
                    "difference": _number(found_[i, j]),
                    "relative": _number(found_[i, j] / base) if base else None,
                    "low": _number(low[i, j]), "high": _number(high[i, j]),
                })  # fmt: skip
    return {"arms": table, "comparisons": comparisons, "segments": by_segment}


def _number(value: Any) -> float | None:
    """A JSON number; nothing where a segment is empty."""
    return float(value) if value == value else None
