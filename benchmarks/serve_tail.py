"""Where the slowest requests of a load spend their time: the generator's times of each beside the service's own.

A request's time from when it was due to when its answer was there falls into parts that follow one another: the
generator was late, the way to the service and back, waiting and HTTP within the service, then the stages of ranking.
What needs no other process or thread (features, predict) grows where the processor itself was taken away; what is
handed over (the way, waiting, the store) also grows where others want the processor too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

#: Parts of a request's time, in their order.
PARTS = ("generator late", "way there and back", "waiting and HTTP", "read", "features", "predict")


def parts_of(times: Path, log: Path, since: int = 0) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Milliseconds of each answered request: in all, and by part.

    Parameters
    ----------
    times : Path
        What `benchmarks.serve_load` wrote of each request.
    log : Path
        Of the service, at level info.
    since : int
        Bytes of the log that are of an earlier load.

    Returns
    -------
    total : float64 [requests]
    parts : float64 [requests, PARTS]
    """
    own: dict[str, dict[str, float]] = {}
    with log.open("rb") as lines:
        lines.seek(since)
        for line in lines:
            entry = json.loads(line)
            if "stages_ms" in entry:
                own[entry["request_id"]] = {"ms": entry["ms"], **entry["stages_ms"]}
    rows = []
    for number, due, sent, answered, _ in json.loads(times.read_text()):
        if (stages := own.get(str(number))) is not None:
            outside = (answered - sent) * 1e3 - stages["ms"]
            late, waiting = (sent - due) * 1e3, stages["ms"] - stages["total"]
            rows.append([late, outside, waiting, stages["read"], stages["features"], stages["predict"]])
    parts = np.array(rows, dtype=np.float64).reshape(-1, len(PARTS))
    return parts.sum(axis=1), parts


def tail_lines(total: npt.NDArray[np.float64], parts: npt.NDArray[np.float64]) -> list[str]:
    """For people: mean parts of the requests about the median, and of the slowest 1 %."""
    low, high, slow = np.percentile(total, [40, 60, 99])
    middle, slowest = parts[(total >= low) & (total <= high)].mean(axis=0), parts[total >= slow].mean(axis=0)
    added = (slowest - middle) / max(float((slowest - middle).sum()), 1e-9)
    lines = [f"  {'part':<20} {'median':>8} {'slow 1 %':>9} {'of the difference':>18}"]
    for name, usual, longest, share in zip(PARTS, middle, slowest, added, strict=True):
        lines.append(f"  {name:<20} {usual:>8.2f} {longest:>9.2f} {share:>18.0%}")
    return lines


def stolen_s() -> float:
    """Processor seconds that the machine's host has taken away so far; 0 where the system does not say."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
        return int(first[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
