"""The demo: the same commands a user types, one after the other, each timed.

Nothing is called in process. What the demo prints is what anyone can run by hand, every command skips by
itself when its inputs are unchanged, and memory is measured per command. Only Feast's two commands have no notion
of "unchanged": they are skipped by the digests of the definitions and of what is published.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from advprior.pipeline.project import RECORD as INIT_RECORD
from advprior.store.contract import (
    BASELINE_SERVICE,
    CATALOG_TEXT,
    HYBRID,
    LLM,
    NEIGHBOURS,
    PLACEBO,
    POPULARITY,
    SASREC,
    TWIN,
    USER_HISTORY_VIEW,
    prior_service,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import MANIFEST, digest, manifest_digest, read_manifest, sha256_file, write_json
from advprior.store.tables import load_time_plan

RECORD = "demo.json"
LAST, RANKED = "last", "ranked"


@dataclass(frozen=True)
class Predicted:
    """A prior that the demo makes: who predicts, with which settings.

    Parameters
    ----------
    name : str
        What it is published as, and the arm that reads it.
    predictor : str
        Whose settings it takes.
    config : str, optional
        File among the project's configs.
    changes : tuple of str
        Settings that differ from it, ``key=value``.
    pairs : bool
        Of advertiser × category (`advprior.data.pairs`) in place of advertisers.
    shuffled : bool
        Publish a placebo of it, too.
    """

    name: str
    predictor: str
    config: str | None = None
    changes: tuple[str, ...] = ()
    pairs: bool = False
    shuffled: bool = False


_FEW = (
    Predicted(LLM, LLM, "llm.yaml", shuffled=True),
    Predicted(SASREC, SASREC),
    Predicted(POPULARITY, POPULARITY),
    Predicted(NEIGHBOURS, NEIGHBOURS),
    # as fine as what a label asks: an advertiser's category
    Predicted("neighbours_pair", NEIGHBOURS, pairs=True),
    Predicted("text_pair", CATALOG_TEXT, "text.yaml", pairs=True, shuffled=True),
)
#: Whose priors are compared, by the name of the choice. Zero-shot is in neither: it reads every name behind every
#: prompt, some hundred times the price of the head.
ARMS = {
    "few": _FEW,
    "full": (
        *_FEW,
        # habit at a half-life of two days and nothing of what goes with what: whom the user bought from last
        Predicted(LAST, NEIGHBOURS, changes=("half_lives_days=[2]", "similar=false")),
        Predicted(HYBRID, HYBRID, "hybrid.yaml"),
        Predicted(TWIN, HYBRID, "hybrid.yaml", ("encoder.twin=true",)),
        Predicted(CATALOG_TEXT, CATALOG_TEXT, "text.yaml"),
        Predicted(RANKED, LLM, "llm.yaml", ("ranking.epochs=1",)),
        Predicted("sasrec_pair", SASREC, pairs=True),
        Predicted("twin_pair", HYBRID, "hybrid.yaml", ("encoder.twin=true",), pairs=True),
        Predicted("hybrid_pair", HYBRID, "hybrid.yaml", pairs=True),
        Predicted("popularity_pair", POPULARITY, pairs=True),
        Predicted("text_twin_pair", CATALOG_TEXT, "text.yaml", ("twin=true",), pairs=True),
    ),
}
#: The names of the few.
PREDICTED = tuple(prior.name for prior in _FEW)
#: With all arms: the LLM's priors of so many weeks ago as well.
STALE = "1,4,12"
STAMPS = ".feast-steps.json"
_FEAST_FILES = ("definitions.py", "feature_store.yaml")
# What Feast says on stderr that no user can act on: a deprecation inside ibis, with its source line.
_NOISE = (b"DeprecationWarning: fetch_arrow_table()", b" = result.fetch_arrow_table()")


@dataclass(frozen=True)
class Step:
    """One command of the chain.

    Parameters
    ----------
    name : str
        Short name, as timed in ``demo.json``.
    command : tuple of str
        As a user types it: ``advprior …`` or ``feast …``.
    record : Path, optional
        The file that it writes last (a manifest): when that did not change, the step was reused. None for
        Feast's own commands, which always work and are skipped by a stamp.
    """

    name: str
    command: tuple[str, ...]
    record: Path | None = None


@dataclass
class Timing:
    """What one step cost: in this run, and when it last did its work."""

    name: str
    command: str
    seconds: float
    peak_memory_mb: float
    reused: bool
    made_seconds: float
    made_peak_memory_mb: float


def steps(
    workspace: Path,
    households: str,
    seed: int,
    *,
    force: bool = False,
    build: tuple[str, ...] | None = None,
    arms: str = "few",
) -> list[Step | Callable[[], Step]]:
    """The chain, in order. A callable is a step whose arguments are known only once an earlier one is done.

    Parameters
    ----------
    workspace : Path
        Folder of everything the demo makes.
    households : str
        A count, or ``all``.
    seed : int
        Of the sample of households, of fine-tuning and of the rankers.
    force : bool
        Do every step again.
    build : tuple of str, optional
        Arguments of ``advprior`` that make ``<workspace>/tables``, in place of the public data.
    arms : str
        Which of `ARMS`; ``full`` measures optional and stale arms too.
    """
    w = workspace
    tables, repo, frame, ablation = str(w / "tables"), str(w / "feature_repo"), str(w / "frame"), str(w / "ablation")
    views = w / "feature_repo" / "data"
    again = ("--force",) if force else ()
    seeded = ("--seed", str(seed))

    def advprior(name: str, *arguments: str, out: Path) -> Step:
        return Step(name, ("advprior", *arguments, *again), out / MANIFEST)

    if build is None:
        build = ("data", "build", "complete_journey", "--out", tables, "--households", households, *seeded)
    chain: list[Step | Callable[[], Step]] = [
        advprior("data build", *build, out=w / "tables"),
        Step("init", ("advprior", "init", str(w)), w / INIT_RECORD),
    ]
    pairs = str(w / "tables_pair")
    if any(prior.pairs for prior in ARMS[arms]):
        chain.append(advprior("data pairs", "data", "pairs", "--tables", tables, "--out", pairs, out=w / "tables_pair"))
    for prior in ARMS[arms]:
        source = pairs if prior.pairs else tables
        predictor = prior.name
        model, priors = w / "models" / predictor, w / "priors" / predictor
        how: tuple[str, ...] = () if prior.predictor == LLM else ("--predictor", prior.predictor)
        how += ("--config", str(w / "configs" / prior.config)) if prior.config else ()
        how += tuple(word for change in prior.changes for word in ("--set", change))
        named = () if prior.name == prior.predictor else ("--as", prior.name)
        chain += [
            advprior(f"finetune {predictor}", "finetune", "--tables", source, "--out", str(model), *how, out=model),
            advprior(f"export {predictor}", "export", str(model), out=model / "onnx"),
            advprior(f"score {predictor}", "score", str(model), "--tables", source, "--out", str(priors), out=priors),
            advprior(
                f"publish {predictor}",
                "publish",
                str(priors),
                "--repo",
                repo,
                *named,
                out=views / prior_view(predictor),
            ),
        ]
        if prior.shuffled:
            placebo = PLACEBO if predictor == LLM else f"{PLACEBO}_{predictor}"
            publish = ("publish", str(priors), "--repo", repo, "--as", placebo)
            chain.append(advprior(f"publish {placebo}", *publish, out=views / prior_view(placebo)))
    history = views / USER_HISTORY_VIEW
    arms_file = ("--arms", str(w / "configs" / "arms.yaml"))
    stale, optional = (("--stale", STALE), ("--optional",)) if arms == "full" else ((), ())
    runs = (w / "models" / LLM, w / "models" / LLM / "onnx", w / "priors" / LLM)
    provenance = [word for run in runs for word in ("--predictor-run", str(run))]
    towers = str(w / "towers")
    # a picture of more curves than these cannot be read
    slots = ("--predictors", ",".join([*PREDICTED, PLACEBO])) if arms == "full" else ()
    retrieval = ("--candidates", str(w / "candidates"), "--two-by-two", str(w / "two_by_two"))
    chain += [
        advprior("rank features", "rank", "features", "--tables", tables, "--repo", repo, out=history),
        Step("feast apply", ("feast", "-c", repo, "apply")),
        advprior(
            "rank frame", "rank", "frame", "--tables", tables, "--repo", repo, "--out", frame, *stale, out=w / "frame"
        ),
        advprior(
            "rank ablate",
            "rank",
            "ablate",
            "--frame",
            frame,
            *arms_file,
            "--out",
            ablation,
            *optional,
            out=w / "ablation",
        ),
        advprior("rank towers", "rank", "towers", "--tables", tables, "--out", towers, *seeded, out=w / "towers"),
        advprior(
            "rank candidates",
            "rank",
            "candidates",
            "--tables",
            tables,
            "--repo",
            repo,
            "--towers",
            towers,
            "--out",
            str(w / "candidates"),
            *slots,
            out=w / "candidates",
        ),
        advprior(
            "rank two-by-two",
            "rank",
            "two-by-two",
            "--tables",
            tables,
            "--frame",
            frame,
            "--ablation",
            ablation,
            "--towers",
            towers,
            "--out",
            str(w / "two_by_two"),
            out=w / "two_by_two",
        ),
        advprior(
            "rank train",
            "rank",
            "train",
            "--frame",
            frame,
            "--service",
            prior_service(LLM),
            *arms_file,
            *seeded,
            "--out",
            str(w / "ranker"),
            out=w / "ranker",
        ),
        advprior(
            "rank train baseline",
            "rank",
            "train",
            "--frame",
            frame,
            "--service",
            BASELINE_SERVICE,
            *arms_file,
            *seeded,
            "--out",
            str(w / "ranker_baseline"),
            out=w / "ranker_baseline",
        ),
        advprior(
            "rank report",
            "rank",
            "report",
            ablation,
            *provenance,
            *retrieval,
            "--out",
            str(w / "report"),
            out=w / "report",
        ),
        lambda: _materialize(w),
    ]
    return chain


def run_demo(
    workspace: Path,
    households: str,
    seed: int,
    *,
    force: bool = False,
    build: tuple[str, ...] | None = None,
    arms: str = "few",
) -> dict[str, Any]:
    """Run the chain and write ``demo.json``; stops at the first step that fails.

    Returns
    -------
    dict
        What ``demo.json`` holds: verdict, note on the data, report, seconds, peak_memory_mb, steps.

    Raises
    ------
    AdvpriorError
        ``RUN010`` when a step fails: with its command, and with its exit code.
    """
    started = time.monotonic()
    chain = steps(workspace, households, seed, force=force, build=build, arms=arms)
    before = _last_record(workspace)
    if _not_on_path("advprior"):
        click.echo(f"The commands below are in {Path(sys.executable).parent}: activate that environment to copy them.")
    timings: list[Timing] = []
    for number, item in enumerate(chain, start=1):
        step = item() if callable(item) else item
        click.echo(click.style(f"\n[{number}/{len(chain)}] {step.name}", bold=True))
        click.echo(f"$ {shlex.join(step.command)}")
        timing = _feast_step(step, workspace, force) if step.record is None else _run(step)
        made = before.get(step.name)
        if timing.reused and made is not None:
            timing.made_seconds, timing.made_peak_memory_mb = made["made_seconds"], made["made_peak_memory_mb"]
        if not timing.reused:
            click.echo(f"  ({timing.seconds:.1f} s, {timing.peak_memory_mb / 1024:.1f} GB)")
        timings.append(timing)
    record = {
        "households": households,
        "seed": seed,
        "verdict": _verdict(workspace),
        "note": str(read_manifest(workspace / "tables")["facts"].get("note", "")),
        "report": str(_report(workspace)),
        "seconds": round(time.monotonic() - started, 1),
        "made_seconds": round(sum(t.made_seconds for t in timings), 1),
        "peak_memory_mb": max(t.made_peak_memory_mb for t in timings),
        "steps": [asdict(t) for t in timings],
    }
    write_json(workspace / RECORD, record)
    return record


def run_rolling(
    workspace: Path,
    households: str,
    seed: int,
    origins: int,
    *,
    force: bool = False,
    build: tuple[str, ...] | None = None,
    arms: str = "few",
) -> dict[str, Any]:
    """The whole chain at several cut-offs, the predictors refitted at each, then one pooled ablation and report.

    Every cut-off is a demo of its own, in ``<workspace>/origin_<n>``, and resumes as one.

    Raises
    ------
    AdvpriorError
        ``RUN010`` when a step fails.
    """
    started, again = time.monotonic(), ("--force",) if force else ()
    tables, pooled, report = workspace / "tables", workspace / "ablation", workspace / "report"
    if build is None:
        of = ("--households", households, "--seed", str(seed))
        build = ("data", "build", "complete_journey", "--out", str(tables), *of)
    timings = [_run(Step("data build", ("advprior", *build, *again), tables / MANIFEST))]
    records = []
    for number in range(1, origins + 1):
        folder = workspace / f"origin_{number}"
        shift = ("--number", str(number), "--of", str(origins), "--out", str(folder / "tables"))
        click.echo(click.style(f"\ncut-off {number} of {origins}", bold=True))
        cut = ("rank", "origin", "--tables", str(tables), *shift)
        records.append(run_demo(folder, households, seed, force=force, build=cut, arms=arms))
    ablations = [str(workspace / f"origin_{number}" / "ablation") for number in range(1, origins + 1)]
    for step in (
        Step("rank pool", ("advprior", "rank", "pool", *ablations, "--out", str(pooled), *again), pooled / MANIFEST),
        Step(
            "rank report", ("advprior", "rank", "report", str(pooled), "--out", str(report), *again), report / MANIFEST
        ),
    ):
        click.echo(f"$ {shlex.join(step.command)}")
        timings.append(_run(step))
    record = {
        "households": households,
        "seed": seed,
        "origins": origins,
        "verdict": _verdict(workspace),
        "note": str(read_manifest(tables)["facts"].get("note", "")),
        "report": str(_report(workspace)),
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": max([t.made_peak_memory_mb for t in timings] + [r["peak_memory_mb"] for r in records]),
        "steps": [asdict(t) for t in timings],
    }
    write_json(workspace / RECORD, record)
    return record


def _run(step: Step) -> Timing:
    """Run one command with our own standard streams, so that progress bars and errors are its own."""
    before = _content(step.record)
    started = time.monotonic()
    feast = step.record is None
    child = subprocess.Popen(_executable(step.command), stderr=subprocess.PIPE if feast else None)

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    told = signal.signal(signal.SIGTERM, end)
    try:
        with child.stderr or nullcontext(()) as lines:
            for line in lines:
                if not any(noise in line for noise in _NOISE):
                    click.echo(line, nl=False, err=True)
        _, status, usage = os.wait4(child.pid, 0)
    except KeyboardInterrupt:
        child.wait()  # the terminal interrupted it too: let it tidy up before we go
        raise
    except SystemExit:
        child.terminate()  # `kill` told the demo alone
        child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, told)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = round(time.monotonic() - started, 2)
    if child.returncode != 0:
        raise _stopped(step, child.returncode)
    peak = round(usage.ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
    reused = before is not None and _content(step.record) == before
    return Timing(step.name, shlex.join(step.command), seconds, peak, reused, seconds, peak)


def _feast_step(step: Step, workspace: Path, force: bool) -> Timing:
    """Run a Feast command unless it ran on exactly this repository and these published views."""
    path = workspace / STAMPS
    stamps: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    key = _store_key(workspace, step)
    if not force and stamps.get(step.name) == key and _stores_exist(workspace / "feature_repo", step):
        click.echo(f"{step.name}: unchanged, skipped")
        return Timing(step.name, shlex.join(step.command), 0.0, 0.0, True, 0.0, 0.0)
    # forgotten before it runs: a store that is half written must not pass for current later
    write_json(path, {name: stamp for name, stamp in stamps.items() if name != step.name})
    timing = _run(step)
    write_json(path, {**stamps, step.name: key})
    return timing


def _store_key(workspace: Path, step: Step) -> str:
    """Digest of what a Feast command reads: its own arguments, the definitions, the published views."""
    repo = workspace / "feature_repo"
    views = sorted((repo / "data").glob(f"*/{MANIFEST}"))
    return digest(
        {
            "command": step.command,
            "folder": str(repo.resolve()),  # the registry keeps absolute paths
            "files": {name: sha256_file(repo / name) for name in _FEAST_FILES},
            "views": {path.parent.name: manifest_digest(path.parent) for path in views},
        }
    )


def _stores_exist(repo: Path, step: Step) -> bool:
    """Whether the local registry (and the online store) that a stamp speaks of are still there."""
    needed = ["data/registry.db"] if step.name == "feast apply" else ["data/registry.db", "data/online_store.db"]
    text = (repo / "feature_store.yaml").read_text()
    return all((repo / name).exists() for name in needed if name in text)


def _materialize(workspace: Path) -> Step:
    plan = load_time_plan(workspace / "tables")

    def moment(when: datetime) -> str:
        return when.strftime("%Y-%m-%dT%H:%M:%S")

    # the newest snapshot is available a lag after it, which may be past the end of the data
    end = plan.end + plan.lag + timedelta(seconds=1)
    command = ("feast", "-c", str(workspace / "feature_repo"), "materialize", moment(plan.start), moment(end))
    return Step("feast materialize", command)


def _executable(command: tuple[str, ...]) -> list[str]:
    """The same command in this very environment, whether or not it is activated."""
    program, *arguments = command
    if program == "advprior":
        return [sys.executable, "-m", "advprior", *arguments]
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        raise AdvpriorError(
            "CFG011",
            f"the command `{program}` is not installed",
            where=str(beside.parent),
            fix="make install, or pip install 'feast[duckdb]'",
        )
    return [found, *arguments]


def _not_on_path(program: str) -> bool:
    found = shutil.which(program)
    return found is None or Path(found).parent.resolve() != Path(sys.executable).parent.resolve()


def _stopped(step: Step, code: int) -> AdvpriorError:
    if code < 0:
        name = signal.Signals(-code).name
        found = f"killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
    else:
        found = f"exit code {code}; what it said is above"
    error = AdvpriorError(
        "RUN010",
        f"the demo stopped at `{step.name}`; the steps before it are kept",
        where=shlex.join(step.command),
        actual=found,
        fix="run that command alone until it passes, then the demo again: it goes on from there",
    )
    error.exit_code = code if code > 0 else 128 - code
    return error


def _content(path: Path | None) -> bytes | None:
    return path.read_bytes() if path is not None and path.is_file() else None


def _last_record(workspace: Path) -> dict[str, Any]:
    try:
        return {step["name"]: step for step in json.loads((workspace / RECORD).read_text())["steps"]}
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def _report(workspace: Path) -> Path:
    return next((workspace / "report").glob("*.html"), workspace / "report")


def _verdict(workspace: Path) -> str:
    facts = read_manifest(workspace / "report")["facts"]
    return str(facts.get("verdict", ""))
