"""Streams: what a user's own counts are kept of, at which levels, and how far back.

A stream is one kind of row about a user: events, exposures (impressions), clicks. Each is counted per advertiser,
category or ad, as of every snapshot. The frame and the service take names and order of every column from here.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

RECENCY, UNANSWERED = "recency_days", "unanswered"
WINDOWS = {"1w": 7, "4w": 28, "12w": 84}  # days
#: What can be counted per: numberings of `ranking.frame.numbering`. "ad" is an ad's advertiser × category, which is
#: what an event can be matched to; "ad_id" is the ad itself. A department is coarser than a category, a cluster is
#: what reads alike: each is numbered where the ads have one, and counted nowhere else.
ADVERTISER, CATEGORY, PAIR, AD, DEPARTMENT, CLUSTER = (
    "advertiser",
    "category",
    "ad",
    "ad_id",
    "department",
    "cluster",
)
NUMBERINGS = (ADVERTISER, CATEGORY, PAIR, AD)
#: How far back exposures are counted: a user's row is then bounded by what is shown in that time, not by the log.
EXPOSURE_REACH_DAYS = WINDOWS["12w"]


@dataclass(frozen=True, eq=False)  # each is one of `STREAMS`
class Stream:
    """One kind of row about a user, and how it is counted.

    Parameters
    ----------
    name : str
        What its features, files and online columns begin with.
    levels : mapping of str to str
        Level, as features name it, to its numbering.
    windows : mapping of str to int or None
        Counts by name: days back from the snapshot, None for all.
    occasions : bool
        Rows of one user, id and time count once: they are of one visit.
    reach_days : int, optional
        Older rows count nowhere, not even in `RECENCY`. Default: all count.
    answers : bool
        Count the rows since the user last answered one of them (`UNANSWERED`), within the reach.

    Examples
    --------
    >>> CLICKS.quantities
    ('1w', '4w', 'all', 'recency_days')
    >>> CLICKS.features("advertiser")
    ('clicks_advertiser_1w', 'clicks_advertiser_4w', 'clicks_advertiser_all', 'clicks_advertiser_recency_days')
    """

    name: str
    levels: Mapping[str, str]
    windows: Mapping[str, int | None]
    occasions: bool = False
    reach_days: int | None = None
    answers: bool = False

    @property
    def quantities(self) -> tuple[str, ...]:
        """What is kept of each id, in order; recency is the last."""
        return (*self.windows, *((UNANSWERED,) if self.answers else ()), RECENCY)

    def levels_in(self, numberings: Container[str]) -> dict[str, str]:
        """The levels whose numbering there is.

        >>> EXPOSURES.levels_in(("advertiser", "ad_id"))
        {'advertiser': 'advertiser', 'ad': 'ad_id'}
        """
        return {level: numbering for level, numbering in self.levels.items() if numbering in numberings}

    def features(self, level: str) -> tuple[str, ...]:
        """The frame's columns of a level, in the order of `quantities`."""
        return tuple(f"{self.name}_{level}_{value}" for value in self.quantities)

    def files(self, level: str) -> tuple[str, str]:
        """Names of a level's sorted keys (int64 [n]) and values (float32 [n, quantities])."""
        return f"{self.name}_{level}_keys.npy", f"{self.name}_{level}_values.npy"

    def online(self, level: str) -> tuple[str, str]:
        """List columns of a level in a user's row: ids (int32 [n], ascending), values (float32, id by id)."""
        return f"{self.name}_{level}_ids", f"{self.name}_{level}_values"


EVENTS = Stream(
    "history",
    {"advertiser": ADVERTISER, "category": CATEGORY, "ad": PAIR, "department": DEPARTMENT, "cluster": CLUSTER},
    {**WINDOWS, "all": None},
    occasions=True,
)
EXPOSURES = Stream(
    "exposures",
    {"advertiser": ADVERTISER, "ad": AD, "department": DEPARTMENT, "cluster": CLUSTER},
    WINDOWS,
    reach_days=EXPOSURE_REACH_DAYS,
    answers=True,
)
CLICKS = Stream("clicks", {"advertiser": ADVERTISER, "ad": AD}, {"1w": 7, "4w": 28, "all": None})
STREAMS = (EVENTS, EXPOSURES, CLICKS)
#: Levels of events that all tables have: what the towers read, and what popularity is counted per.
LEVELS = ("advertiser", "category", "ad")


def group_of(stream: Stream, level: str) -> str:
    """Group of a level's features in a frame: departments and clusters are groups of their own.

    So that departments can be left out, and that clusters are in the arms that add them.

    >>> group_of(EXPOSURES, "ad"), group_of(EXPOSURES, "department"), group_of(EXPOSURES, "cluster")
    ('exposures', 'department', 'cluster')
    """
    return level if level in (DEPARTMENT, CLUSTER) else stream.name


def stream_features() -> frozenset[str]:
    """Every feature that any stream can give."""
    return frozenset(name for stream in STREAMS for level in stream.levels for name in stream.features(level))


def token_column(level: str) -> str:
    """List column of a level of events in a user's row: what the towers read of each id, float32 [2n].

    See `ranking.frame.fading`.
    """
    return f"{EVENTS.name}_{level}_tokens"
