"""What the service is asked and what it answers: the models that validate requests and make the OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from advprior.store.columns import LARGEST, LONGEST
from ranking.service.plan import Plan


def _whole(value: Any) -> Any:
    """To JSON Schema 98.0 is an integer, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _id_text(value: Any) -> Any:
    """An id as the tables hold it: the text of a whole number, as `advprior data check` makes it.

    >>> _id_text(7), _id_text("7"), _id_text(True), _id_text(7.5)
    ('7', '7', True, 7.5)
    """
    whole = _whole(value)
    return str(whole) if isinstance(whole, int) and not isinstance(whole, bool) else value


_IdText = Annotated[str, Field(min_length=1, max_length=LONGEST)]
_Id = BeforeValidator(_id_text, _IdText | int)
UserId = Annotated[_IdText, _Id, Field(description="Whose slate it is.", examples=["h7"])]
AdId = Annotated[_IdText, _Id]


# the limits of the tables that rankers are trained on: what `advprior data check` lets pass can be asked
_Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
_Text = Annotated[str, Field(max_length=LONGEST)]


def context_model(plans: list[Plan]) -> type[BaseModel]:
    """The context features that the rankers read: text, a number or a flag each, all optional, nothing else."""
    fields: dict[str, Any] = {}
    for plan in plans:
        for name, text in plan.context_kinds().items():
            kind = _Text if text else _Number | bool  # a flag is a number to a ranker
            fields[name] = (kind | None, Field(default=None))
    model: type[BaseModel] = create_model(
        "Context", __config__=ConfigDict(extra="forbid", strict=True), __doc__="Features of the request.", **fields
    )
    return model


def request_model(plans: list[Plan], max_candidates: int, max_slots: int) -> type[BaseModel]:
    """``POST /rank``'s body, within the service's limits."""
    context = context_model(plans)
    own: dict[str, Any] = {
        "ad_id": (AdId, Field(examples=["m1002/SOUP"])),
        "context": (context | None, Field(default=None)),
    }
    candidate = create_model(
        "Candidate",
        __config__=ConfigDict(extra="forbid", strict=True),
        __doc__="One ad, with a context of its own where it differs from the request's.",
        **own,
    )
    some = Annotated[list[AdId | candidate], Field(min_length=1, max_length=max_candidates)]  # type: ignore[valid-type]
    whole = Field(ge=1, le=max_slots, description="How many ads come back.")
    slots = Annotated[int, whole, BeforeValidator(_whole)]  # in this order, or the schema loses the limits
    fields: dict[str, Any] = {
        "user_id": (UserId, ...),
        "slots": (slots, 10),
        "candidates": (
            some | None,
            Field(default=None, description="Ads to rank, ids or {ad_id, context}. Default: the service's own choice."),
        ),
        "context": (context | None, Field(default=None, description="Features of the request as a whole.")),
    }
    model: type[BaseModel] = create_model(
        "RankRequest",
        __config__=ConfigDict(
            extra="forbid",
            strict=True,
            json_schema_extra={"examples": [{"user_id": "h7", "slots": 5}]},
        ),
        __doc__="Rank ads for a user.",
        **fields,
    )
    return model


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Contributions(_Answer):
    """Exact TreeSHAP of one ad's score, in log-odds before calibration: base + features = raw_score."""

    base: float
    raw_score: float
    prior: float = Field(description="Sum over the prior's features.")
    prior_share: float = Field(ge=0, le=1, description="Of all contributions, by size.")
    features: dict[str, float] = Field(description="Largest first; those of zero are left out.")


class Slot(_Answer):
    """One ranked ad."""

    position: int = Field(ge=1)
    ad_id: str
    advertiser_id: str | None = Field(description="None: the ad is not in the service's catalog.")
    score: float = Field(ge=0, le=1, description="Calibrated probability.")
    contributions: Contributions | None = Field(default=None, description="With ?explain=true.")
    origin: Literal["given", "most_shown", "towers", "predicted_advertiser"] | None = Field(
        default=None, description="With ?explain=true: where the candidate came from."
    )


class PriorUsed(_Answer):
    """The prior behind the answer."""

    predictor: str
    publication: str = Field(description="Of what `advprior publish` wrote: the end of its folder's name.")
    snapshot: str
    age_days: float
    catalog_version: str


class Exposure(_Answer):
    """Whether the slate is in the exposure log: only then does it count in the experiment."""

    id: str
    logged: bool


class RankResponse(_Answer):
    """A slate, best first."""

    request_id: str
    user_id: str
    user_known: bool
    experiment: str
    arm: str
    service: str = Field(description="Feature service of the ranker that ranked.")
    ranker: str = Field(description="Digest of that ranker.")
    degraded: list[str] = Field(
        description="Why the answer is less than it could be, such as prior_missing, prior_stale, prior_corrupt, "
        "prior_catalog_unknown, store_unavailable, history_stale, history_corrupt, candidates_without_priors, "
        "exposure_not_logged. Empty: nothing was missing."
    )
    prior: PriorUsed | None = Field(description="None where the arm has no priors, or none could be used.")
    candidates: int = Field(ge=0)
    unknown_ads: list[str] = Field(
        description="Candidates that are not in the service's catalog: ranked last, scored no higher than any other."
    )
    reference: dict[str, float] = Field(
        description="Context that the request did not give and nobody knows before ranking, such as the position: "
        "candidates without one of their own are all ranked at this value. {} where the ranker reads none."
    )
    slots: list[Slot]
    exposure: Exposure | None = Field(description="None: exposures are not logged.")
    as_of: dict[str, list[str]] | None = Field(
        default=None,
        description="With ?explain=true, or for a replayed request: when the rows behind the answer became available, "
        "by view; empty where none was in time.",
    )


class Problem(_Answer):
    """What is wrong with a request."""

    code: str
    what: str
    where: str | None = None
    actual: str | None = None
    expected: str | None = None


class ErrorResponse(_Answer):
    """Every error has this form."""

    request_id: str
    problems: list[Problem]


class Health(_Answer):
    """The process answers."""

    status: str


class Ready(_Answer):
    """Whether traffic should come here, and what is loaded."""

    ready: bool
    version: str = Field(description="Of advprior.")
    degraded: list[str]
    rankers: dict[str, str]
    experiment: str
    scores_by: str = Field(description="lleaves (compiled trees) or lightgbm.")
    ads: int
    candidates: dict[str, str | float | int] = Field(description="What chooses ads for a request that names none.")
    clock: Literal["system", "set", "request"] = Field(
        description="set: it was started at another moment. request: a replay may say as of when it is ranked."
    )
    now: str = Field(description="What that clock shows.")
    exposures: bool = Field(description="Whether exposures are logged.")


#: What 4xx answers look like in the OpenAPI.
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The body is no text."},
    401: {"model": ErrorResponse, "description": "No API key, or another one."},
    413: {"model": ErrorResponse, "description": "The body is too large."},
    422: {"model": ErrorResponse, "description": "The body is not what was expected."},
    429: {"model": ErrorResponse, "description": "Too many requests wait already; Retry-After says when to try again."},
}
