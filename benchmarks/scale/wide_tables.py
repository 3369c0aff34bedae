"""Tables with as many advertisers as users: popularity by Zipf, users who keep to a few kinds, some events each.

Names are three common words, as a brand's are some four tokens; what is alike shares its last two words, so that names
tell something of who turns to whom.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from advprior.store.contract import TimePlan
from advprior.store.runs import new_run, run_key
from advprior.store.tables import write_parquet

START, WEEK = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=7)
PLAN = TimePlan(START, START + 26 * WEEK, START + 28 * WEEK, START + 30 * WEEK, START + 32 * WEEK)
EVENTS = 6  # of a user on average, before the fit's end
KIND = 50  # advertisers of a kind
REPEATS = 0.3  # of events
HOME = 0.5  # of the others: of the user's own kinds
COLOURS = [
    "Red",
    "Blue",
    "Green",
    "White",
    "Black",
    "Gold",
    "Silver",
    "Happy",
    "Little",
    "Big",
    "New",
    "Old",
    "First",
    "Best",
    "Fast",
    "Smart",
    "Fresh",
    "Bright",
    "Royal",
    "Grand",
    "Blue",
    "Wild",
    "True",
    "Pure",
    "Open",
    "Clear",
    "Deep",
    "High",
    "Prime",
    "Urban",
]
THINGS = [
    "Tea",
    "Coffee",
    "Bread",
    "Soap",
    "Wine",
    "Beer",
    "Cheese",
    "Fish",
    "Meat",
    "Rice",
    "Fruit",
    "Shoe",
    "Hat",
    "Coat",
    "Book",
    "Toy",
    "Game",
    "Car",
    "Bike",
    "Home",
    "Garden",
    "Pet",
    "Dog",
    "Cat",
    "Baby",
    "Music",
    "Film",
    "Phone",
    "Light",
    "Water",
    "Stone",
    "Wood",
    "Glass",
    "Paper",
    "Gift",
    "Health",
    "Sport",
    "Travel",
    "Farm",
    "Kitchen",
]
PLACES = [
    "House",
    "Shop",
    "Store",
    "Market",
    "Bar",
    "Corner",
    "Place",
    "World",
    "Club",
    "Line",
    "Company",
    "Group",
    "Studio",
    "Works",
    "Factory",
    "Center",
    "Lab",
    "Hall",
    "Park",
    "Point",
    "Street",
    "Yard",
    "Bay",
    "Hill",
    "Valley",
    "River",
    "Lake",
    "Field",
    "Bridge",
    "Tower",
    "Room",
    "Box",
    "Direct",
    "Express",
    "Plus",
    "One",
    "Online",
    "Supply",
    "Brothers",
    "Partners",
]


def names(count: int) -> list[str]:
    """``count`` distinct names; those of a kind share their last two words while there are enough of them."""
    ends = [f"{thing} {place}" for place in PLACES for thing in THINGS]
    starts = [*dict.fromkeys(COLOURS), *(f"{a} {b}" for a in dict.fromkeys(COLOURS) for b in THINGS if a != b)]
    kinds = -(-count // KIND)
    return [
        f"{starts[i % KIND + KIND * (i // KIND // len(ends))]} {ends[i // KIND % len(ends)]}" for i in range(count)
    ][: kinds * KIND]


def wide_tables(users: int, advertisers: int, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Users, advertisers and events."""
    rng = np.random.default_rng(seed)
    weight = 1.0 / np.arange(10, advertisers + 10) ** 0.9
    popular = rng.permutation(advertisers)  # of each rank
    counts = np.maximum(rng.poisson(EVENTS, users), 1)
    user = np.repeat(np.arange(users), counts)
    total = len(user)
    anywhere = popular[np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(total))]
    kinds = -(-advertisers // KIND)
    home = rng.integers(0, kinds, (users, 2))[user, rng.integers(0, 2, total)]
    at_home = np.minimum(home * KIND + (KIND * rng.random(total) ** 2).astype(np.int64), advertisers - 1)
    advertiser = np.where(rng.random(total) < HOME, at_home, anywhere)
    place = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    again = (rng.random(total) < REPEATS) & (place > 0)
    back = (rng.random(total) * np.maximum(place, 1)).astype(np.int64)
    advertiser[again] = advertiser[np.flatnonzero(again) - 1 - back[again]]
    seconds = rng.integers(3600, int((PLAN.finetune_end - START).total_seconds()), total)
    seconds = seconds[np.lexsort([seconds, user])]
    events = pd.DataFrame(
        {
            "user_id": [f"u{u:06d}" for u in user],
            "timestamp": pd.Timestamp(START) + pd.to_timedelta(seconds, unit="s"),
            "advertiser_id": [f"a{a:06d}" for a in advertiser],
        }
    )
    shown = names(advertisers)
    return {
        "users": pd.DataFrame({"user_id": [f"u{u:06d}" for u in range(users)]}),
        "advertisers": pd.DataFrame({"advertiser_id": [f"a{a:06d}" for a in range(advertisers)], "name": shown}),
        "events": events,
    }


def write_wide(folder: Path, users: int, advertisers: int) -> Path:
    """As a finished ``advprior data`` run."""
    config = {"source": "wide", "users": users, "advertisers": advertisers}
    with new_run(folder, "data", config=config, inputs={}, key=run_key("data", config, {})) as run:
        for name, table in wide_tables(users, advertisers).items():
            write_parquet(table, run.path / f"{name}.parquet")
        run.facts.update(time_plan=PLAN.to_json(), source="wide", purpose="predictor")
    return folder
