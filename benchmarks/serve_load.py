"""Load for `benchmarks.serve`, in a process of its own: closed loop, or open at a rate.

At a rate, a request's time counts from when it was due: a server that stalls cannot hide it by being asked less.
Prints one JSON: p50 and p99 in ms, answers a second, errors, degraded answers.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np


def main() -> None:
    port, path, bodies_file, seconds, connections, rate = sys.argv[1:7]
    bodies = [line.encode() for line in Path(bodies_file).read_text().splitlines()]
    end = time.perf_counter() + float(seconds)
    begin, pace = time.perf_counter(), float(rate)
    workers = int(connections) if not pace else 8
    times: list[float] = []
    errors: list[str] = []
    degraded: list[int] = []
    lock, at = threading.Lock(), iter(range(10**9))
    headers = {"content-type": "application/json"}

    def run() -> None:
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
            except OSError as error:
                errors.append(repr(error))
                connection.close()
            times.append(time.perf_counter() - due)

    threads = [threading.Thread(target=run) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begin
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    counts = {"errors": len(errors), "degraded": len(degraded), "first": errors[:1]}
    print(json.dumps({"p50": p50, "p99": p99, "rps": len(times) / spent, **counts}))


if __name__ == "__main__":
    main()
