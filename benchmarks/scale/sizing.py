"""What rows, users and advertisers cost, and that the cost grows as docs/production.md's sizing table says.

    python -m benchmarks.scale.sizing [--users 500]

First the smallest row of the table itself: no figure may be above the table's by a quarter. Then the same jobs at one,
two and four times a size: features, a frame with one predictor's priors, and priors into Redis. The first two sizes
give a line; the third must lie on it, within a quarter: that is what lets the table be scaled. The last lines are the
slopes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from advprior.store.contract import LLM
from benchmarks.scale.frame import frame as build_frame
from benchmarks.scale.frame import prepare
from benchmarks.scale.frame_world import Size
from benchmarks.scale.materialize import make_repo, server_cpu, timed
from benchmarks.scale.rows import Rows, run_child
from benchmarks.scale.sizing_table import documented, section

FACTORS = (1, 2, 4)
NEAR = 0.25  # of what the line says: figures of a busy machine vary by some hundredths


@dataclass(frozen=True)
class Point:
    """One size and what it took.

    Attributes
    ----------
    size : float
        Rows or users.
    cpu_s, peak_gb, bytes : float
        Bytes are what is left on disk, or in Redis.
    """

    size: float
    cpu_s: float
    peak_gb: float
    bytes: float


def folder_bytes(folder: Path) -> int:
    """Bytes of all files, links not followed twice."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def frames(folder: Path, users: int) -> tuple[Point, Point]:
    """Features by user and snapshot, and a frame by impression, of a tiny world of so many users."""
    from tests.ranking.stores import apply, copy_repo, publish_priors
    from tests.tiny import write_tiny

    tables, repo = write_tiny(folder / "tables", users=users), copy_repo(folder / "repo")
    command = [sys.executable, "-m", "advprior", "rank"]
    inputs = ["--tables", tables, "--repo", repo]
    features = run_child([*command, "features", *inputs])
    of_features = folder_bytes(repo / "data")
    publish_priors(repo, tables, LLM)
    apply(repo)
    out = folder / "frame"
    frame = run_child([*command, "frame", *inputs, "--predictors", LLM, "--out", out])
    rows = sum(pq.read_metadata(path).num_rows for path in (out / "frame.parquet").glob("*.parquet"))
    published = pq.read_metadata(repo / "data" / "user_history" / "table.parquet").num_rows
    return (
        Point(published, features.cpu_s, features.peak_gb, of_features),
        Point(rows, frame.cpu_s, frame.peak_gb, folder_bytes(out)),
    )


def hold_smallest(rows: Rows, folder: Path) -> None:
    """Measure the table's first row."""
    row = documented(section())[0]
    prepare(folder, Size.share(row.impressions / Size().impressions))
    frame = build_frame(folder, folder / "frame")
    store = online(folder / "online", row.users)
    what = f"{row.impressions:,} impressions, {row.users:,} users"
    for name, figure, bound, unit in (
        ("rank frame", frame.cpu_s, row.frame_s, "CPU-s"),
        ("its memory", frame.peak_gb, row.frame_gb, "GB"),
        ("it on disk", folder_bytes(folder / "frame") / 1e9, row.disk_gb, "GB"),
        ("into Redis", store.cpu_s, row.online_s, "CPU-s"),
        ("its memory", store.peak_gb, row.online_gb, "GB"),
    ):
        rows.at_most(f"{what}: {name}", figure, (1 + NEAR) * bound, unit)


def online(folder: Path, users: int) -> Point:
    """Priors over 100 advertisers into Redis."""
    import redis

    from tests.service.workspaces import redis_server

    folder.mkdir()
    with redis_server(folder) as server:
        client = redis.Redis(port=server.port)
        client.config_set("appendonly", "no")
        repo = make_repo(folder / "repo", server.port, users, 100, columnar=True)
        before = client.info("memory")["used_memory"]
        cost, by_server, _ = timed(repo, server.port)
        assert server_cpu(server.port) >= by_server
        return Point(users, cost.cpu_s + by_server, cost.peak_gb, client.info("memory")["used_memory"] - before)


def hold(rows: Rows, what: str, points: list[Point]) -> tuple[float, float]:
    """Check the third point against the line of the first two; the slopes of CPU and bytes."""
    slopes = []
    for name in ("cpu_s", "bytes"):
        first, second, third = (getattr(point, name) for point in points)
        slope = (second - first) / (points[1].size - points[0].size)
        line = first + slope * (points[2].size - points[0].size)
        rows.at_most(f"{what}: {name} at four times the size, off the line", abs(third / line - 1), NEAR)
        slopes.append((third - first) / (points[2].size - points[0].size))
    grown = points[2].peak_gb - points[0].peak_gb
    rows.note(
        f"{what}: memory at the largest, and grown since the smallest", f"{points[2].peak_gb:.2f}, {grown:.2f} GB"
    )
    return slopes[0], slopes[1]


def main() -> None:
    """Print the row; exit code 1 where a cost leaves its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=500, help="of the smallest world")
    parser.add_argument("--online-users", type=int, default=50_000)
    given = parser.parse_args()
    rows = Rows("sizing")
    with tempfile.TemporaryDirectory() as scratch:
        hold_smallest(rows, Path(scratch) / "smallest")
        pairs = [frames(Path(scratch) / f"world-{factor}", factor * given.users) for factor in FACTORS]
        stores = [online(Path(scratch) / f"online-{factor}", factor * given.online_users) for factor in FACTORS]
    units = {
        "features, a user and snapshot": [pair[0] for pair in pairs],
        "frame, an impression": [pair[1] for pair in pairs],
        "Redis, a user": stores,
    }
    for what, points in units.items():
        cpu, size = hold(rows, what, points)
        rows.note(f"{what}: a million of them", f"{1e6 * cpu:.0f} CPU-s, {size / 1e3:.3g} GB")
    sys.exit(rows.exit_code)


if __name__ == "__main__":
    main()
