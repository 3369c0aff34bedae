"""What workers of the service cost until they serve: ``python -m benchmarks.serve_workers --workspace runs/demo``.

A copy of a finished demo's store, on sqlite, is served by one worker, two and four; those are ready once each has said
so. For each process: CPU-seconds until then, those of children that have ended apart, and memory: PSS, in which pages
that several processes share count once for all. Linux only. Trees that are not compiled yet are, by a start before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.serve_setup import about_machine, in_store
from tests.ports import free_port

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Share:
    """What one process took: CPU-seconds of its own and of children that have ended, memory in MB."""

    own_s: float
    ended_s: float
    pss_mb: float
    private_mb: float

    @classmethod
    def of(cls, pid: int) -> Share:
        """Of a process that runs."""
        times = [
            int(word) * _TICK_S for word in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        ]
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {name: int(size.split()[0]) / 1024 for name, size in (line.split(":", 1) for line in lines)}
        private = sizes["Private_Clean"] + sizes["Private_Dirty"]
        return cls(sum(times[:2]), sum(times[2:]), sizes["Pss"], private)


def processes(pid: int) -> list[int]:
    """A process and all below it."""
    below = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [pid, *(one for child in below for one in processes(child))]


def shares(command: list[str], workers: int, log: Path) -> list[Share]:
    """Of all processes of a service, once all of its workers serve."""
    with log.open("wb") as out:
        service = subprocess.Popen([*command, "--workers", str(workers)], stdout=out, stderr=out)
    try:
        while log.read_text().count('"message": "serving"') < workers:
            if service.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        return [Share.of(pid) for pid in processes(service.pid)]
    finally:
        service.terminate()
        service.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path("runs/demo"), help="a finished demo: make demo")
    parser.add_argument("--now", type=datetime.fromisoformat, default=datetime.fromisoformat("2018-01-02T06:00:00Z"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    about_machine()
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder) / "feature_repo"
        in_store(options.workspace / "feature_repo", repo, options.now, None)
        command = [sys.executable, "-m", "advprior", "rank", "serve", "--no-api-key", "--port", str(free_port())]
        command += ["--repo", str(repo), "--clock-start", options.now.isoformat()]
        command += ["--ranker", str(options.workspace / "ranker")]
        command += ["--fallback", str(options.workspace / "ranker_baseline")]
        shares(command, 1, Path(folder) / "log")  # compiles the trees, reads the files from the disk
        for workers in options.workers:
            first, *below = shares(command, workers, Path(folder) / "log")
            took = [share.own_s + share.ended_s for share in (first, *below)]
            print(
                f"{workers} workers: {sum(took):.1f} CPU-s, {sum(s.pss_mb for s in (first, *below)):.0f} MB", flush=True
            )
            for name, share in (("first", first), *(("below", one) for one in below)):
                print(
                    f"  {name}: {share.own_s:.2f} CPU-s, {share.ended_s:.2f} of ended children; "
                    f"{share.pss_mb:.0f} MB, {share.private_mb:.0f} of them its own",
                    flush=True,
                )


if __name__ == "__main__":
    main()
