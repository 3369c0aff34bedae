"""What the engine is asked and what it answers: plain values, so that who speaks HTTP need not know how one ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from advprior.store.arrays import Int
from ranking.experiment.assignment import ServedArm
from ranking.service.ads import AdTable
from ranking.service.candidates import Choice
from ranking.service.loading import Loaded
from ranking.service.matrix import UserInputs
from ranking.service.priors import Prior
from ranking.service.rows import Matrix, Row


@dataclass(frozen=True)
class UserRows:
    """What the store gave for a user: rows by view, or why there are none."""

    rows: Mapping[str, Row]
    lacking: list[str]


@dataclass(frozen=True)
class Query:
    """One request, by names.

    Attributes
    ----------
    user_id : str
    slots : int
        How many ads come back.
    candidates : sequence of ad ids, optional
        Default: what the candidate source chooses.
    context, contexts : features of the request, and per candidate
    arm : ServedArm, optional
        To look at another arm. Default: the one that the experiment assigns the user to.
    user_rows : UserRows, optional
        What `Engine.look_up` gave, to rank one user more than once. Default: the store is asked.
    now_us : int, optional
        Rank as of then. Default: the clock's now.
    explain : bool
        Give the contributions of each returned ad.
    keep_features : bool
        Give the features of each returned ad.
    """

    user_id: str
    slots: int = 10
    candidates: Sequence[str] | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    contexts: Sequence[Mapping[str, Any] | None] | None = None
    arm: ServedArm | None = None
    user_rows: UserRows | None = None
    now_us: int | None = None
    explain: bool = False
    keep_features: bool = False


@dataclass(frozen=True)
class Prepared:
    """A request up to its matrix.

    Attributes
    ----------
    degraded : list of str
        Why the answer will be less than it could be; empty when nothing was missing.
    timings : dict of stage to seconds
    """

    arm: ServedArm
    ranker: Loaded
    table: AdTable
    choice: Choice
    matrix: Matrix
    user: UserInputs
    degraded: list[str]
    now_us: int
    timings: dict[str, float]

    @property
    def ads(self) -> Int:
        """Candidates, as rows of the ads' table."""
        return self.choice.ads


@dataclass
class Slate:
    """What `Engine.rank` answers.

    Attributes
    ----------
    ads : list of (ad id, advertiser id or None)
        In ranked order.
    scores : list of float
        Calibrated probabilities.
    degraded : list of str
        Why the answer is less than it could be; empty when it is not.
    now_us : int
        The moment that it was ranked for: with it the features can be worked out again.
    timings : dict of stage to seconds
    features : float32 [slots, features], optional
        What the ranker read of the ads, where it was asked to keep it.
    reference : dict of str to float
        Context that the request did not give, and that candidates without one of their own were ranked at.
    origins : list of str
        Where each of the ads came from, see `ranking.service.candidates.ORIGINS`.
    as_of : dict of view to list of int
        When the rows behind the answer became available, microseconds; empty for a view without a row in time. Filled
        with explanations and for a request with a time of its own.
    features_as_of : dict of view to list of int
        The same for the exposure log, with features.
    """

    arm: ServedArm
    ranker: Loaded
    ads: list[tuple[str, str | None]]
    scores: list[float]
    candidates: int
    unknown_ads: list[str]
    degraded: list[str]
    user_known: bool
    now_us: int
    prior: Prior | None = None
    prior_age_days: float | None = None
    contributions: list[dict[str, Any]] | None = None
    timings: dict[str, float] = field(default_factory=dict)
    origins: list[str] = field(default_factory=list)
    as_of: dict[str, list[int]] = field(default_factory=dict)
    features: Matrix | None = None
    features_as_of: dict[str, list[int]] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
