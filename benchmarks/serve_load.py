"""Load for `benchmarks.serve`, in a process of its own: closed loop, or open at a rate.

At a rate, a request's time counts from when it was due: a server that stalls cannot hide it by being asked less.
Prints one JSON: p50 and p99 in ms, answers a second, errors, degraded answers; the same of each minute. With a file and
a number n, every n-th answer goes into the file, one JSON a line with the place of its request. With a second file, the
times of each request go there: its number, which the service sees as its id, when it was due, sent and answered.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True)
class LoadOptions:
    """What is sent where, in the order of the command line.

    Attributes
    ----------
    seconds : float
        Of load.
    connections : int
        Requests at a time, where no rate is given.
    rate : float
        Requests a second; 0: one after another.
    answers : Path, optional
        Where every ``every``-th answer goes.
    times : Path, optional
        Where the times of each request go: (number, due, sent, answered, status), in seconds from the start.
    """

    port: int
    path: str
    bodies: Path
    seconds: float
    connections: int
    rate: float
    answers: Path | None = None
    every: int = 0
    times: Path | None = None

    @classmethod
    def of(cls, arguments: Sequence[str]) -> LoadOptions:
        """From the command line."""
        port, path, bodies, seconds, connections, rate = arguments[:6]
        options = cls(int(port), path, Path(bodies), float(seconds), int(connections), float(rate))
        if len(arguments) > 6 and arguments[6]:
            options = replace(options, answers=Path(arguments[6]), every=int(arguments[7]))
        return replace(options, times=Path(arguments[8])) if len(arguments) > 8 else options


@dataclass
class Results:
    """What came back."""

    times: list[tuple[float, float]] = field(default_factory=list)
    moments: list[tuple[int, float, float, float, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    degraded: list[int] = field(default_factory=list)

    def summary(self, seconds: float) -> dict[str, Any]:
        """Percentiles, answers a second, errors, degraded answers; percentiles of each minute."""
        due_at, took = np.array(self.times).reshape(-1, 2).T
        minute = (due_at // 60).astype(int)
        by_minute = [percentiles(took[minute == m]) for m in range(minute.max(initial=-1) + 1)]
        counts = {"errors": len(self.errors), "degraded": len(self.degraded), "first": self.errors[:1]}
        return {**percentiles(took), "rps": len(self.times) / seconds, **counts, "minutes": by_minute}


def main() -> None:
    options = LoadOptions.of(sys.argv[1:])
    with ExitStack() as stack:
        file = None if options.answers is None else stack.enter_context(options.answers.open("w"))
        begin = time.perf_counter()
        results = send(options, file)
        print(json.dumps(results.summary(time.perf_counter() - begin)))
    if options.times is not None:
        options.times.write_text(json.dumps(results.moments))


def send(options: LoadOptions, file: IO[str] | None) -> Results:
    """Send the load from several threads."""
    bodies = [line.encode() for line in options.bodies.read_text().splitlines()]
    begin, results = time.perf_counter(), Results()
    lock, at = threading.Lock(), iter(range(10**9))

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", options.port, timeout=30)
        while True:
            with lock:
                i = next(at)
            due = begin + i / options.rate if options.rate else time.perf_counter()
            if due >= begin + options.seconds:
                return
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            sent, status = time.perf_counter(), 0
            try:
                connection.request("POST", options.path, bodies[i % len(bodies)], _HEADERS | {"x-request-id": str(i)})
                response = connection.getresponse()
                data, status = response.read(), response.status
                if status != 200:
                    results.errors.append(data.decode()[:200])
                else:
                    if b'"degraded":["' in data:
                        results.degraded.append(i)
                    if file is not None and i % options.every == 0:
                        with lock:  # Python's text files are not for several threads
                            file.write(f'{{"request":{i % len(bodies)},"answer":{data.decode()}}}\n')
            except OSError as error:
                results.errors.append(repr(error))
                connection.close()
            answered = time.perf_counter()
            results.times.append((due - begin, answered - due))
            results.moments.append((i, due - begin, sent - begin, answered - begin, status))

    threads = [threading.Thread(target=work) for _ in range(8 if options.rate else options.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def percentiles(took: npt.NDArray[np.float64]) -> dict[str, float]:
    """Milliseconds; NaN of nothing."""
    if not len(took):
        return {"p50": float("nan"), "p99": float("nan"), "count": 0}
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    return {"p50": float(p50), "p99": float(p99), "count": len(took)}


if __name__ == "__main__":
    main()
