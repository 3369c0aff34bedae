"""Before the long steps: what they will take, and whether there is as much. Minutes lost late are the dearest."""

from __future__ import annotations

from advprior.pipeline.forecast import LONG_SECONDS, Forecast, free_disk_gb
from advprior.pipeline.settings import Project
from advprior.pipeline.steps import Step
from advprior.store.errors import AdvpriorError
from advprior.store.progress import duration
from advprior.store.project_files import PROJECT_FILE
from advprior.store.spent import machine_memory_gb


def forecast_lines(forecast: Forecast, steps: list[Step]) -> list[str]:
    """What is to come: in all, and each long step."""
    costs = [(step, forecast.of(step)) for step in steps]
    time = duration(sum(cost.seconds for _, cost in costs))
    memory = max((cost.memory_mb for _, cost in costs), default=0.0) / 1024
    disk = sum(cost.disk_mb for _, cost in costs) / 1000
    long = [(step.name, cost) for step, cost in costs if cost.seconds >= LONG_SECONDS / 2]
    head = f"forecast: about {time}, {memory:.1f} GB of memory, {disk:.1f} GB of disk; "
    lines = [head + ("the long steps:" if long else f"no step takes over {LONG_SECONDS / 2:.0f} s")]
    wide = max((len(name) for name, _ in long), default=0)
    return lines + [
        f"  {name:<{wide}}  {duration(cost.seconds):>12}  {cost.memory_mb / 1024:.1f} GB" for name, cost in long
    ]


def check_budget(project: Project, forecast: Forecast, steps: list[Step]) -> None:
    """Refuse what the project file's budget or this machine does not have.

    Raises
    ------
    AdvpriorError
        ``RUN012``.
    """
    budget = project.config.budget
    costs = [forecast.of(step) for step in steps]
    minutes = sum(cost.seconds for cost in costs) / 60
    memory = max((cost.memory_mb for cost in costs), default=0.0) / 1024
    disk = sum(cost.disk_mb for cost in costs) / 1000
    limits = [
        ("minutes", minutes, budget.minutes),
        ("GB of memory", memory, budget.memory_gb or machine_memory_gb()),
        ("GB of disk", disk, budget.disk_gb or free_disk_gb(project.folder)),
    ]
    above = [f"{value:.1f} {what} against {limit:.1f}" for what, value, limit in limits if limit and value > limit]
    if above:
        raise AdvpriorError(
            "RUN012",
            "the long steps would take more than there is",
            where=str(project.folder / PROJECT_FILE),
            actual="; ".join(above) + " (a forecast)",
            expected="what `budget` allows, or this machine has",
            fix="raise `budget`, or make less: fewer priors, fewer users, `advprior run --until first`",
        )
