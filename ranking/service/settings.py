"""How a service is run; handed to its workers as one JSON."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ranking.candidates.nearest import EXACT_UP_TO
from ranking.experiment.exposures import Fsync

#: Where workers find their settings, and where the API key comes from: never on a command line.
SETTINGS_VARIABLE = "ADVPRIOR_SERVE_SETTINGS"
KEY_VARIABLE = "ADVPRIOR_API_KEY"


class ServeSettings(BaseModel):
    """Settings of `advprior rank serve`.

    Parameters
    ----------
    api_key : bool
        Whether ``/rank`` asks for the key in ``ADVPRIOR_API_KEY``.
    clock_start : datetime, optional
        What the clock shows at the start, to replay a past day.
    clock_source : {'system', 'request'}
        ``request``: a request may say as of when it is ranked, in the header ``X-Advprior-Time``. For a replay only.
    default_candidates : int, optional
        Ads ranked where a request names none. Default: what the quota was chosen for; 500 without one.
    towers, candidates : Path, optional
        Runs of ``rank towers`` and of ``rank candidates`` on them, to retrieve with.
    exact_up_to : int
        Ads up to which retrieval is exact.
    log_features : float
        Share of exposures that are logged with the features of what was shown.
    page : bool
        Whether ``/`` is a page to look at one user's slates.
    traces : bool
        Whether ranked requests are traced by OpenTelemetry.
    threads : int
        Requests of one worker that are ranked at a time.
    max_waiting : int
        Requests of one worker that may wait for a thread; more are answered 429.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: Path
    ranker: Path
    fallback: Path
    experiment: Path | None = None
    exposures: Path | None = None
    fsync: Fsync = "interval"
    api_key: bool = True
    max_body: int = Field(default=262_144, ge=1024)
    max_candidates: int = Field(default=1000, ge=1)
    max_slots: int = Field(default=100, ge=1)
    default_candidates: int | None = Field(default=None, ge=1)
    towers: Path | None = None
    candidates: Path | None = None
    exact_up_to: int = Field(default=EXACT_UP_TO, ge=0)
    max_prior_age_days: float | None = Field(default=None, gt=0)
    refresh_s: float = Field(default=60.0, gt=0)
    threads: int = Field(default=1, ge=1)
    max_waiting: int = Field(default=32, ge=0)
    compile: bool = True
    log_features: float = Field(default=0.0, ge=0, le=1)
    page: bool = False
    traces: bool = False
    clock_start: datetime | None = None
    clock_source: Literal["system", "request"] = "system"
