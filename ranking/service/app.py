"""The HTTP application of one worker: engine, endpoints, exposure log and page, from their start to their end."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from advprior.store.errors import AdvpriorError
from advprior.store.versions import versions
from ranking.experiment.assignment import load_experiment
from ranking.experiment.exposures import ExposureLog
from ranking.models.lightgbm_library import light_lightgbm_import
from ranking.service.clock import Clock
from ranking.service.engine import Engine
from ranking.service.keys import required_key
from ranking.service.lanes import Lane
from ranking.service.metrics import Metrics
from ranking.service.middleware import Around
from ranking.service.page import Page
from ranking.service.predictor import default_cache
from ranking.service.problems import add_error_handlers
from ranking.service.resources import EngineOptions
from ranking.service.routes import Service, add_metrics, add_rank, add_status
from ranking.service.settings import SETTINGS_VARIABLE, ServeSettings
from ranking.service.traces import Traces

log = logging.getLogger("advprior.service")


def make_engine(settings: ServeSettings, clock: Clock | None = None) -> Engine:
    """The engine that the settings describe; nothing is read from the store yet."""
    return Engine(
        EngineOptions(
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
    )


def create_app(settings: ServeSettings, engine: Engine | None = None) -> FastAPI:
    """The application of one worker.

    Parameters
    ----------
    engine : Engine, optional
        One that is made already.

    Raises
    ------
    AdvpriorError
        ``SRV005`` without the API key that the settings ask for, ``SRV020`` when features are to be logged and
        exposures are not, ``SRV024`` when traces lack their packages; and whatever making the engine raises.
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
    service = Service(
        settings,
        engine or make_engine(settings),
        Metrics(),
        key,
        None if settings.exposures is None else ExposureLog(settings.exposures, fsync=settings.fsync),
        Lane("rank", settings.threads, settings.max_waiting),
        Lane("explain", 1, settings.max_waiting),
        Lane("probe", 1),
        Traces() if settings.traces else None,
    )
    page = Page(service.engine, settings.repo) if settings.page else None
    app = FastAPI(
        title="advprior ranking service",
        version=versions().get("advprior", "0"),
        description="Ranks ads for a user with a LightGBM ranker and an LLM's advertiser priors from Feast.",
        lifespan=_lifespan(service, page),
        docs_url=None,  # the page loads its code from elsewhere
        redoc_url=None,
    )
    app.state.engine, app.state.metrics = service.engine, service.metrics
    app.add_middleware(Around, max_body=settings.max_body, metrics=service.metrics, refuses=service.refuses)
    add_error_handlers(app)
    add_rank(app, service)
    add_status(app, service)
    add_metrics(app, service)
    if page is not None:
        page.add_to(app, key)
    return app


def _lifespan(service: Service, page: Page | None) -> Any:
    """Start the engine before the first request, and end everything after the last."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = service.engine
        await service.probe_lane.run(engine.start)  # not in the lane that learns from it how long ranking takes
        log.info(
            "serving", extra={"services": list(engine.resources.reader.views_of), "experiment": engine.experiment.name}
        )
        yield
        engine.stop()
        for lane in service.lanes:
            lane.close()
        if page is not None:
            page.close()
        if service.exposures is not None:
            service.exposures.close()
        if service.traces is not None:
            service.traces.close()
        log.info("stopped")

    return lifespan


def try_start(settings_json: str) -> None:
    """What the workers of a service would refuse is refused here, once, and the trees are compiled for all of them.

    To be called in a process that ends: who only starts workers and watches them needs none of the libraries.

    Raises
    ------
    AdvpriorError
        What `create_app` raises.
    """
    light_lightgbm_import()
    settings = ServeSettings.model_validate_json(settings_json)
    required_key(settings)
    make_engine(settings)


def app_from_environment() -> FastAPI:
    """What a uvicorn worker calls."""
    light_lightgbm_import()
    return create_app(ServeSettings.model_validate_json(os.environ[SETTINGS_VARIABLE]))
