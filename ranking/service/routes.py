"""The service's endpoints: `/rank` ranks in a worker thread, the others say how the service is."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError

from advprior.store.times import moment_us
from advprior.store.versions import versions
from ranking.experiment.client import TIME_HEADER
from ranking.experiment.exposures import ExposureLog
from ranking.service import slate
from ranking.service.answers import RequestInfo, log_exposure, moment, rank_answer
from ranking.service.engine import Engine
from ranking.service.keys import KeyHeader, key_in
from ranking.service.lanes import Lane
from ranking.service.messages import ERRORS, Health, RankResponse, Ready, request_model
from ranking.service.metrics import Metrics
from ranking.service.settings import ServeSettings
from ranking.service.traces import Traces


@dataclass(frozen=True)
class Service:
    """What the endpoints of one worker share.

    Attributes
    ----------
    key : str, optional
        API key that ``/rank`` asks for; None where it asks for none.
    exposures : ExposureLog, optional
    lane, explain_lane, probe_lane : Lane
        Where requests are ranked, those with explanations, and where the store is asked whether it answers.
    traces : Traces, optional
    """

    settings: ServeSettings
    engine: Engine
    metrics: Metrics
    key: str | None
    exposures: ExposureLog | None
    lane: Lane
    explain_lane: Lane
    probe_lane: Lane
    traces: Traces | None = None

    def refuses(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request to rank has no room; one without the API key is left to whoever refuses it for that."""
        if scope["path"] != "/rank" or scope["query_string"]:
            return False
        return (self.key is None or key_in(headers, self.key)) and self.lane.refuses()

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """All of them."""
        return self.lane, self.explain_lane, self.probe_lane


def add_rank(app: FastAPI, service: Service) -> None:
    """``POST /rank``."""
    settings, plans = service.settings, [loaded.plan for loaded in service.engine.resources.rankers.both()]
    body_model: Any = request_model(plans, settings.max_candidates, settings.max_slots)

    async def rank(
        request: Request,
        body: body_model,
        explain: Annotated[bool, Query(description="Give each slot's contributions (exact TreeSHAP).")] = False,
    ) -> Response:
        """Rank ads for one user.

        Never fails for want of a feature: whatever is missing, stale or unreachable is named in `degraded`, and the
        ranker without priors answers. Where more requests wait than `--max-waiting`, 429 with Retry-After at once.
        """
        now_us = _time_of(request) if settings.clock_source == "request" else None
        # not by user or time: what is sampled must be like all that is shown
        keep_features = service.exposures is not None and random.random() < settings.log_features
        query = _query(body, explain, now_us, keep_features)
        info = RequestInfo(body.user_id, request.state.request_id, service.engine.experiment.name)
        lane = service.explain_lane if explain else service.lane
        begin_ns = 0 if service.traces is None else time.time_ns()
        ranked, exposure, ended_ns = await lane.run(_rank, service, query, info)
        if service.traces is not None:
            service.traces.ranked(ranked, begin_ns, ended_ns)
        if exposure is not None:
            service.metrics.exposures.labels("logged" if exposure["logged"] else "failed").inc()
        service.metrics.ranked(ranked)
        stages = {stage: round(seconds * 1e3, 3) for stage, seconds in ranked.timings.items()}
        about = {"arm": ranked.arm.name, "degraded": ranked.degraded, "candidates": ranked.candidates}
        request.state.about = about | {"stages_ms": stages}
        answer = rank_answer(ranked, info, exposure)
        # the models describe the answer and tests hold it to them; building it through them would cost a millisecond
        return Response(json.dumps(answer, separators=(",", ":"), allow_nan=False), media_type="application/json")

    rank.__annotations__["body"] = body_model  # a local name, which FastAPI cannot look up
    guards = [] if service.key is None else [Depends(KeyHeader(service.key))]
    errors = {status: about for status, about in ERRORS.items() if service.key is not None or status != 401}
    app.post("/rank", response_model=RankResponse, responses=errors, dependencies=guards, tags=["ranking"])(rank)


def _rank(service: Service, query: slate.Query, info: RequestInfo) -> tuple[slate.Slate, dict[str, Any] | None, int]:
    """Rank, and log the exposure: in a worker thread. Also when ranking ended, for traces."""
    ranked = service.engine.rank(query)
    ended_ns = 0 if service.traces is None else time.time_ns()
    logged = None if service.exposures is None else log_exposure(service.exposures, ranked, info)
    return ranked, logged, ended_ns


def _query(body: Any, explain: bool, now_us: int | None, keep_features: bool) -> slate.Query:
    """A validated body as the engine takes it: ad ids without doubles, and the contexts of those that brought one."""
    contexts: dict[str, dict[str, Any] | None] | None = None
    if body.candidates is not None:
        contexts = {}
        for one in body.candidates:
            if isinstance(one, str):
                contexts.setdefault(one, None)
            else:
                contexts.setdefault(one.ad_id, _context(one.context))
    return slate.Query(
        body.user_id,
        body.slots,
        None if contexts is None else list(contexts),
        context=_context(body.context) or {},
        contexts=list(contexts.values()) if contexts and any(contexts.values()) else None,
        explain=explain,
        now_us=now_us,
        keep_features=keep_features,
    )


def _context(model: Any) -> dict[str, Any] | None:
    return None if model is None else dict(model.model_dump(exclude_none=True))


def _time_of(request: Request) -> int | None:
    """As of when a replayed request is to be ranked; None where it does not say."""
    given = request.headers.get(TIME_HEADER)
    if given is None:
        return None
    try:
        as_of = datetime.fromisoformat(given)
        if as_of.tzinfo is None:
            raise ValueError("no zone")
        return moment_us(as_of)
    except (ValueError, OverflowError) as error:
        problem = {"type": "value_error", "loc": ("header", TIME_HEADER), "input": given, "msg": "ISO 8601 with a zone"}
        raise RequestValidationError([problem]) from error


def add_status(app: FastAPI, service: Service) -> None:
    """``GET /health`` and ``GET /ready``."""
    engine = service.engine

    @app.get("/health", response_model=Health, tags=["service"])
    async def health() -> Health:
        """Whether the process answers: restart it when it does not."""
        return Health(status="ok")

    @app.get("/ready", response_model=Ready, responses={503: {"model": Ready}}, tags=["service"])
    async def ready(response: Response) -> Ready:
        """Whether to send traffic here: 503 before the ads are read, and while the store does not answer.

        A service that is not ready still answers `/rank`, degraded.
        """
        reasons = await service.probe_lane.run(engine.not_ready)
        response.status_code = 503 if reasons else 200
        resources = engine.resources
        return Ready(
            ready=not reasons,
            version=versions().get("advprior", "0"),
            degraded=reasons,
            rankers={loaded.service: loaded.digest for loaded in resources.rankers.both()},
            experiment=engine.experiment.name,
            scores_by=resources.rankers.priors.predictor.kind,
            ads=len(resources.table.ids),
            candidates=resources.source.about(),
            clock=_clock_of(service.settings),
            now=moment(engine.clock.now_us()),
            exposures=service.exposures is not None,
        )


def _clock_of(settings: ServeSettings) -> Literal["system", "set", "request"]:
    if settings.clock_source == "request":
        return "request"
    return "system" if settings.clock_start is None else "set"


def add_metrics(app: FastAPI, service: Service) -> None:
    """``GET /metrics``."""
    engine, metrics = service.engine, service.metrics

    @app.get(
        "/metrics",
        response_class=Response,
        tags=["service"],
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        metrics.look(engine, service.lane.waiting)
        text, kind = metrics.page()
        return Response(text, media_type=kind)
