"""A user's own tables, unlike the demo's: other column names, whole numbers as ids, fifteen weeks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from tests.tiny import START, tiny_tables

USERS = 40
#: canonical column -> column of the user's file
COLUMNS = {
    "users": {"user_id": "member_no"},
    "advertisers": {"advertiser_id": "brand_no", "name": "brand"},
    "ads": {"ad_id": "creative", "advertiser_id": "brand_no", "category": "topic"},
    "events": {
        "user_id": "member_no",
        "timestamp": "bought_at",
        "advertiser_id": "brand_no",
        "category": "topic",
        "value": "amount",
    },
    "impressions": {
        "slate_id": "page_view",
        "user_id": "member_no",
        "ad_id": "creative",
        "timestamp": "shown_at",
        "label": "bought",
    },
}
PROFILE = {"profile_age": "age_band", "profile_region": "area"}


def shop_tables() -> dict[str, pd.DataFrame]:
    """The tiny tables as a shop would have them: twice as fast, under its own names."""
    tables = tiny_tables(users=USERS)
    for name in ("events", "impressions"):
        times = tables[name]["timestamp"]
        tables[name]["timestamp"] = START + (times - START) / 2 + pd.Timedelta(days=400)
    ads = {ad: 10 + i for i, ad in enumerate(tables["ads"]["ad_id"])}
    for table in tables.values():
        for column, first in (("user_id", 7000), ("advertiser_id", 300)):
            if column in table:
                table[column] = (table[column].str[1:].astype("Int64") + first).convert_dtypes()
        if "ad_id" in table:
            table["ad_id"] = table["ad_id"].map(ads)
    tables["impressions"] = tables["impressions"].drop(columns=["impression_id", "advertiser_id"])
    columns = {"users": PROFILE, "impressions": {"context_placement": "slot"}}
    return {name: table.rename(columns=COLUMNS[name] | columns.get(name, {})) for name, table in tables.items()}


def write_shop(folder: Path) -> None:
    """Five Parquet files."""
    folder.mkdir(parents=True)
    for name, table in shop_tables().items():
        table.to_parquet(folder / f"shop_{name}.parquet", index=False)


def mapping(folder: str) -> str:
    """The mapping of those files, YAML; it names no time plan."""
    tables: dict[str, dict] = {
        name: {"file": f"shop_{name}.parquet", "columns": columns} for name, columns in COLUMNS.items()
    }
    tables["users"]["profile"] = {name.removeprefix("profile_"): column for name, column in PROFILE.items()}
    tables["impressions"]["context"] = {"placement": "slot"}
    return yaml.safe_dump({"folder": folder, "tables": tables})


def project_yaml(base: Path) -> str:
    """A project of few priors, with a tiny LLM."""
    text = {"base": str(base), "layers": 2, "components": 4}
    llm = {
        "base": str(base),
        "layers": 3,
        "tuned_layers": 1,
        "training": {"epochs": 1, "rank": 4},
        "interests": {"weight": 0.2},
    }
    by = {"by": "advertiser_category"}
    return yaml.safe_dump(
        {
            "tables": {"mapping": "mapping.yaml"},
            "priors": [
                {"name": "popularity"},
                {"name": "neighbours_pair", "predictor": "neighbours", **by},
                {"name": "text_pair", "predictor": "text", "settings": text, "placebo": True, **by},
                {"name": "llm", "settings": llm, "placebo": True},
            ],
            "arms": {
                "seeds": 2,
                "replicates": 100,
                "ranker": {"max_rounds": 20, "patience": 5, "min_data_in_leaf": 5, "threads": 1},
            },
            "serve": "llm",
        },
        sort_keys=False,
    )
