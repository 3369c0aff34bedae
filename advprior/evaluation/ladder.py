"""From canonical tables and fitted runs to the ladder of arms with paired intervals: ``advprior evaluate``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from advprior.evaluation.als import als_installed
from advprior.evaluation.compare import Bootstrap, compare, overall
from advprior.evaluation.controls import BLEND
from advprior.evaluation.options import Options
from advprior.evaluation.population import ALL, Population, add_blends, comparisons_of, fitted_facts, populate
from advprior.evaluation.protocol import PROFILE_ONLY, first_labels, segments
from advprior.evaluation.room import require_room
from advprior.evaluation.runs import TAKEN, open_run, require_past, score_labels
from advprior.evaluation.seeds import Group, group_runs, mean_probability
from advprior.evaluation.split import Split
from advprior.evaluation.terms import ARMS, left_out
from advprior.history.histories import micros
from advprior.history.read import load_histories
from advprior.predictors.labels import TRAINED_UNTIL
from advprior.store.contract import MODEL_CUTOFF
from advprior.store.errors import AdvpriorError
from advprior.store.runs import manifest_digest, read_manifest, run_key, write_json
from advprior.store.spent import peak_memory_mb
from advprior.store.tables import TABLES_FIX
from advprior.store.versions import versions

STEP = "evaluate"
CODE_VERSION = 8
DEFAULTS = Options()
WHILE_BLENDED = 10  # arrays [P, N] beside those of controls, runs and a blend with each run


def evaluate(
    runs: Sequence[Path],
    tables: Path,
    cutoff: datetime,
    options: Options = DEFAULTS,
    *,
    out: Path | None = None,
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
    cutoff : datetime
    options : Options
    out : Path, optional
        JSON file; written whole or not at all.
    force : bool
        Measure again even when ``out`` is current.

    Raises
    ------
    AdvpriorError
        ``PRI002`` catalogs differ, ``PRI040`` a run saw labels of the future, ``PRI041`` nobody to ask about,
        ``PRI042`` ``earlier`` does not match ``runs``, ``PRI043`` ``out`` holds something else, ``PRI084`` the answers
        do not fit into this machine.
    """
    started = time.time()
    for run in (*runs, *options.earlier):
        require_past(run, cutoff)
    if options.earlier and len(options.earlier) != len(runs):
        raise AdvpriorError(
            "PRI042",
            "each run needs its own earlier run",
            actual=f"{len(options.earlier)} for {len(runs)} runs",
            expected="--earlier once for each RUN, in the same order, or not at all",
        )
    read_manifest(tables, fix=TABLES_FIX)
    groups = group_runs(runs, TAKEN, together=options.seeds != "apart", averaged=options.seeds == "averaged")
    config, inputs = _config(runs, groups, cutoff, options), _inputs(runs, tables, options)
    key = run_key(STEP, {**config, "als": als_installed()}, inputs, CODE_VERSION)
    earlier_result = _read(out)
    if not force and earlier_result is not None and earlier_result["about"]["key"] == key:
        return earlier_result, False

    result = _Ladder(runs, groups, tables, options).measure(_split(tables, cutoff, options))
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


def _config(runs: Sequence[Path], groups: Sequence[Group], cutoff: datetime, options: Options) -> dict[str, Any]:
    config: dict[str, Any] = {
        "cutoff": cutoff.isoformat(),
        "horizon_s": options.horizon.total_seconds(),
        "replicates": options.replicates,
        "seed": options.seed,
        "profile_only": options.profile_only,
        "runs": {group.name: [runs[i].resolve().name for i in group.members] for group in groups},
    }
    return config if options.users is None else config | {"asked": options.users}


def _inputs(runs: Sequence[Path], tables: Path, options: Options) -> dict[str, str]:
    inputs = {"tables": manifest_digest(tables)}
    for label, some in (("run", runs), ("earlier", options.earlier)):
        for i, run in enumerate(some):
            inputs[f"{label}:{i}"] = manifest_digest(run)
            inputs[f"{label}:{i}:onnx"] = manifest_digest(run / "onnx")
    return inputs


def _read(out: Path | None) -> dict[str, Any] | None:
    """What an earlier evaluation wrote to ``out``; None when nothing is there."""
    if out is None or not out.exists():
        return None
    try:
        result = json.loads(out.read_text())
        if result["about"]["step"] == STEP:
            return dict(result)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise AdvpriorError(
        "PRI043",
        "the output would replace something that evaluate did not write",
        where=str(out),
        expected="a new file, or an earlier evaluation",
        fix="choose another --out",
    )


def _split(tables: Path, cutoff: datetime, options: Options) -> Split:
    histories, catalog = load_histories(tables)
    return Split(histories, catalog, micros(cutoff), options.horizon_micros, options.seed)


@dataclass
class _Ladder:
    """The arms of some runs, and what is learnt of them on the way."""

    runs: Sequence[Path]
    groups: Sequence[Group]
    tables: Path
    options: Options
    about_runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    optimistic: list[str] = field(default_factory=list)  # arms that saw the labels that weigh them in the blend
    trained_on: list[str] = field(default_factory=list)  # those of them that were trained on these labels
    with_llm: set[str] = field(default_factory=set)

    def measure(self, split: Split) -> dict[str, Any]:
        """Arms, comparisons, segments and what is to be known of them."""
        self._require_room(split)
        main = populate(split, self.options)
        if main is None:
            raise AdvpriorError(
                "PRI041",
                "no user can be measured or fitted on",
                where=f"{self.tables}/events.parquet",
                actual="no user with an event before the cut-off and one within the horizon, there or one horizon "
                "earlier",
                expected=f"events before and from {datetime.fromtimestamp(split.now / 1e6, UTC).isoformat()} on",
                fix="another --cutoff or --horizon",
            )
        beside = populate(split, self.options, profile_only=True) if self.options.profile_only else None
        people = [main] if beside is None else [main, beside]
        self._score(split, people)
        for population in people:
            self._blend(population)
        rows, comparisons = self._compare(main, segments(main.labels, split.histories, split.now, split.size))
        if beside is not None:
            everyone = {PROFILE_ONLY: np.ones(len(beside.labels.advertiser), np.bool_)}
            more = self._compare(beside, everyone)
            rows, comparisons = rows + more[0], comparisons + more[1]
        for row in rows:
            row["uses_llm"] = row["arm"].removeprefix(f"{BLEND} + ") in {*self.with_llm, ALL}
        about = self._about(split, main, beside)
        return {"arms": overall(rows), "comparisons": comparisons, "segments": rows, "about": about}

    def _require_room(self, split: Split) -> None:
        """Refuse more users than this machine can hold the answers of (``PRI084``)."""
        users, size = len(first_labels(split.histories, split.now, split.ahead)), split.size
        asked = users if self.options.users is None else min(users, self.options.users)
        arms = len(ARMS) + 2 * len(self.runs) + WHILE_BLENDED
        fewer = max(int(asked * 10 / (arms * asked * size * 4e-9 + 1e-9)), 1)
        require_room(
            f"answers of {asked:,} users × {size:,} advertisers by some {arms} arms",
            arms * asked * size * 4e-9,
            f"advprior evaluate … --users {fewer}, which takes 10 GB",
            where=f"{self.tables}/events.parquet",
        )

    def _score(self, split: Split, people: list[Population]) -> None:
        """Log-probs of every run for everyone asked about."""
        for group in self.groups:
            self.about_runs[group.name] = []
            for i in group.members:
                scorer, facts = open_run(self.runs[i], split.catalog, self.tables, self.options)
                weigher, seen = scorer, facts
                if self.options.earlier:
                    weigher, seen = open_run(self.options.earlier[i], split.catalog, self.tables, self.options)
                for population in people:
                    late, early = population.labels, population.early
                    population.arms.setdefault(group.name, []).append(
                        score_labels(scorer, split.past, late, split.now, group.name)
                    )
                    population.first.setdefault(group.name, []).append(
                        score_labels(weigher, split.before, early, split.then, group.name)
                    )
                trained, touched = (
                    micros(datetime.fromisoformat(seen[name])) > split.then for name in (TRAINED_UNTIL, MODEL_CUTOFF)
                )
                if touched and group.name not in self.optimistic:
                    self.optimistic.append(group.name)
                if trained and group.name not in self.trained_on:
                    self.trained_on.append(group.name)
                if facts["uses_llm"]:
                    self.with_llm.add(group.name)
                source = {"run": self.runs[i].resolve().name, "digest": manifest_digest(self.runs[i])}
                self.about_runs[group.name].append({**source, **facts, "provider": scorer.provider})

    def _blend(self, population: Population) -> None:
        for group in (group for group in self.groups if group.averaged):
            population.arms[group.name] = [mean_probability(population.arms[group.name])]
            population.first[group.name] = [mean_probability(population.first[group.name])]
        add_blends(population, self._names, self.with_llm, self.optimistic)

    def _compare(self, population: Population, inside: dict[str, Any]) -> tuple[list[Any], list[Any]]:
        return compare(
            population.arms,
            population.labels,
            inside,
            comparisons_of(population, self._names, self.with_llm),
            Bootstrap(self.options.replicates, self.options.seed),
        )

    def _about(self, split: Split, main: Population, beside: Population | None) -> dict[str, Any]:
        about = {
            "users": len(main.labels),
            "labels": len(main.labels.advertiser),
            "labels_shared": int((main.labels.credit < 1).sum()),
            "advertisers": split.size,
            "catalog_version": split.catalog.version,
            "fitted_at": datetime.fromtimestamp(split.then / 1e6, UTC).isoformat(),
            "runs": self.about_runs,
            "left_out": left_out(split.size),
            "als": {"settings": split.als[0].to_json(), "nats a label": split.als[1]},
            "saw_the_blend_labels": self.optimistic,
            "trained_on_the_blend_labels": self.trained_on,
            **fitted_facts(main),
        }
        if beside is not None:
            about[PROFILE_ONLY] = {
                "users": len(beside.labels),
                **fitted_facts(beside),
                "note": "users without an event before the cut-off; the profile is the users table's, whenever it was "
                "told",
            }
        return about

    @property
    def _names(self) -> list[str]:
        return [group.name for group in self.groups]
