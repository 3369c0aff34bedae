"""Advertisers without events: ``advprior cold`` ranks withheld ones among all, from their name and catalog text alone.

Every run was fitted with the same advertisers withheld (``advprior finetune --withhold``). Their events before the
cut-off are hidden from every arm; labels after it are kept. Recall on labels of withheld advertisers answers how
well new ones are placed; recall on all labels tells what that costs. *Young* ones are not withheld: they have 1 to 10
events before the cut-off. Beside each run that reads texts stand the nearest texts by its own encoder: what they cannot
say is what the fit has added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from advprior.evaluation import sentences
from advprior.evaluation.compare import Bootstrap, compare, overall
from advprior.evaluation.options import Options
from advprior.evaluation.protocol import Labels, first_labels
from advprior.evaluation.runs import TAKEN, open_run, require_past, score_labels
from advprior.evaluation.seeds import unique_names
from advprior.evaluation.terms import popularity
from advprior.history import counts
from advprior.history.catalog import Catalog
from advprior.history.histories import Histories, build_histories, micros
from advprior.history.withheld import without
from advprior.predictors.logit import fit_logit, log_softmax
from advprior.predictors.text.logit import OWN_HALF_LIFE
from advprior.predictors.text.predictor import text_vectors
from advprior.store.arrays import Bool, Float, Int
from advprior.store.contract import ADVERTISERS, EVENTS, POPULARITY, USERS
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from advprior.store.versions import versions

MOST_SCALED = 5000  # users on whose labels the scale of a cosine is fitted
YOUNG_EVENTS = 10  # at most, before the cut-off, and one at least
OVERALL, WITHHELD, WITH_TEXT, NAME_ONLY, YOUNG, OTHERS = SEGMENTS = (
    "overall",
    "withheld",
    "withheld, with a text",
    "withheld, name only",
    "young",
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


def evaluate_cold(runs: Sequence[Path], tables: Path, cutoff: datetime, options: Options) -> dict[str, Any]:
    """Arms, segments and paired comparisons, as `advprior.evaluation.ladder.evaluate` gives them.

    Parameters
    ----------
    runs : sequence of Path
        Fitted with ``--withhold`` and exported; each becomes an arm of its folder's name.
    tables : Path
        Users, advertisers and events are read.
    cutoff : datetime
        Users with an event of another advertiser before it are asked about.
    options : Options
        ``horizon``, ``replicates``, ``seed``, ``device`` and ``threads`` are read.

    Raises
    ------
    AdvpriorError
        ``PRI002``, ``PRI040``, ``PRI041`` as ``evaluate``; ``PRI061`` see `withheld_by`.
    """
    for run in runs:
        require_past(run, cutoff)
    case = _Case.read(tables, withheld_by(runs), micros(cutoff), options)
    arms, left_out = case.controls()
    controls = list(arms)
    about_runs: dict[str, Any] = {}
    names = unique_names([run.resolve().name for run in runs], [*TAKEN, sentences.NAME])
    for name, run in zip(names, runs, strict=True):
        scorer, facts = open_run(run, case.catalog, tables, options)
        arms[name] = score_labels(scorer, case.past, case.labels, case.now, name)
        about_runs[name] = {**facts, "provider": scorer.provider}
        if (vectors := text_vectors(run)) is not None:
            arms[neighbours_of(name)] = case.nearest(vectors)
    pairs = [(name, other) for name in names for other in (*controls, neighbours_of(name), *names) if other != name]
    pairs = [(arm, baseline) for arm, baseline in pairs if baseline in arms]
    if sentences.NAME in controls:
        pairs.append((sentences.NAME, POPULARITY))
    inside = case.segments()
    rows, comparisons = _compared(arms, case.labels, inside, pairs, options)
    for row in rows:
        row["uses_llm"] = row["arm"] in about_runs and about_runs[row["arm"]]["uses_llm"]
    about = {
        "step": "cold",
        "cutoff": cutoff.isoformat(),
        "users": len(case.labels),
        "advertisers": len(case.catalog),
        "withheld": list(case.withheld),
        "withheld_labels": int(inside[WITHHELD].sum()),
        "young_labels": int(inside[YOUNG].sum()),
        "labels": len(case.labels.advertiser),
        "runs": about_runs,
        "left_out": left_out,
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {"arms": overall(rows), "comparisons": comparisons, "segments": rows, "about": about}


def _compared(
    arms: dict[str, Float], labels: Labels, inside: dict[str, Bool], pairs: list[tuple[str, str]], options: Options
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and comparisons; each has the interval of other users and, ``by_advertiser``, that of other advertisers.

    A few of those withheld have most of the labels, so which were withheld can move a difference by more than all users
    together: two draws of x_wines said −.21 and +.12 nats, each interval by users clear of zero.
    """
    members = {name: [log_probs] for name, log_probs in arms.items()}
    named = [(arm, baseline, baseline) for arm, baseline in pairs]
    rows, by_user = compare(members, labels, inside, named, Bootstrap(options.replicates, options.seed))
    others = Bootstrap(options.replicates, options.seed, unit=labels.advertiser)
    _, by_advertiser = compare(members, labels, inside, named, others)
    both = zip(by_user, by_advertiser, strict=True)
    return rows, [{**one, "by_advertiser": {"low": other["low"], "high": other["high"]}} for one, other in both]


def neighbours_of(run: str) -> str:
    """What the arm of nearest texts by a run's own encoder is called."""
    return f"{run}: neighbours"


@dataclass(frozen=True)
class _Case:
    """What is asked: histories without the withheld advertisers, and labels with them.

    Attributes
    ----------
    past : Histories
        Events before the cut-off, those of withheld advertisers hidden.
    now, ahead : int
        Microseconds.
    """

    catalog: Catalog
    past: Histories
    labels: Labels
    withheld: tuple[str, ...]
    now: int
    ahead: int
    seed: int

    @classmethod
    def read(cls, tables: Path, withheld: tuple[str, ...], now: int, options: Options) -> _Case:
        """From tables; ``PRI041`` when no label is a withheld advertiser's."""
        loaded = load_tables(tables, USERS, ADVERTISERS, EVENTS)
        catalog = Catalog.from_table(loaded[ADVERTISERS])
        past = build_histories(loaded[USERS], without(loaded[EVENTS], withheld), catalog).before(now)
        whole = build_histories(loaded[USERS], loaded[EVENTS], catalog)
        labels = first_labels(whole, now, options.horizon_micros)
        labels = labels.keep(np.diff(past.offsets)[labels.user] > 0)
        case = cls(catalog, past, labels, withheld, now, options.horizon_micros, options.seed)
        if not len(labels) or not case.hidden[labels.advertiser].any():
            raise AdvpriorError(
                "PRI041",
                "no user's label is a withheld advertiser",
                where=f"{tables}/events.parquet",
                actual="0 labels",
                expected="events of withheld advertisers from the cut-off on",
                fix="another --seed when fitting",
            )
        return case

    @cached_property
    def hidden(self) -> Bool:
        """Which advertisers are withheld [N]."""
        return np.isin(np.asarray(self.catalog.ids), self.withheld)

    def segments(self) -> dict[str, Bool]:
        """Which labels count in each of `SEGMENTS`."""
        has_text = np.asarray([bool(text) for text in self.catalog.texts or ("",) * len(self.catalog)])
        of_label = self.labels.advertiser
        cold, text = self.hidden[of_label], has_text[of_label]
        events = np.bincount(self.past.advertiser, minlength=len(self.catalog))[of_label]
        young = (events > 0) & (events <= YOUNG_EVENTS)
        masks = (np.ones(len(cold), np.bool_), cold, cold & text, cold & ~text, young, ~cold)
        return dict(zip(SEGMENTS, masks, strict=True))

    def controls(self) -> tuple[dict[str, Float], dict[str, str]]:
        """Log-probs of the controls that need no run, and which are left out and why."""
        size = len(self.catalog)
        arms: dict[str, Float] = {
            POPULARITY: np.broadcast_to(popularity(self.past, self.now, size), (len(self.labels), size))
        }
        if not sentences.installed():
            return arms, {sentences.NAME: "package wordllama is not installed"}
        arms[sentences.NAME] = self.nearest(sentences.sentence_vectors(self.catalog.descriptions(". ")))
        return arms, {}

    def nearest(self, vectors: Float) -> Float:
        """Log-probs [P, N] of who reads most like what each user turned to, by unit vectors [N, E] of the texts.

        A cosine is no log-probability: its scale is fitted on the labels before, which changes no rank.
        """
        size = len(self.catalog)
        early = first_labels(self.past, self.now - self.ahead, self.ahead).sample(MOST_SCALED, self.seed)
        scale = 1.0
        if len(early):
            near = self._near(vectors, early.user, self.now - self.ahead)
            scale = float(fit_logit(near[None], early.truth(size), centre=1.0)[0])
        return log_softmax(max(scale, 1e-3) * self._near(vectors, self.labels.user, self.now))

    def _near(self, vectors: Float, users: Int, moment: int) -> Float:
        """Cosine of what each user turned to with every advertiser [P, N]."""
        own = counts.own_points(self.past, users, np.full(len(users), moment), OWN_HALF_LIFE, len(self.catalog))
        return sentences.cosines(own, vectors)
