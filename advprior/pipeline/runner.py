"""`advprior run`: every step of a project that is not current, in order, several at a time where asked.

Nothing is called in process: what is printed is what anyone can type. A run that was stopped goes on where it was,
because a step counts as done only once it has ended.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from advprior.pipeline.budget import check_budget, forecast_lines
from advprior.pipeline.forecast import LONG_SECONDS, Forecast
from advprior.pipeline.plan import FIRST, make_plan
from advprior.pipeline.process import Child, failure, on_path, start, stop
from advprior.pipeline.retention import remove_measured, wanted_again
from advprior.pipeline.settings import HIDDEN, Project
from advprior.pipeline.steps import Cost, Plan, Stamps, Step, stamp_of, state_of, states
from advprior.store.errors import AdvpriorError
from advprior.store.progress import duration
from advprior.store.runs import MANIFEST, read_manifest

STEPS_FILE = f"{HIDDEN}/steps.json"
REPORT_EVERY_S = 60.0  # a line of progress where there is no terminal
_POLL_S = 0.05


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    Parameters
    ----------
    until : str, optional
        Last step; with what it needs, and no more. ``first``: up to the first answer.
    jobs : int
        Steps at a time.
    force : bool
        Do every step again.
    """

    until: str | None = None
    jobs: int = 1
    force: bool = False


@dataclass
class Outcome:
    """What a run did."""

    ran: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    seconds: float = 0.0
    costs: dict[str, Cost] = field(default_factory=dict)
    freed: int = 0


def stamps_of(project: Project) -> Stamps:
    """What is known of the project's steps."""
    return Stamps(project.folder / STEPS_FILE)


def last_step(plan: Plan, until: str | None) -> tuple[Step, ...]:
    """Steps of a run: all, or those up to one that is named.

    Raises
    ------
    AdvpriorError
        ``RUN011`` when no step has the name.
    """
    if until is None:
        return plan.steps
    names = [step.name for step in plan.steps]
    name = FIRST if until == "first" and FIRST in names else until
    if name not in names:
        from difflib import get_close_matches

        near = get_close_matches(name, names, n=1)
        raise AdvpriorError(
            "RUN011",
            "the project has no such step",
            where="--until",
            actual=until,
            expected=", ".join(names),
            fix=f"did you mean {near[0]!r}?" if near else "advprior status lists them",
        )
    return plan.until(name)


def run(project: Project, options: RunOptions = RunOptions()) -> Outcome:
    """Bring a project up to date.

    Raises
    ------
    AdvpriorError
        ``RUN010`` when a step fails: with its command, and with its exit code. ``RUN011`` for an unknown step,
        ``RUN012`` when the forecast is above the budget.
    """
    return _Runner(project, options).run()


class _Runner:
    """One run: which steps are done, which run, what they cost."""

    def __init__(self, project: Project, options: RunOptions) -> None:
        self.project, self.options = project, options
        self.folder = project.folder
        self.stamps = stamps_of(project)
        self.outcome = Outcome()
        self.children: list[Child] = []
        self.failed: tuple[Child, int] | None = None
        self.started = self.reported = time.monotonic()
        self.forecast_shown = False
        self.plan = Plan(())

    def run(self) -> Outcome:
        with _terminated():
            try:
                while self._begin() or self.children:
                    self._wait()
            except KeyboardInterrupt:
                stop(self.children, interrupted=True)  # the terminal interrupted them too
                raise
            except BaseException:
                stop(self.children, interrupted=False)
                raise
        if self.failed is not None:
            child, code = self.failed
            raise failure(child, code, shlex.join(child.step.command))
        self.outcome.seconds = time.monotonic() - self.started
        if self.options.until is None:
            self.outcome.freed = remove_measured(self.folder, self.project.config, self.plan)
        return self.outcome

    @property
    def done(self) -> set[str]:
        return {*self.outcome.ran, *self.outcome.current}

    def _begin(self) -> bool:
        """Start what can be started; whether anything is left to do."""
        if self.failed is not None:
            return False
        self.plan = make_plan(self.project)  # again: what follows the tables depends on them
        wanted = last_step(self.plan, self.options.until)
        again = wanted_again(self.folder, self.plan, states(self.folder, self.plan, self.stamps), wanted)
        running = {child.step.name for child in self.children}
        progress = True
        while progress:
            progress = False
            for step in wanted:
                if step.name in self.done or step.name in running:
                    continue
                if any(other.name not in self.done for other in self.plan.needs(step)):
                    continue
                forced = self.options.force
                is_current = state_of(self.folder, self.plan, step, self.stamps)[0] == "current"
                if not forced and is_current and step.name not in again:
                    self._pass(step)
                    progress = True
                elif len(self.children) < self.options.jobs:
                    self._start(step, wanted)
                    running.add(step.name)
        return any(step.name not in self.done for step in wanted)

    def _pass(self, step: Step) -> None:
        """A step that is current."""
        self.outcome.current.append(step.name)

    def _start(self, step: Step, wanted: tuple[Step, ...]) -> None:
        forecast = Forecast(self.project, self.plan, self.stamps)
        every = states(self.folder, self.plan, self.stamps)
        left = [other for other in wanted if other.name not in self.done and every[other.name][0] != "current"]
        first = step.kind.startswith("first")
        if not (self.forecast_shown or first) and forecast.of(step).seconds >= LONG_SECONDS:
            self.forecast_shown = True
            check_budget(self.project, forecast, left)
            for line in forecast_lines(forecast, left):
                click.echo(line)
        if not (self.outcome.ran or self.children) and not on_path("advprior"):
            click.echo(f"The commands are in {Path(sys.executable).parent}: activate that environment to copy them.")
        self.plan.write_files(self.folder, step)
        _prepare_cutoff(self.folder, step)
        number = wanted.index(step) + 1
        about = forecast.of(step).seconds
        expected = f"  (about {duration(about)})" if about >= 10 else ""
        click.echo(click.style(f"\n[{number}/{len(wanted)}] {step.name}{expected}", bold=True))
        click.echo(f"$ {shlex.join(step.command)}")
        sys.stdout.flush()
        self.stamps.forget(step)
        again = self.options.force and step.command[0] == "advprior"
        command = (*step.command, "--force") if again else step.command
        quiet = step.command[0] == "feast" or self.options.jobs > 1
        self.children.append(start(self.folder, replace(step, command=command), quiet=quiet))
        self.reported = time.monotonic()

    def _wait(self) -> None:
        """Wait for one of the running commands to end, telling now and then how far it is."""
        while self.children:
            for child in self.children:
                ended = child.poll()
                if ended is not None:
                    self.children.remove(child)
                    self._end(child, *ended)
                    return
            if not sys.stderr.isatty() and time.monotonic() - self.reported >= REPORT_EVERY_S:
                self.reported = time.monotonic()
                self._report()
            time.sleep(_POLL_S)

    def _end(self, child: Child, code: int, cost: Cost) -> None:
        if code != 0:
            for line in child.tail():
                click.echo(f"  {line}", err=True)
            self.failed = self.failed or (child, code)
            return
        step = next(step for step in self.plan.steps if step.name == child.step.name)
        if child.log is not None and step.command[0] != "feast":
            for line in child.output():
                click.echo(line)
        cost = replace(cost, disk_mb=disk_mb(self.folder, step))
        stamp = stamp_of(self.folder, self.plan, step)
        last = self.stamps.cost(step)
        reused = _unchanged(self.folder, step, child)
        self.stamps.put(step, stamp, last if reused and last is not None else cost)
        self.outcome.ran.append(step.name)
        self.outcome.costs[step.name] = cost
        name = f"{step.name}: " if self.options.jobs > 1 else ""
        click.echo(f"  {name}({duration(cost.seconds)}, {cost.cpu_seconds:.1f} CPU-s, {cost.memory_mb / 1024:.1f} GB)")
        if step.name == FIRST:
            self._first_answer()

    def _first_answer(self) -> None:
        """The verdict without an LLM, and that one may stop here."""
        folder = self.folder / "first" / "ablation"
        if self.options.until is None and not self.forecast_shown and (folder / MANIFEST).is_file():
            verdict = read_manifest(folder)["facts"].get("verdict", "")
            click.echo(click.style(f"\nwithout an LLM: {verdict}", bold=True))
            small = "One seed and small rankers: a direction. " if self.project.config.arms.file is not None else ""
            click.echo(f"  {small}The other priors follow; Ctrl-C stops here.")

    def _report(self) -> None:
        """One line: what runs, how long it has, how long it and everything else may take."""
        forecast = Forecast(self.project, self.plan, self.stamps)
        running = {child.step.name: time.monotonic() - child.started for child in self.children}
        rest = [step for step in last_step(self.plan, self.options.until) if step.name not in {*self.done, *running}]
        behind = sum(forecast.of(s).seconds for s in rest if _stale(self, s))
        now = sum(max(0.0, forecast.of(child.step).seconds - running[child.step.name]) for child in self.children)
        each = ", ".join(f"{name} for {duration(seconds)}" for name, seconds in running.items())
        click.echo(f"  … {each}; the whole run has about {duration(now + behind / self.options.jobs)} left", err=True)


def _stale(runner: _Runner, step: Step) -> bool:
    return state_of(runner.folder, runner.plan, step, runner.stamps)[0] != "current"


def _unchanged(folder: Path, step: Step, child: Child) -> bool:
    """Whether the command found its output as it should be: its manifest is older than the command."""
    if step.output is None:
        return False
    written: float = (folder / step.output / MANIFEST).stat().st_mtime
    return written < time.time() - (time.monotonic() - child.started)


def _prepare_cutoff(folder: Path, step: Step) -> None:
    """A cut-off has a feature repository of its own: the definitions and the store of the project's."""
    if step.kind != "rank origin" or step.output is None:
        return
    source, target = folder / "feature_repo", folder / Path(step.output).parent / "feature_repo"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("definitions.py", "feature_store.yaml", ".feastignore"):
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())


def disk_mb(folder: Path, step: Step) -> float:
    """Size of what a step wrote, MB; what a publication shares with its score run is the latter's."""
    if step.output is None or not (folder / step.output / MANIFEST).is_file():
        return 0.0
    outputs = read_manifest(folder / step.output).get("outputs", {})
    size: int = sum(
        facts["bytes"]
        for name, facts in outputs.items()
        if step.kind != "publish" or (folder / step.output / name).stat().st_nlink == 1
    )
    return round(size / 1e6, 2)


@contextmanager
def _terminated() -> Iterator[None]:
    """`kill` ends a run as Ctrl-C does, and with it the commands that it started."""

    def end(*_: object) -> None:
        click.echo("\nterminated: finished steps are kept, run the same command again to go on", err=True)
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
