"""A synthetic frame in the layout of ``advprior rank frame``, with a planted signal in one prior or in none.

Users have an unseen taste for advertisers. History shows part of it, ``prior_llm`` shows `signal` of the rest,
``prior_neighbours`` half of that, ``prior_popularity`` none; ``prior_placebo`` is ``prior_llm`` of another user.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.contract import TimePlan
from advprior.store.features import Feature, features_to_json
from advprior.store.runs import new_run, run_key
from advprior.store.tables import write_parquet

START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
PLAN = TimePlan(START, START + 8 * WEEK, START + 14 * WEEK, START + 17 * WEEK, START + 22 * WEEK)


def synthetic_frame(
    users: int = 120, slates: int = 12, size: int = 10, signal: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    advertisers = 30
    n = users * slates * size
    user = np.repeat(np.arange(users), slates * size)
    slate = np.repeat(np.arange(users * slates), size)
    weeks = np.repeat(rng.uniform(8, 22, users * slates), size)
    advertiser = rng.integers(0, advertisers, n)
    taste, seen = rng.normal(0, 1, (users, advertisers)), rng.normal(0, 1, (users, advertisers))
    popular = rng.normal(0, 0.5, advertisers)
    odds = -2.5 + taste[user, advertiser] + seen[user, advertiser] + popular[advertiser]
    label = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.int8)
    history = seen[user, advertiser]
    strangers = (user + 1 + rng.integers(0, users - 1, n)) % users
    prior = {
        "llm": signal * taste[user, advertiser] + rng.normal(0, 0.3, n),
        "neighbours": signal * 0.5 * taste[user, advertiser] + rng.normal(0, 0.7, n),
        "popularity": popular[advertiser] + rng.normal(0, 0.3, n),
        "placebo": signal * taste[strangers, advertiser] + rng.normal(0, 0.3, n),
    }
    split = np.where(weeks < 14, "train", np.where(weeks < 17, "valid", "test"))
    frame = pd.DataFrame(
        {
            "impression_id": np.arange(n, dtype=np.int64),
            "slate_id": slate.astype(np.int64),
            "user_id": [f"u{i:03d}" for i in user],
            "ad_id": [f"a{i:02d}/Tea" for i in advertiser],
            "advertiser_id": [f"a{i:02d}" for i in advertiser],
            "timestamp": pd.to_datetime([START + w * WEEK for w in weeks]).astype("datetime64[us, UTC]"),
            "label": label,
            "split": split,
            "segment_never_advertiser": history < 0.0,
            "segment_never_ad": history < 0.2,
            "profile_age": pd.Categorical.from_codes(rng.integers(0, 3, users)[user], ["18-34", "35-54", "55+"]),
            "activity_events": rng.poisson(20, users)[user].astype(np.float32),
            "ad_category": pd.Categorical.from_codes(advertiser % 6, list("ABCDEF")),
            "ad_rate": popular[advertiser].astype(np.float32),
            "context_placement": rng.choice(["front", "back"], n),
            "history_advertiser_all": np.round(history, 1).astype(np.float32),
            "history_recency_days": np.where(history < 0, np.nan, 30 - 5 * history).astype(np.float32),
        }
    )
    for name, value in prior.items():
        frame[f"prior_{name}_log_prob"] = value.astype(np.float32)
        frame[f"prior_{name}_rank"] = pd.Series(-value).groupby(slate).rank().to_numpy(np.float32)
        frame[f"prior_{name}_missing"] = np.zeros(n, dtype=bool)
    return frame


#: Where the groups of the synthetic frame come from, as in a real one.
SOURCES = {
    "profile": "user_profile",
    "activity": "user_history",
    "ad": "ad_stats",
    "context": "impressions",
    "history": "user_history",
    **{f"prior_{name}": f"prior_{name}" for name in ("llm", "neighbours", "popularity", "placebo")},
}


def features_of(frame: pd.DataFrame) -> list[Feature]:
    """The features of a synthetic frame, as its manifest lists them."""
    found = []
    for name in map(str, frame.columns.drop(["ad_id"])):
        group = next((group for group in SOURCES if name.startswith(f"{group}_")), None)
        if group is not None:
            text = not pd.api.types.is_numeric_dtype(frame[name]) and frame[name].dtype != bool
            found.append(Feature(name, group, SOURCES[group], "category" if text else "float32"))
    return found


def write_frame(folder: Path, frame: pd.DataFrame | None = None, **options: float) -> Path:
    """Write it as a finished ``advprior rank frame`` run."""
    config = {"source": "synthetic", **options}
    with new_run(folder, "rank frame", config=config, inputs={}, key=run_key("rank frame", config, {})) as run:
        frame = synthetic_frame(**options) if frame is None else frame
        write_parquet(frame, run.path / "frame.parquet")
        run.facts.update(
            features=features_to_json(features_of(frame)),
            time_plan=PLAN.to_json(),
            coverage={"llm": 1.0},
            services=["ranker_baseline_v1", "ranker_with_priors_v1"],
            data={"source": "synthetic", "note": "Simulated <exposure>, inferred from nothing"},
            priors={
                "llm": {"model_cutoff": PLAN.finetune_end.isoformat(), "catalog_version": "abc", "max_sum_error": 1e-7}
            },
            warnings=[
                {"code": "RNK009", "severity": "warning", "message": "few positives: 7 in valid", "fix": "", "docs": ""}
            ],
        )
    return folder
