"""One command of a project as a process of its own: started, watched, measured, stopped with whoever started it.

An `advprior` command keeps our standard streams, so that its progress bar and its errors are its own. What Feast says
goes into a log, without colours: it is read when something fails.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from advprior.pipeline.settings import HIDDEN
from advprior.pipeline.steps import Cost, Step
from advprior.store.errors import AdvpriorError

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_TAIL_LINES = 25


@dataclass
class Child:
    """A command that runs.

    Attributes
    ----------
    log : Path, optional
        Where its output goes; None: to our own streams.
    """

    step: Step
    process: subprocess.Popen[bytes]
    started: float
    log: Path | None

    def poll(self) -> tuple[int, Cost] | None:
        """Exit code and cost once it has ended; None before."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        cost = Cost(
            seconds=round(time.monotonic() - self.started, 2),
            cpu_seconds=round(usage.ru_utime + usage.ru_stime, 2),
            memory_mb=round(usage.ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024), 1),
        )
        return self.process.returncode, cost

    def output(self) -> list[str]:
        """Lines of its log, without colours."""
        if self.log is None or not self.log.is_file():
            return []
        text = _COLOUR.sub("", self.log.read_text(errors="replace"))
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def tail(self) -> list[str]:
        """The last lines of its log."""
        return list(deque(self.output(), _TAIL_LINES))


def start(folder: Path, step: Step, *, quiet: bool) -> Child:
    """Start the command of a step in the project folder.

    Parameters
    ----------
    folder : Path
    step : Step
    quiet : bool
        Keep its output from our streams, in a log: for Feast, and for what runs beside others.
    """
    log = folder / HIDDEN / "logs" / f"{step.name.replace(' ', '-')}.log" if quiet else None
    words = executable(step.command)
    if log is None:
        return Child(step, subprocess.Popen(words, cwd=folder, env=environment()), time.monotonic(), None)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as handle:
        process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=handle, stderr=subprocess.STDOUT)
    return Child(step, process, time.monotonic(), log)


def stop(children: list[Child], *, interrupted: bool) -> None:
    """Wait for commands to tidy up; those that were not told to stop by the terminal are told now."""
    for child in children:
        if not interrupted:
            child.process.terminate()
    for child in children:
        child.process.wait()


def environment() -> dict[str, str]:
    """Ours, with the packages findable from the project folder, and threads that sleep while they wait."""
    environment = dict(os.environ)
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():  # a checkout: it may be importable through the working directory only
        paths = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    # waiting OpenMP threads spin by default: processor time that nobody gets anything for
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment["ADVPRIOR_WITHIN_RUN"] = "1"  # no hints on what to type next
    return environment


def executable(command: tuple[str, ...]) -> list[str]:
    """The same command in this very environment, whether or not it is activated."""
    program, *arguments = command
    if program == "advprior":
        # -P: a folder of the project named as a package of ours must not stand in its way
        return [sys.executable, "-P", "-m", "advprior", *arguments]
    if program == "feast" and find_spec("feast") is not None:
        return [sys.executable, "-P", "-m", "advprior.store.feast_import", *arguments]
    beside = Path(sys.executable).with_name(program)
    path = str(beside) if beside.exists() else shutil.which(program)
    if path is None:
        raise AdvpriorError(
            "CFG011",
            f"the command `{program}` is not installed",
            where=str(beside.parent),
            fix="make install, or pip install 'feast[duckdb]'",
        )
    return [path, *arguments]


def on_path(program: str) -> bool:
    """Whether typing the program runs the one of this environment."""
    path = shutil.which(program)
    return path is not None and Path(path).parent.resolve() == Path(sys.executable).parent.resolve()


def failure(child: Child, code: int, words: str) -> AdvpriorError:
    """What a step that failed is reported as; its exit code is ours."""
    if code < 0:
        name = signal.Signals(-code).name
        ended = f"killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
        fix = "fewer users or priors where it was memory; then `advprior run` goes on from there"
    else:  # its own error has said what, where and how it is fixed: once is enough
        ended = f"exit code {code}, its own message is above"
        fix = "what that message says; then `advprior run` goes on from there"
    what = f"the run stopped at `{child.step.name}` ({ended}); the steps before it are kept"
    error = AdvpriorError("RUN010", what, where=words, fix=fix)
    error.exit_code = code if code > 0 else 128 - code
    return error
