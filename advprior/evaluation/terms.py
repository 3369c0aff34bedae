"""What can be said by hand of a user and an advertiser: the terms that the controls weigh.

Each term is a matrix [P, N] of P users and all advertisers, from events before a cut-off alone. They are meant to leave
no cheap signal out, so that a network that beats their logit has found something that counts and co-occurrence do not
say: drift at several half-lives, habit, sequence, co-occurrence, factors, profile, category and price.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from advprior.evaluation.als import AlsSettings, als_factors, als_installed, als_term, fit_als
from advprior.history import counts
from advprior.history.histories import Codes, Histories
from advprior.predictors import autoencoders
from advprior.predictors.logit import log_softmax
from advprior.predictors.neighbours import LINKS, department_term, memberships, neighbour_term, similarity
from advprior.predictors.offset import SMOOTHING
from advprior.predictors.sparse_links import WIDE, neighbour_links
from advprior.predictors.text.similar import lift_term, smoothed_lift
from advprior.store.arrays import Double, Float, Int
from advprior.store.contract import NEIGHBOURS

RECENCY, ALS, EASE, DRIFT, LOGIT = "recency", "als", "ease", "drift", "logit"
YEAR = 365.0
FULL_SPAN = 4 * YEAR  # days of past that the half-lives below are for; with less, all are shortened alike
POPULAR = (30.0, 90.0, 365.0)  # half-lives of everyone's events, days
OWN = (30.0, 180.0, 730.0)  # half-lives of the user's own
LONG = OWN[-1]
MIXED = (30.0, 90.0, 365.0, 4 * YEAR)  # likewise, mixed with popularity into one distribution
EVER = 1e6  # a half-life that forgets nothing
BACK_OFF = 1.0  # events that popularity counts for beside a user's own
PROFILE_PRIOR = 100.0  # events that a profile value's advertisers are smoothed by
SEQUENCE_PRIOR = 20.0  # events that what follows an advertiser is smoothed by
SHARE_FLOOR = 0.02  # of a share of categories

REACHES = ("short", "middle", "long", "longest")  # of half-lives, ascending: how long each is follows from the past
POPULAR_TERMS = tuple(f"popularity, {reach}" for reach in REACHES[:3])
RETURNING_TERMS = tuple(f"returning, {reach}" for reach in REACHES[1:3])
OWN_TERMS = (*(f"own, {reach}" for reach in REACHES[:3]), "own", "ever", "last")
MIXED_TERMS = tuple(f"mixed, {reach}" for reach in REACHES)
NEAR_TERMS = tuple(f"near, {reach}" for reach in REACHES[1:3])
DEPARTMENT_TERMS = ("department", "department share")
#: What each control weighs: every one has the drift, and from `recency` on the habit. `logit` has all there is.
ARMS: dict[str, tuple[str, ...]] = {
    DRIFT: (*POPULAR_TERMS, *RETURNING_TERMS),
    RECENCY: (*POPULAR_TERMS, *MIXED_TERMS),
    NEIGHBOURS: (*POPULAR_TERMS, *MIXED_TERMS, *NEAR_TERMS, *DEPARTMENT_TERMS),
    ALS: (*POPULAR_TERMS, *MIXED_TERMS, ALS),
    EASE: (*POPULAR_TERMS, *MIXED_TERMS, EASE),
    LOGIT: (
        *(*POPULAR_TERMS, *RETURNING_TERMS, *OWN_TERMS, *NEAR_TERMS),
        *("sequence", ALS, EASE, "profile", "category", *DEPARTMENT_TERMS, "price"),
    ),
}


def pace_of(days: float) -> float:
    """By how much half-lives are shortened for so many days of past: one year has no use for four years'.

    >>> pace_of(8 * 365.0), pace_of(292.0)
    (1.0, 0.2)
    """
    return min(1.0, max(days, 1.0) / FULL_SPAN)


def left_out(size: int) -> dict[str, str]:
    """Which controls cannot be had with N advertisers and the installed packages, and why."""
    without = {} if als_installed() else {ALS: "package implicit is not installed"}
    if size > autoencoders.WIDEST:
        without[EASE] = f"more than {autoencoders.WIDEST:,} advertisers: its matrices would be dense"
    return without


class Terms:
    """Aggregates of everyone's events before a cut-off, ready to say their terms for any users.

    Parameters
    ----------
    past : Histories
        Events before ``cutoff`` only: what is counted.
    cutoff : int
        Microseconds.
    size : int
        N.
    seed : int
        Of ALS.
    asked : Histories, optional
        Events before ``cutoff`` of those whose terms are wanted, where they are others than who is counted; the same
        profiles and categories have the same codes in both.
    pace : float
        Of `pace_of`: what half-lives are multiplied by, the same at every cut-off that weights pass between.
    """

    def __init__(
        self, past: Histories, cutoff: int, size: int, seed: int, asked: Histories | None = None, pace: float = 1.0
    ) -> None:
        self._past, self._cutoff, self._size, self._seed = past, cutoff, size, seed
        self._asked = past if asked is None else asked
        self._pace, self._als_settings = pace, AlsSettings()

    def tuned(self, als: AlsSettings) -> Terms:
        """The same whose ALS has these settings; before its first use."""
        self._als_settings = als
        return self

    def of(self, asked: Histories) -> Terms:
        """The same aggregates, for other users: their events before the cut-off."""
        other = Terms(self._past, self._cutoff, self._size, self._seed, asked, self._pace)
        names = ["_drift", "_similarity", "_sequence", "_by_texts"]
        names += ["_als"] * als_installed() + ["_together", "_ease"] * self.narrow
        other.__dict__.update({name: getattr(self, name) for name in names})
        return other

    @property
    def narrow(self) -> bool:
        """Whether the advertisers are few enough for linear autoencoders."""
        return self._size <= autoencoders.WIDEST

    def popularity(self, users: Int) -> Float:
        """Log-shares of the last 365 days [P, N]: the plain arm that the protocol names."""
        return self._wide(popularity(self._past, self._cutoff, self._size), users)

    def __call__(self, users: Int) -> dict[str, Float]:
        """Every term [P, N] that the data and the installed packages allow, by name."""
        past, asked, size = self._past, self._asked, self._size
        terms = {name: self._wide(row, users) for name, row in self._drift.items()}
        own = {h: self.own(users, h) for h in {*OWN, *MIXED, EVER}}
        terms |= {name: np.log1p(own[h]) for name, h in zip(OWN_TERMS, (*OWN, EVER), strict=False)}
        terms["ever"] = (own[EVER] > 0).astype(np.float32)
        terms["last"] = last_advertisers(asked, users, size)
        share = np.exp(self._drift[POPULAR_TERMS[1]])
        for name, h in zip(MIXED_TERMS, MIXED, strict=True):
            mixed = own[h] + BACK_OFF * share
            terms[name] = np.log(mixed / mixed.sum(1, keepdims=True))
        terms |= {name: neighbour_term(own[h], self._similarity) for name, h in zip(NEAR_TERMS, OWN[1:], strict=True)}
        terms["sequence"] = self._sequence.of(terms["last"])
        if als_installed():
            terms[ALS] = als_term(self._factors[users], self._als)
        if self.narrow:
            terms[EASE] = autoencoders.linear_term(own[LONG], self._ease)
        if past.profile_levels:
            terms["profile"] = profile_term(past, users, size, asked)
        if past.categories:
            terms["category"] = category_term(past, users, size, asked)
        if len(past.departments):
            terms |= dict(zip(DEPARTMENT_TERMS, department_terms(own[OWN[1]], past.departments), strict=True))
        if len(past.value):
            terms["price"] = price_term(past, users, size, asked)
        return terms

    def decayed(self, half_life: float) -> Float:
        """Decayed events of everyone [N] at a half-life in days, before the pace."""
        moment, days = np.asarray([self._cutoff], np.int64), half_life * self._pace
        everyone: Float = counts.popularity(self._past, moment, days, self._size)[0].astype(np.float32)
        return everyone

    def own(self, users: Int, half_life: float) -> Float:
        """Decayed events of each user [P, N] at a half-life in days, before the pace."""
        moments = np.full(len(users), self._cutoff, np.int64)
        return counts.own_points(self._asked, users, moments, half_life * self._pace, self._size)

    def l3ae(self, users: Int, encoder: str, semantic: Float) -> Float:
        """L3AE's term [P, N] by the semantic matrix [N, N] of an encoder; weights are computed once for each."""
        if (key := ("l3ae", encoder)) not in self._by_texts:
            self._by_texts[key] = autoencoders.scaled(autoencoders.pulled(self._pulling, semantic))
        return autoencoders.linear_term(self.own(users, LONG), self._by_texts[key])

    def lift(self, users: Int, encoder: str, kernel: Float) -> Float:
        """The smoothed lift's term [P, N] by the kernel [N, N] of an encoder; lifts are computed once for each."""
        if (key := ("lift", encoder)) not in self._by_texts:
            self._by_texts[key] = smoothed_lift(kernel, self._together)
        return lift_term(self.own(users, LONG), self._by_texts[key])

    def _wide(self, row: Float, users: Int) -> Float:
        wide: Float = np.broadcast_to(row, (len(users), self._size))
        return wide

    @cached_property
    def _drift(self) -> dict[str, Float]:
        """Log-popularity at each half-life, of all events and of those that were not their user's first."""
        past, size = self._past, self._size
        back = past.time > counts.first_times(past)[past.user_of_row]
        age = (self._cutoff - past.time) / counts.DAY
        drift = {}
        for names, half_lives, counted in (
            (POPULAR_TERMS, POPULAR, np.ones_like(back)),
            (RETURNING_TERMS, POPULAR[1:], back),
        ):
            for name, h in zip(names, half_lives, strict=True):
                decay = 0.5 ** (age[counted] / (h * self._pace))
                weight = np.bincount(past.advertiser[counted], weights=decay, minlength=size)
                drift[name] = log_softmax(np.log(weight + SMOOTHING))
        return drift

    @cached_property
    def _similarity(self) -> Any:
        """As `advprior.predictors.neighbours` has it: an array, beyond `WIDE` advertisers the strongest links."""
        if self._size > WIDE:
            return neighbour_links(self._past, self._size, LINKS)
        if not self.narrow:
            return similarity(self._past, self._size)
        norm = np.sqrt(np.maximum(np.diag(self._together), 1.0))
        alike: Float = (self._together / norm / norm[:, None]).astype(np.float32)
        np.fill_diagonal(alike, 0.0)
        return alike

    @cached_property
    def _together(self) -> Double:
        return autoencoders.gram(self._past, self._size)

    @cached_property
    def _ease(self) -> Float:
        return autoencoders.scaled(autoencoders.ease_weights(self._together))

    @cached_property
    def _pulling(self) -> Float:
        return autoencoders.pulling_inverse(self._together).astype(np.float32)  # a large ridge: well-conditioned

    @cached_property
    def _by_texts(self) -> dict[tuple[str, str], Float]:
        """What everyone's events and an encoder give together [N, N], by kind and encoder."""
        return {}

    @cached_property
    def _sequence(self) -> SequenceOdds:
        return sequence_odds(self._past, self._size)

    @cached_property
    def _als(self) -> Any:
        return fit_als(self._past, self._size, self._seed, self._als_settings)

    @cached_property
    def _factors(self) -> Float:
        """Of those asked [U, F]."""
        return als_factors(self._als, self._asked, self._size, counted=self._asked is self._past)


def popularity(past: Histories, cutoff: int, size: int) -> Float:
    """Log-shares of the last 365 days [size]."""
    recent = past.time >= cutoff - int(YEAR * counts.DAY)
    events = np.bincount(past.advertiser[recent], minlength=size)
    return log_softmax(np.log(events + SMOOTHING))


def last_advertisers(past: Histories, users: Int, size: int) -> Float:
    """Shares of the advertisers of each user's last occasion [P, N]; zero without one."""
    point, row = _rows(past, users)
    last = np.full(len(users), np.iinfo(np.int64).min)
    np.maximum.at(last, point, past.time[row])
    at_last = past.time[row] == last[point]
    out = np.zeros((len(users), size), np.float32)
    out[point[at_last], past.advertiser[row[at_last]]] = 1.0
    shares: Float = out / np.maximum(out.sum(1, keepdims=True), 1.0)
    return shares


@dataclass(frozen=True)
class SequenceOdds:
    """Log-odds of an advertiser in the occasion after one with another, against after any, smoothed.

    Where nobody had the two one after the other they are of the first alone, so that an array [N, N] is never needed.

    Attributes
    ----------
    plain : float64 [N]
        Of each first advertiser with who never came after it.
    more : scipy.sparse.csr_matrix [N, N]
        What is added where somebody came.
    """

    plain: Double
    more: Any

    def of(self, shares: Float) -> Float:
        """The mean over shares of first advertisers [P, N], of every second one [P, N]."""
        from scipy.sparse import csr_matrix

        odds = (csr_matrix(shares, dtype=np.float64) @ self.more).toarray()
        odds += (shares @ self.plain)[:, None]
        term: Float = odds.astype(np.float32)
        return term


def sequence_odds(past: Histories, size: int) -> SequenceOdds:
    """`SequenceOdds` of everyone's occasions.

    >>> h = Histories(("u",), ("",), np.array([0, 3]), np.array([1, 2, 3]), np.array([0, 1, 0]))
    >>> sequence_odds(h, 2).of(np.eye(2, dtype=np.float32)).astype(float).round(2).tolist()
    [[-0.05, 0.05], [0.05, -0.05]]
    """
    from scipy.sparse import coo_matrix

    first, second = _followers(past)
    pairs = coo_matrix((np.ones(len(first)), (first, second)), shape=(size, size)).tocsr()
    ever, after = (np.asarray(pairs.sum(axis)).ravel() for axis in (1, 0))
    share = (after + SMOOTHING) / (after.sum() + SMOOTHING * size)
    plain: Double = np.log(SEQUENCE_PRIOR / (ever + SEQUENCE_PRIOR))
    expected = SEQUENCE_PRIOR * share[pairs.indices]
    pairs.data = np.log((pairs.data + expected) / expected)
    return SequenceOdds(plain, pairs)


def _followers(past: Histories) -> tuple[Int, Int]:
    """Each row's advertiser with that of each row of its user's next occasion."""
    user, time = past.user_of_row, past.time
    if not len(time):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    new = np.concatenate([[True], (np.diff(user) != 0) | (np.diff(time) != 0)])
    begin, occasion = np.flatnonzero(new), np.cumsum(new) - 1
    length = np.diff(np.append(begin, len(time)))
    follows = np.append(user[begin[1:]] == user[begin[:-1]], False)
    source = np.flatnonzero(follows[occasion])
    target = occasion[source] + 1
    reach = length[target]
    left = np.repeat(source, reach)
    right = np.arange(reach.sum()) - np.repeat(np.cumsum(reach) - reach, reach) + np.repeat(begin[target], reach)
    return past.advertiser[left], past.advertiser[right]


def profile_term(past: Histories, users: Int, size: int, asked: Histories | None = None) -> Float:
    """Summed log-odds of an advertiser among those who told the same of themselves (naive Bayes), smoothed.

    Only values that these users told are counted: a field may have a value of its own for everybody.
    """
    asked = past if asked is None else asked
    total = np.bincount(past.advertiser, minlength=size) + SMOOTHING
    share = total / total.sum()
    out = np.zeros((len(users), size))
    for f in range(len(past.profile_levels)):
        values, place = np.unique(asked.profile_codes[users, f], return_inverse=True)
        code = np.searchsorted(values, of_row := past.profile_codes[past.user_of_row, f])
        counted = (of_row >= 0) & np.isin(of_row, values)
        cells = code[counted].astype(np.int64) * size + past.advertiser[counted]
        chosen = np.bincount(cells, minlength=len(values) * size).reshape(-1, size)
        odds = np.log((chosen + PROFILE_PRIOR * share) / (chosen.sum(1, keepdims=True) + PROFILE_PRIOR) / share)
        odds[values < 0] = 0.0  # not told
        out += odds[place]
    return out.astype(np.float32)


def category_term(past: Histories, users: Int, size: int, asked: Histories | None = None) -> Float:
    """Log of the share of an advertiser's events that lies in the user's categories.

    Sparse: categories may be as many as products.
    """
    asked = past if asked is None else asked
    kinds = len(past.categories)
    has_one = past.category >= 0
    point, row = _rows(asked, users)
    has_category = asked.category[row] >= 0
    of_advertiser = _shares(past.advertiser[has_one], past.category[has_one], (size, kinds))
    of_user = _shares(point[has_category], asked.category[row[has_category]], (len(users), kinds))
    term: Float = np.log((of_user @ of_advertiser.T).toarray() + SHARE_FLOOR).astype(np.float32)
    return term


def department_terms(own: Float, departments: Codes) -> tuple[Float, Float]:
    """Events of each user in the department of each advertiser [P, N]: log of their number, and their share of all.

    Without it, what a catalog text says of the department would be booked to the model that reads the text.
    """
    belongs, amount = memberships(departments), np.log1p(own)
    share: Float = (amount @ belongs @ belongs.T) / np.maximum(amount.sum(1, keepdims=True), 1e-9)
    return department_term(own, belongs), share


def price_term(past: Histories, users: Int, size: int, asked: Histories | None = None) -> Float:
    """Minus the distance of an advertiser's mean log-value to the user's; zero for who has no event."""
    asked = past if asked is None else asked
    value, own_value = (np.log1p(np.clip(np.nan_to_num(h.value.astype(np.float64)), 0.0, None)) for h in (past, asked))
    events = np.bincount(past.advertiser, minlength=size)
    mean = value.mean() if len(value) else 0.0
    usual = (np.bincount(past.advertiser, weights=value, minlength=size) + mean) / (events + 1)
    point, row = _rows(asked, users)
    own = np.bincount(point, minlength=len(users))
    level = np.bincount(point, weights=own_value[row], minlength=len(users)) / np.maximum(own, 1)
    distance = np.abs(level[:, None] - usual)
    distance[own == 0] = 0.0
    return -distance.astype(np.float32)


def _rows(past: Histories, users: Int) -> tuple[Int, Int]:
    return counts.past_rows(past, users, np.full(len(users), np.iinfo(np.int64).max))


def _shares(row: Int, column: npt.NDArray[Any], shape: tuple[int, int]) -> Any:
    """Shares of the columns in each row's cells, a sparse matrix; rows sum to one, or are empty."""
    from scipy.sparse import csr_matrix, diags_array

    counted = csr_matrix((np.ones(len(row)), (row, column)), shape=shape)
    return diags_array(1.0 / np.maximum(counted.sum(axis=1).A1, 1.0)) @ counted
