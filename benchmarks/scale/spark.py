"""The demo's frame on Spark `local[2]` against duckdb's in the same run: CPU after the session's start, memory, cells.

    python -m benchmarks.scale.spark --workspace runs/demo [--share 1]

Each side is `advprior rank frame` in a process of its own, over the same published views. Spark's settings are the
commented lines of the shipped ``feature_store.yaml``. CPU-seconds and memory are read off the process tree: Python of
the driver, Java, and Spark's Python workers; on one machine Java is both driver and executor. Then the ten million
impressions of the row `frame`, or a ``--share`` of its users (0: not): features and frame on Spark.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq

from advprior.store.contract import prior_view
from advprior.store.runs import read_manifest
from benchmarks.scale.frame import prepare
from benchmarks.scale.frame_world import SEEN, Size
from benchmarks.scale.rows import Rows

SHIPPED = Path(__file__).parents[2] / "feature_repo"
BASELINE = ("user_profile", "user_history", "ad_stats")
_START = """\
import sys, yaml
from pyspark import SparkConf
from pyspark.sql import SparkSession
conf = yaml.safe_load(open(sys.argv[1]))["offline_store"]["spark_conf"]
session = SparkSession.builder.config(conf=SparkConf().setAll(conf.items())).getOrCreate()
session.range(10).count()
session.sparkContext.parallelize([1, 2], 2).map(str).collect()
"""
_SAMPLE_S, _LOOK_S = 0.2, 1.0  # between samples, and looks at all processes of the machine for children


@dataclass
class TreeCost:
    """What a process tree took.

    Attributes
    ----------
    cpu_s, driver_s : float
        User and system time of all of it, of its first process.
    seconds : float
        By the clock.
    driver_gb, java_gb, worker_gb : float
        Peak resident memory: the first process, Java, the largest of all others. Linux notes it itself.
    workers_gb : float
        Of all others together, as sampled.
    """

    cpu_s: float
    driver_s: float
    seconds: float
    driver_gb: float
    java_gb: float
    worker_gb: float
    workers_gb: float


def run_tree(
    command: Sequence[object], env: dict[str, str] | None = None, stop: Callable[[], bool] | None = None
) -> TreeCost:
    """Run a command and measure its process tree; its first process is killed once ``stop`` says so.

    What outlives a killed one for two minutes is an error.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            list(map(str, command)), env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL, stderr=errors
        )
        root, cpu = psutil.Process(process.pid), dict[int, float]()
        peak = dict.fromkeys(("driver", "java", "workers", "worker"), 0.0)
        tree, looked, stopped = [root], 0.0, False
        while process.poll() is None:
            resident = dict.fromkeys(peak, 0.0)
            if time.monotonic() - looked > _LOOK_S:
                tree, looked = _tree(root), time.monotonic()
            for one in tree:
                try:
                    used, gb, name = one.cpu_times(), one.memory_info().rss / 1e9, one.name()
                    highest = max(gb, _highest_gb(one.pid))
                except psutil.Error:
                    continue
                cpu[one.pid] = max(cpu.get(one.pid, 0.0), used.user + used.system)
                kind = "driver" if one.pid == root.pid else "java" if "java" in name else "worker"
                resident[kind] = max(resident[kind], highest)
                resident["workers"] += gb if kind == "worker" else 0.0
            peak = {kind: max(peak[kind], resident[kind]) for kind in peak}
            if stop is not None and stop():
                tree = _tree(root)
                process.kill()
                process.wait()
                _, alive = psutil.wait_procs(tree[1:], timeout=120)
                if alive:
                    raise SystemExit(f"outlive a killed driver: {alive}")
                stopped = True
                break
            time.sleep(_SAMPLE_S)
        if process.returncode and not stopped:
            errors.seek(0)
            raise SystemExit(errors.read()[-4000:])
    memory = {f"{kind}_gb": gb for kind, gb in peak.items()}
    return TreeCost(sum(cpu.values()), cpu.get(process.pid, 0.0), time.perf_counter() - started, **memory)


def _highest_gb(pid: int) -> float:
    """Peak resident memory of a process so far; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM:")), default=0.0)


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def spark_lines(text: str) -> str:
    """A shipped ``feature_store.yaml`` with its commented Spark lines in place of duckdb."""
    lines, inside = [], False
    for line in text.replace("  type: duckdb\n", "").splitlines():
        inside = (inside or line.startswith("  # type: spark")) and line.startswith("  #")
        lines.append(line.replace("  # ", "  ", 1) if inside else line)
    return "\n".join(lines) + "\n"


def make_repo(
    folder: Path,
    data: Path,
    predictors: Sequence[str],
    conf: dict[str, str] | None,
    views: Sequence[str] = BASELINE,
) -> Path:
    """A repository over published views, which stay where they are; on Spark where there are settings for it."""
    (folder / "data").mkdir(parents=True)
    for view in [*views, *map(prior_view, predictors)]:
        (folder / "data" / view).symlink_to((data / view).resolve())
    for name in ("definitions.py", ".feastignore"):
        shutil.copy(SHIPPED / name, folder)
    text = (SHIPPED / "feature_store.yaml").read_text()
    if conf is not None:
        import yaml

        config = yaml.safe_load(spark_lines(text))
        config["offline_store"]["spark_conf"] |= conf  # over the shipped ones
        text = yaml.safe_dump(config)
    (folder / "feature_store.yaml").write_text(text)
    feast = [sys.executable, "-m", "advprior.store.feast_import", "-c", folder, "apply"]
    subprocess.run(list(map(str, feast)), check=True, capture_output=True)
    return folder


def build(tables: Path, repo: Path, out: Path, predictors: Sequence[str]) -> TreeCost:
    """`rank frame`, measured."""
    command = [sys.executable, "-m", "advprior", "rank", "frame", "--tables", tables, "--repo", repo, "--out", out]
    return run_tree([*command, "--predictors", ",".join(predictors)], {"OMP_NUM_THREADS": "1", "TZ": "UTC"})


def different_cells(ours: Path, theirs: Path) -> tuple[int, int]:
    """Cells of two frames that differ, and all of them; column by column, NaN equal to NaN."""
    import pyarrow.dataset as ds

    first, second = (ds.dataset(folder / "frame.parquet", format="parquet") for folder in (ours, theirs))
    names, differ, cells = first.schema.names, 0, 0
    assert names == second.schema.names
    for name in names:
        a, b = (_plain(one.to_table([name])[name]) for one in (first, second))
        same = np.asarray((a == b) | (pd.isna(a) & pd.isna(b)), bool)
        differ, cells = differ + int((~same).sum()), cells + len(same)
    return differ, cells


def _plain(column: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.to_numpy()


def show(rows: Rows, what: str, cost: TreeCost) -> None:
    """Figures of one side."""
    rows.note(f"{what}: CPU, clock", f"{cost.cpu_s:.1f} s, {cost.seconds:.0f} s")
    rows.note(
        "  memory of driver, Java, workers", f"{cost.driver_gb:.2f}, {cost.java_gb:.2f}, {cost.workers_gb:.2f} GB"
    )


def demo(rows: Rows, workspace: Path, folder: Path, conf: dict[str, str]) -> None:
    """The demo's frame on both sides."""
    data = workspace / "feature_repo" / "data"
    predictors = ("llm", "popularity")
    repos = {
        name: make_repo(folder / name, data, predictors, settings)
        for name, settings in (("duckdb", None), ("spark", conf))
    }
    start = run_tree([sys.executable, "-c", _START, repos["spark"] / "feature_store.yaml"])
    show(rows, "Spark's session, two trivial jobs", start)
    costs = {}
    for name, repo in repos.items():
        costs[name] = build(workspace / "tables", repo, folder / f"frame-{name}", predictors)
        show(rows, f"demo's frame, {name}", costs[name])
    after = costs["spark"].cpu_s - start.cpu_s
    rows.at_most("CPU on Spark after its session's start, times duckdb's", after / costs["duckdb"].cpu_s, 4)
    rows.at_most("memory of the driver", costs["spark"].driver_gb, 1, "GB")
    differ, cells = different_cells(folder / "frame-duckdb", folder / "frame-spark")
    rows.at_most(f"cells that differ, of {cells:,}", differ, 0)


def features(rows: Rows, folder: Path, conf: dict[str, str]) -> None:
    """The same features, counted on Spark: every file of a view equal to what one machine has published."""
    repo = make_repo(folder / "features-on-spark", folder, (), conf, views=())
    command = [sys.executable, "-m", "advprior", "rank", "features", "--tables", folder / "tables", "--repo", repo]
    cost = run_tree(command, {"OMP_NUM_THREADS": "1", "TZ": "UTC"})
    show(rows, "features on Spark", cost)
    rows.at_most("memory of the driver", cost.driver_gb, 2, "GB")
    folders = {view: [data / "data" / view for data in (folder / "repo", repo)] for view in BASELINE}
    names = [(view, name) for view, (_, theirs) in folders.items() for name in read_manifest(theirs)["outputs"]]
    differ = sum(not _same(*(one / name for one in folders[view])) for view, name in names)
    rows.at_most(f"files that differ, of {len(names)}", differ, 0)


def _same(ours: Path, theirs: Path) -> bool:
    """Whether two files hold the same; of tables their columns, for row groups may be of other sizes."""
    if filecmp.cmp(ours, theirs, shallow=False):
        return True
    if ours.suffix != ".parquet":
        return False
    names = [pq.read_schema(path).names for path in (ours, theirs)]
    columns = ([pq.read_table(path, columns=[name]).combine_chunks() for path in (ours, theirs)] for name in names[0])
    return names[0] == names[1] and all(first.equals(second) for first, second in columns)


def large(rows: Rows, folder: Path, conf: dict[str, str], share: float) -> None:
    """Ten million impressions, or a share of their users, on Spark."""
    size, predictors = Size.share(share), list(SEEN)
    here = prepare(folder, size)
    rows.note(
        f"features of {size.impressions:,} impressions on one machine", f"{here.cpu_s:.0f} s {here.peak_gb:.2f} GB"
    )
    features(rows, folder, conf)
    repo = make_repo(folder / "on-spark", folder / "repo" / "data", predictors, conf)
    cost = build(folder / "tables", repo, folder / "frame", predictors)
    show(rows, f"{size.impressions:,} impressions of {size.users:,} users on Spark", cost)
    parts = sorted((folder / "frame" / "frame.parquet").glob("*.parquet"))
    count = sum(pq.read_metadata(path).num_rows for path in parts)
    rows.check("it ends: rows, parts", f"{count:,}, {len(parts)}", "> 0", count > 0)
    rows.at_most("memory of the driver", cost.driver_gb, 2, "GB")


def main() -> None:
    """Print the row; exit code 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("runs/demo"), help="a finished demo; it is only read")
    parser.add_argument("--conf", nargs="*", default=[], help="more of Spark's settings, NAME=VALUE")
    parser.add_argument("--share", type=float, default=1.0, help="of ten million impressions; 0: the demo alone")
    given = parser.parse_args()
    conf = dict(one.split("=", 1) for one in given.conf)
    conf.setdefault("spark.ui.enabled", "false")
    rows = Rows("spark")
    with tempfile.TemporaryDirectory() as scratch:
        demo(rows, given.workspace.resolve(), Path(scratch), conf)
        if given.share:
            (Path(scratch) / "large").mkdir()
            large(rows, Path(scratch) / "large", conf, given.share)
    sys.exit(rows.exit_code)


if __name__ == "__main__":
    main()
