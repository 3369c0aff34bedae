"""The log of a market as its owner sees it on each day of a year: the click log of `advprior.data.clicks`, day by day.

The whole log is drawn once, with its known truth. On a day only that is exported which had arrived by then: 5 % of the
events come days late, a conversion makes a label positive when it has happened, users, ads and advertisers are listed
from the day that they come. From a day on events have one column more, and users one field of their profile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from advprior.data import click_model, clicks
from advprior.data.drawn import START, Size
from advprior.store.tables import load_tables, write_parquet

DAY = timedelta(days=1)
#: Weeks of log before the first day: what the first predictor and the first ranker learn from.
WARM_WEEKS = 16
FIRST = START + WARM_WEEKS * 7 * DAY
EFFECTS = replace(
    click_model.Effects(), late_share=0.05, visits_a_week=0.8, slates_a_week=0.9, slate_size=4, newcomers=0.4
)
#: Share of requests whose placement is another one after the drift.
_MOVED = 0.8
#: Days of the ranker's rows: learnt from, tuned on, and tested on; the predictor's labels end before them.
_TRAIN, _VALID, _TEST = 28, 7, 21


@dataclass(frozen=True)
class Plan:
    """Days of the year, counted from 0.

    Parameters
    ----------
    predictor : int
        Of the last fit of the predictor: its labels, and the ranker's rows, begin so many days before.
    ranker : int
        Of the last training of the ranker.
    """

    predictor: int
    ranker: int

    def moments(self) -> dict[str, datetime]:
        """The mapping's time plan."""
        first = FIRST + (self.predictor - _TRAIN - _VALID - _TEST) * DAY
        tested = FIRST + (self.ranker - _TEST) * DAY
        return {"finetune_end": first, "train_end": tested - _VALID * DAY, "valid_end": tested}


class World:
    """A year of a market.

    Parameters
    ----------
    folder : Path
        Where the whole log is drawn, and where each day's export goes.
    size : Size
        Its weeks are ``WARM_WEEKS`` and the year's.
    schema_day : int
        From when on the log has more columns.
    drift_day : int
        From when on nearly all requests come from one placement.
    """

    def __init__(self, folder: Path, size: Size, schema_day: int, drift_day: int) -> None:
        self.folder, self.schema_day, self.drift_day = folder, schema_day, drift_day
        whole = folder / "whole"
        clicks.build(whole, size, effects=EFFECTS)
        self.tables: dict[str, Any] = load_tables(whole, "users", "advertisers", "ads", "events", "impressions")
        impressions = self.tables["impressions"]
        moved = (impressions["timestamp"] >= FIRST + drift_day * DAY).to_numpy()
        moved &= np.random.default_rng(size.seed).random(len(impressions)) < _MOVED
        impressions["context_placement"] = impressions["context_placement"].mask(moved, "story")
        ads, shown = self.tables["ads"], impressions.groupby("ad_id")["timestamp"]
        self.ad_life = pd.DataFrame({"first": ads.set_index("ad_id")["known_from"], "last": shown.max()})
        users = self.tables["users"].set_index("user_id")["known_from"]
        last = pd.concat([self.tables[name][["user_id", "timestamp"]] for name in ("events", "impressions")])
        self.user_life = pd.DataFrame({"first": users, "last": last.groupby("user_id")["timestamp"].max()})
        self.arrived = self.tables["events"]["arrived"]
        self.late = float((self.arrived > self.tables["events"]["timestamp"]).mean())

    def users_at(self, moment: datetime) -> list[str]:
        """Users who are there, from their first row to their last."""
        return _alive(self.user_life, moment)

    def ads_at(self, moment: datetime) -> list[str]:
        """Ads that are shown."""
        return _alive(self.ad_life, moment)

    def placement(self, moment: datetime, rng: np.random.Generator) -> str:
        """Where a request comes from."""
        if moment >= FIRST + self.drift_day * DAY and rng.random() < _MOVED:
            return "story"
        return str(rng.choice(np.asarray(click_model.PLACEMENTS, object)))

    def export(self, moment: datetime, plan: Plan) -> None:
        """Write the raw files and the mapping as they are at a moment: what ``refresh.export`` of a project does."""
        raw = self.folder / "raw"
        raw.mkdir(exist_ok=True)
        for name, table in self._as_of(moment).items():
            write_parquet(table, raw / f"{name}.parquet")
        (raw / "mapping.yaml").write_text(yaml.safe_dump(self._mapping(plan, moment)))

    def extended(self, moment: datetime) -> bool:
        """Whether the log has its new columns yet."""
        return moment >= FIRST + self.schema_day * DAY

    def _as_of(self, moment: datetime) -> dict[str, pd.DataFrame]:
        now = pd.Timestamp(moment)
        tables = dict(self.tables)
        events, shown = tables["events"], tables["impressions"]
        events = events[(self.arrived < now).to_numpy()].drop(columns="arrived")
        shown = shown[(shown["timestamp"] < now).to_numpy()]
        happened = (shown["label_time"] < now).to_numpy()
        shown = shown.assign(label=shown["label"].where(happened, 0), label_time=shown["label_time"].where(happened))
        users, ads = (table[(table["known_from"] <= now).to_numpy()] for table in (tables["users"], tables["ads"]))
        if self.extended(moment):
            users = users.assign(profile_tier=np.where(users["user_id"].str[-1] < "5", "basic", "plus"))
            events = events.assign(device=np.where(events["timestamp"].dt.minute % 2 == 0, "phone", "desk"))
        else:
            events = events.drop(columns="text")
        advertisers = tables["advertisers"]
        advertisers = advertisers[advertisers["advertiser_id"].isin(ads["advertiser_id"]).to_numpy()]
        return {"users": users, "advertisers": advertisers, "ads": ads, "events": events, "impressions": shown}

    def _mapping(self, plan: Plan, moment: datetime) -> dict[str, Any]:
        extended = self.extended(moment)
        tables: dict[str, Any] = {name: {"file": f"{name}.parquet"} for name in self.tables}
        profile = {"interest": "profile_interest", "region": "profile_region"}
        tables["users"]["profile"] = profile | ({"tier": "profile_tier"} if extended else {})
        tables["impressions"]["context"] = {"placement": "context_placement", "position": "context_position"}
        times = {name: moment.isoformat() for name, moment in plan.moments().items()}
        times |= {"start": START.isoformat(), "snapshot_every": "1d", "lag": "1h"}
        times["end"] = moment.isoformat()
        return {"folder": ".", "tables": tables, "time_plan": times, "label_delay": "7d"}


def _alive(life: pd.DataFrame, moment: datetime) -> list[str]:
    now = pd.Timestamp(moment)
    return sorted(life.index[((life["first"] <= now) & (now <= life["last"])).to_numpy()])
