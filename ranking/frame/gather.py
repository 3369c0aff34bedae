"""Follow the pointers that the point-in-time join returns: counts and log-probabilities from mapped files.

A joined vector would cost 4N bytes an impression; a pointer costs eight, and the files are read once, in order.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advprior.store.arrays import Float, Int
from advprior.store.contract import (
    CATALOG_FILE,
    INTEREST_MATRIX_FILE,
    INTERESTS_FILE,
    MATRIX_FILE,
    TAIL_FILE,
    TOP_INDEX_FILE,
    pair_id,
)
from advprior.store.matrix import Matrix, MatrixFile, at_hand, matrix_path, open_matrix
from ranking.frame.counts import codes_of

if TYPE_CHECKING:
    import pandas as pd

TOP = 20
_AT_ONCE = 4_000_000  # log-probabilities compared at a time


def gather_history(folder: Path, files: tuple[str, str], size: int, rows: Int, ids: Int) -> Float:
    """Counts and recency of one level of a stream.

    Parameters
    ----------
    folder : Path
        Published ``user_history``.
    files : (keys file, values file)
        `ranking.frame.streams.Stream.files`.
    size : int
        Ids of the numbering: a key is row · size + id.
    rows, ids : int arrays [impressions]
        ``history_row`` (−1: no history row) and the id of the ad at this level (−1: it has none).

    Returns
    -------
    float32 [impressions, values]
        Counts (0 when nothing is there), then days since the last (NaN then), as `Stream.quantities` has them.
        All NaN where row or id is −1.
    """
    keys = np.load(folder / files[0], mmap_mode="r")
    values = np.load(folder / files[1], mmap_mode="r")
    out = np.zeros((len(rows), values.shape[1]), dtype=np.float32)
    out[:, -1] = np.nan
    answerable = np.flatnonzero((rows >= 0) & (ids >= 0))
    if len(keys) and len(answerable):
        wanted = rows[answerable] * size + ids[answerable]
        # ascending look-ups walk the file once instead of jumping about in it, between the first and the last alone
        order = np.argsort(wanted)
        first, last = np.searchsorted(keys, wanted[order[[0, -1]]])
        part = np.asarray(keys[first : last + 1])
        at = np.searchsorted(part, wanted[order])
        hit = at < len(part)
        hit[hit] = part[at[hit]] == wanted[order][hit]
        out[answerable[order[hit]]] = values[first + at[hit]]
    absent = np.ones(len(rows), bool)
    absent[answerable] = False
    out[absent] = np.nan
    return out


@dataclass(frozen=True)
class PriorFiles:
    """The published files of one predictor, opened, not read.

    Attributes
    ----------
    log_probs : float32 [rows, N] or [rows, K], on disk
    advertisers : list of advertiser ids, in index order
    version : str
    top_index : int32 [rows, K], on disk, optional
        Whose log-probabilities a row holds, best first; None where it holds all N.
    tail : float32 [rows], on disk, optional
        Log of what all others share evenly.
    """

    log_probs: Matrix
    advertisers: list[str]
    version: str
    top_index: Matrix | None = None
    tail: Matrix | None = None

    @classmethod
    def open(cls, folder: Path) -> PriorFiles:
        """Open a published prior folder."""
        folder = Path(folder)
        catalog: dict[str, Any] = json.loads((folder / CATALOG_FILE).read_text())
        matrix, top, tail = open_matrix(folder / MATRIX_FILE), None, None
        if matrix_path(folder / TOP_INDEX_FILE):
            top, tail = open_matrix(folder / TOP_INDEX_FILE), open_matrix(folder / TAIL_FILE)
        ids = [entry["advertiser_id"] for entry in catalog["advertisers"]]
        return cls(matrix, ids, str(catalog["version"]), top, tail)

    @property
    def size(self) -> int:
        """N, the advertisers of the catalog."""
        return len(self.advertisers) if self.top_index is not None else int(self.log_probs.shape[1])

    def row(self, pointer: int) -> Float:
        """Log-probabilities [N] of one row, the tail's share for those that a top-K row does not name."""
        likely = np.asarray(self.log_probs[pointer])
        if self.top_index is None or self.tail is None:
            return likely
        # 50,000 floats a row are quick to fill, and make one path of both forms
        full = np.full(self.size, self.tail[pointer] - np.log(self.size - len(likely)), np.float32)
        # what is kept is never below what is spread evenly, but for rounding: ranks must not swap over that
        full[self.top_index[pointer]] = np.maximum(likely, np.nextafter(full[0], np.float32(np.inf)))
        return full

    def standing(self, pointers: Int, place: Int, advertisers: Int) -> tuple[Float, Int]:
        """Log-probabilities of some advertisers [n] in rows ``pointers[place]``, and how many have more in that row."""
        likely = np.asarray(self.log_probs[pointers])
        if self.top_index is None or self.tail is None:
            own = likely[place, advertisers]
            return own, (likely[place] > own[:, None]).sum(axis=1)
        k = likely.shape[1]
        even = (self.tail[pointers].astype(np.float64) - np.log(self.size - k)).astype(np.float32)
        likely = np.maximum(likely, np.nextafter(even, np.float32(np.inf))[:, None])  # as in `row`
        named = np.asarray(self.top_index[pointers])[place] == advertisers[:, None]
        own = np.where(named.any(axis=1), likely[place, named.argmax(axis=1)], even[place])
        return own, (likely[place] > own[:, None]).sum(axis=1)

    def let_go(self) -> None:
        """Give back the memory of what was read: pages of a mapped file count as the process's own while mapped."""
        for array in (self.log_probs, self.top_index, self.tail):
            if isinstance(array, MatrixFile):
                array.let_go()
            mapped = getattr(array, "_mmap", None)
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


def gather_priors(files: PriorFiles, rows: Int, advertisers: Int) -> tuple[Float, Float]:
    """Log-probability of the ad's advertiser, and its rank among all (1 = best; ties share the better rank).

    In top-K priors every advertiser outside the K has its even share of the tail, and rank K + 1.

    Parameters
    ----------
    rows : int array [impressions]
        ``prior_row``, −1 where there is no prior.
    advertisers : int array [impressions]
        Index in the catalog, −1 where it has no such advertiser.

    Returns
    -------
    float32 [impressions], float32 [impressions]
        NaN where row or advertiser is −1.
    """
    log_prob = np.full(len(rows), np.nan, dtype=np.float32)
    rank = np.full(len(rows), np.nan, dtype=np.float32)
    answerable = np.flatnonzero((rows >= 0) & (advertisers >= 0))
    order = answerable[np.argsort(rows[answerable], kind="stable")]  # one pass over the file
    step = max(1, _AT_ONCE // files.log_probs.shape[1])
    for start in range(0, len(order), step):
        here = order[start : start + step]
        pointers, place = np.unique(rows[here], return_inverse=True)
        log_prob[here], better = files.standing(pointers, place, advertisers[here])
        rank[here] = better + 1
    return log_prob, rank


def places(catalog: Sequence[str], advertisers: Any, categories: Any) -> Int:
    """Place of each ad in a prior's catalog, −1 where it is not there.

    By its advertiser; in a catalog that knows none of them, by advertiser × category (`pair_id`).

    Examples
    --------
    >>> places(["a", "b"], ["b", "c"], ["Tea", "Tea"]).tolist()
    [1, -1]
    >>> places(["a / Soap", "a / Tea"], ["a", "b"], ["Tea", "Tea"]).tolist()
    [1, -1]
    """
    import pandas as pd

    by_advertiser = codes_of(advertisers, catalog)
    if (by_advertiser >= 0).any() or not len(by_advertiser):
        return by_advertiser
    both = pd.DataFrame({"a": pd.Categorical(advertisers), "c": pd.Categorical(categories)})
    code = both.groupby(["a", "c"], sort=False, dropna=False, observed=True).ngroup().to_numpy()
    distinct = both.drop_duplicates(ignore_index=True).astype(object)
    pairs = [
        pair_id(a, c) if isinstance(a, str) and isinstance(c, str) else None
        for a, c in zip(distinct["a"], distinct["c"], strict=True)
    ]
    return codes_of(pd.Index(pairs, dtype=object), catalog)[code]


def gather_interests(folder: Path, rows: Int, categories: pd.Series[Any]) -> Float | None:
    """Log-probability of each impression's product category, where the published priors have interests.

    Parameters
    ----------
    folder : Path
        Published priors.
    rows : int array [impressions]
        ``prior_row``, −1 where there is no prior.
    categories : Series of str [impressions]

    Returns
    -------
    float32 [impressions] or None
        NaN where there is no row, or the category was not seen before the model's cut-off.
    """
    if matrix_path(folder / INTEREST_MATRIX_FILE) is None:
        return None
    names = [entry["advertiser_id"] for entry in json.loads((folder / INTERESTS_FILE).read_text())["advertisers"]]
    matrix = open_matrix(folder / INTEREST_MATRIX_FILE)
    index = codes_of(categories, names)
    out = np.full(len(rows), np.nan, dtype=np.float32)
    answerable = np.flatnonzero((rows >= 0) & (index >= 0))
    order = answerable[np.argsort(rows[answerable], kind="stable")]  # one walk through the file
    out[order] = matrix[rows[order], index[order]]
    return out


def mean_probability(files: PriorFiles, rows: Int, snapshots: Int) -> tuple[Int, npt.NDArray[np.float64]]:
    """Mean probability of each advertiser over the users of each snapshot.

    Parameters
    ----------
    rows, snapshots : int arrays [table rows]
        ``prior_row`` and snapshot (microseconds) of every published row.

    Returns
    -------
    int array [S], float64 [S, N]
        The snapshots, ascending, and the means.
    """
    moments, index = np.unique(snapshots, return_inverse=True)
    means, log_probs = np.zeros((len(moments), files.size)), at_hand(files.log_probs)
    for i in range(len(moments)):
        rows_of = np.sort(rows[index == i])
        for block in np.array_split(rows_of, max(1, len(rows_of) // 4096)):
            likely = np.exp(log_probs[block].astype(np.float64))
            if files.top_index is None or files.tail is None:
                means[i] += likely.sum(axis=0)
                continue
            # everyone gets the share of the tail, and those named what they have beyond it
            share = np.exp(files.tail[block].astype(np.float64)) / (files.size - likely.shape[1])
            means[i] += share.sum()
            beyond = (likely - share[:, None]).ravel()
            means[i] += np.bincount(files.top_index[block].ravel(), weights=beyond, minlength=files.size)
        means[i] /= len(rows_of)
    return moments, means
