"""What `advprior run` and `advprior status` print: the state of each step, what is to come, and what was learned."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from advprior.data.periods import periods_of
from advprior.pipeline.armsfile import arms_absent, controls_absent
from advprior.pipeline.budget import forecast_lines
from advprior.pipeline.forecast import Forecast
from advprior.pipeline.own_defaults import edited_files
from advprior.pipeline.plan import FIRST, make_plan, tables_facts, tables_folder, time_plan
from advprior.pipeline.retention import wanted_again
from advprior.pipeline.runner import Outcome, last_step, stamps_of
from advprior.pipeline.settings import Project
from advprior.pipeline.span_settings import merged
from advprior.pipeline.steps import Cost, Step, states
from advprior.store.contract import TimePlan
from advprior.store.progress import duration
from advprior.store.project_files import PROJECT_FILE
from advprior.store.runs import MANIFEST, read_manifest


def check_project(project: Project) -> None:
    """Refuse wrong settings of any predictor now, not after the steps before it.

    Raises
    ------
    AdvpriorError
        ``CFG001`` and ``CFG002``, as `advprior finetune` raises them; ``STO001`` and ``STO023`` for the
        feature repository.
    """
    from advprior.pipeline.fit import own_settings, read_settings, validated_settings
    from advprior.store.offline import store_config

    store_config(project.folder / "feature_repo")
    for prior in project.config.priors:
        if prior.settings_file is not None:
            read_settings(prior.predictor, project.folder / prior.settings_file)
            continue
        read_settings(prior.predictor, None, project=project.folder)
        if prior.settings:
            whole = merged(own_settings(prior.predictor, project.folder), prior.settings)
            validated_settings(prior.predictor, whole, f"{project.folder / PROJECT_FILE}: settings of {prior.name}")


def edited_configs(project: Project) -> str:
    """Which of the project's own files are its defaults because they say something else than the shipped ones."""
    edited = edited_files(project.folder)
    if not edited:
        return ""
    absent = arms_absent(project.config, project.folder)
    without = f" (not measured, as it has no such arm: {', '.join(absent)})" if absent else ""
    return f"defaults of this project: {', '.join(str(project.folder / name) for name in edited)}{without}"


def remarks(project: Project) -> list[str]:
    """What to know before a run: which of the project's files are its defaults, and controls that the verdict lacks."""
    edited = edited_configs(project)
    return [*([edited] if edited else []), *controls_absent(project.config, project.folder)]


def status_rows(project: Project) -> list[tuple[Step, str, str, Cost | None]]:
    """Every step with its state, why it is not current, and what it cost."""
    plan, stamps = make_plan(project), stamps_of(project)
    every = states(project.folder, plan, stamps)
    return [(step, *every[step.name], stamps.cost(step)) for step in plan.steps]


def status_lines(project: Project) -> list[str]:
    """One line a step: state, cost, and why it is not current; then what to do."""
    rows = status_rows(project)
    width = max(len(step.name) for step, *_ in rows)
    lines = [f"{'step':<{width}}  {'state':<8} {'CPU-s':>8} {'s':>7} {'GB':>5} {'disk MB':>8}"]
    for step, state, why, cost in rows:
        figures = " " * 31
        if cost is not None:
            memory = cost.memory_mb / 1024
            figures = f"{cost.cpu_seconds:>8.1f} {cost.seconds:>7.1f} {memory:>5.1f} {cost.disk_mb:>8.1f}"
        lines.append(f"{step.name:<{width}}  {state:<8} {figures}  {why}".rstrip())
    costs = [cost for *_, cost in rows if cost is not None]
    if costs:
        cpu, seconds = sum(cost.cpu_seconds for cost in costs), sum(cost.seconds for cost in costs)
        memory, disk = max(cost.memory_mb for cost in costs) / 1024, sum(cost.disk_mb for cost in costs)
        lines.append(f"{'in all':<{width}}  {'':<8} {cpu:>8.1f} {seconds:>7.1f} {memory:>5.1f} {disk:>8.1f}")
    times = time_plan(project)
    lines += time_plan_lines(times, tables_facts(project)) if times else []
    lines += controls_absent(project.config, project.folder)
    todo = sum(state != "current" for _, state, *_ in rows)
    where = "" if project.folder == Path() else f" {shlex.quote(str(project.folder))}"
    following = f"; next: advprior run{where}" if todo else ""
    lines.append(f"{len(rows) - todo} of {len(rows)} steps are current{following}")
    return lines


def time_plan_lines(plan: TimePlan, facts: Mapping[str, Any] | None = None) -> list[str]:
    """A time plan in words, one line a period.

    Parameters
    ----------
    plan : TimePlan
    facts : mapping, optional
        Of the tables' manifest: what lies in each period, and whether the plan was proposed.
    """
    facts = facts or {}
    day, counts = timedelta(days=1), facts.get("periods", {})
    proposed = bool(facts.get("time_plan_proposed"))
    how = ", proposed from the data's span (set time_plan in the mapping to change it)" if proposed else ""
    return [
        f"time plan{how}:",
        *(
            f"  {name:<22} {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}  ({(end - start) / day:.0f} days)"
            + "".join(f"{', ' if i else ': '}{n:,} {what}" for i, (what, n) in enumerate(counts.get(name, {}).items()))
            for name, (start, end) in periods_of(plan).items()
        ),
        f"  priors are made anew every {plan.snapshot_every / day:g} days: {len(plan.snapshots())} snapshots",
    ]


def label_delay_line(seconds: float, *, stated: bool) -> str:
    """When a label is complete, in words.

    >>> label_delay_line(604800.0, stated=False)
    '  labels are complete 7 days after their impression (the default; set label_delay in the mapping to change it)'
    """
    default = "" if stated else " (the default; set label_delay in the mapping to change it)"
    return f"  labels are complete {seconds / 86400:g} days after their impression{default}"


def dry_run(project: Project, until: str | None, *, force: bool = False) -> list[str]:
    """The commands that would run, and the forecast; settings that they read are written, so that they can be typed."""
    plan, stamps = make_plan(project), stamps_of(project)
    every = states(project.folder, plan, stamps)
    for name in wanted_again(project.folder, plan, every, last_step(plan, until)):
        every[name] = ("stale", "its arrays were removed, and a new frame reads them")
    todo = [step for step in last_step(plan, until) if force or every[step.name][0] != "current"]
    if not todo:
        return ["nothing to do: every step is current"]
    lines = [f"cd {project.folder}"] if project.folder != Path() else []
    for step in todo:
        plan.write_files(project.folder, step)
        lines += [f"# {step.name}: {every[step.name][0]}{_because(every[step.name][1])}", shlex.join(step.command)]
    if time_plan(project) is None:
        return [*lines, "# times of materialize, and the forecast, follow the tables: advprior run --until 'data …'"]
    return [*lines, *(f"# {line.strip()}" for line in forecast_lines(Forecast(project, plan, stamps), todo))]


def _because(why: str) -> str:
    return f" ({why})" if why else ""


def summary(project: Project, outcome: Outcome, until: str | None) -> list[str]:
    """What was learned, where it stands, what it cost, what to do next."""
    folder = project.folder
    if not outcome.ran:
        lines = [f"nothing to do: {len(outcome.current)} steps are current"]
    else:
        costs = outcome.costs.values()
        cpu, memory = sum(cost.cpu_seconds for cost in costs), max(cost.memory_mb for cost in costs)
        disk = sum(cost.disk_mb for cost in costs)
        lines = [
            f"\ncost:    {duration(outcome.seconds)}, {cpu:.0f} CPU-seconds, at most {memory / 1024:.1f} GB of memory "
            f"in one step, {disk / 1000:.2f} GB of disk"
            + (f"; {len(outcome.current)} steps were current" if outcome.current else "")
        ]
        if outcome.freed:
            lines.append(
                f"         {outcome.freed / 1e9:.2f} GB of scored priors that are measured, not served, were removed: "
                "a new frame scores them again (disk: {scores_mb: null} keeps them)"
            )
    report = project.config.report.folder if project.config.report is not None else "ablation"
    first = folder / "first" / "ablation"
    if until is not None:
        if until in ("first", FIRST) and (first / MANIFEST).is_file():
            lines.insert(0, f"\nwithout an LLM: {read_manifest(first)['facts'].get('verdict', '')}")
        return lines
    if (folder / report / MANIFEST).is_file():
        facts = read_manifest(folder / report)["facts"]
        lines[:0] = ["\n" + str(facts.get("verdict", "")), *facts.get("others", [])]
        page = next((folder / report).glob("*.html"), None)
        lines += [f"report:  {page}"] if page else []
    note = read_manifest(folder / tables_folder(project))["facts"].get("note")
    lines += [f"data:    {note}"] if note else []
    lines.append("next:    " + _next(project))
    return lines


def _next(project: Project) -> str:
    """What to do after a whole run: serve what gains, else read why it does not."""
    if project.config.tables.example is not None:
        return "your own data: advprior init my-project"
    times, report = time_plan(project), project.config.report
    measured = project.folder / ("ablation" if report is None else report.folder)
    if times is None or not (project.folder / "ranker" / MANIFEST).is_file():
        return f"advprior status {project.folder}"  # tables without impressions, or several cut-offs: nothing to serve
    folders = {"repo": "feature_repo", "ranker": "ranker", "fallback": "ranker_baseline"}
    words = [word for name, folder in folders.items() for word in (f"--{name}", str(project.folder / folder))]
    newest = times.end + times.lag
    if datetime.now(UTC) - newest > 2 * times.snapshot_every:  # the service would take all of it for stale
        words += ["--clock-start", newest.strftime("%Y-%m-%dT%H:%M:%SZ")]
    serve = shlex.join(["advprior", "rank", "serve", *words, "--no-api-key"])
    kind = read_manifest(measured)["facts"].get("kind", "") if (measured / MANIFEST).is_file() else ""
    return serve if str(kind).startswith("win") else f"read the report; to look at what would be served: {serve}"
