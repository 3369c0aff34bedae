"""The HTTP face of the engine: validation, API key, exposures, metrics. Everything of note happens in `engine`."""

from __future__ import annotations

import hmac
import json
import logging
import os
import random
import uuid
from asyncio import get_running_loop
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import HTTPConnection

from advprior.store.errors import AdvpriorError
from advprior.store.runs import versions
from ranking.experiment.assignment import load_experiment
from ranking.experiment.exposures import ExposureLog
from ranking.experiment.shown import FEATURES, to_record
from ranking.frame.counts import moment_us
from ranking.service.clock import Clock
from ranking.service.engine import Engine, Slate
from ranking.service.messages import ERRORS, Health, RankResponse, Ready, request_model
from ranking.service.metrics import Metrics
from ranking.service.middleware import Around
from ranking.service.page import Page
from ranking.service.predictor import default_cache
from ranking.service.settings import KEY_VARIABLE, SETTINGS_VARIABLE, TIME_HEADER, ServeSettings

log = logging.getLogger("advprior.service")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN = 200  # characters of a wrong value that an error repeats


def moment(us: int) -> str:
    """ISO 8601 of microseconds since 1970."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat()


def make_engine(settings: ServeSettings, clock: Clock | None = None) -> Engine:
    """The engine that the settings describe; nothing is read from the store yet."""
    return Engine(
        settings.repo,
        settings.ranker,
        settings.fallback,
        experiment=load_experiment(settings.experiment),
        clock=clock or Clock(settings.clock_start),
        cache=default_cache() if settings.compile else None,
        max_prior_age_days=settings.max_prior_age_days,
        refresh_s=settings.refresh_s,
        towers=settings.towers,
        quota=settings.candidates,
        exact_up_to=settings.exact_up_to,
        default_candidates=settings.default_candidates,
    )


def required_key(settings: ServeSettings) -> str | None:
    """The API key, None where the settings ask for none.

    Raises
    ------
    AdvpriorError
        ``SRV005`` when one is asked for and not given.
    """
    if not settings.api_key:
        return None
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise AdvpriorError(
            "SRV005",
            "the service needs an API key",
            where=KEY_VARIABLE,
            actual="nothing",
            expected="a secret in that environment variable",
            fix="set it, or serve openly with --no-api-key",
        )
    return key


def create_app(settings: ServeSettings, engine: Engine | None = None) -> FastAPI:
    """The application of one worker.

    Parameters
    ----------
    engine : Engine, optional
        One that is made already.
    """
    key = required_key(settings)
    if settings.log_features and settings.exposures is None:
        raise AdvpriorError(
            "SRV020",
            "features are logged with exposures, and those are not logged",
            where="--log-features",
            actual="no --exposures",
            expected="a folder for the exposure log",
            fix="add --exposures DIR, or leave --log-features out",
        )
    engine = engine or make_engine(settings)
    metrics = Metrics()
    exposures = None if settings.exposures is None else ExposureLog(settings.exposures, fsync=settings.fsync)
    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="advprior-rank")
    page = Page(engine, settings.repo) if settings.page else None

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await get_running_loop().run_in_executor(pool, engine.start)
        log.info("serving", extra={"services": engine.reader.services, "experiment": engine.experiment.name})
        yield
        engine.stop()
        pool.shutdown()
        if page is not None:
            page.close()
        if exposures is not None:
            exposures.close()
        log.info("stopped")

    app = FastAPI(
        title="advprior ranking service",
        version=versions().get("advprior", "0"),
        description="Ranks ads for a user with a LightGBM ranker and an LLM's advertiser priors from Feast.",
        lifespan=life,
        docs_url=None,  # the page loads its code from elsewhere
        redoc_url=None,
    )
    app.state.engine, app.state.metrics = engine, metrics
    app.add_middleware(Around, max_body=settings.max_body, metrics=metrics)
    _errors(app)

    guards = [] if key is None else [Depends(_KeyHeader(key))]
    plans = [engine.rankers.priors.plan, engine.rankers.plain.plan]
    body_model: Any = request_model(plans, settings.max_candidates, settings.max_slots)

    async def rank(
        request: Request,
        body: body_model,
        explain: Annotated[bool, Query(description="Give each slot's contributions (exact TreeSHAP).")] = False,
    ) -> Response:
        """Rank ads for one user.

        Never fails for want of a feature: whatever is missing, stale or unreachable is named in `degraded`, and the
        ranker without priors answers.
        """
        candidates, contexts = _candidates(body.candidates)
        context = {} if body.context is None else body.context.model_dump(exclude_none=True)
        now_us = _time_of(request) if settings.clock_source == "request" else None

        def work() -> tuple[Slate, dict[str, Any] | None]:
            # not by user or time: what is sampled must be like all that is shown
            keep = exposures is not None and random.random() < settings.log_features
            slate = engine.rank(
                body.user_id,
                body.slots,
                candidates,
                context=context,
                contexts=contexts,
                explain=explain,
                keep=keep,
                now_us=now_us,
            )
            logged = None
            if exposures is not None:
                logged = _log_exposure(exposures, engine, slate, body.user_id, request.state.request_id)
            return slate, logged

        slate, exposure = await get_running_loop().run_in_executor(pool, work)
        if exposure is not None:
            metrics.exposures.labels("logged" if exposure["logged"] else "failed").inc()
        metrics.ranked(slate)
        request.state.about = {"arm": slate.arm.name, "degraded": slate.degraded, "candidates": slate.candidates}
        answer = _answer(engine, slate, body.user_id, request.state.request_id, exposure)
        # the models describe the answer and tests hold it to them; building it through them would cost a millisecond
        return Response(json.dumps(answer, separators=(",", ":"), allow_nan=False), media_type="application/json")

    rank.__annotations__["body"] = body_model  # a local name, which FastAPI cannot look up
    app.post("/rank", response_model=RankResponse, responses=_answers(key), dependencies=guards, tags=["ranking"])(rank)

    @app.get("/health", response_model=Health, tags=["service"])
    async def health() -> Health:
        """Whether the process answers: restart it when it does not."""
        return Health(status="ok")

    @app.get("/ready", response_model=Ready, responses={503: {"model": Ready}}, tags=["service"])
    async def ready(response: Response) -> Ready:
        """Whether to send traffic here: 503 before the ads are read, and while the store does not answer.

        A service that is not ready still answers `/rank`, degraded.
        """
        reasons = await get_running_loop().run_in_executor(pool, engine.not_ready)
        response.status_code = 503 if reasons else 200
        return Ready(
            ready=not reasons,
            degraded=reasons,
            rankers={loaded.service: loaded.digest for loaded in (engine.rankers.priors, engine.rankers.plain)},
            experiment=engine.experiment.name,
            scores_by=engine.rankers.priors.predictor.kind,
            ads=len(engine.table.ids),
            candidates=engine.source.about(),
            clock=settings.clock_source,
            exposures=exposures is not None,
        )

    @app.get(
        "/metrics",
        response_class=Response,
        tags=["service"],
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        for result, count in engine.reloads.items():
            metrics.reloads.labels(result).set(count)
        if engine.table.read_us >= 0:
            metrics.ads_age.set((engine.clock.now_us() - engine.table.read_us) / 1e6)
        text, kind = metrics.page()
        return Response(text, media_type=kind)

    if page is not None:
        page.add_to(app, key)
    return app


def app_from_environment() -> FastAPI:
    """What a uvicorn worker calls."""
    return create_app(ServeSettings.model_validate_json(os.environ[SETTINGS_VARIABLE]))


def _answers(key: str | None) -> dict[int | str, dict[str, Any]]:
    return {status: about for status, about in ERRORS.items() if key is not None or status != 401}


class _KeyHeader(APIKeyHeader):
    """Asks for the API key, and says so in the OpenAPI."""

    def __init__(self, key: str) -> None:
        super().__init__(name="X-API-Key", auto_error=False)
        self._key = key.encode()

    async def __call__(self, request: HTTPConnection) -> str | None:
        given = request.headers.get("x-api-key", "")
        # compared in constant time, so that answers do not tell how much of a guess was right
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._key):
            raise HTTPException(401, "no API key, or another one", headers={"WWW-Authenticate": "ApiKey"})
        return given


def _time_of(request: Request) -> int | None:
    """As of when a replayed request is to be ranked; None where it does not say."""
    given = request.headers.get(TIME_HEADER)
    if given is None:
        return None
    try:
        found = datetime.fromisoformat(given)
        if found.tzinfo is None:
            raise ValueError("no zone")
        return moment_us(found)
    except (ValueError, OverflowError) as error:
        problem = {"type": "value_error", "loc": ("header", TIME_HEADER), "input": given, "msg": "ISO 8601 with a zone"}
        raise RequestValidationError([problem]) from error


def _candidates(given: list[Any] | None) -> tuple[list[str] | None, list[dict[str, Any] | None] | None]:
    """Ad ids without doubles, and the contexts of those that brought one."""
    if given is None:
        return None, None
    found: dict[str, dict[str, Any] | None] = {}
    for one in given:
        if isinstance(one, str):
            found.setdefault(one, None)
        else:
            context = None if one.context is None else one.context.model_dump(exclude_none=True)
            found.setdefault(one.ad_id, context)
    contexts = list(found.values())
    return list(found), contexts if any(contexts) else None


def _log_exposure(log_: ExposureLog, engine: Engine, slate: Slate, user_id: str, request_id: str) -> dict[str, Any]:
    """Append the exposure; one that cannot be logged is said in the answer."""
    record = {
        "exposure_id": uuid.uuid4().hex,
        "request_id": request_id,
        "time": moment(slate.now_us),
        "experiment": engine.experiment.name,
        "arm": slate.arm.name,
        "user_id": user_id,
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
    try:
        log_.append(record)
    except OSError as error:
        slate.degraded.append("exposure_not_logged")
        log.error("an exposure cannot be logged", extra={"request_id": request_id, "error": repr(error)})
        return {"id": record["exposure_id"], "logged": False}
    return {"id": record["exposure_id"], "logged": True}


def _prior_used(slate: Slate, age_days: float | None = None) -> dict[str, Any] | None:
    """Whose prior it was, and of which publication; None without one."""
    prior = slate.prior
    if prior is None:
        return None
    found = {
        "predictor": prior.view.removeprefix("prior_"),
        "publication": prior.publication,
        "snapshot": moment(prior.snapshot_us),
        "catalog_version": prior.version,
    }
    return found if age_days is None else found | {"age_days": age_days}


def _answer(
    engine: Engine, slate: Slate, user_id: str, request_id: str, exposure: dict[str, Any] | None
) -> dict[str, Any]:
    slots = []
    for i, ((ad, advertiser), score) in enumerate(zip(slate.ads, slate.scores, strict=True)):
        slot = {"position": i + 1, "ad_id": ad, "advertiser_id": advertiser, "score": score}
        if slate.contributions is not None:
            slot["contributions"] = slate.contributions[i]
            slot["origin"] = slate.origins[i]
        slots.append(slot)
    return {
        "request_id": request_id,
        "user_id": user_id,
        "user_known": slate.user_known,
        "experiment": engine.experiment.name,
        "arm": slate.arm.name,
        "service": slate.ranker.service,
        "ranker": slate.ranker.digest,
        "degraded": slate.degraded,
        "prior": _prior_used(slate, slate.prior_age_days),
        "candidates": slate.candidates,
        "unknown_ads": slate.unknown_ads,
        "slots": slots,
        "exposure": exposure,
        **(
            {"as_of": {view: [moment(us) for us in found] for view, found in slate.as_of.items()}}
            if slate.as_of
            else {}
        ),
    }


def _errors(app: FastAPI) -> None:
    """Every error in one form, with the request's id."""

    def answer(
        request: Request, status: int, problems: list[dict[str, Any]], headers: dict[str, str] | None = None
    ) -> Response:
        body = {"request_id": request.state.request_id, "problems": problems}
        return Response(json.dumps(body), status, headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = []
        for one in error.errors()[:20]:
            where = ".".join(str(part) for part in one["loc"])
            # a missing field's input is the whole body
            found = "nothing" if one["type"] == "missing" else repr(one.get("input"))[:_SHOWN]
            problems.append(
                {
                    "code": "SRV422",
                    "what": "the request is not valid",
                    "where": where,
                    "found": found,
                    "expected": one["msg"],
                }
            )
        return answer(request, 422, problems)

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        problem = {"code": f"SRV{error.status_code}", "what": str(error.detail)}
        return answer(request, error.status_code, [problem], dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error, extra={"request_id": request.state.request_id})
        return answer(request, 500, [{"code": "SRV500", "what": "the service failed"}])
