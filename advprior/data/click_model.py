"""The click model: what the log ``clicks`` is drawn from, with every effect known.

For user u, advertiser a, ad d of a, shown at time t in slate position p and placement s:

- Tastes z_u and x_a are K standard normal numbers each; ``taste(u, a) = z_u · x_a / √K`` is about standard normal.
- *Visits*: events of a user, while active, at advertiser a with probability ``∝ popularity(a) · exp(v · taste(u, a))``.
- *Slates* hold ads that are alive at t, drawn by popularity alone, without repeats.
- *Clicks*: ``logit P(click) = c + h · log(1 + n) − f · log(1 + e) + position(p) + placement(s) + w · taste(u, a)``,
  where n counts u's events at a and e the times that d was shown to u, both before the last weekly snapshot.
- *Conversions* follow a click with a fixed probability, after an exponential delay; each is an event of its own.
  The label of an impression is whether it converted within `LABEL_DELAY`.

n and e stop at the snapshot because that is all that a feature can hold. With w = 0 nothing beyond history can tell a
label; with f = 0 exposures tell nothing. Users do not act on each other, so they are drawn in blocks of bounded size.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

DAY_S = 86_400
WEEK_S = 7 * DAY_S
#: A conversion later than this after its impression is nobody's label.
LABEL_DELAY = timedelta(days=7)
PLACEMENTS = ("feed", "search", "story")

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Effects:
    """The known truth: every number that the log is drawn with, as log-odds where it acts on a click.

    Parameters
    ----------
    tastes : int
        K.
    taste_in_visits, taste_in_clicks : float
        v and w.
    history, fatigue, intercept : float
        h, f and c.
    position : float
        Taken off for every doubling of the position, counted from 1.
    placement : tuple of float
        Added, in the order of `PLACEMENTS`.
    conversion : float
        Probability of a conversion after a click.
    delay_days : float
        Mean delay of a conversion.
    late_share, late_days : float
        Share of events that arrive late, and by how many days on average.
    visits_a_week, slates_a_week : float
        Mean rates of an active user.
    slate_size, ads_each : int
        Positions of a slate; ads of an advertiser.
    no_profile, profile_true : float
        Share of users without any profile; share of the others whose stated interest is their largest taste.
    newcomers : float
        Share of users, and of ads, that appear after the start; as many vanish before the end.
    """

    tastes: int = 8
    taste_in_visits: float = 1.2
    taste_in_clicks: float = 0.8
    history: float = 0.6
    fatigue: float = 0.5
    intercept: float = -1.6
    position: float = 0.35
    placement: tuple[float, ...] = (0.0, 0.5, -0.3)
    conversion: float = 0.35
    delay_days: float = 1.5
    late_share: float = 0.03
    late_days: float = 2.0
    visits_a_week: float = 0.5
    slates_a_week: float = 1.0
    slate_size: int = 6
    ads_each: int = 3
    no_profile: float = 0.2
    profile_true: float = 0.8
    newcomers: float = 0.3


class Market(NamedTuple):
    """Advertisers and their ads; ads ``k·i … k·i + k − 1`` belong to advertiser i, with k ads each.

    Attributes
    ----------
    taste : float64 [A, K]
    popularity : float64 [A]
        Sums to one.
    life : int64 [D, 2]
        Seconds since the start from which, and before which, an ad is there.
    """

    taste: Float
    popularity: Float
    life: Int


class Users(NamedTuple):
    """A block of users.

    Attributes
    ----------
    taste : float64 [U, K]
    visit_rate : float64 [U]
        Visits a week.
    life : int64 [U, 2]
        As of ads.
    """

    taste: Float
    visit_rate: Float
    life: Int


class Events(NamedTuple):
    """Visits and conversions, int64 [E] each; ``ad`` is −1 for a visit."""

    user: Int
    second: Int
    advertiser: Int
    ad: Int


class Impressions(NamedTuple):
    """What was shown, int64 [I] each; ``label_second`` is −1 where the label is 0."""

    slate: Int
    user: Int
    ad: Int
    second: Int
    position: Int
    placement: Int
    click: Int
    label: Int
    label_second: Int


def draw_market(advertisers: int, weeks: int, effects: Effects, rng: np.random.Generator) -> Market:
    """Advertisers, how popular they are, and when their ads run."""
    popularity = rng.permutation(np.arange(1.0, advertisers + 1) ** -0.7)
    life = _lifetimes(advertisers * effects.ads_each, weeks, effects.newcomers, rng)
    return Market(rng.standard_normal((advertisers, effects.tastes)), popularity / popularity.sum(), life)


def draw_users(count: int, weeks: int, effects: Effects, rng: np.random.Generator) -> Users:
    """A block of users, how often they come, and when they are there."""
    rate = rng.gamma(2.0, effects.visits_a_week / 2, size=count)
    return Users(rng.standard_normal((count, effects.tastes)), rate, _lifetimes(count, weeks, effects.newcomers, rng))


def _lifetimes(count: int, weeks: int, share: float, rng: np.random.Generator) -> Int:
    """From and until, in seconds: ``share`` of all appear late, ``share`` vanish early, none lives under two weeks."""
    span, least = weeks * WEEK_S, 2 * WEEK_S
    first = np.where(rng.random(count) < share, rng.integers(0, span - least, size=count), 0)
    early = first + least + (rng.random(count) * (span - first - least)).astype(np.int64)
    last = np.where(rng.random(count) < share, early, span)
    return np.stack([first, last], axis=1).astype(np.int64)


def _visits(users: Users, market: Market, week: int, effects: Effects, rng: np.random.Generator) -> Events:
    """One week's visits."""
    user = np.repeat(np.arange(len(users.visit_rate)), rng.poisson(users.visit_rate))
    second = week * WEEK_S + rng.integers(WEEK_S, size=len(user))
    active = (users.life[user, 0] <= second) & (second < users.life[user, 1])
    user, second = user[active], second[active]
    taste = users.taste[user] @ market.taste.T / np.sqrt(effects.tastes)
    log_weight = np.log(market.popularity) + effects.taste_in_visits * taste
    # Gumbel-max: the largest of log-weight plus Gumbel noise is one draw in proportion to the weights
    advertiser = (log_weight + rng.gumbel(size=taste.shape)).argmax(axis=1) if len(user) else user
    return Events(user, second, advertiser, np.full(len(user), -1))


def _slates(
    users: Users, market: Market, week: int, effects: Effects, rng: np.random.Generator
) -> tuple[Int, Int, Int]:
    """One week's slates: users [S], seconds [S] and ads [S, slate_size], none twice in a slate."""
    user = np.repeat(np.arange(len(users.life)), rng.poisson(effects.slates_a_week, size=len(users.life)))
    # rows of a snapshot are there an hour after it: a slate is asked for from the second hour on
    second = week * WEEK_S + rng.integers(2 * 3600, WEEK_S, size=len(user))
    active = (users.life[user, 0] <= second) & (second < users.life[user, 1])
    user, second = user[active], second[active]
    alive = (market.life[:, 0] <= second[:, None]) & (second[:, None] < market.life[:, 1])
    log_weight = np.repeat(np.log(market.popularity), effects.ads_each)
    noisy = np.where(alive, log_weight + rng.gumbel(size=alive.shape), -np.inf)
    # the k largest are k draws without replacement (Gumbel top-k, arXiv 1903.06059)
    ads = np.argsort(-noisy, axis=1)[:, : effects.slate_size]
    enough = np.take_along_axis(alive, ads, axis=1).all(axis=1)
    return user[enough], second[enough], ads[enough].astype(np.int64)


def click_logit(counts: tuple[Int, Int], position: Int, placement: Int, taste: Float, effects: Effects) -> Float:
    """Log-odds of a click: the truth behind the log.

    Parameters
    ----------
    counts : (int64 [I], int64 [I])
        n and e: events of the user at the advertiser, and exposures of the user to the ad, before the snapshot.
    position, placement : int64 [I]
        Position in the slate, from 0; index into `PLACEMENTS`.
    taste : float64 [I]
        ``taste(u, a)``.
    effects : Effects

    Examples
    --------
    >>> zero = np.zeros(1, int)
    >>> effects = Effects(intercept=-1.0, position=0.5, fatigue=1.0, history=0.0, taste_in_clicks=0.25)
    >>> click_logit((zero, zero + 1), zero + 1, zero, np.full(1, 2.0), effects).round(3)
    array([-1.693])
    """
    events, exposures = counts
    of_place = np.asarray(effects.placement)[placement] - effects.position * np.log2(position + 1.0)
    of_past = effects.history * np.log1p(events) - effects.fatigue * np.log1p(exposures)
    logit: Float = effects.intercept + of_past + of_place + effects.taste_in_clicks * taste
    return logit


Rows = TypeVar("Rows", Events, Impressions)


class _Past:
    """Counts as of the last snapshot, which the next week's clicks depend on."""

    def __init__(self, users: Users, market: Market, effects: Effects) -> None:
        self._exposures = np.zeros((len(users.life), len(market.life)), np.int64)
        self._events = np.zeros((len(users.life), len(market.taste)), np.int64)
        self._ads_each = effects.ads_each
        self._pending = Events(*(np.zeros(0, np.int64) for _ in Events._fields))

    def counts(self, user: Int, ad: Int) -> tuple[Int, Int]:
        """Events of the user at the ad's advertiser, and exposures of the user to the ad."""
        return self._events[user, ad // self._ads_each], self._exposures[user, ad]

    def close_week(self, week: int, events: Events, shown: Impressions) -> None:
        """Move the snapshot on by a week; a conversion counts once its own time has come."""
        np.add.at(self._exposures, (shown.user, shown.ad), 1)
        rows = concatenated([self._pending, events])
        due = rows.second < (week + 1) * WEEK_S
        np.add.at(self._events, (rows.user[due], rows.advertiser[due]), 1)
        self._pending = Events(*(column[~due] for column in rows))


def _show(
    users: Users, market: Market, past: _Past, week: int, effects: Effects, rng: np.random.Generator
) -> tuple[Impressions, Events]:
    """One week's impressions, slates counted from 0, and the conversions that follow."""
    slate_user, slate_second, slate_ads = _slates(users, market, week, effects, rng)
    slates, size = slate_ads.shape[0], effects.slate_size
    user, second, ad = np.repeat(slate_user, size), np.repeat(slate_second, size), slate_ads.ravel()
    position = np.tile(np.arange(size), slates)
    placement = np.repeat(rng.integers(len(PLACEMENTS), size=slates), size)
    advertiser = ad // effects.ads_each
    taste = (users.taste[user] * market.taste[advertiser]).sum(axis=1) / np.sqrt(effects.tastes)
    logit = click_logit(past.counts(user, ad), position, placement, taste, effects)
    click = rng.random(len(ad)) < 1 / (1 + np.exp(-logit))
    converted = click & (rng.random(len(ad)) < effects.conversion)
    delay = (rng.exponential(effects.delay_days, size=len(ad)) * DAY_S).astype(np.int64) + 60
    label = converted & (delay <= LABEL_DELAY.total_seconds())
    slate = np.repeat(np.arange(slates), size)
    label_second = np.where(label, second + delay, -1)
    shown = Impressions(
        slate, user, ad, second, position, placement, click.astype(np.int64), label.astype(np.int64), label_second
    )
    bought = Events(user[converted], (second + delay)[converted], advertiser[converted], ad[converted])
    return shown, bought


def simulate(
    users: Users, market: Market, weeks: int, effects: Effects, rng: np.random.Generator
) -> tuple[Events, Impressions]:
    """Draw a block's log week by week, because a week's clicks depend on what was seen and bought before it.

    Returns
    -------
    Events
        By user and time; conversions after the end are left out.
    Impressions
        In order of their slates, which are counted from 0.
    """
    past, slates = _Past(users, market, effects), 0
    all_events: list[Events] = []
    all_shown: list[Impressions] = []
    for week in range(weeks):
        visits = _visits(users, market, week, effects, rng)
        shown, conversions = _show(users, market, past, week, effects, rng)
        events = concatenated([visits, conversions])
        past.close_week(week, events, shown)
        all_events.append(events)
        all_shown.append(shown._replace(slate=shown.slate + slates))
        slates += len(shown.slate) // effects.slate_size
    events = concatenated(all_events)
    order = np.lexsort((events.second, events.user))
    order = order[events.second[order] < weeks * WEEK_S]
    return Events(*(column[order] for column in events)), concatenated(all_shown)


def concatenated(parts: list[Rows]) -> Rows:
    """Rows of several parts, one after the other."""
    return type(parts[0])(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
