"""The service against the plain way, and its slowest requests: ``python -m benchmarks.scale.service --workspace W``.

``W`` is a finished demo (`runs/demo`). The service ranks 100 candidates from a Redis of its own, load comes from a
second process. The plain way (one SDK call for user × candidates, pandas, LightGBM) answers the same requests in the
same run. At half of its peak the service is measured three times; each time it is printed where the slowest 1 % of
requests spent their time (`benchmarks.serve_tail`), and how much processor time the machine's host took away meanwhile.

On a shared machine give ``--real-time``: service, Redis, plain way and load then come before everything else.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.scale.rows import Rows
from benchmarks.serve import PLAIN, Bench
from benchmarks.serve_setup import run_rows, service_parser
from benchmarks.serve_tail import parts_of, stolen_s, tail_lines

#: Bounds of the row: p50 of the plain way over the service's, and p99 over p50 at half of peak.
FASTER, TAIL = 25.0, 3.0


def main() -> None:
    parser = service_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--runs", type=int, default=3, help="at half of peak")
    run_rows("service", parser.parse_args(), measure)


def measure(options: argparse.Namespace, root: Path, redis_port: int | None, rows: Rows) -> None:
    """All checks of the row."""
    bench = Bench(argparse.Namespace(**vars(options), ranker=None, fallback=None, only=[]), root, redis_port)
    times, log = root / "times.json", root / "service.log"
    with bench.running("service", bench.serve(bench.repo, "info")) as (load, _):
        load(bench.hundred, seconds=2, connections=2)
        peak = load(bench.hundred, connections=4)["rps"]
        alone = load(bench.hundred)
        halves = [half_of_peak(load, bench, peak, (times, log)) for _ in range(options.runs)]
    plain = [sys.executable, "-W", "ignore", str(PLAIN), str(bench.repo), str(bench.ranker), "PORT"]
    with bench.running("plain", plain, "/health") as (load, _):
        load(bench.hundred, seconds=2)
        slow = load(bench.hundred)
    rows.note("peak, four at a time", f"{peak:.0f}/s")
    rows.note("p50, one at a time: service, plain way", f"{alone['p50']:.2f}, {slow['p50']:.1f} ms")
    rows.at_least(f"{bench.store}, 100 candidates: plain way's p50 / service's", slow["p50"] / alone["p50"], FASTER)
    for number, half in enumerate(halves, 1):
        rows.note(f"run {number} at half of peak: p50, p99", f"{half['p50']:.2f}, {half['p99']:.2f} ms")
        rows.at_most(f"run {number} at half of peak: p99 / p50", half["p99"] / half["p50"], TAIL)
    rows.at_most("requests that failed", sum(one["errors"] for one in (alone, slow, *halves)), 0)


def half_of_peak(load: Any, bench: Bench, peak: float, files: tuple[Path, Path]) -> dict[str, Any]:
    """One measurement at half of peak, and where its slowest requests spent their time."""
    times, log = files
    since, stolen = log.stat().st_size, stolen_s()
    half: dict[str, Any] = load(bench.hundred, rate=peak / 2, times=times)
    print(
        f"at {peak / 2:.0f}/s, load {os.getloadavg()[0]:.1f}, {stolen_s() - stolen:.2f} s taken away by the host; ms:"
    )
    print("\n".join(tail_lines(*parts_of(times, log, since))), flush=True)
    return half


if __name__ == "__main__":
    main()
