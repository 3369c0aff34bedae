"""Is the evidence itself to be trusted? Replays of the whole ablation on worlds whose truth is known.

    python -m benchmarks.validity [--replays 400] [--planted 100]

Every replay draws a new world, trains every arm's rankers and takes its interval through `evidence.ablation`, as
`advprior rank ablate` does. Three questions, each with the binomial interval of its answer:

null      The priors say nothing of the labels. How often does the 95 % interval of the lift hold zero? (92-98 %)
planted   The priors show part of a taste that history does not. Is the lift found with its sign, and how often does
          the interval hold the mean lift over all replays?
leak      A feature is known only after the impression. Does a check refuse the frame?
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from tqdm.auto import tqdm

from advprior.store.features import Feature
from ranking.evidence.ablation import ablate
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
    ranker=RankerConfig(max_rounds=40, patience=6, num_leaves=7, learning_rate=0.15, min_data_in_leaf=40, threads=1),
)
USERS, SLATES, SIZE, ADVERTISERS = 150, 9, 8, 20


def world(seed: int, signal: float) -> pd.DataFrame:
    """A frame of impressions: history shows one taste, the prior `signal` of another, the placebo another user's."""
    rng = np.random.default_rng(seed)
    n = USERS * SLATES * SIZE
    user, slate = np.repeat(np.arange(USERS), SLATES * SIZE), np.repeat(np.arange(USERS * SLATES), SIZE)
    part = (slate % SLATES) * 3 // SLATES
    advertiser = rng.integers(0, ADVERTISERS, n)
    # what a user likes is steady over time, as a prior is: rows of one user hang together in every arm
    taste, seen = rng.normal(size=(2, USERS, ADVERTISERS))
    said = {"llm": rng.normal(size=taste.shape), "placebo": rng.normal(size=taste.shape)}
    odds = -2.2 + seen[user, advertiser] + 0.7 * taste[user, advertiser] + rng.normal(0, 0.7, USERS)[user]
    prior = {"llm": signal * taste + 0.5 * said["llm"], "placebo": 0.5 * said["placebo"]}
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
        row = values[user, advertiser]
        frame[f"prior_{name}_log_prob"] = row.astype(np.float32)
        frame[f"prior_{name}_rank"] = (values[user] > row[:, None]).sum(axis=1).astype(np.float32)
    return frame


def replays(count: int, signal: float, first: int, replicates: int) -> dict[str, Any]:
    """Lift and interval of AUC of every replay, for the priors and the placebo."""
    lifts: dict[str, Any] = {"llm": [], "placebo": []}
    for seed in tqdm(range(first, first + count), desc=f"signal {signal:g}", unit="replay", disable=None):
        frame = Frame(world(seed, signal), tuple(FEATURES))
        result = ablate(frame, ARMS, seeds=2, replicates=replicates)
        for arm, rows in lifts.items():
            lift = result.lifts.get(arm, "baseline", "auc")
            rows.append((lift.difference, lift.low, lift.high, lift.p_adjusted))
    return {arm: np.array(rows) for arm, rows in lifts.items()}


def share(name: str, mask: np.ndarray, bar: str) -> None:
    """A share with its exact 95 % binomial interval."""
    hits = int(mask.sum())
    interval = binomtest(hits, len(mask)).proportion_ci(0.95)
    where = f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    print(f"{name:<66} {100 * hits / len(mask):6.1f} %  {where:<15} {bar}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replays", type=int, default=400)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--replicates", type=int, default=200)
    options = parser.parse_args()
    started = time.process_time()

    null = replays(options.replays, 0.0, 0, options.replicates)
    planted = replays(options.planted, 0.5, 100_000, options.replicates)
    leaks = []
    for seed in range(20):
        frame = world(200_000 + seed, 0.0)
        test = (frame["split"] == "test").to_numpy()
        label = frame["label"].to_numpy()
        known_later = (label + np.random.default_rng(seed).normal(0, 0.2, len(label))).astype(np.float32)
        features = frame[["history_advertiser_all", "ad_rate"]].assign(history_leak=known_later)[test]
        leaks.append([f.severity == "error" for f in check_golden_features(features, label[test])])

    print(f"{options.replays} null and {options.planted} planted worlds of {USERS} users, two seeds an arm")
    for arm, called in (("llm", "priors that say nothing"), ("placebo", "placebo")):
        rows = null[arm]
        share(f"null: 95 % interval holds zero, {called}", (rows[:, 1] <= 0) & (rows[:, 2] >= 0), "92-98 % asked")
    family = np.minimum(null["llm"][:, 3], null["placebo"][:, 3])
    share("null: no arm of the two is called different (joint p >= .05)", family >= 0.05, "95 % nominal")
    rows = planted["llm"]
    truth = rows[:, 0].mean()
    print(f"planted: mean lift of AUC {truth:+.4f}, sd over worlds {rows[:, 0].std(ddof=1):.4f}")
    share("planted: a clear gain", rows[:, 1] > 0, "")
    share("planted: 95 % interval holds the mean lift", (rows[:, 1] <= truth) & (rows[:, 2] >= truth), "95 % nominal")
    share("planted leak: refused by a check (RNK007)", np.array([any(one) for one in leaks]), "all asked")
    print(f"{time.process_time() - started:.0f} CPU-seconds")


if __name__ == "__main__":
    main()
