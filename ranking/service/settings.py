"""How a service is run; handed to its workers as one JSON."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

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
    log_features : float
        Share of exposures that are logged with the features of what was shown.
    page : bool
        Whether ``/`` is a page to look at one user's slates.
    threads : int
        Requests of one worker that are ranked at a time.
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
    default_candidates: int = Field(default=500, ge=1)
    max_prior_age_days: float | None = Field(default=None, gt=0)
    refresh_s: float = Field(default=60.0, gt=0)
    threads: int = Field(default=1, ge=1)
    compile: bool = True
    log_features: float = Field(default=0.0, ge=0, le=1)
    page: bool = False
    clock_start: datetime | None = None
