"""Advertisers without events: ``advprior cold`` ranks withheld ones among all, from their name and catalog text alone.

Every run was fitted with the same advertisers withheld (``advprior finetune --withhold``). Their events before the
cut-off are hidden from every arm; labels after it are kept. Recall on labels of withheld advertisers answers how
well new ones are placed; recall on all labels tells what that costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from advprior.history.withheld import without
from advprior.store.contract import ADVERTISERS, EVENTS, POPULARITY, USERS
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest, versions
from advprior.store.tables import load_tables

OVERALL, WITHHELD, WITH_TEXT, NAME_ONLY, OTHERS = SEGMENTS = (
    "overall",
    "withheld",
    "withheld, with a text",
    "withheld, name only",
    "others",
)


def withheld_by(runs: Sequence[Path]) -> tuple[str, ...]:
    """The advertisers that all runs were fitted without.

    Raises
    ------
    AdvpriorError
        ``PRI061`` when there are none, or not the same.
    """
    sets = []
    for run in runs:
        config = read_manifest(run, step="finetune", fix="advprior finetune --withhold 0.2 …")["config"]
        sets.append(tuple(config.get("withheld", ())))
    if not sets or not sets[0] or any(s != sets[0] for s in sets):
        raise AdvpriorError(
            "PRI061",
            "the runs did not withhold the same advertisers",
            where=", ".join(map(str, runs)),
            actual=", ".join(str(len(s)) for s in sets) + " withheld",
            expected="the same ones, at least one",
            fix="advprior finetune --withhold 0.2 --seed S, the same for each run",
        )
    return sets[0]


def evaluate_cold(
    runs: Sequence[Path],
    tables: Path,
    cutoff: datetime,
    *,
    horizon: timedelta,
    replicates: int = 1000,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """Arms, segments and paired comparisons, as `advprior.evaluation.ladder.evaluate` gives them.

    Parameters
    ----------
    runs : sequence of Path
        Fitted with ``--withhold`` and exported; each becomes an arm of its folder's name.
    tables : Path
        Users, advertisers and events are read.
    cutoff, horizon : datetime, timedelta
        Labels lie in ``[cutoff, cutoff + horizon)``; asked are users with an event of another advertiser before.
    replicates, seed : int
        Of the bootstrap.

    Raises
    ------
    AdvpriorError
        ``PRI002``, ``PRI040``, ``PRI041`` as ``evaluate``; ``PRI061`` see `withheld_by`.
    """
    import numpy as np

    from advprior.evaluation import sentences
    from advprior.evaluation.compare import compare, overall
    from advprior.evaluation.ladder import TAKEN, open_run, require_past, score_labels
    from advprior.evaluation.protocol import first_labels
    from advprior.evaluation.seeds import unique_names
    from advprior.evaluation.terms import popularity
    from advprior.history import counts
    from advprior.history.catalog import Catalog
    from advprior.history.histories import build_histories, micros
    from advprior.predictors.logit import fit_logit, log_softmax
    from advprior.predictors.text.logit import OWN_HALF_LIFE
    from advprior.predictors.text.predictor import catalog_texts

    for run in runs:
        require_past(run, cutoff)
    ids = withheld_by(runs)
    loaded = load_tables(tables, USERS, ADVERTISERS, EVENTS)
    catalog = Catalog.from_table(loaded[ADVERTISERS])
    size, now = len(catalog), micros(cutoff)
    ahead = round(horizon.total_seconds() * 1_000_000)
    past = build_histories(loaded[USERS], without(loaded[EVENTS], ids), catalog).before(now)
    whole = build_histories(loaded[USERS], loaded[EVENTS], catalog)
    labels = first_labels(whole, now, ahead)
    labels = labels.keep(np.diff(past.offsets)[labels.user] > 0)
    hidden = np.isin(np.asarray(catalog.ids), ids)
    if not len(labels) or not hidden[labels.advertiser].any():
        raise AdvpriorError(
            "PRI041",
            "no user's label is a withheld advertiser",
            where=f"{tables}/events.parquet",
            actual="0 labels",
            expected="events of withheld advertisers from the cut-off on",
            fix="another --seed when fitting",
        )

    wide = np.broadcast_to(popularity(past, now, size), (len(labels), size))
    arms: dict[str, Any] = {POPULARITY: wide}
    left_out = {}
    if sentences.installed():
        vectors = sentences.sentence_vectors(catalog_texts(catalog))

        def near(users: Any, moment: int) -> Any:
            own = counts.own_points(past, users, np.full(len(users), moment), OWN_HALF_LIFE, size)
            return sentences.cosines(own, vectors)

        # a cosine is no log-probability: its scale is fitted on the year before, which changes no rank
        early = first_labels(past, now - ahead, ahead).sample(5000, seed)
        scale = 1.0
        if len(early):
            scale = float(fit_logit(near(early.user, now - ahead)[None], early.truth(size), centre=1.0)[0])
        arms[sentences.NAME] = log_softmax(max(scale, 1e-3) * near(labels.user, now))
    else:
        left_out[sentences.NAME] = "package wordllama is not installed"
    plain = list(arms)
    about_runs, uses_llm = {}, dict.fromkeys(arms, False)
    names = unique_names([run.resolve().name for run in runs], [*TAKEN, sentences.NAME])
    for name, run in zip(names, runs, strict=True):
        scorer, facts = open_run(run, catalog, tables, device, threads)
        arms[name] = score_labels(scorer, past, labels, now, name)
        about_runs[name] = {**facts, "provider": scorer.provider}
        uses_llm[name] = facts["uses_llm"]

    told = np.asarray([bool(t) for t in catalog.texts or ("",) * size])
    cold, text = hidden[labels.advertiser], told[labels.advertiser]
    inside = dict(zip(SEGMENTS, (np.ones(len(cold), np.bool_), cold, cold & text, cold & ~text, ~cold), strict=True))
    pairs = [(name, baseline) for name in names for baseline in (*plain, *(n for n in names if n != name))]
    if sentences.NAME in plain:
        pairs.append((sentences.NAME, POPULARITY))
    rows, comparisons = compare(
        {name: [log_probs] for name, log_probs in arms.items()},
        labels,
        inside,
        [(arm, baseline, baseline) for arm, baseline in pairs],
        replicates=replicates,
        seed=seed,
    )
    for row in rows:
        row["uses_llm"] = uses_llm[row["arm"]]
    about = {
        "step": "cold",
        "cutoff": cutoff.isoformat(),
        "users": len(labels),
        "advertisers": size,
        "withheld": list(ids),
        "withheld_labels": int(cold.sum()),
        "labels": len(cold),
        "runs": about_runs,
        "left_out": left_out,
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {"arms": overall(rows), "comparisons": comparisons, "segments": rows, "about": about}
