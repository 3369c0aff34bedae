"""Commands that look at a frame or a log again and again: drift, audit, promote, shares of users, readout.

    python -m benchmarks.scale.reads [--share 0.1] [--folder FOLDER] [--only drift] [--exposures 4000]

On the frame of `benchmarks.scale.frame`; ``--folder`` takes the one that this row has left there. By default a million
impressions, where a whole frame would take 1.4 to 1.9 GB. The log of exposures is made of the frame's test rows: a
slate each, with its features, of two rankers by turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import AD_ID, LABEL, SLATE_ID, TIMESTAMP, USER_ID
from advprior.store.runs import manifest_digest
from advprior.store.times import micros
from benchmarks.scale.frame import advprior, frame, prepare
from benchmarks.scale.frame_world import LAG, PLAN, WEEK, Size
from benchmarks.scale.rows import Cost, Rows
from ranking.experiment.shown import AS_OF, FEATURES, to_record
from ranking.frame.row_blocks import InParquet
from ranking.frame.views import is_ours
from ranking.models.ranker import Ranker

SHARE, PEAK_GB, PEAK_GB_OF_ALL = 0.1, 1.2, 4.0  # a part, some columns of all rows, and libraries
ARMS = ("baseline", "llm")
RANKER = "ranker: {negatives: 0.1, learning_rate: 0.2, max_rounds: 20, threads: 2}\n"


@dataclass(frozen=True)
class Places:
    """Where everything lies.

    Parameters
    ----------
    folder, scratch : Path
        Tables, repository and frame; what this row makes.
    """

    folder: Path
    scratch: Path

    @property
    def frame(self) -> Path:
        return self.folder / "frame"

    @property
    def arms(self) -> Path:
        return self.scratch / "arms.yaml"

    @property
    def log(self) -> Path:
        return self.scratch / "exposures"

    def ranker(self, arm: str) -> Path:
        return self.scratch / f"ranker_{arm}"


def make_rankers(places: Places) -> None:
    """One of each arm."""
    from importlib.resources import files

    own = files("ranking.models").joinpath("arms.yaml").read_text()
    places.arms.write_text(own.partition("\nranker:")[0] + "\n" + RANKER)
    for arm in ARMS:
        named = ("--frame", places.frame, "--arm", arm, "--arms", places.arms, "--out", places.ranker(arm))
        advprior("rank", "train", *named)


def write_log(places: Places, count: int) -> int:
    """An exposure of each slate of test rows, so many at most; how many they are."""
    rankers = [(manifest_digest(places.ranker(arm)), Ranker.load(places.ranker(arm))) for arm in ARMS]
    names = list(dict.fromkeys(name for _, ranker in rankers for name in ranker.names))
    source = InParquet(places.frame)
    tested = np.flatnonzero((source.read(["split"])["split"] == "test").to_numpy())
    columns = [USER_ID, AD_ID, SLATE_ID, TIMESTAMP, *(n for n in names if n in source.names)]
    places.log.mkdir()
    written = 0
    with (places.log / "exposures-20240408T000000-1-aaaaaa-00000.jsonl").open("w") as file:
        for block in source.blocks(columns, tested):
            for record in _records(block, rankers, written):
                if written == count:
                    return written
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
                written += 1
    return written


def _records(block: pd.DataFrame, rankers: list[tuple[str, Ranker]], first: int) -> Iterator[dict[str, Any]]:
    """Records of the slates of one block, of each ranker by turns."""
    slate = block[SLATE_ID].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(slate)) + 1), len(slate)]
    encoded = [ranker.encoder.encode(block) for _, ranker in rankers if ranker.encoder is not None]
    for number, (start, stop) in enumerate(pairwise(edges), first):
        digest, ranker = rankers[number % 2]
        assert ranker.encoder is not None
        own, time = block.iloc[start:stop], block[TIMESTAMP].iloc[start]
        snapshot = micros(pd.Series([PLAN.end - (PLAN.end - time) // WEEK * WEEK - WEEK + LAG]))[0]
        views = {feature.source for feature in ranker.features if is_ours(feature.source)}
        yield {
            "format": 1,
            "exposure_id": f"{number:032x}",
            "request_id": None,
            "time": time.isoformat(),
            "experiment": "reads",
            "arm": ("control", "treated")[number % 2],
            "user_id": str(own[USER_ID].iloc[0]),
            "service": ranker.service,
            "ranker": digest,
            "prior": None,
            "degraded": [],
            "candidates": len(own),
            "slots": [[ad, 0.01] for ad in own[AD_ID].astype(str)],
            FEATURES: to_record(encoded[number % 2][start:stop], ranker.names, ranker.encoder.categories),
            AS_OF: {view: [int(snapshot)] for view in views},
        }


def drift(places: Places, out: Path) -> Cost:
    """Test rows against training rows, of every feature, and of the published priors."""
    named = ("--frame", places.frame, "--ranker", places.ranker("llm"), "--repo", places.folder / "repo")
    return advprior("rank", "drift", *named, "--fail-on", "never", "--out", out)


def drift_online(places: Places, out: Path) -> Cost:
    """What one ranker read online against its training rows."""
    named = ("--frame", places.frame, "--ranker", places.ranker("llm"), "--exposures", places.log)
    return advprior("rank", "drift", *named, "--fail-on", "never", "--out", out)


def promote(places: Places, out: Path) -> Cost:
    """The newest two weeks, by two rankers."""
    place = out.parent / "serving"
    shutil.copytree(places.ranker("baseline"), place)
    other = ("rank", "train", "--frame", places.frame, "--arm", "baseline", "--arms", places.arms, "--seed", 1)
    advprior(*other, "--out", out)
    named = ("--to", place, "--frame", places.frame, "--replicates", 100, "--dry-run")
    return _anyhow("rank", "promote", out, *named)


def audit(places: Places, out: Path) -> Cost:
    """Both rankers' exposures against the frame of today."""
    named = ("--tables", places.folder / "tables", "--repo", places.folder / "repo", "--exposures", places.log)
    rankers = [word for arm in ARMS for word in ("--ranker", places.ranker(arm))]
    return advprior("rank", "audit", *named, *rankers, "--frame", places.frame, "--fail-on", "never", "--out", out)


def shares(places: Places, out: Path) -> Cost:
    """Two arms on all users and on three in ten."""
    named = ("--frame", places.frame, "--arms", places.arms, "--arm", "llm", "--seeds", 1, "--replicates", 20)
    return advprior("rank", "ablate", *named, "--user-shares", "0.3,1", "--out", out)


def readout(places: Places, out: Path) -> Cost:
    """Lift of one arm over the other by the log."""
    outcomes, experiment = out.with_suffix(".parquet"), out.with_suffix(".yaml")
    table = InParquet(places.frame).read([USER_ID, TIMESTAMP, LABEL])
    table[table[LABEL] == 1][[USER_ID, TIMESTAMP]].astype({USER_ID: str}).to_parquet(outcomes)
    experiment.write_text(json.dumps({"name": "reads", "salt": "a", "arms": _arms(), "planned_users": 1000}))
    return advprior("rank", "readout", "--exposures", places.log, "--outcomes", outcomes, "--experiment", experiment)


def _arms() -> list[dict[str, Any]]:
    return [{"name": name, "share": 0.5, "priors": name == "treated"} for name in ("control", "treated")]


def _anyhow(*arguments: object) -> Cost:
    """A command whose exit code tells of what was measured."""
    from benchmarks.scale.rows import run_child

    return run_child([sys.executable, "-m", "advprior", *arguments], check=False)


MEASURED: dict[str, Callable[[Places, Path], Cost]] = {
    "drift": drift,
    "drift_online": drift_online,
    "promote": promote,
    "audit": audit,
    "shares": shares,
    "readout": readout,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=SHARE, help="Of the users.")
    parser.add_argument("--folder", type=Path, help="Where the row of the frame has left its own.")
    parser.add_argument("--only", choices=MEASURED, action="append")
    parser.add_argument("--exposures", type=int, default=4_000, help="That the log has, at most.")
    options = parser.parse_args()
    size, rows = Size.share(options.share), Rows("reads")
    bound = PEAK_GB if options.share <= SHARE else PEAK_GB_OF_ALL
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory(prefix="advprior-scale-") as temporary:
        places = Places(options.folder or Path(temporary), Path(temporary))
        if not (places.folder / "frame").is_dir():
            prepare(places.folder, size)
            frame(places.folder, places.folder / "frame")
        make_rankers(places)
        count = write_log(places, options.exposures)
        rows.note("impressions; exposures with features", f"{size.impressions:,}; {count:,}")
        for name in options.only or MEASURED:
            cost = MEASURED[name](places, Path(temporary) / name)
            rows.at_most(f"{name}: peak memory", cost.peak_gb, bound, "GB")
            rows.note(f"{name}: CPU", f"{cost.cpu_s:.0f} s, exit {cost.exit_code}")
    sys.exit(rows.exit_code)


if __name__ == "__main__":
    main()
