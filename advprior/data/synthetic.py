"""synthetic: a seeded ads log of any size whose click model is known, for what real data cannot tell.

Does a measurement find a signal that is there, and none where there is none? Does a step keep its memory at a
million users? `advprior.data.taste_model` says how the log is drawn; users are drawn in chunks of bounded size, each
from a seed of its own, and written as they are drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advprior.data.drawn import Size, time_plan
from advprior.data.taste_model import TRUTH, World, chunk_of_users, make_world
from advprior.store.arrays import Float
from advprior.store.contract import ADS, ADVERTISERS, EVENTS, IMPRESSIONS, USERS
from advprior.store.errors import AdvpriorError
from advprior.store.progress import Progress
from advprior.store.runs import is_current, new_run, run_key

if TYPE_CHECKING:
    import pandas as pd

CODE_VERSION = 2
NAME = "synthetic"
LEAST = {"users": 1, "advertisers": 6, "weeks": 6}
DEFAULT = Size(users=1000, advertisers=50, weeks=30)

#: At most this many (user, advertiser) pairs and impressions-to-be are held at once.
PAIRS, SLATES = 4_000_000, 150_000


def build(out: Path, size: Size = DEFAULT, *, null: bool = False, force: bool = False) -> bool:
    """Write canonical tables of the click model, and ``truth.parquet`` with the tastes behind them.

    Parameters
    ----------
    out : Path
        Folder to write; replaced as a whole, or not at all.
    size : Size
    null : bool
        Labels that depend on history and placement only.
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
    config: dict[str, Any] = {"data_set": NAME, **size.counts(), "seed": size.seed, "null": null, "truth": TRUTH}
    key = run_key("data", config, {}, CODE_VERSION)
    if not force and is_current(out, key):
        return False
    with new_run(out, "data", config=config, inputs={}, key=key) as run:
        counts = _write(run.path, size, null=null)
        signal = "labels without any signal beyond history (null)" if null else "labels with a planted signal"
        run.facts.update(
            source=NAME,
            note=f"Made up: a known click model, {signal}",
            seed=size.seed,
            null=null,
            truth={**TRUTH, "taste_weight": 0.0 if null else TRUTH["taste_weight"]},
            # a label is a click: it is there with its impression
            label_delay_s=0.0,
            time_plan=time_plan(size.weeks).to_json(),
            **counts,
        )
    return True


def _write(folder: Path, size: Size, *, null: bool) -> dict[str, Any]:
    """Draw the log chunk by chunk and write it: ``rows`` by table, ``slates`` and ``positives``."""
    import pandas as pd

    from advprior.store.tables import write_parquet

    world = make_world(size.advertisers, size.seed)
    step = max(1, min(PAIRS // size.advertisers, SLATES // size.weeks, size.users))
    rows = dict.fromkeys((USERS, ADVERTISERS, ADS, EVENTS, IMPRESSIONS), 0)
    rows |= {ADVERTISERS: len(world.advertisers), ADS: len(world.ads)}
    slates = positives = 0
    with _Writers(folder) as writers, Progress(size.users, NAME, "user") as progress:
        write_parquet(world.advertisers, folder / f"{ADVERTISERS}.parquet")
        write_parquet(world.ads, folder / f"{ADS}.parquet")
        truth = pd.DataFrame({"kind": "advertiser", "id": world.advertisers["advertiser_id"]})
        writers.add("truth", _with_taste(truth, world.taste, world.popularity))
        for first in range(0, size.users, step):
            users = range(first, min(first + step, size.users))
            chunk = chunk_of_users(world, users, size.weeks, size.seed, null=null)
            shown = chunk[IMPRESSIONS]
            shown["impression_id"] += rows[IMPRESSIONS]
            shown["slate_id"] += slates
            _check_chunk(world, chunk, size.weeks)
            for name in (USERS, EVENTS, IMPRESSIONS):
                writers.add(name, chunk[name])
                rows[name] += len(chunk[name])
            truth = pd.DataFrame({"kind": "user", "id": chunk[USERS]["user_id"]})
            writers.add("truth", _with_taste(truth, chunk["taste"], np.full(len(users), np.nan)))
            slates = int(shown["slate_id"].max()) + 1 if len(shown) else slates
            positives += int(shown["label"].sum())
            progress.update(len(users))
    if not all(rows.values()):
        raise AdvpriorError(
            "DAT042",
            "too few users and weeks for anything to happen",
            where="--users",
            actual=str(size.users),
            expected="rows in every table",
            fix="more --users, more --weeks or another --seed",
        )
    return {"rows": rows, "slates": slates, "positives": positives}


def _check_chunk(world: World, chunk: dict[str, Any], weeks: int) -> None:
    """Check a chunk as a data set of its own; a small one may hold no event at all, the whole is judged later."""
    from advprior.store.schemas import validate_tables

    if len(chunk[EVENTS]) and len(chunk[IMPRESSIONS]):
        tables = {ADVERTISERS: world.advertisers, ADS: world.ads}
        tables |= {name: chunk[name] for name in (USERS, EVENTS, IMPRESSIONS)}
        validate_tables(tables, plan=time_plan(weeks), where=NAME)


def _with_taste(table: pd.DataFrame, taste: Float, popularity: npt.NDArray[np.float64]) -> pd.DataFrame:
    """Add what only the model knows: ``popularity`` (advertisers only) and ``taste_0 …``."""
    columns = {f"taste_{k}": taste[:, k] for k in range(taste.shape[1])}
    return table.assign(popularity=popularity, **columns)


class _Writers:
    """Parquet files that grow chunk by chunk; an interrupted run's folder is thrown away as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}

    def __enter__(self) -> _Writers:
        return self

    def add(self, name: str, table: pd.DataFrame) -> None:
        """Append rows to ``<name>.parquet``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        # a profile missing throughout one chunk is text all the same
        texts = [pa.field(c, pa.string()) for c in table.columns] if name == USERS else None
        schema = pa.schema(texts) if texts else None
        batch = pa.Table.from_pandas(table, schema=schema, preserve_index=False)
        if name not in self._open:
            self._open[name] = pq.ParquetWriter(self._folder / f"{name}.parquet", batch.schema)
        self._open[name].write_table(batch)

    def __exit__(self, *problem: object) -> None:
        for writer in self._open.values():
            writer.close()
