"""What choosing candidates costs in a request, by the number of ads: exact search against the index, in one process.

``python -m benchmarks.candidates --workspace WS`` takes a finished demo workspace whose store is materialized. Larger
catalogs are made of it: each new ad has the advertiser, category and features of a real one, and an id of its own whose
vector is drawn from those that the towers learned. First the search alone, then the stage inside a request, then
``POST /rank`` without candidates over HTTP (load from a second process), every side in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.contract import AD_ID, ADVERTISER_ID, CATEGORY
from ranking.candidates.inputs import Vocabulary
from ranking.candidates.nearest import Nearest, best
from ranking.candidates.towers import Towers
from ranking.service.ads import AdTable
from ranking.service.app import create_app, make_engine
from ranking.service.engine import Engine
from ranking.service.quota import read_quota
from ranking.service.settings import ServeSettings
from ranking.service.slate import Query
from ranking.service.towers import TowerSource, load_towers

EXACT, NEVER = 0, 1 << 40


def grown(engine: Engine, towers: Towers, count: int, seed: int = 0) -> tuple[AdTable, Towers]:
    """A table of so many ads, and towers that know them."""
    real, rng = engine.resources.table, np.random.default_rng(seed)
    source = rng.integers(0, len(real.ids), count)
    ids = [f"{real.ids[i]}/{n}" for n, i in enumerate(source.tolist())]
    at = np.append(source, len(real.ids))
    table = AdTable(
        ids,
        [real.advertisers[i] for i in source],
        [real.categories[i] for i in source],
        {ad: i for i, ad in enumerate(ids)},
        {name: column[at] for name, column in real.values.items()},  # noqa: PD011
        real.view_of,
        {name: moments[at] for name, moments in real.available_us.items()},
        real.read_us,
    )
    for catalog in engine.resources.catalogs.histories.values():
        for level in catalog.ids:
            table._by_catalog[(catalog.version, level)] = real.history_ids(catalog, level)[at]
    names, arrays = towers.vocabulary, dict(towers.arrays)
    known = len(names.ads)
    drawn = rng.integers(0, known, count)
    for name in ("ad_in", "ad_bias"):
        own = arrays[name][:known][drawn]
        own = own + (0.3 * arrays[name][:known].std() * rng.standard_normal(own.shape)).astype(np.float32)
        arrays[name] = np.concatenate([own, arrays[name][known:]])
    vocabulary = Vocabulary(names.advertisers, names.categories, names.pairs, tuple(ids), names.profiles)
    return table, Towers(vocabulary, arrays, towers.facts)


def quantiles(times: list[float]) -> str:
    p50, p99 = np.percentile(np.array(times) * 1e3, [50, 99])
    return f"p50 {p50:7.3f}  p99 {p99:7.3f} ms"


def alternately(sides: Mapping[str, Callable[[int], Any]], count: int, rounds: int = 4) -> dict[str, list[float]]:
    """Times of each side, in turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            for i in range(count // rounds):
                begin = time.perf_counter()
                work(i)
                times[name].append(time.perf_counter() - begin)
    return times


def _ask(side: Nearest, asked: list[Any], k: int, i: int) -> Any:
    return side.top(asked[i % len(asked)], k)


def search(engine: Engine, towers: Towers, users: list[str], sizes: list[int], k: int) -> None:
    print(f"\nsearch alone, k = {k}")
    source: Any = engine.resources.source
    for size in sizes:
        table, mine = grown(engine, towers, size)
        frame = pd.DataFrame({AD_ID: table.ids, ADVERTISER_ID: table.advertisers, CATEGORY: table.categories})
        vectors, bias = mine.ads(frame)
        whole = np.concatenate([vectors, bias[:, None]], axis=1)
        asked: list[Any] = [source.user_vector(engine.resources.reader.read_user(user))[0] for user in users]
        probes = source._probes(engine.resources.table)
        begin = time.perf_counter()
        index = Nearest(whole, exact_up_to=EXACT, probes=probes, k=k)
        built = time.perf_counter() - begin
        exact = Nearest(whole, exact_up_to=NEVER)
        sides = {name: partial(_ask, side, asked, k) for name, side in (("exact", exact), ("index", index))}
        times = alternately(sides, 800)
        recalls = [
            len(np.intersect1d(index.top(user, k)[0], best(whole @ user, k))) / min(k, size) for user in asked
        ]  # real users, whom the index was not tuned on
        ratio = np.median(times["exact"]) / np.median(times["index"])
        print(
            f"{size:>8,} ads  exact {quantiles(times['exact'])}   index {quantiles(times['index'])}   {ratio:4.1f}x   "
            f"recall {np.mean(recalls):.4f} (worst {np.min(recalls):.3f})   {index.looked_into}/{index.lists} lists, "
            f"built in {built:.1f} s",
            flush=True,
        )


def requests(options: argparse.Namespace, engine: Engine, towers: Towers, users: list[str], port: int) -> None:
    quota = read_quota(options.candidates, options.towers, engine.resources.rankers.priors.plan.predictors)
    real = engine.resources.table
    with tempfile.TemporaryDirectory() as folder:
        bodies = Path(folder) / "bodies.jsonl"
        bodies.write_text("\n".join(json.dumps({"user_id": user, "slots": 10}) for user in users))
        for limit in options.limits:
            print(f"\nPOST /rank without candidates, {limit} chosen, 10 returned, {quota.share:.0%} for predicted")
            engine.resources.default_candidates = limit
            for size in [0, *options.sizes]:
                table, mine = (real, towers) if not size else grown(engine, towers, size)
                sides = {"exact": NEVER} | ({"index": EXACT} if size else {})
                sources = {}
                for name, edge in sides.items():
                    sources[name] = TowerSource(
                        mine, quota, engine.resources.reader, engine.resources.catalogs, limit=limit, exact_up_to=edge
                    )
                    sources[name].prepare(table)
                stages: dict[str, list[float]] = {name: [] for name in sides}
                answers: dict[str, list[Any]] = {name: [] for name in sides}
                for _ in range(3):
                    for name, source in sources.items():
                        # one after the other: the catalog is swapped between requests, never within one
                        engine.resources.table, engine.resources.source = table, source
                        for loaded in (engine.resources.rankers.priors, engine.resources.rankers.plain):
                            loaded.plan.ads(table)
                        for i in range(150):
                            slate = engine.rank(Query(users[i % len(users)], 10))
                            stages[name].append(slate.timings["candidates"])
                        load = [sys.executable, "-m", "benchmarks.serve_load", str(port), "/rank", str(bodies)]
                        done = subprocess.run(
                            [*load, str(options.seconds), "1", "0"], check=True, capture_output=True, text=True
                        )
                        answers[name].append(json.loads(done.stdout))
                        assert not answers[name][-1]["errors"], answers[name][-1]
                        assert not answers[name][-1]["degraded"], answers[name][-1]
                for name in sides:
                    got = answers[name]
                    p50, p99 = (np.median([a[q] for a in got]) for q in ("p50", "p99"))
                    print(
                        f"{len(table.ids):>8,} ads {name:<6} /rank p50 {p50:6.2f}  p99 {p99:6.2f} ms   "
                        f"stage candidates {quantiles(stages[name])}",
                        flush=True,
                    )
                engine.resources.table = real


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument(
        "--now", type=datetime.fromisoformat, required=True, help="A moment at which the store is fresh."
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--limits", type=int, nargs="+", default=[20, 500])
    parser.add_argument("--search-sizes", type=int, nargs="+", default=[1000, 10_000, 20_000, 50_000, 100_000, 200_000])
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    work = options.workspace
    options.towers, options.candidates = work / "towers", work / "candidates"
    settings = ServeSettings(
        repo=work / "feature_repo",
        ranker=work / "ranker",
        fallback=work / "ranker_baseline",
        api_key=False,
        refresh_s=1e6,
        towers=options.towers,
        candidates=options.candidates,
        clock_start=options.now,
    )
    print(f"{platform.platform()}, " + ", ".join(f"{p} {version(p)}" for p in ("numpy", "faiss-cpu", "lightgbm")))
    engine = make_engine(settings)
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(create_app(settings, engine), port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    towers = load_towers(options.towers)
    users = pd.read_parquet(work / "tables" / "users.parquet")["user_id"].astype(str).tolist()
    for k in options.limits:
        search(engine, towers, users, options.search_sizes, k)
    requests(options, engine, towers, users, port)
    server.should_exit = True
    thread.join(20)


if __name__ == "__main__":
    main()
