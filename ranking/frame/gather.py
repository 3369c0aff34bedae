"""Follow the pointers that the point-in-time join returns: counts and log-probabilities from mapped files.

A joined vector would cost 4N bytes an impression; a pointer costs eight, and the files are read once, in order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advprior.store.contract import (
    CATALOG_FILE,
    INTEREST_MATRIX_FILE,
    INTERESTS_FILE,
    MATRIX_FILE,
    TAIL_FILE,
    TOP_INDEX_FILE,
    pair_id,
)
from ranking.frame.counts import Ints

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float32]
HISTORY_VALUES = ("1w", "4w", "12w", "all", "recency_days")
TOP = 20


def gather_history(folder: Path, files: tuple[str, str], size: int, rows: Ints, ids: Ints) -> Floats:
    """Counts and recency of one level.

    Parameters
    ----------
    folder : Path
        Published ``user_history``.
    files : (keys file, values file)
    size : int
        Ids of the level: a key is row · size + id.
    rows, ids : int arrays [impressions]
        ``history_row`` (−1: no history row) and the id of the ad at this level (−1: it has none).

    Returns
    -------
    float32 [impressions, 5]
        Counts in 1, 4, 12 weeks and ever (0 when nothing is there), days since the last (NaN then).
        All NaN where row or id is −1.
    """
    keys = np.load(folder / files[0], mmap_mode="r")
    values = np.load(folder / files[1], mmap_mode="r")
    found = np.zeros((len(rows), 5), dtype=np.float32)
    found[:, 4] = np.nan
    asked = (rows >= 0) & (ids >= 0)
    wanted = rows * size + ids
    if len(keys):
        # ascending look-ups walk the file once instead of jumping about in it
        order = np.argsort(wanted)
        at = np.searchsorted(keys, wanted[order])
        hit = (at < len(keys)) & asked[order]
        hit[hit] = keys[at[hit]] == wanted[order][hit]
        found[order[hit]] = values[at[hit]]
    found[~asked] = np.nan
    return found


@dataclass(frozen=True)
class PriorFiles:
    """The published files of one predictor, opened, not read.

    Attributes
    ----------
    log_probs : float32 [rows, N] or [rows, K], memory-mapped
    advertisers : list of advertiser ids, in index order
    version : str
    top_index : int32 [rows, K], memory-mapped, optional
        Whose log-probabilities a row holds, best first; None where it holds all N.
    tail : float32 [rows], memory-mapped, optional
        Log of what all others share evenly.
    """

    log_probs: Floats
    advertisers: list[str]
    version: str
    top_index: npt.NDArray[np.int32] | None = None
    tail: Floats | None = None

    @classmethod
    def open(cls, folder: Path) -> PriorFiles:
        """Open a published prior folder."""
        folder = Path(folder)
        catalog: dict[str, Any] = json.loads((folder / CATALOG_FILE).read_text())
        matrix = np.load(folder / MATRIX_FILE, mmap_mode="r")
        top = tail = None
        if (folder / TOP_INDEX_FILE).is_file():
            top = np.load(folder / TOP_INDEX_FILE, mmap_mode="r")
            tail = np.load(folder / TAIL_FILE, mmap_mode="r")
        ids = [entry["advertiser_id"] for entry in catalog["advertisers"]]
        return cls(matrix, ids, str(catalog["version"]), top, tail)

    @property
    def size(self) -> int:
        """N, the advertisers of the catalog."""
        return len(self.advertisers) if self.top_index is not None else int(self.log_probs.shape[1])

    def row(self, pointer: int) -> Floats:
        """Log-probabilities [N] of one row, the tail's share for those that a top-K row does not name."""
        kept = np.asarray(self.log_probs[pointer])
        if self.top_index is None or self.tail is None:
            return kept
        # 50,000 floats a row are quick to fill, and make one path of both forms
        full = np.full(self.size, self.tail[pointer] - np.log(self.size - len(kept)), np.float32)
        # what is kept is never below what is spread evenly, but for rounding: ranks must not swap over that
        full[self.top_index[pointer]] = np.maximum(kept, np.nextafter(full[0], np.float32(np.inf)))
        return full


def gather_priors(files: PriorFiles, rows: Ints, advertisers: Ints) -> tuple[Floats, Floats]:
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
    asked = np.flatnonzero((rows >= 0) & (advertisers >= 0))
    order = asked[np.argsort(rows[asked], kind="stable")]
    pointers, starts = np.unique(rows[order], return_index=True)
    n = files.size
    # one pass over the file in row order; each row is sorted once for all its impressions
    for pointer, start, stop in zip(pointers, starts, np.append(starts, len(order))[1:], strict=True):
        here = order[start:stop]
        row = files.row(int(pointer))
        mine = row[advertisers[here]]
        log_prob[here] = mine
        rank[here] = n - np.searchsorted(np.sort(row), mine, side="right") + 1
    return log_prob, rank


def places(catalog: Sequence[str], advertisers: Any, categories: Any) -> Ints:
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

    names = pd.Index(catalog)
    found: Ints = names.get_indexer(pd.Index(np.asarray(advertisers, object))).astype(np.int64)
    if (found >= 0).any():
        return found
    both = pd.DataFrame({"a": np.asarray(advertisers, object), "c": np.asarray(categories, object)})
    code = both.groupby(["a", "c"], sort=False, dropna=False).ngroup().to_numpy()
    of_pair = both.drop_duplicates(ignore_index=True)
    pairs = [
        pair_id(a, c) if isinstance(a, str) and isinstance(c, str) else None
        for a, c in zip(of_pair["a"], of_pair["c"], strict=True)
    ]
    place: Ints = names.get_indexer(pd.Index(pairs, dtype=object)).astype(np.int64)
    return place[code] if len(code) else found


def gather_interests(folder: Path, rows: Ints, categories: pd.Series[Any]) -> Floats | None:
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
    import pandas as pd

    if not (folder / INTEREST_MATRIX_FILE).is_file():
        return None
    names = [entry["advertiser_id"] for entry in json.loads((folder / INTERESTS_FILE).read_text())["advertisers"]]
    matrix = np.load(folder / INTEREST_MATRIX_FILE, mmap_mode="r")
    index = pd.Index(names).get_indexer(pd.Index(categories.astype(object)))
    found = np.full(len(rows), np.nan, dtype=np.float32)
    asked = np.flatnonzero((rows >= 0) & (index >= 0))
    order = asked[np.argsort(rows[asked], kind="stable")]  # one walk through the file
    found[order] = matrix[rows[order], index[order]]
    return found


def mean_probability(files: PriorFiles, rows: Ints, snapshots: Ints) -> tuple[Ints, npt.NDArray[np.float64]]:
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
    found, index = np.unique(snapshots, return_inverse=True)
    means = np.zeros((len(found), files.size))
    for i in range(len(found)):
        mine = np.sort(rows[index == i])
        for block in np.array_split(mine, max(1, len(mine) // 4096)):
            kept = np.exp(files.log_probs[block].astype(np.float64))
            if files.top_index is None or files.tail is None:
                means[i] += kept.sum(axis=0)
                continue
            # everyone gets the share of the tail, and those named what they have beyond it
            share = np.exp(files.tail[block].astype(np.float64)) / (files.size - kept.shape[1])
            means[i] += share.sum()
            beyond = (kept - share[:, None]).ravel()
            means[i] += np.bincount(files.top_index[block].ravel(), weights=beyond, minlength=files.size)
        means[i] /= len(mine)
    return found, means
