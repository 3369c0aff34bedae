"""The baseline's views counted in blocks of users: on this machine one after the other, on Spark by its workers.

Two passes over the blocks. The first tells what all rows have in common: what is said of ads, from when users exist,
whether anything has changed since the last publication. The second counts histories. What a block has made lies in
files, and a run that was stopped goes on after the last whole one. No process holds more than a block, and who the
users are.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import AD_ID, ADS, USER_ID, USERS
from advprior.store.errors import AdvpriorError
from advprior.store.existence import load_ads_exist_from
from advprior.store.progress import tracked
from advprior.store.runs import digest
from advprior.store.tables import read_batch, write_batches
from ranking.frame.ad_popularity import AdCounts, AdRows, moments_of
from ranking.frame.baseline import Source
from ranking.frame.history import CountedSnapshots
from ranking.frame.history_files import LevelFiles, level_files
from ranking.frame.log_rows import LogRows
from ranking.frame.numbering import HistoryIds
from ranking.frame.past import RowSums
from ranking.frame.preflight import FEATURES_VERSION
from ranking.frame.standing import ROWS
from ranking.frame.streams import Stream
from ranking.frame.user_blocks import UserBlocks

ROWS_FILE = "rows.arrow"  # of a block's histories
#: Runs ``function(shared, number)`` for each number, anywhere that sees the blocks' folder.
Runner = Callable[[Callable[[Any, int], None], Any, Sequence[int]], None]


@dataclass(frozen=True, eq=False)
class BlockWork:
    """What working on any block takes.

    Attributes
    ----------
    blocks : UserBlocks
        Sorted.
    columns : mapping of str to tuple of str
        Of events and impressions.
    ads : DataFrame
    ids : HistoryIds
    label_delay : timedelta
    version : int
        How whoever sends the work counts.
    """

    blocks: UserBlocks
    columns: Mapping[str, tuple[str, ...]]
    ads: pd.DataFrame
    ids: HistoryIds
    label_delay: timedelta
    version: int = FEATURES_VERSION

    def load(self, number: int) -> LogRows:
        """Rows of a block's users.

        Raises
        ------
        AdvpriorError
            ``STO026`` on a worker whose advprior counts otherwise; ``STO025`` on one that does not see the blocks.
        """
        if self.version != FEATURES_VERSION:
            raise AdvpriorError(
                "STO026",
                "a worker runs another version of advprior, which counts otherwise",
                where=socket.gethostname(),
                actual=f"features of version {FEATURES_VERSION}",
                expected=f"version {self.version}, as the driver's",
                fix="install the same version on every worker (or ship the environment: spark.archives)",
            )
        return LogRows(self.blocks.load(number, self.columns), self.ads, self.ids, self.label_delay)


@dataclass(frozen=True, eq=False)
class Survey:
    """The first pass: what it asks of each block.

    Attributes
    ----------
    work : BlockWork
    folder : Path
        Of the answers.
    ad_moments : int array
        See `moments_of`.
    past_moments : sequence of int
        At which the rows that count are summed.
    """

    work: BlockWork
    folder: Path
    ad_moments: Int
    past_moments: Sequence[int]

    def path(self, number: int) -> Path:
        """Where a block's answer lies."""
        return self.folder / f"{number:06d}.pickle"


@dataclass(frozen=True, eq=False)
class Surveyed:
    """What the rows of a block say.

    Attributes
    ----------
    users_from : int array [users]
    ads : AdRows
    sums : mapping of int to RowSums
    """

    users_from: Int
    ads: AdRows
    sums: Mapping[int, RowSums]


def survey(shared: Survey, number: int) -> None:
    """Answer for a block."""
    rows = shared.work.load(number)
    past = rows.past(rows.tables[USERS][USER_ID], rows.ads[AD_ID])
    sums = {moment: past.sums(moment) for moment in shared.past_moments}
    answer = Surveyed(rows.users_from, rows.ad_rows(shared.ad_moments), sums)
    beside = shared.path(number).with_suffix(f".{uuid4().hex}")  # two workers may be given the same block
    beside.write_bytes(pickle.dumps(answer))
    os.replace(beside, shared.path(number))


@dataclass(frozen=True, eq=False)
class Counting:
    """The second pass: what it counts of each block.

    Attributes
    ----------
    work : BlockWork
    folder : Path
    snapshots : CountedSnapshots
        Of the whole publication.
    totals : mapping of int to dict of str to int
        See `LogRows.history`.
    """

    work: BlockWork
    folder: Path
    snapshots: CountedSnapshots
    totals: dict[int, dict[str, int]]

    def path(self, number: int) -> Path:
        """Folder of a block's counts."""
        return self.folder / f"{number:06d}"


def count(shared: Counting, number: int) -> None:
    """Count a block's histories: a table of each snapshot, and arrays as they are published."""
    rows, first = shared.work.load(number), shared.work.blocks.first_user(number)
    beside = shared.path(number).with_suffix(f".{uuid4().hex}")
    beside.mkdir()
    with level_files([of_stream.stream for of_stream in rows.streams], rows.ids, beside) as files:
        parts = rows.history(shared.snapshots.of_users_from(first), files, shared.totals)
        write_batches(parts, beside / ROWS_FILE)
    try:
        os.replace(beside, shared.path(number))
    except OSError:  # another worker that was given the same block was first
        if not shared.path(number).exists():
            raise
        shutil.rmtree(beside)


@dataclass(frozen=True, kw_only=True)
class LogInBlocks(Source):
    """The log on disk.

    Parameters
    ----------
    folder : Path
        Of canonical tables.
    blocks : UserBlocks
    columns : mapping of str to tuple of str
        What is counted of events and impressions, as far as they have it.
    all_streams : list of Stream
    run : Runner
    past_moments : sequence of int
        At which `past` will be asked for, beside the last snapshot.
    """

    folder: Path
    blocks: UserBlocks
    columns: Mapping[str, tuple[str, ...]]
    all_streams: list[Stream]
    run: Runner
    past_moments: Sequence[int]

    @cached_property
    def ads_from(self) -> Int:
        return load_ads_exist_from(self.folder, self.tables[ADS][AD_ID].tolist())

    @property
    def streams(self) -> list[Stream]:
        return self.all_streams

    @cached_property
    def work(self) -> BlockWork:
        """The sorted log."""
        self.blocks.sort(self.folder, self.tables[USERS], self.columns)
        return BlockWork(self.blocks, self.columns, self.tables[ADS], self.ids, self.label_delay)

    @cached_property
    def _survey(self) -> tuple[Int, AdCounts, dict[int, RowSums]]:
        """From when users exist, what is said of ads, and sums of rows by moment: of all blocks."""
        moments = moments_of(self.snapshots)
        folder = self._named("survey", [moments.tolist(), list(self.past_moments)])
        shared = Survey(self.work, folder, moments, self.past_moments)
        self._run(survey, shared)
        counts = AdCounts(self.ids, moments, clicks=any(stream.name == "clicks" for stream in self.streams))
        users_from, sums = list[Int](), dict.fromkeys(self.past_moments, RowSums())
        for number in range(len(self.blocks)):
            with _whole(shared.path(number)):
                answer: Surveyed = pickle.loads(shared.path(number).read_bytes())
            users_from.append(answer.users_from)
            counts.add(answer.ads)
            sums = {moment: total + answer.sums[moment] for moment, total in sums.items()}
        return np.concatenate(users_from), counts, sums

    @property
    def users_from(self) -> Int:
        return self._survey[0]

    @property
    def ad_counts(self) -> AdCounts:
        return self._survey[1]

    def row_sums(self, moment: int) -> RowSums:
        return self._survey[2][moment]

    def counted(self, snapshots: CountedSnapshots, files: Sequence[LevelFiles]) -> Iterator[Any]:
        """As of `Source`: what the blocks hold, in the order of the publication; nothing is counted here."""
        about = [str(s) for s in snapshots.snapshots], snapshots.start, snapshots.version
        folder = self._named("counted", about)
        shared = Counting(self.work, folder, snapshots, self.totals)
        self._run(count, shared)
        for place, (_, first_row) in enumerate(tracked(list(snapshots), "features, write", "snapshot")):
            waiting = list[Any]()
            for number in range(len(self.blocks)):
                start, stop = (first_row + self.blocks.first_user(at) for at in (number, number + 1))
                with _whole(shared.path(number)):
                    for of_level in files:
                        size = self.ids.sizes[of_level.numbering]
                        of_level.append_rows(shared.path(number), start * size, stop * size)
                    waiting.append(read_batch(shared.path(number) / ROWS_FILE, place))
                if sum(map(len, waiting)) >= ROWS:
                    yield _together(waiting)
                    waiting = []
            if waiting:
                yield _together(waiting)

    def _named(self, name: str, about: Any) -> Path:
        """A folder for what depends on ``about``; what was made of anything else goes."""
        folder = self.blocks.folder / f"{name}-{digest(about)[:16]}"
        for path in self.blocks.folder.glob(f"{name}-*"):
            if path != folder:
                shutil.rmtree(path)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _run(self, function: Callable[[Any, int], None], shared: Survey | Counting) -> None:
        """Work on the blocks that nobody has worked on yet."""
        self.run(function, shared, [n for n in range(len(self.blocks)) if not shared.path(n).exists()])


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Read what was made of a block.

    Raises
    ------
    AdvpriorError
        ``RUN018`` where it is torn, as after the power went out.
    """
    try:
        yield
    except (EOFError, ValueError, pickle.UnpicklingError, FileNotFoundError) as error:  # Arrow's own is a ValueError
        raise AdvpriorError(
            "RUN018",
            "what was counted of a block of users is not what was written",
            where=str(path),
            actual=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
            expected="files as a whole block leaves them",
            fix="advprior rank features … --force, which counts every block again",
        ) from error


def _together(tables: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.concat_tables(tables)
