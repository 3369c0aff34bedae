"""Settings that a prior of a project is fitted with, and the runs of other priors that they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from advprior.pipeline.own_defaults import edited_settings
from advprior.pipeline.settings import Export, Prior, Project, ProjectConfig
from advprior.pipeline.span_settings import merged, settings_for_span
from advprior.store.contract import LLM, TimePlan


def settings_in(project: Project, prior: Prior, times: TimePlan | None, at: Callable[[str], str]) -> dict[str, Any]:
    """What the data's span, the project's own defaults and the project file say of a prior, in that order.

    Parameters
    ----------
    project : Project
    prior : Prior
    times : TimePlan, optional
        None before the tables are made.
    at : callable
        Gives a folder of the project in that of one cut-off: texts are encoded by the run that was fitted there.
    """
    own = edited_settings(prior.predictor, project.folder)
    settings = merged(merged(settings_for_span(prior.predictor, times), own), prior.settings)
    for fitted in runs_read(prior, project.config.priors):
        own_run = {"base": at(fitted)}
        settings = merged(settings, own_run if settings.get("base") == fitted else {"encoder": own_run})
    return settings


def runs_read(prior: Prior, priors: Sequence[Prior]) -> tuple[str, ...]:
    """The run of another prior that this one's texts are encoded by, where its settings name one."""
    runs = {f"models/{other.name}" for other in priors if other != prior}
    bases = (prior.settings.get("base"), (prior.settings.get("encoder") or {}).get("base"))
    return tuple(base for base in bases if base in runs)


def graph_form(config: ProjectConfig, prior: Prior, tables: str) -> tuple[str, ...]:
    """Options of an export that is no plain fp32: of the LLM alone, since small graphs gain nothing."""
    form = config.export
    if prior.predictor != LLM or form == Export():
        return ()
    options = ("--precision", form.precision, "--attention", form.attention, "--tables", tables)
    return *options, *config.device_option
