"""Histories in blocks on a disk are those of one process, to the bit, and so are the counts of everyone."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advprior.history import stored
from advprior.history.catalog import Catalog
from advprior.history.counts import decayed, popularity
from advprior.history.fingerprints import input_keys
from advprior.history.histories import Histories
from advprior.history.read import load_histories, load_people
from advprior.history.stored import BlockWork, StoredHistories, build_block, finish_blocks, is_finished, sort_events
from advprior.history.subset import part_of
from advprior.store.errors import AdvpriorError
from advprior.store.times import DAY_US
from tests.tiny import write_tiny


def lay_out(tables: Path, folder: Path, catalog: Catalog) -> StoredHistories:
    """As a cluster does it, in this process."""
    people = load_people(tables, catalog)
    sort_events(tables, people.users, folder)
    work = BlockWork(folder, len(people), tuple(catalog.ids))
    assert not is_finished(folder, len(people))
    finish_blocks(work, [build_block(work, number) for number in reversed(range(len(work)))][::-1])
    assert is_finished(folder, len(people))
    return StoredHistories.open(people, folder, len(catalog))


def assert_equal(ours: Histories, theirs: Histories) -> None:
    for field in fields(Histories):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            np.testing.assert_array_equal(one, other, err_msg=field.name)
        else:
            assert one == other, field.name


def change_tables(folder: Path, kind: str) -> None:
    """Rewrite the events in one of the ways that tables differ in."""
    path = folder / "events.parquet"
    events = pd.read_parquet(path)
    rng = np.random.default_rng(0)
    if kind == "bare":
        events = events.drop(columns=[c for c in ("text", "category", "value") if c in events])
    else:
        words = rng.choice(["rye", "tea", "soap", " ", ""], len(events))
        # texts of the first users only, so that some blocks have none
        events["text"] = np.where(events.user_id <= sorted(events.user_id.unique())[5], words, None)
        events["arrived"] = events.timestamp + pd.to_timedelta(rng.integers(0, 3, len(events)) * 12, unit="h")
        events = pd.concat([events, events.sample(60, random_state=1)])  # some twice
    if kind == "quiet":  # nobody of the last blocks has an event
        events = events[events.user_id < sorted(events.user_id.unique())[7]]
    events.sample(frac=1, random_state=2).to_parquet(path, index=False)


@pytest.mark.parametrize("kind", ["full", "bare", "quiet"])
def test_histories_are_those_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(stored, "BLOCK_USERS", 7)
    tables = write_tiny(tmp_path / "tables", users=30)
    change_tables(tables, kind)
    whole, catalog = load_histories(tables)
    everyone = lay_out(tables, tmp_path / "out" / "histories", catalog)
    assert everyone.users == whole.users
    for users in (np.arange(30), np.asarray([3]), np.asarray([0, 6, 7, 8, 21, 29]), np.zeros(0, np.int64)):
        part, local = everyone.of(users.astype(np.int64))
        assert_equal(part, part_of(whole, users.astype(np.int64)))
        assert local.tolist() == list(range(len(users)))
    moments = np.asarray(whole.time[[len(whole.time) // 3, -1]]) + np.asarray([0, DAY_US])
    keys = [input_keys(block, int(moments[0]), "m") for block in everyone.blocks()]
    np.testing.assert_array_equal(np.concatenate(keys), input_keys(whole, int(moments[0]), "m"))
    for half_life in (3.0, 60.0):
        ours = popularity(everyone.of(np.zeros(0, np.int64))[0], moments, half_life, len(catalog))
        np.testing.assert_array_equal(ours, popularity(whole, moments, half_life, len(catalog)))


def test_other_tables_in_the_same_folder_are_not_taken_for_the_first(tmp_path: Path) -> None:
    """Workers outlive a score, and a refresh scores into the same folder each time."""
    for users in (12, 20):
        tables = write_tiny(tmp_path / f"tables-{users}", users=users)
        whole, catalog = load_histories(tables)
        everyone = lay_out(tables, tmp_path / "histories", catalog)
        assert_equal(everyone.of(np.arange(users))[0], whole)


def test_who_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    work = BlockWork(tmp_path / "elsewhere", 3, ("a",))
    with pytest.raises(AdvpriorError, match="PRI074"):
        build_block(work, 0)
    with pytest.raises(AdvpriorError, match="PRI074"):
        stored.Blocks(work.folder, stored.BlockFacts(), "now").with_events(_nobody(3), np.arange(3))


def _nobody(count: int) -> Histories:
    zeros: Any = np.zeros(0, np.int64)
    return Histories(tuple(map(str, range(count))), ("",) * count, np.zeros(count + 1, np.int64), zeros, zeros)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_counts_do_not_hang_on_the_parts_that_rows_come_in(data: st.DataObject) -> None:
    times = np.sort(np.asarray(data.draw(st.lists(st.integers(0, 50), max_size=30)), np.int64)) * (DAY_US // 7)
    advertisers = np.random.default_rng(len(times)).integers(0, 3, len(times))
    moments = np.unique(data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=4))) * (DAY_US // 7)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(times)), max_size=4)))
    parts = list(zip(np.split(times, cuts), np.split(advertisers, cuts), strict=True))
    whole = decayed([(times, advertisers)], moments, 2.5, 3)
    np.testing.assert_array_equal(decayed(parts, moments, 2.5, 3), whole)
    age = (moments[:, None] - times[None]) / DAY_US
    weight = np.where(age > 0, 0.5 ** (age / 2.5), 0.0)
    np.testing.assert_allclose(whole, weight @ np.eye(3)[advertisers], rtol=1e-12)
