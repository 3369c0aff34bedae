"""The ads that score best for a user's vector: exactly in numpy, and by an index once a catalog is large.

A score is an inner product (the ad's bias is one more dimension), so nothing has to be transformed. The index is an
inverted file (faiss ``IndexIVFFlat``): ads in clusters, of which only those nearest to the user are looked into; how
many is settled when it is built, by its recall against the exact answer. Graph indexes (HNSW of faiss and of usearch)
were measured too: at 100,000 ads they took ten times as long to build and more than twice as long to ask, for the same
recall.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from advprior.store.arrays import Float, Int

log = logging.getLogger("advprior.service")

#: Up to so many ads the exact answer costs less than half a millisecond: `benchmarks/candidates.py`.
EXACT_UP_TO = 50_000
#: Share of the exact answer that an index must find.
RECALL = 0.99
_TRAINED_ON = 40  # ads a cluster when clusters are looked for: more change little


def best(score: Float, k: int) -> Int:
    """Places of the ``k`` highest scores, highest first; of equal ones the first.

    >>> import numpy as np
    >>> best(np.array([1.0, 3.0, 2.0, 3.0], np.float32), 3).tolist()
    [1, 3, 2]
    """
    if k >= len(score):
        return np.argsort(-score, kind="stable").astype(np.int64)
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    edge = np.partition(score, len(score) - k)[len(score) - k]
    at = np.flatnonzero(score >= edge)
    return at[np.argsort(-score[at], kind="stable")][:k].astype(np.int64)


class Nearest:
    """Ads by their score.

    Parameters
    ----------
    vectors : float32 [ads, size]
    exact_up_to : int
        With more ads an index is built, where faiss is installed.
    probes : float32 [users, size], optional
        Vectors as users have them: on these the index is held to `RECALL`.
    k : int
        How many ads will be asked for.

    Attributes
    ----------
    kind : str
        ``exact`` or ``index``.
    recall : float
        Of the index on the probes, among ``k``; 1 for exact.
    """

    def __init__(
        self, vectors: Float, *, exact_up_to: int = EXACT_UP_TO, probes: Float | None = None, k: int = 500
    ) -> None:
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self.kind, self.recall, self.lists, self.looked_into = "exact", 1.0, 0, 0
        self._index: Any = None
        if len(vectors) > exact_up_to:
            self._build(self.vectors[:0] if probes is None else probes, k)

    def top(self, user: Float, k: int) -> tuple[Int, Float]:
        """The ``k`` best ads, best first, and their scores; fewer where an index finds fewer."""
        if self._index is None:
            score = self.vectors @ user
            at = best(score, k)
            return at, score[at]
        score, at = self._index.search(user[None].astype(np.float32), min(k, len(self.vectors)))
        filled = at[0] >= 0
        return at[0][filled].astype(np.int64), score[0][filled]

    def _build(self, probes: Float, k: int) -> None:
        try:
            import faiss
        except ImportError:
            log.warning("many ads and no index: candidates are searched exactly", extra={"ads": len(self.vectors)})
            return
        faiss.omp_set_num_threads(1)  # of this thread: what builds must leave the other cores to requests
        ads, size = self.vectors.shape
        self.lists = int(4 * np.sqrt(ads))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, self.lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = _TRAINED_ON
        index.cp.min_points_per_centroid = 1  # do not warn of small ones on the standard error stream
        index.cp.seed = 0
        index.train(self.vectors)
        index.add(self.vectors)
        self._index, self.kind = index, "index"
        # without probes there is nothing to settle it by: an eighth was right for every catalog tried
        self._look_into(self.lists // 8)
        if len(probes):
            exact = [best(self.vectors @ user, k) for user in probes]
            wanted = max(self.lists // 64, 1)
            while True:
                self._look_into(wanted)
                nearest = [self.top(user, k)[0] for user in probes]
                self.recall = float(
                    np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(nearest, exact, strict=True)])
                )
                if self.recall >= RECALL or wanted >= self.lists:
                    break
                wanted = min(wanted * 3 // 2 + 1, self.lists)

    def _look_into(self, lists: int) -> None:
        self.looked_into = self._index.nprobe = max(1, lists)
