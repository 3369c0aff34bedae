"""Random worlds: the tables of a stranger and their mapping, made again from a whole number.

A world takes one choice on each of some twenty axes (ids, times, profiles, names, slates, layout of the files, time
plan, …), mostly the plain one, so that what falls is due to few of them; `World.traits` names those that are not plain.
Every fifth world is almost valid: one thing in it is wrong (`tests.fuzz.faults`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import yaml

from tests.fuzz import values
from tests.fuzz.values import choose

START = 1_704_067_200  # 2024-01-01, UTC
DAY = 86_400
#: The user's own names of columns; ids of one thing may be called otherwise in each table.
OWN = {
    "user_id": "member no",
    "advertiser_id": "Brand",
    "ad_id": "créative",
    "name": "label ",
    "category": "topic",
    "timestamp": "at",
    "value": "amount",
    "slate_id": "page-view",
    "impression_id": "row",
    "label": "bought?",
}
OPTIONAL = ("text", "known_from", "arrived", "kind", "clicked", "label_time")
PLAIN = 0.72


@dataclass
class World:
    """Tables under their owner's names, and how the mapping and the files present them."""

    seed: int
    tables: dict[str, pd.DataFrame]
    mapping: dict[str, Any]
    traits: dict[str, str] = field(default_factory=dict)
    #: how each table lies on the disk: file, parts, by day, index
    layout: dict[str, str] = field(default_factory=dict)

    def column(self, table: str, name: str) -> str:
        """A canonical column's name in the user's file."""
        entry = self.mapping["tables"][table]
        return str(entry.get("columns", {}).get(name, name))

    def __str__(self) -> str:
        return (
            f"world {self.seed} ({', '.join(f'{axis}: {choice}' for axis, choice in self.traits.items()) or 'plain'})"
        )

    def write(self, folder: Path) -> Path:
        """Write the files and their mapping; the mapping's path."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            file = folder / self.mapping["tables"][name]["file"]
            if file.parent == folder:
                _write(table, file, self.layout.get(name, "file"))
        path = folder / "mapping.yaml"
        path.write_text(yaml.safe_dump(self.mapping, allow_unicode=True), encoding="utf-8")
        return path


def _write(table: pd.DataFrame, path: Path, layout: str) -> None:
    if layout == "index":
        table.set_index(table.columns[0]).to_parquet(path)
    elif layout == "odd index":
        table.set_axis(np.arange(len(table))[::-1] * 3, axis=0).to_parquet(path)
    elif layout == "by value":
        # as Spark and Hive lay it: the column stands in the folders' names alone
        path.mkdir()
        column = table.columns[-1]
        for place, (value, rows) in enumerate(table.groupby(column, sort=False)):
            folder = path / f"{column}={quote(str(value), safe='')}"
            folder.mkdir()
            rows.drop(columns=column).to_parquet(folder / f"{place}.parquet", index=False)
    elif layout in ("parts", "by part"):
        path.mkdir()
        for part, rows in enumerate(np.array_split(np.arange(len(table)), 3)):
            folder = path / f"part={part}" if layout == "by part" else path
            folder.mkdir(exist_ok=True)
            table.iloc[rows].to_parquet(folder / f"{part}.parquet", index=False)
        (path / "_SUCCESS").write_text("")
    else:
        table.to_parquet(path, index=False)


class Drawn:
    """The choices of one world, and what they make."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 13])
        self.traits: dict[str, str] = {}
        self.users = int(self.rng.integers(20, 60))
        self.advertisers = int(self.rng.integers(3, 25))
        self.ads = int(self.rng.integers(self.advertisers, 3 * self.advertisers))
        self.weeks = int(self.rng.integers(6, 20))
        span = self.axis("span", ["weeks", "days", "a day", "years", "long ago"], 0.9)
        self.start = {"long ago": START - 25 * 365 * DAY}.get(span, START)
        self.seconds = {"days": 6 * DAY, "a day": DAY, "years": 900 * DAY}.get(span, self.weeks * 7 * DAY)

    def axis(self, name: str, options: Any, plain: float = PLAIN) -> str:
        """One choice, noted when it is not the plain one."""
        names = list(options)
        choice = choose(self.rng, names, plain)
        if choice != names[0]:
            self.traits[name] = choice
        return choice

    def pool(self, name: str, pool: values.Pool, count: int, plain: float = PLAIN) -> Any:
        return pool[self.axis(name, pool, plain)](count, self.rng)

    def moments(self, count: int) -> Any:
        return self.start + self.rng.integers(3600, self.seconds, count)


def make_world(seed: int) -> World:
    """The world of a seed.

    Parameters
    ----------
    seed : int

    Returns
    -------
    World
        The same tables for the same seed, whatever was made before it.
    """
    from tests.fuzz.faults import spoil

    drawn = Drawn(seed)
    canonical = _tables(drawn)
    world = World(seed, canonical, {}, drawn.traits)
    _present(world, drawn)
    if drawn.rng.random() < 0.22:
        spoil(world, drawn)
    return world


def _tables(drawn: Drawn) -> dict[str, pd.DataFrame]:
    """Tables under canonical names, their keys still numbers of rows."""
    rng = drawn.rng
    users = pd.DataFrame({"user_id": np.arange(drawn.users)})
    for place in range(int(rng.choice([0, 1, 2, 2, 2, 3, 12], p=[0.15, 0.25, 0.2, 0.15, 0.1, 0.1, 0.05]))):
        users[f"profile_{place}"] = drawn.pool(f"profile {place}", values.PROFILES, drawn.users, 0.5)
    if len(users.columns) == 1:
        drawn.traits["profile"] = "none"
    advertisers = pd.DataFrame({"advertiser_id": np.arange(drawn.advertisers)})
    if drawn.axis("names", ["there", "none"], 0.93) == "there":
        advertisers["name"] = drawn.pool("name", values.NAMES, drawn.advertisers, 0.6)
    more = rng.integers(0, drawn.advertisers, drawn.ads - drawn.advertisers)
    owner = np.concatenate([np.arange(drawn.advertisers), more])
    if drawn.axis("ads", ["of all", "of one advertiser"], 0.95) != "of all":
        owner = np.zeros(drawn.ads, dtype=int)
    ads = pd.DataFrame({"ad_id": np.arange(drawn.ads), "advertiser_id": owner})
    tables = {"users": users, "advertisers": advertisers, "ads": ads}
    tables["events"] = _events(drawn, owner)
    tables["impressions"] = _impressions(drawn, owner)
    _categories(drawn, tables)
    return tables


def _events(drawn: Drawn, owner: Any) -> pd.DataFrame:
    rng = drawn.rng
    many = drawn.axis(
        "events", ["some", "few", "one", "most by one user", "one moment", "nobody's", "one basket"], 0.82
    )
    count = {"few": 6, "one": 1}.get(many, drawn.users * int(rng.integers(5, 25)))
    active = max(1, drawn.users - int(rng.integers(0, 8)))  # some users have none
    users = rng.integers(0, active, count)
    if many == "most by one user":
        users = np.where(rng.random(count) < 0.9, 0, users)
    at = drawn.moments(count)
    if many == "one moment":
        at = np.full(count, drawn.start + drawn.seconds // 4)
    if many == "one basket":
        at = np.where(users == 0, drawn.start + drawn.seconds // 5, at)
        users = np.where(rng.random(count) < 0.5, 0, users)
    ad = rng.integers(0, drawn.ads, count)
    events = pd.DataFrame({"user_id": users, "timestamp": at, "ad": ad, "advertiser_id": pd.Series(owner[ad])})
    if many == "nobody's":
        events["advertiser_id"] = pd.Series([None] * count, dtype="Int64")
    elif drawn.axis("advertisers of events", ["all", "some"], 0.7) == "some":
        events["advertiser_id"] = events["advertiser_id"].astype("Int64").mask(pd.Series(rng.random(count) < 0.3))
    if drawn.axis("value", ["there", "none"], 0.85) == "there":
        events["value"] = drawn.pool("values", values.VALUES, count, 0.7)
    if drawn.axis("event text", ["none", "there"], 0.85) == "there":
        events["text"] = drawn.pool("texts", values.NAMES, count, 0.5)
    if drawn.axis("order of events", ["by time", "any"], 0.6) == "by time":
        events = events.sort_values("timestamp", ignore_index=True)
    return events


def _impressions(drawn: Drawn, owner: Any) -> pd.DataFrame:
    rng = drawn.rng
    size_name = drawn.axis("slates", ["some", "one each", "all ads", "uneven"], 0.7)
    slates = int(drawn.users * rng.integers(4, 12))
    sizes = {
        "some": np.full(slates, min(drawn.ads, 4)),
        "one each": np.ones(slates, dtype=int),
        "all ads": np.full(slates // 4, drawn.ads),
        "uneven": rng.integers(1, drawn.ads + 1, slates // 2),
    }[size_name]
    slate = np.repeat(np.arange(len(sizes)), sizes)
    user = rng.integers(0, max(1, drawn.users - 2), len(sizes))[slate]
    shown = drawn.ads if drawn.axis("shown", ["all ads", "few ads"], 0.8) == "all ads" else max(1, drawn.ads // 3)
    ad = np.concatenate([rng.permutation(drawn.ads)[:size] for size in sizes]) % shown
    # requests are spread over the plan's periods, so that most worlds can be cut
    at = np.sort(drawn.moments(len(sizes)))[slate]
    taste = (user + ad) % 5 == 0
    label = (rng.random(len(slate)) < 0.08 + 0.3 * taste).astype("int64")
    label = _outcomes(drawn, label, slate, at)
    table = pd.DataFrame({"slate_id": slate, "user_id": user, "ad_id": ad, "timestamp": at, "label": label})
    if drawn.axis("impression ids", ["none", "there"], 0.5) == "there":
        table["impression_id"] = np.arange(len(table))
    if drawn.axis("owners of impressions", ["from the ads", "there"], 0.7) == "there":
        table["advertiser_id"] = owner[ad]
    for place in range(int(rng.choice([0, 1, 2, 8], p=[0.35, 0.35, 0.25, 0.05]))):
        table[f"context_{place}"] = drawn.pool(f"context {place}", values.CONTEXTS, len(table), 0.3)
    if drawn.axis("order of impressions", ["by time", "any"], 0.7) == "any":
        table = table.sample(frac=1, random_state=int(rng.integers(2**31)), ignore_index=True)
    return table


def _outcomes(drawn: Drawn, label: Any, slate: Any, at: Any) -> Any:
    """Labels with what a split or a slate may lack."""
    kind = drawn.axis("positives", ["some", "none", "none late", "none early", "all", "few", "whole slates"], 0.92)
    half = np.median(at)
    return {
        "some": label,
        "none": label * 0,
        "none late": np.where(at > half, 0, label),
        "none early": np.where(at < half, 0, label),
        "all": label * 0 + 1,
        "few": np.where(np.arange(len(label)) % 97 == 0, label, 0),
        "whole slates": (slate % 4 == 0).astype("int64"),
    }[kind]


def _categories(drawn: Drawn, tables: dict[str, pd.DataFrame]) -> None:
    """A category of each ad, and of events where they have one."""
    kind = drawn.axis("category", [*values.CATEGORIES, "none"], 0.65)
    events = tables["events"]
    ad = events.pop("ad").to_numpy()
    if kind == "none":
        return
    names = np.array(values.CATEGORIES[kind](drawn.ads), dtype=object)
    of_ad = drawn.rng.integers(0, len(names), drawn.ads)
    tables["ads"]["category"] = pd.Series(names[of_ad]).infer_objects()
    of_events = drawn.axis("category of events", ["there", "none", "gaps", "others"], 0.8)
    if of_events == "none":
        return
    events["category"] = pd.Series(names[of_ad[ad]]).infer_objects()
    if of_events == "gaps":
        events["category"] = (
            events["category"].astype(object).mask(pd.Series(drawn.rng.random(len(events)) < 0.4), None)
        )
    if of_events == "others":
        events["category"] = [f"other {i % 7}" for i in range(len(events))]


# -- how a stranger presents it ---------------------------------------------------------------------------------------


def _tell_times(world: World, drawn: Drawn, kind: str) -> None:
    """Columns that a log may have: since when a row exists, when it arrived, when it was clicked or labelled."""
    tables, rng = world.tables, drawn.rng
    times = values.TIMES[kind]
    stated: dict[tuple[str, str], Any] = {}
    for name in ("users", "ads"):
        if drawn.axis(f"known_from of {name}", ["none", "early", "any", "gaps"], 0.75) != "none":
            late = 0 if drawn.traits[f"known_from of {name}"] == "early" else drawn.seconds
            stated[name, "known_from"] = drawn.start - 9 * DAY + rng.integers(0, late + 9 * DAY, len(tables[name]))
    at = tables["events"]["timestamp"]
    if drawn.axis("arrived", ["none", "late", "gaps", "far later"], 0.75) != "none":
        most = drawn.seconds if drawn.traits["arrived"] == "far later" else 3 * DAY
        stated["events", "arrived"] = at + rng.integers(0, most, len(at))
    if drawn.axis("label_time", ["none", "there"], 0.75) != "none":
        shown = tables["impressions"]
        stated["impressions", "label_time"] = shown["timestamp"] + rng.integers(0, 6 * DAY, len(shown))
    for (name, column), seconds in stated.items():
        moments = pd.Series(times(seconds)[0]).reset_index(drop=True)
        if column == "label_time":
            moments = moments.where(tables[name]["label"].to_numpy() == 1)
        elif drawn.traits.get(column, drawn.traits.get(f"{column} of {name}")) == "gaps":
            moments = moments.where(pd.Series(rng.random(len(moments)) < 0.6))
        tables[name][column] = moments
    if drawn.axis("clicked", ["none", "there"], 0.75) != "none":
        label = tables["impressions"]["label"].to_numpy()
        tables["impressions"]["clicked"] = np.maximum(label, rng.random(len(label)) < 0.1).astype("int64")
    if drawn.axis("kind", ["none", "there", "gaps"], 0.75) != "none":
        kinds = pd.Series(rng.choice(["visit", "conversion", "purchase"], len(at)))
        gaps = drawn.traits["kind"] == "gaps"
        tables["events"]["kind"] = kinds.where(pd.Series(rng.random(len(at)) < 0.6), None) if gaps else kinds


def _present(world: World, drawn: Drawn) -> None:
    """Ids, times and labels in their owner's types, names of columns, files, the mapping."""
    tables = world.tables
    for key, count in (("user_id", drawn.users), ("advertiser_id", drawn.advertisers), ("ad_id", drawn.ads)):
        _identify(tables, key, drawn.pool(key, values.IDS, count, 0.6))
    shown = tables["impressions"]
    for key in ("slate_id", "impression_id"):
        if key in shown:
            pool = values.ROW_IDS[drawn.axis(key, values.ROW_IDS, 0.6)]
            shown[key] = pd.Series(pool(int(shown[key].max()) + 1, drawn.rng)).take(shown[key]).to_numpy()
    zone = None
    kind = drawn.axis("times", [name for name in values.TIMES if name not in ("text", "no zone", "numbers")], 0.6)
    _tell_times(world, drawn, kind)
    for name in ("events", "impressions"):
        tables[name]["timestamp"], zone = values.TIMES[kind](tables[name]["timestamp"])
    shown["label"] = values.LABELS[drawn.axis("label", values.LABELS, 0.8)](shown["label"].to_numpy())
    _map(world, drawn, zone)


def _identify(tables: dict[str, pd.DataFrame], key: str, ids: Any) -> None:
    """Row numbers of a key as their owner's ids; missing ones stay so."""
    ids = pd.Series(ids)
    for table in tables.values():
        if key in table:
            numbers = table[key]
            if numbers.isna().any():
                positions = numbers.fillna(0).to_numpy(dtype="int64")
                column = ids.take(positions).reset_index(drop=True)
                whole = {"i": "Int64", "u": "UInt64"}.get(ids.dtype.kind, object)
                column = column.astype(whole).mask(numbers.isna().reset_index(drop=True), None)
                # as pandas reads whole numbers with gaps from other files
                small = whole == "Int64" and bool((ids.abs() < 2**53).all())
                table[key] = column.astype("float64") if small else column
            else:
                table[key] = ids.take(numbers.to_numpy(dtype="int64")).reset_index(drop=True)


def _map(world: World, drawn: Drawn, zone: str | None) -> None:
    """Rename to the owner's names and say so in the mapping."""
    own = drawn.axis("columns", ["canonical", "own"], 0.5) == "own"
    entries: dict[str, dict[str, Any]] = {}
    for name, table in world.tables.items():
        columns = {key: OWN[key] for key in OWN if own and key in table and key not in ("value",)}
        columns |= {"text": "words"} if "text" in table and own else {}
        entries[name] = {"file": f"{name}.parquet", "columns": columns}
        for prefix, section in (("profile_", "profile"), ("context_", "context")):
            fields = [column for column in table if str(column).startswith(prefix)]
            if fields:
                renamed = {f: f"{section} {f.removeprefix(prefix)}" for f in fields}
                names = values.FIELD_NAMES[drawn.axis(f"names of {section}", values.FIELD_NAMES, 0.75)]
                entries[name][section] = {names[int(f.removeprefix(prefix))]: renamed[f] for f in fields}
                columns = columns | renamed
        # an optional column that is not canonical by name must be named
        for column in OPTIONAL:
            if column in table and column not in entries[name]["columns"]:
                entries[name]["columns"][column] = column
        world.tables[name] = table.rename(columns=columns)
        layout = drawn.axis(f"file of {name}", ["file", "parts", "by part", "index", "odd index"], 0.88)
        world.layout[name] = layout
    world.mapping = {"tables": entries, "folder": "."}
    if zone:
        world.mapping["timezone"] = zone
    delay = drawn.axis("label delay", ["default", "30d", "12h", "0d"], 0.8)
    if delay != "default" and "label_time" not in world.mapping["tables"]["impressions"]["columns"]:
        world.mapping["label_delay"] = delay
    _plan(world, drawn)


def cuts(drawn: Drawn, *shares: float) -> dict[str, str]:
    """A time plan that cuts the span at these shares of it."""
    moments = [pd.Timestamp(drawn.start + int(share * drawn.seconds), unit="s", tz="UTC") for share in shares]
    return dict(zip(("finetune_end", "train_end", "valid_end"), [m.isoformat() for m in moments], strict=True))


def _plan(world: World, drawn: Drawn) -> None:
    """A time plan of the owner's, or none."""
    kind = drawn.axis("plan", ["proposed", "explicit", "12h", "1d", "30d", "long lag"], 0.5)
    if kind == "proposed":
        return
    plan = cuts(drawn, 0.35, 0.7, 0.82)
    if kind in ("12h", "1d", "30d"):
        plan["snapshot_every"] = kind
    if kind == "long lag":
        plan["lag"] = "3d"
    world.mapping["time_plan"] = plan
