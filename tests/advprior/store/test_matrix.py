"""A compressed array says what the array said, however it is asked; a file that is none is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advprior.store import matrix as room
from advprior.store.matrix import MatrixWriter, matrix_path, open_matrix, share_matrix, write_matrix

SPECIAL = np.asarray([0.0, -0.0, np.nan, -np.inf, np.finfo(np.float32).tiny, -3.25], np.float32)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 60),
    st.sampled_from([None, 1, 7]),
    st.sampled_from([np.float32, np.int32]),
    st.integers(8, 200),
    st.randoms(use_true_random=False),
)
def test_every_way_to_ask(tmp_path: Path, monkeypatch, rows: int, width: int | None, dtype, group: int, random) -> None:
    monkeypatch.setattr(room, "GROUP_BYTES", group)
    rng = np.random.default_rng(random.randrange(2**32))
    shape = (rows,) if width is None else (rows, width)
    array = rng.choice(SPECIAL, shape) if dtype == np.float32 else rng.integers(-9, 2**31, shape, dtype=np.int32)
    path = tmp_path / "log_probs.npy"
    with MatrixWriter(path, shape[1:], dtype) as writer:
        for block in np.array_split(array, rng.integers(1, 5)):
            writer.write(block)
    read = open_matrix(path)
    assert (read.shape, read.dtype, read.ndim, len(read)) == (array.shape, array.dtype, array.ndim, rows)
    some = rng.integers(0, rows, 20)
    for key in (slice(None), slice(1, None, 3), some, some.reshape(4, 5), rng.random(rows) < 0.5, int(some[0]), -1):
        np.testing.assert_array_equal(np.asarray(read[key]).view(np.uint32), np.asarray(array[key]).view(np.uint32))
    if width is not None:
        columns = rng.integers(0, width, 20)
        np.testing.assert_array_equal(read[some, columns], array[some, columns])
    np.testing.assert_array_equal(np.asarray(read), array)
    for key in (rows, np.asarray([0, rows])):
        with pytest.raises(IndexError):
            read[key]


def test_an_array_without_rows_keeps_its_width(tmp_path: Path) -> None:
    MatrixWriter(tmp_path / "a.npy", (5,), np.float32).close()
    assert open_matrix(tmp_path / "a.npy").shape == (0, 5)


def test_what_an_earlier_version_wrote_is_mapped_and_nothing_else_is_taken(tmp_path: Path) -> None:
    assert matrix_path(tmp_path / "a.npy") is None
    with pytest.raises(FileNotFoundError):
        open_matrix(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.eye(3))
    np.testing.assert_array_equal(open_matrix(tmp_path / "a.npy"), np.eye(3))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"user_id": ["u"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="no array"):
        open_matrix(tmp_path / "b.npy")


def test_a_shared_array_outlives_the_first_of_its_names(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_matrix(first / "a.npy", [np.eye(3)])
    share_matrix(first / "a.npy", second)
    opened = open_matrix(first / "a.npy")
    (first / "a.parquet").unlink()
    np.testing.assert_array_equal(open_matrix(second / "a.npy")[:], np.eye(3))
    (second / "a.parquet").unlink()
    np.testing.assert_array_equal(opened[:], np.eye(3))
