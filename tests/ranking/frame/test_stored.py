"""Joins that lie on disk give each impression the row that a join of its own gives it, as of any time before it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from advprior.store.contract import BASELINE_SERVICE, EVENT_TIMESTAMP, IMPRESSION_ID, LLM, TIMESTAMP, prior_service
from ranking.frame.join import Joined, join_features, join_groups, scalar_refs
from ranking.frame.publish import publish_features
from ranking.frame.rows import SortedRows
from ranking.frame.stored import STRETCH, StoredJoin, StoredJoins, write_entities
from tests.ranking.stores import apply, copy_repo, publish_priors
from tests.tiny import PLAN, write_tiny


@pytest.mark.parametrize("weeks", [0, 2])
def test_a_stored_join_gives_what_joining_each_part_gives(tmp_path: Path, weeks: int) -> None:
    tables, repo = write_tiny(tmp_path / "tables", users=6), copy_repo(tmp_path / "repo")
    publish_features(tables, repo)
    publish_priors(repo, tables, LLM, seed=1)
    store = apply(repo)
    refs, keys = scalar_refs(store, [BASELINE_SERVICE, prior_service(LLM)], repo)
    rows = SortedRows.load(tables, PLAN, tmp_path)
    stored = []
    for number, group in enumerate(join_groups(store, list(refs))):
        entities, folder = tmp_path / f"entities-{number}.parquet", tmp_path / f"joined-{number}"
        count = write_entities(rows.path, entities, list(group.keys), group.edges, timedelta(weeks=weeks))
        asked = pd.read_parquet(entities)
        assert count == len(asked) < len(rows)  # each key once a stretch of time
        joined = join_features(store, [group], asked.drop(columns=STRETCH))
        columns = {ref.replace(":", "__"): joined.pop(ref.replace(":", "__")) for ref in group.refs}
        table = pa.table({name: asked[name].to_numpy() for name in [STRETCH, *group.keys]} | columns)
        folder.mkdir()
        mixed = table.take(pa.array(np.random.default_rng(0).permutation(count)))
        pq.write_table(mixed, folder / "part-0.parquet")
        stored.append(StoredJoin(folder, group, list(group.keys)))

    for part in rows.parts(400):
        entities_of_part = part.table[[IMPRESSION_ID, *keys]].assign(**{EVENT_TIMESTAMP: part.table[TIMESTAMP]})
        moved = entities_of_part.assign(**{EVENT_TIMESTAMP: part.table[TIMESTAMP] - timedelta(weeks=weeks)})
        expected, actual = (
            join_features(store, list(refs), moved),
            StoredJoins({weeks: stored}).of(entities_of_part, weeks),
        )
        for name in refs.values():
            assert_same(expected, actual, name)


def assert_same(expected: Joined, actual: Joined, name: str) -> None:
    """Cell by cell; times by the microsecond, whatever unit they are stored in."""
    theirs, ours = expected.pop(name), actual.pop(name)
    if pa.types.is_timestamp(theirs.type):
        theirs, ours = (column.cast(pa.timestamp("us", tz="UTC")) for column in (theirs, ours))
    assert ours.cast(theirs.type).equals(theirs), name
