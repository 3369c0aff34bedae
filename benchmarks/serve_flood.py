"""More requests than a server can answer, from one process: an open loop over many connections, at rates by the clock.

``python -m benchmarks.serve_flood PORT BODIES '[[seconds, rate], …]' OUT``: sends each request when it is due, whatever
became of the others, on a free connection or a new one, and writes for each (due, answered, status) to OUT.

`benchmarks.serve_load` waits for an answer in each of its few threads: under overload it would ask for less.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import cast

#: Connections at most: a request that finds none free is not sent, and counts as failed.
_CONNECTIONS = 400


class Connection(asyncio.Protocol):
    """One connection: one request, then its answer."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length and self._answer is not None and not self._answer.done():
            self._data = b""
            self._answer.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)
        self._transport = None

    @property
    def open(self) -> bool:
        """Whether it can be used again."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> asyncio.Future[int]:
        """The status that will come."""
        self._answer = asyncio.get_running_loop().create_future()
        assert self._transport is not None
        self._transport.write(request)
        return self._answer


async def flood(port: int, requests: list[bytes], plan: list[tuple[float, float]]) -> list[tuple[float, float, int]]:
    """Send the plan; (due, answered, status) of each request, 0 where there was no answer."""
    loop = asyncio.get_running_loop()
    free: deque[Connection] = deque()
    opened, times = 0, list[tuple[float, float, int]]()
    begin = time.perf_counter()

    async def one(due: float, number: int) -> None:
        nonlocal opened
        connection = free.pop() if free else None
        if connection is None or not connection.open:
            if connection is None and opened >= _CONNECTIONS:
                times.append((due, time.perf_counter() - begin, 0))
                return
            opened += connection is None
            _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        status = await connection.send(requests[number % len(requests)])
        times.append((due, time.perf_counter() - begin, status))
        free.append(connection)

    running, start, number = set[asyncio.Task[None]](), 0.0, 0
    for seconds, rate in plan:
        for i in range(round(seconds * rate)):
            due = start + i / rate
            if (wait := begin + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            elif i % 8 == 0:
                await asyncio.sleep(0)  # answers are read, however late the schedule is
            task = asyncio.ensure_future(one(due, number))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
        start += seconds
    await asyncio.wait_for(asyncio.gather(*running), 60)
    return times


def main() -> None:
    port, bodies, plan, out = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
    head = "POST /rank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
    requests = [f"{head}{len(body)}\r\n\r\n{body}".encode() for body in bodies.read_text().splitlines()]
    import uvloop

    times = uvloop.run(flood(port, requests, [(seconds, rate) for seconds, rate in plan]))
    out.write_text(json.dumps(times))


if __name__ == "__main__":
    main()
