"""The no-future property: drop all that a log did not know at a snapshot, and nothing at or before it changes.

`cut` makes the tables as the log had them at a snapshot, `comparable` reads everything that was published of some
tables, and `changed` names the features that differ, bit for bit. Tests of features, priors and candidates share it.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import CATALOG_VERSION, HISTORY_ROW, TABLE_FILE, USER_ID
from advprior.store.existence import ads_exist_from, users_exist_from
from advprior.store.runs import new_run, read_manifest, run_key
from advprior.store.tables import load_label_delay, load_tables, write_parquet
from advprior.store.times import counting_times, micros, moment_us
from ranking.frame.numbering import HISTORY_IDS
from ranking.frame.publish import publish_features
from ranking.frame.streams import STREAMS
from ranking.frame.views import BASELINE_VIEWS, view_folder

#: Numbers of rows and lists of names: they may be others, what they lead to may not.
POINTERS = (HISTORY_ROW, CATALOG_VERSION)


def cut(tables: Path, snapshot: datetime, out: Path) -> Path:
    """The tables as the log had them at a snapshot, as a finished run.

    Events that count later and later impressions are dropped, labels that are not complete are unknown (0), and users,
    ads and advertisers are dropped who do not exist yet, but for those whom an earlier row names.
    """
    loaded, moment = load_tables(tables), moment_us(snapshot)
    users, ads, events, shown = (loaded[name] for name in ("users", "ads", "events", "impressions"))
    user_from, ad_from = users_exist_from(users, events, shown), ads_exist_from(ads, shown)
    past = loaded | {
        "events": events[counting_times(events) < moment],
        "impressions": shown[micros(shown["timestamp"]) < moment].copy(),
    }
    shown = past["impressions"]
    complete = micros(shown["timestamp"]) + load_label_delay(tables).total_seconds() * 1e6 < moment
    shown["label"] = shown["label"].where(complete, 0)
    if "label_time" in shown:
        shown["label_time"] = shown["label_time"].where(complete)
    named = set(past["events"]["user_id"]) | set(shown["user_id"])
    past["users"] = users[(user_from <= moment) | users["user_id"].isin(named)]
    past["ads"] = ads[(ad_from <= moment) | ads["ad_id"].isin(set(shown["ad_id"]))]
    told = set(past["ads"]["advertiser_id"]) | set(past["events"]["advertiser_id"])
    past["advertisers"] = loaded["advertisers"][loaded["advertisers"]["advertiser_id"].isin(told)]
    config = {"cut": snapshot.isoformat()}
    with new_run(out, "data", config=config, inputs={}, key=run_key("data", config, {})) as run:
        for name, table in past.items():
            write_parquet(table.reset_index(drop=True), run.path / f"{name}.parquet")
        run.facts.update(read_manifest(tables)["facts"])
    return out


def published(tables: Path, repo: Path) -> Path:
    """The repository, with the features of the tables, all counted anew."""
    repo.mkdir(parents=True, exist_ok=True)
    publish_features(tables, repo, anew=True)
    return repo


def comparable(repo: Path) -> dict[str, pd.DataFrame]:
    """Every published feature by view: a table by key and time, its cells as bytes or text.

    Lists hold names in place of ids, and what lies in the array files stands beside them.
    """
    return {view: _table(view_folder(repo, view)) for view in BASELINE_VIEWS}


def _table(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / TABLE_FILE)
    key = USER_ID if USER_ID in table else "ad_id"
    columns = {name: _cells(table[name]) for name in table if name not in (key, "event_timestamp", *POINTERS)}
    if (folder / HISTORY_IDS).is_file():
        columns |= _history(folder, table)
    index = pd.MultiIndex.from_frame(table[[key, "event_timestamp"]])
    assert index.is_unique
    return pd.DataFrame(columns, index=index).sort_index()


def _cells(column: pd.Series[Any]) -> list[Any]:
    if column.dtype.kind == "M":
        return [str(value) for value in column]
    if column.dtype.kind in "fiu":
        return [value.tobytes() for value in column.to_numpy()]
    is_list = [isinstance(value, np.ndarray) for value in column]
    if all(is_list):
        return [value.tobytes() for value in column]
    assert not any(is_list)
    return [value if isinstance(value, str) else "" for value in column]


def _history(folder: Path, table: pd.DataFrame) -> dict[str, list[Any]]:
    """Lists of ids as names, and each row's part of the array files."""
    about = json.loads((folder / HISTORY_IDS).read_text())
    ads = pd.DataFrame(about["ads"])
    names = {
        "advertiser": about["advertisers"],
        "category": about["categories"],
        "ad": ads.drop_duplicates("ad")
        .sort_values("ad")[["advertiser", "category"]]
        .apply(lambda row: f"{about['advertisers'][row.iloc[0]]} / {about['categories'][row.iloc[1]]}", axis=1),
        "ad_id": about["ads"]["ad_id"],
        "department": about.get("departments"),
        "cluster": about.get("clusters"),
    }
    columns: dict[str, list[Any]] = {}
    for stream in STREAMS:
        levels = stream.levels_in(about["sizes"]) if stream.name in about["streams"] else {}
        for level, numbering in levels.items():
            of_ids, size = np.asarray(names[numbering], object), about["sizes"][numbering]
            ids = stream.online(level)[0]
            columns[ids] = ["\n".join(of_ids[np.asarray(row, int)]) for row in table[ids]]
            keys, values = (np.load(folder / name) for name in stream.files(level))
            rows = keys // size
            starts, stops = (np.searchsorted(rows, table[HISTORY_ROW], side=side) for side in ("left", "right"))
            places = [slice(*bounds) for bounds in zip(starts, stops, strict=True)]
            columns[f"{stream.name}_{level} keys"] = ["\n".join(of_ids[keys[at] % size]) for at in places]
            columns[f"{stream.name}_{level} values"] = [values[at].tobytes() for at in places]
    return columns


def changed(whole: dict[str, pd.DataFrame], past: dict[str, pd.DataFrame], available: datetime) -> list[str]:
    """Features of ``whole``, of rows up to when a snapshot was ``available``, that ``past`` has not, or has otherwise.

    Returns
    -------
    list of str
        ``view.feature``; ``view`` alone where it has other rows or columns.
    """
    names = []
    for view, table in whole.items():
        ours, theirs = (t[t.index.get_level_values(1) <= pd.Timestamp(available)] for t in (table, past[view]))
        assert len(ours), f"nothing to compare in {view}"
        if not ours.index.equals(theirs.index) or list(ours) != list(theirs):
            names.append(view)
            continue
        names += [f"{view}.{name}" for name in ours if ours[name].tolist() != theirs[name].tolist()]
    return names
