"""Disk of a whole project: ``python -m benchmarks.scale.disk``.

A project as ``advprior init`` and ``advprior run`` make it, on a synthetic log of 5,000 users, 470 advertisers and ten
snapshots. The priors are the default list's with predictors that need no network in the places of SASRec, the text
prior and the LLM: over as many columns, with as many placebos, so that they take the same place as scored and as
published. What a network's own weights take is not in it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.scale.rows import Rows, run_child

BOUND_GB = 0.5
PROJECT = """\
tables: {folder: tables}
priors:
  - popularity
  - neighbours
  - {name: neighbours_pair, predictor: neighbours, by: advertiser_category}
  - {name: last, predictor: neighbours, settings: {half_lives_days: [2], similar: false}}
  - {name: lexical_pair, predictor: text, by: advertiser_category, settings: {base: lexical}}
  - {name: ease_pair, predictor: ease, by: advertiser_category, placebo: true}
  - {name: ease, placebo: true}
serve: ease
arms: {seeds: 1, replicates: 20, ranker: {max_rounds: 20}}
retrieval: false
"""


def files_of(folder: Path) -> Iterator[tuple[Path, int]]:
    """Files of a project and what each takes; one that has several names counts once."""
    seen = set()
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        if path.is_file() and not path.is_symlink() and (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            yield path.relative_to(folder), facts.st_size


def kind_of(path: Path) -> str:
    """What a file of a project belongs to, in words."""
    parts = path.parts
    if parts[:3] == ("feature_repo", "data", ".versions") and len(parts) > 3:
        view = parts[3].rpartition("-")[0]
        return "published priors" if view.startswith("prior_") else f"published {view}"
    if parts[0] in ("first", "feature_repo") and len(parts) > 2:
        return "/".join(parts[:2])
    return {"priors": "scored priors"}.get(parts[0], parts[0])


def by_kind(folder: Path) -> dict[str, int]:
    """Bytes by what they belong to, the most first."""
    sizes: dict[str, int] = {}
    for path, size in files_of(folder):
        sizes[kind_of(path)] = sizes.get(kind_of(path), 0) + size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def make_project(folder: Path, users: int, advertisers: int, snapshots: int) -> None:
    """A project file like the default one. Two thirds of the weeks, rounded up, have snapshots that are scored."""
    run_child([sys.executable, "-m", "advprior", "init", folder])
    weeks = next(weeks for weeks in range(snapshots, 2 * snapshots) if weeks - weeks // 3 == snapshots)
    size = ["--users", users, "--advertisers", advertisers, "--weeks", weeks]
    run_child([sys.executable, "-m", "advprior", "data", "build", "synthetic", "--out", folder / "tables", *size])
    (folder / "advprior.yaml").write_text(PROJECT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--advertisers", type=int, default=470)
    parser.add_argument("--snapshots", type=int, default=10)
    parser.add_argument("--project", type=Path, help="Measure this finished project, and make none.")
    parser.add_argument("--keep", type=Path, help="Make the project here and leave it.")
    args = parser.parse_args()
    rows = Rows("disk")
    folder = args.project or args.keep or Path(tempfile.mkdtemp(prefix="advprior-disk-"))
    try:
        if args.project is None:
            make_project(folder, args.users, args.advertisers, args.snapshots)
            # encodings and compiled models of this run are not the user's
            own = {"ADVPRIOR_ENCODINGS": str(folder / ".encodings")}
            cost = run_child([sys.executable, "-m", "advprior", "run", folder], env=own)
            rows.note("CPU-seconds of the run", f"{cost.cpu_s:.0f}")
        sizes = by_kind(folder)
        for kind, size in sizes.items():
            if size > 100_000:
                rows.note(f"  {kind}", f"{size / 1e6:.1f} MB")
        what = f"disk of a project, {args.users:,} users, {args.snapshots} snapshots, {args.advertisers} advertisers"
        rows.at_most(what, sum(sizes.values()) / 1e9, BOUND_GB, "GB")
    finally:
        if args.project is None and args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return rows.exit_code


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
