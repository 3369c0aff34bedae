"""Published snapshots that stand: their rows are taken over into the next publication, not counted again.

A refresh adds one snapshot to many. What the others tell of has not changed (`ranking.frame.past`), so their rows are
those that a publication counted anew would have. They are numbered and ordered as that one's: the two are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.contract import AD_ID, CATALOG_VERSION, HISTORY_ROW, SNAPSHOT, TABLE_FILE, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest, require_unchanged
from advprior.store.times import moment_us
from ranking.frame.counts import codes_of
from ranking.frame.numbering import HistoryIds, ids_of_ads, load_history_ids
from ranking.frame.past import Past
from ranking.frame.streams import ADVERTISER, Stream

#: Rows of a view that are in memory at a time, where one snapshot has not more: lists make a row of ten kilobytes.
ROWS = 1 << 13
#: Counts of these that are renumbered at a time.
_KEYS = 1 << 18


@dataclass(frozen=True)
class Standing:
    """The oldest snapshots of a view that is to be published, as they lie in the current publication.

    Parameters
    ----------
    folder : Path
    snapshots : list of datetime
    """

    folder: Path
    snapshots: list[datetime]

    @classmethod
    def of(cls, folder: Path, snapshots: Sequence[datetime], past: Past) -> Standing:
        """Those that a publication has and that nothing has changed of since; none of one that is damaged.

        Parameters
        ----------
        folder : Path
            The view's current publication, if there is any.
        snapshots : sequence of datetime
            All that are to be published, ascending.
        past : Past
        """
        try:
            facts = read_manifest(folder)["facts"]
            published = [datetime.fromisoformat(moment) for moment in facts.get("snapshots", [])]
            if not published or facts.get("past") != past.until(moment_us(published[-1])):
                return cls(folder, [])
            require_unchanged(folder)
        except AdvpriorError:
            return cls(folder, [])
        count = next((i for i, moment in enumerate(snapshots) if moment not in published), len(snapshots))
        return cls(folder, list(snapshots[:count]))

    def parts(self) -> Iterator[Any]:
        """Their rows as Arrow tables, of at most `ROWS` rows where no row group has more."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        if not self.snapshots:
            return
        with pq.ParquetFile(self.folder / TABLE_FILE) as file:
            wanted = pa.array(self.snapshots, file.schema_arrow.field(SNAPSHOT).type)
            parts, rows = list[Any](), 0
            for group in range(file.num_row_groups):
                part = file.read_row_group(group)
                stands = pc.is_in(part[SNAPSHOT], wanted)
                if not pc.all(stands, min_count=0).as_py():  # a filter copies what it keeps
                    part = part.filter(stands)
                if parts and rows + len(part) > ROWS:
                    yield pa.concat_tables(parts)
                    parts, rows = [], 0
                parts.append(part)
                rows += len(part)
            yield pa.concat_tables(parts)


def last_snapshot(folder: Path) -> datetime | None:
    """The newest snapshot of a view's current publication; None without any."""
    try:
        published = read_manifest(folder)["facts"].get("snapshots", [])
    except AdvpriorError:
        return None
    return datetime.fromisoformat(published[-1]) if published else None


class StandingHistory:
    """Standing rows of ``user_history`` under the numbers of today's users, ads and snapshots.

    Parameters
    ----------
    standing : Standing
    ids : HistoryIds
        Of today.
    users : sequence of str
        Of today, in the order of their rows.
    """

    def __init__(self, standing: Standing, ids: HistoryIds, users: Any) -> None:
        self._of, self.ids, self._users = standing, ids, users
        self._before = load_history_ids(standing.folder) if standing.snapshots else {}
        self._places = id_places(self._before, ids) if standing.snapshots else None

    @property
    def snapshots(self) -> list[datetime]:
        """Those that stand; none where an id of then is nothing today, or ids are in another order."""
        return self._of.snapshots if self._places is not None else []

    def parts(self, version: str, streams: Sequence[Stream]) -> Iterator[tuple[Any, StandingRows]]:
        """Tables as they are published now, and where their rows' counts lie."""
        if self._places is None:
            return
        grid = np.array([moment_us(moment) for moment in self.snapshots], np.int64)
        for table in self._of.parts():
            at = np.searchsorted(grid, _moments(table[SNAPSHOT]))
            rows = at * len(self._users) + codes_of(table[USER_ID].to_pandas(), self._users)
            before = table[HISTORY_ROW].to_numpy()
            yield (
                self._renumbered(table, rows, version, streams),
                StandingRows(self._of.folder, self._before["sizes"], self.ids.sizes, self._places, before, rows),
            )

    def _renumbered(self, table: Any, rows: Int, version: str, streams: Sequence[Stream]) -> Any:
        """A table with today's row numbers, catalog, and ids in its lists."""
        import pyarrow as pa

        columns = {HISTORY_ROW: pa.array(rows), CATALOG_VERSION: pa.repeat(version, len(table))}
        assert self._places is not None
        for stream in streams:
            for level, numbering in stream.levels_in(self.ids.sizes).items():
                name, places = stream.online(level)[0], self._places[numbering]
                if np.array_equal(places, np.arange(len(places))):
                    continue
                lists = table[name].combine_chunks()
                ids, offsets = places[lists.flatten().to_numpy()], lists.offsets.to_numpy()
                columns[name] = type(lists).from_arrays(pa.array(offsets - offsets[0]), pa.array(ids, pa.int32()))
        for name, values in columns.items():
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(index), values.cast(table.schema.field(index).type))
        return table


@dataclass(frozen=True)
class StandingRows:
    """Some rows of the current publication, and their numbers in the next.

    Parameters
    ----------
    folder : Path
    sizes, sizes_now : dict of str to int
        Ids by numbering, then and now.
    places : dict of str to int array
        Today's id of each id, by numbering.
    before, now : int arrays [rows]
        ``history_row``, ascending.
    """

    folder: Path
    sizes: dict[str, int]
    sizes_now: dict[str, int]
    places: dict[str, Int]
    before: Int
    now: Int

    def counts(self, files: tuple[str, str], numbering: str) -> Iterator[tuple[Int, Any]]:
        """Keys and values of a level, block by block."""
        keys, values = (np.load(self.folder / name, mmap_mode="r") for name in files)
        size, size_now, places = self.sizes[numbering], self.sizes_now[numbering], self.places[numbering]
        if not len(self.before):
            return
        start, stop = np.searchsorted(keys, [self.before[0] * size, (self.before[-1] + 1) * size])
        same = size == size_now and np.array_equal(self.before, self.now)
        same = same and len(self.now) == self.now[-1] - self.now[0] + 1 and np.array_equal(places, np.arange(size))
        for block in range(start, stop, _KEYS):
            own = slice(block, min(block + _KEYS, stop))
            if same:
                yield keys[own], values[own]
                continue
            row, id_ = np.divmod(keys[own], max(size, 1))
            at = np.minimum(np.searchsorted(self.before, row), len(self.before) - 1)
            has_row = self.before[at] == row
            yield (self.now[at] * size_now + places[id_])[has_row], values[own][has_row]


def id_places(before: dict[str, Any], ids: HistoryIds) -> dict[str, Int] | None:
    """Today's id of each id of an earlier catalog, by numbering.

    None where one is nothing today, means something else, or they are in another order: then all is counted anew.

    Parameters
    ----------
    before : dict
        What `HistoryIds.to_json` wrote.
    ids : HistoryIds

    Examples
    --------
    >>> import pandas as pd
    >>> ads = pd.DataFrame({"ad_id": ["y"], "advertiser_id": ["b"], "category": ["Tea"]})
    >>> more = pd.DataFrame({"ad_id": ["x", "y"], "advertiser_id": ["a", "b"], "category": ["Soap", "Tea"]})
    >>> before = HistoryIds(["b"], ads).to_json([])
    >>> {name: places.tolist() for name, places in id_places(before, HistoryIds(["a", "b"], more)).items()}
    {'advertiser': [1], 'category': [1], 'ad': [1], 'ad_id': [1]}
    """
    if set(before["sizes"]) != set(ids.sizes):
        return None
    ads = codes_of(before["ads"][AD_ID], ids.ads.index)
    if (ads < 0).any():
        return None
    out = {}
    for numbering, size in before["sizes"].items():
        of_ads, now = ids_of_ads(before, numbering), ids.ads[numbering].to_numpy()[ads]
        places = np.full(size, -1, np.int64)
        if numbering == ADVERTISER:
            places = codes_of(before["advertisers"], ids.advertisers)
        else:
            places[of_ads[of_ads >= 0]] = now[of_ads >= 0]
        same = np.where(of_ads >= 0, np.append(places, -1)[of_ads], -1) == now
        if not same.all() or (places < 0).any() or (np.diff(places) <= 0).any():
            return None
        out[numbering] = places
    return out


def _moments(column: Any) -> Int:
    """Microseconds since 1970 of a column of times."""
    import pyarrow as pa

    moments: Int = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return moments
