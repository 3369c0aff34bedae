"""The protocol: which users are asked about, what the right answer is, and how an answer is marked.

A cut-off T parts past from future: a history is what lies strictly before T, a label is the first advertiser
in [T, T + horizon). Events of one (user, time) are one occasion, their order is not known: when the first occasion
has m advertisers, each is a label with credit 1/m, which is what drawing one of them at random gives on average.
Tied scores likewise share their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.store.arrays import Double, Float, Int

METRICS = ("recall@1", "recall@5", "recall@20", "mrr", "nll")
SEGMENTS = ("overall", "history 1", "history 2-4", "history 5+", "head", "tail", "never-before")
PROFILE_ONLY = "profile only"  # users of their own, beside those of `SEGMENTS`
HEAD_SHARE = 0.5  # of last year's events: the fewest advertisers that hold it are the head
YEAR = 365 * counts.DAY


@dataclass(frozen=True)
class Labels:
    """The advertisers of the first occasion from a cut-off on, for P users.

    Attributes
    ----------
    user : int64 [P]
        User indices, ascending; each has an event within the horizon.
    offsets : int64 [P + 1]
        Labels of ``user[p]`` are ``advertiser[offsets[p]:offsets[p + 1]]``.
    advertiser : int64 [L]
        Index in the catalog.
    """

    user: Int
    offsets: Int
    advertiser: Int

    def __len__(self) -> int:
        return len(self.user)

    @property
    def row(self) -> Int:
        """Index into ``user`` of every label [L]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    @property
    def credit(self) -> Double:
        """``1/m`` of every label [L]."""
        return 1.0 / np.diff(self.offsets)[self.row]

    def truth(self, size: int) -> Float:
        """Credits as a matrix [P, size]; rows sum to one."""
        out = np.zeros((len(self), size), np.float32)
        out[self.row, self.advertiser] = self.credit
        return out

    def sample(self, most: int, seed: int) -> Labels:
        """At most ``most`` of the users, drawn without replacement."""
        if len(self) <= most:
            return self
        drawn = np.zeros(len(self), np.bool_)
        drawn[np.random.default_rng(seed).choice(len(self), most, replace=False)] = True
        return self.keep(drawn)

    def keep(self, users: npt.NDArray[np.bool_]) -> Labels:
        """The labels of those users only [P]."""
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[users])]).astype(np.int64)
        return Labels(self.user[users], offsets, self.advertiser[users[self.row]])


def first_labels(histories: Histories, cutoff: int, horizon: int, *, profile_only: bool = False) -> Labels:
    """First occasion in ``[cutoff, cutoff + horizon)`` of every user with an event before ``cutoff`` (microseconds).

    With ``profile_only``, of every user without one of whom a profile is told instead. The users table does not say
    since when: that it holds what was known at the cut-off is up to who made it.

    >>> h = Histories(("u", "v"), ("", ""), np.array([0, 3, 4]), np.array([1, 5, 5, 6]), np.array([0, 1, 2, 0]))
    >>> labels = first_labels(h, 5, 10)
    >>> labels.user.tolist(), labels.advertiser.tolist(), labels.credit.tolist()
    ([0], [1, 2], [0.5, 0.5])
    """
    user, time = histories.user_of_row, histories.time
    wanted = np.bincount(user[time < cutoff], minlength=len(histories)) > 0
    if profile_only:
        wanted = ~wanted & np.asarray([bool(profile) for profile in histories.profiles], np.bool_)
    inside = (time >= cutoff) & (time < cutoff + horizon) & wanted[user]
    user, time, advertiser = user[inside], time[inside], histories.advertiser[inside]
    users, at, index = np.unique(user, return_index=True, return_inverse=True)
    first = time == time[at][index]  # rows are sorted by user and time
    lengths = np.bincount(index[first], minlength=len(users))
    return Labels(users, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), advertiser[first])


def marks(log_probs: Float, labels: Labels) -> dict[str, Double]:
    """Every metric for every label [L]; an advertiser tied with others takes their places in turn.

    Parameters
    ----------
    log_probs : float32 [P, N]
        One row a user of ``labels``.
    labels : Labels

    Returns
    -------
    dict of str to float64 [L]
        ``recall@k``: chance to stand among the first k; ``mrr``: expected reciprocal place; ``nll`` in nats.

    Examples
    --------
    >>> one = Labels(np.array([0]), np.array([0, 1]), np.array([2]))
    >>> by_metric = marks(np.log(np.array([[.5, .25, .25]], np.float32)), one)
    >>> by_metric["recall@1"].tolist(), round(float(by_metric["mrr"][0]), 3), round(float(by_metric["nll"][0]), 3)
    ([0.0], 0.417, 1.386)
    """
    own = log_probs[labels.row, labels.advertiser]
    better, tied = np.empty(len(own), np.int64), np.empty(len(own), np.int64)
    for start in range(0, len(own), 4096):
        part = slice(start, start + 4096)
        rows = log_probs[labels.row[part]]
        better[part] = (rows > own[part, None]).sum(1)
        tied[part] = (rows == own[part, None]).sum(1)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, log_probs.shape[1] + 1))])
    by_metric = {f"recall@{k}": np.clip((k - better) / tied, 0.0, 1.0) for k in (1, 5, 20)}
    return {**by_metric, "mrr": (harmonic[better + tied] - harmonic[better]) / tied, "nll": -own.astype(np.float64)}


def head(histories: Histories, cutoff: int, size: int) -> npt.NDArray[np.bool_]:
    """The fewest advertisers with half of the last year's events before ``cutoff`` [size]."""
    recent = (histories.time < cutoff) & (histories.time >= cutoff - YEAR)
    events = np.bincount(histories.advertiser[recent], minlength=size)
    order = np.argsort(-events, kind="stable")
    before = np.cumsum(events[order]) - events[order]
    out = np.zeros(size, np.bool_)
    out[order[before < HEAD_SHARE * events.sum()]] = True
    return out


def segments(labels: Labels, histories: Histories, cutoff: int, size: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Which labels [L] count in each of `SEGMENTS`; history length is events before the cut-off, one an advertiser
    and time.
    """
    past = histories.before(cutoff)
    length = np.diff(past.offsets)[labels.user][labels.row]
    pairs = np.unique(past.user_of_row * size + past.advertiser)
    has_pair = np.isin(labels.user[labels.row] * size + labels.advertiser, pairs)
    popular = head(past, cutoff, size)[labels.advertiser]
    masks = (
        np.ones(len(labels.advertiser), np.bool_),
        length == 1,
        (length >= 2) & (length <= 4),
        length >= 5,
        popular,
        ~popular,
        ~has_pair,
    )
    return dict(zip(SEGMENTS, masks, strict=True))
