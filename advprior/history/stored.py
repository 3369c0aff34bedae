"""Histories on a disk, in blocks of users, where no process holds more events than it works on.

DuckDB sorts the events of canonical tables by block, in bounded memory. Each block is then built by whoever is free
(`build_block`: on Spark its workers), and read a few users at a time. What comes out is what
`advprior.history.subset.part_of` gives of everyone's histories, to the bit; so are the counts of everyone.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from advprior.history.counts import decayed
from advprior.history.histories import UNKNOWN, Codes, EventRows, Histories, events_by_user
from advprior.history.read import EVENT_COLUMNS
from advprior.history.subset import Crowd, Part, part_of
from advprior.store import duck
from advprior.store.arrays import Double, Int
from advprior.store.contract import EVENTS, USER_ID, VALUE
from advprior.store.errors import AdvpriorError
from advprior.store.runs import write_json

BLOCK_USERS = 4_096  # a block is built in memory: some hundred thousand events
SORTED_FILE, INDEX_FILE = "events.parquet", "index.json"
_BLOCK = "advprior_block"
_HEADS = 8  # blocks whose labels are held at once
_VECTORS = 512  # of DuckDB's 2,048 rows, at a time
_ROW = np.dtype([("time", "<i8"), ("advertiser", "<i4"), ("text", "<i4"), ("category", "<i4"), ("value", "<f4")])


@dataclass(frozen=True)
class BlockWork:
    """What building a block takes.

    Attributes
    ----------
    folder : Path
        With the sorted events; blocks are written into it.
    users : int
        All of them.
    advertisers : tuple of str
        Ids of the catalog.
    """

    folder: Path
    users: int
    advertisers: tuple[str, ...]

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-self.users // BLOCK_USERS)


@dataclass(frozen=True)
class BlockFacts:
    """What all blocks have to know of each other: whether any event has a text, a category, a value.

    Attributes
    ----------
    text, category : str, optional
        The alphabetically first one.
    value : bool
    """

    text: str | None = None
    category: str | None = None
    value: bool = False

    @classmethod
    def whole(cls, blocks: Sequence[BlockFacts]) -> BlockFacts:
        """Of all events."""
        text = min((b.text for b in blocks if b.text is not None), default=None)
        category = min((b.category for b in blocks if b.category is not None), default=None)
        return cls(text, category, any(b.value for b in blocks))


def sort_events(tables: Path, users: Sequence[str], folder: Path) -> None:
    """Sort the events of canonical tables into blocks of users, in a file of ``folder``.

    Parameters
    ----------
    tables : Path
    users : sequence of str
        Ids in the order of histories.
    folder : Path
        Made anew.

    Raises
    ------
    AdvpriorError
        ``DAT001``, ``DAT002`` where the table of events cannot be read.
    """
    import pyarrow as pa

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    events = duck.require(Path(tables) / f"{EVENTS}.parquet")
    people = pa.table({"person": pa.array(users, pa.string()), "place": np.arange(len(users), dtype=np.int64)})
    with duck.connected(folder, duck.FEW_COLUMNS) as connection:
        connection.register("people", people)
        names = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {events}").fetchall()]
        columns = "".join(f', e."{name}"' for name in EVENT_COLUMNS if name in names and name != USER_ID)
        connection.execute(
            f"COPY (SELECT place AS {USER_ID}, place // {BLOCK_USERS} AS {_BLOCK}{columns} FROM {events} e "
            f"JOIN people ON CAST(e.{USER_ID} AS VARCHAR) = person ORDER BY {_BLOCK}) "
            f"TO {duck.literal(str(folder / SORTED_FILE))} (FORMAT parquet)"
        )


def build_block(work: BlockWork, number: int) -> BlockFacts:
    """Build one block from the sorted events and write it; whole, or not at all.

    Raises
    ------
    AdvpriorError
        ``PRI074`` where the sorted events are not to be seen.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    path = work.folder / SORTED_FILE
    if not path.is_file():
        raise unseen(path)
    table = ds.dataset(path, format="parquet").to_table(filter=ds.field(_BLOCK) == number).drop([_BLOCK])
    events = table.to_pandas()
    first = number * BLOCK_USERS
    count = min(BLOCK_USERS, work.users - first)
    rows = events_by_user(events[USER_ID].to_numpy(np.int64) - first, count, events, work.advertisers)
    packed = np.zeros(len(rows.time), _ROW)
    packed["text"] = packed["category"] = UNKNOWN
    for name in _ROW.names or ():
        if len(values := getattr(rows, name)):
            packed[name] = values
    place = np.repeat(np.arange(first, first + count, dtype=np.int64), np.diff(rows.offsets))
    counted = pa.table({"time": rows.time, "place": place, "advertiser": rows.advertiser.astype(np.int32)})
    with _whole(_counted(work.folder, number)) as out:
        pq.write_table(counted, out, compression="zstd")
    with _whole(_rows(work.folder, number)) as out, out.open("wb") as handle:
        np.save(handle, packed)
    with _whole(_head(work.folder, number)) as out:
        out.write_bytes(pickle.dumps(_Head(rows.offsets, rows.texts, rows.categories)))
    text, category = (labels[0] if labels else None for labels in (rows.texts, rows.categories))
    return BlockFacts(text, category, VALUE in events)


def finish_blocks(work: BlockWork, blocks: Sequence[BlockFacts]) -> None:
    """Note that all blocks are there, and let go of the sorted events."""
    facts = asdict(BlockFacts.whole(blocks))
    write_json(work.folder / INDEX_FILE, {"users": work.users, "made": uuid4().hex, **facts})
    (work.folder / SORTED_FILE).unlink()


def is_finished(folder: Path, users: int) -> bool:
    """Whether a folder holds the blocks of so many users: of a run that is gone on with."""
    path = folder / INDEX_FILE
    return path.is_file() and json.loads(path.read_text())["users"] == users


@dataclass(frozen=True)
class Blocks:
    """Finished blocks, for whoever sees their folder.

    Attributes
    ----------
    folder : Path
    facts : BlockFacts
        Of all of them.
    made : str
        Tells them from others that lay in the same folder: workers outlive a score.
    """

    folder: Path
    facts: BlockFacts
    made: str

    @classmethod
    def open(cls, folder: Path) -> Blocks:
        """Blocks that `finish_blocks` has noted."""
        index = json.loads((folder / INDEX_FILE).read_text())
        return cls(folder, BlockFacts(index["text"], index["category"], index["value"]), index["made"])

    def with_events(self, people: Histories, users: Int) -> Histories:
        """Histories of some users.

        Parameters
        ----------
        people : Histories
            Of these users alone, without events.
        users : int64 [n]
            Their places among all, ascending.

        Raises
        ------
        AdvpriorError
            ``PRI074`` where the blocks are not to be seen.
        """
        parts, counts, heads = [np.zeros(0, _ROW)], [np.zeros(1, np.int64)], []
        of_user = users // BLOCK_USERS
        for number in np.unique(of_user).tolist():
            try:
                head = _open_head(_head(self.folder, number), self.made)
                # mapped for as long as it takes to copy some rows
                packed = np.load(_rows(self.folder, number), mmap_mode="r")
            except FileNotFoundError as error:
                raise unseen(self.folder) from error
            local = users[of_user == number] - number * BLOCK_USERS
            length = head.offsets[local + 1] - head.offsets[local]
            begins = np.repeat(head.offsets[local] - np.cumsum(length) + length, length)
            parts.append(packed[begins + np.arange(len(begins))])
            counts.append(length)
            heads.append(head)
        rows = np.concatenate(parts)
        text, texts = self._labelled("text", [head.texts for head in heads], parts[1:])
        category, categories = self._labelled("category", [head.categories for head in heads], parts[1:])
        events = EventRows(
            np.cumsum(np.concatenate(counts)),
            rows["time"].copy(),
            rows["advertiser"].astype(np.int64),
            text,
            category,
            rows["value"].copy() if self.facts.value else np.zeros(0, np.float32),
            texts,
            categories,
        )
        return replace(people, **vars(events))

    def _labelled(
        self, name: str, labels: list[tuple[str, ...]], parts: list[npt.NDArray[Any]]
    ) -> tuple[Codes, tuple[str, ...]]:
        """Codes of rows of several blocks and the labels that they use; one stays, for it says there are some."""
        first: str | None = getattr(self.facts, name)
        if first is None:
            return np.zeros(0, np.int32), ()
        used = [np.unique(part[name][part[name] >= 0]) for part in parts]
        names = sorted({of_block[code] for of_block, codes in zip(labels, used, strict=True) for code in codes})
        place = {label: number for number, label in enumerate(names)}
        out = [np.zeros(0, np.int32)]
        for of_block, codes, part in zip(labels, used, parts, strict=True):
            table = np.full(len(of_block) + 1, UNKNOWN, np.int32)  # one more at the end, where UNKNOWN points
            table[codes] = [place[of_block[code]] for code in codes]
            out.append(table[part[name]])
        return np.concatenate(out), tuple(names) or (first,)


@dataclass(frozen=True, eq=False)
class StoredCrowd(Crowd):
    """Counts of everyone's events out of the blocks, for any half-life; those that were asked for stay.

    Attributes
    ----------
    folder : Path
    size : int
        N of the catalog.
    """

    folder: Path = Path()
    size: int = 0
    counts: dict[float, Crowd] = field(default_factory=dict)

    def popularity(self, cutoffs: Int, half_life: float) -> Double:
        half_life = float(half_life)
        counts = self.counts.get(half_life)
        if counts is None or not np.isin(cutoffs, counts.cutoffs).all():
            moments = np.unique(cutoffs)
            counts = Crowd(moments, {half_life: decayed(self._rows(moments), moments, half_life, self.size)})
            self.counts[half_life] = counts
        return counts.popularity(cutoffs, half_life)

    def _rows(self, moments: Int) -> Iterator[tuple[Int, Int]]:
        """(time, advertiser) of everyone before the last of some moments, in the order that one process has them."""
        folder = _counted(self.folder, 0).parent
        if not len(moments) or not any(folder.glob("*.parquet")):
            return
        with duck.connected(self.folder, duck.FEW_COLUMNS) as connection:
            rows = connection.execute(
                f"SELECT time, advertiser FROM {duck.parquet(folder)} WHERE time < {int(moments[-1])} "
                "ORDER BY time, place, advertiser"
            )
            while len(chunk := rows.fetch_df_chunk(_VECTORS)):
                yield chunk["time"].to_numpy(), chunk["advertiser"].to_numpy(np.int64)


@dataclass(frozen=True, eq=False)
class StoredHistories:
    """Everyone's histories on a disk, as `advprior.history.everyone.Everyone` has them.

    Attributes
    ----------
    people : Histories
        Everyone without events.
    stored : Blocks
    crowd : StoredCrowd
    """

    people: Histories
    stored: Blocks
    crowd: StoredCrowd

    @classmethod
    def open(cls, people: Histories, folder: Path, size: int) -> StoredHistories:
        """Finished blocks of everyone in a folder; N of the catalog."""
        return cls(people, Blocks.open(folder), StoredCrowd(folder=folder, size=size))

    @property
    def users(self) -> tuple[str, ...]:
        return self.people.users

    def __len__(self) -> int:
        return len(self.people)

    def of(self, users: Int) -> tuple[Histories, Int]:
        histories = self.stored.with_events(part_of(self.people, users), users)
        return Part.join(histories, self.crowd), np.arange(len(users), dtype=np.int64)

    def blocks(self) -> Iterator[Histories]:
        for start in range(0, len(self), BLOCK_USERS):
            yield self.of(np.arange(start, min(start + BLOCK_USERS, len(self)), dtype=np.int64))[0]


def unseen(path: Path) -> AdvpriorError:
    """Who works on histories does not see their folder."""
    return AdvpriorError(
        "PRI074",
        "a worker does not see the histories that it is to score",
        where=str(path),
        actual="no such file",
        expected="the folder of --out at the same path on every machine",
        fix="give an --out on a disk that all machines share",
    )


@dataclass(frozen=True)
class _Head:
    """What a block says beside its rows."""

    offsets: Int
    texts: tuple[str, ...]
    categories: tuple[str, ...]


@lru_cache(_HEADS)
def _open_head(path: Path, made: str) -> _Head:
    head: _Head = pickle.loads(path.read_bytes())
    return head


def _head(folder: Path, number: int) -> Path:
    return folder / "heads" / f"{number:06d}"


def _rows(folder: Path, number: int) -> Path:
    return folder / "rows" / f"{number:06d}.npy"


def _counted(folder: Path, number: int) -> Path:
    return folder / "counted" / f"{number:06d}.parquet"


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is to be there as a whole: two workers may build the same block."""
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    yield beside
    os.replace(beside, path)
