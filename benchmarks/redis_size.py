"""What a user's row costs in Redis, by number of advertisers: measured on a real redis-server.

    python -m benchmarks.redis_size

Feast keeps one hash a user with the fields of all views. Here: profile, history counts, and one predictor's priors
over N advertisers, or the K likeliest of N. MEMORY USAGE counts the keys and values of a hash with Redis' overhead.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
SIZES = ((0, None), (100, None), (1_000, None), (10_000, None), (50_000, 100))


def measure() -> list[tuple[int, int | None, int, float, float]]:
    """Rows of N, K, users, mean MEMORY USAGE of a user's hash in bytes, growth of used_memory per user."""
    import redis

    from advprior.store.contract import LLM, prior_view
    from advprior.store.tables import load_tables, load_time_plan
    from ranking.frame.publish import publish_features
    from tests.ranking.stores import apply, copy_repo, publish, random_priors
    from tests.service.workspaces import materialize, redis_server, with_top_k_and_interests
    from tests.tiny import write_tiny

    rows = []
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
        root = Path(folder)
        tables = write_tiny(root / "tables", users=100)
        plan, users = load_time_plan(tables), load_tables(tables, "users")["users"].user_id.tolist()
        last = plan.snapshots()[-1]
        client = redis.Redis(port=server.port)
        client.config_set("appendonly", "no")
        for size, top in SIZES:
            repo = copy_repo(root / f"repo_{size}")
            text = (repo / "feature_store.yaml").read_text().replace("type: sqlite", "type: redis")
            text = text.replace("path: data/online_store.db", f"connection_string: localhost:{server.port}")
            (repo / "feature_store.yaml").write_text(text)
            publish_features(tables, repo)
            if size:
                names = [f"a{i}" for i in range(size)]
                files = random_priors(users, names, [last], plan.lag, plan.finetune_end, 0)
                if top:
                    files = with_top_k_and_interests(files, top)
                publish(repo, prior_view(LLM), files)
            apply(repo)
            client.flushall()
            before = client.info("memory")["used_memory"]
            materialize(repo, last + plan.lag)
            after = client.info("memory")["used_memory"]
            bytes_of = [client.memory_usage(key, samples=0) or 0 for key in client.scan_iter(count=1000)]
            largest = sorted(bytes_of)[-len(users) :]  # the others are ads
            rows.append((size, top, len(users), sum(largest) / len(largest), (after - before) / len(users)))
            shutil.rmtree(repo)
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    print("advertisers  kept  users  bytes a user (MEMORY USAGE)  used_memory a user")
    for size, top, users, mean, grown in measure():
        print(f"{size:>11,}  {top or '-':>4}  {users:>5}  {mean:>27,.0f}  {grown:>18,.0f}")


if __name__ == "__main__":
    main()
