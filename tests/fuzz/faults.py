"""What makes a world almost valid: one thing that is wrong in it, as it is in files that people really have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from tests.fuzz.worlds import Drawn, World

Fault = Callable[["World", "Drawn"], None]


def _some_table(world: World, drawn: Drawn, *names: str) -> str:
    return str(drawn.rng.choice(names or list(world.tables)))


def _some_column(world: World, drawn: Drawn, table: str) -> str:
    return str(drawn.rng.choice([str(c) for c in world.tables[table].columns]))


def _missing_column(world: World, drawn: Drawn) -> None:
    table = _some_table(world, drawn)
    world.tables[table] = world.tables[table].drop(columns=_some_column(world, drawn, table))
    if not len(world.tables[table].columns):
        world.tables[table]["nothing"] = 0
    world.layout[table] = "file"


def _column(world: World, table: str, key: str, change: Callable[[pd.Series], Any]) -> None:
    name = world.column(table, key)
    if name in world.tables[table]:
        world.tables[table] = world.tables[table].assign(**{name: change(world.tables[table][name])})


def _gaps(column: pd.Series) -> pd.Series:
    return column.astype(object).where(pd.Series(np.arange(len(column)) % 5 != 0), None)


def _null(world: World, drawn: Drawn) -> None:
    table = _some_table(world, drawn)
    name = _some_column(world, drawn, table)
    world.tables[table][name] = _gaps(world.tables[table][name])


def _all_null(world: World, drawn: Drawn) -> None:
    table = _some_table(world, drawn)
    world.tables[table][_some_column(world, drawn, table)] = None


def _stranger(world: World, drawn: Drawn) -> None:
    """A reference that its table does not have."""
    table = _some_table(world, drawn, "events", "impressions", "ads")
    key = "advertiser_id" if table == "ads" else "user_id"
    owner = "advertisers" if table == "ads" else "users"
    kept = world.tables[owner].iloc[1:].reset_index(drop=True)
    world.tables[owner] = kept if key and len(kept) else world.tables[owner]


def _doubled(world: World, drawn: Drawn) -> None:
    table = _some_table(world, drawn)
    world.tables[table] = pd.concat([world.tables[table]] * 2, ignore_index=True)


def _some_doubled(world: World, drawn: Drawn) -> None:
    table = _some_table(world, drawn)
    world.tables[table] = pd.concat([world.tables[table], world.tables[table].head(3)], ignore_index=True)


def _infinite(world: World, drawn: Drawn) -> None:
    _column(world, "events", "value", lambda c: np.where(np.arange(len(c)) % 9 == 0, np.inf, 1.0))


def _odd(world: World, drawn: Drawn) -> None:
    """A context column or a value that no feature can hold."""
    from tests.fuzz import values

    table = _some_table(world, drawn, "events", "impressions")
    pool = values.ODD_VALUES if table == "events" else values.ODD_CONTEXTS
    name = str(drawn.rng.choice(list(pool)))
    drawn.traits["odd"] = f"{table}: {name}"
    column = world.column(table, "value") if table == "events" else "odd"
    world.tables[table][column] = pool[name](len(world.tables[table]), drawn.rng)
    if table == "impressions":
        world.mapping["tables"][table]["context"] = {"odd": "odd"}


def _long(world: World, drawn: Drawn) -> None:
    """Ids that no request could hold."""
    for table in ("users", "events", "impressions"):
        _column(world, table, "user_id", lambda c: [f"{value}{'x' * 2000}" for value in c])


def _other_type(world: World, drawn: Drawn) -> None:
    """Any column in a type that it should not have."""
    table = _some_table(world, drawn)
    name = _some_column(world, drawn, table)
    count = len(world.tables[table])
    kinds: dict[str, Any] = {
        "text": [f"x{i}" for i in range(count)],
        "numbers": np.arange(count) / 7,
        "lists": [[i] for i in range(count)],
        "bytes": [b"\xff%d" % i for i in range(count)],
        "flags": np.arange(count) % 2 == 0,
        "moments": pd.Timestamp("2024-02-01") + pd.to_timedelta(np.arange(count), "s"),
        "records": [{"a": i} for i in range(count)],
        "years": np.arange(count) + 2000,
    }
    kind = str(drawn.rng.choice(list(kinds)))
    drawn.traits["type"] = f"{table}.{name} as {kind}"
    world.tables[table][name] = kinds[kind]


def _empty(world: World, drawn: Drawn) -> None:
    table = _some_table(world, drawn)
    world.tables[table] = world.tables[table].head(0)
    world.layout[table] = "file"


def _no_file(world: World, drawn: Drawn) -> None:
    world.mapping["tables"][_some_table(world, drawn)]["file"] = "absent/../nowhere.parquet"


def _times(kind: str) -> Fault:
    def change(world: World, drawn: Drawn) -> None:
        from tests.fuzz import values

        for table in ("events", "impressions"):
            name = world.column(table, "timestamp")
            count = len(world.tables[table])
            world.tables[table][name] = values.TIMES[kind](drawn.moments(count))[0]
        world.mapping.pop("timezone", None)

    return change


def _sentinel(world: World, drawn: Drawn) -> None:
    year = str(drawn.rng.choice(["1900-01-01", "1970-01-01", "9999-12-31", "2262-04-11"]))
    table = _some_table(world, drawn, "events", "impressions")
    name = world.column(table, "timestamp")
    count = len(world.tables[table])
    moments = np.array(["2024-02-02"] * count, dtype="datetime64[us]")
    moments[0] = np.datetime64(year)
    world.tables[table][name] = pd.Series(moments).dt.tz_localize("UTC")


def _one_time(world: World, drawn: Drawn) -> None:
    table = _some_table(world, drawn, "events", "impressions")
    name = world.column(table, "timestamp")
    world.tables[table][name] = pd.Timestamp("2024-02-02", tz="UTC")


def _label(world: World, drawn: Drawn) -> None:
    _column(world, "impressions", "label", lambda c: np.arange(len(c)) % 3)


def _shared_slates(world: World, drawn: Drawn) -> None:
    _column(world, "impressions", "slate_id", lambda c: np.arange(len(c)) % 7)


def _one_slate(world: World, drawn: Drawn) -> None:
    _column(world, "impressions", "slate_id", lambda c: np.zeros(len(c), dtype="int64"))


def _plan(**times: Any) -> Fault:
    def change(world: World, drawn: Drawn) -> None:
        plan = {"finetune_end": "2024-01-20T00:00:00Z", "train_end": "2024-02-10T00:00:00Z"}
        plan |= {"valid_end": "2024-02-15T00:00:00Z"}
        world.mapping["time_plan"] = {**plan, **times}

    return change


def _unknown_key(world: World, drawn: Drawn) -> None:
    world.mapping["tabels"] = world.mapping["tables"]


def _unknown_column(world: World, drawn: Drawn) -> None:
    entry = world.mapping["tables"][_some_table(world, drawn)]
    entry.setdefault("columns", {})["colour"] = "colour"


def _wrong_source(world: World, drawn: Drawn) -> None:
    entry = world.mapping["tables"][_some_table(world, drawn)]
    for key in list(entry["columns"])[:1]:
        entry["columns"][key] = "no such"


def _names(*fields: str) -> Fault:
    """Profile or context fields under awkward names."""

    def change(world: World, drawn: Drawn) -> None:
        table, section = ("users", "profile") if drawn.rng.random() < 0.5 else ("impressions", "context")
        entry = world.mapping["tables"][table]
        source = str(world.tables[table].columns[-1])
        entry[section] = dict.fromkeys(fields, source)

    return change


def _cuts(*shares: float) -> Fault:
    def change(world: World, drawn: Drawn) -> None:
        from tests.fuzz.worlds import cuts

        world.mapping["time_plan"] = cuts(drawn, *shares)

    return change


def _by_value(world: World, drawn: Drawn) -> None:
    """A file laid in folders by one of its columns, whose name is then the only place where its values stand."""
    table = _some_table(world, drawn, "events", "impressions", "ads")
    name = world.column(table, str(drawn.rng.choice(["user_id", "category", "label"])))
    if name in world.tables[table] and world.tables[table][name].notna().all():
        # the folders' order is that in which the rows are read
        folders = world.tables[table][name].map(lambda value: quote(str(value), safe="") + "/")
        rows = world.tables[table].iloc[folders.argsort(kind="stable")].reset_index(drop=True)
        rows[name] = rows.pop(name)
        world.tables[table], world.layout[table] = rows, "by value"


def _one_user(world: World, drawn: Drawn) -> None:
    """Everything that was shown was shown to one user."""
    for table in ("events", "impressions"):
        _column(world, table, "user_id", lambda c: [c.iloc[0]] * len(c))


def _no_shown(world: World, drawn: Drawn) -> None:
    """No ads and no impressions: a predictor can still be measured."""
    for table in ("ads", "impressions"):
        world.tables.pop(table)
        world.mapping["tables"].pop(table)


def _no_ads(world: World, drawn: Drawn) -> None:
    world.tables.pop("ads")
    world.mapping["tables"].pop("ads")


def _same_source(world: World, drawn: Drawn) -> None:
    """One column of a file as two canonical ones: a name in the place of an id."""
    entry = world.mapping["tables"]["advertisers"]
    entry.setdefault("columns", {})["name"] = world.column("advertisers", "advertiser_id")


FAULTS: dict[str, Fault] = {
    "missing column": _missing_column,
    "gaps": _null,
    "all null": _all_null,
    "stranger": _stranger,
    "doubled": _doubled,
    "some doubled": _some_doubled,
    "infinite": _infinite,
    "odd": _odd,
    "long ids": _long,
    "other type": _other_type,
    "two other types": lambda world, drawn: (_other_type(world, drawn), _other_type(world, drawn))[0],
    "empty": _empty,
    "no file": _no_file,
    "times as text": _times("text"),
    "times without zone": _times("no zone"),
    "times as numbers": _times("numbers"),
    "sentinel": _sentinel,
    "one time": _one_time,
    "label of three": _label,
    "shared slates": _shared_slates,
    "one slate": _one_slate,
    "plan out of order": _plan(finetune_end="2024-03-20T00:00:00Z"),
    "plan without zone": _plan(finetune_end="2024-01-20T00:00:00"),
    "plan without distance": _plan(snapshot_every="0d"),
    "plan with a long distance": _plan(snapshot_every="400d"),
    "plan with a short distance": _plan(snapshot_every="1m"),
    "plan with a long lag": _plan(lag="90d"),
    "plan that ends early": _plan(end="2024-02-16T00:00:00Z"),
    "plan that starts late": _plan(start="2024-01-19T00:00:00Z"),
    "plan of days": _plan(finetune_end="2024-01-20"),
    "plan that tests nothing": _cuts(0.3, 0.7, 0.9999),
    "plan of early days": _cuts(0.02, 0.05, 0.1),
    "plan without ranker": _cuts(0.9, 0.99, 0.999),
    "by value": _by_value,
    "unknown key": _unknown_key,
    "unknown column": _unknown_column,
    "wrong source": _wrong_source,
    "names with a space": _names("a b"),
    "names apart by case": _names("Age", "age"),
    "names of ours": _names("snapshot", "event_timestamp", "user_id", "missing", "log_prob"),
    "names with two underscores": _names("a__b"),
    "names that LightGBM takes for one": _names("a_b", "a", "ab_"),
    "names of letters beyond ASCII": _names("größe"),
    "one user": _one_user,
    "nothing shown": _no_shown,
    "no ads": _no_ads,
    "names are ids": _same_source,
}


def spoil(world: World, drawn: Drawn) -> None:
    """Make one thing wrong, and note what."""
    name = str(drawn.rng.choice(list(FAULTS)))
    FAULTS[name](world, drawn)
    world.traits["fault"] = name
