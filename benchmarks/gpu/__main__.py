"""Print the table, or say why there is none.

    python -m benchmarks.gpu [--workspace FOLDER] [--only network,score,fit] [--layers 10]

The network by itself at `--layers` layers, a shard by stage, `advprior score` end to end, and one epoch of every fit
(`benchmarks.gpu_fit`). Exit code 1 where a bound is missed, 2 where ONNX Runtime does not give a session on CUDA.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from advprior.runtime import cuda
from advprior.runtime.session import real_cores
from benchmarks.gpu import end_to_end, network
from benchmarks.gpu.table import Table

PARTS = ("network", "stages", "score", "fit")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="Tables and runs are kept here; default: a temporary folder.")
    parser.add_argument("--only", default=",".join(PARTS), help="Parts, by comma.")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--advertisers", type=int, default=664, help="Of the network by itself.")
    options = parser.parse_args()
    problem = cuda.problem(0)
    if problem is not None:
        print(f"no table: ONNX Runtime has no CUDA here ({problem})", file=sys.stderr)
        return 2
    table = Table()
    print(f"{cuda.device_name(0)}; {real_cores()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.workspace or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for part in options.only.split(","):
            _part(part, folder, options, table)()
    for what in table.missed:
        print(f"MISSED: {what}")
    return int(bool(table.missed))


def _part(name: str, folder: Path, options: argparse.Namespace, table: Table) -> Callable[[], None]:
    """What a part measures."""

    def by_itself() -> None:
        made = network.Network.export(folder / f"network-{options.layers}", options.layers, options.advertisers, table)
        network.speed(made, table)
        network.agreement(made, table)
        network.flat_memory(made, table)

    def fits() -> None:
        from benchmarks.gpu_fit import main as fit_main

        table.heading("one epoch of each fit, and its NLL on both")
        if fit_main([str(folder / "fit"), "--device", "cuda"]):
            table.missed.append("fits on both devices")

    def stages() -> None:
        for advertisers in (664, 100_000):
            end_to_end.stages(folder, options.layers, advertisers, table)

    parts: dict[str, Callable[[], None]] = {
        "network": by_itself,
        "stages": stages,
        "score": lambda: end_to_end.end_to_end(folder, options.layers, table),
        "fit": fits,
    }
    if name not in parts:
        raise SystemExit(f"no part {name}; there are {', '.join(parts)}")
    return parts[name]


if __name__ == "__main__":
    sys.exit(main())
