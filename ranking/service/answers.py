"""A slate as JSON: the answer to a request, and the exposure that goes into the log."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ranking.experiment.exposures import FORMAT, ExposureLog
from ranking.experiment.shown import AS_OF, FEATURES, to_record
from ranking.service.slate import Slate

log = logging.getLogger("advprior.service")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(us: int) -> str:
    """ISO 8601 of microseconds since 1970.

    >>> moment(1_500_000)
    '1970-01-01T00:00:01.500000+00:00'
    """
    return (_EPOCH + timedelta(microseconds=us)).isoformat()


@dataclass(frozen=True)
class RequestInfo:
    """Whose slate it is, and of which request and experiment."""

    user_id: str
    request_id: str
    experiment: str


def rank_answer(slate: Slate, info: RequestInfo, exposure: dict[str, Any] | None) -> dict[str, Any]:
    """What `ranking.service.messages.RankResponse` describes.

    Parameters
    ----------
    exposure : dict, optional
        What `log_exposure` gave; None where exposures are not logged.
    """
    slots = []
    for i, ((ad, advertiser), score) in enumerate(zip(slate.ads, slate.scores, strict=True)):
        slot = {"position": i + 1, "ad_id": ad, "advertiser_id": advertiser, "score": score}
        if slate.contributions is not None:
            slot["contributions"] = slate.contributions[i]
            slot["origin"] = slate.origins[i]
        slots.append(slot)
    answer = {
        "request_id": info.request_id,
        "user_id": info.user_id,
        "user_known": slate.user_known,
        "experiment": info.experiment,
        "arm": slate.arm.name,
        "service": slate.ranker.service,
        "ranker": slate.ranker.digest,
        "degraded": slate.degraded,
        "prior": _prior_used(slate, slate.prior_age_days),
        "candidates": slate.candidates,
        "unknown_ads": slate.unknown_ads,
        "reference": dict(slate.reference),
        "slots": slots,
        "exposure": exposure,
    }
    if slate.as_of:
        answer["as_of"] = {view: [moment(us) for us in moments] for view, moments in slate.as_of.items()}
    return answer


def log_exposure(exposures: ExposureLog, slate: Slate, info: RequestInfo) -> dict[str, Any]:
    """Append the exposure; one that cannot be logged is said in the answer, and in ``slate.degraded``.

    Returns
    -------
    dict
        ``id`` and ``logged``.
    """
    record = {
        "format": FORMAT,
        "exposure_id": uuid.uuid4().hex,
        "request_id": info.request_id,
        "time": moment(slate.now_us),
        "experiment": info.experiment,
        "arm": slate.arm.name,
        "user_id": info.user_id,
        "service": slate.ranker.service,
        "ranker": slate.ranker.digest,
        "prior": _prior_used(slate),
        "degraded": slate.degraded,
        "candidates": slate.candidates,
        "slots": [[ad, round(score, 6)] for (ad, _), score in zip(slate.ads, slate.scores, strict=True)],
    }
    if slate.features is not None:
        plan = slate.ranker.plan
        record[FEATURES] = to_record(slate.features, plan.features, plan.categories)
        record[AS_OF] = slate.features_as_of
    try:
        exposures.append(record)
    except OSError as error:
        slate.degraded.append("exposure_not_logged")
        log.error("an exposure cannot be logged", extra={"request_id": info.request_id, "error": repr(error)})
        return {"id": record["exposure_id"], "logged": False}
    return {"id": record["exposure_id"], "logged": True}


def _prior_used(slate: Slate, age_days: float | None = None) -> dict[str, Any] | None:
    """Whose prior it was, and of which publication; None without one."""
    prior = slate.prior
    if prior is None:
        return None
    used = {
        "predictor": prior.predictor,
        "publication": prior.publication,
        "snapshot": moment(prior.snapshot_us),
        "catalog_version": prior.version,
    }
    return used if age_days is None else used | {"age_days": age_days}
