"""`advprior.predictors.text.alike` over a wide catalog: links to the closest texts in the place of arrays [N, N].

Of each advertiser the closest are counted each by itself, all others by their mean: a kernel's row is what its links
have above that mean, and the mean for everyone. So every product with it is a sparse one and a number a row, and its
rows still sum to one. A lift's row is made when a history asks for it. With as many links as there are advertisers all
of it is what the arrays are (tested).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.sparse_links import Links, common_users
from advprior.predictors.text.closest import Closest, kernel_of
from advprior.predictors.text.similar import history_shares, log_lift, three_largest
from advprior.store.arrays import Bool, Double, Float, Int

COMMON = 200  # advertisers with users in common that are known of each
ROWS = 64  # of a lift at once


@dataclass(frozen=True)
class Together:
    """Users in common.

    Attributes
    ----------
    pairs : scipy.sparse.csr_matrix [F, F]
        Of two advertisers, nothing on the diagonal.
    users : float32 [F]
        Of each.
    """

    pairs: Links
    users: Float

    @classmethod
    def of(cls, histories: Histories, size: int, most: int = COMMON) -> Together:
        """Of each advertiser those it has most users in common with."""
        links, users = common_users(histories, size, most)
        return cls(links.maximum(links.T).tocsr(), users.astype(np.float32))

    def without(self, withheld: Bool) -> Together:
        """As if nobody had turned to some of them [F]."""
        shown = (~withheld).astype(np.float32)
        pairs = self.pairs.copy()
        pairs.data *= shown[pairs.indices] * np.repeat(shown, np.diff(pairs.indptr))
        pairs.eliminate_zeros()
        return Together(pairs, self.users * shown)

    def arrays(self) -> dict[str, Any]:
        """For `numpy.savez`."""
        pairs = self.pairs
        return {"data": pairs.data, "indices": pairs.indices, "indptr": pairs.indptr, "users": self.users}

    @classmethod
    def load(cls, saved: Any) -> Together:
        """From what `arrays` gave."""
        from scipy.sparse import csr_matrix

        count = len(saved["users"])
        pairs = csr_matrix((saved["data"], saved["indices"], saved["indptr"]), shape=(count, count))
        return cls(pairs, saved["users"])


class WideTexts:
    """How alike the texts of a wide catalog are; as `advprior.predictors.text.alike.Texts`.

    Parameters
    ----------
    closest : Closest
    """

    def __init__(self, closest: Closest) -> None:
        self.closest, self.fitted = closest, closest.fitted
        self.size = len(closest.index)

    @cached_property
    def _rest(self) -> tuple[Double, float]:
        """Mean cosine of each advertiser to all but its links [N], and the mean of these."""
        beside = self.size - self.closest.index.shape[1]
        rest = (self.closest.total - self.closest.cosine.sum(1, dtype=np.float64)) / max(beside, 1) * (beside > 0)
        return rest, float(rest.mean())

    @cached_property
    def _near(self) -> Links:
        """What cosines of links, either way, have above what `_far` says [N, N]."""
        from scipy.sparse import csr_matrix

        index, cosine = self.closest.index, self.closest.cosine
        rest, mean = self._rest
        row = np.repeat(np.arange(self.size, dtype=np.int32), index.shape[1])
        both = [np.concatenate(pair) for pair in ((row, index.ravel()), (index.ravel(), row))]
        value = np.tile(cosine.ravel(), 2)
        value -= (rest[both[0]] + rest[both[1]] - mean).astype(np.float32)
        shape, ones = (self.size, self.size), np.ones(len(value), np.float32)
        near, times = (csr_matrix((data, (both[0], both[1])), shape=shape) for data in (value, ones))
        near.data /= times.data  # who is a link of its link is there twice
        return near

    @cached_property
    def far(self) -> Float:
        """The kernel to each of those that are no links [N]."""
        speaks = self._speaks
        inside = speaks[self.closest.index]
        beside = len(self.fitted) - inside.sum(1)
        linked = (self._weights * inside).sum(1, dtype=np.float64)
        far = np.maximum(self.closest.weight - linked, 0.0) / np.maximum(beside, 1) * (beside > 0)
        mean: Float = (far / self.closest.weight).astype(np.float32)
        return mean

    @cached_property
    def kernel(self) -> Links:
        """What the kernel to links has above `far` [N, F]."""
        from scipy.sparse import csr_matrix

        place = np.cumsum(self._speaks) - 1
        inside = self._speaks[self.closest.index]
        value = (self._weights / self.closest.weight[:, None]).astype(np.float32) - self.far[:, None]
        stops = np.r_[0, np.cumsum(inside.sum(1))]
        order = np.argsort(self.fitted)  # columns stand in the order of ``fitted``
        column = order[place[self.closest.index[inside]]]
        return csr_matrix((value[inside], column, stops), shape=(self.size, len(self.fitted)))

    @cached_property
    def turned(self) -> Links:
        """`kernel` by who speaks [F, N]."""
        return self.kernel.T.tocsr()

    @cached_property
    def _weights(self) -> Float:
        weights: Float = kernel_of(self.closest.cosine, self.closest.middle, self.closest.spread)
        return weights

    @cached_property
    def _speaks(self) -> Bool:
        speaks = np.zeros(self.size, np.bool_)
        speaks[self.fitted] = True
        return speaks

    def spread(self, values: Float) -> Float:
        """Values of who speaks [P, F], smoothed over alike texts [P, N]."""
        smoothed: Float = (self.kernel @ values.T).T + values.sum(1, keepdims=True) * self.far
        return smoothed

    def mean_and_top(self, own: Float) -> tuple[Float, Float]:
        """Cosine to the history, its mean and that of the three largest [P, N]; zero without a history."""
        from scipy.sparse import csr_matrix

        rest, middle = (np.asarray(part, np.float32) for part in self._rest)
        shares = history_shares(own)
        mean = (csr_matrix(shares) @ self._near).toarray()
        mean += (shares @ rest)[:, None] + shares.sum(1, keepdims=True) * (rest - middle)
        top = np.zeros(own.shape, np.float32)
        for point in np.flatnonzero((own > 0).any(1)):
            history = np.flatnonzero(own[point] > 0)
            links, far = self._near[history].tocoo(), rest[history]
            touched, place = np.unique(links.col, return_inverse=True)
            cosine = far[:, None] + (rest[touched] - middle)
            cosine[links.row, place] += links.data
            top[point] = three_largest(far[:, None]).mean() + rest - middle
            top[point, touched] = three_largest(cosine).mean(0)
        return mean.astype(np.float32), top

    def together(self, histories: Histories) -> Any:
        """Users in common, a `Together`, of those that speak, who are all advertisers while a run is fitted."""
        return Together.of(histories, self.size)

    def lift(self, together: Any) -> WideLift:
        """The smoothed log-lift."""
        return WideLift(self, together)


class WideLift:
    """The smoothed log-lift [N, N] of a wide catalog, some of its rows at a time.

    Parameters
    ----------
    texts : WideTexts
    together : Together
    """

    def __init__(self, texts: WideTexts, together: Together) -> None:
        self._texts, self._pairs = texts, together.pairs
        self._of_each: Float = np.asarray(together.pairs.sum(1), np.float32).ravel()
        self._linked = texts.kernel @ self._of_each
        self._reach = texts.kernel @ together.users + texts.far * together.users.sum()
        self._chance = float(self._of_each.sum(dtype=np.float64)) / max(float(together.users.sum()) ** 2, 1.0)

    def rows(self, places: Int) -> Float:
        """Of some first advertisers [n, N]."""
        far, linked, rows = self._texts.far, self._linked, self._texts.kernel[places]
        smoothed: Float = (rows @ self._pairs @ self._texts.turned).toarray()
        smoothed += np.outer(far[places], linked) + np.outer(linked[places], far)
        smoothed += np.outer(far[places] * self._of_each.sum(), far)
        return log_lift(smoothed, self._reach, self._chance, self._texts.fitted, places)

    def whole(self) -> WideLift:
        """Itself: all of it would be an array [N, N]."""
        return self

    def term(self, own: Float) -> Float:
        """Mean lift [P, N] over each history; zero without one."""
        shares, out = history_shares(own), np.zeros(own.shape, np.float32)
        places = np.flatnonzero(own.any(0))
        for start in range(0, len(places), ROWS):
            part = places[start : start + ROWS]
            out += shares[:, part] @ self.rows(part)
        return out
