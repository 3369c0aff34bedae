"""Rows into Feast's Redis store by columns, through the store's own connection; and how far a write has come.

What is written is what ``RedisOnlineStore.online_write_batch`` writes, under its rule: a row that is as old as the
stored one, or older, is left out. While Redis works on one batch, the next is made.

A *mark* in Redis itself says how many rows of which work are written. A materialization that was killed goes on behind
them. Being in the store, the mark is lost with the rows that it speaks of; before it is believed, some of those rows
are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from advprior.store.arrays import Int
from advprior.store.online.commands import Commands, Layout

_SAMPLE = 32  # rows of a batch that are looked at before a mark is believed
_WORK, _ROWS = "work", "rows"
_NEVER = np.iinfo(np.int64).min


class RedisWriter:
    """Writes batches of one view.

    Parameters
    ----------
    client : redis.Redis
        The client of Feast's store.
    layout : Layout
    work : str
        Names what is written: a digest of the table and of the rows that count.
    keep_newer : bool
        Leave out rows that are not newer than the stored ones, as Feast does unless ``skip_dedup`` is set.
    """

    def __init__(self, client: Any, layout: Layout, work: str, *, keep_newer: bool = True) -> None:
        self._client, self._layout, self._work, self._keep_newer = client, layout, work, keep_newer
        self._mark = f"advprior:materialize:{layout.project}:{layout.view}"

    def rows_written(self) -> int:
        """Rows that an earlier attempt at the same work has written; 0 where there was none."""
        stored: dict[bytes, bytes] = self._client.hgetall(self._mark)
        return int(stored.get(_ROWS.encode(), 0)) if stored.get(_WORK.encode()) == self._work.encode() else 0

    def holds(self, batch: Any) -> bool:
        """Whether rows of a batch, or newer ones, are in the store: some are looked up."""
        commands = Commands(self._layout, batch)
        rows = np.unique(np.linspace(0, len(commands) - 1, min(_SAMPLE, len(commands))).astype(np.int64))
        with self._client.pipeline(transaction=False) as pipe:
            for key in commands.keys(rows):
                pipe.hget(key, self._layout.time_field)
            stored = _stored_nanos(pipe.execute())
        return bool((stored >= commands.nanos[rows]).all())

    def write(self, batches: Iterable[Any], done: int = 0, *, note: bool = True) -> Iterator[int]:
        """Write batches; yields the rows of each.

        Parameters
        ----------
        done : int
            Rows that are written already.
        note : bool
            Set the mark, once a batch is known to be in.
        """
        with self._connection() as connection:
            waiting = 0  # replies of the batch before
            for batch in batches:
                commands = Commands(self._layout, batch)
                _receive(connection, waiting)
                # only now: a row that Redis refused, being full, must not count as written
                head = [self._note(done)] if note and done else []
                block, rows = self._newer(connection, commands)
                connection.send_packed_command([*head, block])
                waiting = rows + len(head)
                done += len(commands)
                yield len(commands)
            _receive(connection, waiting)

    def _newer(self, connection: Any, commands: Commands) -> tuple[memoryview, int]:
        """Commands of the rows that are newer than the stored ones, and how many they are."""
        if not self._keep_newer:
            return commands.write(), len(commands)
        connection.send_packed_command([commands.read_times()])
        block = commands.write()  # while Redis looks the times up
        newer = commands.nanos > _stored_nanos(_receive(connection, len(commands)))
        return (block if newer.all() else commands.write(newer)), int(newer.sum())

    def finish(self) -> None:
        """Take the mark away: everything is written."""
        self._client.delete(self._mark)

    def _note(self, rows: int) -> bytes:
        """The command that sets the mark."""
        words = [b"HSET", self._mark.encode(), _WORK.encode(), self._work.encode(), _ROWS.encode(), str(rows).encode()]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection of the client's pool; one that was left with replies to come is closed."""
        connection = self._client.connection_pool.get_connection()
        try:
            yield connection
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._client.connection_pool.release(connection)


def _receive(connection: Any, replies: int) -> list[Any]:
    """Read so many replies.

    Raises
    ------
    redis.exceptions.ResponseError
        The first that a command was answered with.
    """
    return [connection.read_response() for _ in range(replies)]


def _stored_nanos(replies: list[Any]) -> Int:
    """Times of stored rows in nanoseconds, below every time where there is none."""
    from google.protobuf.timestamp_pb2 import Timestamp

    parsed: dict[bytes, int] = {}
    nanos = np.full(len(replies), _NEVER)
    for place, reply in enumerate(replies):
        stored = reply[0] if isinstance(reply, list) else reply
        if not stored:
            continue
        if stored not in parsed:
            moment = Timestamp.FromString(stored)
            parsed[stored] = moment.seconds * 1_000_000_000 + moment.nanos or _NEVER  # to Feast, 1970 is no time
        nanos[place] = parsed[stored]
    return nanos


def rows_digest(*parts: Any) -> str:
    """Digest of what is to be written: arrays by their bytes, anything else by its text."""
    import hashlib

    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray | pa.Buffer) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()
