"""Links between advertisers where they are too many for an [N, N] array: of each the strongest few, block by block.

Cosines over who turned to both are computed for a block of advertisers at a time, and the strongest of each are kept.
EASE's column j is the ridge regression of advertiser j on all others (Steck, WWW 2019); here it is that on those that
most users have in common with j, each a small system of its own: fsSLIM (Ning & Karypis, "SLIM: sparse linear methods
for top-n recommender systems", ICDM 2011) with the closed form's ridge. L3AE's pull to the texts enters each system as
it enters the whole. With as many links as there are others, all of them are the dense matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.history.histories import Histories
from advprior.store.arrays import Double, Float, Int
from advprior.store.progress import tracked

WIDE = 10_000  # advertisers beyond which links are sparse
PRODUCTS = 20_000_000  # of pairs of events of one user that are multiplied at once
COMMON = 1000  # advertisers with users in common that are known of each one, in the small systems

#: A `scipy.sparse.csr_matrix` [N, N]; scipy is imported where it is needed.
Links = Any


def incidence(histories: Histories, size: int) -> Any:
    """Who turned to whom: a sparse matrix [U, N] of ones."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(histories.advertiser), np.float32)
    events = csr_matrix((ones, (histories.user_of_row, histories.advertiser)), shape=(len(histories), size))
    events.data[:] = 1.0  # whatever their number
    return events


def neighbour_links(histories: Histories, size: int, most: int) -> Links:
    """Cosines between advertisers over who turned to both, of each the ``most`` largest; nothing on the diagonal.

    >>> h = Histories(("u", "v"), ("", ""), np.array([0, 2, 3]), np.array([1, 2, 1]), np.array([0, 1, 0]))
    >>> neighbour_links(h, 2, 5).toarray().astype(float).round(3).tolist()
    [[0.0, 0.707], [0.707, 0.0]]
    """
    from scipy.sparse import diags

    events = incidence(histories, size)
    users = np.asarray(events.sum(0)).ravel()
    return _products(events @ diags((1.0 / np.sqrt(np.maximum(users, 1.0))).astype(np.float32)), most)


def common_users(histories: Histories, size: int, most: int = COMMON) -> tuple[Links, Double]:
    """How many users turned to both of two advertisers, of each the ``most`` largest, and to each alone [N]."""
    events = incidence(histories, size)
    return _products(events, most), np.asarray(events.sum(0), np.float64).ravel()


def text_links(vectors: Any, most: int) -> Links:
    """Cosines of texts, of each advertiser the ``most`` largest but itself, of unit vectors [N, H] (or sparse ones)."""
    from scipy.sparse import csr_matrix, vstack

    size, step = vectors.shape[0], max(PRODUCTS // max(vectors.shape[0], 1), 1)
    parts = []
    for start in tracked(range(0, size, step), "links of texts", "block"):
        cosine = vectors[start : start + step] @ vectors.T
        block = cosine.toarray() if hasattr(cosine, "toarray") else cosine
        block[np.arange(len(block)), start + np.arange(len(block))] = 0.0
        count = min(most, size)
        nearest = np.argpartition(-np.abs(block), count - 1, axis=1)[:, :count]
        row, column = np.repeat(np.arange(len(block)), count), nearest.ravel()
        beside = row + start != column  # a zero stays among the others: it is known to be one
        row, column = row[beside], column[beside]
        parts.append(csr_matrix((block[row, column].astype(np.float32), (row, column)), shape=(len(block), size)))
    return vstack(parts).tocsr()


def _products(columns: Any, most: int) -> Links:
    """``columns' @ columns`` of a sparse matrix [U, N], the ``most`` largest of each row, without the diagonal."""
    from scipy.sparse import vstack

    rows = columns.T.tocsr()
    # what a row costs: all that its users turned to
    cost = np.cumsum(rows.astype(bool) @ np.diff(columns.tocsr().indptr))
    parts, start = [], 0
    while start < rows.shape[0]:
        stop = int(np.searchsorted(cost, (cost[start - 1] if start else 0) + PRODUCTS, side="right"))
        stop = max(stop, start + 1)
        parts.append(_largest((rows[start:stop] @ columns).tocoo(), start, most))
        start = stop
    return vstack(parts).tocsr()


def _largest(block: Any, start: int, most: int) -> Links:
    """The ``most`` largest entries of each row of a block [b, N] that starts at row ``start`` of a square matrix."""
    from scipy.sparse import csr_matrix

    beside = block.row + start != block.col
    row, column, value = block.row[beside], block.col[beside], block.data[beside]
    order = np.lexsort([column, -value, row])
    row, column, value = row[order], column[order], value[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    keep = place < most
    return csr_matrix((value[keep].astype(np.float32), (row[keep], column[keep])), shape=block.shape)


def local_weights(
    common: tuple[Links, Double], ridge: float, most: int, semantic: Links | None = None, pull: float = 0.0
) -> Links:
    """EASE's or L3AE's matrix [N, N] from small systems: of each column the ``most`` with most users in common.

    Parameters
    ----------
    common : tuple
        Of `common_users`.
    ridge : float
    most : int
    semantic : sparse [N, N], optional
        What the texts say of each column: the weights are pulled to it.
    pull : float
        How hard.
    """
    both, users = common
    return _solved(_Systems(both.tocsr(), users, ridge + pull), most, semantic, pull)


def semantic_weights(cosine: Links, vectors: Any, ridge: float) -> Links:
    """The semantic matrix from small systems: EASE of the texts' cosines, over those that `text_links` kept."""
    from scipy.sparse import csc_matrix

    parts = []
    for column, others in _others(cosine, cosine.shape[0]):
        part = vectors[others]
        gram = np.asarray((part @ part.T).todense() if hasattr(part, "todense") else part @ part.T, np.float64)
        near = cosine[column, others].toarray().ravel() if len(others) else np.zeros(0)
        parts.append((column, others, np.linalg.solve(gram + ridge * np.eye(len(others)), near)))
    return _columns(parts, cosine.shape[0], csc_matrix)


class _Systems:
    """Small Gram matrices out of a large sparse one."""

    def __init__(self, both: Any, users: Double, ridge: float) -> None:
        self._both, self._users, self._ridge = both, users, ridge
        self.size = both.shape[0]
        self._place = np.full(self.size, -1, np.int64)

    def order(self, column: int, most: int) -> Int:
        """Those with most users in common with a column, ascending by number."""
        if most >= self.size - 1:  # two without a user in common may still have a third in common
            return np.delete(np.arange(self.size, dtype=np.int64), column)
        span = slice(self._both.indptr[column], self._both.indptr[column + 1])
        others, value = self._both.indices[span], self._both.data[span]
        chosen: Int = np.sort(others[np.argsort(-value, kind="stable")[:most]]).astype(np.int64)
        return chosen

    def gram(self, others: Int) -> Double:
        """Users in common of every two of ``others`` [m, m], with the ridge on the diagonal."""
        rows = self._both[others]
        self._place[others] = np.arange(len(others))
        place = self._place[rows.indices]
        inside = place >= 0
        out = np.zeros((len(others), len(others)))
        out[np.repeat(np.arange(len(others)), np.diff(rows.indptr))[inside], place[inside]] = rows.data[inside]
        self._place[others] = -1
        # what is kept of one of two is known of both
        out = np.maximum(out, out.T)
        out[np.diag_indices(len(others))] = self._users[others] + self._ridge
        return out

    def with_column(self, others: Int, column: int) -> Double:
        """Users in common with a column [m]."""
        row = self._both[column].toarray().ravel()
        value: Double = row[others].astype(np.float64)
        return value


def _solved(systems: _Systems, most: int, semantic: Links | None, pull: float) -> Links:
    from scipy.sparse import csc_matrix

    texts = None if semantic is None else semantic.tocsc()
    parts = []
    for column in tracked(range(systems.size), "linear autoencoder", "advertiser"):
        others = systems.order(column, most)
        near = np.zeros(0, np.int64)
        if texts is not None:
            span = slice(texts.indptr[column], texts.indptr[column + 1])
            near, value = texts.indices[span].astype(np.int64), texts.data[span]
            others = np.union1d(others, near)
        if not len(others):
            continue
        right = systems.with_column(others, column)
        if texts is not None:
            right[np.searchsorted(others, near)] += pull * value
        parts.append((column, others, np.linalg.solve(systems.gram(others), right)))
    return _columns(parts, systems.size, csc_matrix)


def _others(links: Links, size: int) -> Iterator[tuple[int, Int]]:
    for column in range(size):
        yield column, np.sort(links.indices[links.indptr[column] : links.indptr[column + 1]]).astype(np.int64)


def _columns(parts: list[tuple[int, Int, npt.NDArray[Any]]], size: int, make: Any) -> Links:
    """A sparse matrix [N, N] of some columns' entries."""
    if not parts:
        return make((size, size), dtype=np.float32).tocsr()
    column = np.repeat([part[0] for part in parts], [len(part[1]) for part in parts])
    row, value = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
    return make((value.astype(np.float32), (row, column)), shape=(size, size)).tocsr()


def scaled_links(links: Links) -> Links:
    """As `advprior.predictors.autoencoders.scaled`."""
    largest = float(abs(links).max(axis=1).toarray().mean()) if links.shape[0] else 0.0
    return (links / np.float32(largest or 1.0)).tocsr()


def linked(own: Any, *factors: Links) -> Any:
    """``max(log1p(own)·S, 0)`` [P, N] of own decayed events [P, N], all sparse; S is the product of the factors."""
    from scipy.sparse import csr_matrix

    result = csr_matrix(own, dtype=np.float32).log1p()
    for factor in factors:
        result = (result @ factor).tocsr()
    result.data = np.maximum(result.data, 0.0)
    result.eliminate_zeros()
    result.sort_indices()
    return result


def dense_linked(own: Float, links: Links) -> Float:
    """As `linked`, as an array [P, N]."""
    result: Float = linked(own, links).toarray().astype(np.float32)
    return result
