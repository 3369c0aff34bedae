"""Users who go round a fixed circle of advertisers: what comes next follows from the last one, not from habit."""

from __future__ import annotations

import numpy as np

from advprior.history.catalog import Catalog
from advprior.history.counts import DAY
from advprior.history.histories import Histories
from advprior.history.interests import Interests
from advprior.predictors.base import FitData
from advprior.predictors.llm.settings import LLMSettings

SIZE = 8
NAMES = ("Tea house", "Bakery", "Soap and more", "Coffee bar", "Pasta shop", "Cheese corner", "Book den", "Garden")
CATEGORIES = ("Drinks", "Food", "Home")


def cycle_data(users: int = 40, weeks: int = 16, seed: int = 0) -> FitData:
    """Everybody turns to advertiser ``a + 1`` a week after ``a``; advertiser a sells category ``a % 3``."""
    rng = np.random.default_rng(seed)
    # histories of several lengths, so that no position in a prompt is new at validation
    lengths = weeks - rng.integers(0, weeks // 2, users)
    place = [rng.integers(SIZE) + np.arange(n) for n in lengths]
    times = np.concatenate([np.arange(weeks - n, weeks) for n in lengths]).astype(np.int64) * 7 * DAY
    bought = np.concatenate(place).astype(np.int64) % SIZE
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids, profiles = tuple(f"u{i}" for i in range(users)), ("",) * users
    histories = Histories(ids, profiles, offsets, times, bought)
    interests = Histories(ids, profiles, offsets, times, bought % 3)
    catalog = Catalog(tuple(f"a{i}" for i in range(SIZE)), NAMES)
    return FitData(
        histories, catalog, 0, int(weeks * 7 * DAY), 7 * DAY, Interests(Catalog(CATEGORIES, CATEGORIES), interests)
    )


def cycle_settings(base: object, **changes: object) -> LLMSettings:
    """Small, quick, and without habit, which would only add noise here."""
    training = {
        "epochs": 6,
        "patience": 6,
        "rank": 8,
        "batch_tokens": 128,
        "lr": 5e-3,
        "head_lr": 2e-2,
        "free_lr": 5e-3,
        "adapter_lr": 5e-2,
        "valid_days": 21,
        **changes.pop("training", {}),
    }
    raw = {
        "base": str(base),
        "layers": 3,
        "tuned_layers": 2,
        "prompt": {"context": 128, "gaps": False, "title": "Purchases, oldest first:"},
        "habit": {"half_lives_days": []},
        "training": training,
        **changes,
    }
    return LLMSettings(**raw)
