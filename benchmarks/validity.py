"""Is the evidence itself to be trusted? Replays of the whole ablation on worlds whose truth is known.

    python -m benchmarks.validity [--replays 400] [--planted 100] [--seeds 3]

Every replay draws a new world, trains every arm's rankers and takes its intervals through `evidence.ablation`, as
`advprior rank ablate` does, and those of the two-by-two through `candidates.cells`, whose cells share rankers. Four
questions, each with the binomial interval of its answer:

null      The priors say nothing of the labels. How often does the 95 % interval of a lift hold zero? (93-97 %)
planted   The priors show part of a taste that history does not. Is the lift found with its sign, and how often does
          the interval hold the mean lift over all replays?
lasting   The priors say nothing, but stay as they are from training to test: they name a user and advertiser, and a
          ranker can learn by heart what such a pair does. How often is a lift called clear?
leak      A feature is known only after the impression. Does a check refuse the frame?
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from tqdm.auto import tqdm

from advprior.store.features import Feature
from ranking.candidates.cells import EFFECTS, NEITHER, effects_of
from ranking.candidates.choose import choose
from ranking.evidence.ablation import ablate
from ranking.evidence.bootstrap import Outcomes, Resampling
from ranking.evidence.lift import Lift
from ranking.evidence.metrics import Auc, Conversions
from ranking.evidence.ordering import Sorted
from ranking.frame.checks import check_golden_features
from ranking.frame.table import Frame
from ranking.models.arms import Arm, Arms
from ranking.models.config import RankerConfig

FEATURES = [
    *(Feature(f"history_advertiser_{window}", "history", "user_history") for window in ("all", "4w")),
    Feature("ad_rate", "ad", "ad_stats"),
    *(Feature(f"prior_{p}_{n}", f"prior_{p}", f"prior_{p}") for p in ("llm", "placebo") for n in ("log_prob", "rank")),
]
ARMS = Arms(
    arms=(
        Arm(name="baseline", service="ranker_baseline_v1", label="Baseline", role="baseline"),
        Arm(name="llm", service="ranker_with_priors_v1", label="+ priors", adds=("prior_llm",)),
        Arm(
            name="placebo",
            service="ranker_with_placebo_v1",
            label="+ placebo",
            role="placebo",
            adds=("prior_placebo",),
        ),
    ),
    # all features in every tree: a share of three would be two, and any column more would help to draw the best one;
    # few and large leaves: what says nothing costs little, so that the truth is zero
    ranker=RankerConfig(
        max_rounds=60,
        patience=6,
        num_leaves=4,
        learning_rate=0.15,
        min_data_in_leaf=80,
        feature_fraction=1.0,
        threads=1,
    ),
)
USERS, SLATES, SIZE, ADVERTISERS = 150, 9, 8, 20
CANDIDATES, SHOWN, QUOTA, PREDICTED = 5, 2, 0.4, 6  # of the two-by-two; advertisers that a prior predicts
#: Pairs of the ablation, on AUC and on the metric that is decided on; the effects of the two-by-two, on conversions.
PAIRS = (("llm", "baseline"), ("placebo", "baseline"), ("llm", "placebo"))


def world(seed: int, signal: float, *, lasting: bool = False) -> pd.DataFrame:
    """A frame of impressions: history shows one taste, the prior `signal` of another, the placebo another user's.

    What a prior says beside that is noise, drawn anew for each split as for a snapshot; the same in all when `lasting`.
    """
    rng = np.random.default_rng(seed)
    n = USERS * SLATES * SIZE
    user, slate = np.repeat(np.arange(USERS), SLATES * SIZE), np.repeat(np.arange(USERS * SLATES), SIZE)
    part = (slate % SLATES) * 3 // SLATES
    advertiser = rng.integers(0, ADVERTISERS, n)
    # what a user likes is steady over time, as a prior is: rows of one user hang together in every arm
    taste, seen = rng.normal(size=(2, USERS, ADVERTISERS))
    noise = {name: rng.normal(size=(1 if lasting else 3, USERS, ADVERTISERS)) for name in ("llm", "placebo")}
    odds = -2.2 + seen[user, advertiser] + 0.7 * taste[user, advertiser] + rng.normal(0, 0.7, USERS)[user]
    prior = {"llm": signal * taste + 0.5 * noise["llm"], "placebo": 0.5 * noise["placebo"]}
    when = 0 * part if lasting else part
    start = pd.Timestamp("2024-01-01", tz="UTC")
    frame = pd.DataFrame(
        {
            "impression_id": np.arange(n),
            "slate_id": slate,
            "user_id": [f"u{i:03d}" for i in user],
            "ad_id": [f"a{i}/x" for i in advertiser],
            "advertiser_id": [f"a{i}" for i in advertiser],
            "timestamp": start + pd.to_timedelta(part * 7, unit="D"),
            "label": (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.int8),
            "split": np.array(["train", "valid", "test"])[part],
            "history_advertiser_all": (seen[user, advertiser] + rng.normal(0, 0.3, n)).astype(np.float32),
            "history_advertiser_4w": (seen[user, advertiser] + rng.normal(0, 0.6, n)).astype(np.float32),
            "ad_rate": rng.normal(size=ADVERTISERS)[advertiser].astype(np.float32),
        }
    )
    for name, values in prior.items():
        row = values[when, user, advertiser]
        frame[f"prior_{name}_log_prob"] = row.astype(np.float32)
        frame[f"prior_{name}_rank"] = (values[when, user] > row[:, None]).sum(axis=1).astype(np.float32)
    return frame


def replay(frame: pd.DataFrame, seeds: int, replicates: int) -> list[Lift]:
    """Every lift that is looked at in one world: pairs of the ablation, then effects of the two-by-two."""
    result = ablate(Frame(frame, tuple(FEATURES)), ARMS, seeds=seeds, replicates=replicates)
    lifts = [result.lifts.get(*pair, metric) for metric in (Auc.name, result.metric.name) for pair in PAIRS]
    test = frame[frame["split"] == "test"]
    towers = np.random.default_rng(int(test["label"].sum())).normal(size=len(test))  # that know nothing: all is null
    order = Sorted.of(test["slate_id"], towers)
    predicted = {name: (test[f"prior_{name}_rank"] < PREDICTED).to_numpy() for name in ("llm", "placebo")}
    cells = effects_of(
        result.scores["baseline"],
        choose(order, np.zeros(len(test), bool), CANDIDATES, 0.0),
        {name: (result.scores[name], choose(order, of, CANDIDATES, QUOTA)) for name, of in predicted.items()},
        Outcomes.of(test["label"], test["user_id"], slate=test["slate_id"]),
        Resampling((Conversions(SHOWN),), replicates=replicates),
    )
    metric = Conversions(SHOWN).name
    lifts += [cells.get(cell, against, metric) for cell, against, _ in EFFECTS]
    return [*lifts, *(cells.get(cell, f"{cell}:placebo", metric) for cell, against, _ in EFFECTS if against == NEITHER)]


def replays(worlds: Iterable[pd.DataFrame], seeds: int, replicates: int) -> dict[str, np.ndarray]:
    """Difference, low, high and joint p of every replay, by what is compared."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    for frame in worlds:
        for lift in replay(frame, seeds, replicates):
            numbers = (lift.difference, lift.low, lift.high, lift.p_adjusted, lift.adjusted_low, lift.adjusted_high)
            rows.setdefault(f"{lift.arm} − {lift.baseline}, {lift.metric}", []).append(numbers)
    return {name: np.array(values) for name, values in rows.items()}


def share(name: str, mask: np.ndarray, bar: str) -> None:
    """A share with its exact 95 % binomial interval."""
    hits = int(mask.sum())
    interval = binomtest(hits, len(mask)).proportion_ci(0.95)
    where = f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    print(f"{name:<66} {100 * hits / len(mask):6.1f} %  {where:<15} {bar}")


def worlds(count: int, first: int, signal: float, *, lasting: bool = False) -> Iterable[pd.DataFrame]:
    """So many worlds, with a bar where there is a terminal."""
    for seed in tqdm(range(first, first + count), desc=f"signal {signal:g}", unit="replay", disable=None):
        yield world(seed, signal, lasting=lasting)


def holds(rows: np.ndarray, value: float) -> np.ndarray:
    """Whether each interval holds a value."""
    held: np.ndarray = (rows[:, 1] <= value) & (rows[:, 2] >= value)
    return held


def leaks(count: int) -> np.ndarray:
    """Whether a check refuses each of so many worlds with a feature that is known only later."""
    refused = []
    for seed in range(count):
        frame = world(200_000 + seed, 0.0)
        test = (frame["split"] == "test").to_numpy()
        label = frame["label"].to_numpy()
        later = (label + np.random.default_rng(seed).normal(0, 0.2, len(label))).astype(np.float32)
        features = frame[["history_advertiser_all", "ad_rate"]].assign(history_leak=later)[test]
        refused.append(any(f.severity == "error" for f in check_golden_features(features, label[test])))
    return np.array(refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replays", type=int, default=400)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--replicates", type=int, default=200)
    options = parser.parse_args()
    started = time.process_time()
    how = (options.seeds, options.replicates)

    null = replays(worlds(options.replays, 0, 0.0), *how)
    print(f"{options.replays} null worlds of {USERS} users, {options.seeds} seeds an arm: 95 % interval holds zero")
    for name, rows in null.items():
        mean = f"mean {rows[:, 0].mean() / rows[:, 0].std(ddof=1):+.2f} sd"
        share(f"  {name}", holds(rows, 0.0), f"93-97 % asked; {mean}")
    family = np.minimum(*(null[f"{arm} − baseline, auc"][:, 3] for arm in ("llm", "placebo")))
    share("  no arm of the two is called different (joint p >= .05)", family >= 0.05, "95 % nominal")

    planted = replays(worlds(options.planted, 100_000, 0.5), *how)
    print(f"{options.planted} planted worlds: a clear gain; 95 % interval holds the mean lift")
    for name, rows in planted.items():
        truth = rows[:, 0].mean()
        share(f"  {name}", rows[:, 1] > 0, f"gain; mean {truth:+.4f}, held by {100 * holds(rows, truth).mean():.0f} %")

    lasting = replays(worlds(options.planted, 300_000, 0.0, lasting=True), *how)
    print(f"{options.planted} worlds whose priors say nothing but stay the same: called a clear gain")
    for pair in PAIRS:
        rows = lasting[f"{pair[0]} − {pair[1]}, auc"]
        share(f"  {pair[0]} − {pair[1]}, auc", rows[:, 1] > 0, f"mean {rows[:, 0].mean():+.4f}")
    share("planted leak: refused by a check (RNK007)", leaks(20), "all asked")
    print(f"{time.process_time() - started:.0f} CPU-seconds")


if __name__ == "__main__":
    main()
