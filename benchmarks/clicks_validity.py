"""Is what a click log hides found by the real chain, and nothing found where nothing is hidden?

    python -m benchmarks.clicks_validity [--seeds 20] [--users 1000] [--weeks 24] [--advertisers 20] [--first 0]

Every seed draws three click logs (`advprior.data.clicks`): with both effects, without that of taste, and without
fatigue. Each goes through published features, Feast's join and the ablation, as `advprior run` does it.

prior     The truth's own taste is published as a prior. Found: the 95 % interval of its lift of AUC over the baseline
          is above zero. Without the effect of taste it must not be found.
fatigue   The counts of the user's exposures to the ad stand in the baseline beside 19 copies, each shuffled among the
          rows of the same ad and week, so that all but the user's own part stays. Found: the counts' gain is above that
          of every copy. Without fatigue the counts are one of twenty of a kind: found in 5 % of the worlds. What says
          the same and knows of clicks too (`unanswered`, recency) is left out here: clicks tell taste.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import binomtest
from tqdm.auto import tqdm

from advprior.data import clicks
from advprior.data.drawn import Size
from advprior.pipeline.project import shipped_repo
from advprior.store.contract import CATALOG_FILE, LLM, MATRIX_FILE, TABLE_FILE, prior_view
from advprior.store.features import Feature, features_from_json
from advprior.store.runs import new_run, publish_version, run_key, write_json
from advprior.store.tables import load_tables, load_time_plan, write_parquet
from ranking.evidence.ablation import ablate
from ranking.frame.build import build_frame
from ranking.frame.join import open_store
from ranking.frame.publish import publish_features
from ranking.frame.table import Frame
from ranking.models.arms import Arm, Arms
from ranking.models.config import RankerConfig
from ranking.models.ranker import Ranker

CONFIG = RankerConfig(
    max_rounds=300,
    patience=30,
    num_leaves=8,
    learning_rate=0.05,
    min_data_in_leaf=100,
    feature_fraction=0.9,
    threads=1,
)
ARMS = Arms(
    arms=(
        Arm(name="baseline", service="ranker_baseline_v1", label="Baseline", role="baseline"),
        Arm(name="truth", service="ranker_with_priors_v1", label="+ true taste", adds=("prior_llm",)),
    ),
    ranker=CONFIG,
)
FATIGUE = ("exposures_ad_4w", "exposures_ad_12w")
WITH_CLICKS = ("exposures_ad_unanswered", "exposures_ad_recency_days")
COPIES = 19


def true_taste(tables: Path) -> dict[str, Any]:
    """Files of a prior that says log P(advertiser) by the truth's taste alone, the same at every snapshot."""
    plan, truth = load_time_plan(tables), pd.read_parquet(tables / "truth.parquet")
    users = load_tables(tables, "users")["users"]["user_id"].to_numpy(object)
    by_kind = {kind: part.set_index("id").drop(columns="kind") for kind, part in truth.groupby("kind")}
    advertisers = by_kind["advertiser"].index.tolist()
    of_user = by_kind["user"].reindex(users).to_numpy()
    log_probs = log_softmax(of_user @ by_kind["advertiser"].to_numpy().T / np.sqrt(of_user.shape[1]), axis=1)
    snapshots = plan.snapshots()
    matrix = np.tile(log_probs, (len(snapshots), 1)).astype(np.float32)
    cut = pd.Series(pd.DatetimeIndex(snapshots).as_unit("us").repeat(len(users)))
    table = pd.DataFrame(
        {
            "user_id": np.tile(users, len(snapshots)),
            "event_timestamp": cut + plan.lag,
            "created_timestamp": cut + plan.lag,
            "snapshot": cut,
            "model_cutoff": pd.Series(pd.DatetimeIndex([plan.finetune_end] * len(cut)).as_unit("us")),
            "catalog_version": "truth",
            "prior_row": np.arange(len(cut)),
            "log_probs": list(matrix),
            "entropy": -(np.exp(matrix) * matrix).sum(axis=1),
            "top1_index": matrix.argmax(axis=1),
            "top1_log_prob": matrix.max(axis=1),
        }
    )
    catalog = {"version": "truth", "advertisers": [{"advertiser_id": a, "name": a} for a in advertisers]}
    return {"table": table, "matrix": matrix, "catalog": catalog}


def publish_truth(tables: Path, repo: Path) -> None:
    """Publish the true taste where the LLM's priors would be."""
    view, files = prior_view(LLM), true_taste(tables)
    building = repo / "data" / ".building" / view
    with new_run(building, f"publish {view}", config={}, inputs={}, key=run_key(view, str(tables), {})) as run:
        write_parquet(files["table"], run.path / TABLE_FILE)
        np.save(run.path / MATRIX_FILE, files["matrix"])
        write_json(run.path / CATALOG_FILE, files["catalog"])
    publish_version(building, repo / "data" / view)


def apply(repo: Path) -> None:
    """`feast apply`, in this process."""
    from feast import Entity, FeatureService, FeatureView

    spec = importlib.util.spec_from_file_location(f"definitions_{repo.parent.name}", repo / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    open_store(repo).apply([v for v in public.values() if isinstance(v, Entity | FeatureView | FeatureService)])


def frame_of(root: Path, size: Size, *, prior: bool, fatigue: bool) -> Frame:
    """A click log less some effects, up to its frame."""
    tables, repo = root / "tables", root / "feature_repo"
    clicks.build(tables, size, effects=clicks.without(prior=not prior, fatigue=not fatigue))
    shutil.copytree(shipped_repo(), repo)
    (repo / "data").mkdir(exist_ok=True)
    publish_features(tables, repo)
    publish_truth(tables, repo)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apply(repo)
        result = build_frame(tables, repo, [LLM])
    return Frame(result.frame, tuple(features_from_json(result.facts["features"])), result.facts)


def copies_of(frame: Frame, seed: int) -> tuple[pd.DataFrame, list[list[str]]]:
    """The frame's rows with shuffled copies of the fatigue features, and their names, copy by copy."""
    rng, rows = np.random.default_rng(seed), frame.rows
    weeks = (rows["timestamp"].astype("int64") // (7 * 86_400_000_000)).to_numpy()
    group = rows.groupby([rows["split"], weeks, rows["ad_id"]], observed=True, sort=False).ngroup().to_numpy()
    home = np.argsort(group, kind="stable")
    added: dict[str, Any] = {}
    names = []
    for copy in range(COPIES):
        source = np.empty(len(rows), dtype=np.int64)
        source[home] = np.lexsort((rng.random(len(rows)), group))
        names.append([f"{name}_copy{copy}" for name in FATIGUE])
        added |= {new: rows[name].to_numpy()[source] for new, name in zip(names[-1], FATIGUE, strict=True)}
    return pd.concat([rows, pd.DataFrame(added, index=rows.index)], axis=1), names


def fatigue_found(frame: Frame, seed: int) -> tuple[bool, float]:
    """Whether the counts of exposures gain more than any shuffled copy of them; and their gain over the best copy's."""
    rows, names = copies_of(frame, seed)
    baseline = [f for f in frame.features if f.predictor is None and f.name not in WITH_CLICKS]
    shadows = [Feature(name, "exposures", "user_history") for copy in names for name in copy]
    part = {name: rows[(rows["split"] == name).to_numpy()] for name in ("train", "valid")}
    ranker = Ranker("ranker_baseline_v1", [*baseline, *shadows], CONFIG, seed).fit(part["train"], part["valid"])
    gain = ranker.importance()
    own, best = sum(gain[name] for name in FATIGUE), max(sum(gain[name] for name in copy) for copy in names)
    return own > best, own / max(best, 1e-12)


def share(name: str, hits: list[bool], bar: str) -> None:
    """A count with the exact 95 % binomial interval of its share."""
    interval = binomtest(sum(hits), len(hits)).proportion_ci(0.95)
    where = f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}] %"
    print(f"{name:<52} {sum(hits):>3} of {len(hits)}  {where:<12} {bar}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("seeds", 20), ("first", 0), ("users", 1000), ("advertisers", 20), ("weeks", 24)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    base = Size(users=options.users, advertisers=options.advertisers, weeks=options.weeks)
    worlds = {"both": (True, True), "no prior": (False, True), "no fatigue": (True, False)}
    results: list[dict[str, Any]] = []
    for seed in tqdm(range(options.first, options.first + options.seeds), unit="seed", disable=None):
        for world, (prior, fatigue) in worlds.items():
            with tempfile.TemporaryDirectory() as folder:
                frame = frame_of(Path(folder), replace(base, seed=seed), prior=prior, fatigue=fatigue)
            lift = ablate(frame, ARMS, seeds=2, replicates=400).lifts.get("truth", "baseline", "auc")
            found, ratio = fatigue_found(frame, seed)
            row = {"seed": seed, "world": world, "lift": lift.difference, "low": lift.low, "high": lift.high}
            results.append(row | {"fatigue": found, "ratio": ratio})
            tqdm.write(
                f"{seed:>3} {world:<10} lift {lift.difference:+.4f} [{lift.low:+.4f}, {lift.high:+.4f}], "
                f"fatigue {'found' if found else 'not found'}, gain {ratio:.1f} times the best copy's"
            )
    table = pd.DataFrame(results).set_index("world")
    for world, bar in (("both", "at least 18 of 20"), ("no prior", "at most 2 of 20")):
        share(f"prior found, world {world}", (table.loc[[world], "low"] > 0).tolist(), bar)
    for world, bar in (("both", "at least 18 of 20"), ("no fatigue", "at most 2 of 20")):
        share(f"fatigue found, world {world}", table.loc[[world], "fatigue"].tolist(), bar)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{usage.ru_utime + usage.ru_stime:.0f} CPU-seconds, {usage.ru_maxrss / 1e6:.2f} GB at most")


if __name__ == "__main__":
    main()
