"""What rows and users cost, and that the cost grows as docs/production.md's sizing table says.

    python -m benchmarks.scale.sizing [--share 0.1] [--online-users 200000]

The same jobs at a quarter, a half and the whole of a size: features, a frame with priors of three, and priors into
Redis. The first two sizes give a line; the third must lie on it, within a quarter: that is what lets the table be
scaled. The largest frame is the table's smallest, whose figures may not be above the table's by a quarter. The lines
between are the table itself, from the slopes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.scale.frame import frame as build_frame
from benchmarks.scale.frame import prepare
from benchmarks.scale.frame_world import Size
from benchmarks.scale.materialize import make_repo, server_cpu, timed
from benchmarks.scale.rows import Rows
from benchmarks.scale.sizing_table import documented, section

PARTS = (0.25, 0.5, 1)
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


def frames(folder: Path, share: float) -> tuple[Point, Point]:
    """Features by user and snapshot, and a frame by impression, of a share of ten million impressions."""
    features = prepare(folder, Size.share(share))
    history = folder / "repo" / "data" / "user_history"
    published = pq.read_metadata(history / "table.parquet").num_rows
    of_history = folder_bytes(history.resolve())
    out = folder / "frame"
    frame = build_frame(folder, out)
    rows = sum(pq.read_metadata(path).num_rows for path in (out / "frame.parquet").glob("*.parquet"))
    return (
        Point(published, features.cpu_s, features.peak_gb, of_history),
        Point(rows, frame.cpu_s, frame.peak_gb, folder_bytes(out)),
    )


def hold_smallest(rows: Rows, features: Point, frame: Point, store: Point) -> None:
    """Hold the table's first row, in impressions and in users, to what was measured at its size."""
    row = documented(section())[0]
    for what, figure, bound, unit in (
        (f"{row.impressions:,} impressions: rank features", features.cpu_s, row.features_s, "CPU-s"),
        ("  its memory", features.peak_gb, row.features_gb, "GB"),
        ("  its history on disk", features.bytes / 1e9, row.features_disk_gb, "GB"),
        (f"{row.impressions:,} impressions: rank frame", frame.cpu_s, row.frame_s, "CPU-s"),
        ("  its memory", frame.peak_gb, row.frame_gb, "GB"),
        ("  it on disk, of nine priors in the table", frame.bytes / 1e9, row.disk_gb, "GB"),
        (f"{row.users:,} users: into Redis", store.cpu_s, row.online_s, "CPU-s"),
        ("  its memory", store.peak_gb, row.online_gb, "GB"),
    ):
        rows.at_most(what, figure, (1 + NEAR) * bound, unit)


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
        rows.at_most(f"{what}: {name} at the whole size, off the line", abs(third / line - 1), NEAR)
        slopes.append((third - first) / (points[2].size - points[0].size))
    grown = points[2].peak_gb - points[0].peak_gb
    rows.note(
        f"{what}: memory at the largest, and grown since the smallest", f"{points[2].peak_gb:.2f}, {grown:.2f} GB"
    )
    return slopes[0], slopes[1]


def main() -> None:
    """Print the row; exit code 1 where a cost leaves its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1, help="of ten million impressions, of the largest frame")
    parser.add_argument("--online-users", type=int, default=200_000)
    given = parser.parse_args()
    rows = Rows("sizing")
    smallest = documented(section())[0]
    with tempfile.TemporaryDirectory() as scratch:
        pairs = [frames(Path(scratch) / f"world-{part}", part * given.share) for part in PARTS]
        if pairs[-1][1].size == smallest.impressions:
            hold_smallest(rows, *pairs[-1], online(Path(scratch) / "smallest", smallest.users))
        stores = [online(Path(scratch) / f"online-{part}", round(part * given.online_users)) for part in PARTS]
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
