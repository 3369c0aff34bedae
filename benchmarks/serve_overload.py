"""Three times as many requests as the service can rank, for a minute: ``python -m benchmarks.serve_overload``.

One worker on a Redis of its own. First its peak and its p99 at half of it, then the overload, then half of the peak
again. Meanwhile `/health`, `/ready` and `/metrics` are asked ten times a second each by a process of its own, and an
explanation now and then. Checks: p99 of what is accepted, statuses of the rest, probes, explanations, and how soon
after the overload nothing is refused any more. Exit code 1 where a bound is missed.

On a shared machine give ``--real-time``: service, Redis and load then come before everything else.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.scale.rows import Rows
from benchmarks.serve import Bench
from benchmarks.serve_setup import run_rows, service_parser

#: p99 of the accepted over p99 at half of peak; seconds to recover; milliseconds for a probe.
SLOWER, RECOVERED_S, PROBE_MS = 2.0, 2.0, 50.0
PROBES = ("/health", "/ready", "/metrics")


class Probes:
    """Asks the probes ten times a second each, and for an explanation every second."""

    def __init__(self, port: int, body: bytes) -> None:
        self._port, self._body, self._stop = port, body, threading.Event()
        self.took: dict[str, list[float]] = {}
        self.statuses: dict[str, Counter[int]] = {}
        self._threads = [threading.Thread(target=self._ask, args=(path, 0.1)) for path in PROBES]
        self._threads.append(threading.Thread(target=self._ask, args=("/rank?explain=true", 1.0)))

    def __enter__(self) -> Probes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, path: str, every_s: float) -> None:
        took = self.took.setdefault(path, [])
        statuses = self.statuses.setdefault(path, Counter())
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stop.wait(every_s):
            begin = time.perf_counter()
            with suppress(OSError):
                if path.startswith("/rank"):
                    connection.request("POST", path, self._body, {"content-type": "application/json"})
                else:
                    connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                statuses[response.status] += 1
            took.append((time.perf_counter() - begin) * 1e3)


def main() -> None:
    parser = service_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--times-peak", type=float, default=3.0)
    run_rows("overload", parser.parse_args(), measure)


def measure(options: argparse.Namespace, root: Path, redis_port: int | None, rows: Rows) -> None:
    """All checks."""
    given = argparse.Namespace(workspace=options.workspace, seconds=8.0, ranker=None, fallback=None, only=[])
    bench = Bench(given, root, redis_port)
    calm_s, after_s = 10.0, 10.0
    with bench.running("service", bench.serve(bench.repo)) as (load, _):
        load(bench.hundred, seconds=2, connections=2)
        closed = load(bench.hundred, connections=4)
        peak = closed["rps"]
        rows.at_most("peak, four at a time: refused", closed["errors"], 0)
        plan = [[calm_s, peak / 2], [options.seconds, options.times_peak * peak], [after_s, peak / 2]]
        command = [sys.executable, "-m", "benchmarks.serve_flood", load.port, bench.hundred, json.dumps(plan)]
        begin = time.perf_counter()
        with Probes(load.port, bench.hundred.read_bytes().split(b"\n")[0]) as probes:
            subprocess.run([*map(str, command), str(root / "times.json")], check=True)
        took_s = time.perf_counter() - begin
    due, answered, status = np.array(json.loads((root / "times.json").read_text())).T
    rows.note("peak, four at a time", f"{peak:.0f}/s")
    rows.note("seconds planned, taken", f"{calm_s + options.seconds + after_s:.0f}, {took_s:.0f}")
    over = (due >= calm_s) & (due < calm_s + options.seconds)
    judge(rows, (due, (answered - due) * 1e3, status), over, calm_s + options.seconds)
    for path in (*PROBES, "/rank?explain=true"):
        slowest = float(np.percentile(probes.took[path], 99))
        statuses = probes.statuses[path]
        answers = ", ".join(f"{count} × {code}" for code, count in sorted(statuses.items()))
        if path in PROBES:
            rows.at_most(f"{path}: p99 ({answers})", slowest, PROBE_MS, "ms")
            rows.at_least(f"{path}: answered 200", statuses[200], sum(statuses.values()))
        else:
            rows.at_least(f"{path}: answered 200 (p99 {slowest:.0f} ms)", statuses[200], len(probes.took[path]))


def judge(
    rows: Rows,
    answers: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]],
    over: npt.NDArray[np.bool_],
    end_s: float,
) -> None:
    """Checks of the requests to be ranked: when each was due, milliseconds that it took, status."""
    due, took, status = answers
    ok = status == 200
    calm = float(np.percentile(took[ok & (due < due[over].min())], 99))
    accepted = took[ok & over]
    rows.note("half of peak before: p99", f"{calm:.2f} ms")
    rows.note("overload: requests, accepted", f"{over.sum()}, {ok[over].mean():.0%}")
    rows.note("overload: accepted a second", f"{len(accepted) / (end_s - due[over].min()):.0f}/s")
    rows.note("overload: p50 of the accepted, of the refused", _halves(accepted, took[~ok & over]))
    rows.at_most("overload: p99 of the accepted / p99 at half of peak", np.percentile(accepted, 99) / calm, SLOWER)
    rows.at_most("overload: answers other than 200 and 429", int((~np.isin(status[over], (200, 429))).sum()), 0)
    late = due[(due >= end_s) & ~ok]
    rows.at_most("after it: last refusal", float(late.max() - end_s) if len(late) else 0.0, RECOVERED_S, "s")
    settled = took[ok & (due >= end_s + RECOVERED_S)]
    rows.at_most("after it: p99 / p99 before", float(np.percentile(settled, 99)) / calm, SLOWER)


def _halves(*times: npt.NDArray[Any]) -> str:
    return ", ".join(f"{np.median(one):.1f}" if len(one) else "none" for one in times) + " ms"


if __name__ == "__main__":
    main()
