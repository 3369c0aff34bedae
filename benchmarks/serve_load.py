"""Load for `benchmarks.serve`, in a process of its own: closed loop, or open at a rate.

At a rate, a request's time counts from when it was due: a server that stalls cannot hide it by being asked less.
Prints one JSON: p50 and p99 in ms, answers a second, errors, degraded answers; the same of each minute. With a file and
a number n, every n-th answer goes into the file, one JSON a line with the place of its request.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def main() -> None:
    port, path, bodies_file, seconds, connections, rate = sys.argv[1:7]
    with ExitStack() as stack:
        kept = stack.enter_context(Path(sys.argv[7]).open("w")) if len(sys.argv) > 7 else None
        run(port, path, bodies_file, seconds, connections, rate, kept)


def run(port: str, path: str, bodies_file: str, seconds: str, connections: str, rate: str, kept: Any) -> None:
    """Send the requests, and print the result."""
    every = int(sys.argv[8]) if kept is not None else 0
    bodies = [line.encode() for line in Path(bodies_file).read_text().splitlines()]
    end = time.perf_counter() + float(seconds)
    begin, pace = time.perf_counter(), float(rate)
    workers = int(connections) if not pace else 8
    times: list[tuple[float, float]] = []
    errors: list[str] = []
    degraded: list[int] = []
    lock, at = threading.Lock(), iter(range(10**9))
    headers = {"content-type": "application/json"}

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        while True:
            with lock:
                i = next(at)
            due = begin + i / pace if pace else time.perf_counter()
            if due >= end:
                return
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            try:
                connection.request("POST", path, bodies[i % len(bodies)], headers)
                response = connection.getresponse()
                data = response.read()
                if response.status != 200:
                    errors.append(data.decode()[:200])
                elif b'"degraded":["' in data:
                    degraded.append(i)
                if kept is not None and i % every == 0 and response.status == 200:
                    kept.write(f'{{"request":{i % len(bodies)},"answer":{data.decode()}}}\n')
            except OSError as error:
                errors.append(repr(error))
                connection.close()
            times.append((due - begin, time.perf_counter() - due))

    threads = [threading.Thread(target=ask) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begin
    due_at, took = np.array(times).reshape(-1, 2).T
    minute = (due_at // 60).astype(int)
    by_minute = [percentiles(took[minute == m]) for m in range(minute.max(initial=-1) + 1)]
    counts = {"errors": len(errors), "degraded": len(degraded), "first": errors[:1], "minutes": by_minute}
    print(json.dumps({**percentiles(took), "rps": len(times) / spent, **counts}))


def percentiles(took: npt.NDArray[np.float64]) -> dict[str, float]:
    """Milliseconds; NaN of nothing."""
    if not len(took):
        return {"p50": float("nan"), "p99": float("nan"), "count": 0}
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    return {"p50": float(p50), "p99": float(p99), "count": len(took)}


if __name__ == "__main__":
    main()
