"""Joins that Spark's workers make of all impressions at once and leave on disk, for each part to look its rows up.

Feast's Spark store is given a query, not a table of this process, and what it joins is written by whoever joined it:
neither the impressions nor their features pass through the driver. Only the row counts do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store import duck
from advprior.store.arrays import Int
from advprior.store.contract import EVENT_TIMESTAMP, IMPRESSION_ID, TIMESTAMP
from advprior.store.times import micros
from ranking.frame import checks
from ranking.frame.join import Joined, JoinGroup, stretches

STRETCH = "advprior_stretch"


@dataclass(frozen=True, eq=False)
class StoredJoin:
    """What one group of views says of each distinct key in each stretch of time.

    Attributes
    ----------
    folder : Path
        Parquet files: keys, ``advprior_stretch``, and a column a reference.
    group : JoinGroup
    keys : list of str
        Columns of the keys.
    """

    folder: Path
    group: JoinGroup
    keys: list[str]

    @classmethod
    def make(
        cls, store: Any, group: JoinGroup, keys: Sequence[str], impressions: Path, before: timedelta = timedelta(0)
    ) -> StoredJoin:
        """Join on Spark.

        Parameters
        ----------
        store : feast.FeatureStore
            Its offline store is Spark.
        keys : sequence of str
            Join keys of all groups; a group without keys of its own takes them all.
        impressions : Path
            Parquet, on a disk that all workers share; what is joined is written beside it.
        before : timedelta
            Join as of so long before each impression.

        Raises
        ------
        AdvpriorError
            ``RNK005`` when rows are lost or doubled.
        """
        columns = list(group.keys) or list(keys)
        number = len(list(impressions.parent.glob("joined-*")))
        folder, asked = (impressions.parent / name for name in (f"joined-{number}", f"entities-{number}.parquet"))
        folder.mkdir()
        count = write_entities(impressions, asked, columns, group.edges, before)
        job = store.get_historical_features(
            entity_df=f"SELECT * FROM parquet.`file://{asked}`",
            features=group.refs,
            full_feature_names=True,
            filter_by_created_timestamp=True,
        )
        rows = job.to_spark_df()
        # near rows of time together: a part reads its stretches, not all of them
        near = rows.repartition(STRETCH).sortWithinPartitions(STRETCH)
        near.drop(EVENT_TIMESTAMP).write.mode("overwrite").parquet(f"file://{folder}")
        checks.enforce([checks.check_rows_kept(np.arange(count), _numbers(folder))], "the point-in-time join")
        asked.unlink()
        return cls(folder, group, columns)

    def add_to(self, result: Joined, entities: pd.DataFrame) -> None:
        """The columns of some impressions, from the rows of their stretches.

        Parameters
        ----------
        result : Joined
            Takes the columns.
        entities : pandas.DataFrame
            ``event_timestamp`` and the keys.
        """
        import pyarrow.dataset as ds

        stretch = stretches(self.group.edges, micros(entities[EVENT_TIMESTAMP]))
        within = (ds.field(STRETCH) >= int(stretch.min())) & (ds.field(STRETCH) <= int(stretch.max()))
        names = [ref.replace(":", "__") for ref in self.group.refs]
        table = ds.dataset(self.folder, format="parquet").to_table([STRETCH, *self.keys, *names], filter=within)
        stored = table.select([STRETCH, *self.keys]).to_pandas()
        codes = pd.factorize(np.concatenate([stored[STRETCH].to_numpy(), stretch]))[0].astype(np.int64)
        for name in self.keys:  # renumbered each time: a product of all could overflow
            values = np.concatenate([stored[name].to_numpy(object), entities[name].to_numpy(object)])
            of_name, distinct = pd.factorize(values, use_na_sentinel=False)
            codes = pd.factorize(codes * len(distinct) + of_name)[0].astype(np.int64)
        place = np.empty(codes.max(initial=-1) + 1, np.int64)
        place[codes[: len(stored)]] = np.arange(len(stored))
        result.add(table.select(names), place[codes[len(stored) :]])


@dataclass(frozen=True, eq=False)
class StoredJoins:
    """All that parts need; to them it is what `ranking.frame.part.FeastJoins` is.

    Attributes
    ----------
    groups : dict of int to sequence of StoredJoin
        What is joined as of so many weeks before each impression.
    """

    groups: Mapping[int, Sequence[StoredJoin]]

    def of(self, entities: pd.DataFrame, weeks: int) -> Joined:
        """Columns of some impressions."""
        moved = entities.assign(**{EVENT_TIMESTAMP: entities[EVENT_TIMESTAMP] - timedelta(weeks=weeks)})
        result = Joined()
        for group in self.groups[weeks]:
            group.add_to(result, moved if weeks else entities)
        return result


def write_entities(impressions: Path, out: Path, keys: Sequence[str], edges: Int | None, before: timedelta) -> int:
    """Write each distinct key in each stretch of time, with a moment in it; how many they are."""
    moment = f"{TIMESTAMP} - INTERVAL '{before // timedelta(microseconds=1)} microseconds'"
    names = ", ".join(f'"{key}"' for key in keys)
    stretch, nearest = f"epoch_us({EVENT_TIMESTAMP})", ""
    with duck.connected(impressions.parent, duck.FEW_COLUMNS) as connection:
        if edges is not None:
            table = pd.DataFrame({"edge": edges, "place": np.arange(1, len(edges) + 1)})
            connection.register("edges", table)
            stretch, nearest = "coalesce(place, 0)", f"ASOF LEFT JOIN edges ON epoch_us({EVENT_TIMESTAMP}) >= edge"
        connection.execute(
            f"COPY (SELECT row_number() OVER () - 1 AS {IMPRESSION_ID}, * FROM ("
            f"SELECT {names}, {stretch} AS {STRETCH}, min({EVENT_TIMESTAMP}) AS {EVENT_TIMESTAMP} "
            f"FROM (SELECT {names}, {moment} AS {EVENT_TIMESTAMP} FROM {duck.parquet(impressions)}) {nearest} "
            f"GROUP BY ALL)) TO {duck.literal(str(out))} (FORMAT parquet)"
        )
        return int(connection.execute(f"SELECT count(*) FROM {duck.parquet(out)}").fetchone()[0])


def _numbers(folder: Path) -> Int:
    """Numbers of the entity rows that came out of a join."""
    import pyarrow.dataset as ds

    table = ds.dataset(folder, format="parquet").to_table([IMPRESSION_ID])
    numbers: Int = table[IMPRESSION_ID].to_numpy().astype(np.int64)
    return numbers
