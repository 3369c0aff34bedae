"""clicks: a seeded ads log as advertisers know it, as canonical tables of any size, with the truth beside them.

The public data of this project has no clicks, no positions and nobody who comes or goes. This log has: users and ads
that appear and vanish, slates with position and placement, clicks, conversions days later, rows that arrive late,
users without a profile, and names in several languages. It answers whether a step works on such a log, and whether a
measurement finds what was planted and nothing else. `advprior.data.click_model` says how it is drawn.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.data import click_model as model
from advprior.data.click_words import AdvertiserTexts, advertiser_texts, profile_texts, visit_texts
from advprior.data.drawn import Size, time_plan, times
from advprior.store.contract import ADS, ADVERTISERS, EVENTS, IMPRESSIONS, USERS
from advprior.store.progress import tracked
from advprior.store.runs import is_current, new_run, run_key

if TYPE_CHECKING:
    import pandas as pd

CODE_VERSION = 2
NAME = "clicks"
LEAST = {"users": 20, "advertisers": 8, "weeks": 9}
#: Users of a block times ads, at most: the counts of a block are held as dense arrays.
CELLS = 8_000_000
DEFAULT = Size(users=2000, advertisers=60, weeks=26)


@dataclass(frozen=True)
class Catalog:
    """The market as tables, and what is written of it."""

    market: model.Market
    texts: AdvertiserTexts
    ads: pd.DataFrame


def build(
    out: Path,
    size: Size = DEFAULT,
    *,
    effects: model.Effects | None = None,
    force: bool = False,
) -> bool:
    """Write canonical tables of the click log with every optional column, its truth in the manifest and beside them.

    ``truth.parquet`` holds the tastes of users and advertisers, which no log knows.

    Parameters
    ----------
    out : Path
        Folder to write; replaced as a whole, or not at all.
    size : Size
    effects : Effects, optional
        The truth to draw from; see `without`.
    force : bool
        Build even when ``out`` is up to date.

    Returns
    -------
    bool
        False when ``out`` was up to date and left alone.

    Raises
    ------
    AdvpriorError
        ``DAT042`` for an impossible size, ``CFG002`` for a negative seed.
    """
    size.check(NAME, LEAST)
    effects = effects or model.Effects()
    config: dict[str, Any] = {"data_set": NAME, **size.counts(), "seed": size.seed, "truth": asdict(effects)}
    key = run_key("data", config, {}, CODE_VERSION)
    if not force and is_current(out, key):
        return False
    with new_run(out, "data", config=config, inputs={}, key=key) as run:
        run.facts.update(_write(run.path, size, effects))
    return True


def without(*, prior: bool = False, fatigue: bool = False) -> model.Effects:
    """The default truth less some effects: a null for them.

    Parameters
    ----------
    prior : bool
        Take out what a user's taste does to clicks, so that nothing beyond history can tell a label.
    fatigue : bool
        Take out what exposures do.

    Examples
    --------
    >>> without(prior=True).taste_in_clicks, without(prior=True).fatigue
    (0.0, 0.5)
    """
    effects = model.Effects()
    taste = 0.0 if prior else effects.taste_in_clicks
    return replace(effects, taste_in_clicks=taste, fatigue=0.0 if fatigue else effects.fatigue)


def _write(folder: Path, size: Size, effects: model.Effects) -> dict[str, Any]:
    """Draw the log in blocks of users, check it as a whole, and write it; facts for the manifest."""
    from advprior.store.schemas import validate_tables
    from advprior.store.tables import write_parquet

    plan = time_plan(size.weeks)
    catalog = _draw_catalog(size, effects)
    step = max(1, CELLS // len(catalog.ads))
    blocks, slates = [], 0
    for first in tracked(range(0, size.users, step), NAME, "block"):
        block = _draw_block(catalog, range(first, min(first + step, size.users)), size, effects)
        block[IMPRESSIONS]["slate_id"] += slates  # counted from 0 within a block
        slates += block[IMPRESSIONS]["slate_id"].nunique()
        blocks.append(block)
    tables, truth = _joined(blocks, catalog)
    warnings = validate_tables(tables, plan=plan, label_delay=model.LABEL_DELAY, where=NAME)
    for name, table in {**tables, "truth": truth}.items():
        write_parquet(table, folder / f"{name}.parquet")
    planted = {"taste": effects.taste_in_clicks, "fatigue": effects.fatigue}
    names = ", ".join(name for name, effect in planted.items() if effect) or "nothing"
    return {
        "source": NAME,
        "note": f"Made up: a click log whose truth is known; planted beyond history: {names}",
        "seed": size.seed,
        "truth": asdict(effects),
        "label_delay_s": model.LABEL_DELAY.total_seconds(),
        "time_plan": plan.to_json(),
        "rows": {name: len(table) for name, table in tables.items()},
        "slates": slates,
        "positives": int(tables[IMPRESSIONS]["label"].sum()),
        "warnings": warnings,
    }


def _joined(blocks: list[dict[str, Any]], catalog: Catalog) -> tuple[dict[str, Any], pd.DataFrame]:
    """The canonical tables, and the tastes behind them."""
    import pandas as pd

    tables = {name: pd.concat([block[name] for block in blocks], ignore_index=True) for name in blocks[0]}
    tables[IMPRESSIONS]["impression_id"] = np.arange(len(tables[IMPRESSIONS]), dtype=np.int64)
    advertiser_tastes = _tastes("advertiser", catalog.texts.ids, catalog.market.taste)
    truth = pd.concat([tables.pop("truth"), advertiser_tastes], ignore_index=True)
    texts = catalog.texts
    tables[ADVERTISERS] = pd.DataFrame({"advertiser_id": texts.ids, "name": texts.names, "text": texts.descriptions})
    tables[ADS] = catalog.ads
    return tables, truth


def _draw_catalog(size: Size, effects: model.Effects) -> Catalog:
    """Advertisers with their ads, names and texts."""
    import pandas as pd

    rng = np.random.default_rng([size.seed, 0])
    market = model.draw_market(size.advertisers, size.weeks, effects, rng)
    texts = advertiser_texts(market.taste, effects.ads_each, rng)
    owner = np.repeat(texts.ids, effects.ads_each)
    number = np.tile(np.arange(effects.ads_each), size.advertisers)
    ad_ids = [f"{advertiser}-{k}" for advertiser, k in zip(owner, number, strict=True)]
    ads = pd.DataFrame(
        {
            "ad_id": ad_ids,
            "advertiser_id": owner,
            "category": texts.categories.ravel(),
            "known_from": times(market.life[:, 0]),
        }
    )
    return Catalog(market, texts, ads)


def _draw_block(catalog: Catalog, block: range, size: Size, effects: model.Effects) -> dict[str, Any]:
    """Tables of some users. Listed are those who did or were shown something, and nobody else."""
    import pandas as pd

    rng = np.random.default_rng([size.seed, 1, block.start])
    users = model.draw_users(len(block), size.weeks, effects, rng)
    events, shown = model.simulate(users, catalog.market, size.weeks, effects, rng)
    ids = np.asarray([f"u{i:07d}" for i in block], object)
    listed = np.zeros(len(block), bool)
    listed[events.user] = listed[shown.user] = True
    profiles = profile_texts(users.taste, effects.no_profile, effects.profile_true, rng)
    return {
        USERS: pd.DataFrame({"user_id": ids, "known_from": times(users.life[:, 0]), **profiles})[listed],
        EVENTS: _event_table(events, ids, users, catalog.ads, effects, rng),
        IMPRESSIONS: _impression_table(shown, ids, catalog.ads),
        "truth": _tastes("user", ids, users.taste),
    }


def _event_table(
    events: model.Events,
    ids: model.Int,
    users: model.Users,
    ads: pd.DataFrame,
    effects: model.Effects,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Visits and conversions; ``arrived`` is when the log got to know of a row."""
    import pandas as pd

    conversion = events.ad >= 0
    # a visit is to the advertiser's main category; a conversion to that of the ad
    ad = np.where(conversion, events.ad, events.advertiser * effects.ads_each)
    late = rng.random(len(ad)) < effects.late_share
    delay = np.where(late, rng.exponential(effects.late_days, size=len(ad)) * model.DAY_S, 0).astype(np.int64)
    return pd.DataFrame(
        {
            "user_id": ids[events.user],
            "timestamp": times(events.second),
            "advertiser_id": ads["advertiser_id"].to_numpy()[ad],
            "category": ads["category"].to_numpy()[ad],
            "value": np.where(conversion, np.round(rng.gamma(2.0, 15.0, size=len(ad)), 2), 0.0),
            "text": pd.Series(visit_texts(users.taste[events.user], rng)).mask(conversion, None),
            "kind": np.where(conversion, "conversion", "visit").astype(object),
            "arrived": times(events.second + delay),
        }
    )


def _impression_table(shown: model.Impressions, ids: model.Int, ads: pd.DataFrame) -> pd.DataFrame:
    """Impressions with their place, their click, and their label with the time at which it came about."""
    import pandas as pd

    return pd.DataFrame(
        {
            "impression_id": np.arange(len(shown.ad), dtype=np.int64),
            "slate_id": shown.slate,
            "user_id": ids[shown.user],
            "ad_id": ads["ad_id"].to_numpy()[shown.ad],
            "advertiser_id": ads["advertiser_id"].to_numpy()[shown.ad],
            "timestamp": times(shown.second),
            "label": shown.label.astype(np.int8),
            "context_position": shown.position,
            "context_placement": np.asarray(model.PLACEMENTS, object)[shown.placement],
            "clicked": shown.click.astype(np.int8),
            "label_time": times(np.maximum(shown.label_second, 0)).where(shown.label == 1),
        }
    )


def _tastes(kind: str, ids: Any, taste: model.Float) -> pd.DataFrame:
    """What only the model knows of users or advertisers."""
    import pandas as pd

    return pd.DataFrame({"kind": kind, "id": ids, **{f"taste_{k}": taste[:, k] for k in range(taste.shape[1])}})
